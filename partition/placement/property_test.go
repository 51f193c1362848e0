package placement

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// Longer runs: go test ./partition/placement -run Property -cases 200000 [-seed N].
var (
	seedFlag  = flag.Uint64("seed", 0, "first seed of the property tests, 0 for a fresh one")
	casesFlag = flag.Int("cases", 200, "cases of each property test")
)

// eachSeed runs a property on as many seeds as asked and stops at the first that fails.
func eachSeed(t *testing.T, property func(t *testing.T, r *rand.Rand)) {
	t.Parallel()
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64()>>16 + 1
	}
	t.Logf("seeds from %d", first)
	for seed := first; seed < first+uint64(*casesFlag) && !t.Failed(); seed++ {
		property(t, rand.New(rand.NewPCG(seed, 0)))
		if t.Failed() {
			t.Logf("failed with -run %s -seed %d -cases 1", t.Name(), seed)
		}
	}
}

type shape struct {
	brokers, parts, factor int
	racks                  int  // 0: none
	weights                bool // differ
	mixed                  bool // factors differ
}

func randomShape(r *rand.Rand) shape {
	s := shape{brokers: 1 + r.IntN(12), parts: 1 + r.IntN(60), factor: 1 + r.IntN(5), weights: r.IntN(2) == 0, mixed: r.IntN(3) == 0}
	if r.IntN(2) == 0 {
		s.racks = 1 + r.IntN(5)
	}
	return s
}

func (s shape) broker(r *rand.Rand, id uint64) Broker {
	b := Broker{ID: id, Weight: 100}
	if s.weights {
		b.Weight = uint32(1 + r.IntN(300))
	}
	if s.racks > 0 {
		b.Rack = fmt.Sprint("r", r.IntN(s.racks))
	}
	if r.IntN(2) == 0 {
		b.Name = fmt.Sprint("b", id)
	}
	return b
}

func (s shape) input(r *rand.Rand) Input {
	in := Input{Partitions: newPartitions(s.parts, s.factor)}
	for id := range s.brokers {
		in.Brokers = append(in.Brokers, s.broker(r, uint64(id+1)))
	}
	if s.mixed {
		for i := range in.Partitions {
			in.Partitions[i].Factor = 1 + r.IntN(5)
		}
	}
	return in
}

func shuffled(r *rand.Rand, in Input) Input {
	out := Input{slices.Clone(in.Brokers), slices.Clone(in.Partitions)}
	r.Shuffle(len(out.Brokers), func(i, j int) { out.Brokers[i], out.Brokers[j] = out.Brokers[j], out.Brokers[i] })
	r.Shuffle(len(out.Partitions), func(i, j int) {
		out.Partitions[i], out.Partitions[j] = out.Partitions[j], out.Partitions[i]
	})
	for i := range out.Partitions {
		p := &out.Partitions[i]
		p.Voters, p.Down = slices.Clone(p.Voters), slices.Clone(p.Down)
		r.Shuffle(len(p.Voters), func(i, j int) { p.Voters[i], p.Voters[j] = p.Voters[j], p.Voters[i] })
		r.Shuffle(len(p.Down), func(i, j int) { p.Down[i], p.Down[j] = p.Down[j], p.Down[i] })
	}
	return out
}

// TestPropertyAnyInput throws anything at the planner: previous assignments that no planner made, voters
// that differ from them, brokers in all states and unknown ones.
func TestPropertyAnyInput(t *testing.T) { eachSeed(t, anyInput) }

// TestSeedsThatFailed runs again what once broke a rule.
func TestSeedsThatFailed(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{172957801797075, 171776681695532, 195330635508185} {
		anyInput(t, rand.New(rand.NewPCG(seed, 0)))
	}
}

func anyInput(t *testing.T, r *rand.Rand) {
	t.Helper()
	s := randomShape(r)
	in := s.input(r)
	for i := range in.Brokers {
		switch r.IntN(6) {
		case 0:
			in.Brokers[i].State = Dead
		case 1:
			in.Brokers[i].State = Draining
		case 2:
			if r.IntN(3) == 0 {
				in.Brokers[i].Weight = 0
			}
		}
	}
	some := func(most int) []uint64 {
		var ids []uint64
		for _, i := range r.Perm(s.brokers + 2) {
			if len(ids) < most {
				ids = append(ids, uint64(i+1))
			}
		}
		return ids
	}
	for i := range in.Partitions {
		p := &in.Partitions[i]
		p.Factor = 1 + r.IntN(6)
		p.Replicas = some(r.IntN(7))
		if len(p.Replicas) > 0 && r.IntN(3) == 0 {
			p.Voters = some(1 + r.IntN(5))
		}
		if r.IntN(3) == 0 {
			p.Down = some(r.IntN(3))
		}
	}
	before := shuffled(rand.New(rand.NewPCG(1, 1)), in)
	plan, err := Make(in)
	if in.Hosts() == 0 && slices.ContainsFunc(in.Partitions, func(p Partition) bool { return len(p.Replicas) == 0 && len(p.Voters) == 0 }) {
		if !errors.Is(err, ErrNoBroker) {
			t.Errorf("no host, and the error is %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	verify(t, in, plan)
	if !reflect.DeepEqual(before, shuffled(rand.New(rand.NewPCG(1, 1)), in)) {
		t.Error("the input was altered")
	}
	again, err := Make(shuffled(r, in))
	if err != nil || !reflect.DeepEqual(plan, again) {
		t.Errorf("another order gives another plan (%v)", err)
	}
	converge(t, in, plan)
}

// converge carries plans out until nothing changes, which must be soon, and returns the last.
func converge(t *testing.T, in Input, plan *Plan) Input {
	t.Helper()
	for round := 0; ; round++ {
		following := next(in, plan)
		for i := range following.Partitions { // what is frozen keeps its voters
			p := &following.Partitions[i]
			for _, was := range in.Partitions {
				if was.Shard == p.Shard && slices.ContainsFunc(plan.Held, func(h Held) bool { return h.Shard == p.Shard && h.Reason.Code == CodeNoMajority }) {
					p.Voters, p.Down = was.Voters, was.Down
				}
			}
		}
		in = following
		plan = mustMake(t, in)
		verify(t, in, plan)
		if !plan.Changed() {
			return in
		}
		if round == 6 {
			t.Errorf("still changing after %d rounds: %+v %+v", round, plan.Moves, plan.Leads)
			return in
		}
	}
}

// TestPropertyNothingChanged says that a plan on a plan is empty.
func TestPropertyNothingChanged(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		in := randomShape(r).input(r)
		plan := mustMake(t, in)
		verify(t, in, plan)
		in = next(in, plan)
		again := mustMake(t, shuffled(r, in))
		if again.Changed() {
			t.Errorf("moves %+v, leads %+v though nothing changed", again.Moves, again.Leads)
		}
		if !reflect.DeepEqual(plan.Assignments, again.Assignments) {
			t.Error("the assignment changed without a move")
		}
	})
}

// TestPropertyBounds says that without racks every host gets within its bounds whenever any
// assignment is, and that bounds are those of §6 where nothing forbids them.
func TestPropertyBounds(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		s := randomShape(r)
		s.racks = 0
		in := s.input(r)
		for round := range 2 {
			if round == 1 { // and from any standing assignment
				for i := range in.Partitions {
					p := &in.Partitions[i]
					for _, b := range r.Perm(s.brokers)[:min(p.Factor, s.brokers)] {
						p.Replicas = append(p.Replicas, uint64(b+1))
					}
				}
			}
			plan := mustMake(t, in)
			verify(t, in, plan)
			var need, lower, upper []int
			total, sum := 0, int64(0)
			for _, p := range in.Partitions {
				need = append(need, min(p.Factor, s.brokers))
				total += need[len(need)-1]
			}
			for _, b := range in.Brokers {
				sum += int64(b.Weight)
			}
			plain := true
			within := true
			for i, l := range plan.Loads {
				lower, upper = append(lower, l.Lower), append(upper, l.Upper)
				within = within && l.Within()
				lo, up := plainBounds(int64(in.Brokers[i].Weight), sum, total)
				plain = plain && lo == l.Lower && up == l.Upper
			}
			if can := possible(need, lower, upper); can != within {
				t.Errorf("within bounds: %t, possible: %t; %+v", within, can, plan.Loads)
			}
			if !within {
				t.Errorf("bounds that can't be kept: %+v", plan.Loads)
			}
			if !plain {
				// The plain ones must be impossible, at their exact shares.
				var lo, up []int
				for _, b := range in.Brokers {
					l, u := plainBounds(int64(b.Weight), sum, total)
					lo, up = append(lo, l), append(up, u)
				}
				exact := true // a share above what its broker can hold, or below what it must
				for k := 1; k <= s.brokers; k++ {
					held, weight := 0, int64(0)
					for _, n := range need {
						held += min(n, k)
					}
					for _, b := range heaviest(in.Brokers)[:k] {
						weight += int64(b.Weight)
					}
					exact = exact && weight*int64(total) <= int64(held)*sum
				}
				if exact {
					t.Errorf("bounds differ from the plain ones %v %v, which could be kept: %+v", lo, up, plan.Loads)
				}
			}
		}
	})
}

func heaviest(brokers []Broker) []Broker {
	out := slices.Clone(brokers)
	slices.SortFunc(out, func(a, b Broker) int { return int(b.Weight) - int(a.Weight) })
	return out
}

// TestPropertyRacks says that equal racks cost no balance, and that uneven ones leave no
// step undone.
func TestPropertyRacks(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		s := randomShape(r)
		s.racks = 0
		equal := r.IntN(2) == 0
		racks := 1 + r.IntN(5)
		if equal {
			s.brokers = racks * (1 + r.IntN(3))
			s.weights = false
		}
		in := s.input(r)
		for i := range in.Brokers {
			in.Brokers[i].Rack = fmt.Sprint("r", i%racks)
		}
		if r.IntN(2) == 0 { // racks appear under what stands
			plain := Input{slices.Clone(in.Brokers), in.Partitions}
			for i := range plain.Brokers {
				plain.Brokers[i].Rack = ""
			}
			in.Partitions = next(plain, mustMake(t, plain)).Partitions
		}
		plan := mustMake(t, in)
		verify(t, in, plan)
		outside := slices.ContainsFunc(plan.Loads, func(l Load) bool { return !l.Within() })
		if equal && outside {
			t.Errorf("%d racks of %d: %+v", racks, s.brokers/racks, plan.Loads)
		}
		if outside {
			noStepLeft(t, in, plan)
		}
	})
}

// noStepLeft tries every single move of a replica and finds none that racks allow and
// that brings a host nearer to its bounds.
func noStepLeft(t *testing.T, in Input, plan *Plan) {
	t.Helper()
	w := newWorld(in)
	beyond := func(l Load, load int) int { return max(0, load-l.Upper) + max(0, l.Lower-load) }
	for _, a := range plan.Assignments {
		for j, from := range a.Replicas {
			for _, to := range w.hosts {
				if slices.Contains(a.Replicas, to.ID) {
					continue
				}
				set := slices.Clone(a.Replicas)
				set[j] = to.ID
				f, o := plan.Loads[from-1], plan.Loads[to.ID-1]
				if !w.uneven(set) && beyond(f, f.After-1)+beyond(o, o.After+1) < beyond(f, f.After)+beyond(o, o.After) {
					t.Errorf("shard %d could go from %d to %d: %+v", a.Shard, from, to.ID, plan.Loads)
					return
				}
			}
		}
	}
}

// TestPropertyRolling lets brokers join, die, drain, return and be removed, and topics come and
// change, one after another.
func TestPropertyRolling(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		s := randomShape(r)
		s.brokers = 3 + r.IntN(5)
		in := s.input(r)
		in = converge(t, in, mustMake(t, in))
		nextID := uint64(s.brokers + 1)
		nextShard := uint64(s.parts + 1)
		for range 12 {
			switch b := &in.Brokers[r.IntN(len(in.Brokers))]; r.IntN(7) {
			case 0, 1:
				if len(in.Brokers) < 14 {
					in.Brokers = append(in.Brokers, s.broker(r, nextID))
					nextID++
				}
			case 2:
				b.State = Dead
			case 3:
				b.State = Draining
			case 4:
				b.State = Active
			case 5:
				if len(in.Brokers) > 3 && b.State == Draining {
					gone := b.ID
					in.Brokers = slices.DeleteFunc(in.Brokers, func(b Broker) bool { return b.ID == gone })
				}
			case 6:
				if in.Hosts() > 0 {
					in.Partitions = append(in.Partitions, Partition{Shard: nextShard, Factor: 1 + r.IntN(3)})
					nextShard++
				}
				in.Partitions[r.IntN(len(in.Partitions))].Factor = 1 + r.IntN(4)
			}
			in.Brokers = slices.Clone(in.Brokers)
			plan := mustMake(t, in)
			verify(t, in, plan)
			in = converge(t, in, plan)
		}
	})
}

// TestPropertyLeaders says that nobody leads more than the ceiling of its share where two replicas or more leave
// a choice, and that leaders move only for a reason.
func TestPropertyLeaders(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		s := randomShape(r)
		s.brokers, s.racks, s.mixed, s.weights = 3+r.IntN(8), 0, false, r.IntN(2) == 0
		s.factor = 2 + r.IntN(3)
		if s.weights { // else a light broker's share of leaders may exceed what it holds
			s.factor = 3
		}
		in := s.input(r)
		check := func(plan *Plan) {
			for _, l := range plan.Loads {
				if l.LedAfter > l.LeadUpper && !s.weights || l.LedAfter > l.LeadUpper && l.Share > float64(l.LeadUpper) && leadStep(in, plan, l.Broker) {
					t.Errorf("broker %d leads %d, at most %d: %+v", l.Broker, l.LedAfter, l.LeadUpper, plan.Loads)
				}
			}
		}
		plan := mustMake(t, in)
		verify(t, in, plan)
		check(plan)
		in = next(in, plan)
		in.Brokers = append(in.Brokers, s.broker(r, uint64(s.brokers+1)))
		plan = mustMake(t, in)
		verify(t, in, plan)
		check(plan)
	})
}

// leadStep says that a broker could hand a leadership to one with room.
func leadStep(in Input, plan *Plan, from uint64) bool {
	for _, a := range plan.Assignments {
		if a.Replicas[0] != from {
			continue
		}
		for _, to := range a.Replicas[1:] {
			if l := plan.Loads[to-1]; l.LedAfter < l.LeadUpper {
				return true
			}
		}
	}
	return false
}
