package badger

import (
	"bytes"
	"fmt"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

// deleteStep is how many keys are deleted in one transaction, so that others
// can write in between. A tombstone weighs below 100 bytes: far from the limit.
const deleteStep = 2048

// deleteRange deletes keys from from up to, not including, to. It returns how
// many bytes of chunks were among them, and how many of those in the value log.
func (e *Engine) deleteRange(prefix, from, to []byte) (freed, inVlog int64, err error) {
	keys := make([][]byte, 0, 64)
	for {
		keys = keys[:0]
		var size, logged int64
		err := e.view(func(txn *badgerdb.Txn) error {
			it := keyIterator(txn, prefix, false)
			defer it.Close()
			for it.Seek(from); it.Valid() && len(keys) < deleteStep; it.Next() {
				item := it.Item()
				if bytes.Compare(item.Key(), to) >= 0 {
					break
				}
				keys = append(keys, item.KeyCopy(nil))
				if n, pointer := chunkBytes(item); n > 0 {
					size += n
					if pointer {
						logged += n
					}
				}
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return freed, inVlog, err
		}
		if err := e.delete(keys); err != nil {
			return freed, inVlog, err
		}
		freed, inVlog = freed+size, inVlog+logged
		if len(keys) < deleteStep {
			return freed, inVlog, nil
		}
		from = append(bytes.Clone(keys[len(keys)-1]), 0)
	}
}

func (e *Engine) delete(keys [][]byte) error {
	for len(keys) > 0 {
		n := min(len(keys), deleteStep)
		if err := e.write(func(txn *badgerdb.Txn) error {
			for _, k := range keys[:n] {
				if err := txn.Delete(k); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// write runs one transaction.
func (e *Engine) write(f func(*badgerdb.Txn) error) error {
	if err := e.failed(); err != nil {
		return err
	}
	e.writes.RLock()
	defer e.writes.RUnlock()
	txn := e.db.NewTransaction(true)
	defer txn.Discard()
	if err := f(txn); err != nil {
		return err
	}
	// After the commit, not before it: a Sync in between would take note of it and
	// not see what it is about.
	defer e.wrote()
	return txn.Commit()
}

// Drop implements storage.Engine.
func (e *Engine) Drop(id storage.LogID) error {
	if err := e.enter("drop log " + id.String()); err != nil {
		return err
	}
	defer e.leave()
	if !e.reserve(id) {
		return fmt.Errorf("drop log %s: %w: close it first", id, storage.ErrInUse)
	}
	defer e.release(id)
	p := appendPrefix(nil, id)
	_, inVlog, err := e.deleteRange(p, p, afterLog(id))
	e.garbage.Add(inVlog)
	if err != nil {
		return fmt.Errorf("drop log %s: %w", id, err)
	}
	return nil
}

// Trim implements storage.Store.
func (s *store) Trim(start int64, indexBelow []byte) error {
	if err := s.enter("trim"); err != nil {
		return err
	}
	defer s.leave()
	if start = min(start, s.next.Load()); start > s.trimmed {
		from := appendChunkKey(nil, s.id, s.trimmed, 0)
		// Readers go by the floor at once, whatever keys are still, or again, there.
		s.floor.Store(max(start, s.floor.Load()))
		freed, inVlog, err := s.e.deleteRange(s.chunks, from, appendChunkKey(nil, s.id, start, 0))
		s.bytes.Add(-freed)
		s.e.garbage.Add(inVlog)
		if err != nil {
			return fmt.Errorf("trim log %s below offset %d: %w", s.id, start, err)
		}
		s.trimmed = start
	}
	if bytes.Compare(indexBelow, s.below) > 0 {
		from := append(bytes.Clone(s.index), s.below...)
		if _, _, err := s.e.deleteRange(s.index, from, append(bytes.Clone(s.index), indexBelow...)); err != nil {
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
	s.resets.Add(1) // readers under way end without a complaint
	s.floor.Store(next)
	p := s.chunks[:prefixSize:prefixSize]
	_, inVlog, err := s.e.deleteRange(p, p, afterLog(s.id))
	s.e.garbage.Add(inVlog)
	if err != nil {
		return fmt.Errorf("reset log %s: %w", s.id, err)
	}
	s.bytes.Store(0)
	s.next.Store(next)
	s.trimmed, s.below, s.above = 0, nil, nil
	s.holes.Store(false)
	return nil
}
