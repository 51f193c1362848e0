package partition

import (
	"sync"

	"github.com/parleymq/parley/partition/record"
)

const (
	// maxShelfBytes is how much of what was read and checked a partition keeps for groups: what lies between the oldest record
	// that a key-ordered group has in hand and the newest it has looked at, where records aren't large. When the broker's
	// budget is exceeded it keeps nothing new.
	maxShelfBytes = 8 << 20
	// shelfBlock is about how much is kept, and given up, at a time.
	shelfBlock = 256 << 10
	// shelfLeast is how large a batch is of which it is worth while, when only a few of its records were wanted.
	shelfLeast = 16 << 10
)

// shelf holds batches that were read from the store and checked, so that the look at their keys and each member of a key-ordered
// group, who all want a few records of the same batches, don't read and check them again. What it hands out stays as it is: a block
// only grows, and is given up as a whole.
type shelf struct {
	budget *TailBudget

	mu     sync.Mutex
	blocks []shelved // guarded by mu; oldest first
	bytes  int64     // guarded by mu; room of the blocks
	gen    uint64    // guarded by mu; how often it was cleared
	closed bool      // guarded by mu
}

// shelved is batches that adjoin.
type shelved struct {
	base, next int64
	data       []byte
}

// from returns whole batches from one at or before offset on, or nil.
func (s *shelf) from(offset int64) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.blocks) - 1; i >= 0; i-- {
		if b := &s.blocks[i]; b.base <= offset && offset < b.next {
			return b.data
		}
	}
	return nil
}

// walk visits what there is from *next on and below end, as long as visit, which moves *next, returns true. It tells whether there may
// be more, from *next on.
func (s *shelf) walk(next *int64, end int64, visit func(data []byte, fresh bool) bool) bool {
	for *next < end {
		data := s.from(*next)
		if data == nil {
			return true
		}
		if !visit(data, false) {
			return false
		}
	}
	return false
}

// generation is what put must be told, asked for before the store is read.
func (s *shelf) generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gen
}

// put copies a batch that was read in that generation, and checked.
func (s *shelf) put(b record.Batch, generation uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.gen != generation {
		return
	}
	base := b.BaseOffset()
	for i := range s.blocks {
		if x := &s.blocks[i]; x.base <= base && base < x.next {
			return
		}
	}
	size := max(int64(len(b)), shelfBlock)
	if size > maxShelfBytes/4 {
		return
	}
	last := len(s.blocks) - 1
	if last < 0 || s.blocks[last].next != base || cap(s.blocks[last].data)-len(s.blocks[last].data) < len(b) {
		for s.bytes+size > maxShelfBytes {
			s.drop()
		}
		if s.budget.over() {
			return
		}
		s.blocks = append(s.blocks, shelved{base: base, data: make([]byte, 0, size)})
		s.bytes += size
		s.budget.add(size)
		last = len(s.blocks) - 1
	}
	x := &s.blocks[last]
	x.data, x.next = append(x.data, b...), b.LastOffset()+1
}

// putAll checks and puts what follows in a chunk up to next, where one reader had enough: another one, or the same, would read
// all of the chunk again for it. What is bad is met by who wants it.
func (s *shelf) putAll(chunk []byte, next int64, generation uint64) {
	for len(chunk) > 0 {
		b, rest, err := record.Split(chunk)
		if err != nil || b.BaseOffset() != next || b.VerifyCRC() != nil {
			return
		}
		s.put(b, generation)
		chunk, next = rest, b.LastOffset()+1
	}
}

// drop gives up the oldest block. mu is held.
func (s *shelf) drop() {
	size := int64(cap(s.blocks[0].data))
	s.bytes -= size
	s.budget.add(-size)
	n := copy(s.blocks, s.blocks[1:])
	s.blocks[n] = shelved{}
	s.blocks = s.blocks[:n]
}

// clear gives up everything: the memory isn't needed, or the store becomes another one.
func (s *shelf) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty()
}

// close is clear for good.
func (s *shelf) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty()
	s.closed = true
}

func (s *shelf) empty() {
	s.gen++
	for len(s.blocks) > 0 {
		s.drop()
	}
	s.blocks = nil
}
