package storagetest

import (
	"errors"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

func trim(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	all := put(t, s, 20, 10, 3000, 1)
	check(t, s.Trim(0, nil))
	want(t, s, 0, all)
	check(t, s.Trim(45, nil)) // in the middle of the fifth chunk, which stays
	want(t, s, 0, all[4:])
	want(t, s, 44, all[4:])
	want(t, s, 60, all[6:])
	if s.Bytes() != sizeOf(all[4:]) || s.Next() != 200 {
		t.Fatalf("next %d, %d bytes, want 200 and %d", s.Next(), s.Bytes(), sizeOf(all[4:]))
	}
	check(t, s.Trim(45, nil))
	check(t, s.Trim(10, nil)) // backwards: nothing happens
	want(t, s, 0, all[4:])
	all = append(all, put(t, s, 2, 10, 500, 1)...)
	check(t, e.Sync())
	check(t, s.Close())
	s = openLog(t, e, logA, 45, 220)
	want(t, s, 0, all[4:])
	if s.Bytes() != sizeOf(all[4:]) {
		t.Fatalf("%d bytes after reopening, want %d", s.Bytes(), sizeOf(all[4:]))
	}
	check(t, s.Trim(220, nil))
	want(t, s, 0, nil)
	if s.Bytes() != 0 || s.Next() != 220 {
		t.Fatalf("all trimmed: next %d, %d bytes", s.Next(), s.Bytes())
	}
	put(t, s, 1, 1, 10, 1)
	want(t, s, 0, []storage.Chunk{MakeChunk(220, 220, 10, 1)})
	check(t, e.Collect(nil))
	want(t, s, 0, []storage.Chunk{MakeChunk(220, 220, 10, 1)})
}

func reset(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	other := openLog(t, e, storage.LogID{Topic: 1, Partition: 2, Replica: 4}, 0, 0)
	kept := put(t, other, 3, 1, 2000, 9)
	put(t, s, 10, 10, 2000, 1)
	check(t, s.Append(nil, []storage.IndexEntry{{Key: []byte("k"), Value: []byte("v")}}))
	check(t, s.Reset(5000))
	if s.Next() != 5000 || s.Bytes() != 0 {
		t.Fatalf("after a reset: next %d, %d bytes", s.Next(), s.Bytes())
	}
	want(t, s, 0, nil)
	if _, _, ok, err := s.Seek([]byte("a"), nil); ok || err != nil {
		t.Fatalf("an index pair outlived the reset (%v)", err)
	}
	all := put(t, s, 3, 7, 1500, 2)
	want(t, s, 0, all)
	check(t, e.Sync())
	check(t, s.Close())
	s = openLog(t, e, logA, 5000, 5021)
	want(t, s, 0, all)
	// Backwards too: a snapshot may begin lower than what was there.
	check(t, s.Reset(3))
	all = put(t, s, 2, 2, 1500, 3)
	want(t, s, 0, all)
	want(t, other, 0, kept)
}

func drop(t *testing.T, open Opener) {
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	other := openLog(t, e, storage.LogID{Topic: 1, Partition: 3, Replica: 3}, 0, 0)
	kept := put(t, other, 3, 1, 2000, 9)
	put(t, s, 10, 10, 2000, 1)
	check(t, s.Append(nil, []storage.IndexEntry{{Key: []byte("k"), Value: []byte("v")}}))
	if err := e.Drop(logA); !errors.Is(err, storage.ErrInUse) {
		t.Fatalf("drop of an open log: %v, want ErrInUse", err)
	}
	check(t, s.Close())
	check(t, e.Drop(logA))
	check(t, e.Drop(logA))
	check(t, e.Drop(storage.LogID{Topic: 99}))
	ids, err := e.Logs()
	check(t, err)
	if len(ids) != 1 || ids[0] != (storage.LogID{Topic: 1, Partition: 3, Replica: 3}) {
		t.Fatalf("logs after the drop: %v", ids)
	}
	var hole *storage.HoleError
	if _, err := e.Open(logA, storage.Mark{Next: 100}); !errors.As(err, &hole) {
		t.Fatalf("open of a dropped log at its old mark: %v, want a HoleError", err)
	}
	s = openLog(t, e, logA, 0, 0)
	want(t, s, 0, nil)
	if _, _, ok, err := s.Seek([]byte("a"), nil); ok || err != nil {
		t.Fatalf("an index pair outlived the drop (%v)", err)
	}
	want(t, other, 0, kept)
}
