package badger

import (
	"errors"
	"os"
	"testing"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

// Badger always picks the file with the most garbage.
func TestDamagedFileKeepsNoOtherFromBeingCollected(t *testing.T) {
	t.Parallel()
	e := openSmall(t, memoryDir(t), hooks{})
	keepID, junkID := storage.LogID{Topic: 1}, storage.LogID{Topic: 2}
	keep, err := e.Open(keepID, storage.Mark{})
	check(t, err)
	junk, err := e.Open(junkID, storage.Mark{})
	check(t, err)
	for range 60 {
		fill(t, junk, 3, 30_000)
		fill(t, keep, 1, 10_000)
	}
	check(t, e.Sync())
	bad := vlogPath(e.files, 1)
	f, err := os.OpenFile(bad, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("damage"), 50_000)
	check(t, errors.Join(err, f.Close()))

	check(t, junk.Close())
	check(t, e.Drop(junkID))
	e.garbage.Store(small.collectAfter)
	check(t, e.Collect(nil))
	if e.blocked.Load() == 0 {
		t.Fatal("nothing was refused, so nothing was tested")
	}
	if _, err := os.Stat(bad); err != nil {
		t.Fatalf("the damaged file: %v", err)
	}
	// 6 MB were written and a tenth of that lives.
	if n := e.Figures()["badger_value_log_files"]; n > 3 {
		t.Errorf("there are still %v value log files", n)
	}
	// Its garbage isn't forgotten: once nothing in it is needed, it goes.
	check(t, keep.Close())
	check(t, e.Drop(keepID))
	e.garbage.Store(small.collectAfter)
	check(t, e.Collect(nil))
	if _, err := os.Stat(bad); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the damaged file, which nobody needs: %v", err)
	}
}

// A power cut may come again while a collection is being looked after: the chunk that was
// stored again has a newer version then, and can't be read either.
func TestSalvageAfterSalvage(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	e := openSmall(t, dir, hooks{})
	id := storage.LogID{Topic: 1}
	s, err := e.Open(id, storage.Mark{})
	check(t, err)
	chunks := fill(t, s, 3, 5000)
	unreadable := func(i int, meta byte) {
		t.Helper()
		key := appendChunkKey(nil, id, chunks[i].Last, chunks[i].Base)
		check(t, e.write(func(txn *badgerdb.Txn) error {
			return txn.SetEntry(badgerdb.NewEntry(key, make([]byte, 5000)).WithMeta(meta))
		}))
	}
	unreadable(0, restoredMeta)
	unreadable(1, 0) // somebody else's business
	file := uint32(1)
	check(t, e.writeCollectNote(file))
	check(t, e.Close())

	e = openSmall(t, dir, hooks{})
	s, err = e.Open(id, storage.Mark{Next: s.Next()})
	check(t, err)
	for i, want := range []error{nil, storage.ErrCorrupt, nil} {
		var got []storage.Chunk
		err := s.Read(chunks[i].Base, func(c storage.Chunk) bool {
			c.Meta, c.Data = append([]byte(nil), c.Meta...), append([]byte(nil), c.Data...)
			got = append(got, c)
			return false
		})
		if !errors.Is(err, want) || want == nil && (err != nil || len(got) != 1 || !storagetest.Same(got[0], chunks[i])) {
			t.Errorf("chunk %d: %v, want %v", i, err, want)
		}
	}
	if _, err := e.readCollectNote(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/" + collectNote); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note is still there (%v)", err)
	}
}
