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
