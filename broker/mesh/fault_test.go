package mesh

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/interest"
)

// TestHungPeer: a peer that stands still (its sockets stay open, nothing moves)
// costs requests their time, forwards a bounded wait, publishers next to nothing,
// and memory no more than the window. When it moves again all is as before.
func TestHungPeer(t *testing.T) {
	t.Parallel()
	const (
		window = 1 << 20
		silent = 3 * time.Second         // until the peer counts as gone: who isn't bounded waits for that
		most   = 1500 * time.Millisecond // what may take a few milliseconds
	)
	c := newTestCluster(t, 2, func(c *Config) {
		c.Window, c.ControlPending = window, window
		c.PeerTimeout = silent
		c.ForwardWait = 20 * time.Millisecond
	})
	a, b := c.nodes[0], c.nodes[1]
	b.Handle("echo", func(_ context.Context, _ Identity, req []byte) ([]byte, error) { return req, nil })
	b.leads()
	var got atomic.Int64
	subscribe(t, b.connect(t), "news", "", func(*nats.Msg) { got.Add(1) })
	c.settled()
	c.both(0, 1, (*faultProxy).Stall)

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := a.Request(ctx, 2, "echo", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("request: %v", err)
	}
	if d := time.Since(start); d > most {
		t.Errorf("request took %v", d)
	}
	// Clients publish on, as if nobody were there.
	nc := a.connect(t)
	start = time.Now()
	payload := make([]byte, 10_000)
	for range 1000 {
		if err := nc.Publish("news", payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.FlushTimeout(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("10 MB published past a hung peer in %v", time.Since(start))
	worst, busy := time.Duration(0), 0
	for range 300 {
		start := time.Now()
		err := a.Forward(2, "t", 0, &interest.Message{Subject: []byte("s"), Payload: payload})
		worst = max(worst, time.Since(start))
		if errors.Is(err, ErrBusy) || errors.Is(err, ErrUnreachable) {
			busy++
		}
		if err := a.Send(2, "echo", payload); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrUnreachable) {
			t.Fatal(err)
		}
	}
	if busy == 0 || worst > most {
		t.Errorf("forwards: %d of 300 refused, the slowest took %v", busy, worst)
	}
	if p := a.Peers()[0]; p.PendingBytes > window || p.PendingControl > window {
		t.Errorf("pending: data %d, control %d", p.PendingBytes, p.PendingControl)
	}
	until(t, "silence noticed", func() bool { return !a.Peers()[0].Reachable && !a.Peers()[0].Control })
	if _, err := a.Request(context.Background(), 2, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request after that: %v", err)
	}

	c.both(0, 1, (*faultProxy).Flow)
	c.awaitUp()
	c.settled()
	if out, err := a.Request(context.Background(), 2, "echo", []byte("x")); err != nil || string(out) != "x" {
		t.Errorf("request in the end: %v", err)
	}
	before := got.Load()
	if err := nc.Publish("news", nil); err != nil {
		t.Fatal(err)
	}
	until(t, "message in the end", func() bool { return got.Load() > before })
}

// TestInterestAfterBreaks: links break again and again while clients subscribe
// and leave; in the end every broker knows what there is, no more and no less.
func TestInterestAfterBreaks(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	var conns []*nats.Conn
	for _, n := range c.nodes {
		conns = append(conns, n.connect(t))
	}
	subs := make([][]*nats.Subscription, 3)
	for round := range 12 {
		for i, nc := range conns {
			for k := range 20 {
				sub, err := nc.QueueSubscribe(fmt.Sprintf("r%d.%d.*", round%5, k), []string{"", "q"}[k%2], func(*nats.Msg) {})
				if err != nil {
					t.Fatal(err)
				}
				subs[i] = append(subs[i], sub)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			for len(subs[i]) > 50 {
				if err := subs[i][0].Unsubscribe(); err != nil {
					t.Fatal(err)
				}
				subs[i] = subs[i][1:]
			}
		}
		c.proxy[round%3][(round+1)%3].Break()
	}
	c.awaitUp()
	for _, nc := range conns {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range c.nodes {
		until(t, "interest as it is", func() bool {
			want := map[string]int{}
			for _, n := range c.nodes {
				if n != at {
					for _, i := range n.router.Interests() {
						want[i.Subject+" "+i.Queue]++
					}
				}
			}
			for _, s := range at.router.Subscriptions() {
				if s.Peer && !strings.HasPrefix(s.Subject, "_PARLEY.") {
					want[s.Subject+" "+s.Queue]--
				}
			}
			for _, n := range want {
				if n != 0 {
					return false
				}
			}
			return true
		})
	}
}

// TestPeerMovesAndChanges: epochs give a peer another address, another incarnation,
// and leave it out.
func TestPeerMovesAndChanges(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	var mu sync.Mutex
	var events []string
	a.OnPeer(func(p Peer, up bool) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, fmt.Sprint(p.Broker, up))
	})
	b.Handle("echo", func(_ context.Context, _ Identity, req []byte) ([]byte, error) { return req, nil })

	// Another address.
	moved := newProxy(t, b.Address().String())
	peers := c.peersOf(0)
	peers[0].Address = moved.addr()
	c.proxy[0][1].Cut()
	a.SetPeers(peers)
	until(t, "found at its new address", func() bool {
		_, err := a.Request(context.Background(), 2, "echo", nil)
		return err == nil && a.Peers()[0].Reachable
	})

	// Another incarnation: not b any more.
	peers[0].Incarnation = "inc2-new"
	a.SetPeers(peers)
	until(t, "the old incarnation is refused", func() bool {
		p := a.Peers()[0]
		return !p.Control && strings.Contains(p.LastError, "inc2-new was meant")
	})
	until(t, "and refused itself", func() bool {
		p := b.Peers()[0]
		return !p.Control && !p.Data && strings.Contains(p.LastError, "does not name broker b2")
	})
	if _, err := a.Request(context.Background(), 2, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request: %v", err)
	}
	wiped := b.Self()
	wiped.Incarnation = "inc2-new"
	b.SetSelf(wiped)
	c.awaitUp()

	// Gone from the epoch.
	a.SetPeers(nil)
	until(t, "cut off", func() bool { return !b.Peers()[0].Control && !b.Peers()[0].Data && len(a.Peers()) == 0 })
	if n := a.router.Count(); n != 0 {
		t.Errorf("left in the router: %v", describe(a.router))
	}
	a.SetPeers(peers)
	c.awaitUp()
	mu.Lock()
	defer mu.Unlock()
	if len(events) < 5 || events[0] != "2 false" || events[1] != "2 true" {
		t.Errorf("events: %v", events)
	}
}

// TestBootstrap: brokers without a cluster find each other by name, and keep
// their links' promises when they have become a cluster.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	var nodes []*node
	for i := range 3 {
		nodes = append(nodes, startNode(t, Identity{Name: fmt.Sprintf("b%d", i+1), Incarnation: fmt.Sprintf("inc%d", i+1)}))
	}
	peers := func(i int, incarnations bool) (all []Peer) {
		for j, n := range nodes {
			if j != i {
				p := Peer{Broker: uint64(j + 1), Name: n.Self().Name, Address: n.Address().String()}
				if incarnations {
					p.Incarnation = n.Self().Incarnation
				}
				all = append(all, p)
			}
		}
		return all
	}
	up := func() bool {
		for _, n := range nodes {
			for _, p := range n.Peers() {
				if !p.Reachable || !p.Inbound {
					return false
				}
			}
		}
		return true
	}
	for i, n := range nodes {
		n.SetPeers(peers(i, false))
		n.Handle("who", func(_ context.Context, from Identity, _ []byte) ([]byte, error) {
			return fmt.Appendf(nil, "%s %d %s", from.Name, from.Broker, from.Cluster), nil
		})
	}
	until(t, "strangers linked", up)
	got, err := nodes[0].Request(context.Background(), 3, "who", nil)
	if err != nil || string(got) != "b1 1 " {
		t.Fatalf("%q %v", got, err)
	}
	// One after another they learn who they are.
	for i, n := range nodes {
		n.SetSelf(Identity{Cluster: "c9", Broker: uint64(i + 1), Name: n.Self().Name, Incarnation: n.Self().Incarnation})
		n.SetPeers(peers(i, true))
	}
	until(t, "a cluster", func() bool {
		got, err := nodes[0].Request(context.Background(), 3, "who", nil)
		return err == nil && string(got) == "b1 1 c9" && up()
	})
}

// TestDelayedLink: a slow link delays, it loses nothing and stays up.
func TestDelayedLink(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	c.both(0, 1, func(p *faultProxy) { p.Delay(20 * time.Millisecond) })
	var got atomic.Int64
	subscribe(t, c.nodes[1].connect(t), "far", "", func(*nats.Msg) { got.Add(1) })
	c.settled()
	connects := c.nodes[0].Peers()[0].Connects
	nc := c.nodes[0].connect(t)
	for range 2000 {
		if err := nc.Publish("far", make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all there", func() bool { return got.Load() == 2000 })
	until(t, "delay measured", func() bool { return c.nodes[0].Peers()[0].RTT > 30*time.Millisecond })
	if n := c.nodes[0].Peers()[0].Connects; n != connects {
		t.Errorf("connected %d times more", n-connects)
	}
}

// TestBurstIsNotDropped: a publisher that is faster than the link is slowed down
// by its congestion; nothing is dropped while the link moves. It waits 10 ms for the link after each burst, in which a machine
// that is busy with other things may not let the link move at all: then the next attempt counts.
func TestBurstIsNotDropped(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, func(c *Config) { c.Window = 2 << 20 })
	var got atomic.Int64
	sub := subscribe(t, c.nodes[1].connect(t), "burst", "", func(*nats.Msg) { got.Add(1) })
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	c.settled()
	nc := c.nodes[0].connect(t)
	const n, attempts = 12_000, 8
	payload := make([]byte, 1024)
	var dropped uint64
	for range attempts {
		got.Store(0)
		before := c.nodes[0].Peers()[0].Dropped
		for range n { // six times the window
			if err := nc.Publish("burst", payload); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "all there, or dropped", func() bool {
			dropped = c.nodes[0].Peers()[0].Dropped - before
			return got.Load()+int64(dropped) == n
		})
		if dropped == 0 {
			return
		}
	}
	t.Errorf("dropped %d of %d in the last of %d attempts", dropped, n, attempts)
}

// TestNothingIsLeftRunning: not parallel, it counts goroutines.
func TestNothingIsLeftRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("mesh", func(t *testing.T) {
		c := newTestCluster(t, 3)
		for _, n := range c.nodes {
			n.leads()
		}
		for _, n := range c.nodes {
			n.fake.forwardBy(n.Mesh)
			n.Handle("hang", func(ctx context.Context, _ Identity, _ []byte) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			nc := n.connect(t)
			subscribe(t, nc, "a.>", "q", func(*nats.Msg) {})
			if _, err := nc.Request("topic.2.x", nil, 20*time.Second); err != nil && n.id != 2 {
				t.Error(err)
			}
		}
		answered := make(chan error, 1)
		go func() {
			_, err := c.nodes[0].Request(context.Background(), 2, "hang", nil)
			answered <- err
		}()
		c.proxy[0][2].Cut()
		c.proxy[1][2].Stall()
		until(t, "cut noticed", func() bool { return !c.nodes[0].Peers()[1].Control })
		start := time.Now()
		c.nodes[0].stopped()
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("Close took %v", d)
		}
		if err := <-answered; !errors.Is(err, ErrUnreachable) {
			t.Errorf("request of a mesh that closed: %v", err)
		}
		if err := c.nodes[0].Forward(2, "t", 0, &interest.Message{Subject: []byte("s")}); !errors.Is(err, ErrUnreachable) {
			t.Errorf("forward of a mesh that closed: %v", err)
		}
		if _, _, err := c.nodes[0].Ask(context.Background(), c.nodes[1].Address().String(), "x", nil); err == nil {
			t.Error("a mesh that closed asks on")
		}
		c.nodes[0].SetPeers(c.peersOf(0))
	})
	deadline := time.Now().Add(30 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}
