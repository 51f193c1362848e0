package nats

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
)

// fakeBroker is the least that a front end needs: it takes subjects under
// "topic." and answers their replies, consumes "$PARLEY." requests, and leaves
// the rest to live subscribers.
type fakeBroker struct {
	router *interest.Router

	mu       sync.Mutex
	info     protocol.Info
	changed  chan struct{}
	attached []protocol.Client
	closed   int
	flushes  int
	taken    []string
	block    chan struct{} // Publish to "topic.block" waits for it
	blocked  chan struct{} // and says so here
}

func newFakeBroker() *fakeBroker {
	return &fakeBroker{
		router:  interest.NewRouter(),
		changed: make(chan struct{}),
		block:   make(chan struct{}),
		blocked: make(chan struct{}, 16),
		info: protocol.Info{
			ServerID: "TESTID", ServerName: "b1", Cluster: "c1", Version: "0.1.0", MaxPayload: 1 << 20,
		},
	}
}

func (b *fakeBroker) Info() protocol.Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.info
}

func (b *fakeBroker) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *fakeBroker) change(f func(*protocol.Info)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.info)
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *fakeBroker) Router() *interest.Router { return b.router }

func (b *fakeBroker) Attach(c protocol.Client) protocol.Session {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attached = append(b.attached, c)
	return &fakeSession{broker: b, client: c}
}

type fakeSession struct {
	broker  *fakeBroker
	client  protocol.Client
	waiting [][2]string // replies, sent at Flush
}

func (s *fakeSession) Publish(m *interest.Message) protocol.Disposition {
	subject := string(m.Subject)
	switch {
	case subject == "topic.block":
		s.client.Stalled()
		s.broker.blocked <- struct{}{}
		<-s.broker.block
	case strings.HasPrefix(subject, "$PARLEY."):
		if m.Reply != nil {
			s.waiting = append(s.waiting, [2]string{string(m.Reply), "consumed " + string(m.Payload)})
		}
		return protocol.Consumed
	case !strings.HasPrefix(subject, "topic."):
		return protocol.NotTaken
	}
	s.broker.mu.Lock()
	s.broker.taken = append(s.broker.taken, fmt.Sprintf("%s|%s|%s|%s", subject, m.Reply, m.Header, m.Payload))
	n := len(s.broker.taken)
	s.broker.mu.Unlock()
	if m.Reply != nil {
		s.waiting = append(s.waiting, [2]string{string(m.Reply), fmt.Sprintf(`{"stream":"topic","seq":%d}`, n)})
	}
	return protocol.Taken
}

func (s *fakeSession) Flush() {
	s.broker.mu.Lock()
	s.broker.flushes++
	s.broker.mu.Unlock()
	for _, w := range s.waiting {
		s.broker.router.Route(&interest.Message{Subject: []byte(w[0]), Payload: []byte(w[1])}, nil)
	}
	s.waiting = s.waiting[:0]
}

func (s *fakeSession) Close() {
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	s.broker.closed++
}

// served is a front end that runs for the length of a test.
type served struct {
	*Frontend
	broker *fakeBroker
	addr   string
	stop   func() // ends Serve and waits for it
}

func (s *served) url() string { return "nats://" + s.addr }

func serve(t testing.TB, c Config) *served {
	t.Helper()
	return serveBroker(t, c, newFakeBroker())
}

func serveBroker(t testing.TB, c Config, b *fakeBroker) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveListener(t, c, b, l)
}

func serveListener(t testing.TB, c Config, b *fakeBroker, l net.Listener) *served {
	t.Helper()
	if c.DrainTime == 0 {
		c.DrainTime = -1
	}
	if testing.Verbose() {
		c.Logger = zerolog.New(zerolog.NewTestWriter(t))
	} else {
		c.Logger = zerolog.Nop()
	}
	s := &served{Frontend: New(c), broker: b, addr: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, b) }()
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Serve: %v", err)
				}
			case <-time.After(20 * time.Second):
				buf := make([]byte, 1<<20)
				t.Errorf("Serve has not ended:\n%s", buf[:runtime.Stack(buf, true)])
			}
		})
	}
	t.Cleanup(func() {
		s.stop()
		if st := s.Stats(); st.Connections != 0 || st.Subscriptions != 0 || b.router.Count() != 0 {
			t.Errorf("left behind: %d connections, %d subscriptions, %d routed", st.Connections, st.Subscriptions, b.router.Count())
		}
	})
	return s
}

// until polls a condition for a while.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
