package group

import (
	"math/rand/v2"
	"testing"
)

// TestTableAgainstMap: whatever comes and goes, a table has what a map has; keys are dense, so that many meet.
func TestTableAgainstMap(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	var tab table
	want := map[uint64]int32{}
	for step := range 50_000 {
		key := rng.Uint64N(300) << (rng.UintN(2) * 55)
		if rng.IntN(2) == 0 {
			if e := tab.place(key); e.value == 0 {
				tab.put(e, key, int32(step))
				want[key] = int32(step)
			}
		} else {
			tab.remove(key)
			delete(want, key)
		}
		probe := rng.Uint64N(300) << (rng.UintN(2) * 55)
		v, ok := want[probe]
		if !ok {
			v = none
		}
		if got := tab.get(probe); got != v || tab.count != len(want) {
			t.Fatalf("seed %d, step %d: key %d is %d, want %d; %d entries, want %d", seed, step, probe, got, v, tab.count, len(want))
		}
	}
}

// TestKeyRecsAgainstMap: records are found by offset as long as they are there, and pages are used again.
func TestKeyRecsAgainstMap(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 2))
	k := newKeyRecs()
	want := map[int64]int32{}
	for step := range 50_000 {
		base := int64(step / 100) // they move on
		off := base + rng.Int64N(500)
		i := k.find(off)
		if key, ok := want[off]; ok != (i != none) || ok && (k.recs[i].key != key || k.offset(i) != off) {
			t.Fatalf("seed %d, step %d: offset %d is at %d, key %d", seed, step, off, i, key)
		}
		switch {
		case i == none && rng.IntN(2) == 0:
			k.add(off, int32(step))
			want[off] = int32(step)
		case i != none && rng.IntN(2) == 0:
			k.remove(i)
			delete(want, off)
		}
		if step%100 == 0 { // what falls behind goes
			for off := range want {
				if off < base+50 && rng.IntN(2) == 0 {
					k.remove(k.find(off))
					delete(want, off)
				}
			}
		}
		if k.live != len(want) {
			t.Fatalf("seed %d, step %d: %d records, want %d", seed, step, k.live, len(want))
		}
	}
	if len(k.pages) > 200 {
		t.Fatalf("seed %d: %d pages for %d records", seed, len(k.pages), len(want))
	}
}
