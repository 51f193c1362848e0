package interest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// The oracles: matching and overlapping in the plainest way, over split tokens.

func naiveMatch(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, token := range f {
		if token == ">" {
			return len(s) > i
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

// naiveOverlap tries every subject that could tell the two apart.
func naiveOverlap(a, b string, alphabet []string, depth int) bool {
	found := false
	var try func(prefix string, left int)
	try = func(prefix string, left int) {
		if found || left == 0 {
			return
		}
		for _, token := range alphabet {
			s := token
			if prefix != "" {
				s = prefix + "." + token
			}
			if naiveMatch(a, s) && naiveMatch(b, s) {
				found = true
				return
			}
			try(s, left-1)
		}
	}
	try("", depth)
	return found
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

var words = []string{"a", "b", "c"}

func randomSubject(r *rand.Rand, depth int) string {
	tokens := make([]string, 1+r.IntN(depth))
	for i := range tokens {
		tokens[i] = words[r.IntN(len(words))]
	}
	return strings.Join(tokens, ".")
}

func randomFilter(r *rand.Rand, depth int) string {
	tokens := strings.Split(randomSubject(r, depth), ".")
	for i := range tokens {
		if r.IntN(3) == 0 {
			tokens[i] = "*"
		}
	}
	if r.IntN(4) == 0 {
		tokens[len(tokens)-1] = ">"
	}
	return strings.Join(tokens, ".")
}

func TestMatchAndOverlapAgainstOracle(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	for range 5000 {
		f, g, s := randomFilter(r, 3), randomFilter(r, 3), randomSubject(r, 4)
		if got, want := Match(f, s), naiveMatch(f, s); got != want {
			t.Fatalf("Match(%q, %q) = %v", f, s, got)
		}
		if got, want := Match([]byte(f), []byte(s)), naiveMatch(f, s); got != want {
			t.Fatalf("Match(%q, %q) of bytes = %v", f, s, got)
		}
		// One letter more than the filters use, one token deeper.
		if got, want := Overlap(f, g), naiveOverlap(f, g, []string{"a", "b", "c", "d"}, 4); got != want {
			t.Fatalf("Overlap(%q, %q) = %v", f, g, got)
		}
		if Overlap(f, g) != Overlap(g, f) {
			t.Fatalf("Overlap(%q, %q) depends on the order", f, g)
		}
	}
}

type countingSink struct {
	refuses bool
	got     map[*Subscription]int
}

func (s *countingSink) Deliver(sub *Subscription, _ *Message) bool {
	if s.refuses {
		return false
	}
	s.got[sub]++
	return true
}

// TestRouterAgainstOracle changes subscriptions at random and compares each
// message's deliveries with what the plain rules say: by a caching publisher,
// by one that is made anew and by Route.
func TestRouterAgainstOracle(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	router := NewRouter()
	cached := router.Publisher()
	watched := make(map[Interest]int)
	router.Watch(func(added bool, subject, queue string) {
		if added {
			watched[Interest{subject, queue}]++
		} else {
			watched[Interest{subject, queue}]--
		}
	})
	sinks := make([]*countingSink, 5)
	for i := range sinks {
		sinks[i] = &countingSink{refuses: i == 4}
	}
	var live []*Subscription
	for step := range 6000 {
		switch {
		case r.IntN(3) == 0 && len(live) < 40:
			s := &Subscription{Subject: randomFilter(r, 4), Sink: sinks[r.IntN(len(sinks))], Peer: r.IntN(8) == 0}
			if r.IntN(2) == 0 {
				s.Queue = "q" + words[r.IntN(2)]
			}
			if err := router.Subscribe(s); err != nil {
				t.Fatal(err)
			}
			live = append(live, s)
		case r.IntN(3) == 0 && len(live) > 0:
			i := r.IntN(len(live))
			if !router.Unsubscribe(live[i]) || router.Unsubscribe(live[i]) {
				t.Fatal("Unsubscribe must succeed once")
			}
			live = slices.Delete(live, i, i+1)
		}
		subject := randomSubject(r, 4)
		for _, s := range sinks {
			s.got = make(map[*Subscription]int)
		}
		var from Sink
		if r.IntN(2) == 0 {
			from = sinks[r.IntN(len(sinks))]
		}
		m := &Message{Subject: []byte(subject)}
		var delivered int
		switch step % 3 {
		case 0:
			delivered = cached.Route(m, from)
		case 1:
			delivered = router.Publisher().Route(m, from)
		case 2:
			delivered = router.Route(m, from)
		}
		checkRouted(t, live, sinks, from, subject, delivered)
		checkViews(t, router, live, subject, watched)
	}
}

func checkRouted(t *testing.T, live []*Subscription, sinks []*countingSink, from Sink, subject string, delivered int) {
	t.Helper()
	got := make(map[*Subscription]int)
	total := 0
	for _, s := range sinks {
		for sub, n := range s.got {
			got[sub] += n
			total += n
		}
	}
	if total != delivered {
		t.Fatalf("Route says %d, sinks got %d", delivered, total)
	}
	able := make(map[string]bool)
	byQueue := make(map[string]int)
	for _, s := range live {
		matches := naiveMatch(s.Subject, subject) && (from == nil || s.Sink != from) && !s.Sink.(*countingSink).refuses
		if s.Queue == "" {
			if want := map[bool]int{true: 1, false: 0}[matches]; got[s] != want {
				t.Fatalf("%q to %q: %d deliveries, want %d", subject, s.Subject, got[s], want)
			}
		} else {
			able[s.Queue] = able[s.Queue] || matches
			byQueue[s.Queue] += got[s]
			if got[s] > 0 && !matches {
				t.Fatalf("%q went to %q", subject, s.Subject)
			}
		}
		total -= got[s]
	}
	if total != 0 {
		t.Fatalf("%q: %d deliveries to subscriptions that have ended", subject, total)
	}
	for q, n := range byQueue {
		if want := map[bool]int{true: 1, false: 0}[able[q]]; n != want {
			t.Fatalf("%q to group %q: %d deliveries, want %d", subject, q, n, want)
		}
	}
}

func checkViews(t *testing.T, router *Router, live []*Subscription, subject string, watched map[Interest]int) {
	t.Helper()
	has := slices.ContainsFunc(live, func(s *Subscription) bool { return naiveMatch(s.Subject, subject) })
	if router.HasInterest([]byte(subject)) != has {
		t.Fatalf("HasInterest(%q) = %v", subject, !has)
	}
	if router.Count() != len(live) || len(router.Subscriptions()) != len(live) {
		t.Fatalf("Count %d, Subscriptions %d, want %d", router.Count(), len(router.Subscriptions()), len(live))
	}
	want := make(map[Interest]int)
	for _, s := range live {
		if !s.Peer {
			want[Interest{s.Subject, s.Queue}] = 1
		}
	}
	listed := router.Interests()
	if len(listed) != len(want) {
		t.Fatalf("Interests: %d, want %d", len(listed), len(want))
	}
	for _, i := range listed {
		if want[i] != 1 {
			t.Fatalf("Interests holds %v", i)
		}
	}
	for i, n := range watched {
		if n != want[i] {
			t.Fatalf("watcher of %v counts %d, want %d", i, n, want[i])
		}
	}
	for i := range want {
		if watched[i] != 1 {
			t.Fatalf("watcher missed %v", i)
		}
	}
}

func TestBindingsAgainstOracle(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	var b Bindings[int]
	bound := make(map[string]int)
	for step := range 5000 {
		f := randomFilter(r, 4)
		if r.IntN(2) == 0 {
			var inTheWay []string
			for g := range bound {
				if Overlap(f, g) {
					inTheWay = append(inTheWay, g)
				}
			}
			err := b.Bind(f, step)
			if (err != nil) != (len(inTheWay) > 0) {
				t.Fatalf("Bind(%q): %v, overlapping %q", f, err, inTheWay)
			}
			if err == nil {
				bound[f] = step
			} else if !slices.ContainsFunc(inTheWay, func(g string) bool { return strings.Contains(err.Error(), fmt.Sprintf("%q", g)) }) {
				t.Fatalf("Bind(%q): %v names none of %q", f, err, inTheWay)
			}
		} else {
			_, was := bound[f]
			if b.Unbind(f) != was {
				t.Fatalf("Unbind(%q) = %v", f, !was)
			}
			delete(bound, f)
		}
		subject := randomSubject(r, 4)
		want, ok := 0, false
		for g, v := range bound {
			if naiveMatch(g, subject) {
				want, ok = v, true
			}
		}
		if v, found := b.Lookup([]byte(subject)); found != ok || v != want {
			t.Fatalf("Lookup(%q) = %d %v, want %d %v", subject, v, found, want, ok)
		}
		if b.Len() != len(bound) {
			t.Fatalf("Len %d, want %d", b.Len(), len(bound))
		}
	}
}
