// Package badger keeps partition logs in Badger: one database a broker, chunks
// in its value log, keys in its LSM tree.
//
// Writes are not fsynced one by one; Sync makes all that came before it durable.
// docs/format/storage.md describes the bytes, docs/adr/0020 to 0022 say which of
// Badger's habits are worked around, and where in its source they are.
//
//	badger.go     the engine: sizes, opening, closing, listing
//	directory.go  version and lock of the directory
//	preflight.go  what is looked at, and set right, before Badger opens
//	tables.go     verification of tables and manifest
//	valuelog.go   reading value log files and memtable logs without Badger
//	keys.go       keys and values
//	guard.go      faults and panics of Badger's become errors
//	store.go      one log: open, append, read, seek
//	trim.go       deleting: trim, reset, drop
//	sync.go       durability
//	writeback.go  what copies write goes to disk early
//	collect.go    giving space back, and what a power cut in it leaves
package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/parleymq/parley/partition/storage"
)

func init() {
	storage.Register("badger", func(o storage.Options) (storage.Engine, error) {
		e, err := openEngine(o, defaultSizes, hooks{})
		if err != nil {
			return nil, err
		}
		return e, nil
	})
}

// sizes of an engine; tests use small ones, so that files rotate at once.
type sizes struct {
	memTable int64
	vlogFile int64
	// collectAfter is how much must have been freed before tables are compacted
	// to find out where.
	collectAfter int64
}

// The LSM tree holds keys and pointers, about 130 bytes a chunk, so a memtable of
// 16 MiB covers 8 GiB of 64 KiB chunks: anything larger only costs memory. A
// memtable takes up to 1.3 times its size on the heap and as much again in the map
// of its log; with at most two waiting that is below 130 MiB in the worst burst,
// and a few MiB when idle, as untouched pages of either cost nothing.
//
// A value log file is the unit in which space comes back. 256 MiB bounds what one
// collection rewrites and wastes, and 1 TiB of log is still only 4,096 open files.
var defaultSizes = sizes{memTable: 16 << 20, vlogFile: 256 << 20, collectAfter: 128 << 20}

const (
	memTables   = 2
	minMemTable = 4 << 20
	maxMemTable = 64 << 20
	// valueThreshold: larger values go to the value log, which is written once.
	// With Badger's default of 1 MiB each batch would be rewritten by every compaction.
	valueThreshold = 1 << 10
	// magic is checked by Badger in its manifest: another program's database is
	// refused even if somebody copies a VERSION file next to it.
	magic = 0x504c
	// dbDir is the directory that Badger has for itself.
	dbDir = "db"
)

// Engine is one Badger database. It implements storage.Engine.
type Engine struct {
	db    *badgerdb.DB
	dir   string // Options.Dir
	files string // Badger's directory in it
	lock  *os.File
	sizes sizes
	log   *logger

	// writes is held by writers in shared mode, exclusively while a memtable is
	// flushed by force: Badger refuses writes during that.
	writes sync.RWMutex

	use     gate
	closing chan struct{} // closed when Close begins
	stop    sync.Once

	mu   sync.Mutex
	open map[storage.LogID]*store // nil while a log is being opened or dropped

	buffers sync.Pool // *txnBuffer

	syncMu  sync.Mutex
	synced  uint32 // value log files below it are durable and will not change
	written atomic.Uint64
	durable uint64 // what written was when the newest sync began
	listing string // names of the files at the newest sync

	writeback writeback

	collectMu sync.Mutex
	hidden    map[uint32]uint64     // garbage of files that are not collected; under collectMu
	garbage   atomic.Int64          // value log bytes freed since the tables were last compacted
	damage    atomic.Bool           // something was missing or unreadable since Open
	broken    atomic.Pointer[error] // after it nothing is written any more

	syncs, collected, blocked atomic.Int64

	hooks hooks
}

// hooks switch safeguards off or watch them, for the tests that show what they
// are for. Production code never sets them.
type hooks struct {
	fsync       func(path string) error // instead of fsync
	writeback   func(path string) error // instead of startWriteback
	onlyActive  bool                    // Sync leaves out files that have rotated
	noGuard     bool                    // Collect neither defers the deletion of a file nor notes it down
	noNote      bool                    // Collect does not note down which file it is at
	midCollect  func(step string)       // at each step of a collection
	afterAppend func()                  // after each transaction of an append
}

func openEngine(o storage.Options, sz sizes, h hooks) (_ *Engine, err error) {
	if o.Dir == "" {
		return nil, errors.New("no directory given")
	}
	if h.fsync == nil {
		h.fsync = fsync
	}
	if h.writeback == nil {
		h.writeback = startWriteback
	}
	if o.MemoryBytes > 0 {
		// Three memtables at most, each with its log.
		sz.memTable = min(max(o.MemoryBytes/8, minMemTable), maxMemTable)
	}
	e := &Engine{
		dir: o.Dir, files: filepath.Join(o.Dir, dbDir), sizes: sz, hooks: h,
		log:  &logger{logf: o.Logf},
		open: make(map[storage.LogID]*store), closing: make(chan struct{}),
	}
	e.buffers.New = func() any { return new(txnBuffer) }
	if e.lock, err = takeDirectory(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlock(e.lock))
		}
	}()
	interrupted, err := e.preflight()
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", e.files, err)
	}
	if e.db, err = openDB(e.options()); err != nil {
		return nil, fmt.Errorf("open %s: %w", e.files, err)
	}
	if _, err := e.newestValueLog(&e.writeback); err != nil {
		return nil, errors.Join(fmt.Errorf("look for the newest value log: %w", err), e.db.Close())
	}
	e.written.Store(1)
	e.garbage.Store(e.sizes.collectAfter) // what was freed before is not known
	if err := e.salvage(interrupted); err != nil {
		return nil, errors.Join(fmt.Errorf("finish the collection that was interrupted: %w", err), e.db.Close())
	}
	return e, nil
}

func (e *Engine) options() badgerdb.Options {
	return badgerdb.DefaultOptions(e.files).
		WithLogger(e.log).
		WithExternalMagic(magic).
		WithBypassLockGuard(true). // engine.lock is held
		WithSyncWrites(false).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithMetricsEnabled(false).
		WithMemTableSize(e.sizes.memTable).
		WithNumMemtables(memTables).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(16).
		WithNumCompactors(2). // Badger's least
		WithBaseTableSize(min(4<<20, e.sizes.memTable)).
		WithValueThreshold(valueThreshold).
		WithValueLogFileSize(e.sizes.vlogFile).
		// Uncompressed, unencrypted tables are read from their memory maps, and so are
		// their indexes: Badger's caches would hold copies of what the page cache has.
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		// Badger checks nothing that it reads unless told to.
		WithChecksumVerificationMode(options.OnBlockRead).
		WithVerifyValueChecksum(true).
		WithCompactL0OnClose(false)
}

// openDB turns the panics with which Badger meets some damaged files into errors.
func openDB(opt badgerdb.Options) (db *badgerdb.DB, err error) {
	err = guarded(func() (err error) {
		db, err = badgerdb.Open(opt)
		return err
	})
	if err == nil || errors.Is(err, storage.ErrCorrupt) {
		return db, err
	}
	// Badger wraps without keeping what it wraps: only the text tells.
	text := strings.ToLower(err.Error())
	for _, sign := range []string{"permission denied", "no space left", "too many open files", "cannot allocate memory", "input/output error"} {
		if strings.Contains(text, sign) {
			return nil, err
		}
	}
	for _, sign := range []string{"checksum", "magic", "corrupt", "manifest", "truncat", "eof", "invalid", "unmarshal", "does not exist for table"} {
		if strings.Contains(text, sign) {
			return nil, fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
		}
	}
	return nil, err
}

// Logs implements storage.Engine. It seeks from log to log.
func (e *Engine) Logs() ([]storage.LogID, error) {
	if err := e.enter("list logs"); err != nil {
		return nil, err
	}
	defer e.leave()
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

// Figures implements storage.Engine.
func (e *Engine) Figures() map[string]float64 {
	var tables, vlogs, memlogs, files float64
	entries, err := os.ReadDir(e.files)
	if err == nil {
		for _, f := range entries {
			size := allocated(f)
			switch filepath.Ext(f.Name()) {
			case tableExt:
				tables += size
			case vlogExt:
				vlogs += size
				files++
			case memExt:
				memlogs += size
			}
		}
	}
	e.mu.Lock()
	open := len(e.open)
	e.mu.Unlock()
	return map[string]float64{
		"badger_table_bytes":            tables,
		"badger_value_log_bytes":        vlogs,
		"badger_value_log_files":        files,
		"badger_memtable_log_bytes":     memlogs,
		"badger_freed_bytes":            float64(e.garbage.Load()),
		"badger_open_logs":              float64(open),
		"badger_syncs_total":            float64(e.syncs.Load()),
		"badger_collected_files_total":  float64(e.collected.Load()),
		"badger_collect_refusals_total": float64(e.blocked.Load()),
	}
}

// Close implements storage.Engine. A collection under way ends early; stores that
// are open are closed. What was not synced is left to the operating system: a
// checkpoint says what is durable.
func (e *Engine) Close() error {
	e.stop.Do(func() { close(e.closing) })
	if !e.use.close() {
		return nil
	}
	if err := errors.Join(e.unhide(), e.db.Close(), e.lock.Close()); err != nil {
		return fmt.Errorf("close badger: %w", err)
	}
	return nil
}

// logger hands Badger's lines on, and hears from them when a collection begins.
type logger struct {
	logf func(level, message string)
	// rewriting is called, when set, with the number of the value log file that
	// Badger is about to rewrite, from the goroutine that collects.
	rewriting atomic.Pointer[func(file uint32)]
}

// rewritingLine is what Badger logs right before it rewrites a file.
const rewritingLine = "Rewriting fid: %d"

func (l *logger) log(level, format string, args []any) {
	if l.logf != nil {
		if m := strings.TrimSpace(fmt.Sprintf(format, args...)); m != "" {
			l.logf(level, m)
		}
	}
}

func (l *logger) Errorf(f string, a ...any)   { l.log("error", f, a) }
func (l *logger) Warningf(f string, a ...any) { l.log("warn", f, a) }
func (l *logger) Debugf(string, ...any)       {}
func (l *logger) Infof(f string, a ...any) {
	if f == rewritingLine && len(a) == 1 {
		if heard := l.rewriting.Load(); heard != nil {
			if file, ok := a[0].(uint32); ok {
				(*heard)(file)
			}
		}
	}
	l.log("debug", f, a)
}
