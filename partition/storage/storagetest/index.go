package storagetest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

func index(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	// Neighbours, so that a seek which leaves the log is noticed.
	ids := []storage.LogID{{Topic: 1, Partition: 2, Replica: 2}, logA, {Topic: 1, Partition: 2, Replica: 4}}
	stores := make([]storage.Store, len(ids))
	for i, id := range ids {
		stores[i] = openLog(t, e, id, 0, 0)
		if id != logA {
			check(t, stores[i].Append([]storage.Chunk{MakeChunk(0, 0, 3000, 1)}, []storage.IndexEntry{
				{Key: []byte{0}, Value: []byte("low")}, {Key: bytes.Repeat([]byte{255}, 60), Value: []byte("high")}}))
		}
	}
	s := stores[1]
	seek := func(key, upTo, wantKey string) {
		t.Helper()
		var up []byte
		if upTo != "" {
			up = []byte(upTo)
		}
		k, v, ok, err := s.Seek([]byte(key), up)
		check(t, err)
		if string(k) != wantKey || ok != (wantKey != "") || ok && string(v) != "v"+wantKey {
			t.Fatalf("seek %q up to %q: %q=%q %v, want %q", key, upTo, k, v, ok, wantKey)
		}
	}
	back := func(key, wantKey string) {
		t.Helper()
		k, v, ok, err := s.SeekBack([]byte(key))
		check(t, err)
		if string(k) != wantKey || ok != (wantKey != "") || ok && string(v) != "v"+wantKey {
			t.Fatalf("seek back %q: %q=%q %v, want %q", key, k, v, ok, wantKey)
		}
	}
	seek("a", "", "")
	back("z", "")
	var pairs []storage.IndexEntry
	for _, k := range []string{"b", "bb", "d", "f"} {
		pairs = append(pairs, storage.IndexEntry{Key: []byte(k), Value: []byte("v" + k)})
	}
	check(t, s.Append([]storage.Chunk{MakeChunk(0, 0, 10, 1)}, pairs))
	for range 2 {
		seek("a", "", "b")
		seek("b", "", "b")
		seek("ba", "", "bb")
		seek("c", "", "d")
		seek("c", "d", "")
		seek("c", "da", "d")
		seek("g", "", "")
		back("a", "")
		back("b", "b")
		back("ba", "b")
		back("c", "bb")
		back("z", "f")
		check(t, e.Sync())
		check(t, s.Close())
		s = openLog(t, e, logA, 0, 1)
	}
	// Overwrite, delete, and an empty value, which is not a deletion.
	check(t, s.Append(nil, []storage.IndexEntry{{Key: []byte("b")}, {Key: []byte("d"), Value: []byte{}}, {Key: []byte("nothing")}}))
	seek("a", "", "bb")
	if k, v, ok, err := s.Seek([]byte("c"), nil); err != nil || !ok || string(k) != "d" || len(v) != 0 {
		t.Fatalf("empty value: %q=%q %v %v", k, v, ok, err)
	}
	check(t, s.Trim(0, []byte("d")))
	if k, _, ok, err := s.Seek([]byte("a"), nil); err != nil || !ok || string(k) != "d" {
		t.Fatalf("after a trim below d: %q %v %v", k, ok, err)
	}
	want(t, s, 0, []storage.Chunk{MakeChunk(0, 0, 10, 1)})
}

func indexTogether(t *testing.T, open Opener) {
	s := openLog(t, engine(t, open, t.TempDir()), logA, 0, 0)
	for i := range int64(50) {
		k := binary.BigEndian.AppendUint64(nil, uint64(i))
		check(t, s.Append([]storage.Chunk{MakeChunk(i*10, i*10+9, int(i)*60, 1)}, []storage.IndexEntry{{Key: k, Value: k}}))
	}
	for i := range uint64(50) {
		k, v, ok, err := s.Seek(binary.BigEndian.AppendUint64(nil, i), nil)
		check(t, err)
		if !ok || binary.BigEndian.Uint64(k) != i || !bytes.Equal(k, v) {
			t.Fatalf("pair %d: %x %x %v", i, k, v, ok)
		}
	}
}
