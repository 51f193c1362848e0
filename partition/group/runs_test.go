package group

import (
	"math/rand/v2"
	"testing"
)

// Against a map: whatever is set and cleared, runs hold the same, in order and as few as can be.
func TestRunsAgainstAMap(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 7))
		var r runs[int]
		want := map[int64]int{}
		const span = 3000
		for step := range 3000 {
			first := rng.Int64N(span)
			last := first + rng.Int64N(1+int64([]int{1, 3, 40}[rng.IntN(3)]))
			if rng.IntN(3) == 0 {
				r.clear(first, last)
				for o := first; o <= last; o++ {
					delete(want, o)
				}
			} else {
				v := rng.IntN(3)
				r.set(first, last, v)
				for o := first; o <= last; o++ {
					want[o] = v
				}
			}
			if step%100 != 99 {
				continue
			}
			n, covered := 0, int64(0)
			prev := runOf[int]{first: -2, last: -2}
			r.all(func(x runOf[int]) bool {
				n++
				covered += x.last - x.first + 1
				if x.first <= prev.last || x.last < x.first || x.first == prev.last+1 && x.v == prev.v {
					t.Fatalf("seed %d step %d: run %+v after %+v", seed, step, x, prev)
				}
				for o := x.first; o <= x.last; o++ {
					if v, ok := want[o]; !ok || v != x.v {
						t.Fatalf("seed %d step %d: offset %d is %d, want %d %v", seed, step, o, x.v, v, ok)
					}
				}
				prev = x
				return true
			})
			if n != r.count || covered != r.covered || covered != int64(len(want)) {
				t.Fatalf("seed %d step %d: %d runs (says %d), %d offsets (says %d), want %d", seed, step, n, r.count, covered, r.covered, len(want))
			}
			for range 50 {
				o := rng.Int64N(span)
				v, ok := r.get(o)
				if w, wok := want[o]; v != w || ok != wok {
					t.Fatalf("seed %d: get %d: %d %v, want %d %v", seed, o, v, ok, w, wok)
				}
			}
		}
	}
}
