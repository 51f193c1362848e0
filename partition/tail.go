package partition

import (
	"sync/atomic"

	"github.com/parleymq/parley/partition/storage"
)

// TailBudget bounds the memory that the tails of one broker's partitions take
// together. The zero value has no limit.
type TailBudget struct {
	Limit int64
	used  atomic.Int64
}

func (b *TailBudget) add(n int64) {
	if b != nil {
		b.used.Add(n)
	}
}

func (b *TailBudget) over() bool {
	return b != nil && b.Limit > 0 && b.used.Load() > b.Limit
}

const (
	// maxTailBytes is how much of its newest records a partition keeps in memory.
	maxTailBytes = 4 << 20
	// minTailBytes is what it may keep when the broker's budget is exceeded.
	minTailBytes = 256 << 10
)

// tail holds the newest chunks. The caller guards it. What from returns is used
// after the guard was let go: so an element of chunks never changes once it is
// there, dropping only moves head, and what was dropped is given up by moving to
// a new array.
type tail struct {
	chunks  []storage.Chunk
	head    int
	bytes   int64
	dropped int64 // bytes that the array still holds before head
	budget  *TailBudget
}

func (t *tail) push(c storage.Chunk) {
	t.chunks = append(t.chunks, c)
	t.bytes += int64(len(c.Data))
	t.budget.add(int64(len(c.Data)))
	t.shrink(maxTailBytes)
	if t.budget.over() {
		t.shrink(minTailBytes)
	}
}

// shrink drops the oldest chunks until at most limit bytes, but always the
// newest chunk, are left.
func (t *tail) shrink(limit int64) {
	for t.bytes > limit && t.head < len(t.chunks)-1 {
		t.drop()
	}
	if t.dropped > limit/4 || t.head > 1024 && t.head*2 > len(t.chunks) {
		live := t.chunks[t.head:]
		t.chunks, t.head, t.dropped = append(make([]storage.Chunk, 0, 2*len(live)), live...), 0, 0
	}
}

func (t *tail) drop() {
	n := int64(len(t.chunks[t.head].Data))
	t.head++
	t.bytes -= n
	t.dropped += n
	t.budget.add(-n)
}

func (t *tail) clear() {
	for t.head < len(t.chunks) {
		t.drop()
	}
	t.chunks, t.head, t.dropped = nil, 0, 0
}

// from returns the chunks that hold offset and what follows, or nil when the
// tail starts after it.
func (t *tail) from(offset int64) []storage.Chunk {
	cs := t.chunks[t.head:]
	if len(cs) == 0 || offset < cs[0].Base {
		return nil
	}
	// Binary search: the first chunk whose Last is at or above offset.
	lo, hi := 0, len(cs)
	for lo < hi {
		if mid := (lo + hi) / 2; cs[mid].Last < offset {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return cs[lo:]
}
