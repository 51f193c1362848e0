package group

// run is a stretch of offsets that have the same value.
type runOf[V comparable] struct {
	first, last int64
	v           V
}

// blockRuns is how many runs stand in one block: few enough that moving them is
// cheap, many enough that blocks are found by a short search.
const blockRuns = 128

// runs maps offsets to values, stored as runs in order. Neighbours with equal values are one run: what
// a thousand records have in common costs as much as one. Runs stand in blocks, as in the
// lowest two levels of a B-tree, so that a change in the middle of many moves few.
// The zero value is empty.
type runs[V comparable] struct {
	blocks  [][]runOf[V] // none is empty
	spare   [][]runOf[V]
	count   int   // runs
	covered int64 // offsets
}

// place returns where the first run with last >= off is: block and index. Beyond the end,
// the block is len(blocks).
func (r *runs[V]) place(off int64) (b, i int) {
	lo, hi := 0, len(r.blocks)
	for lo < hi {
		mid := (lo + hi) / 2
		if blk := r.blocks[mid]; blk[len(blk)-1].last < off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(r.blocks) {
		return lo, 0
	}
	blk := r.blocks[lo]
	from, to := 0, len(blk)
	for from < to {
		mid := (from + to) / 2
		if blk[mid].last < off {
			from = mid + 1
		} else {
			to = mid
		}
	}
	return lo, from
}

// get returns the value at off.
func (r *runs[V]) get(off int64) (v V, ok bool) {
	if b, i := r.place(off); b < len(r.blocks) && r.blocks[b][i].first <= off {
		return r.blocks[b][i].v, true
	}
	return v, false
}

// next returns the first run that ends at or above off, whole.
func (r *runs[V]) next(off int64) (runOf[V], bool) {
	if b, i := r.place(off); b < len(r.blocks) {
		return r.blocks[b][i], true
	}
	return runOf[V]{}, false
}

// all visits the runs in order until visit returns false. visit must not change r.
func (r *runs[V]) all(visit func(runOf[V]) bool) {
	for _, blk := range r.blocks {
		for i := range blk {
			if !visit(blk[i]) {
				return
			}
		}
	}
}

// set gives first..last the value v, whatever was there.
func (r *runs[V]) set(first, last int64, v V) {
	if r.append(first, last, v) {
		return
	}
	r.clear(first, last)
	r.covered += last - first + 1
	b, i := r.place(first)
	// Grow a neighbour where its value is the same.
	before, after := r.before(b, i), b < len(r.blocks) && r.blocks[b][i].first == last+1 && r.blocks[b][i].v == v
	if before != nil && before.last+1 == first && before.v == v {
		before.last = last
		if after {
			before.last = r.blocks[b][i].last
			r.remove(b, i)
		}
		return
	}
	if after {
		r.blocks[b][i].first = first
		return
	}
	r.insert(b, i, runOf[V]{first, last, v})
}

// append is set where nothing is known from first on, as it mostly is.
func (r *runs[V]) append(first, last int64, v V) bool {
	b := len(r.blocks) - 1
	if b < 0 {
		return false
	}
	blk := r.blocks[b]
	x := &blk[len(blk)-1]
	if x.last >= first {
		return false
	}
	r.covered += last - first + 1
	if x.last+1 == first && x.v == v {
		x.last = last
	} else {
		r.insert(b+1, 0, runOf[V]{first, last, v})
	}
	return true
}

func (r *runs[V]) before(b, i int) *runOf[V] {
	switch {
	case i > 0:
		return &r.blocks[b][i-1]
	case b > 0:
		blk := r.blocks[b-1]
		return &blk[len(blk)-1]
	}
	return nil
}

// clear forgets first..last.
func (r *runs[V]) clear(first, last int64) {
	b, i := r.place(first)
	for b < len(r.blocks) {
		x := &r.blocks[b][i]
		switch {
		case x.first > last:
			return
		case x.first < first && x.last > last: // a hole in the middle
			rest := runOf[V]{last + 1, x.last, x.v}
			x.last = first - 1
			r.covered -= last - first + 1
			r.insert(b, i+1, rest)
			return
		case x.first < first:
			r.covered -= x.last - first + 1
			x.last = first - 1
			i++
		case x.last > last:
			r.covered -= last - x.first + 1
			x.first = last + 1
			return
		default:
			r.covered -= x.last - x.first + 1
			if r.remove(b, i) {
				i = 0 // the block went, the next one took its place
				continue
			}
		}
		if i >= len(r.blocks[b]) {
			b, i = b+1, 0
		}
	}
}

// remove takes one run out and says whether its block went with it.
func (r *runs[V]) remove(b, i int) bool {
	r.count--
	blk := r.blocks[b]
	if len(blk) > 1 {
		r.blocks[b] = append(blk[:i], blk[i+1:]...)
		return false
	}
	if len(r.spare) < 4 {
		r.spare = append(r.spare, blk[:0])
	}
	r.blocks = append(r.blocks[:b], r.blocks[b+1:]...)
	return true
}

func (r *runs[V]) insert(b, i int, x runOf[V]) {
	r.count++
	if b == len(r.blocks) {
		if b > 0 && len(r.blocks[b-1]) < blockRuns {
			r.blocks[b-1] = append(r.blocks[b-1], x)
			return
		}
		r.blocks = append(r.blocks, append(r.block(), x))
		return
	}
	blk := r.blocks[b]
	if len(blk) == blockRuns {
		half := append(r.block(), blk[blockRuns/2:]...)
		r.blocks[b] = blk[:blockRuns/2]
		r.blocks = append(r.blocks, nil)
		copy(r.blocks[b+2:], r.blocks[b+1:])
		r.blocks[b+1] = half
		if i > blockRuns/2 {
			b, i = b+1, i-blockRuns/2
		}
		blk = r.blocks[b]
	}
	blk = append(blk, x)
	copy(blk[i+1:], blk[i:])
	blk[i] = x
	r.blocks[b] = blk
}

func (r *runs[V]) block() []runOf[V] {
	if n := len(r.spare); n > 0 {
		blk := r.spare[n-1]
		r.spare = r.spare[:n-1]
		return blk
	}
	return make([]runOf[V], 0, blockRuns)
}
