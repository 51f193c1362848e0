package badger

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

// store is one open log. It implements storage.Store.
type store struct {
	e      *Engine
	id     storage.LogID
	chunks []byte // prefix of its chunks' keys
	index  []byte // prefix of its index pairs' keys

	// use is held in shared mode by whoever calls into Badger, exclusively by Close.
	use    sync.RWMutex
	closed bool

	next  atomic.Int64
	bytes atomic.Int64

	// Append's and Trim's caller only.
	trimmed int64  // chunks below it are deleted already
	below   []byte // index pairs below it are deleted already
	value   []byte // buffer for one transaction's values
	keys    []byte
}

// Open implements storage.Engine.
func (e *Engine) Open(id storage.LogID, m storage.Mark) (storage.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("open log %s: %w", id, storage.ErrClosed)
	}
	if e.open[id] != nil {
		return nil, fmt.Errorf("open log %s: %w: it is open already", id, storage.ErrInUse)
	}
	p := appendPrefix(nil, id)
	s := &store{
		e: e, id: id,
		chunks: append(bytes.Clone(p), chunkKind), index: append(bytes.Clone(p), indexKind),
	}
	above, err := s.recover(m)
	if err != nil {
		return nil, err
	}
	// What was written after the mark may be there in part. It goes before
	// anything new can come, or an old chunk might be taken for a new one.
	if err := s.delete(above); err != nil {
		return nil, fmt.Errorf("open log %s: drop what lies above offset %d: %w", id, m.Next, err)
	}
	s.next.Store(m.Next)
	e.open[id] = s
	return s, nil
}

// recover checks by keys alone that chunks adjoin from m.Start to m.Next, counts bytes
// and returns the keys of what lies above.
func (s *store) recover(m storage.Mark) (above [][]byte, err error) {
	err = s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.chunks, false)
		defer it.Close()
		want, size := m.Start, int64(0)
		for it.Seek(s.chunks); it.Valid(); it.Next() {
			item := it.Item()
			last, base, err := parseChunkKey(item.Key())
			if err != nil {
				return fmt.Errorf("open log %s: %w", s.id, err)
			}
			if last >= m.Next {
				above = append(above, item.KeyCopy(nil))
				continue
			}
			size += item.ValueSize() - valueHead
			if last < m.Start {
				continue // trimmed; it may still be here, or be here again
			}
			if base > want && !m.AllowHoles {
				return &storage.HoleError{Log: s.id, From: want, To: base}
			}
			if base < want && want > m.Start {
				return fmt.Errorf("open log %s: %w: chunk of offsets %d to %d overlaps the one before it", s.id, storage.ErrCorrupt, base, last)
			}
			want = last + 1
		}
		if want < m.Next && !m.AllowHoles {
			return &storage.HoleError{Log: s.id, From: want, To: m.Next}
		}
		s.bytes.Store(size)
		return nil
	})
	return above, err
}

// enter is called before each use of Badger, leave after it.
func (s *store) enter(what string) error {
	s.use.RLock()
	if s.closed {
		s.use.RUnlock()
		return fmt.Errorf("%s log %s: %w", what, s.id, storage.ErrClosed)
	}
	return nil
}

func (s *store) leave() { s.use.RUnlock() }

// Append implements storage.Store. It takes one transaction, unless chunks and
// index together exceed what Badger takes in one: then the index pairs come with
// the last one. Readers see the chunks of either as soon as they are stored, in order.
func (s *store) Append(chunks []storage.Chunk, index []storage.IndexEntry) error {
	if err := s.enter("append to"); err != nil {
		return err
	}
	defer s.leave()
	if err := storage.CheckAppend(s.id, s.next.Load(), chunks, index); err != nil {
		return err
	}
	s.e.dirty.Store(true)
	for first := true; first || len(chunks) > 0; first = false {
		n, weight := 0, len(index)*(storage.MaxIndexKeyBytes+storage.MaxIndexValueBytes)
		size := 0
		for n < len(chunks) && n < txnEntries {
			c := &chunks[n]
			all := valueHead + len(c.Meta) + len(c.Data)
			w := chunkKey + 32
			if all < valueThreshold {
				w += all
			}
			if n > 0 && (weight+w > txnBytes || size+all > vlogFileBytes/4) {
				break
			}
			weight, size, n = weight+w, size+all, n+1
		}
		var idx []storage.IndexEntry
		if n == len(chunks) {
			idx = index
		}
		if err := s.commit(chunks[:n], idx, size); err != nil {
			return fmt.Errorf("append to log %s at offset %d: %w", s.id, s.next.Load(), err)
		}
		chunks = chunks[n:]
	}
	return nil
}

func (s *store) commit(chunks []storage.Chunk, index []storage.IndexEntry, size int) error {
	// Badger has copied keys and values by the time a commit returns, so the
	// buffers are used again. They must not grow in between.
	if cap(s.value) < size {
		s.value = make([]byte, 0, size)
	}
	keys := len(chunks) * chunkKey
	for i := range index {
		keys += len(s.index) + len(index[i].Key)
	}
	if cap(s.keys) < keys {
		s.keys = make([]byte, 0, keys)
	}
	v, k := s.value[:0], s.keys[:0]
	s.e.writes.RLock()
	defer s.e.writes.RUnlock()
	txn := s.e.db.NewTransaction(true)
	defer txn.Discard()
	added := int64(0)
	for i := range chunks {
		c := &chunks[i]
		at, from := len(k), len(v)
		k = appendChunkKey(k, s.id, c.Last, c.Base)
		v = appendValue(v, k[at:], c)
		if err := txn.Set(k[at:len(k):len(k)], v[from:len(v):len(v)]); err != nil {
			return err
		}
		added += int64(len(c.Meta) + len(c.Data))
	}
	for i := range index {
		at := len(k)
		k = append(append(k, s.index...), index[i].Key...)
		var err error
		if index[i].Value == nil {
			err = txn.Delete(k[at:len(k):len(k)])
		} else {
			err = txn.Set(k[at:len(k):len(k)], index[i].Value)
		}
		if err != nil {
			return err
		}
	}
	if err := txn.Commit(); err != nil {
		return err
	}
	if len(chunks) > 0 {
		s.next.Store(chunks[len(chunks)-1].Last + 1)
	}
	s.bytes.Add(added)
	if cap(s.value) > keepBuffer {
		s.value = nil
	}
	return nil
}

// keepBuffer is how large a buffer a log keeps between appends.
const keepBuffer = 2 << 20

// Read implements storage.Store.
func (s *store) Read(offset int64, visit func(storage.Chunk) bool) error {
	if err := s.enter("read"); err != nil {
		return err
	}
	defer s.leave()
	return s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.chunks, false)
		defer it.Close()
		var c storage.Chunk
		for it.Seek(appendChunkKey(make([]byte, 0, chunkKey), s.id, max(offset, 0), 0)); it.Valid(); it.Next() {
			item := it.Item()
			var err error
			if c.Last, c.Base, err = parseChunkKey(item.Key()); err != nil {
				return fmt.Errorf("read log %s: %w", s.id, err)
			}
			more := false
			var bad error
			err = item.Value(func(v []byte) error {
				if bad = parseValue(&c, item.Key(), v); bad == nil {
					more = visit(c)
				}
				return nil
			})
			if err != nil {
				// Badger found its own pointer to lead nowhere.
				err = fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
			}
			if err = errors.Join(err, bad); err != nil {
				return fmt.Errorf("read log %s: offsets %d to %d: %w", s.id, c.Base, c.Last, err)
			}
			if !more {
				return nil
			}
		}
		return nil
	})
}

// Next implements storage.Store.
func (s *store) Next() int64 { return s.next.Load() }

// Bytes implements storage.Store. After a restart it is off by a few bytes a
// chunk, because it is counted from keys alone.
func (s *store) Bytes() int64 { return max(s.bytes.Load(), 0) }

// Seek implements storage.Store.
func (s *store) Seek(key, upTo []byte) (k, v []byte, ok bool, err error) {
	return s.seek(key, func(k []byte) bool { return upTo == nil || bytes.Compare(k, upTo) < 0 }, false)
}

// SeekBack implements storage.Store.
func (s *store) SeekBack(key []byte) (k, v []byte, ok bool, err error) {
	return s.seek(key, func([]byte) bool { return true }, true)
}

func (s *store) seek(key []byte, within func([]byte) bool, back bool) (k, v []byte, ok bool, err error) {
	if err := s.enter("seek in"); err != nil {
		return nil, nil, false, err
	}
	defer s.leave()
	err = s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.index, back)
		defer it.Close()
		it.Seek(append(bytes.Clone(s.index), key...))
		if !it.Valid() {
			return nil
		}
		item := it.Item()
		k = bytes.Clone(item.Key()[len(s.index):])
		if !within(k) {
			k = nil
			return nil
		}
		ok = true
		v, err = item.ValueCopy(nil)
		return err
	})
	if err != nil {
		return nil, nil, false, fmt.Errorf("seek in log %s: %w", s.id, err)
	}
	return k, v, ok, nil
}

// Trim implements storage.Store.
func (s *store) Trim(start int64, indexBelow []byte) error {
	if err := s.enter("trim"); err != nil {
		return err
	}
	defer s.leave()
	if start > s.trimmed {
		freed, err := s.deleteRange(s.chunks, appendChunkKey(nil, s.id, s.trimmed, 0), appendChunkKey(nil, s.id, start, 0))
		s.bytes.Add(-freed)
		s.e.garbage.Add(freed)
		if err != nil {
			return fmt.Errorf("trim log %s below offset %d: %w", s.id, start, err)
		}
		s.trimmed = start
	}
	if bytes.Compare(indexBelow, s.below) > 0 {
		from := append(bytes.Clone(s.index), s.below...)
		if _, err := s.deleteRange(s.index, from, append(bytes.Clone(s.index), indexBelow...)); err != nil {
			return fmt.Errorf("trim index of log %s: %w", s.id, err)
		}
		s.below = bytes.Clone(indexBelow)
	}
	return nil
}

// Reset implements storage.Store.
func (s *store) Reset(next int64) error {
	if err := s.enter("reset"); err != nil {
		return err
	}
	defer s.leave()
	for _, prefix := range [][]byte{s.chunks, s.index} {
		freed, err := s.deleteRange(prefix, prefix, append(bytes.Clone(prefix[:prefixSize]), prefix[prefixSize]+1))
		s.e.garbage.Add(freed)
		if err != nil {
			return fmt.Errorf("reset log %s: %w", s.id, err)
		}
	}
	s.bytes.Store(0)
	s.next.Store(next)
	s.trimmed, s.below = 0, nil
	return nil
}

// deleteRange deletes keys from from up to, not including, to; it returns the
// bytes of the chunks among them.
func (s *store) deleteRange(prefix, from, to []byte) (freed int64, err error) {
	return s.e.deleteRange(prefix, from, to)
}

func (s *store) delete(keys [][]byte) error { return s.e.delete(keys) }

// Close implements storage.Store. It waits for readers.
func (s *store) Close() error {
	s.use.Lock()
	done := s.closed
	s.closed = true
	s.use.Unlock()
	if done {
		return nil
	}
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	delete(s.e.open, s.id)
	return nil
}
