package badger

import (
	"bytes"
	"errors"
	"fmt"
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

	use gate

	next   atomic.Int64
	bytes  atomic.Int64
	floor  atomic.Int64  // chunks wholly below it are not the log's, whatever keys exist
	resets atomic.Uint64 // how often what is stored was replaced: Reset, Mend, Settle
	holes  atomic.Bool   // opened although chunks are missing

	// What follows is used by Append's, Trim's and Reset's caller only.
	trimmed int64  // chunks below it are deleted already
	below   []byte // index pairs below it are deleted already
	failed  error  // of an append that may have been stored in part
	mending bool   // mended and not settled
	// above are the keys of chunks that lay above the mark at Open, in order.
	above [][]byte
	reach uint64 // see storage.Store; set at Open
}

// Open implements storage.Engine.
func (e *Engine) Open(id storage.LogID, m storage.Mark) (storage.Store, error) {
	if m.Start < 0 || m.Next < m.Start {
		return nil, fmt.Errorf("open log %s: mark from %d to %d makes no sense", id, m.Start, m.Next)
	}
	if err := e.enter("open log " + id.String()); err != nil {
		return nil, err
	}
	defer e.leave()
	if !e.reserve(id) {
		return nil, fmt.Errorf("open log %s: %w: it is open already, or being dropped", id, storage.ErrInUse)
	}
	s, err := e.recoverLog(id, m)
	if err != nil {
		e.release(id)
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open[id] = s
	return s, nil
}

// reserve takes a log for one owner.
func (e *Engine) reserve(id storage.LogID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, taken := e.open[id]; taken {
		return false
	}
	e.open[id] = nil
	return true
}

func (e *Engine) release(id storage.LogID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, id)
}

func (e *Engine) recoverLog(id storage.LogID, m storage.Mark) (*store, error) {
	p := appendPrefix(nil, id)
	s := &store{
		e: e, id: id,
		chunks: append(bytes.Clone(p), chunkKind), index: append(bytes.Clone(p), indexKind),
	}
	s.next.Store(m.Next)
	s.floor.Store(m.Start)
	stale, above, err := s.verify(m)
	if err != nil {
		var hole *storage.HoleError
		if errors.As(err, &hole) {
			e.damage.Store(true)
		}
		return nil, err
	}
	if err := e.delete(stale); err != nil {
		return nil, fmt.Errorf("open log %s: drop what came back: %w", id, err)
	}
	if s.above = above; len(above) > 0 {
		s.reach = s.indexOf(above[len(above)-1])
	}
	return s, nil
}

// indexOf returns the entry that a chunk came with, or 0 when it can't be read.
func (s *store) indexOf(key []byte) (index uint64) {
	_ = s.e.view(func(txn *badgerdb.Txn) error { // what can't be read proves nothing
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		return item.Value(func(v []byte) error {
			var c storage.Chunk
			if err := parseValue(&c, key, v); err != nil {
				return err
			}
			index = c.Index
			return nil
		})
	})
	return index
}

// dropAbove deletes chunks from before the log was opened that end above the mark, up to
// those that overlap the offsets to last. They go just before new ones come, or an
// old chunk might be taken for a new one; until then they are all that is left
// should the replicated log have lost them. Readers don't see them.
func (s *store) dropAbove(last int64) error {
	n := 0
	for n < len(s.above) {
		if _, base, err := parseChunkKey(s.above[n]); err == nil && base > last {
			break
		}
		n++
	}
	if n == 0 {
		return nil
	}
	if err := s.e.delete(s.above[:n]); err != nil {
		return err
	}
	s.above = s.above[n:]
	return nil
}

// verify checks by keys alone that chunks adjoin from m.Start to m.Next, and
// counts bytes. It returns the keys of chunks that are not part of the log: those
// that overlap a chunk before them, which can only be deleted ones that came back,
// and those that end above m.Next. Chunks below m.Start are left to Trim, as
// they may come back at any time.
func (s *store) verify(m storage.Mark) (stale, above [][]byte, err error) {
	err = s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.chunks, false)
		defer it.Close()
		want, size, found := m.Start, int64(0), false
		for it.Seek(s.chunks); it.Valid(); it.Next() {
			item := it.Item()
			last, base, err := parseChunkKey(item.Key())
			if err != nil {
				return fmt.Errorf("open log %s: %w", s.id, err)
			}
			switch {
			case last < m.Start:
				continue
			case last >= m.Next:
				above = append(above, item.KeyCopy(nil))
				continue
			case found && base < want:
				stale = append(stale, item.KeyCopy(nil))
				continue
			case base > want && !m.AllowHoles:
				return &storage.HoleError{Log: s.id, From: want, To: base}
			case base > want:
				s.holes.Store(true)
			}
			n, _ := chunkBytes(item)
			size += n
			want, found = last+1, true
		}
		if want < m.Next {
			if !m.AllowHoles {
				return &storage.HoleError{Log: s.id, From: want, To: m.Next}
			}
			s.holes.Store(true)
		}
		s.bytes.Store(size)
		return nil
	})
	if err == nil && s.holes.Load() {
		s.e.damage.Store(true)
	}
	return stale, above, err
}

// enter is called before each use of Badger, leave after it.
func (s *store) enter(what string) error {
	if s.use.enter() {
		if s.e.use.enter() {
			return nil
		}
		s.use.leave()
	}
	return fmt.Errorf("%s log %s: %w", what, s.id, storage.ErrClosed)
}

func (s *store) leave() {
	s.e.use.leave()
	s.use.leave()
}

const (
	// Badger refuses a transaction of 15 % of a memtable, values in the value log
	// not counted, or of that divided by its node size in entries. Half of that
	// leaves room for what it adds.
	txnShare       = 14
	nodeBytes      = 96
	entryOverhead  = 64
	maxTxnData     = 32 << 20 // what is copied in one go
	keepBuffer     = 2 << 20
	maxIndexWeight = entryOverhead + prefixSize + 1 + storage.MaxIndexKeyBytes + storage.MaxIndexValueBytes
)

// txnBuffer holds the keys and values of one transaction. Badger has copied them
// by the time the commit returns.
type txnBuffer struct{ keys, values []byte }

func (b *txnBuffer) reserve(keys, values int) {
	if cap(b.keys) < keys {
		b.keys = make([]byte, 0, keys)
	}
	if cap(b.values) < values {
		b.values = make([]byte, 0, values)
	}
	b.keys, b.values = b.keys[:0], b.values[:0]
}

// Append implements storage.Store. It takes one transaction, unless chunks and
// index together exceed what Badger takes in one; see the seam for what is promised then.
func (s *store) Append(chunks []storage.Chunk, index []storage.IndexEntry) error {
	if err := s.enter("append to"); err != nil {
		return err
	}
	defer s.leave()
	switch {
	case s.failed != nil:
		return s.failed
	case s.mending:
		return fmt.Errorf("append to log %s: %w", s.id, storage.ErrUnsettled)
	}
	if err := storage.CheckAppend(s.id, s.next.Load(), chunks, index); err != nil {
		return err
	}
	for i := range index {
		if bytes.Compare(index[i].Key, s.below) < 0 {
			s.below = nil
			break
		}
	}
	if len(s.above) > 0 && len(chunks) > 0 {
		if err := s.dropAbove(chunks[len(chunks)-1].Last); err != nil {
			s.failed = fmt.Errorf("append to log %s: drop what lay above the mark: %w", s.id, err)
			return s.failed
		}
	}
	buf := s.e.buffers.Get().(*txnBuffer)
	err := s.appendAll(buf, chunks, index)
	if cap(buf.values) <= keepBuffer {
		s.e.buffers.Put(buf)
	}
	if err != nil {
		s.failed = fmt.Errorf("append to log %s at offset %d: %w", s.id, s.next.Load(), err)
		return s.failed
	}
	added := int64(0)
	for i := range chunks {
		added += int64(len(chunks[i].Meta) + len(chunks[i].Data))
	}
	s.bytes.Add(added)
	if len(chunks) > 0 {
		s.next.Store(chunks[len(chunks)-1].Last + 1)
	}
	return nil
}

func (s *store) appendAll(buf *txnBuffer, chunks []storage.Chunk, index []storage.IndexEntry) error {
	limit := int(s.e.sizes.memTable) / txnShare
	entries := limit / nodeBytes
	for len(index) > 0 && len(index) > min(limit/maxIndexWeight, entries)/2 {
		n := max(min(limit/maxIndexWeight, entries)/2, 1)
		if err := s.commit(buf, nil, index[:n]); err != nil {
			return err
		}
		index = index[n:]
	}
	for first := true; first || len(chunks) > 0; first = false {
		weight, data, n := len(index)*maxIndexWeight, 0, 0
		for n < len(chunks) && n+len(index) < entries {
			c := &chunks[n]
			size := valueHead + len(c.Meta) + len(c.Data)
			w := entryOverhead + chunkKey
			if size < valueThreshold {
				w += size
			}
			if n > 0 && (weight+w > limit || data+size > maxTxnData) {
				break
			}
			weight, data, n = weight+w, data+size, n+1
		}
		var pairs []storage.IndexEntry
		if n == len(chunks) {
			pairs = index
		}
		if err := s.commit(buf, chunks[:n], pairs); err != nil {
			return err
		}
		chunks = chunks[n:]
	}
	return nil
}

func (s *store) commit(buf *txnBuffer, chunks []storage.Chunk, index []storage.IndexEntry) error {
	if len(chunks) == 0 && len(index) == 0 {
		return nil
	}
	keys, values := len(chunks)*chunkKey, len(chunks)*valueHead
	for i := range chunks {
		values += len(chunks[i].Meta) + len(chunks[i].Data)
	}
	for i := range index {
		keys += len(s.index) + len(index[i].Key)
	}
	// The transaction refers to both until it is committed: they must not grow.
	buf.reserve(keys, values)
	err := s.e.write(func(txn *badgerdb.Txn) error {
		for i := range chunks {
			k, v := len(buf.keys), len(buf.values)
			buf.keys = appendChunkKey(buf.keys, s.id, chunks[i].Last, chunks[i].Base)
			key := buf.keys[k:len(buf.keys):len(buf.keys)]
			buf.values = appendValue(buf.values, key, &chunks[i])
			if err := txn.Set(key, buf.values[v:len(buf.values):len(buf.values)]); err != nil {
				return err
			}
		}
		for i := range index {
			k := len(buf.keys)
			buf.keys = append(append(buf.keys, s.index...), index[i].Key...)
			key := buf.keys[k:len(buf.keys):len(buf.keys)]
			var err error
			if index[i].Value == nil {
				err = txn.Delete(key)
			} else {
				// Badger keeps the slice until the commit, which is before we return.
				err = txn.Set(key, index[i].Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && s.e.hooks.afterAppend != nil {
		s.e.hooks.afterAppend()
	}
	return err
}

// Read implements storage.Store. Keys say where chunks begin and end; whatever
// doesn't adjoin is damage, or a deleted chunk that came back, and never served.
func (s *store) Read(offset int64, visit func(storage.Chunk) bool) error {
	if err := s.enter("read"); err != nil {
		return err
	}
	defer s.leave()
	resets, next := s.resets.Load(), s.next.Load()
	from := max(offset, s.floor.Load(), 0)
	if from >= next {
		return nil
	}
	err := s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.chunks, false)
		defer it.Close()
		var (
			c    storage.Chunk
			want = from
			seen bool // a chunk was visited
			more bool
			bad  error
			item *badgerdb.Item
		)
		value := func(v []byte) error {
			if bad = parseValue(&c, item.Key(), v); bad == nil {
				more = visiting(visit, c)
			}
			return nil
		}
		missing := func(to int64) error {
			if s.holes.Load() || s.resets.Load() != resets || !seen && s.floor.Load() > want {
				return nil // said at Open; or reset, or trimmed meanwhile
			}
			return fmt.Errorf("read log %s: offsets %d to %d are missing: %w", s.id, want, to-1, storage.ErrCorrupt)
		}
		var seek [chunkKey]byte
		for it.Seek(appendChunkKey(seek[:0], s.id, from, 0)); it.Valid(); it.Next() {
			item = it.Item()
			var err error
			if c.Last, c.Base, err = parseChunkKey(item.Key()); err != nil {
				return fmt.Errorf("read log %s: %w", s.id, err)
			}
			if c.Last >= next {
				break
			}
			if seen && c.Base < want {
				continue
			}
			if c.Base > want {
				if err := missing(c.Base); err != nil {
					return err
				}
			}
			// Badger logs an error of its own reading and hands out no value.
			more = false
			if err = item.Value(value); err != nil {
				err = fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
			} else {
				err = bad
			}
			if err != nil {
				return fmt.Errorf("read log %s: offsets %d to %d: %w", s.id, c.Base, c.Last, err)
			}
			if !more {
				return nil
			}
			want, seen = c.Last+1, true
		}
		if want < next {
			return missing(next)
		}
		return nil
	})
	if err != nil {
		s.e.damage.Store(true)
	}
	return err
}

// Reach implements storage.Store.
func (s *store) Reach() uint64 { return s.reach }

// Next implements storage.Store.
func (s *store) Next() int64 { return s.next.Load() }

// Bytes implements storage.Store.
func (s *store) Bytes() int64 { return max(s.bytes.Load(), 0) }

// Seek implements storage.Store.
func (s *store) Seek(key, upTo []byte) (k, v []byte, ok bool, err error) {
	return s.seek(key, upTo, false)
}

// SeekBack implements storage.Store.
func (s *store) SeekBack(key []byte) (k, v []byte, ok bool, err error) {
	return s.seek(key, nil, true)
}

func (s *store) seek(key, upTo []byte, back bool) (k, v []byte, ok bool, err error) {
	if err := s.enter("seek in"); err != nil {
		return nil, nil, false, err
	}
	defer s.leave()
	err = s.e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, s.index, back)
		defer it.Close()
		var full [prefixSize + 1 + storage.MaxIndexKeyBytes]byte
		it.Seek(append(append(full[:0], s.index...), key...))
		if !it.Valid() {
			return nil
		}
		item := it.Item()
		found := item.Key()[len(s.index):]
		if upTo != nil && bytes.Compare(found, upTo) >= 0 {
			return nil
		}
		k, ok = bytes.Clone(found), true
		v, err = item.ValueCopy([]byte{})
		return err
	})
	if err != nil {
		return nil, nil, false, fmt.Errorf("seek in log %s: %w", s.id, err)
	}
	return k, v, ok, nil
}

// Close implements storage.Store. It waits for readers.
func (s *store) Close() error {
	if s.use.close() {
		s.e.release(s.id)
	}
	return nil
}
