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

// tail holds the newest chunks. The caller guards it; chunks' Data never
// changes once it is here, so readers may use it after they let go of the guard.
type tail struct {
	chunks []storage.Chunk
	head   int
	bytes  int64
	budget *TailBudget
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
	if t.head > 64 && t.head*2 > len(t.chunks) {
		n := copy(t.chunks, t.chunks[t.head:])
		clear(t.chunks[n:])
		t.chunks, t.head = t.chunks[:n], 0
	}
}

func (t *tail) drop() {
	n := int64(len(t.chunks[t.head].Data))
	t.chunks[t.head] = storage.Chunk{}
	t.head++
	t.bytes -= n
	t.budget.add(-n)
}

func (t *tail) clear() {
	for t.head < len(t.chunks) {
		t.drop()
	}
	t.chunks, t.head = nil, 0
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
