package mesh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/interest"
)

// syncBuffer collects a node's log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestAdmission: who is refused, and that both sides say why.
func TestAdmission(t *testing.T) {
	t.Parallel()
	listener, dialler := identity(0), identity(1)
	other := func(f func(*Identity)) Identity {
		i := dialler
		f(&i)
		return i
	}
	for name, test := range map[string]struct {
		dialler          Identity
		secretL, secretD string
		means            Identity // whom the dialler takes the address for
		reason           Reason
		says             string
	}{
		"member":               {dialler: dialler, means: listener},
		"member with secret":   {dialler: dialler, means: listener, secretL: "s", secretD: "s"},
		"other cluster":        {dialler: other(func(i *Identity) { i.Cluster = "c2" }), means: listener, reason: RefusedCluster, says: "broker b2 belongs to cluster c2, broker b1 to cluster c1"},
		"other secret":         {dialler: dialler, means: listener, secretL: "s", secretD: "t", reason: RefusedSecret, says: "the cluster secrets differ"},
		"no secret":            {dialler: dialler, means: listener, secretL: "s", reason: RefusedSecret, says: "a cluster secret is required here"},
		"secret on one side":   {dialler: dialler, means: listener, secretD: "s", reason: RefusedSecret, says: "this one has none"},
		"unknown incarnation":  {dialler: other(func(i *Identity) { i.Incarnation = "wiped" }), means: listener, reason: RefusedIncarnation, says: "does not name broker b2 (id 2, incarnation wiped)"},
		"other id":             {dialler: other(func(i *Identity) { i.Broker = 7 }), means: listener, reason: RefusedIncarnation, says: "does not name broker b2 (id 7"},
		"itself":               {dialler: listener, means: listener, reason: RefusedSelf, says: "leads to broker b1 itself"},
		"another was meant":    {dialler: dialler, means: identity(2), reason: RefusedBroker, says: "incarnation inc3 was meant, broker b1"},
		"another id was meant": {dialler: dialler, means: Identity{Broker: 5}, reason: RefusedBroker, says: "broker id 5 was meant, broker b1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log syncBuffer
			n := startNode(t, listener, func(c *Config) {
				c.Secret = []byte(test.secretL)
				c.Logger = zerolog.New(&log)
			})
			n.SetPeers([]Peer{{Broker: 2, Name: "b2", Incarnation: "inc2", Address: "127.0.0.1:1"}})
			d := startNode(t, test.dialler, func(c *Config) { c.Secret = []byte(test.secretD) })
			conn, err := d.dial(context.Background(), kindControl, n.Address().String(), test.means.Broker, test.means.Incarnation, nil)
			if test.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				if conn.remote != listener {
					t.Errorf("reached %v", conn.remote)
				}
				conn.fail(ErrClosed)
				conn.finish()
				return
			}
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Reason != test.reason || !strings.Contains(refused.Text, test.says) {
				t.Fatalf("refused with %v, want %s: %s", err, test.reason, test.says)
			}
			until(t, "it is in the other side's log", func() bool { return strings.Contains(log.String(), test.says) })
			if n.Stats().Refused != 1 {
				t.Errorf("refused %d", n.Stats().Refused)
			}
		})
	}
}

// TestImpostor: a listener that does not know the secret is not believed.
func TestImpostor(t *testing.T) {
	t.Parallel()
	n := startNode(t, identity(0))
	n.SetPeers([]Peer{{Broker: 2, Name: "b2", Incarnation: "inc2", Address: "127.0.0.1:1"}})
	d := startNode(t, identity(1), func(c *Config) { c.Secret = []byte("s") })
	// It accepts whatever proof it is shown.
	conn := &dialled{m: d.Mesh, kind: kindData}
	h := hello{Challenge: "x", Identity: identity(1)}
	for _, proof := range []string{"", "AAAA", "!"} {
		var refused *RefusedError
		if err := conn.accept(&h, &welcome{Version: 1, Identity: n.Self(), Proof: proof}); !errors.As(err, &refused) || refused.Reason != RefusedSecret {
			t.Errorf("proof %q: %v", proof, err)
		}
	}
}

func TestOrdinaryClientIsRefused(t *testing.T) {
	t.Parallel()
	n := startNode(t, identity(0))
	for name, o := range map[string][]nats.Option{
		"none": nil, "password": {nats.UserInfo("u", "p")}, "token": {nats.Token("secret")},
	} {
		nc, err := nats.Connect("nats://"+n.Address().String(), o...)
		if err == nil {
			nc.Close()
			t.Fatalf("%s: connected", name)
		}
		if !strings.Contains(err.Error(), "this is the port for peers of broker b1, clients connect to its client port") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGarbageOnThePeerPort(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, func(c *Config) { c.DialTimeout = 300 * time.Millisecond })
	token := `{"parley_mesh":1,"kind":"data","cluster":"c1","broker":2,"name":"b2","incarnation":"inc2","challenge":"x"}`
	connect := `CONNECT {"verbose":false,"headers":true,"auth_token":` + quote(token) + "}\r\n"
	hello := "SUB _MESH_ANSWER.x 1\r\nPUB _MESH.HELLO _MESH_ANSWER.x 0\r\n\r\n"
	for name, test := range map[string]struct{ send, says string }{
		"http":            {"GET / HTTP/1.1\r\n\r\n", "Unknown Protocol Operation"},
		"binary":          {"\x16\x03\x01\x00\xff\xfe\x00\n", "Unknown Protocol Operation"},
		"silence":         {"", "Authentication Timeout"},
		"pub first":       {"PUB a 1\r\nx\r\n", "Authorization Violation"},
		"bad token":       {`CONNECT {"auth_token":"{\"parley_mesh\":"}` + "\r\n", "peer refused (client)"},
		"other version":   {`CONNECT {"auth_token":"{\"parley_mesh\":9,\"name\":\"b2\"}"}` + "\r\n", "peer refused (version)"},
		"frames first":    {connect + "PUB _MESH.FRAMES 5\r\n\x01\x00\x00\x00\x00\r\n", "frames before hello"},
		"hello twice":     {connect + hello + hello, "a second one"},
		"torn frame":      {connect + hello + "PUB _MESH.FRAMES 3\r\n\x20\x01\x00\r\n", "malformed frame"},
		"long frame":      {connect + hello + "PUB _MESH.FRAMES 5\r\n\x20\xff\xff\xff\xff\r\n", "malformed frame"},
		"empty core":      {connect + hello + "PUB _MESH.FRAMES 5\r\n\x20\x00\x00\x00\x00\r\n", "malformed frame"},
		"other subject":   {connect + "PUB _MESH.X 0\r\n\r\n", "nothing is known of the subject"},
		"not for peers":   {connect + "PUB orders 0\r\n\r\n", "Permissions Violation"},
		"spying":          {connect + "SUB > 1\r\n", "Permissions Violation"},
		"unknown kind ok": {connect + hello + "PUB _MESH.FRAMES 6\r\n\xf0\x01\x00\x00\x00x\r\nPING\r\n", "PONG"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", c.nodes[0].Address().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, test.send); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(30 * time.Second))
			var all []byte
			buf := make([]byte, 4096)
			for !strings.Contains(string(all), test.says) {
				n, err := conn.Read(buf)
				all = append(all, buf[:n]...)
				if err != nil {
					t.Fatalf("got %q, %v; want %q", all, err, test.says)
				}
			}
		})
	}
	c.awaitUp() // the real broker 2 has its link back
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := Config{Self: identity(0), Listener: l, Router: interest.NewRouter()}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "is not loopback: peers there need a cluster secret or mutual TLS") {
		t.Error(err)
	}
	c.TLS = &tls.Config{}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "ClientAuth must be") {
		t.Error(err)
	}
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	config := newAuthority(t)
	nodes := []*node{
		startNode(t, identity(0), func(c *Config) { c.TLS = config() }),
		startNode(t, identity(1), func(c *Config) { c.TLS = config() }),
	}
	for i, n := range nodes {
		p := nodes[1-i]
		n.SetPeers([]Peer{{Broker: p.id, Name: p.Self().Name, Incarnation: p.Self().Incarnation, Address: p.Address().String()}})
	}
	nodes[1].Handle("echo", func(_ context.Context, _ Identity, req []byte) ([]byte, error) { return req, nil })
	until(t, "linked", func() bool { return nodes[0].Peers()[0].Reachable && nodes[1].Peers()[0].Reachable })
	if got, err := nodes[0].Request(context.Background(), 2, "echo", []byte("x")); err != nil || string(got) != "x" {
		t.Fatalf("%q %v", got, err)
	}
	plain := startNode(t, identity(2))
	if _, _, err := plain.Ask(context.Background(), nodes[0].Address().String(), "x", nil); err == nil {
		t.Error("without TLS: let in")
	}
	foreign := newAuthority(t)
	stranger := startNode(t, identity(2), func(c *Config) { c.TLS = foreign() })
	if _, _, err := stranger.Ask(context.Background(), nodes[0].Address().String(), "x", nil); err == nil {
		t.Error("with another authority's certificate: let in")
	}
}

// newAuthority returns what makes mutual TLS configurations of one authority.
func newAuthority(t *testing.T) func() *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mesh test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return func() *tls.Config {
		return &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		}
	}
}
