package interest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestSubjects(t *testing.T) {
	t.Parallel()
	cases := []struct {
		s               string
		subject, filter bool
	}{
		{"a", true, true},
		{"a.b.c", true, true},
		{"$PARLEY.API.X", true, true},
		{"a*.b>c.**", true, true}, // wildcards only as whole tokens
		{"größe.数", true, true},
		{"*", false, true},
		{">", false, true},
		{"a.*.c", false, true},
		{"a.>", false, true},
		{"*.>", false, true},
		{">.a", false, false},
		{"a.>.b", false, false},
		{"", false, false},
		{".", false, false},
		{".a", false, false},
		{"a.", false, false},
		{"a..b", false, false},
		{"a b", false, false},
		{"a\tb", false, false},
		{"a\r", false, false},
		{"a\x00", false, false},
		{"a\x7f", false, false},
		{strings.Repeat("a", MaxSubject), true, true},
		{strings.Repeat("a", MaxSubject+1), false, false},
	}
	for _, c := range cases {
		if ValidSubject(c.s) != c.subject || ValidSubject([]byte(c.s)) != c.subject || Literal(c.s) != c.subject {
			t.Errorf("ValidSubject(%.20q) = %v", c.s, !c.subject)
		}
		if ValidFilter(c.s) != c.filter || ValidFilter([]byte(c.s)) != c.filter {
			t.Errorf("ValidFilter(%.20q) = %v", c.s, !c.filter)
		}
	}
}

func TestInvalidSubjectsMatchNothing(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	sink := &countingSink{got: make(map[*Subscription]int)}
	for _, f := range []string{">", "a.>", "*", "a.*", "*.*.*"} {
		if err := r.Subscribe(&Subscription{Subject: f, Sink: sink}); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{"", ".", "a.", ".a", "a..b", "a.b.", "a.b..c"} {
		if n := r.Route(&Message{Subject: []byte(s)}, nil); n != 0 {
			t.Errorf("%q was delivered %d times", s, n)
		}
	}
}

func TestSubscribeErrors(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	if err := r.Subscribe(&Subscription{Subject: "a..b"}); !errors.Is(err, ErrBadFilter) {
		t.Errorf("got %v", err)
	}
	s := &Subscription{Subject: "a", Sink: &countingSink{}}
	if r.Unsubscribe(s) {
		t.Error("unsubscribed what never was")
	}
	if err := r.Subscribe(s); err != nil {
		t.Fatal(err)
	}
	if err := r.Subscribe(s); !errors.Is(err, ErrSubscribed) {
		t.Errorf("got %v", err)
	}
}

// TestTrieIsPruned: subscriptions that come and go leave nothing.
func TestTrieIsPruned(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	var subs []*Subscription
	for i := range 100 {
		for _, f := range []string{"a.%d", "a.*.%d", "%d.>", ">", "*.b.%d"} {
			if strings.Contains(f, "%") {
				f = fmt.Sprintf(f, i)
			}
			s := &Subscription{Subject: f, Sink: &countingSink{}, Queue: words[i%3]}
			if err := r.Subscribe(s); err != nil {
				t.Fatal(err)
			}
			subs = append(subs, s)
		}
	}
	for _, s := range subs {
		r.Unsubscribe(s)
	}
	if n := &r.trie; len(n.literals) != 0 || n.one != nil || n.rest != nil || n.used || r.Count() != 0 {
		t.Errorf("left behind: %+v", n)
	}
}

func TestQueueGroupSharesAlike(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	sink := &countingSink{got: make(map[*Subscription]int)}
	for range 4 {
		if err := r.Subscribe(&Subscription{Subject: "a.*", Queue: "q", Sink: sink}); err != nil {
			t.Fatal(err)
		}
	}
	p := r.Publisher()
	for range 4000 {
		if n := p.Route(&Message{Subject: []byte("a.b")}, nil); n != 1 {
			t.Fatalf("%d deliveries", n)
		}
	}
	for s, n := range sink.got {
		if n < 800 || n > 1200 {
			t.Errorf("member %p got %d of 4000", s, n)
		}
	}
}

// burstSink counts wakes and asks for them once a burst, as a connection does.
type burstSink struct {
	last  uint64
	wakes int
	room  chan struct{}
}

func (s *burstSink) Deliver(_ *Subscription, m *Message) bool {
	if b := m.Burst(); b == nil {
		s.wakes++
	} else if s.last != b.ID() {
		s.last = b.ID()
		b.Touch(s)
		if s.room != nil {
			b.Congested(s.room)
		}
	}
	return true
}

func (s *burstSink) Wake() { s.wakes++ }

func TestBurstWakesOnce(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	sink := &burstSink{}
	if err := r.Subscribe(&Subscription{Subject: ">", Sink: sink}); err != nil {
		t.Fatal(err)
	}
	p, q := r.Publisher(), r.Publisher()
	m := &Message{Subject: []byte("a")}
	for range 10 {
		p.Route(m, nil)
	}
	if sink.wakes != 0 {
		t.Errorf("woken %d times before the burst's end", sink.wakes)
	}
	p.Flush()
	p.Flush()
	if sink.wakes != 1 {
		t.Errorf("woken %d times, want once", sink.wakes)
	}
	p.Route(m, nil)
	q.Route(m, nil)
	p.Flush()
	q.Flush()
	if sink.wakes != 3 {
		t.Errorf("woken %d times, want by either publisher", sink.wakes)
	}
	r.Route(m, nil)
	if sink.wakes != 4 {
		t.Errorf("Route did not wake at once")
	}
	sink.room = make(chan struct{})
	p.Route(m, nil)
	if p.Flush() == nil {
		t.Error("congestion was not passed on")
	}
	sink.room = nil
	p.Route(m, nil)
	if p.Flush() != nil {
		t.Error("congestion outlived its burst")
	}
}

// TestCacheIsBounded: neither many subjects nor large matches make it grow.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	sink := &burstSink{}
	for range 200 {
		if err := r.Subscribe(&Subscription{Subject: ">", Sink: sink}); err != nil {
			t.Fatal(err)
		}
	}
	p := r.Publisher()
	for i := range 1000 {
		m := &Message{Subject: fmt.Appendf(nil, "s.%d", i)}
		for range 3 {
			if n := p.Route(m, nil); n != 200 {
				t.Fatalf("%d deliveries", n)
			}
		}
		size := 0
		for _, c := range p.cache {
			size += c.size()
		}
		if size != p.targets || size > maxCachedTargets || len(p.cache) > maxCachedSubjects {
			t.Fatalf("cache holds %d targets (counted %d) of %d subjects", size, p.targets, len(p.cache))
		}
	}
	if len(p.cache) == 0 {
		t.Error("nothing was cached")
	}
	p.Flush()
	p.Forget()
	if p.cache != nil || p.Route(&Message{Subject: []byte("s")}, nil) != 200 {
		t.Error("a publisher that forgot must route as before")
	}
	once := r.Publisher()
	for i := range 1000 {
		once.Route(&Message{Subject: fmt.Appendf(nil, "once.%d", i)}, nil)
	}
	if len(once.cache) != 0 {
		t.Errorf("%d subjects cached that were seen once", len(once.cache))
	}
}

type atomicSink struct{ n atomic.Int64 }

func (s *atomicSink) Deliver(*Subscription, *Message) bool { s.n.Add(1); return true }

// TestRouterRace: publishers, subscribers and viewers at once; a subscription
// that stands all the while misses nothing.
func TestRouterRace(t *testing.T) {
	t.Parallel()
	r := NewRouter()
	var b Bindings[int]
	steady, group := &atomicSink{}, &atomicSink{}
	if err := r.Subscribe(&Subscription{Subject: "a.*", Sink: steady}); err != nil {
		t.Fatal(err)
	}
	if err := r.Subscribe(&Subscription{Subject: "a.b", Queue: "q", Sink: group}); err != nil {
		t.Fatal(err)
	}
	const rounds = 2000
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			p := r.Publisher()
			m := &Message{Subject: []byte("a.b")}
			for range rounds {
				p.Route(m, nil)
				r.Route(m, nil)
			}
		})
		all.Go(func() {
			churn := &atomicSink{}
			for i := range rounds {
				s := &Subscription{Subject: "a.b", Sink: churn}
				if i%2 == 0 {
					s.Queue = "q"
					s.Sink = group
				}
				if err := r.Subscribe(s); err != nil {
					t.Error(err)
				}
				if i%16 == 0 {
					r.HasInterest([]byte("a.b"))
					r.Interests()
					b.Bind("x.y", i) //nolint:errcheck // two goroutines take turns
					b.Lookup([]byte("x.y"))
					b.Unbind("x.y")
				}
				r.Unsubscribe(s)
			}
		})
	}
	all.Wait()
	if n := steady.n.Load(); n != 4*rounds {
		t.Errorf("steady subscription got %d of %d", n, 4*rounds)
	}
	if n := group.n.Load(); n != 4*rounds {
		t.Errorf("group got %d of %d", n, 4*rounds)
	}
}
