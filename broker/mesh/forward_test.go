package mesh

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/interest"
)

// leads makes node n answer forwarded messages with what came.
func (n *node) leads() {
	n.OnForward(func(from uint64, topic string, partition int32, m *interest.Message) {
		if m.Reply == nil {
			return
		}
		n.router.Route(&interest.Message{
			Subject: m.Reply, Header: m.Header,
			Payload: fmt.Appendf(nil, "%d from %d: %s/%d %s %s", n.id, from, topic, partition, m.Subject, m.Payload),
		}, nil)
	})
}

func TestForwardAndReply(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	for _, n := range c.nodes {
		n.leads()
		n.fake.forwardBy(n.Mesh)
	}
	var spied atomic.Int64
	subscribe(t, c.nodes[2].connect(t), ">", "", func(m *nats.Msg) {
		if len(m.Subject) > 8 && m.Subject[:8] == "_PARLEY." {
			spied.Add(1)
		}
	})
	c.settled()
	nc := c.nodes[0].connect(t)
	for i := range 50 {
		m := nats.NewMsg("topic.2.x")
		m.Data = fmt.Append(nil, i)
		m.Header.Set("A", "b")
		got, err := nc.RequestMsg(m, 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("2 from 1: topic/7 topic.2.x %d", i); string(got.Data) != want || got.Header.Get("A") != "b" {
			t.Fatalf("got %q %v, want %q", got.Data, got.Header, want)
		}
	}
	// The reply's subscriber need not be where the publisher is.
	replies := make(chan string, 1)
	subscribe(t, c.nodes[2].connect(t), "my.reply", "", func(m *nats.Msg) { replies <- string(m.Data) })
	c.settled()
	if err := nc.PublishRequest("topic.2.x", "my.reply", []byte("far")); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-replies:
		if got != "2 from 1: topic/7 topic.2.x far" {
			t.Fatal(got)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no reply at the third broker")
	}
	if spied.Load() > 0 {
		t.Errorf("a client saw %d replies under way between brokers", spied.Load())
	}
	if err := c.nodes[0].Forward(9, "topic", 0, &interest.Message{Subject: []byte("x")}); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	if err := c.nodes[0].Forward(2, "topic", 0, &interest.Message{Subject: []byte("x"), Payload: make([]byte, MaxPayload)}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// TestForwardOrderAndFlush: in order, each of many sizes, with a flush after the
// last.
func TestForwardOrderAndFlush(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, func(c *Config) { c.Window = 4 << 20; c.ForwardWait = 20 * time.Second })
	var mu sync.Mutex
	var got []int
	flushed := 0
	c.nodes[1].OnForward(func(_ uint64, _ string, partition int32, m *interest.Message) {
		mu.Lock()
		defer mu.Unlock()
		if len(m.Payload) != size(int(partition)) {
			t.Errorf("message %d has %d bytes", partition, len(m.Payload))
		}
		got = append(got, int(partition))
		flushed = 0
	})
	c.nodes[1].OnForwardFlush(func(uint64) {
		mu.Lock()
		defer mu.Unlock()
		flushed++
	})
	const n = 3000
	payload := make([]byte, 1<<20)
	for i := range n {
		if err := c.nodes[0].Forward(2, "t", int32(i), &interest.Message{Subject: []byte("s"), Payload: payload[:size(i)]}); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	until(t, "all there and flushed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) == n && flushed > 0
	})
	for i, v := range got {
		if i != v {
			t.Fatalf("message %d came as number %d", v, i)
		}
	}
	until(t, "all credited", func() bool { return c.nodes[0].Peers()[0].PendingBytes < 100 })
}

func size(i int) int {
	switch {
	case i%500 == 7:
		return 1 << 20
	case i%50 == 3:
		return 70_000
	}
	return i % 3000
}

// TestBusyWhenTheLeaderDoesNotTakeIn: a handler that stands still costs the
// sender a bounded wait and bounded memory, while core messages and replies
// still come through.
func TestBusyWhenTheLeaderDoesNotTakeIn(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, func(c *Config) { c.Window = 1 << 20; c.ForwardWait = 50 * time.Millisecond })
	let := make(chan struct{})
	var taken atomic.Int64
	c.nodes[1].OnForward(func(uint64, string, int32, *interest.Message) {
		<-let
		taken.Add(1)
	})
	a := c.nodes[0]
	m := &interest.Message{Subject: []byte("s"), Payload: make([]byte, 10_000)}
	sent, busy := 0, 0
	for busy < 30 {
		start := time.Now()
		switch err := a.Forward(2, "t", 0, m); {
		case err == nil:
			sent++
		case errors.Is(err, ErrBusy):
			busy++
		default:
			t.Fatal(err)
		}
		if d := time.Since(start); d > 5*time.Second { // it takes 50 ms
			t.Fatalf("Forward took %v", d)
		}
		if sent > 200 {
			t.Fatal("no end to what may be under way")
		}
	}
	if p := a.Peers()[0]; p.PendingBytes > 1<<20 || p.Busy < 30 {
		t.Errorf("%d bytes under way, %d busy", p.PendingBytes, p.Busy)
	}
	// Three quarters are for messages: what a reply needs is left.
	a.router.Route(&interest.Message{Subject: []byte("_PARLEY.R.2.x"), Payload: make([]byte, 1000)}, nil)
	if p := a.Peers()[0]; p.Replies != 1 || !p.Reachable {
		t.Errorf("replies %d, reachable %v", p.Replies, p.Reachable)
	}
	close(let)
	until(t, "all taken in", func() bool { return taken.Load() == int64(sent) })
	until(t, "room again", func() bool { return a.Forward(2, "t", 0, m) == nil })
}
