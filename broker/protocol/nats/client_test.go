package nats

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/parleymq/parley/broker/protocol"
)

// These tests use the client that most users have.

func dial(t testing.TB, s *served, options ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.url(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func flush(t testing.TB, nc *nats.Conn) {
	t.Helper()
	if err := nc.FlushTimeout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func next(t testing.TB, sub *nats.Subscription) *nats.Msg {
	t.Helper()
	m, err := sub.NextMsg(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func subscribe(t testing.TB, nc *nats.Conn, subject string) *nats.Subscription {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	flush(t, nc)
	return sub
}

func TestClientPubSub(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a, b := dial(t, s), dial(t, s)
	literal, one, rest := subscribe(t, a, "a.b.c"), subscribe(t, a, "a.*.c"), subscribe(t, b, "a.>")
	if err := b.PublishRequest("a.b.c", "re.ply", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []*nats.Subscription{literal, one, rest} {
		if m := next(t, sub); m.Subject != "a.b.c" || m.Reply != "re.ply" || string(m.Data) != "hello" {
			t.Errorf("%s got %+v", sub.Subject, m)
		}
	}
	if v := a.ConnectedServerVersion(); v != natsVersion {
		t.Errorf("version %q", v)
	}
	if a.ConnectedServerId() != "TESTID" || a.ConnectedServerName() != "b1" || a.MaxPayload() != 1<<20 || !a.HeadersSupported() {
		t.Errorf("INFO not as the broker says: %q %q %d", a.ConnectedServerId(), a.ConnectedServerName(), a.MaxPayload())
	}
}

func TestClientQueueGroup(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	var got, all atomic.Int64
	var members [4]atomic.Int64
	for i := range members {
		nc := dial(t, s)
		if _, err := nc.QueueSubscribe("work.*", "crew", func(*nats.Msg) { members[i].Add(1); got.Add(1) }); err != nil {
			t.Fatal(err)
		}
		flush(t, nc)
	}
	plain := dial(t, s)
	if _, err := plain.Subscribe("work.a", func(*nats.Msg) { all.Add(1) }); err != nil {
		t.Fatal(err)
	}
	flush(t, plain)
	const n = 400
	nc := dial(t, s)
	for range n {
		nc.Publish("work.a", nil) //nolint:errcheck // Flush tells
	}
	flush(t, nc)
	until(t, "every message reaches one member", func() bool { return got.Load() == n && all.Load() == n })
	for i := range members {
		if members[i].Load() < n/20 {
			t.Errorf("member %d got %d of %d", i, members[i].Load(), n)
		}
	}
}

func TestClientRequestReply(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	service, nc := dial(t, s), dial(t, s)
	if _, err := service.Subscribe("svc.echo", func(m *nats.Msg) {
		r := nats.NewMsg(m.Reply)
		r.Data, r.Header = m.Data, m.Header
		m.RespondMsg(r) //nolint:errcheck // the request times out
	}); err != nil {
		t.Fatal(err)
	}
	flush(t, service)
	m := nats.NewMsg("svc.echo")
	m.Data = []byte("x")
	m.Header["X-y"] = []string{"1", "2"}
	for range 100 {
		r, err := nc.RequestMsg(m, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if string(r.Data) != "x" || len(r.Header["X-y"]) != 2 {
			t.Fatalf("got %+v", r)
		}
	}
	old := dial(t, s, nats.UseOldRequestStyle())
	if r, err := old.RequestMsg(m, 5*time.Second); err != nil || string(r.Data) != "x" {
		t.Fatalf("old style: %v %v", r, err)
	}
	for _, c := range []*nats.Conn{nc, old} {
		start := time.Now()
		if _, err := c.Request("svc.nobody", nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("got %v, want no responders", err)
		}
		if time.Since(start) > 4*time.Second {
			t.Errorf("no responders took %v", time.Since(start))
		}
	}
}

func TestClientTopicAndAPI(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	nc, live := dial(t, s), dial(t, s)
	sub := subscribe(t, live, ">")
	r, err := nc.Request("topic.a", []byte("v"), 5*time.Second)
	if err != nil || string(r.Data) != `{"stream":"topic","seq":1}` {
		t.Fatalf("ack: %v %v", r, err)
	}
	if m := next(t, sub); m.Subject != "topic.a" || string(m.Data) != "v" {
		t.Errorf("live subscriber got %+v", m)
	}
	if m := next(t, sub); m.Subject == "topic.a" {
		t.Errorf("live subscriber got the message twice")
	} // the ack, seen by the wildcard
	r, err = nc.Request("$PARLEY.API.X", []byte("q"), 5*time.Second)
	if err != nil || string(r.Data) != "consumed q" {
		t.Fatalf("API: %v %v", r, err)
	}
	if m := next(t, sub); strings.HasPrefix(m.Subject, "$PARLEY.") {
		t.Errorf("a request to the broker was routed: %+v", m)
	}

	// Taken with a reply and no live subscriber: the ack, not 503.
	nc.Publish("topic.forget", []byte("no reply")) //nolint:errcheck // Flush tells
	flush(t, nc)
	until(t, "fire and forget is taken", func() bool {
		s.broker.mu.Lock()
		defer s.broker.mu.Unlock()
		return len(s.broker.taken) == 2
	})
}

func TestClientJetStreamPublish(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	nc := dial(t, s)
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	ack, err := js.Publish("topic.js", []byte("v"), nats.MsgId("1"))
	if err != nil || ack.Stream != "topic" || ack.Sequence != 1 {
		t.Fatalf("old API: %+v %v", ack, err)
	}
	future, err := js.PublishAsync("topic.js", []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case ack := <-future.Ok():
		if ack.Sequence != 2 {
			t.Errorf("async: %+v", ack)
		}
	case err := <-future.Err():
		t.Fatal(err)
	case <-time.After(5 * time.Second):
		t.Fatal("no async ack")
	}
	js2, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ack2, err := js2.Publish(t.Context(), "topic.js", []byte("v"), jetstream.WithMsgID("2"))
	if err != nil || ack2.Stream != "topic" || ack2.Sequence != 3 {
		t.Fatalf("new API: %+v %v", ack2, err)
	}
	// What is not served says so at once.
	if _, err := js.AccountInfo(); !errors.Is(err, nats.ErrJetStreamNotEnabled) {
		t.Errorf("AccountInfo: %v", err)
	}
}

func TestClientEchoAndVerbose(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	quiet := dial(t, s, nats.NoEcho(), func(o *nats.Options) error { o.Verbose = true; return nil })
	other := dial(t, s, func(o *nats.Options) error { o.Pedantic = true; return nil })
	mine, theirs := subscribe(t, quiet, "e"), subscribe(t, other, "e")
	quiet.Publish("e", []byte("1")) //nolint:errcheck // Flush tells
	flush(t, quiet)
	other.Publish("e", []byte("2")) //nolint:errcheck // Flush tells
	if m := next(t, theirs); string(m.Data) != "1" {
		t.Errorf("got %q", m.Data)
	}
	if m := next(t, mine); string(m.Data) != "2" {
		t.Errorf("without echo got %q", m.Data)
	}
}

func TestClientAutoUnsubscribeAndDrain(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	nc := dial(t, s)
	sub := subscribe(t, nc, "u")
	if err := sub.AutoUnsubscribe(3); err != nil {
		t.Fatal(err)
	}
	flush(t, nc)
	for i := range 5 {
		nc.Publish("u", fmt.Append(nil, i)) //nolint:errcheck // Flush tells
	}
	flush(t, nc)
	for i := range 3 {
		if m := next(t, sub); string(m.Data) != fmt.Sprint(i) {
			t.Errorf("message %d is %q", i, m.Data)
		}
	}
	if n := s.broker.router.Count(); n != 0 {
		t.Errorf("%d subscriptions left after the last delivery", n)
	}

	drained := make(chan struct{})
	d := dial(t, s, nats.ClosedHandler(func(*nats.Conn) { close(drained) }))
	var got atomic.Int64
	if _, err := d.Subscribe("d", func(*nats.Msg) { got.Add(1) }); err != nil {
		t.Fatal(err)
	}
	flush(t, d)
	for range 1000 {
		nc.Publish("d", nil) //nolint:errcheck // Flush tells
	}
	flush(t, nc)
	if err := d.Drain(); err != nil {
		t.Fatal(err)
	}
	<-drained
	if got.Load() != 1000 {
		t.Errorf("%d messages before the drain ended, want 1000", got.Load())
	}
}

func TestClientMaxPayload(t *testing.T) {
	t.Parallel()
	b := newFakeBroker()
	b.info.MaxPayload = 300_000
	s := serveBroker(t, Config{}, b)
	nc := dial(t, s)
	sub := subscribe(t, nc, "big")
	payload := make([]byte, 300_000)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	for range 3 {
		if err := nc.Publish("big", payload); err != nil {
			t.Fatal(err)
		}
		if m := next(t, sub); string(m.Data) != string(payload) {
			t.Fatalf("payload of %d bytes came back wrong", len(m.Data))
		}
	}
	if err := nc.Publish("big", make([]byte, 300_001)); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("got %v", err)
	}
	// The limit may change under way, and clients are told.
	b.change(func(i *protocol.Info) { i.MaxPayload = 400_000 })
	until(t, "the client knows the new limit", func() bool { return nc.MaxPayload() == 400_000 })
	if err := nc.Publish("big", make([]byte, 400_000)); err != nil {
		t.Fatal(err)
	}
	if m := next(t, sub); len(m.Data) != 400_000 {
		t.Errorf("got %d bytes", len(m.Data))
	}
}

func TestClientDiscoversPeers(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	found := make(chan struct{}, 1)
	nc := dial(t, s, nats.DiscoveredServersHandler(func(*nats.Conn) { found <- struct{}{} }))
	if len(nc.DiscoveredServers()) != 0 {
		t.Errorf("a lone broker announces %v", nc.DiscoveredServers())
	}
	flush(t, nc)
	s.broker.change(func(i *protocol.Info) { i.Peers = []string{"127.0.0.1:1", "127.0.0.1:2"} })
	select {
	case <-found:
	case <-time.After(5 * time.Second):
		t.Fatal("no INFO about peers")
	}
	if d := nc.DiscoveredServers(); len(d) != 2 {
		t.Errorf("discovered %v", d)
	}
}

func TestClientLameDuckAndReconnect(t *testing.T) {
	t.Parallel()
	first := serve(t, Config{DrainTime: 400 * time.Millisecond})
	second := serve(t, Config{})
	first.broker.change(func(i *protocol.Info) { i.Peers = []string{second.addr} })
	lame, back := make(chan struct{}), make(chan struct{})
	nc := dial(t, first,
		nats.LameDuckModeHandler(func(*nats.Conn) { close(lame) }),
		nats.ReconnectHandler(func(*nats.Conn) { close(back) }),
		nats.ReconnectWait(time.Millisecond), nats.MaxReconnects(-1))
	sub := subscribe(t, nc, "after")
	stopped := make(chan struct{})
	go func() { first.stop(); close(stopped) }()
	for what, c := range map[string]chan struct{}{"lame duck": lame, "reconnect": back, "end of Serve": stopped} {
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Fatalf("no %s", what)
		}
	}
	if nc.ConnectedAddr() != second.addr {
		t.Fatalf("reconnected to %s, want %s", nc.ConnectedAddr(), second.addr)
	}
	flush(t, nc)
	nc.Publish("after", []byte("still here")) //nolint:errcheck // the next line tells
	if m := next(t, sub); string(m.Data) != "still here" {
		t.Errorf("got %q", m.Data)
	}
}
