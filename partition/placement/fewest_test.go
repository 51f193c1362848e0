package placement

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// smallChange places a few partitions on three or four brokers, lets one join or drain, and
// plans again.
func smallChange(t *testing.T, seed uint64) (Input, *Plan) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	in := Input{equalBrokers(3 + r.IntN(2)), newPartitions(1+r.IntN(6), 1+r.IntN(2))}
	if r.IntN(2) == 0 {
		for i := range in.Brokers {
			in.Brokers[i].Weight = uint32(50 + r.IntN(100))
		}
	}
	in = next(in, mustMake(t, in))
	in.Brokers = slices.Clone(in.Brokers)
	if r.IntN(2) == 0 {
		in.Brokers = append(in.Brokers, Broker{ID: uint64(len(in.Brokers) + 1), Weight: 100})
	} else {
		in.Brokers[r.IntN(len(in.Brokers))].State = Draining
	}
	plan := mustMake(t, in)
	verify(t, in, plan)
	return in, plan
}

// fewestMoves tries every assignment of every partition.
func fewestMoves(in Input, bounds []Load) (int, bool) {
	w := newWorld(in)
	load := map[uint64]int{}
	best, found := 0, false
	var place func(i, moves int)
	place = func(i, moves int) {
		if found && moves >= best {
			return
		}
		if i == len(in.Partitions) {
			for _, l := range bounds {
				if load[l.Broker] < l.Lower || load[l.Broker] > l.Upper {
					return
				}
			}
			best, found = moves, true
			return
		}
		p := in.Partitions[i]
		for set := range 1 << len(w.hosts) {
			size, newcomers := 0, 0
			for h, b := range w.hosts {
				if set&(1<<h) != 0 {
					size++
					if !slices.Contains(p.Replicas, b.ID) {
						newcomers++
					}
				}
			}
			if size != min(p.Factor, len(w.hosts)) {
				continue
			}
			add := func(n int) {
				for h, b := range w.hosts {
					if set&(1<<h) != 0 {
						load[b.ID] += n
					}
				}
			}
			add(1)
			place(i+1, moves+newcomers)
			add(-1)
		}
	}
	place(0, 0)
	return best, found
}

// TestMovesBeyondWhatLeft counts, over fixed seeds, what a drain and a join move beyond the
// replicas that must leave: those that move anyway are used to level the others.
func TestMovesBeyondWhatLeft(t *testing.T) {
	t.Parallel()
	forced, moved := 0, 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		s := randomShape(r)
		s.brokers, s.parts = 4+r.IntN(20), 50+r.IntN(200)
		in := s.input(r)
		in = next(in, mustMake(t, in))
		gone := r.IntN(s.brokers)
		in.Brokers[gone].State = Draining
		forced += in.count(in.Brokers[gone].ID)
		if r.IntN(2) == 0 {
			in.Brokers = append(in.Brokers, s.broker(r, 999))
		}
		plan := mustMake(t, in)
		verify(t, in, plan)
		moved += len(plan.Moves)
	}
	t.Logf("%d moves for %d replicas that had to leave", moved, forced)
	if limit := 1.05; float64(moved) > limit*float64(forced) {
		t.Errorf("%d moves for %d replicas that had to leave, allowed are %.2f times as many", moved, forced, limit)
	}
}
