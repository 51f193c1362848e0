package mesh

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
	frontend "github.com/parleymq/parley/broker/protocol/nats"
)

// testCluster is brokers reduced to what a mesh needs, with a fault proxy on the
// way from each to each, and the NATS front end before each router.
type testCluster struct {
	t     testing.TB
	nodes []*node
	proxy [][]*faultProxy // [from][to]
}

type node struct {
	*Mesh
	id      uint64
	router  *interest.Router
	client  string // address of the front end
	fake    *fakeBroker
	stopped func()
}

// quick limits make tests short.
func quick(c *Config) {
	c.PingInterval = 50 * time.Millisecond
	c.PeerTimeout = 8 * time.Second // a busy machine must not look like a dead peer
	c.RetryMin = 5 * time.Millisecond
	c.RetryMax = 50 * time.Millisecond
}

func newTestCluster(t testing.TB, n int, adjust ...func(*Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	for i := range n {
		c.nodes = append(c.nodes, startNode(t, identity(i), adjust...))
	}
	for i := range n {
		row := make([]*faultProxy, n)
		for j := range n {
			if i != j {
				row[j] = newProxy(t, c.nodes[j].Address().String())
			}
		}
		c.proxy = append(c.proxy, row)
	}
	for i := range n {
		c.nodes[i].SetPeers(c.peersOf(i))
	}
	c.awaitUp()
	return c
}

func identity(i int) Identity {
	return Identity{Cluster: "c1", Broker: uint64(i + 1), Name: fmt.Sprintf("b%d", i+1), Incarnation: fmt.Sprintf("inc%d", i+1)}
}

func startNode(t testing.TB, self Identity, adjust ...func(*Config)) *node {
	t.Helper()
	c := Config{Self: self, Listener: listen(t), Router: interest.NewRouter(), Logger: testLog(t)}
	quick(&c)
	for _, f := range adjust {
		f(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Mesh: m, id: self.Broker, router: c.Router, fake: &fakeBroker{router: c.Router, name: self.Name}}
	l := listen(t)
	n.client = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		front := frontend.New(frontend.Config{Logger: zerolog.Nop(), DrainTime: -1})
		if err := front.Serve(ctx, l, n.fake); err != nil {
			t.Errorf("serve clients: %v", err)
		}
	}()
	var once sync.Once
	n.stopped = func() {
		once.Do(func() {
			if err := m.Close(); err != nil {
				t.Errorf("close mesh: %v", err)
			}
			cancel()
			<-done
			if left := c.Router.Count(); left != 0 {
				t.Errorf("%s: %d subscriptions left behind: %v", self.Name, left, describe(c.Router))
			}
		})
	}
	t.Cleanup(n.stopped)
	return n
}

func describe(r *interest.Router) (all []string) {
	for _, s := range r.Subscriptions() {
		all = append(all, fmt.Sprintf("%s|%s|peer=%v", s.Subject, s.Queue, s.Peer))
	}
	return all
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func testLog(t testing.TB) zerolog.Logger {
	if testing.Verbose() {
		if tt, ok := t.(*testing.T); ok {
			return zerolog.New(zerolog.NewTestWriter(tt))
		}
	}
	return zerolog.Nop()
}

// peersOf lists the peers of node i, by way of the proxies.
func (c *testCluster) peersOf(i int) []Peer {
	var peers []Peer
	for j, n := range c.nodes {
		if j == i {
			continue
		}
		self := n.Self()
		peers = append(peers, Peer{Broker: self.Broker, Name: self.Name, Incarnation: self.Incarnation, Address: c.proxy[i][j].addr()})
	}
	return peers
}

func (c *testCluster) awaitUp() {
	c.t.Helper()
	until(c.t, "all links up", func() bool {
		for _, n := range c.nodes {
			for _, p := range n.Peers() {
				if !p.Reachable || !p.Inbound {
					return false
				}
			}
		}
		return true
	})
}

// both applies f to the proxies between i and j, either way.
func (c *testCluster) both(i, j int, f func(*faultProxy)) {
	f(c.proxy[i][j])
	f(c.proxy[j][i])
}

func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	const limit = 30 * time.Second // it is met in a moment, but where much else runs
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// connect a client to a node's front end.
func (n *node) connect(t testing.TB, o ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("nats://"+n.client, append(o, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// knows waits until node n has learned what peer's subscribers want.
func (n *node) knows(t testing.TB, peer *node) {
	t.Helper()
	until(t, "interest known", func() bool {
		for _, p := range n.Peers() {
			if p.Broker == peer.id {
				return p.Interests == len(peer.router.Interests())
			}
		}
		return false
	})
}

// settled waits until every node knows every other one's interest.
func (c *testCluster) settled() {
	c.t.Helper()
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b {
				a.knows(c.t, b)
			}
		}
	}
}

// fakeBroker leaves everything to live subscribers, but for "topic.<broker>.>",
// which it forwards to that broker as the leader of partition 7 of "topic".
type fakeBroker struct {
	router *interest.Router
	name   string
	mu     sync.Mutex
	mesh   *Mesh
}

var neverChanged = make(chan struct{})

func (b *fakeBroker) Info() protocol.Info {
	return protocol.Info{ServerID: b.name, ServerName: b.name, Cluster: "c1", Version: "test", MaxPayload: 1 << 20}
}
func (b *fakeBroker) Changed() <-chan struct{}                { return neverChanged }
func (b *fakeBroker) Router() *interest.Router                { return b.router }
func (b *fakeBroker) Attach(protocol.Client) protocol.Session { return fakeSession{b} }

func (b *fakeBroker) forwardBy(m *Mesh) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mesh = m
}

type fakeSession struct{ b *fakeBroker }

func (s fakeSession) Publish(m *interest.Message) protocol.Disposition {
	to, found := strings.CutPrefix(string(m.Subject), "topic.")
	if !found {
		return protocol.NotTaken
	}
	var broker uint64
	if _, err := fmt.Sscanf(to, "%d.", &broker); err != nil {
		return protocol.NotTaken
	}
	s.b.mu.Lock()
	mesh := s.b.mesh
	s.b.mu.Unlock()
	if err := mesh.Forward(broker, "topic", 7, m); err != nil && m.Reply != nil {
		s.b.router.Route(&interest.Message{Subject: m.Reply, Payload: []byte("error: " + err.Error())}, nil)
	}
	return protocol.Taken
}
func (fakeSession) Flush() {}
func (fakeSession) Close() {}
