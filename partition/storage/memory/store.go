package memory

import (
	"bytes"
	"fmt"
	"sort"
	"sync"

	"github.com/parleymq/parley/partition/storage"
)

// log is one log of an open engine.
type log struct {
	engine *Engine
	id     storage.LogID

	mu sync.RWMutex
	content
	next  int64
	floor int64 // what lies wholly below it is not the log's any more
	open  *store
}

// store is an opened log.
type store struct {
	log    *log
	closed bool // guarded by log.mu
	reach  uint64
	// mending: mended and not settled. Guarded by log.mu.
	mending bool
}

// shown is how many chunks aren't hidden above next.
func (l *log) shown() int {
	return sort.Search(len(l.chunks), func(i int) bool { return l.chunks[i].Last >= l.next })
}

// size is what chunks that are shown take.
func (l *log) size() (n int64) {
	for _, c := range l.chunks[:l.shown()] {
		n += int64(len(c.Data) + len(c.Meta))
	}
	return n
}

func (s *store) Append(chunks []storage.Chunk, index []storage.IndexEntry) error {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("append to log %s: %w", l.id, storage.ErrClosed)
	case s.mending:
		return fmt.Errorf("append to log %s: %w", l.id, storage.ErrUnsettled)
	}
	if err := storage.CheckAppend(l.id, l.next, chunks, index); err != nil {
		return err
	}
	if n := l.shown(); len(chunks) > 0 && n < len(l.chunks) {
		l.chunks = l.chunks[:n:n] // hidden ones go
	}
	for _, c := range chunks {
		c.Data = bytes.Clone(c.Data)
		c.Meta = bytes.Clone(c.Meta)
		l.chunks = append(l.chunks, c)
		l.bytes += int64(len(c.Data) + len(c.Meta))
		l.next = c.Last + 1
	}
	for _, e := range index {
		l.put(string(e.Key), e.Value)
	}
	return nil
}

func (c *content) put(key string, value []byte) {
	i := c.seek(key)
	found := i < len(c.index) && c.index[i].key == key
	switch {
	case value == nil && found:
		c.index = append(c.index[:i], c.index[i+1:]...)
	case value == nil:
	case found:
		c.index[i].value = bytes.Clone(value)
	default:
		c.index = append(c.index, pair{})
		copy(c.index[i+1:], c.index[i:])
		c.index[i] = pair{key, append([]byte{}, value...)}
	}
}

// seek returns where the first pair at or above key is.
func (c *content) seek(key string) int {
	return sort.Search(len(c.index), func(i int) bool { return c.index[i].key >= key })
}

func (s *store) Read(offset int64, visit func(storage.Chunk) bool) error {
	l := s.log
	l.mu.RLock()
	if s.closed {
		l.mu.RUnlock()
		return fmt.Errorf("read log %s at %d: %w", l.id, offset, storage.ErrClosed)
	}
	// Chunks are immutable and the array is only ever appended to or replaced, so
	// the slice is a snapshot.
	chunks := l.chunks[:l.shown()]
	offset = max(offset, l.floor)
	l.mu.RUnlock()
	from := sort.Search(len(chunks), func(i int) bool { return chunks[i].Last >= offset })
	for _, c := range chunks[from:] {
		if !visit(c) {
			return nil
		}
	}
	return nil
}

func (s *store) Next() int64 {
	s.log.mu.RLock()
	defer s.log.mu.RUnlock()
	return s.log.next
}

func (s *store) Reach() uint64 { return s.reach }

func (s *store) Bytes() int64 {
	s.log.mu.RLock()
	defer s.log.mu.RUnlock()
	return s.log.bytes
}

func (s *store) Seek(key, upTo []byte) (k, v []byte, ok bool, err error) {
	l := s.log
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s.closed {
		return nil, nil, false, fmt.Errorf("seek in log %s: %w", l.id, storage.ErrClosed)
	}
	i := l.seek(string(key))
	if i == len(l.index) || upTo != nil && l.index[i].key >= string(upTo) {
		return nil, nil, false, nil
	}
	return []byte(l.index[i].key), append([]byte{}, l.index[i].value...), true, nil
}

func (s *store) SeekBack(key []byte) (k, v []byte, ok bool, err error) {
	l := s.log
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s.closed {
		return nil, nil, false, fmt.Errorf("seek in log %s: %w", l.id, storage.ErrClosed)
	}
	i := sort.Search(len(l.index), func(i int) bool { return l.index[i].key > string(key) }) - 1
	if i < 0 {
		return nil, nil, false, nil
	}
	return []byte(l.index[i].key), append([]byte{}, l.index[i].value...), true, nil
}

func (s *store) Trim(start int64, indexBelow []byte) error {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.closed {
		return fmt.Errorf("trim log %s: %w", l.id, storage.ErrClosed)
	}
	l.floor = max(l.floor, min(start, l.next))
	n := 0
	for n < len(l.chunks) && l.chunks[n].Last < start {
		l.bytes -= int64(len(l.chunks[n].Data) + len(l.chunks[n].Meta))
		n++
	}
	if n > 0 {
		l.chunks = append([]storage.Chunk(nil), l.chunks[n:]...)
	}
	if i := l.seek(string(indexBelow)); i > 0 {
		l.index = append([]pair(nil), l.index[i:]...)
	}
	return nil
}

func (s *store) Reset(next int64) error {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.closed {
		return fmt.Errorf("reset log %s: %w", l.id, storage.ErrClosed)
	}
	l.content = content{}
	l.next, l.floor = next, next
	return nil
}

func (s *store) Close() error {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.closed {
		s.closed = true
		l.open = nil
	}
	return nil
}
