package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/partition/storage"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

func connect(t testing.TB, url string, opts ...client.Option) *client.Client {
	t.Helper()
	ctx := deadline(t)
	c, err := client.Connect(ctx, url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), brokertest.Wait)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("close client: %v", err)
		}
	})
	return c
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*brokertest.Wait)
	t.Cleanup(cancel)
	return ctx
}

func createTopic(t testing.TB, c *client.Client, name string, partitions int32) {
	t.Helper()
	if _, err := c.CreateTopic(deadline(t), client.TopicSpec{Name: name, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

func TestEndToEnd(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	ctx := deadline(t)
	createTopic(t, c, "orders", 3)

	t.Run("every codec, keys, headers", func(t *testing.T) {
		want := map[string]client.Record{}
		for _, codec := range []client.Codec{client.None, client.Snappy, client.LZ4, client.Zstd} {
			p, err := c.NewProducer(ctx, "orders", client.Compression(codec))
			if err != nil {
				t.Fatal(err)
			}
			var futures []client.Future
			for i := range 500 {
				r := client.Record{
					Key: fmt.Appendf(nil, "%s-%d", codec, i), Value: fmt.Appendf(nil, "value of %s number %d", codec, i),
					Headers: []client.Header{client.Text("a", "1"), client.Text("a", "2")}, Timestamp: time.UnixMilli(int64(1000 + i)),
				}
				want[string(r.Key)] = r
				f, err := p.Send(ctx, r)
				if err != nil {
					t.Fatal(err)
				}
				futures = append(futures, f)
			}
			for i, f := range futures {
				if _, err := f.Wait(ctx); err != nil {
					t.Fatalf("%s, record %d: %v", codec, i, err)
				}
			}
			if err := p.Close(ctx); err != nil {
				t.Fatal(err)
			}
		}
		r, err := c.NewReader(ctx, "orders", client.UntilEnd())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for m, err := range r.Messages(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			w := want[string(m.Key)]
			if string(m.Value) != string(w.Value) || len(m.Headers) != 2 || string(m.Headers[1].Value) != "2" || !m.Timestamp.Equal(w.Timestamp) {
				t.Errorf("%s/%d: %+v, want %+v", m.Key, m.Offset, m, w)
			}
		}
		if n != len(want) {
			t.Errorf("read %d of %d records", n, len(want))
		}
	})

	t.Run("administration", func(t *testing.T) {
		d, err := c.DescribeTopic(ctx, "orders")
		if err != nil || len(d.Partitions) != 3 {
			t.Fatalf("describe: %+v, %v", d, err)
		}
		var sum int64
		for _, p := range d.Partitions {
			bounds, err := c.Bounds(ctx, "orders", p.Partition)
			if err != nil || bounds.Start != p.StartOffset || bounds.Next != p.NextOffset {
				t.Errorf("bounds of %d: %+v, %v; described as %+v", p.Partition, bounds, err, p)
			}
			sum += bounds.Next
		}
		if sum != 2000 {
			t.Errorf("%d records by the bounds", sum)
		}
		if o, err := c.OffsetAt(ctx, "orders", 0, time.Now().Add(-time.Hour)); err != nil || o != 0 {
			t.Errorf("offset an hour ago: %d, %v", o, err)
		}
		if _, err := c.CreateTopic(ctx, client.TopicSpec{Name: "orders"}); !errors.Is(err, client.ErrTopicExists) && !errors.Is(err, client.ErrSubjectOverlap) {
			t.Errorf("create again: %v", err)
		}
		if _, err := c.CreateTopic(ctx, client.TopicSpec{Name: "a..b"}); !errors.Is(err, client.ErrInvalidTopic) {
			t.Errorf("bad name: %v", err)
		}
		for i := range 3 {
			createTopic(t, c, fmt.Sprintf("more%d", i), 1)
		}
		names := 0
		for _, err := range c.ListTopics(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			names++
		}
		if names != 4 {
			t.Errorf("%d topics listed", names)
		}
		if ch, err := c.DeleteTopic(ctx, "more0"); err != nil || ch.Change != "deleted" {
			t.Errorf("delete: %+v, %v", ch, err)
		}
		if _, err := c.DescribeTopic(ctx, "more0"); !errors.Is(err, client.ErrTopicNotFound) {
			t.Errorf("describe deleted: %v", err)
		}
		if ch, err := c.RestoreTopic(ctx, "more0"); err != nil || ch.Change != "restored" {
			t.Errorf("restore: %+v, %v", ch, err)
		}
		if s, err := c.Status(ctx); err != nil || len(s.Brokers) != 1 || s.Topics != 4 {
			t.Errorf("status: %+v, %v", s, err)
		}
		brokertest.Eventually(t, "healthy", func() bool { // a topic that was made a moment ago may not be led yet
			h, err := c.Health(ctx)
			return err == nil && h.Healthy
		})
	})

	t.Run("message ids and compare-and-append", func(t *testing.T) {
		createTopic(t, c, "ids", 1)
		rec := client.Record{Key: []byte("k"), Value: []byte("v"), Headers: []client.Header{client.Text("h", "1")}}
		for i, dup := range []bool{false, true} {
			a, err := c.Publish(ctx, "ids.below", rec, client.MessageID("a"), client.OnPartition(0))
			if err != nil || a.Offset != 0 || a.Duplicate != dup || a.Topic != "ids" {
				t.Errorf("publish %d: %+v, %v", i, a, err)
			}
		}
		if _, err := c.Publish(ctx, "ids", rec, client.ExpectOffset(0)); !errors.Is(err, client.ErrExpectMismatch) {
			t.Errorf("expecting offset 0: %v", err)
		}
		if a, err := c.Publish(ctx, "ids", rec, client.ExpectOffset(1)); err != nil || a.Offset != 1 {
			t.Errorf("expecting offset 1: %+v, %v", a, err)
		}
		r, err := c.NewReader(ctx, "ids")
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.Next(ctx)
		if h, ok := m.Header("h"); err != nil || string(m.Key) != "k" || string(m.Value) != "v" || !ok || string(h) != "1" {
			t.Errorf("read %+v, %v", m, err)
		}
		if _, err := c.Publish(ctx, "nobody", rec); !errors.Is(err, client.ErrTopicNotFound) {
			t.Errorf("a subject without a topic: %v", err)
		}
		if _, err := c.Publish(ctx, "ids", client.Record{Key: []byte("a\r\nb")}); err == nil {
			t.Error("a key with a line break was taken")
		}
	})

	t.Run("added partitions are used and read", func(t *testing.T) {
		createTopic(t, c, "grows", 1)
		r, err := c.NewReader(ctx, "grows")
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.NewProducer(ctx, "grows", client.PartitionBy(client.ByRecord))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.AlterTopic(ctx, client.TopicAlter{Name: "grows", Partitions: 2}); err != nil {
			t.Fatal(err)
		}
		brokertest.Eventually(t, "the producer knows partition 1", func() bool {
			_, err := p.Publish(ctx, client.Record{Value: []byte("x"), Partition: 1})
			return err == nil
		})
		if m, err := r.Next(ctx); err != nil || m.Partition != 1 {
			t.Errorf("read %+v, %v", m, err)
		}
	})

	t.Run("connecting", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		dead := l.Addr().String()
		_ = l.Close()
		if _, err := client.Connect(ctx, dead); err == nil {
			t.Error("connected to nothing")
		}
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if _, err := client.Connect(short, dead, client.WithConnectRetry()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("retry until the deadline: %v", err)
		}
		c := connect(t, dead+","+b.URL())
		if _, err := c.Status(ctx); err != nil {
			t.Error(err)
		}
	})
}

// proxy is an address that stays while brokers behind it come and go.
type proxy struct {
	l      net.Listener
	target atomic.Pointer[string] // nil: nobody there
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]struct{} // guarded by mu
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, conns: map[net.Conn]struct{}{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			to := p.target.Load()
			if to == nil {
				_ = c.Close()
				continue
			}
			d, err := net.Dial("tcp", *to)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.mu.Lock()
			p.conns[c], p.conns[d] = struct{}{}, struct{}{}
			p.mu.Unlock()
			p.wg.Go(func() { p.pipe(c, d) })
			p.wg.Go(func() { p.pipe(d, c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) pipe(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	_ = from.Close()
	_ = to.Close()
	p.mu.Lock()
	delete(p.conns, from)
	p.mu.Unlock()
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) to(address string) {
	if address == "" {
		p.target.Store(nil)
		return
	}
	p.target.Store(&address)
}

// underLoad publishes from several goroutines and reads at the same time while
// disturb does its worst, and checks that every record was acked and is read once,
// in its sender's order.
func underLoad(t *testing.T, c *client.Client, partitions int32, disturb func()) {
	t.Helper()
	ctx := deadline(t)
	createTopic(t, c, "load", partitions)
	p, err := c.NewProducer(ctx, "load", client.PartitionBy(client.ByRecord), client.BatchBytes(16<<10), client.Buffer(4<<20, 20_000))
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.NewReader(ctx, "load")
	if err != nil {
		t.Fatal(err)
	}

	const senders = 4
	var sent [senders]int
	var acked, failed atomic.Int64
	var stop atomic.Bool
	var load sync.WaitGroup
	for s := range senders {
		load.Go(func() {
			for i := 0; !stop.Load(); i++ {
				rec := client.Record{Value: fmt.Appendf(nil, "%d %d", s, i), Key: make([]byte, 100), Partition: int32(s) % partitions}
				err := p.SendFunc(ctx, rec, func(_ client.Ack, err error) {
					if err != nil {
						failed.Add(1)
						t.Errorf("record %d of sender %d: %v", i, s, err)
						return
					}
					acked.Add(1)
				})
				if err != nil {
					t.Errorf("send: %v", err)
					return
				}
				sent[s] = i + 1
			}
		})
	}
	progress := func() {
		before := acked.Load()
		brokertest.Eventually(t, "acks go on", func() bool { return acked.Load() > before+5000 })
	}
	progress()
	disturb()
	progress()
	stop.Store(true)
	load.Wait()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}

	total := 0
	for _, n := range sent {
		total += n
	}
	if int(acked.Load()) != total {
		t.Errorf("%d of %d records acked, %d failed", acked.Load(), total, failed.Load())
	}
	var next [senders]int
	for range total {
		m, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		var s, i int
		if _, err := fmt.Sscanf(string(m.Value), "%d %d", &s, &i); err != nil {
			t.Fatalf("read %q", m.Value)
		}
		if i != next[s] {
			t.Fatalf("read record %d of sender %d at %d/%d, want %d", i, s, m.Partition, m.Offset, next[s])
		}
		next[s]++
	}
	for part := range partitions {
		bounds, err := c.Bounds(ctx, "load", part)
		if err != nil || bounds.Next != r.Positions()[part] {
			t.Errorf("partition %d: read up to %d of %+v, %v", part, r.Positions()[part], bounds, err)
		}
	}
	t.Logf("%d records", total)
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(cfg *broker.Config) { cfg.User, cfg.Password = "app", "secret" })
	c := connect(t, b.URL(), client.WithUser("app", "secret"))
	if _, err := c.Status(deadline(t)); err != nil {
		t.Error(err)
	}
	for name, opts := range map[string][]client.Option{"none": nil, "wrong": {client.WithUser("app", "public")}} {
		if _, err := client.Connect(deadline(t), b.URL(), opts...); !errors.Is(err, client.ErrUnauthorized) {
			t.Errorf("credentials %s: %v", name, err)
		}
	}
}

func TestConnectionLostUnderLoad(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	px := newProxy(t)
	px.to(b.Addresses().Clients)
	c := connect(t, px.l.Addr().String())
	underLoad(t, c, 2, func() {
		for range 5 {
			px.cut()
			if _, err := c.Status(deadline(t)); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestBrokerRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	address := b.Addresses().Clients
	underLoad(t, c, 2, func() {
		b.Restart(func(cfg *broker.Config) { cfg.Listen = address })
	})
}

func TestBrokerKilledUnderLoad(t *testing.T) {
	t.Parallel()
	if !slices.Contains(storage.Engines(), "badger") {
		t.Skip("the memory engine does not outlive its process")
	}
	dir := t.TempDir()
	px := newProxy(t)
	b := brokertest.StartProcess(t, dir)
	px.to(b.Clients)
	c := connect(t, px.l.Addr().String())
	underLoad(t, c, 2, func() {
		for range 2 {
			px.to("")
			b.Kill()
			px.cut()
			b = brokertest.StartProcess(t, dir)
			px.to(b.Clients)
			if _, err := c.Status(deadline(t)); err != nil {
				t.Error(err)
			}
		}
	})
}
