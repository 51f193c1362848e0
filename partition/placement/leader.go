package placement

import (
	"cmp"
	"math"
	"slices"
)

// leadership is which host is preferred to lead each partition.
type leadership struct {
	of     []int // by partition; -1: none is, and none can be made it
	before []int // by partition, the same of the previous assignment
	led    []int // by host
	was    []int // by host
	lower  []int // by host
	upper  []int
}

// chooseLeaders keeps the preferred leaders that stand, gives the other partitions to
// their least-led replica, and levels what is out of bounds: ceil and floor of each host's share of the
// partitions by weight. Partitions with one replica leave no choice, so
// that hosts may stay out of bounds by them.
func (p *planner) chooseLeaders() {
	n := len(p.hosts)
	l := &p.lead
	l.of, l.before = make([]int, len(p.parts)), make([]int, len(p.parts))
	l.led, l.was, l.lower, l.upper = make([]int, n), make([]int, n), make([]int, n), make([]int, n)
	led := 0
	for i := range p.parts {
		t := &p.parts[i]
		l.of[i], l.before[i] = -1, -1
		if len(t.Replicas) > 0 {
			if h, ok := p.hostOf[t.Replicas[0]]; ok {
				l.before[i] = h
				l.was[h]++
			}
		}
		if h := l.before[i]; h >= 0 && p.holds(i, h) {
			l.of[i] = h
			l.led[h]++
		}
		if l.of[i] >= 0 || p.mayLead(t) {
			led++
		}
	}
	if n == 0 {
		return
	}
	shares := proportion(led, p.weights)
	for h, s := range shares {
		l.lower[h], l.upper[h] = s.floor(), s.ceil()
	}
	fuller := func(a, b int) int { // the weights stand for the shares
		return cmp.Compare(uint64(l.led[a])*p.weights[b], uint64(l.led[b])*p.weights[a])
	}
	for i := range p.parts {
		if l.of[i] >= 0 || !p.mayLead(&p.parts[i]) {
			continue
		}
		best := -1
		for _, s := range p.parts[i].slots {
			if s.host < 0 {
				continue
			}
			if best < 0 || cmp.Or(fuller(s.host, best), cmp.Compare(p.rankOf(i, s.host), p.rankOf(i, best))) < 0 {
				best = s.host
			}
		}
		if l.of[i] = best; best >= 0 {
			l.led[best]++
		}
	}
	leads := level{
		load: l.led, lower: l.lower, upper: l.upper, fuller: fuller, items: len(p.parts), what: "leaders",
		may: func(i, from, to int) bool {
			return l.of[i] == from && p.holds(i, to) && !p.parts[i].frozen
		},
		fresh: func(i, h int) bool { return l.of[i] == h && l.before[i] != h },
		rank:  p.rankOf,
		move: func(i, from, to int, why cause) {
			l.of[i] = to
			l.led[from]--
			l.led[to]++
			p.parts[i].leadCause = why
		},
	}
	leads.run(func(h int) *Broker { return &p.hosts[h] })
}

// mayLead says that a host can be made the partition's preferred leader.
func (p *planner) mayLead(t *part) bool {
	return !t.frozen && slices.ContainsFunc(t.slots, func(s slot) bool { return s.host >= 0 })
}

// arrange returns a partition's replicas: the preferred leader, those that stood in
// their order, newcomers in the order of the ring.
func (p *planner) arrange(i int) []uint64 {
	t := &p.parts[i]
	if t.frozen {
		return slices.Clone(t.Replicas)
	}
	place := func(s slot) (int, int) {
		if h := p.lead.of[i]; h >= 0 && s.host == h {
			return -1, 0
		}
		if j := slices.Index(t.Replicas, s.broker); j >= 0 {
			if h := p.lead.of[i]; h < 0 && p.dead(s.broker) { // nobody leads it from a host: rather a draining one
				return math.MaxInt32, j
			}
			return j, 0
		}
		return math.MaxInt32 - 1, p.rankOf(i, s.host)
	}
	slots := slices.Clone(t.slots)
	slices.SortStableFunc(slots, func(a, b slot) int {
		a1, a2 := place(a)
		b1, b2 := place(b)
		return cmp.Or(cmp.Compare(a1, b1), cmp.Compare(a2, b2))
	})
	out := make([]uint64, len(slots))
	for j, s := range slots {
		out[j] = s.broker
	}
	return out
}
