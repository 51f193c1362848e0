// Package badger keeps partition logs in Badger: one database per broker,
// chunks in its value log, keys in its LSM tree.
//
// Writes are not fsynced one by one; Sync makes all that came before it
// durable. docs/format/storage.md describes the keys and values.
package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/parleymq/parley/partition/storage"
)

func init() { storage.Register("badger", open) }

// Sizes, chosen for a small idle footprint: keys are all that the LSM tree
// holds, so its buffers can be small; batches go to the value log.
const (
	memTableBytes = 32 << 20
	memTables     = 2
	// valueThreshold: larger values go to the value log, which is written once and
	// never compacted. With the default of 1 MiB each batch would be rewritten
	// at every compaction.
	valueThreshold = 1 << 10
	// vlogFileBytes is the unit in which space comes back. It bounds what is
	// wasted beside what the ratio of collection allows.
	vlogFileBytes   = 256 << 20
	blockCacheBytes = 8 << 20
	indexCacheBytes = 16 << 20
	// txnBytes is how much one transaction may hold in the LSM tree: Badger's
	// limit is 15 % of a memtable, values in the value log not counted.
	txnBytes   = memTableBytes / 16
	txnEntries = 10_000
	// collectRatio: a value log file is rewritten once that much of it is garbage.
	collectRatio = 0.3
)

const (
	versionFile = "VERSION"
	versionText = "parley-log badger 1\n"
)

// Engine is one Badger database. It implements storage.Engine.
type Engine struct {
	db  *badgerdb.DB
	dir string

	// writes is held by writers in shared mode and exclusively while a memtable
	// is flushed by force, during which Badger refuses writes.
	writes sync.RWMutex

	mu     sync.Mutex
	open   map[storage.LogID]*store
	closed bool

	syncMu  sync.Mutex
	synced  uint32       // value log files below it are durable and will not change
	dirty   atomic.Bool  // something was written since the last Sync
	garbage atomic.Int64 // bytes freed since the last Collect

	collected atomic.Int64 // value log files collected
	syncs     atomic.Int64
	hooks     hooks
}

// hooks switch safeguards off, for the tests that show what they are for.
type hooks struct {
	onlyActive bool // Sync leaves files that have rotated
	noGuard    bool // Collect runs without an open iterator
}

func open(o storage.Options) (storage.Engine, error) {
	e, err := openEngine(o, hooks{})
	if err != nil {
		return nil, err
	}
	return e, nil
}

func openEngine(o storage.Options, h hooks) (*Engine, error) {
	if o.Dir == "" {
		return nil, errors.New("open badger: no directory given")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open badger: %w", err)
	}
	if err := checkVersion(o.Dir); err != nil {
		return nil, err
	}
	cache := int64(blockCacheBytes)
	index := int64(indexCacheBytes)
	if o.MemoryBytes > 0 {
		cache = min(cache, o.MemoryBytes/8)
		index = min(index, o.MemoryBytes/4)
	}
	opt := badgerdb.DefaultOptions(o.Dir).
		WithLogger(logger{o.Logf}).
		WithSyncWrites(false).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithCompression(options.None).
		WithMetricsEnabled(false).
		WithMemTableSize(memTableBytes).
		WithNumMemtables(memTables).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(16).
		WithNumCompactors(2).
		WithBaseTableSize(4 << 20).
		WithValueThreshold(valueThreshold).
		WithValueLogFileSize(vlogFileBytes).
		WithBlockCacheSize(cache).
		WithIndexCacheSize(index).
		WithNumGoroutines(1).
		WithCompactL0OnClose(false)
	db, err := openDB(opt)
	if err != nil {
		if strings.Contains(err.Error(), "Cannot acquire directory lock") {
			return nil, fmt.Errorf("open badger in %s: %w: another process has it open", o.Dir, storage.ErrInUse)
		}
		return nil, fmt.Errorf("open badger in %s: %w", o.Dir, err)
	}
	e := &Engine{db: db, dir: o.Dir, open: map[storage.LogID]*store{}, hooks: h}
	e.dirty.Store(true)
	return e, nil
}

// openDB turns the panics and faults with which Badger meets damaged files into errors.
func openDB(opt badgerdb.Options) (db *badgerdb.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", storage.ErrCorrupt, r)
		}
	}()
	db, err = badgerdb.Open(opt)
	if err != nil && damaged(err) {
		err = fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
	}
	return db, err
}

func damaged(err error) bool {
	s := strings.ToLower(err.Error())
	for _, sign := range []string{"checksum", "magic", "corrupt", "manifest", "truncat", "eof", "invalid", "unmarshal", "proto"} {
		if strings.Contains(s, sign) {
			return true
		}
	}
	return false
}

// checkVersion refuses a directory that something else wrote, and marks a new one.
func checkVersion(dir string) error {
	path := filepath.Join(dir, versionFile)
	got, err := os.ReadFile(path)
	if err == nil {
		if string(got) != versionText {
			return fmt.Errorf("open badger in %s: %w: %s says %q, this broker reads %q", dir, storage.ErrFormat, versionFile, strings.TrimSpace(string(got)), strings.TrimSpace(versionText))
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open badger: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("open badger: %w", err)
	}
	for _, f := range entries {
		if f.Name() == "MANIFEST" || strings.HasSuffix(f.Name(), ".vlog") {
			return fmt.Errorf("open badger in %s: %w: there is a database but no %s file", dir, storage.ErrFormat, versionFile)
		}
	}
	tmp := path + ".tmp"
	if err := writeSynced(tmp, versionText); err != nil {
		return fmt.Errorf("open badger: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("open badger: %w", err)
	}
	return syncPath(dir)
}

func writeSynced(path, text string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// Logs implements storage.Engine. It seeks from log to log.
func (e *Engine) Logs() ([]storage.LogID, error) {
	if err := e.check("list logs"); err != nil {
		return nil, err
	}
	var ids []storage.LogID
	err := e.view(func(txn *badgerdb.Txn) error {
		it := keyIterator(txn, []byte{logPrefix}, false)
		defer it.Close()
		for it.Seek([]byte{logPrefix}); it.Valid(); {
			k := it.Item().Key()
			if len(k) < prefixSize {
				return fmt.Errorf("list logs: %w: key %x", storage.ErrCorrupt, k)
			}
			id := parsePrefix(k)
			ids = append(ids, id)
			it.Seek(afterLog(id))
		}
		return nil
	})
	return ids, err
}

func (e *Engine) check(what string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fmt.Errorf("%s: %w", what, storage.ErrClosed)
	}
	return nil
}

// view runs a read; faults in Badger's memory maps (a file that was cut
// behind its back) become errors.
func (e *Engine) view(f func(*badgerdb.Txn) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(runtime.Error); !ok {
				panic(r)
			}
			err = fmt.Errorf("%w: %v", storage.ErrCorrupt, r)
		}
	}()
	txn := e.db.NewTransaction(false)
	defer txn.Discard()
	return f(txn)
}

// Figures implements storage.Engine.
func (e *Engine) Figures() map[string]float64 {
	lsm, vlog := e.db.Size()
	return map[string]float64{
		"lsm_bytes": float64(lsm), "value_log_bytes": float64(vlog),
		"syncs_total": float64(e.syncs.Load()), "collected_files_total": float64(e.collected.Load()),
		"garbage_bytes": float64(e.garbage.Load()),
	}
}

// Close implements storage.Engine. Stores that are open are closed.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	stores := make([]*store, 0, len(e.open))
	for _, s := range e.open {
		stores = append(stores, s)
	}
	e.mu.Unlock()
	for _, s := range stores {
		if err := s.Close(); err != nil {
			return err
		}
	}
	e.writes.Lock()
	defer e.writes.Unlock()
	if err := e.db.Close(); err != nil {
		return fmt.Errorf("close badger: %w", err)
	}
	return nil
}

type logger struct {
	logf func(level, message string)
}

func (l logger) log(level, format string, args []any) {
	if l.logf != nil {
		if m := strings.TrimSpace(fmt.Sprintf(format, args...)); m != "" {
			l.logf(level, m)
		}
	}
}

func (l logger) Errorf(f string, a ...any)   { l.log("error", f, a) }
func (l logger) Warningf(f string, a ...any) { l.log("warn", f, a) }
func (l logger) Infof(f string, a ...any)    { l.log("debug", f, a) }
func (l logger) Debugf(string, ...any)       {}
