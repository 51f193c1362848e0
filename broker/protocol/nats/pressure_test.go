package nats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/protocol"
)

// TestMain fails when any test leaves a goroutine behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if stacks := leaked(); stacks != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", stacks)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked returns the goroutines of this package that are still there after a while.
func leaked() string {
	deadline := time.Now().Add(5 * time.Second)
	for {
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		var left []string
		for _, g := range strings.Split(string(buf), "\n\n") {
			if strings.Contains(g, "broker/protocol/nats.") && !strings.Contains(g, "TestMain") {
				left = append(left, g)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestSlowConsumerIsCut: a consumer that stopped reading loses its connection,
// and neither the producer nor another consumer waits for it.
func TestSlowConsumerIsCut(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{MaxPending: 4 << 20})
	stopped := connectRaw(t, s, "")
	stopped.send(t, "SUB s 1\r\nPING\r\n")
	stopped.expect(t, "PONG")
	healthy, producer := dial(t, s), dial(t, s)
	var got atomic.Int64
	sub, err := healthy.Subscribe("s", func(*nats.Msg) { got.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	sub.SetPendingLimits(-1, -1) //nolint:errcheck // a fresh subscription takes any
	flush(t, healthy)
	payload := make([]byte, 32<<10)
	sent, slowest := int64(0), time.Duration(0)
	for s.Stats().SlowConsumers == 0 {
		start := time.Now()
		for range 8 {
			if err := producer.Publish("s", payload); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		flush(t, producer)
		slowest = max(slowest, time.Since(start))
		if sent > 1<<14 {
			t.Fatal("the stopped consumer was never cut")
		}
	}
	if slowest > 2*time.Second {
		t.Errorf("the producer waited %v", slowest)
	}
	until(t, "the healthy consumer has everything", func() bool { return got.Load() == sent })
	until(t, "the cut connection is gone", func() bool { return s.Stats().Connections == 2 })
	if n := s.Stats().SlowConsumers; n != 1 {
		t.Errorf("%d slow consumers, want one", n)
	}
}

// TestWriteDeadline: a consumer whose socket takes nothing is cut in time, even
// when little is pending.
func TestWriteDeadline(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{WriteDeadline: 50 * time.Millisecond})
	stopped := connectRaw(t, s, "")
	stopped.send(t, "SUB s 1\r\nPING\r\n")
	stopped.expect(t, "PONG")
	producer := dial(t, s)
	payload := make([]byte, 512<<10)
	for i := 0; s.Stats().SlowConsumers == 0; i++ {
		producer.Publish("s", payload) //nolint:errcheck // Flush tells
		flush(t, producer)
		if i > 100 {
			until(t, "the stopped consumer is cut", func() bool { return s.Stats().SlowConsumers == 1 })
		}
	}
}

// TestFastProducerWaitsForMovingConsumer: a consumer that reads, but less fast
// than the producer sends, holds the producer back instead of being cut.
func TestFastProducerWaitsForMovingConsumer(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{MaxPending: 16 << 20})
	slow, producer := connectRaw(t, s, ""), dial(t, s)
	slow.send(t, "SUB s 1\r\nPING\r\n")
	slow.expect(t, "PONG")
	const count, size = 6000, 16 << 10
	done := make(chan error, 1)
	go func() {
		payload := make([]byte, size)
		for range count {
			if err := producer.Publish("s", payload); err != nil {
				done <- err
				return
			}
		}
		done <- producer.FlushTimeout(20 * time.Second)
	}()
	line := int64(len(fmt.Sprintf("MSG s 1 %d\r\n", size)) + size + 2)
	for left := count * line; left > 0; {
		n, err := io.CopyN(io.Discard, slow.in, min(left, 256<<10))
		if left -= n; err != nil {
			t.Fatalf("%d bytes short: %v", left, err)
		}
		time.Sleep(time.Millisecond) // not synchronisation: this is how slow it is
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.SlowConsumers != 0 || st.Stalls == 0 {
		t.Errorf("%d cut, %d stalls", st.SlowConsumers, st.Stalls)
	}
}

// TestBlockedPublish: while an appender is full, only that producer stalls: it
// still receives, and what it delivered before is on its way.
func TestBlockedPublish(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a, b := connectRaw(t, s, ""), connectRaw(t, s, "")
	a.send(t, "SUB x 1\r\nPING\r\n")
	a.expect(t, "PONG")
	b.send(t, "SUB y 1\r\nPING\r\n")
	b.expect(t, "PONG")
	a.send(t, "PUB y 1\r\n1\r\nPUB topic.block 0\r\n\r\nPUB y 1\r\n2\r\nPING\r\n")
	<-s.broker.blocked
	b.expect(t, "MSG y 1 1", "1")
	b.send(t, "PUB x 2\r\nhi\r\nPING\r\n")
	b.expect(t, "PONG")
	a.expect(t, "MSG x 1 2", "hi")
	close(s.broker.block)
	a.expect(t, "PONG")
	b.expect(t, "MSG y 1 1", "2")
}

// TestStopDuringBlockedPublish: Serve ends as soon as the appender lets go.
func TestStopDuringBlockedPublish(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a := connectRaw(t, s, "")
	a.send(t, "PUB topic.block 0\r\n\r\n")
	<-s.broker.blocked
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	close(s.broker.block)
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("Serve has not ended")
	}
}

// TestLameDuck: clients that can take it are told, the dying broker is left
// out, new ones are not accepted, and those that stay are closed in the end.
func TestLameDuck(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{DrainTime: 100 * time.Millisecond})
	s.broker.change(func(i *protocol.Info) { i.Advertise, i.Peers = "me:1", []string{"peer:2"} })
	told, old := connectRaw(t, s, `,"protocol":1`), connectRaw(t, s, `,"protocol":0`)
	go s.stop()
	info := told.line(t)
	for info != "" && !strings.Contains(info, `"ldm":true`) {
		info = told.line(t) // the change above may come first
	}
	if !strings.Contains(info, `"connect_urls":["peer:2"]`) {
		t.Errorf("got %s", info)
	}
	if _, err := net.DialTimeout("tcp", s.addr, time.Second); err == nil {
		t.Error("a new client was accepted")
	}
	// Still served for a while.
	told.send(t, "PING\r\n")
	told.expect(t, "PONG")
	for _, c := range []*rawClient{told, old} {
		if line, err := c.read(); !errors.Is(err, io.EOF) {
			t.Errorf("got %q %v, want the end", line, err)
		}
		c.conn.Close()
	}
	s.stop()
}

// TestNewcomerLearnsOfChange: INFO that changes between a client's connection
// and its CONNECT is sent after CONNECT.
func TestNewcomerLearnsOfChange(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a, witness := dialRaw(t, s), connectRaw(t, s, `,"protocol":1`)
	a.line(t)
	s.broker.change(func(i *protocol.Info) { i.Peers = []string{"peer:2"} })
	witness.line(t)
	a.send(t, "CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\n")
	var got []string
	for range 2 {
		got = append(got, a.line(t))
	}
	if all := strings.Join(got, "\n"); !strings.Contains(all, `"peer:2"`) || !strings.Contains(all, "PONG") {
		t.Errorf("got %q", got)
	}
}

// TestPendingGoesOutBeforeClose: a client that breaks the protocol still gets
// what it was sent before, and the reason.
func TestPendingGoesOutBeforeClose(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a := connectRaw(t, s, "")
	payload := strings.Repeat("x", 500_000)
	a.send(t, fmt.Sprintf("SUB s 1\r\nPUB s %d\r\n%s\r\nNONSENSE\r\n%s", len(payload), payload, strings.Repeat("unread", 50_000)))
	a.expect(t, "MSG s 1 500000", payload, "-ERR 'Unknown Protocol Operation'")
	if line, err := a.read(); !errors.Is(err, io.EOF) {
		t.Errorf("got %q %v", line, err)
	}
}

// TestGarbage: nothing that a client sends hurts others.
func TestGarbage(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	good := connectRaw(t, s, "")
	inputs := []string{
		"\x00\x00\x00\x00", "\xff\xfe", "GET / HTTP/1.0\r\n\r\n", "\r\n\r\n\r\n", "PUB a 18446744073709551616\r\n",
		"PUB a 1048577\r\n", strings.Repeat("A", 1<<16), "SUB " + strings.Repeat("a", 1<<16), "PUB  \t \r\n",
		"HPUB a 1 1\r\nx\r\n", "CONNECT []\r\n", "CONNECT {\"verbose\":7}\r\n", "CONNECT null garbage\r\n",
	}
	for _, in := range inputs {
		a := dialRaw(t, s)
		a.line(t)
		a.trySend(in) //nolint:errcheck // the server may have closed already
		last := ""
		for {
			line, err := a.read()
			if err != nil {
				break
			}
			last = line
		}
		if !strings.HasPrefix(last, "-ERR '") {
			t.Errorf("%.20q: last words %q", in, last)
		}
		a.conn.Close()
	}
	for _, half := range []string{"P", "PUB a 10\r\n123", "CONNECT {", "SUB a", ""} {
		a := dialRaw(t, s)
		a.line(t)
		a.send(t, half)
		a.conn.Close()
	}
	good.send(t, "PING\r\n")
	good.expect(t, "PONG")
	until(t, "all others are gone", func() bool { return s.Stats().Connections == 1 })
	if n := s.Stats().ParseErrors; n != uint64(len(inputs)) {
		t.Errorf("%d parse errors, want %d", n, len(inputs))
	}
}

// TestThousandConnections: each sends to its neighbour, one sends to all; then
// they are idle, and must cost little.
func TestThousandConnections(t *testing.T) {
	t.Parallel()
	const n = 1000
	s := serve(t, Config{})
	clients := make([]*rawClient, n)
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := w; i < n; i += 8 {
				clients[i] = connectRaw(t, s, "")
				clients[i].send(t, fmt.Sprintf("SUB c.%d 1\r\nSUB all 2\r\nPING\r\n", i))
				clients[i].expect(t, "PONG")
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	if st := s.Stats(); st.Connections != n || st.Subscriptions != 2*n || s.broker.router.Count() != 2*n {
		t.Errorf("%d connections, %d subscriptions", st.Connections, st.Subscriptions)
	}
	for i, c := range clients {
		c.send(t, fmt.Sprintf("PUB c.%d 4\r\nnext\r\n", (i+1)%n))
	}
	for _, c := range clients {
		c.line(t)
		c.expect(t, "next")
	}
	for range 3 {
		clients[0].send(t, "PUB all 2\r\nhi\r\n")
	}
	for _, c := range clients {
		c.expect(t, "MSG all 2 2", "hi", "MSG all 2 2", "hi", "MSG all 2 2", "hi")
	}
}

// TestIdleConnectionIsCheap measures what a connection with a subscription
// holds on the server's side, test client and all.
func TestIdleConnectionIsCheap(t *testing.T) {
	// Not parallel: it reads the memory of the whole process.
	const n = 400
	s := serve(t, Config{})
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before, goroutines := memory(), runtime.NumGoroutine()
	conns := make([]net.Conn, n)
	buf := make([]byte, 4096)
	for i := range conns {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
		io.WriteString(c, "CONNECT {\"verbose\":false}\r\nSUB some.subject 1\r\nPING\r\n") //nolint:errcheck // the read tells
		var got []byte
		for !bytes.HasSuffix(got, pongLine) {
			k, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:k]...)
		}
	}
	each := (int64(memory()) - int64(before)) / n
	t.Logf("%d bytes and %.2f goroutines a connection", each, float64(runtime.NumGoroutine()-goroutines)/n)
	if each > 20<<10 {
		t.Errorf("an idle connection holds %d bytes", each)
	}
	if g := runtime.NumGoroutine() - goroutines; g > 2*n+4 {
		t.Errorf("%d goroutines for %d connections", g, n)
	}
}

// TestTwoListeners: one front end serves two at once, with one broker.
func TestTwoListeners(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, s.broker) }()
	a, b := connectRaw(t, s, ""), connectRaw(t, &served{addr: l.Addr().String()}, "")
	a.send(t, "SUB x 1\r\nPING\r\n")
	a.expect(t, "PONG")
	b.send(t, "PUB x 1\r\ny\r\n")
	a.expect(t, "MSG x 1 1", "y")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.send(t, "PING\r\n")
	a.expect(t, "PONG")
}

// TestListenerFails: Serve says so and still ends cleanly.
func TestListenerFails(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	f := New(Config{DrainTime: -1})
	if err := f.Serve(t.Context(), l, newFakeBroker()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestSessionCalls: a flush for each burst and before each PONG, a close for
// each attach.
func TestSessionCalls(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a := connectRaw(t, s, `,"name":"worker"`)
	a.send(t, "PUB topic.a 1\r\n1\r\n")
	until(t, "a burst ends with a flush", func() bool {
		s.broker.mu.Lock()
		defer s.broker.mu.Unlock()
		return len(s.broker.taken) == 1 && s.broker.flushes > 0
	})
	// The session answers when it is flushed, which must be before PONG.
	a.send(t, "SUB in 1\r\nPUB topic.a in 1\r\n2\r\nPING\r\n")
	a.expect(t, "MSG in 1 26", `{"stream":"topic","seq":2}`, "PONG")
	a.conn.Close()
	until(t, "the session is closed", func() bool {
		s.broker.mu.Lock()
		defer s.broker.mu.Unlock()
		return s.broker.closed == len(s.broker.attached)
	})
	if c := s.broker.attached[0]; c.Name != "worker" || c.ID == 0 || c.Remote == "" {
		t.Errorf("attached as %+v", c)
	}
}
