package group

import "math/bits"

// table finds a small number by a large one: open addressing, each entry beside its neighbours, so that a look-up is
// mostly one cache line. It grows with what it holds and doesn't shrink. The zero value is empty.
type table struct {
	entries []tableEntry // a power of two
	count   int
	shift   uint8
}

type tableEntry struct {
	key   uint64
	value int32 // plus one; 0: empty
}

// leastTable is how many entries a table has at the least.
const leastTable = 64

// home is where an entry stands when nothing is in its way. Multiplying spreads keys that are close together.
func (t *table) home(key uint64) int { return int(key * 0x9E3779B97F4A7C15 >> t.shift) }

// get returns what stands at key, or none.
func (t *table) get(key uint64) int32 {
	if t.count == 0 {
		return none
	}
	for i := t.home(key); ; i = (i + 1) & (len(t.entries) - 1) {
		switch e := &t.entries[i]; {
		case e.value == 0:
			return none
		case e.key == key:
			return e.value - 1
		}
	}
}

// place returns where key stands, or where it is to be put. It makes room for one more.
func (t *table) place(key uint64) *tableEntry {
	if t.count >= len(t.entries)/4*3 {
		t.grow()
	}
	for i := t.home(key); ; i = (i + 1) & (len(t.entries) - 1) {
		if e := &t.entries[i]; e.value == 0 || e.key == key {
			return e
		}
	}
}

// put fills an empty place.
func (t *table) put(e *tableEntry, key uint64, value int32) {
	e.key, e.value = key, value+1
	t.count++
}

func (t *table) grow() {
	old := t.entries
	n := max(2*len(old), leastTable)
	t.entries, t.shift = make([]tableEntry, n), uint8(64-bits.TrailingZeros(uint(n)))
	for _, e := range old {
		if e.value != 0 {
			*t.place(e.key) = e
		}
	}
}

// remove takes key out and moves up those that stood beyond it because it was in their way.
func (t *table) remove(key uint64) {
	if t.count == 0 {
		return
	}
	mask := len(t.entries) - 1
	hole := t.home(key)
	for t.entries[hole].key != key || t.entries[hole].value == 0 {
		if t.entries[hole].value == 0 {
			return
		}
		hole = (hole + 1) & mask
	}
	t.count--
	for i := (hole + 1) & mask; t.entries[i].value != 0; i = (i + 1) & mask {
		if (i-t.home(t.entries[i].key))&mask >= (i-hole)&mask {
			t.entries[hole] = t.entries[i]
			hole = i
		}
	}
	t.entries[hole] = tableEntry{}
}
