package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/parleymq/parley/client/wire"
)

// settings is what one broker is told.
type settings struct {
	Name             string
	DataDir          string
	Listen           string
	AdvertiseClient  string
	HTTP             string
	PeerListen       string
	AdvertisePeer    string
	RaftListen       string
	AdvertiseRaft    string
	InitialCluster   string
	Join             string
	DeadAfter        time.Duration
	CopyRate         int64
	TrashGrace       time.Duration
	CompareEvery     time.Duration // below 0: off
	CompareRate      int64
	SecretFile       string
	PeerTLSCert      string
	PeerTLSKey       string
	PeerTLSCA        string
	Rack             string
	Weight           int
	TLSCert          string
	TLSKey           string
	TLSClientCA      string
	User             string
	Password         string
	Token            string
	FreeSpaceFloor   int64
	MaxRecord        int64
	MemoryLimit      int64
	AutoCreateTopics bool
	AutoRaiseLevel   bool
	Pprof            bool
	LogLevel         string
	LogFormat        string

	// Of tests.
	TestCutBytes int64
	TestDisk     string
}

// An option is one setting: a flag, a key of the configuration file and an
// environment variable.
type option struct {
	flag     string // data-dir; the key is data_dir, the variable PARLEY_DATA_DIR
	meta     string // what the value is called in the help
	initial  string // the default, in the form that set takes; "" for none
	usage    string
	secret   bool // never printed in an error
	isSwitch bool // a flag without a value means true
	hidden   bool // for tests: neither the help nor the example tells of it
	set      func(*settings, string) error
}

func (o *option) key() string      { return strings.ReplaceAll(o.flag, "-", "_") }
func (o *option) variable() string { return "PARLEY_" + strings.ToUpper(o.key()) }

// options lists every setting, in the order in which the help shows them.
func options() []option {
	return []option{
		{flag: "name", meta: "NAME", usage: "broker name, unique in the cluster (default: host name)", set: setName},
		{flag: "data-dir", meta: "DIR", initial: "./parley-data", usage: "directory of everything that is stored",
			set: text(func(s *settings) *string { return &s.DataDir })},
		{flag: "listen", meta: "HOST:PORT", initial: "127.0.0.1:4222", usage: "clients (NATS protocol)",
			set: address(func(s *settings) *string { return &s.Listen })},
		{flag: "advertise-client", meta: "HOST:PORT", usage: "what clients dial, where it differs from --listen",
			set: address(func(s *settings) *string { return &s.AdvertiseClient })},
		{flag: "http", meta: "HOST:PORT", initial: "127.0.0.1:8222", usage: "/healthz /readyz /metrics /v1/…; off for none",
			set: setHTTP},
		{flag: "peer-listen", meta: "HOST:PORT", initial: "127.0.0.1:6222",
			usage: "other brokers of the cluster; a broker that runs alone doesn't listen there",
			set:   address(func(s *settings) *string { return &s.PeerListen })},
		{flag: "advertise-peer", meta: "HOST:PORT", usage: "what other brokers dial, where it differs from --peer-listen",
			set: address(func(s *settings) *string { return &s.AdvertisePeer })},
		{flag: "raft-listen", meta: "HOST:PORT", initial: "127.0.0.1:7222", usage: "Raft",
			set: address(func(s *settings) *string { return &s.RaftListen })},
		{flag: "advertise-raft", meta: "HOST:PORT", usage: "what other brokers dial for Raft, where it differs from --raft-listen",
			set: address(func(s *settings) *string { return &s.AdvertiseRaft })},
		{flag: "initial-cluster", meta: "LIST", usage: "brokers that form a cluster together, this one among them: b1=HOST:PORT,b2=HOST:PORT,… with their peer addresses",
			set: text(func(s *settings) *string { return &s.InitialCluster })},
		{flag: "join", meta: "LIST", usage: "for a new broker with an empty data directory: peer addresses of brokers whose cluster it is to join, HOST:PORT,… Beside --initial-cluster it counts for brokers that the list doesn't name, or whose disk was emptied",
			set: text(func(s *settings) *string { return &s.Join })},
		{flag: "dead-after", meta: "SPAN", initial: "5m", usage: "how long a majority of the council must find a broker unreachable before its replicas are given to others",
			set: span(time.Second, func(s *settings) *time.Duration { return &s.DeadAfter })},
		{flag: "copy-rate", meta: "SIZE", initial: "64MiB", usage: "bytes a second that copies of replicas that move take from this broker, all together; 0 for no limit",
			set: size(0, 1<<62, func(s *settings) *int64 { return &s.CopyRate })},
		{flag: "trash-grace", meta: "SPAN", initial: "10m", usage: "how long data of a replica that moved away is kept; while the disk is full it goes at once",
			set: span(time.Second, func(s *settings) *time.Duration { return &s.TrashGrace })},
		{flag: "compare-every", meta: "SPAN", initial: "1d", usage: "how often the replicas of each partition are read back from disk, verified and compared; off for only when asked (parley partition compare)",
			set: setCompareEvery},
		{flag: "compare-rate", meta: "SIZE", initial: "8MiB", usage: "bytes a second that this broker reads back for that, all together; 0 for no limit",
			set: setCompareRate},
		{flag: "cluster-secret-file", meta: "FILE", usage: "file with a secret that all brokers of the cluster share; needed, or peer TLS, where peers or Raft listen beyond loopback",
			set: text(func(s *settings) *string { return &s.SecretFile })},
		{flag: "peer-tls-cert", meta: "FILE", usage: "certificate of this broker for others, PEM; TLS between brokers is mutual",
			set: text(func(s *settings) *string { return &s.PeerTLSCert })},
		{flag: "peer-tls-key", meta: "FILE", usage: "its private key, PEM", set: text(func(s *settings) *string { return &s.PeerTLSKey })},
		{flag: "peer-tls-ca", meta: "FILE", usage: "other brokers must show a certificate signed by one of these", set: text(func(s *settings) *string { return &s.PeerTLSCA })},
		{flag: "rack", meta: "NAME", usage: "rack of this broker: replicas of a partition are spread over racks", set: setRack},
		{flag: "weight", meta: "N", initial: "100", usage: "its share of replicas beside other brokers", set: setWeight},
		{flag: "tls-cert", meta: "FILE", usage: "certificate for clients, PEM", set: text(func(s *settings) *string { return &s.TLSCert })},
		{flag: "tls-key", meta: "FILE", usage: "its private key, PEM", set: text(func(s *settings) *string { return &s.TLSKey })},
		{flag: "tls-client-ca", meta: "FILE", usage: "clients must show a certificate signed by one of these",
			set: text(func(s *settings) *string { return &s.TLSClientCA })},
		{flag: "user", meta: "NAME", usage: "user name that clients must give", set: text(func(s *settings) *string { return &s.User })},
		{flag: "password", meta: "WORD", secret: true, usage: "its password (PARLEY_PASSWORD keeps it out of the process list)",
			set: text(func(s *settings) *string { return &s.Password })},
		{flag: "token", meta: "TOKEN", secret: true, usage: "token that clients must give, instead of user and password",
			set: text(func(s *settings) *string { return &s.Token })},
		{flag: "free-space-floor", meta: "SIZE", initial: "1GiB", usage: "publishes are refused while the disk has less free; 0 for no floor",
			set: size(0, 1<<62, func(s *settings) *int64 { return &s.FreeSpaceFloor })},
		{flag: "max-record", meta: "SIZE", initial: "1MiB", usage: "largest record: key, value and headers",
			set: size(1, wire.MaxRecord, func(s *settings) *int64 { return &s.MaxRecord })},
		{flag: "memory-limit", meta: "SIZE", initial: "0", usage: "soft limit of the process's memory; 0 for none",
			set: setMemoryLimit},
		{flag: "auto-create-topics", isSwitch: true, initial: "false", usage: "a publish to a subject that no topic has creates the topic of that name",
			set: onOff(func(s *settings) *bool { return &s.AutoCreateTopics })},
		{flag: "auto-raise-level", isSwitch: true, initial: "false", usage: "end upgrades without being asked: the feature level rises as soon as all brokers know a newer one and have this set; there is no way back to the older version then",
			set: onOff(func(s *settings) *bool { return &s.AutoRaiseLevel })},
		{flag: "pprof", isSwitch: true, initial: "false", usage: "serve Go's profiles below /debug/pprof on the HTTP address",
			set: onOff(func(s *settings) *bool { return &s.Pprof })},
		{flag: "log-level", meta: "LEVEL", initial: "info", usage: "debug, info, warn or error",
			set: oneOf(func(s *settings) *string { return &s.LogLevel }, "debug", "info", "warn", "error")},
		{flag: "log-format", meta: "FORMAT", initial: "console", usage: "console or json",
			set: oneOf(func(s *settings) *string { return &s.LogFormat }, "console", "json")},
		{flag: "test-cut-bytes", meta: "SIZE", hidden: true, usage: "how much a replica applies until its Raft log is cut",
			set: size(1<<10, 1<<40, func(s *settings) *int64 { return &s.TestCutBytes })},
		{flag: "test-disk", meta: "FILE", hidden: true, usage: "the data directory's disk is as large as this file says; where it is missing or empty, as large as it is",
			set: text(func(s *settings) *string { return &s.TestDisk })},
	}
}

func text(field func(*settings) *string) func(*settings, string) error {
	return func(s *settings, v string) error {
		*field(s) = v
		return nil
	}
}

func oneOf(field func(*settings) *string, allowed ...string) func(*settings, string) error {
	return func(s *settings, v string) error {
		for _, a := range allowed {
			if v == a {
				*field(s) = v
				return nil
			}
		}
		return fmt.Errorf("want one of: %s", strings.Join(allowed, ", "))
	}
}

func address(field func(*settings) *string) func(*settings, string) error {
	return func(s *settings, v string) error {
		host, port, err := net.SplitHostPort(v)
		if err != nil || strings.ContainsAny(host, " \t/") {
			return fmt.Errorf("want HOST:PORT such as 127.0.0.1:4222 or [::1]:4222")
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fmt.Errorf("port %q: want a number from 0 (any free port) to 65535", port)
		}
		*field(s) = v
		return nil
	}
}

func size(least, most int64, field func(*settings) *int64) func(*settings, string) error {
	return func(s *settings, v string) error {
		n, err := wire.ParseSize(v)
		if err != nil || n < least || n > most {
			if most >= 1<<62 {
				return fmt.Errorf("want a size such as 512MiB or 1GiB")
			}
			return fmt.Errorf("want a size from %s to %s", wire.FormatSize(least), wire.FormatSize(most))
		}
		*field(s) = n
		return nil
	}
}

func span(least time.Duration, field func(*settings) *time.Duration) func(*settings, string) error {
	return func(s *settings, v string) error {
		d, err := wire.ParseAge(v)
		if err != nil || d < least {
			return fmt.Errorf("want a span such as 5m, %s or more", wire.FormatAge(least))
		}
		*field(s) = d
		return nil
	}
}

// minCompareEvery and minCompareRate are what the broker takes: below a second, or a few pages a second, there is no sense in it.
const (
	minCompareEvery = time.Second
	minCompareRate  = 64 << 10
)

func setCompareEvery(s *settings, v string) error {
	if v == httpOff {
		s.CompareEvery = -1
		return nil
	}
	d, err := wire.ParseAge(v)
	if err != nil || d < minCompareEvery {
		return fmt.Errorf("want a span such as 1d, %s or more, or off", wire.FormatAge(minCompareEvery))
	}
	s.CompareEvery = d
	return nil
}

func setCompareRate(s *settings, v string) error {
	n, err := wire.ParseSize(v)
	if err != nil || n != 0 && n < minCompareRate {
		return fmt.Errorf("want a size such as 8MiB, %s or more, or 0 for no limit", wire.FormatSize(minCompareRate))
	}
	s.CompareRate = n
	return nil
}

// minMemoryLimit is what an idle broker needs with room to breathe: below it
// the garbage collector would only run in circles.
const minMemoryLimit = 128 << 20

func setMemoryLimit(s *settings, v string) error {
	n, err := wire.ParseSize(v)
	if err != nil || n != 0 && n < minMemoryLimit {
		return fmt.Errorf("want 0 for none, or at least %s", wire.FormatSize(minMemoryLimit))
	}
	s.MemoryLimit = n
	return nil
}

func onOff(field func(*settings) *bool) func(*settings, string) error {
	return func(s *settings, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("want true or false")
		}
		*field(s) = b
		return nil
	}
}

// maxName bounds a broker's name; it appears in every epoch.
const maxName = 64

func setName(s *settings, v string) error {
	ok := v != "" && len(v) <= maxName
	for i := 0; ok && i < len(v); i++ {
		c := v[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
	}
	if !ok {
		return fmt.Errorf("want 1 to %d letters, digits, '-' and '_'", maxName)
	}
	s.Name = v
	return nil
}

func setHTTP(s *settings, v string) error {
	if v == httpOff {
		s.HTTP = v
		return nil
	}
	return address(func(s *settings) *string { return &s.HTTP })(s, v)
}

const httpOff = "off"

// maxRack is as generous as anything that names a rack.
const maxRack = 256

func setRack(s *settings, v string) error {
	notPrintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	if len(v) > maxRack || strings.ContainsFunc(v, notPrintable) {
		return fmt.Errorf("want at most %d bytes, all printable", maxRack)
	}
	s.Rack = v
	return nil
}

const maxWeight = 10_000

func setWeight(s *settings, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxWeight {
		return fmt.Errorf("want a number from 1 to %d", maxWeight)
	}
	s.Weight = n
	return nil
}

// check looks at what only makes sense together.
func (s *settings) check() error {
	if s.DataDir == "" {
		return usagef("data_dir is empty: want a directory")
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		return usagef("tls_cert and tls_key go together: give both or neither")
	}
	if (s.PeerTLSCert == "") != (s.PeerTLSKey == "") || (s.PeerTLSCert == "") != (s.PeerTLSCA == "") {
		return usagef("peer_tls_cert, peer_tls_key and peer_tls_ca go together: TLS between brokers is mutual")
	}
	if s.TLSClientCA != "" && s.TLSCert == "" {
		return usagef("tls_client_ca needs tls_cert and tls_key")
	}
	if (s.User == "") != (s.Password == "") {
		return usagef("user and password go together: give both or neither")
	}
	if s.Token != "" && s.User != "" {
		return usagef("token and user exclude each other: give one credential")
	}
	at := map[string]string{}
	for _, l := range []struct{ key, address string }{{"listen", s.Listen}, {"http", s.HTTP}, {"peer_listen", s.PeerListen}, {"raft_listen", s.RaftListen}} {
		if strings.HasSuffix(l.address, ":0") {
			continue
		}
		if other, taken := at[l.address]; taken {
			return usagef("%s and %s are both %s: each needs its own", other, l.key, l.address)
		}
		at[l.address] = l.key
	}
	return nil
}
