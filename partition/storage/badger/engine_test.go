package badger

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

func openSmall(t *testing.T, dir string, h hooks) *Engine {
	t.Helper()
	e, err := openEngine(storage.Options{Dir: dir}, small, h)
	check(t, err)
	t.Cleanup(func() { check(t, e.Close()) })
	return e
}

func fill(t *testing.T, s storage.Store, n, bytes int) (chunks []storage.Chunk) {
	t.Helper()
	for range n {
		c := storagetest.MakeChunk(s.Next(), s.Next()+9, bytes, 1)
		check(t, s.Append([]storage.Chunk{c}, nil))
		chunks = append(chunks, c)
	}
	return chunks
}

// Deleted keys have come back in Badger before, and unsynced deletions come back
// with every power cut.
func TestKeysThatCameBackAreNotServed(t *testing.T) {
	t.Parallel()
	e := openSmall(t, t.TempDir(), hooks{})
	id := storage.LogID{Topic: 1}
	s, err := e.Open(id, storage.Mark{})
	check(t, err)
	chunks := fill(t, s, 10, 2000)
	check(t, s.Trim(50, nil))
	back := func(base, last int64) {
		t.Helper()
		c := storagetest.MakeChunk(base, last, 1500, 666)
		key := appendChunkKey(nil, id, last, base)
		check(t, e.write(func(txn *badgerdb.Txn) error { return txn.Set(key, appendValue(nil, key, &c)) }))
	}
	verify := func(when string, from int64, want []storage.Chunk) {
		t.Helper()
		got, err := storagetest.Collect(s, from)
		check(t, err)
		if len(got) != len(want) {
			t.Fatalf("%s: %d chunks from %d, want %d", when, len(got), from, len(want))
		}
		for i := range got {
			if !storagetest.Same(got[i], want[i]) {
				t.Fatalf("%s: chunk %d..%d is not what was appended", when, got[i].Base, got[i].Last)
			}
		}
	}
	back(3, 44)  // below the start
	back(62, 75) // in the middle
	back(98, 120)
	back(100, 140) // above the end
	verify("open", 0, chunks[5:])
	check(t, s.Close())
	s, err = e.Open(id, storage.Mark{Start: 50, Next: 100})
	check(t, err)
	verify("opened anew", 0, chunks[5:])
	for i := int64(50); i < 100; i++ {
		verify("opened anew", i, chunks[i/10:])
	}
	chunks = append(chunks, fill(t, s, 3, 900)...)
	verify("after more", 0, chunks[5:])
	verify("after more", 119, chunks[11:])
}

func TestSpaceComesBack(t *testing.T) {
	t.Parallel()
	e := openSmall(t, memoryDir(t), hooks{})
	ids := []storage.LogID{{Topic: 1}, {Topic: 2}, {Topic: 3}}
	stores := make([]storage.Store, len(ids))
	for i, id := range ids {
		var err error
		stores[i], err = e.Open(id, storage.Mark{})
		check(t, err)
	}
	var keeps []storage.Chunk
	for round := range 40 {
		if round%8 == 0 {
			keeps = append(keeps, fill(t, stores[0], 1, 20_000)...) // lives in every file
		}
		fill(t, stores[1], 10, 30_000)
		fill(t, stores[2], 10, 30_000)
		check(t, stores[1].Trim(stores[1].Next()-200, nil))
		check(t, stores[2].Trim(stores[2].Next()-100, nil))
		if round%10 == 9 {
			check(t, e.Sync())
			check(t, e.Collect(nil))
		}
	}
	var live int64
	for _, s := range stores {
		live += s.Bytes()
	}
	f := e.Figures()
	t.Logf("24 MB written, %d live, %v", live, f)
	// One value log file is always open, and one may have rotated since the last flush.
	if limit := 1.5*float64(live) + 4*float64(small.vlogFile); f["badger_value_log_bytes"] > limit {
		t.Fatalf("value log takes %.0f bytes for %d that live, want at most %.0f", f["badger_value_log_bytes"], live, limit)
	}
	got, err := storagetest.Collect(stores[0], 0)
	check(t, err)
	if len(got) != len(keeps) {
		t.Fatalf("%d chunks of the log that keeps everything, want %d", len(got), len(keeps))
	}
	for i := range got {
		if !storagetest.Same(got[i], keeps[i]) {
			t.Fatalf("chunk %d was changed by a collection", i)
		}
	}
	// Dropped logs give theirs back too.
	for i, s := range stores {
		check(t, s.Close())
		check(t, e.Drop(ids[i]))
	}
	check(t, e.Sync())
	check(t, e.Collect(nil))
	check(t, e.Collect(nil))
	if n := e.Figures()["badger_value_log_bytes"]; n > 3*float64(small.vlogFile) {
		t.Fatalf("value log takes %.0f bytes after everything was dropped", n)
	}
}

// Badger would take the damage for the file's end, and remove the file.
func TestDamagedFileIsNotCollected(t *testing.T) {
	t.Parallel()
	e := openSmall(t, memoryDir(t), hooks{})
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{})
	check(t, err)
	chunks := fill(t, s, 100, 30_000)
	check(t, e.Sync())
	path := vlogPath(e.files, 1)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("damage"), 500_000)
	check(t, err)
	check(t, f.Close())
	check(t, s.Trim(120, nil)) // a third of the file, all before the damage
	e.garbage.Store(small.collectAfter)
	check(t, e.Collect(nil))
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the damaged file: %v", err)
	}
	if e.blocked.Load() == 0 {
		t.Fatal("no collection was refused")
	}
	var bad int
	for _, c := range chunks[12:] {
		var got []storage.Chunk
		err := s.Read(c.Base, func(c storage.Chunk) bool { got = append(got, c); return false })
		switch {
		case errors.Is(err, storage.ErrCorrupt):
			bad++
		case err != nil || len(got) != 1 || got[0].Base != c.Base:
			t.Fatalf("read at %d: %v", c.Base, err)
		}
	}
	if bad != 1 {
		t.Fatalf("%d chunks are damaged, want the one that was", bad)
	}
	// When the damaged chunk and all behind it are gone too, nothing stands in the way.
	check(t, s.Trim(800, nil))
	e.garbage.Store(small.collectAfter)
	check(t, e.Collect(nil))
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("the file that nobody needs is still there (%v)", err)
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk on fire")
	fail := false
	h := hooks{fsync: func(path string) error {
		if fail {
			fail = false
			return broken
		}
		return fsync(path)
	}}
	e, err := openEngine(storage.Options{Dir: t.TempDir()}, small, h)
	check(t, err)
	defer e.Close()
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{})
	check(t, err)
	fill(t, s, 3, 2000)
	check(t, e.Sync())
	fill(t, s, 3, 2000)
	fail = true
	for range 3 {
		if err := e.Sync(); !errors.Is(err, broken) {
			t.Fatalf("sync: %v, want the first error", err)
		}
	}
	if err := s.Append([]storage.Chunk{storagetest.MakeChunk(60, 60, 1, 1)}, nil); !errors.Is(err, broken) {
		t.Fatalf("append after a failed sync: %v", err)
	}
}

func TestSyncIsCheapWhenNothingHappened(t *testing.T) {
	t.Parallel()
	n := 0
	e := openSmall(t, t.TempDir(), hooks{fsync: func(path string) error { n++; return nil }})
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{})
	check(t, err)
	fill(t, s, 200, 20_000) // four value log files
	check(t, e.Sync())
	first := n
	check(t, e.Sync())
	if n != first {
		t.Fatalf("%d fsyncs for nothing", n-first)
	}
	fill(t, s, 1, 10)
	check(t, e.Sync())
	if n-first > 4 { // memtable log, newest value log file, discard table, directory
		t.Fatalf("%d fsyncs for one append, the first sync took %d", n-first, first)
	}
}

func TestAppendInSeveralTransactionsIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	var s storage.Store
	transactions := 0
	e := openSmall(t, t.TempDir(), hooks{afterAppend: func() {
		transactions++
		got, err := storagetest.Collect(s, 0)
		if err != nil || len(got) != 0 || s.Next() != 0 {
			panic("a reader saw a part of an append")
		}
	}})
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{})
	check(t, err)
	var chunks []storage.Chunk
	for i := range int64(3000) {
		chunks = append(chunks, storagetest.MakeChunk(i, i, 500, 1))
	}
	check(t, s.Append(chunks, []storage.IndexEntry{{Key: []byte("k"), Value: []byte("v")}}))
	if transactions < 2 {
		t.Fatalf("%d transactions: the test is too small", transactions)
	}
	got, err := storagetest.Collect(s, 0)
	check(t, err)
	if len(got) != len(chunks) {
		t.Fatalf("%d chunks, want %d", len(got), len(chunks))
	}
}

func FuzzValue(f *testing.F) {
	c := storagetest.MakeChunk(5, 9, 100, 1)
	key := appendChunkKey(nil, storage.LogID{Topic: 1}, 9, 5)
	f.Add(appendValue(nil, key, &c))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, v []byte) {
		var got storage.Chunk
		if err := parseValue(&got, key, v); err == nil && len(got.Meta)+len(got.Data)+valueHead != len(v) {
			t.Fatalf("%d bytes taken from %d", len(got.Meta)+len(got.Data), len(v))
		}
	})
}

func FuzzScanLog(f *testing.F) {
	dir, err := os.MkdirTemp("", "scan")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "x"+string(rune('a'+rand.IntN(26))))
		check(t, os.WriteFile(path, b, 0o600))
		end, err := scanLog(path, func(logEntry) error { return nil })
		check(t, err)
		if end > max(int64(len(b)), logHeaderBytes) {
			t.Fatalf("end %d of %d bytes", end, len(b))
		}
		check(t, findChunks(b, func(logEntry) error { return nil }))
	})
}
