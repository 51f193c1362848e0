package storagetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

func appendAndRead(t *testing.T, open Opener) {
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	if s.Next() != 0 || s.Bytes() != 0 {
		t.Fatalf("new log: next %d, %d bytes", s.Next(), s.Bytes())
	}
	want(t, s, 0, nil)
	var all []storage.Chunk
	for i, size := range []int{0, 1, 100, 990, 1024, 1100, 70_000, 16} {
		all = append(all, put(t, s, 1, i+1, size, 7)...)
	}
	if s.Next() != 36 || s.Bytes() != sizeOf(all) {
		t.Fatalf("next %d, %d bytes, want 36 and %d", s.Next(), s.Bytes(), sizeOf(all))
	}
	for i, c := range all {
		want(t, s, c.Base, all[i:])
		want(t, s, c.Last, all[i:])
	}
	want(t, s, -5, all)
	want(t, s, s.Next(), nil)
	want(t, s, 1000, nil)
	n := 0
	check(t, s.Read(0, func(storage.Chunk) bool { n++; return n < 3 }))
	if n != 3 {
		t.Fatalf("visit was called %d times after it said stop at the third", n)
	}
	// What the store was given is the caller's again.
	c := MakeChunk(36, 36, 5000, 1)
	kept := c
	kept.Data, kept.Meta = bytes.Clone(c.Data), bytes.Clone(c.Meta)
	check(t, s.Append([]storage.Chunk{c}, nil))
	clear(c.Data)
	clear(c.Meta)
	want(t, s, 36, []storage.Chunk{kept})
	check(t, e.Sync())
	check(t, s.Close())
	check(t, s.Close())
}

func mustAdjoin(t *testing.T, open Opener) {
	s := openLog(t, engine(t, open, t.TempDir()), logA, 0, 0)
	all := put(t, s, 2, 5, 50, 1)
	for name, chunks := range map[string][]storage.Chunk{
		"gap":           {MakeChunk(11, 12, 8, 1)},
		"overlap":       {MakeChunk(9, 12, 8, 1)},
		"again":         {all[1]},
		"backwards":     {MakeChunk(10, 9, 8, 1)},
		"gap in a call": {MakeChunk(10, 12, 8, 1), MakeChunk(14, 15, 8, 1)},
	} {
		err := s.Append(chunks, []storage.IndexEntry{{Key: []byte("k"), Value: []byte("v")}})
		if !errors.Is(err, storage.ErrGap) {
			t.Errorf("%s: %v, want ErrGap", name, err)
		}
	}
	if _, _, ok, err := s.Seek([]byte("k"), nil); ok || err != nil {
		t.Fatalf("a refused append left an index pair (%v)", err)
	}
	want(t, s, 0, all)
	all = append(all, put(t, s, 1, 1, 1, 1)...)
	want(t, s, 0, all)
}

func limits(t *testing.T, open Opener) {
	s := openLog(t, engine(t, open, t.TempDir()), logA, 0, 0)
	for name, call := range map[string]struct {
		chunk storage.Chunk
		pair  storage.IndexEntry
	}{
		"meta":      {storage.Chunk{Meta: make([]byte, storage.MaxMetaBytes+1)}, storage.IndexEntry{Key: []byte("k")}},
		"empty key": {storage.Chunk{}, storage.IndexEntry{Value: []byte("v")}},
		"key":       {storage.Chunk{}, storage.IndexEntry{Key: make([]byte, storage.MaxIndexKeyBytes+1)}},
		"value":     {storage.Chunk{}, storage.IndexEntry{Key: []byte("k"), Value: make([]byte, storage.MaxIndexValueBytes+1)}},
	} {
		if err := s.Append([]storage.Chunk{call.chunk}, []storage.IndexEntry{call.pair}); !errors.Is(err, storage.ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
	c := storage.Chunk{Meta: make([]byte, storage.MaxMetaBytes)}
	k, v := bytes.Repeat([]byte{0xff}, storage.MaxIndexKeyBytes), make([]byte, storage.MaxIndexValueBytes)
	check(t, s.Append([]storage.Chunk{c}, []storage.IndexEntry{{Key: k, Value: v}}))
	got, value, ok, err := s.SeekBack(k)
	check(t, err)
	if !ok || !bytes.Equal(got, k) || !bytes.Equal(value, v) {
		t.Fatal("the largest pair did not come back")
	}
	want(t, s, 0, []storage.Chunk{c})
}

func bigChunks(t *testing.T, open Opener) {
	if testing.Short() {
		t.Skip("large")
	}
	s := openLog(t, engine(t, open, t.TempDir()), logA, 0, 0)
	var all []storage.Chunk
	for _, size := range []int{1 << 20, 9 << 20, 10, 3 << 20} {
		all = append(all, put(t, s, 1, 1000, size, 1)...)
	}
	want(t, s, 0, all)
	want(t, s, 1500, all[1:])
}

func oneLargeCall(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	var chunks []storage.Chunk
	var pairs []storage.IndexEntry
	for i := range int64(30_000) {
		chunks = append(chunks, MakeChunk(i, i, 40, 1))
		pairs = append(pairs, storage.IndexEntry{Key: binary.BigEndian.AppendUint64(nil, uint64(i)), Value: make([]byte, 200)})
	}
	check(t, s.Append(chunks, pairs))
	want(t, s, 0, chunks)
	k, _, ok, err := s.SeekBack([]byte{0xff})
	check(t, err)
	if !ok || binary.BigEndian.Uint64(k) != 29_999 {
		t.Fatalf("last pair: %x %v", k, ok)
	}
	if s.Bytes() != sizeOf(chunks) {
		t.Fatalf("%d bytes, want %d", s.Bytes(), sizeOf(chunks))
	}
	check(t, s.Trim(29_000, binary.BigEndian.AppendUint64(nil, 29_000)))
	want(t, s, 0, chunks[29_000:])
}

func noAllocationPerRecord(t *testing.T, open Opener) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := openLog(t, engine(t, open, t.TempDir()), logA, 0, 0)
	const records = 1000
	data := make([]byte, 64<<10)
	next := int64(0)
	appends := testing.AllocsPerRun(100, func() {
		c := storage.Chunk{Base: next, Last: next + records - 1, Data: data}
		if err := s.Append([]storage.Chunk{c}, nil); err != nil {
			t.Fatal(err)
		}
		next += records
	})
	read := func(chunks int) float64 {
		return testing.AllocsPerRun(20, func() {
			n := 0
			if err := s.Read(0, func(storage.Chunk) bool { n++; return n < chunks }); err != nil {
				t.Fatal(err)
			}
		})
	}
	one, many := read(1), read(101)
	t.Logf("allocations: append of a chunk %.0f, read of one %.0f, of each further one %.2f", appends, one, (many-one)/100)
	if appends > records/10 || one > records/10 || (many-one)/100 > records/10 {
		t.Fatalf("allocations: append %.0f, read of one chunk %.0f, of 101 %.0f; a chunk holds %d records", appends, one, many, records)
	}
}
