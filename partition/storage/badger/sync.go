package badger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sync implements storage.Engine.
//
// Badger's own Sync covers the memtable and the value log file that are written at
// the moment, not those that have rotated since (DB.Sync, valueLog.sync). So every
// memtable log and every value log file that may have changed is fsynced by its
// path, and the directory with them. What a memtable log held that is gone by then is
// in a table, which Badger fsyncs (table.CreateTable) and names in its manifest,
// fsynced too (manifestFile.addChanges), before it removes the log
// (flushMemtable). Value log files below the newest are never written again.
//
// Files are listed before anything is fsynced: what was appended before the call
// is in files that were there by then.
func (e *Engine) Sync() error {
	if err := e.enter("sync"); err != nil {
		return err
	}
	defer e.leave()
	return e.sync()
}

func (e *Engine) sync() error {
	e.syncMu.Lock()
	defer e.syncMu.Unlock()
	if err := e.failed(); err != nil {
		return err
	}
	if err := e.syncFiles(e.written.Load()); err != nil {
		// The kernel may have dropped the pages that it could not write and call
		// them clean: another fsync would succeed and lie.
		return e.fail(fmt.Errorf("sync badger: %w", err))
	}
	return nil
}

// failed returns the error after which nothing more is written, fail sets it.
func (e *Engine) failed() error {
	if err := e.broken.Load(); err != nil {
		return *err
	}
	return nil
}

func (e *Engine) fail(err error) error {
	e.broken.CompareAndSwap(nil, &err)
	return e.failed()
}

func (e *Engine) syncFiles(began uint64) error {
	entries, err := os.ReadDir(e.files)
	if err != nil {
		return err
	}
	var newestVlog, newestMem uint32
	var listing strings.Builder
	for _, f := range entries {
		name := f.Name()
		listing.WriteString(name)
		listing.WriteByte('/')
		if n, ok := fileNumber(name, vlogExt); ok {
			newestVlog = max(newestVlog, n)
		}
		if n, ok := fileNumber(name, memExt); ok {
			newestMem = max(newestMem, n)
		}
	}
	written, listed := began != e.durable, listing.String() != e.listing
	if !written && !listed {
		return nil
	}
	if written {
		for _, f := range entries {
			name := f.Name()
			if n, ok := fileNumber(name, vlogExt); ok {
				if n < e.synced || e.hooks.onlyActive && n != newestVlog {
					continue
				}
			} else if n, ok := fileNumber(name, memExt); ok {
				if e.hooks.onlyActive && n != newestMem {
					continue
				}
			} else if name != badgerDiscard {
				continue
			}
			if err := e.hooks.fsync(filepath.Join(e.files, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := e.hooks.fsync(e.files); err != nil {
		return err
	}
	e.syncs.Add(1)
	e.synced = newestVlog
	e.durable, e.listing = began, listing.String()
	return nil
}

// wrote is called after each write, before its caller is told.
func (e *Engine) wrote() { e.written.Add(1) }

// fsync makes a file or a directory durable. Pages that were dirtied through
// Badger's memory maps are included.
func fsync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
