package placement

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestPropertyApportion compares with water poured by bisection.
func TestPropertyApportion(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		n := 1 + r.IntN(6)
		weights, least, most := make([]uint64, n), make([]uint64, n), make([]uint64, n)
		var lo, hi uint64
		for i := range n {
			weights[i] = 1 + r.Uint64N(300)
			least[i] = r.Uint64N(100)
			most[i] = least[i] + r.Uint64N(200)
			lo, hi = lo+least[i], hi+most[i]
		}
		total := lo + r.Uint64N(hi-lo+1)
		got := apportion(total, weights, least, most)
		at := func(rate float64, i int) float64 {
			return max(float64(least[i]), min(float64(most[i]), rate*float64(weights[i])))
		}
		low, high := 0.0, 1000.0
		for range 100 {
			mid, sum := (low+high)/2, 0.0
			for i := range n {
				sum += at(mid, i)
			}
			if sum < float64(total) {
				low = mid
			} else {
				high = mid
			}
		}
		for i := range n {
			if math.Abs(got[i].float()-at(high, i)) > 1e-6 {
				t.Errorf("%d by %v between %v and %v: rack %d gets %f, want %f", total, weights, least, most, i, got[i].float(), at(high, i))
			}
		}
	})
}

// TestPropertyLevels compares with dealing replicas one by one to the rack that has fewest.
func TestPropertyLevels(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		sizes := make([]int, 1+r.IntN(6))
		sum := 0
		for i := range sizes {
			sizes[i] = 1 + r.IntN(5)
			sum += sizes[i]
		}
		m := r.IntN(sum + 1)
		dealt := make([]int, len(sizes))
		for range m {
			to := -1
			for i := range dealt {
				if dealt[i] < sizes[i] && (to < 0 || dealt[i] < dealt[to]) {
					to = i
				}
			}
			dealt[to]++
		}
		least, most := levels(m, sizes)
		// Dealt in another order of the racks, others get what is left over.
		for i := range sizes {
			if dealt[i] < least[i] || dealt[i] > most[i] || most[i]-least[i] > 1 {
				t.Errorf("%d over %v: rack %d got %d, levels say %v to %v", m, sizes, i, dealt[i], least, most)
			}
		}
		open := 0
		for i := range sizes {
			open += most[i] - least[i]
		}
		if rest := m - total(least); rest < 0 || rest > open || rest == 0 && open > 0 || open > 0 && rest == open && slices.Max(most) > slices.Max(dealt) {
			t.Errorf("%d over %v: levels %v to %v", m, sizes, least, most)
		}
	})
}

func total(xs []int) int {
	n := 0
	for _, x := range xs {
		n += x
	}
	return n
}

// TestPropertyFill compares how holes are filled, before anything is balanced, with the
// rule: the first in the order of the ring that is under its bound.
func TestPropertyFill(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		s := randomShape(r)
		s.racks = 0
		in := s.input(r)
		p := newPlanner(in)
		p.settle()
		p.setBounds()
		if err := p.fill(); err != nil {
			t.Fatal(err)
		}
		ring := NewRing(in.Brokers)
		load := make(map[uint64]int)
		for i, part := range in.Partitions {
			order := ring.Order(part.Shard)
			var want []uint64
			for range min(part.Factor, s.brokers) {
				at := slices.IndexFunc(order, func(id uint64) bool {
					return !slices.Contains(want, id) && load[id] < p.upper[id-1]
				})
				if at < 0 {
					return // all are at their bounds: another rule
				}
				want = append(want, order[at])
				load[order[at]]++
			}
			for j, slot := range p.parts[i].slots {
				if slot.broker != want[j] {
					t.Errorf("shard %d is filled with %+v, want %v", part.Shard, p.parts[i].slots, want)
					return
				}
			}
		}
	})
}

// TestPreference says that the ring decides where bounds leave a choice: most replicas of a
// fresh plan are where the ring alone would put them, and a newcomer gets the
// partitions that prefer it.
func TestPreference(t *testing.T) {
	t.Parallel()
	in := Input{equalBrokers(10), newPartitions(figureP, figureR)}
	plan := mustMake(t, in)
	ring := NewRing(in.Brokers)
	first := 0
	for _, a := range plan.Assignments {
		for _, id := range ring.Order(a.Shard)[:figureR] {
			if slices.Contains(a.Replicas, id) {
				first++
			}
		}
	}
	if first*100 < 90*figureP*figureR {
		t.Errorf("%d of %d replicas are where the ring puts them", first, figureP*figureR)
	}
	in = next(in, plan)
	in.Brokers = equalBrokers(11)
	plan = mustMake(t, in)
	ring = NewRing(in.Brokers)
	near := 0
	for _, m := range plan.Moves {
		if slices.Index(ring.Order(m.Shard), m.To) < figureR {
			near++
		}
	}
	if near*100 < 80*len(plan.Moves) {
		t.Errorf("the newcomer is among the first %d of %d of the %d partitions it gets", figureR, near, len(plan.Moves))
	}
	t.Logf("%.1f %% of a fresh plan and %.1f %% of a join as the ring alone", float64(first*100)/(figureP*figureR), float64(near*100)/float64(len(plan.Moves)))
}
