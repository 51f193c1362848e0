package badger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

// deleteStep is how many keys are deleted in one go, so that others can write
// in between.
const deleteStep = 4096

func (e *Engine) deleteRange(prefix, from, to []byte) (freed int64, err error) {
	for {
		var keys [][]byte
		var size int64
		err := e.view(func(txn *badgerdb.Txn) error {
			it := keyIterator(txn, prefix, false)
			defer it.Close()
			for it.Seek(from); it.Valid() && len(keys) < deleteStep; it.Next() {
				item := it.Item()
				if bytes.Compare(item.Key(), to) >= 0 {
					break
				}
				keys = append(keys, item.KeyCopy(nil))
				size += item.ValueSize() - valueHead
			}
			return nil
		})
		if err != nil || len(keys) == 0 {
			return freed, err
		}
		if err := e.delete(keys); err != nil {
			return freed, err
		}
		freed += max(size, 0)
		if len(keys) < deleteStep {
			return freed, nil
		}
		from = append(keys[len(keys)-1], 0)
	}
}

func (e *Engine) delete(keys [][]byte) error {
	for len(keys) > 0 {
		n := min(len(keys), deleteStep)
		if err := e.deleteStep(keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (e *Engine) deleteStep(keys [][]byte) error {
	e.writes.RLock()
	defer e.writes.RUnlock()
	e.dirty.Store(true)
	txn := e.db.NewTransaction(true)
	defer txn.Discard()
	for _, k := range keys {
		if err := txn.Delete(k); err != nil {
			return err
		}
	}
	return txn.Commit()
}

// Drop implements storage.Engine.
func (e *Engine) Drop(id storage.LogID) error {
	e.mu.Lock()
	open, closed := e.open[id] != nil, e.closed
	e.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("drop log %s: %w", id, storage.ErrClosed)
	case open:
		return fmt.Errorf("drop log %s: %w: close it first", id, storage.ErrInUse)
	}
	p := appendPrefix(nil, id)
	freed, err := e.deleteRange(p, p, afterLog(id))
	e.garbage.Add(freed)
	if err != nil {
		return fmt.Errorf("drop log %s: %w", id, err)
	}
	return nil
}

// Sync implements storage.Engine.
//
// Badger's own Sync covers the memtable and the value log file that are written
// at the moment, not those that have rotated since they were last synced. So
// every memtable's log and every value log file that may have changed is
// fsynced by its path, then the directory. A memtable's log that is gone
// meanwhile is in a table, which Badger has synced and named in its manifest.
func (e *Engine) Sync() error {
	e.syncMu.Lock()
	defer e.syncMu.Unlock()
	if err := e.check("sync"); err != nil {
		return err
	}
	if !e.dirty.Swap(false) {
		return nil
	}
	if err := e.sync(); err != nil {
		e.dirty.Store(true)
		return fmt.Errorf("sync badger: %w", err)
	}
	e.syncs.Add(1)
	return nil
}

func (e *Engine) sync() error {
	if e.hooks.onlyActive {
		return e.db.Sync()
	}
	names, err := os.ReadDir(e.dir)
	if err != nil {
		return err
	}
	newest := uint32(0)
	// Memtables first: what a memtable points to in the value log is synced after it, and
	// both are before anybody relies on either.
	for _, f := range names {
		name := f.Name()
		switch {
		case strings.HasSuffix(name, ".mem"):
			if err := syncPath(filepath.Join(e.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		case strings.HasSuffix(name, ".vlog"):
			n, err := strconv.ParseUint(strings.TrimSuffix(name, ".vlog"), 10, 32)
			if err != nil {
				continue // not Badger's
			}
			newest = max(newest, uint32(n))
			if uint32(n) < e.synced {
				continue
			}
			if err := syncPath(filepath.Join(e.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if err := syncPath(e.dir); err != nil {
		return err
	}
	// Files below the newest one had rotated before they were synced here.
	e.synced = newest
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

const (
	// collectAfter is how much must have been freed before tables are compacted
	// to find out where.
	collectAfter = 128 << 20
	// collectMost bounds one call of Collect.
	collectMost = 64
)

// Collect implements storage.Engine.
//
// Badger learns that a value is garbage only when a compaction drops its key,
// and our keys are few: left alone, the tables would hardly ever be compacted
// and no file would come back. So once enough was freed the memtable is flushed
// and the tables are compacted.
//
// Rewriting a value log file copies what still lives to the newest one,
// unsynced, and deletes the old, synced one: a power cut in between would lose
// what was durable. Badger puts the deletion off while any iterator is open,
// so one is kept open until the copies are synced.
func (e *Engine) Collect(stop <-chan struct{}) error {
	if err := e.check("collect"); err != nil {
		return err
	}
	if e.garbage.Load() >= collectAfter {
		if err := e.compact(); err != nil {
			return fmt.Errorf("collect: %w", err)
		}
	}
	for range collectMost {
		select {
		case <-stop:
			return nil
		default:
		}
		more, err := e.collectOne()
		if err != nil {
			return fmt.Errorf("collect: %w", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

func (e *Engine) collectOne() (more bool, err error) {
	if !e.hooks.noGuard {
		txn := e.db.NewTransaction(false)
		defer txn.Discard()
		guard := keyIterator(txn, scratchKey, false)
		defer guard.Close()
	}
	e.writes.RLock()
	err = e.db.RunValueLogGC(collectRatio)
	e.writes.RUnlock()
	switch {
	case errors.Is(err, badgerdb.ErrNoRewrite), errors.Is(err, badgerdb.ErrRejected):
		return false, nil
	case err != nil && strings.Contains(err.Error(), "already marked for deletion"):
		return false, nil
	case err != nil:
		return false, err
	}
	e.collected.Add(1)
	e.dirty.Store(true)
	if e.hooks.noGuard {
		return true, nil
	}
	return true, e.Sync()
}

// compact flushes the memtable and compacts all tables. Badger has no call to
// flush; dropping a prefix does it.
func (e *Engine) compact() error {
	e.writes.Lock()
	err := e.db.Update(func(txn *badgerdb.Txn) error { return txn.Set(scratchKey, nil) })
	if err == nil {
		err = e.db.DropPrefix(scratchKey)
	}
	e.writes.Unlock()
	if err != nil {
		return err
	}
	e.garbage.Store(0)
	return e.db.Flatten(1)
}
