package badger

import (
	"fmt"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

// Survey implements storage.Store. It goes by keys, whatever next and floor say.
func (s *store) Survey(from, to int64, visit func(storage.Chunk) bool) error {
	if err := s.enter("survey"); err != nil {
		return err
	}
	defer s.leave()
	return s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.chunks, false)
		defer it.Close()
		var seek [chunkKey]byte
		for it.Seek(appendChunkKey(seek[:0], s.id, max(from, 0), 0)); it.Valid(); it.Next() {
			item := it.Item()
			var c storage.Chunk
			var err error
			if c.Last, c.Base, err = parseChunkKey(item.Key()); err != nil {
				continue
			}
			if c.Base >= to {
				return nil
			}
			more := true
			// An error is a chunk that can't be read: it isn't there, as far as a survey goes.
			_ = item.Value(func(v []byte) error {
				if err := parseValue(&c, item.Key(), v); err != nil {
					return err
				}
				more = visiting(visit, c)
				return nil
			})
			if !more {
				return nil
			}
		}
		return nil
	})
}

// Mend implements storage.Store.
func (s *store) Mend(chunks []storage.Chunk, index []storage.IndexEntry) error {
	if err := s.enter("mend"); err != nil {
		return err
	}
	defer s.leave()
	if s.failed != nil {
		return s.failed
	}
	if !s.mending {
		s.resets.Add(1) // readers under way end without a complaint
	}
	s.mending = true
	s.below = nil // index pairs may come below what was trimmed
	if len(chunks) > 0 {
		if err := storage.CheckAppend(s.id, chunks[0].Base, chunks, index); err != nil {
			return err
		}
		if err := s.replaced(chunks); err != nil {
			return fmt.Errorf("mend log %s at offset %d: %w", s.id, chunks[0].Base, err)
		}
		s.trimmed = min(s.trimmed, chunks[0].Base)
	}
	buf := s.e.buffers.Get().(*txnBuffer)
	err := s.appendAll(buf, chunks, index)
	if cap(buf.values) <= keepBuffer {
		s.e.buffers.Put(buf)
	}
	if err == nil {
		size := int64(0)
		for i := range chunks {
			size += int64(len(chunks[i].Meta) + len(chunks[i].Data))
		}
		err = s.e.copied(size)
	}
	if err != nil {
		return fmt.Errorf("mend log %s: %w", s.id, err)
	}
	return nil
}

// replaced deletes what overlaps the chunks, but for those with the same key, which are
// written over.
func (s *store) replaced(chunks []storage.Chunk) error {
	first, last := chunks[0].Base, chunks[len(chunks)-1].Last
	same := make(map[[2]int64]bool, len(chunks))
	for i := range chunks {
		same[[2]int64{chunks[i].Last, chunks[i].Base}] = true
	}
	var gone [][]byte
	err := s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.chunks, false)
		defer it.Close()
		var seek [chunkKey]byte
		for it.Seek(appendChunkKey(seek[:0], s.id, first, 0)); it.Valid(); it.Next() {
			l, base, err := parseChunkKey(it.Item().Key())
			if err == nil && base > last {
				return nil
			}
			if !same[[2]int64{l, base}] {
				gone = append(gone, it.Item().KeyCopy(nil))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.e.delete(gone)
}

// Settle implements storage.Store.
func (s *store) Settle(m storage.Mark) error {
	if err := s.enter("settle"); err != nil {
		return err
	}
	defer s.leave()
	if s.failed != nil {
		return s.failed
	}
	if m.Start < 0 || m.Next < m.Start {
		return fmt.Errorf("settle log %s: mark from %d to %d makes no sense", s.id, m.Start, m.Next)
	}
	holes, size := s.holes.Swap(false), s.bytes.Load()
	stale, above, err := s.verify(m)
	if err == nil {
		err = s.e.delete(append(stale, above...))
	}
	if err != nil {
		s.holes.Store(holes)
		s.bytes.Store(size)
		return fmt.Errorf("settle log %s: %w", s.id, err)
	}
	s.resets.Add(1) // readers under way end without a complaint
	s.floor.Store(m.Start)
	s.next.Store(m.Next)
	s.above, s.mending = nil, false
	return nil
}
