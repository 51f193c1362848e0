package mesh

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/interest"
)

// direct links two meshes without proxies.
func direct(b *testing.B) (*node, *node) {
	nodes := []*node{
		startNode(b, identity(0), func(c *Config) { c.ForwardWait = 10 * time.Second }),
		startNode(b, identity(1)),
	}
	for i, n := range nodes {
		p := nodes[1-i]
		n.SetPeers([]Peer{{Broker: p.id, Name: p.Self().Name, Incarnation: p.Self().Incarnation, Address: p.Address().String()}})
	}
	until(b, "linked", func() bool { return nodes[0].Peers()[0].Reachable && nodes[1].Peers()[0].Reachable })
	return nodes[0], nodes[1]
}

func benchmarkForward(b *testing.B, size int) {
	a, leader := direct(b)
	var got atomic.Int64
	leader.OnForward(func(uint64, string, int32, *interest.Message) { got.Add(1) })
	m := &interest.Message{Subject: []byte("orders.new"), Reply: []byte("_INBOX.abc.1"), Payload: make([]byte, size)}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		for {
			err := a.Forward(2, "orders", 3, m)
			if err == nil {
				break
			}
			if !errors.Is(err, ErrBusy) {
				b.Fatal(err)
			}
		}
		n++
	}
	for got.Load() < n {
		runtime.Gosched()
	}
}

func BenchmarkForward128B(b *testing.B)   { benchmarkForward(b, 128) }
func BenchmarkForward1KiB(b *testing.B)   { benchmarkForward(b, 1024) }
func BenchmarkForward256KiB(b *testing.B) { benchmarkForward(b, 256<<10) }

// BenchmarkForwardRoundTrip is one forward and its reply at a time.
func BenchmarkForwardRoundTrip(b *testing.B) {
	a, leader := direct(b)
	leader.OnForward(func(_ uint64, _ string, _ int32, m *interest.Message) {
		leader.router.Route(&interest.Message{Subject: m.Reply, Payload: m.Payload}, nil)
	})
	back := make(chan struct{}, 1)
	sub := &interest.Subscription{Subject: "reply", Sink: sinkFunc(func() { back <- struct{}{} })}
	if err := a.router.Subscribe(sub); err != nil {
		b.Fatal(err)
	}
	defer a.router.Unsubscribe(sub)
	m := &interest.Message{Subject: []byte("orders.new"), Reply: []byte("reply"), Payload: make([]byte, 128)}
	b.ReportAllocs()
	for b.Loop() {
		if err := a.Forward(2, "orders", 3, m); err != nil {
			b.Fatal(err)
		}
		<-back
	}
}

type sinkFunc func()

func (f sinkFunc) Deliver(*interest.Subscription, *interest.Message) bool { f(); return true }

// BenchmarkRemotePublish is a message of a live publisher to a subscriber at the
// other broker, from router to router.
func BenchmarkRemotePublish(b *testing.B) {
	a, other := direct(b)
	var got atomic.Int64
	sub := &interest.Subscription{Subject: "news.>", Sink: sinkFunc(func() { got.Add(1) })}
	if err := other.router.Subscribe(sub); err != nil {
		b.Fatal(err)
	}
	defer other.router.Unsubscribe(sub)
	until(b, "interest", func() bool { return a.Peers()[0].Interests == 1 })
	p := a.router.Publisher()
	m := &interest.Message{Subject: []byte("news.eu"), Payload: make([]byte, 128)}
	b.SetBytes(128)
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		for p.Route(m, nil) == 0 {
			runtime.Gosched()
		}
		if n++; n%256 == 0 {
			if room := p.Flush(); room != nil {
				<-room
			}
		}
	}
	p.Flush()
	for got.Load() < n {
		runtime.Gosched()
	}
}

func BenchmarkRequest(b *testing.B) {
	a, other := direct(b)
	other.Handle("echo", func(_ context.Context, _ Identity, req []byte) ([]byte, error) { return req, nil })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req := make([]byte, 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Request(ctx, 2, "echo", req); err != nil {
			b.Fatal(err)
		}
	}
}
