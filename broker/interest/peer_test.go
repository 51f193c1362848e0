package interest

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// peerSink is another broker that counts what it is handed.
type peerSink struct {
	refuses bool
	plain   int
	calls   int
	groups  map[string]int
}

func (p *peerSink) Deliver(*Subscription, *Message) bool {
	panic("a PeerSink is handed whole messages")
}

func (p *peerSink) DeliverPeer(_ *Message, plain bool, groups []string) bool {
	if !plain && len(groups) == 0 {
		panic("handed nothing")
	}
	if p.refuses {
		return false
	}
	p.calls++
	if plain {
		p.plain++
	}
	for _, g := range groups {
		if p.groups == nil {
			p.groups = make(map[string]int)
		}
		p.groups[g]++
	}
	return true
}

// TestPeersAgainstOracle: whatever is subscribed here and on other brokers, a
// message reaches every plain subscriber here, each interested broker in one
// call, and one member of each group, wherever it is.
func TestPeersAgainstOracle(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	router := NewRouter()
	publisher := router.Publisher()
	peers := []*peerSink{{}, {}, {refuses: true}}
	here := []*countingSink{{}, {}, {refuses: true}}
	followed := make(map[Interest]int)
	stop := router.Follow(func(subject, queue string, members int) {
		followed[Interest{subject, queue}] = members
		if members == 0 {
			delete(followed, Interest{subject, queue})
		}
	})
	defer stop()
	var live []*Subscription
	for range 8000 {
		switch {
		case r.IntN(3) == 0 && len(live) < 40:
			s := &Subscription{Subject: randomFilter(r, 4)}
			if s.Peer = r.IntN(2) == 0; s.Peer {
				s.Sink = peers[r.IntN(len(peers))]
			} else {
				s.Sink = here[r.IntN(len(here))]
			}
			if r.IntN(2) == 0 {
				s.Queue = "q" + words[r.IntN(2)]
			}
			if err := router.Subscribe(s); err != nil {
				t.Fatal(err)
			}
			if s.Peer && r.IntN(3) == 0 {
				router.SetMembers(s, 1+r.IntN(5))
			}
			live = append(live, s)
		case r.IntN(3) == 0 && len(live) > 0:
			i := r.IntN(len(live))
			if !router.Unsubscribe(live[i]) {
				t.Fatal("Unsubscribe must succeed")
			}
			live = slices.Delete(live, i, i+1)
		}
		for _, p := range peers {
			p.plain, p.calls, p.groups = 0, 0, nil
		}
		for _, s := range here {
			s.got = make(map[*Subscription]int)
		}
		subject := randomSubject(r, 4)
		delivered := publisher.Route(&Message{Subject: []byte(subject)}, nil)

		interested, able, took := make(map[Sink]bool), make(map[string]bool), make(map[string]int)
		locals := make(map[Interest]int)
		total := 0
		for _, s := range live {
			if !s.Peer {
				locals[Interest{s.Subject, s.Queue}]++
				n := s.Sink.(*countingSink).got[s]
				total += n
				if s.Queue != "" {
					took[s.Queue] += n
				}
			}
			if !naiveMatch(s.Subject, subject) {
				continue
			}
			var refuses bool
			switch sink := s.Sink.(type) {
			case *peerSink:
				refuses = sink.refuses
				interested[sink] = interested[sink] || s.Queue == "" && !refuses
			case *countingSink:
				refuses = sink.refuses
				if want := map[bool]int{true: 0, false: 1}[refuses]; s.Queue == "" && sink.got[s] != want {
					t.Fatalf("%q to %q: %d deliveries, want %d", subject, s.Subject, sink.got[s], want)
				}
			}
			able[s.Queue] = able[s.Queue] || s.Queue != "" && !refuses
		}
		for i, p := range peers {
			if p.plain != map[bool]int{true: 1, false: 0}[interested[p]] {
				t.Fatalf("%q: peer %d got it %d times for plain subscribers, interested %v", subject, i, p.plain, interested[p])
			}
			if p.plain > 0 && len(peers) == 3 && p.calls > 1+len(p.groups) {
				t.Fatalf("%q: peer %d called %d times", subject, i, p.calls)
			}
			total += p.plain
			for g, n := range p.groups {
				took[g] += n
				total += n
			}
		}
		for g, can := range able {
			if g == "" {
				continue
			}
			if want := map[bool]int{true: 1, false: 0}[can]; took[g] != want {
				t.Fatalf("%q: group %s got it %d times, want %d", subject, g, took[g], want)
			}
		}
		if total != delivered {
			t.Fatalf("%q: Route says %d, it went to %d", subject, delivered, total)
		}
		for i, n := range locals {
			if i.Queue == "" {
				if followed[i] == 0 {
					t.Fatalf("interest %v not told", i)
				}
			} else if followed[i] != n {
				t.Fatalf("interest %v told as %d, is %d", i, followed[i], n)
			}
		}
		if len(followed) != len(locals) {
			t.Fatalf("told of %v, there is %v", slices.Collect(maps.Keys(followed)), locals)
		}
	}
}

// TestOneCallAPeer: all that one broker wants of a message goes there at once.
func TestOneCallAPeer(t *testing.T) {
	t.Parallel()
	router := NewRouter()
	p := &peerSink{}
	for _, i := range []Interest{{"a.b", ""}, {"a.*", ""}, {">", ""}, {"a.b", "q1"}, {"a.>", "q1"}, {"*.b", "q2"}} {
		if err := router.Subscribe(&Subscription{Subject: i.Subject, Queue: i.Queue, Sink: p, Peer: true}); err != nil {
			t.Fatal(err)
		}
	}
	if n := router.Route(&Message{Subject: []byte("a.b")}, nil); n != 3 || p.calls != 1 || p.plain != 1 || p.groups["q1"] != 1 || p.groups["q2"] != 1 {
		t.Errorf("delivered %d, %+v", n, p)
	}
}

// TestPicksAreWeighted by the members that a broker has.
func TestPicksAreWeighted(t *testing.T) {
	t.Parallel()
	seeded(t)
	router := NewRouter()
	far, near := &peerSink{}, &countingSink{got: make(map[*Subscription]int)}
	theirs := &Subscription{Subject: "a", Queue: "q", Sink: far, Peer: true}
	for _, s := range []*Subscription{theirs, {Subject: "a", Queue: "q", Sink: near}} {
		if err := router.Subscribe(s); err != nil {
			t.Fatal(err)
		}
	}
	router.SetMembers(theirs, 3)
	p := router.Publisher()
	const n = 8000
	for range n {
		if p.Route(&Message{Subject: []byte("a")}, nil) != 1 {
			t.Fatal("not one")
		}
	}
	if got := far.groups["q"]; got < n*3/4-300 || got > n*3/4+300 {
		t.Errorf("three of four members got %d of %d", got, n)
	}
}

// TestRouteLocal: what another broker hands over stays here, except for a group
// that has no member here any more, which goes on for a bounded way.
func TestRouteLocal(t *testing.T) {
	t.Parallel()
	router := NewRouter()
	far, near := &peerSink{}, &countingSink{got: make(map[*Subscription]int)}
	plain, member := &Subscription{Subject: "a", Sink: near}, &Subscription{Subject: "a", Queue: "q", Sink: near}
	for _, s := range []*Subscription{
		plain, member, {Subject: "a", Sink: far, Peer: true}, {Subject: "a", Queue: "q", Sink: far, Peer: true},
	} {
		if err := router.Subscribe(s); err != nil {
			t.Fatal(err)
		}
	}
	p := router.Publisher()
	q := [][]byte{[]byte("q")}
	route := func(hops uint8, plain bool, groups [][]byte) string {
		m := &Message{Subject: []byte("a"), Hops: hops}
		delivered, lost := p.RouteLocal(m, plain, groups)
		if m.Hops != hops {
			t.Errorf("hops left at %d", m.Hops)
		}
		return fmt.Sprint(delivered, lost, near.got[member], far.calls)
	}
	if got := route(0, true, nil); got != "1 0 0 0" || near.got[plain] != 1 {
		t.Error("plain:", got)
	}
	for i := range 20 {
		if got, want := route(0, false, q), fmt.Sprint(1, 0, i+1, 0); got != want {
			t.Fatalf("group: %s, want %s", got, want)
		}
	}
	router.Unsubscribe(member)
	if got := route(0, false, q); got != "1 0 20 1" {
		t.Error("member gone:", got)
	}
	if got := route(MaxHops, false, q); got != "0 1 20 1" {
		t.Error("after all hops:", got)
	}
	if got := route(0, false, [][]byte{[]byte("unknown")}); got != "0 1 20 1" {
		t.Error("no such group:", got)
	}
}

func BenchmarkRoutePeer(b *testing.B) {
	router := NewRouter()
	far := nullPeer{}
	for _, s := range []*Subscription{
		{Subject: "a.>", Sink: far, Peer: true}, {Subject: "a.b", Sink: far, Peer: true},
		{Subject: "a.b", Queue: "q", Sink: far, Peer: true}, {Subject: "a.b", Queue: "q", Sink: nullSink{}},
	} {
		if err := router.Subscribe(s); err != nil {
			b.Fatal(err)
		}
	}
	p := router.Publisher()
	m := &Message{Subject: []byte("a.b")}
	p.Route(m, nil)
	p.Route(m, nil)
	b.ReportAllocs()
	for b.Loop() {
		if p.Route(m, nil) != 2 {
			b.Fatal("not delivered")
		}
	}
}

type nullPeer struct{}

func (nullPeer) Deliver(*Subscription, *Message) bool      { return true }
func (nullPeer) DeliverPeer(*Message, bool, []string) bool { return true }
