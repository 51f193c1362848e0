package badger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// writeback has what a copy writes go to disk piece by piece, long before the fsync that makes it durable. Else
// a copy leaves as much as it has room for to that one fsync, and each ack of the same disk waits behind it
// (docs/adr/0181). It promises nothing: Sync fsyncs what it would have fsynced anyway.
type writeback struct {
	mu      sync.Mutex
	pending int64
	file    uint32 // the newest value log file, as last seen
}

// writebackBytes is a piece. The last pages of each, up to 2 MiB where the kernel keeps a file in such units, are
// written again with the next one.
const writebackBytes = 8 << 20

// copied is told of the bytes that a copy has written to the value log.
func (e *Engine) copied(bytes int64) error {
	w := &e.writeback
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending += bytes; w.pending < writebackBytes {
		return nil
	}
	w.pending = 0
	first, err := e.newestValueLog(w)
	if err != nil {
		return err
	}
	for n := first; n <= w.file; n++ {
		if err := e.hooks.writeback(vlogPath(e.files, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			// As after an fsync: what the kernel could not write it may call clean.
			return e.fail(fmt.Errorf("write back badger: %w", err))
		}
	}
	return nil
}

// newestValueLog brings w.file up to date, and returns the first file that may have been written to since.
func (e *Engine) newestValueLog(w *writeback) (first uint32, err error) {
	if w.file == 0 {
		entries, err := os.ReadDir(e.files)
		if err != nil {
			return 0, err
		}
		for _, f := range entries {
			if n, ok := fileNumber(f.Name(), vlogExt); ok {
				w.file = max(w.file, n)
			}
		}
	}
	first = max(w.file, 1)
	for { // they are numbered one after the other
		switch _, err := os.Stat(vlogPath(e.files, w.file+1)); {
		case errors.Is(err, fs.ErrNotExist):
			return first, nil
		case err != nil:
			return 0, err
		}
		w.file++
	}
}
