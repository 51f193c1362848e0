package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

const (
	// collectRatio: a value log file is rewritten once that much of it is garbage.
	// A third would keep within 1.5 times what lives; this leaves some room.
	collectRatio = 0.3
	// collectMost bounds one call of Collect.
	collectMost = 64
)

// Collect implements storage.Engine.
//
// Badger learns that a value is garbage only when a compaction drops its key,
// and our keys are few: left alone, the tables would hardly ever be compacted and no
// file would come back. So once enough was freed the memtable is flushed and the
// tables are compacted. Tables are about a thousandth of what they point to; where
// they are more than what was freed, because chunks are small and lie in them, it waits.
//
// Rewriting a value log file then copies what still lives to the newest one, and
// removes the old one. The old one was durable; the copies, and the pointers to
// them, are not, and a power cut may keep the pointers and lose the copies.
// Two things make up for that:
//
//   - Badger puts the removal off while an iterator is open. One is kept open
//     until the copies are synced.
//   - Before Badger begins, the file's number is noted down, durably. If there is
//     such a note at Open, whatever of that file can't be read any more is
//     stored again from it (salvage).
//
// And Badger's rewriting stops at the first damaged entry, and removes the file
// with all the good ones behind it. So a file is read from end to end first, and
// left alone when something is lost that way.
func (e *Engine) Collect(stop <-chan struct{}) error {
	if err := e.enter("collect"); err != nil {
		return err
	}
	defer e.leave()
	e.collectMu.Lock()
	defer e.collectMu.Unlock()
	if err := e.failed(); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if err := e.dropAside(); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if e.garbage.Load() >= max(e.sizes.collectAfter, e.tableBytes()) {
		if err := e.compact(); err != nil {
			return fmt.Errorf("collect: compact tables: %w", err)
		}
		if err := e.unhide(); err != nil {
			return fmt.Errorf("collect: %w", err)
		}
	}
	for range collectMost {
		select {
		case <-stop:
			return nil
		case <-e.closing:
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

func (e *Engine) tableBytes() int64 {
	var n int64
	for _, t := range e.db.Tables() {
		n += int64(t.UncompressedSize)
	}
	return n
}

// dropAside removes what preflight has set aside, once logs were opened and
// synced and nothing was found to be missing.
func (e *Engine) dropAside() error {
	e.mu.Lock()
	open := len(e.open)
	e.mu.Unlock()
	if open == 0 || e.syncs.Load() == 0 || e.damage.Load() {
		return nil
	}
	return os.RemoveAll(filepath.Join(e.dir, asideDir))
}

// compact flushes the memtable and compacts all tables. Badger has no call to
// flush; dropping a prefix does it, and stops writes only that long: there is
// nothing to drop but one key.
func (e *Engine) compact() error {
	freed := e.garbage.Load() // before the flush: what is freed later may miss it
	if err := e.flush(); err != nil {
		// It may have given up in the middle, with memtables half released.
		return e.fail(fmt.Errorf("flush badger's memtable: %w", err))
	}
	e.garbage.Add(-freed)
	return e.db.Flatten(1)
}

func (e *Engine) flush() error {
	e.writes.Lock()
	defer e.writes.Unlock()
	defer e.wrote()
	if err := e.db.Update(func(txn *badgerdb.Txn) error { return txn.Set(scratchKey, nil) }); err != nil {
		return err
	}
	return e.db.DropPrefix(scratchKey)
}

// refusal ends a rewriting before it has begun: the only way out of Badger's is
// a panic from the line that it logs first.
type refusal struct{ err error }

// collectOne rewrites one value log file. It returns false when there is none
// with enough garbage.
func (e *Engine) collectOne() (more bool, err error) {
	noted, file := false, uint32(0)
	before := func(f uint32) {
		file = f
		if err := e.prepare(file); err != nil {
			panic(refusal{err})
		}
		noted = true
	}
	if e.hooks.noGuard {
		before = func(uint32) { noted = true }
	} else {
		txn := e.db.NewTransaction(false)
		defer txn.Discard()
		guard := keyIterator(txn, scratchKey, false)
		defer guard.Close() // after all that follows
	}
	e.log.rewriting.Store(&before)
	err = e.runGC()
	e.log.rewriting.Store(nil)
	if noted {
		e.step("rewritten")
	}
	switch {
	case !noted && (errors.Is(err, badgerdb.ErrNoRewrite) || errors.Is(err, badgerdb.ErrRejected)):
		return false, nil
	case errors.Is(err, errNotIntact):
		e.blocked.Add(1)
		e.log.Warningf("%v", err)
		return e.hide(file)
	case !noted && err == nil:
		// The copies are synced below, but a power cut before that would not have
		// been made up for: never again.
		err = errors.New("badger rewrote a file without saying so: this version of it can't be used")
	}
	e.wrote()
	if e.hooks.noGuard {
		return err == nil, err
	}
	if syncErr := e.sync(); syncErr != nil {
		return false, errors.Join(err, syncErr) // the note stays
	}
	e.step("synced")
	if clearErr := e.clearCollectNote(); clearErr != nil || err != nil {
		return false, errors.Join(err, clearErr)
	}
	e.collected.Add(1)
	return true, nil
}

func (e *Engine) runGC() (err error) {
	defer func() {
		if r := recover(); r != nil {
			no, ok := r.(refusal)
			if !ok {
				panic(r)
			}
			err = no.err
		}
	}()
	e.writes.RLock()
	defer e.writes.RUnlock()
	return e.db.RunValueLogGC(collectRatio)
}

var errNotIntact = errors.New("value log file is damaged, and something that is still needed lies behind the damage: it is not collected")

// prepare is called before Badger rewrites a file.
func (e *Engine) prepare(file uint32) error {
	if err := e.collectable(vlogPath(e.files, file)); err != nil {
		return err
	}
	if e.hooks.noNote {
		return nil
	}
	if err := e.writeCollectNote(file); err != nil {
		return err
	}
	e.step("noted")
	return nil
}

// collectable refuses a file in which something that is still needed lies behind
// an entry that can't be read. A power cut may well leave the newest file with pages
// that were never written; nobody needs what is behind those.
func (e *Engine) collectable(path string) error {
	end, err := scanLog(path, nil)
	if err != nil {
		return err
	}
	return mapped(path, func(data []byte) error {
		rest := data[min(end, int64(len(data))):]
		if allZero(rest) {
			return nil
		}
		return e.view(func(txn *badgerdb.Txn) error {
			return findChunks(rest, func(old logEntry) error {
				item, err := txn.Get(old.key)
				if errors.Is(err, badgerdb.ErrKeyNotFound) {
					return nil
				}
				if err == nil && item.Version() == old.version {
					return fmt.Errorf("%s at byte %d: %w", path, end, errNotIntact)
				}
				return err
			})
		})
	})
}

func (e *Engine) step(name string) {
	if e.hooks.midCollect != nil {
		e.hooks.midCollect(name)
	}
}

// The note: magic (4), number of the file (4, big endian), CRC-32C (4) of both.
// It is put into place whole.
const (
	collectNote  = "collecting"
	collectMagic = "PLYg"
)

func (e *Engine) writeCollectNote(file uint32) error {
	b := binary.BigEndian.AppendUint32([]byte(collectMagic), file)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return writeDurably(filepath.Join(e.dir, collectNote), b)
}

func (e *Engine) clearCollectNote() error {
	err := os.Remove(filepath.Join(e.dir, collectNote))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return storage.SyncDir(e.dir)
}

func (e *Engine) readCollectNote() ([]uint32, error) {
	path := filepath.Join(e.dir, collectNote)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) != 12 || string(b[:4]) != collectMagic || crc32.Checksum(b[:8], castagnoli) != binary.BigEndian.Uint32(b[8:]) {
		return nil, fmt.Errorf("%s: %w: it should name a value log file", path, storage.ErrCorrupt)
	}
	return []uint32{binary.BigEndian.Uint32(b[4:])}, nil
}

// restoredMeta marks a chunk that salvage has stored again.
const restoredMeta = 1

// salvage stores again what a power cut during a collection has taken: values
// whose newest pointer leads nowhere, while the file that they came from is still there.
func (e *Engine) salvage(interrupted []uint32) error {
	if len(interrupted) == 0 {
		return nil
	}
	restored := 0
	for _, file := range interrupted {
		_, err := scanLog(vlogPath(e.files, file), func(old logEntry) error {
			if len(old.key) != chunkKey || old.key[0] != logPrefix {
				return nil
			}
			lost := false
			err := e.view(func(txn *badgerdb.Txn) error {
				item, err := txn.Get(old.key)
				if errors.Is(err, badgerdb.ErrKeyNotFound) {
					return nil // deleted, or never durable
				}
				if err != nil {
					return err
				}
				// Another version is another chunk, unless it was restored already and
				// the power went again before that was durable.
				if item.Version() != old.version && item.UserMeta() != restoredMeta {
					return nil
				}
				return item.Value(func(v []byte) error {
					var c storage.Chunk
					lost = parseValue(&c, old.key, v) != nil
					return nil
				})
			})
			if err != nil || !lost {
				return err
			}
			restored++
			return e.write(func(txn *badgerdb.Txn) error {
				return txn.SetEntry(badgerdb.NewEntry(old.key, old.value).WithMeta(restoredMeta))
			})
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if restored > 0 {
		e.log.Warningf("restored %d chunks that an interrupted collection had moved and a power cut had taken", restored)
	}
	if err := e.sync(); err != nil {
		return err
	}
	return e.clearCollectNote()
}
