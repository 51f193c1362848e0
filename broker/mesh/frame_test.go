package mesh

import (
	"bytes"
	"testing"

	"github.com/parleymq/parley/broker/interest"
)

func TestFramesComeBack(t *testing.T) {
	t.Parallel()
	m := &interest.Message{Subject: []byte("a.b"), Reply: []byte("r"), Header: []byte("NATS/1.0\r\n\r\n"), Payload: []byte("hi"), Hops: 2}
	bare := &interest.Message{Subject: []byte("a")}
	check := func(what string, got, want *interest.Message) {
		t.Helper()
		if !bytes.Equal(got.Subject, want.Subject) || !bytes.Equal(got.Reply, want.Reply) || !bytes.Equal(got.Header, want.Header) ||
			!bytes.Equal(got.Payload, want.Payload) || got.Hops != want.Hops || (got.Reply == nil) != (want.Reply == nil) || (got.Header == nil) != (want.Header == nil) {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	var b []byte
	b = appendCore(b, m, true, []string{"q1", ""})
	b = appendCore(b, bare, false, []string{"q"})
	b = appendForward(b, "topic", 1<<30, m)
	b = appendReply(b, []byte("other"), m)
	b = appendInterest(b, "x.*", "q", 300)
	if most := coreSize(m, []string{"q1", ""}) + coreSize(bare, []string{"q"}) + forwardSize("topic", m) + frameHead + messageSize(m) + 5 + frameHead + 2*maxVarint + 4; len(b) > most {
		t.Errorf("%d bytes, reckoned with %d", len(b), most)
	}
	next := func(want byte) *fields {
		kind, body, rest, err := nextFrame(b)
		if err != nil || kind != want {
			t.Fatalf("frame of kind %d, %v; want %d", kind, err, want)
		}
		b = rest
		return &fields{b: body}
	}
	var got interest.Message
	plain, groups := next(frameCore).core(&got, nil)
	check("core", &got, m)
	if !plain || len(groups) != 2 || string(groups[0]) != "q1" {
		t.Errorf("plain %v, groups %q", plain, groups)
	}
	plain, groups = next(frameCore).core(&got, nil)
	check("bare core", &got, bare)
	if plain || len(groups) != 1 {
		t.Errorf("plain %v, groups %q", plain, groups)
	}
	f := next(frameForward)
	if p, topic := f.number(), f.bytes(); p != 1<<30 || string(topic) != "topic" {
		t.Errorf("forward to %s %d", topic, p)
	}
	f.message(&got)
	got.Hops = m.Hops // not sent
	check("forward", &got, m)
	next(frameReply).message(&got)
	if string(got.Subject) != "other" || string(got.Payload) != "hi" {
		t.Errorf("reply %+v", got)
	}
	f = next(frameInterest)
	if n, q := f.number(), f.bytes(); n != 300 || string(q) != "q" || string(f.b) != "x.*" || f.bad {
		t.Errorf("interest %d %q %q", n, q, f.b)
	}
	if len(b) > 0 {
		t.Errorf("%d bytes left", len(b))
	}
}

// FuzzFrames: whatever comes, reading it ends, and finds nothing beyond it.
func FuzzFrames(f *testing.F) {
	m := &interest.Message{Subject: []byte("a.b"), Reply: []byte("r"), Payload: []byte("hi")}
	f.Add(appendForward(appendCore(nil, m, true, []string{"q"}), "t", 3, m))
	f.Add(appendInterest(appendSend(nil, "s", []byte("b")), "x", "", 1))
	f.Add([]byte{frameCore, 3, 0, 0, 0, 1, 0, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			kind, body, rest, err := nextFrame(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
			var got interest.Message
			fd := &fields{b: body}
			switch kind {
			case frameCore:
				_, groups := fd.core(&got, nil)
				if len(groups) > len(body)+1 {
					t.Fatalf("%d groups of %d bytes", len(groups), len(body))
				}
			case frameForward:
				fd.number()
				fd.bytes()
				fd.message(&got)
			default:
				fd.number()
				fd.message(&got)
			}
			if !fd.bad && !interest.ValidSubject(got.Subject) {
				t.Fatalf("subject %q let through", got.Subject)
			}
			if n := len(got.Subject) + len(got.Reply) + len(got.Header) + len(got.Payload); n > len(body) {
				t.Fatalf("%d bytes out of %d", n, len(body))
			}
		}
	})
}

func TestOutboxBounds(t *testing.T) {
	t.Parallel()
	o := &outbox{window: 1000, wake: make(chan struct{}, 1)}
	put := func(size int, c class) verdict {
		b, v := o.reserve(size, c)
		if v == granted {
			o.commit(append(b, make([]byte, size)...))
		}
		return v
	}
	steps := []struct {
		size int
		c    class
		want verdict
	}{
		{5000, classMessage, granted}, // alone it may be larger than the window
		{1, classMessage, full},
		{1, classReply, full},
		{1, classInterest, full},
		{1, classPing, granted},
	}
	for i, s := range steps {
		if v := put(s.size, s.c); v != s.want {
			t.Errorf("step %d: %v, want %v", i, v, s.want)
		}
	}
	room := o.awaitRoom()
	if !o.credit(5001) || o.credit(5002) {
		t.Error("credit is for what was sent")
	}
	select {
	case <-room:
	default:
		t.Error("credit makes no room")
	}
	for _, s := range []struct {
		size int
		c    class
		want verdict
	}{
		{700, classMessage, granted}, {100, classMessage, full}, {50, classMessage, granted},
		{200, classReply, granted}, {100, classReply, full}, {300, classInterest, granted},
	} {
		if v := put(s.size, s.c); v != s.want {
			t.Errorf("%+v: %v", s, v)
		}
	}
	o.credit(6000)
	room = o.awaitRoom()
	if got := o.pending(); got != 251 || room == nil {
		t.Errorf("%d pending, room %v", got, room)
	}
	o.close()
	if _, v := o.reserve(1, classPing); v != closed {
		t.Error(v)
	}
	<-room
}
