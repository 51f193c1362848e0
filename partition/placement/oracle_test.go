package placement

import (
	"cmp"
	"maps"
	"math/big"
	"slices"
	"testing"
)

// The oracle checks a plan against the rules in the dumbest words, without any of
// the planner's tables.

type world struct {
	in     Input
	broker map[uint64]Broker
	hosts  []Broker
	racks  map[string]int // hosts in each
}

func newWorld(in Input) *world {
	w := &world{in: in, broker: map[uint64]Broker{}, racks: map[string]int{}}
	for _, b := range in.Brokers {
		w.broker[b.ID] = b
		if w.host(b.ID) {
			w.hosts = append(w.hosts, b)
			w.racks[b.Rack]++
		}
	}
	return w
}

func (w *world) host(id uint64) bool {
	b, ok := w.broker[id]
	return ok && b.State == Active && b.Weight > 0
}

func (w *world) live(p Partition, id uint64) bool {
	b, ok := w.broker[id]
	return ok && b.State != Dead && !slices.Contains(p.Down, id)
}

func (p Partition) committed() []uint64 {
	if len(p.Voters) > 0 {
		return p.Voters
	}
	return p.Replicas
}

// uneven says that a rack holds two or more replicas more than another that has a free host.
func (w *world) uneven(set []uint64) bool {
	held := map[string]int{}
	for _, id := range set {
		if w.host(id) {
			held[w.broker[id].Rack]++
		}
	}
	for full := range held {
		for rack, size := range w.racks {
			if held[rack] < size && held[full] >= held[rack]+2 {
				return true
			}
		}
	}
	return false
}

// verify checks everything that must hold of any plan.
func verify(t *testing.T, in Input, plan *Plan) {
	t.Helper()
	w := newWorld(in)
	if len(plan.Assignments) != len(in.Partitions) {
		t.Fatalf("%d assignments for %d partitions", len(plan.Assignments), len(in.Partitions))
	}
	parts := map[uint64]Partition{}
	for _, p := range in.Partitions {
		parts[p.Shard] = p
	}
	held := map[uint64][]Code{}
	for _, h := range plan.Held {
		held[h.Shard] = append(held[h.Shard], h.Reason.Code)
		if h.Reason.Text == "" {
			t.Errorf("shard %d is held without a reason", h.Shard)
		}
	}
	after := map[uint64]int{}
	led := map[uint64]int{}
	var previous uint64
	for i, a := range plan.Assignments {
		if i > 0 && a.Shard <= previous {
			t.Fatalf("shard %d after %d", a.Shard, previous)
		}
		previous = a.Shard
		p := parts[a.Shard]
		for j, id := range a.Replicas {
			if slices.Contains(a.Replicas[:j], id) {
				t.Fatalf("shard %d has two replicas on broker %d", a.Shard, id)
			}
			if !slices.Contains(p.Replicas, id) && !w.host(id) {
				t.Errorf("shard %d is given to broker %d, which takes no replicas", a.Shard, id)
			}
			after[id]++
		}
		led[a.Replicas[0]]++
		w.verifySafety(t, p, a, held[a.Shard])
		w.verifyCount(t, p, a, held[a.Shard])
		if len(p.Replicas) > 0 {
			// What stood and still stands keeps its order behind the leader.
			var stood, stands []uint64
			for _, id := range p.Replicas {
				if slices.Contains(a.Replicas[1:], id) {
					stood = append(stood, id)
				}
			}
			for _, id := range a.Replicas[1:] {
				if slices.Contains(p.Replicas, id) {
					stands = append(stands, id)
				}
			}
			if !slices.Equal(stood, stands) && w.host(a.Replicas[0]) {
				t.Errorf("shard %d: %v became %v", a.Shard, p.Replicas, a.Replicas)
			}
		}
	}
	w.verifyMoves(t, plan, parts)
	for _, l := range plan.Loads {
		if l.After != after[l.Broker] || l.LedAfter != led[l.Broker] {
			t.Errorf("broker %d holds %d and leads %d, the plan says %d and %d", l.Broker, after[l.Broker], led[l.Broker], l.After, l.LedAfter)
		}
	}
}

// verifySafety checks the promise about live majorities.
func (w *world) verifySafety(t *testing.T, p Partition, a Assignment, held []Code) {
	t.Helper()
	voters := p.committed()
	live, kept := 0, 0
	before := 0
	for _, v := range voters {
		if w.live(p, v) {
			live++
			if slices.Contains(p.Replicas, v) {
				before++
			}
			if slices.Contains(a.Replicas, v) {
				kept++
			}
		}
	}
	majority := len(voters)/2 + 1
	switch {
	case len(voters) == 0:
	case live < majority:
		if !slices.Equal(a.Replicas, p.Replicas) {
			t.Errorf("shard %d has %d of %d voters live and was changed from %v to %v", p.Shard, live, len(voters), p.Replicas, a.Replicas)
		}
		if !slices.Contains(held, CodeNoMajority) {
			t.Errorf("shard %d is frozen and nobody says so", p.Shard)
		}
	case live < len(voters) && kept < min(majority, before):
		t.Errorf("shard %d keeps %d live voters of %v, %d are a majority: %v became %v", p.Shard, kept, voters, majority, p.Replicas, a.Replicas)
	}
}

// verifyCount checks size, racks, and that nothing is left undone without being held.
func (w *world) verifyCount(t *testing.T, p Partition, a Assignment, held []Code) {
	t.Helper()
	if slices.Contains(held, CodeNoMajority) || slices.Contains(held, CodeDeferred) {
		return
	}
	on := 0
	for _, id := range a.Replicas {
		if w.host(id) {
			on++
		}
	}
	if want := min(p.Factor, len(w.hosts)); on != want {
		t.Errorf("shard %d has %d replicas on hosts, wants %d: %v", p.Shard, on, want, a.Replicas)
	}
	if (on < p.Factor) != slices.Contains(held, CodeNoBroker) {
		t.Errorf("shard %d has %d of %d replicas, held for %v", p.Shard, on, p.Factor, held)
	}
	// Nobody leaves without a replacement, and the set doesn't outgrow its factor.
	if floor := min(p.Factor, len(p.Replicas)); len(a.Replicas) < floor || len(a.Replicas) > p.Factor {
		t.Errorf("shard %d has %d replicas, had %d, wants %d", p.Shard, len(a.Replicas), len(p.Replicas), p.Factor)
	}
	if len(a.Replicas) > on && on < len(w.hosts) {
		t.Errorf("shard %d keeps %v although there is room", p.Shard, a.Replicas)
	}
	if w.uneven(a.Replicas) {
		t.Errorf("shard %d crowds in a rack: %v", p.Shard, a.Replicas)
	}
	if !w.host(a.Replicas[0]) && on > 0 {
		t.Errorf("shard %d is led from broker %d, which takes no replicas", p.Shard, a.Replicas[0])
	}
}

// verifyMoves replays moves and leads on the previous assignment.
func (w *world) verifyMoves(t *testing.T, plan *Plan, parts map[uint64]Partition) {
	t.Helper()
	sets := map[uint64]map[uint64]bool{}
	leader := map[uint64]uint64{}
	for _, p := range parts {
		sets[p.Shard] = map[uint64]bool{}
		for _, id := range p.Replicas {
			sets[p.Shard][id] = true
		}
		if len(p.Replicas) > 0 {
			leader[p.Shard] = p.Replicas[0]
		}
	}
	for _, m := range plan.Moves {
		set := sets[m.Shard]
		if m.From != 0 && !set[m.From] || m.To != 0 && set[m.To] || m.From == m.To {
			t.Errorf("shard %d can't move from %d to %d: it is on %v", m.Shard, m.From, m.To, slices.Collect(maps.Keys(set)))
		}
		if m.Reason.Code == "" || m.Reason.Text == "" {
			t.Errorf("shard %d moves from %d to %d without a reason", m.Shard, m.From, m.To)
		}
		if m.From == 0 && m.Reason.Code != CodeNew && m.Reason.Code != CodeGrow || m.To == 0 && m.Reason.Code != CodeShrink {
			t.Errorf("shard %d moves from %d to %d for %s", m.Shard, m.From, m.To, m.Reason.Code)
		}
		b, known := w.broker[m.From]
		dead := m.From != 0 && (!known || b.State == Dead)
		draining := m.From != 0 && !dead && !w.host(m.From)
		if m.Reason.Code != CodeShrink && (dead != (m.Reason.Code == CodeDead) || draining != (m.Reason.Code == CodeDrain)) {
			t.Errorf("shard %d moves from %d because %s", m.Shard, m.From, m.Reason.Text)
		}
		delete(set, m.From)
		if m.To != 0 {
			set[m.To] = true
		}
	}
	for _, l := range plan.Leads {
		if leader[l.Shard] != l.From || l.From == l.To || l.Reason.Code == "" || l.Reason.Text == "" {
			t.Errorf("lead %+v, the leader was %d", l, leader[l.Shard])
		}
		leader[l.Shard] = l.To
	}
	for _, a := range plan.Assignments {
		set := sets[a.Shard]
		same := len(set) == len(a.Replicas)
		for _, id := range a.Replicas {
			same = same && set[id]
		}
		if !same {
			t.Errorf("shard %d: the moves lead to %v, the assignment is %v", a.Shard, set, a.Replicas)
		}
		if was := leader[a.Shard]; was != 0 && was != a.Replicas[0] {
			t.Errorf("shard %d: the leads lead to %d, the assignment to %d", a.Shard, was, a.Replicas[0])
		}
	}
}

// plainBounds are the bounds of §6 by exact fractions, without regard to what racks and factors
// allow: right wherever they forbid nothing.
func plainBounds(weight, sum int64, total int) (lower, upper int) {
	share := big.NewRat(weight*int64(total), sum)
	floor := func(r *big.Rat) int { return int(new(big.Int).Quo(r.Num(), r.Denom()).Int64()) }
	ceil := floor(share)
	if !share.IsInt() {
		ceil++
	}
	lower = floor(new(big.Rat).Mul(share, big.NewRat(95, 100)))
	upper = max(ceil, floor(new(big.Rat).Mul(share, big.NewRat(105, 100))))
	return lower, upper
}

// possible says by maximum flow whether an assignment exists that has one replica of a partition on a
// host at most, holds what each partition must have, and keeps every bound. Racks
// and guards aside.
func possible(need []int, lower, upper []int) bool {
	// Flow over partitions and hosts: first make every host reach its
	// lower bound, then fill up, never above the upper.
	n := len(lower)
	on := make([][]bool, len(need))
	left := slices.Clone(need)
	load := make([]int, n)
	for i := range on {
		on[i] = make([]bool, n)
	}
	// augment adds one replica on host h, by the alternating path from h to a partition that wants more.
	var augment func(h int, seen []bool) bool
	augment = func(h int, seen []bool) bool {
		seen[h] = true
		for i := range need {
			if !on[i][h] && left[i] > 0 {
				on[i][h] = true
				left[i]--
				return true
			}
		}
		for i := range need {
			if on[i][h] {
				continue
			}
			for o := range n {
				if on[i][o] && !seen[o] {
					on[i][o], on[i][h] = false, true
					if augment(o, seen) {
						return true
					}
					on[i][o], on[i][h] = true, false
				}
			}
		}
		return false
	}
	for _, bound := range [][]int{lower, upper} {
		for progress := true; progress; {
			progress = false
			for h := range n {
				if load[h] < bound[h] && augment(h, make([]bool, n)) {
					load[h]++
					progress = true
				}
			}
		}
		if &bound[0] == &lower[0] {
			for h := range n {
				if load[h] < lower[h] {
					return false
				}
			}
		}
	}
	return !slices.ContainsFunc(left, func(l int) bool { return l > 0 })
}

// walkAll is the order of preference by sorting all virtual nodes clockwise.
func walkAll(brokers []Broker, vnodes map[uint64]int, shard uint64) []uint64 {
	type point struct{ at, broker uint64 }
	var points []point
	for _, b := range brokers {
		for v := range vnodes[b.ID] {
			points = append(points, point{pointOfVnode(b.ID, v) - pointOfShard(shard), b.ID})
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.broker, b.broker))
	})
	var met []uint64
	for _, p := range points {
		if !slices.Contains(met, p.broker) {
			met = append(met, p.broker)
		}
	}
	return met
}

// spreadOrder takes, again and again, the first that is left of each rack.
func spreadOrder(brokers []Broker, walk []uint64) []uint64 {
	rack := map[uint64]string{}
	for _, b := range brokers {
		rack[b.ID] = b.Rack
	}
	var out []uint64
	for len(out) < len(walk) {
		round := map[string]bool{}
		before := slices.Clone(out)
		for _, id := range walk {
			if !slices.Contains(before, id) && !round[rack[id]] {
				round[rack[id]] = true
				out = append(out, id)
			}
		}
	}
	return out
}
