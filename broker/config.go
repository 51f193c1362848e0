package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/protocol"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Defaults and bounds of a Config.
const (
	DefaultListen         = "127.0.0.1:4222"
	DefaultHTTP           = "127.0.0.1:8222"
	DefaultPeerListen     = "127.0.0.1:6222"
	DefaultRaftListen     = "127.0.0.1:7222"
	DefaultDataDir        = "./parley-data"
	DefaultWeight         = 100
	DefaultFreeSpaceFloor = 1 << 30
	DefaultDeleteGrace    = 24 * time.Hour
	DefaultCopyRate       = 64 << 20
	DefaultTrashGrace     = 10 * time.Minute
	DefaultCompareEvery   = 24 * time.Hour
	DefaultCompareRate    = 8 << 20
	DefaultDrainTime      = 5 * time.Second
	DefaultRaftTick       = 100 * time.Millisecond
	DefaultElectionTicks  = 6
	DefaultReturnAfter    = 5 * time.Second
	DefaultDeadAfter      = 5 * time.Minute
	DefaultBalanceAfter   = 5 * time.Second
	DefaultUpkeepEvery    = time.Second

	minDeadAfter    = time.Second
	minCompareEvery = time.Second
	minCompareRate  = 64 << 10

	maxWeight = 10_000
)

// Version of this program, as brokers tell it. Set by the linker.
var Version = "0.1.0"

// Config of one broker. The zero value is a broker on loopback with the
// default ports, in ./parley-data. A port of 0 takes one from the kernel:
// Broker.Addresses tells which.
type Config struct {
	Name    string // unique in the cluster; default: the host's name
	DataDir string

	Listen     string // clients
	HTTP       string // health, metrics, read-only JSON; "off" for none
	PeerListen string // other brokers of the cluster; a lone broker has none and doesn't listen there
	RaftListen string

	// What others dial, host:port, where it differs from the listeners.
	AdvertiseClient string
	AdvertisePeer   string
	AdvertiseRaft   string

	// InitialCluster lists the brokers that form a cluster together, this one
	// among them: name=host:port, separated by commas, with their peer addresses.
	// Each of them is given the same list. Once the cluster stands its epochs
	// count, and the list is only compared with them. Empty: a cluster of one.
	InitialCluster string
	// Join has peer addresses of brokers whose cluster this one is to join, separated by
	// commas, while its data directory is empty. With InitialCluster as well, only a broker
	// joins that the list doesn't name, or whose disk was emptied.
	Join string
	// DeadAfter is for how long a majority of the council must find a broker unreachable before
	// its replicas are given to others.
	DeadAfter time.Duration
	// Secret that all brokers of the cluster share. SecretFile names a file with
	// it instead. It, or PeerTLS, is needed where a peer or Raft address isn't
	// loopback.
	Secret     []byte
	SecretFile string
	PeerTLS    PeerTLS

	Rack   string
	Weight int

	TLS      TLS // of the client listener
	User     string
	Password string
	Token    string

	FreeSpaceFloor   int64 // bytes; below it publishes are refused; negative: no floor
	MaxRecord        int64 // bytes of key, value and headers
	MemoryLimit      int64 // bytes the process should stay under; 0: by the machine's memory
	AutoCreateTopics bool  // a publish to an unbound subject that is a valid topic name creates that topic

	// DeleteGrace is how long a deleted topic can be restored.
	DeleteGrace time.Duration
	// DrainTime is how long clients get to move on when the broker stops.
	DrainTime time.Duration

	Pprof  bool // serve /debug/pprof on the HTTP port
	Logger zerolog.Logger
	Clock  func() time.Time
	// OnFatal is told why, before the broker stops by itself because its disk
	// failed. Wait returns the same error. It is called by the goroutine that met the
	// failure, under locks that Close needs: it may end the process, but not call
	// Close. Where Raft or what it applies to failed, that goroutine panics after it.
	OnFatal func(error)

	// What follows has defaults that only tests and embedding programs change.

	// Frontends replace the NATS front end. Each has a listener of its own.
	Frontends []Frontend
	// Engine names a registered storage engine; default badger.
	Engine string
	// OpenHost opens what runs the partitions' replicas; default Raft.
	OpenHost func(HostConfig) (replication.Host, error)
	// FreeSpace replaces the file system's own figure.
	FreeSpace func(dir string) (free, total uint64, err error)
	// TrashGrace is how long data of a replica that moved away is kept; default 10 min. It goes earlier
	// while the disk is full.
	TrashGrace time.Duration
	// CopyRate limits the bytes a second that copies of moving replicas take from this broker, all together;
	// default 64 MiB, negative: no limit.
	CopyRate int64
	// CompareEvery is how often the replicas of a partition are read back from disk and compared; default 24 h,
	// negative: only when somebody asks for it.
	CompareEvery time.Duration
	// CompareRate limits the bytes a second that this broker reads back for that, for all partitions together;
	// default 8 MiB, negative: no limit.
	CompareRate int64
	// OnMoveStep is told each step of a move before this broker takes it as the partition's leader: add,
	// promote, transfer, remove, renew or done.
	OnMoveStep func(topic string, partition int32, step string)
	// OnRepairStep is told each step of a repair before this broker takes it. Of a replica that is found to be wrong: condemn, replace. Of a
	// partition that is recovered from this broker's replica: replay, begin, cut, forget, reopen, confirm.
	OnRepairStep func(topic string, partition int32, step string)
	// PurgeEvery is how often deleted topics are looked at; default a minute.
	PurgeEvery time.Duration
	// CheckpointEvery and RetentionEvery replace the partitions' defaults.
	CheckpointEvery time.Duration
	RetentionEvery  time.Duration
	// Dial opens connections to other brokers' peer and Raft addresses; default
	// TCP. Tests cut links with it.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// OnListen is told the addresses before anybody is dialled.
	OnListen func(Addresses)
	// RaftTick and ElectionTicks: a follower that hears nothing of its leader
	// campaigns after one to two times their product. See docs/adr/0081.
	RaftTick      time.Duration
	ElectionTicks int
	// CutBytes is how much a replica applies until its Raft log is cut; default 256 MiB. A
	// replica that was away for longer fetches what it lacks from the others' stores.
	CutBytes int64
	// ReturnAfter is for how long a partition's preferred leader must have been
	// in sync before it gets the leadership back; default 5 s.
	ReturnAfter time.Duration
	// BalanceAfter is for how long brokers must have been up, after one joined or came back,
	// before replicas move to even out what they hold; default 5 s.
	BalanceAfter time.Duration
	// UpkeepEvery is how often is looked whether the cluster needs anything; default 1 s.
	UpkeepEvery time.Duration
	// FeatureLevel is the newest feature level that this broker says it knows; default: the newest
	// that it does know. Negative: none, as before there were any.
	FeatureLevel int
	// AutoLevel has the cluster's feature level rise by itself, once all brokers know a newer one and have this set.
	// Otherwise it waits until somebody says so, and the way back to the version before is open until then.
	AutoLevel bool
	Limits    Limits
}

// Limits of what a broker does at once.
type Limits struct {
	FetchesPerSession int // long polls of one connection; default 4096
	Fetches           int // long polls of the broker; default 32768
	FetchReplies      int // fetches that hold a buffer of up to MaxFetch bytes; default 64
	Requests          int // API requests at once; default 64
	GroupRequests     int // of group members, those that wait for records apart; default 8192
	GroupMetrics      int // groups that metrics tell of, each with its topic; default 1000
	Openings          int // partitions opened at once; default 16
	CatchUps          int // replicas at once that fetch what their log lacks; default 4
	// CatchUpRate is how many bytes a second they fetch together; default 128 MiB, or twice the CopyRate where that is more, and no limit
	// where the CopyRate has none. Negative: no limit.
	CatchUpRate int64
	Moves       int // replicas that catch up at once for partitions that this broker leads; default 4
}

// Frontend is a client protocol and where it listens.
type Frontend struct {
	Protocol protocol.Frontend
	Listen   string
}

// HostConfig is what a replication host needs to know of its broker.
type HostConfig struct {
	Dir     string
	Listen  string
	Cluster string // the cluster's id
	// Resolve tells where a replica is now, by the newest epoch.
	Resolve func(shard, replica uint64) (address string, ok bool)
	// Listener is open on Listen. The host owns it.
	Listener net.Listener
	Dial     func(ctx context.Context, address string) (net.Conn, error) // nil: TCP
	Secret   []byte                                                      // of the cluster; nil: none
	TLS      *tls.Config                                                 // mutual, for both sides; nil: none
	Tick     time.Duration
	Election int // ticks
	// Pace lets n bytes of a copy through in their turn; false when stop closes first.
	Pace func(stop <-chan struct{}, n int) bool
	// NoRoom says that the disk is so full that nothing may be taken in from other hosts.
	NoRoom   func() bool
	CutBytes int64 // 0: the default
	Memory   int64 // Config.MemoryLimit
	KeepAll  bool  // a recovery: everything in the replicas' own logs is taken for committed
	Logger   zerolog.Logger
	OnFatal  func(error)
}

// TLS names PEM files. With a client CA, clients must show a certificate.
type TLS struct {
	Cert, Key, ClientCA string
}

// PeerTLS names PEM files for mutual TLS between brokers: each shows Cert and
// verifies the others' by CA.
type PeerTLS struct {
	Cert, Key, CA string
}

// ConfigError says which key of a Config is wrong, with its value and what is
// allowed. Keys are those of parleyd's flags.
type ConfigError struct {
	Key, Value, Allowed string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("%s %q: %s", e.Key, e.Value, e.Allowed)
}

// withDefaults returns the config with its gaps filled, or what is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "parley"
		}
		c.Name = strings.ReplaceAll(host, ".", "-")
	}
	def := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	def(&c.DataDir, DefaultDataDir)
	def(&c.Listen, DefaultListen)
	def(&c.HTTP, DefaultHTTP)
	def(&c.PeerListen, DefaultPeerListen)
	def(&c.RaftListen, DefaultRaftListen)
	def(&c.Engine, defaultEngine)
	if c.Weight == 0 {
		c.Weight = DefaultWeight
	}
	if c.FreeSpaceFloor == 0 {
		c.FreeSpaceFloor = DefaultFreeSpaceFloor
	}
	if c.MaxRecord == 0 {
		c.MaxRecord = wire.MaxRecord
	}
	if c.DeleteGrace == 0 {
		c.DeleteGrace = DefaultDeleteGrace
	}
	if c.DrainTime == 0 {
		c.DrainTime = DefaultDrainTime
	}
	if c.PurgeEvery == 0 {
		c.PurgeEvery = time.Minute
	}
	if c.CopyRate == 0 {
		c.CopyRate = DefaultCopyRate
	}
	if c.TrashGrace == 0 {
		c.TrashGrace = DefaultTrashGrace
	}
	if c.CompareEvery == 0 {
		c.CompareEvery = DefaultCompareEvery
	}
	if c.CompareRate == 0 {
		c.CompareRate = DefaultCompareRate
	}
	if c.RaftTick == 0 {
		c.RaftTick = DefaultRaftTick
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = DefaultElectionTicks
	}
	if c.ReturnAfter == 0 {
		c.ReturnAfter = DefaultReturnAfter
	}
	if c.DeadAfter == 0 {
		c.DeadAfter = DefaultDeadAfter
	}
	if c.BalanceAfter == 0 {
		c.BalanceAfter = DefaultBalanceAfter
	}
	if c.UpkeepEvery == 0 {
		c.UpkeepEvery = DefaultUpkeepEvery
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.OpenHost == nil {
		c.OpenHost = openRaft
	}
	if c.Limits = c.Limits.withDefaults(); c.Limits.CatchUpRate == 0 {
		c.Limits.CatchUpRate = max(128<<20, 2*c.CopyRate)
		if c.CopyRate < 0 {
			c.Limits.CatchUpRate = -1
		}
	}
	if err := c.check(); err != nil {
		return c, err
	}
	return c, c.loadSecret()
}

func (l Limits) withDefaults() Limits {
	def := func(n *int, to int) {
		if *n <= 0 {
			*n = to
		}
	}
	def(&l.FetchesPerSession, 4096)
	def(&l.Fetches, 32768)
	def(&l.FetchReplies, 64)
	def(&l.Requests, 64)
	def(&l.GroupRequests, 8192)
	def(&l.GroupMetrics, 1000)
	def(&l.Openings, 16)
	def(&l.CatchUps, 4)
	def(&l.Moves, 4)
	return l
}

func (c *Config) check() error {
	bad := func(key, value, allowed string) error { return &ConfigError{Key: key, Value: value, Allowed: allowed} }
	if len(c.Name) > 64 || strings.ContainsFunc(c.Name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}) {
		return bad("name", c.Name, "allowed are up to 64 letters, digits, - and _")
	}
	for _, a := range []struct {
		key, value string
		optional   bool
	}{
		{"listen", c.Listen, false}, {"http", c.HTTP, c.HTTP == "off"},
		{"peer-listen", c.PeerListen, false}, {"raft-listen", c.RaftListen, false},
		{"advertise-client", c.AdvertiseClient, c.AdvertiseClient == ""},
		{"advertise-peer", c.AdvertisePeer, c.AdvertisePeer == ""},
		{"advertise-raft", c.AdvertiseRaft, c.AdvertiseRaft == ""},
	} {
		if a.optional {
			continue
		}
		host, port, err := net.SplitHostPort(a.value)
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err == nil && host == "" && strings.HasPrefix(a.key, "advertise") {
			err = errors.New("no host")
		}
		if err != nil {
			return bad(a.key, a.value, "allowed is HOST:PORT")
		}
	}
	switch {
	case c.Weight < 1 || c.Weight > maxWeight:
		return bad("weight", fmt.Sprint(c.Weight), fmt.Sprintf("allowed are 1 to %d", maxWeight))
	case c.MaxRecord < 1 || c.MaxRecord > wire.MaxRecord:
		return bad("max-record", fmt.Sprint(c.MaxRecord), fmt.Sprintf("allowed are 1 to %d bytes", wire.MaxRecord))
	case c.MemoryLimit < 0:
		return bad("memory-limit", fmt.Sprint(c.MemoryLimit), "allowed is a size, or 0 for none")
	case c.Token != "" && c.User != "":
		return bad("token", "…", "give a token or a user and password, not both")
	case (c.User == "") != (c.Password == ""):
		return bad("user", c.User, "user and password go together")
	case (c.TLS.Cert == "") != (c.TLS.Key == ""):
		return bad("tls-cert", c.TLS.Cert, "tls-cert and tls-key go together")
	case c.TLS.ClientCA != "" && c.TLS.Cert == "":
		return bad("tls-client-ca", c.TLS.ClientCA, "it needs tls-cert and tls-key")
	case (c.PeerTLS.Cert == "") != (c.PeerTLS.Key == "") || (c.PeerTLS.Cert == "") != (c.PeerTLS.CA == ""):
		return bad("peer-tls-cert", c.PeerTLS.Cert, "peer-tls-cert, peer-tls-key and peer-tls-ca go together: peers verify one another")
	case len(c.Secret) > 0 && c.SecretFile != "":
		return bad("cluster-secret-file", c.SecretFile, "a secret was given as well")
	case len(c.Rack) > 256:
		return bad("rack", c.Rack, "allowed are up to 256 bytes")
	}
	if c.FeatureLevel > config.Level {
		return bad("feature-level", fmt.Sprint(c.FeatureLevel), fmt.Sprintf("this program knows up to %d", config.Level))
	}
	if c.DeadAfter < minDeadAfter {
		return bad("dead-after", c.DeadAfter.String(), "allowed is a second or more; less than a minute moves replicas whenever a machine restarts")
	}
	if c.CompareEvery > 0 && c.CompareEvery < minCompareEvery {
		return bad("compare-every", c.CompareEvery.String(), "allowed is a second or more, or off")
	}
	if c.CompareRate > 0 && c.CompareRate < minCompareRate {
		return bad("compare-rate", fmt.Sprint(c.CompareRate), fmt.Sprintf("allowed are %d bytes a second or more, or 0 for no limit", minCompareRate))
	}
	if _, err := c.initial(); err != nil {
		return err
	}
	if _, err := c.seeds(); err != nil {
		return err
	}
	for _, name := range storage.Engines() {
		if name == c.Engine {
			return nil
		}
	}
	return bad("engine", c.Engine, "allowed are "+strings.Join(storage.Engines(), ", "))
}

// load makes a TLS config of the files, or nil when none are named.
func (t TLS) load() (*tls.Config, error) {
	if t.Cert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, &ConfigError{Key: "tls-cert", Value: t.Cert, Allowed: err.Error()}
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if t.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, &ConfigError{Key: "tls-client-ca", Value: t.ClientCA, Allowed: err.Error()}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, &ConfigError{Key: "tls-client-ca", Value: t.ClientCA, Allowed: "the file must hold PEM certificates"}
	}
	c.ClientCAs, c.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return c, nil
}
