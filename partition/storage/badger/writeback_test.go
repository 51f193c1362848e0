package badger

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

const copiedChunk = 256 << 10

// mend copies chunks of one offset each into a new log, and returns the bytes.
func mend(t *testing.T, e *Engine, n int64) (bytes int64, err error) {
	t.Helper()
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	for base := range n {
		c := storagetest.MakeChunk(base, base, copiedChunk, 1)
		bytes += int64(len(c.Meta) + len(c.Data))
		if err := s.Mend([]storage.Chunk{c}, nil); err != nil {
			return bytes, err
		}
	}
	return bytes, s.Settle(storage.Mark{Next: n})
}

// TestCopyGoesToDiskInPieces: no piece of a copy waits for the fsync, whichever files it is in.
func TestCopyGoesToDiskInPieces(t *testing.T) {
	t.Parallel()
	var told []string
	sz := defaultSizes
	sz.vlogFile = 5 << 20
	e, err := openEngine(storage.Options{Dir: t.TempDir()}, sz, hooks{writeback: func(path string) error {
		told = append(told, filepath.Base(path))
		return startWriteback(path)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	bytes, err := mend(t, e, 100)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(e.files, "*"+vlogExt))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d bytes are in %v (%v), want several files", bytes, files, err)
	}
	all := strings.Join(told, " ")
	for i, f := range files[:len(files)-2] { // the last piece may not be full
		if !strings.Contains(all, filepath.Base(f)) {
			t.Errorf("file %d of %d, %s, was not told of: %s", i+1, len(files), filepath.Base(f), all)
		}
	}
	if pieces := int(bytes / writebackBytes); len(told) < pieces || len(told) > pieces+len(files) {
		t.Errorf("told %d times of %d bytes in %d files: %s", len(told), bytes, len(files), all)
	}
}

// TestFailedWritebackIsFinal: what the kernel could not write it may call clean, so the next fsync proves nothing.
func TestFailedWritebackIsFinal(t *testing.T) {
	t.Parallel()
	e, err := openEngine(storage.Options{Dir: t.TempDir()}, defaultSizes, hooks{writeback: func(string) error { return unix.EIO }})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := mend(t, e, 2*writebackBytes/copiedChunk); !errors.Is(err, unix.EIO) {
		t.Fatalf("mend: %v, want %v", err, unix.EIO)
	}
	if err := e.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("sync after that: %v, want %v", err, unix.EIO)
	}
}
