// Package storagetest is the conformance suite of storage engines. An engine's
// own tests run it:
//
//	storagetest.Run(t, func(t *testing.T, dir string) storage.Engine { … })
package storagetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

// Opener opens the engine in dir. What an engine stored in dir before it was
// closed must be there.
type Opener func(t *testing.T, dir string) storage.Engine

// Run runs the suite. The test that calls it must not be parallel.
func Run(t *testing.T, open Opener) {
	t.Run("no allocation per record", func(t *testing.T) { noAllocationPerRecord(t, open) })
	for _, test := range []struct {
		name string
		run  func(*testing.T, Opener)
	}{
		{"append and read", appendAndRead},
		{"chunks must adjoin", mustAdjoin},
		{"limits", limits},
		{"index", index},
		{"index and chunks together", indexTogether},
		{"trim", trim},
		{"reset", reset},
		{"drop", drop},
		{"reopen at the mark", reopenAtMark},
		{"other chunks above the mark", otherChunksAbove},
		{"holes", holes},
		{"big chunks", bigChunks},
		{"one large call", oneLargeCall},
		{"many logs", manyLogs},
		{"in use", inUse},
		{"closed", closed},
		{"readers beside a writer", readersBesideWriter},
		{"random operations", randomOperations},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, open)
		})
	}
}

var logA = storage.LogID{Topic: 1, Partition: 2, Replica: 3}

// MakeChunk makes a chunk whose content follows from its offsets and salt.
func MakeChunk(base, last int64, bytes int, salt uint64) storage.Chunk {
	c := storage.Chunk{
		Base: base, Last: last, Index: uint64(base)*3 + salt, LogTime: 1_700_000_000_000 + base,
		Meta: binary.BigEndian.AppendUint64(nil, salt), Data: make([]byte, bytes),
	}
	r := rand.NewPCG(uint64(base), salt)
	for i := 0; i+8 <= len(c.Data); i += 8 {
		binary.LittleEndian.PutUint64(c.Data[i:], r.Uint64())
	}
	return c
}

// Same tells whether two chunks are equal in everything.
func Same(a, b storage.Chunk) bool {
	return a.Base == b.Base && a.Last == b.Last && a.Index == b.Index && a.LogTime == b.LogTime &&
		bytes.Equal(a.Meta, b.Meta) && bytes.Equal(a.Data, b.Data)
}

// Collect reads everything from offset on; the chunks are copies.
func Collect(s storage.Store, offset int64) (out []storage.Chunk, err error) {
	err = s.Read(offset, func(c storage.Chunk) bool {
		c.Meta, c.Data = bytes.Clone(c.Meta), bytes.Clone(c.Data)
		out = append(out, c)
		return true
	})
	return out, err
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func engine(t *testing.T, open Opener, dir string) storage.Engine {
	t.Helper()
	e := open(t, dir)
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func openLog(t *testing.T, e storage.Engine, id storage.LogID, start, next int64) storage.Store {
	t.Helper()
	s, err := e.Open(id, storage.Mark{Start: start, Next: next})
	check(t, err)
	return s
}

// put appends n chunks of per records each and returns them.
func put(t *testing.T, s storage.Store, n, per, bytes int, salt uint64) (out []storage.Chunk) {
	t.Helper()
	for range n {
		c := MakeChunk(s.Next(), s.Next()+int64(per)-1, bytes, salt)
		check(t, s.Append([]storage.Chunk{c}, nil))
		out = append(out, c)
	}
	return out
}

// want checks that reading from offset gives exactly these chunks.
func want(t *testing.T, s storage.Store, offset int64, chunks []storage.Chunk) {
	t.Helper()
	got, err := Collect(s, offset)
	check(t, err)
	if len(got) != len(chunks) {
		t.Fatalf("read from %d: %d chunks, want %d", offset, len(got), len(chunks))
	}
	for i := range got {
		if !Same(got[i], chunks[i]) {
			t.Fatalf("read from %d: chunk %d is %d..%d (index %d), want %d..%d (index %d), or its content differs",
				offset, i, got[i].Base, got[i].Last, got[i].Index, chunks[i].Base, chunks[i].Last, chunks[i].Index)
		}
	}
}

func sizeOf(chunks []storage.Chunk) (n int64) {
	for _, c := range chunks {
		n += int64(len(c.Meta) + len(c.Data))
	}
	return n
}

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

func reopenAtMark(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	all := put(t, s, 10, 10, 2500, 1)
	check(t, e.Sync())
	check(t, e.Close())
	e = engine(t, open, dir)
	s = openLog(t, e, logA, 0, 60)
	want(t, s, 0, all[:6])
	if s.Next() != 60 || s.Bytes() != sizeOf(all[:6]) {
		t.Fatalf("next %d, %d bytes, want 60 and %d", s.Next(), s.Bytes(), sizeOf(all[:6]))
	}
	// The rest is gone for good, not hidden.
	check(t, s.Close())
	var hole *storage.HoleError
	if _, err := e.Open(logA, storage.Mark{Next: 100}); !errors.As(err, &hole) || hole.From != 60 || hole.To != 100 {
		t.Fatalf("open at the higher mark: %v, want a hole from 60 to 100", err)
	}
	s = openLog(t, e, logA, 0, 60)
	all = append(all[:6:6], put(t, s, 3, 3, 700, 2)...)
	want(t, s, 0, all)
	ids, err := e.Logs()
	check(t, err)
	if len(ids) != 1 || ids[0] != logA {
		t.Fatalf("logs: %v", ids)
	}
}

// otherChunksAbove: after a crash the entries above the mark are applied again,
// but perhaps not in the same portions.
func otherChunksAbove(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	all := put(t, s, 5, 10, 2500, 1)
	for round := range 4 {
		put(t, s, 3+round, 7+round, 1500+300*round, 99) // what a crash leaves
		check(t, e.Close())
		e = engine(t, open, dir)
		s = openLog(t, e, logA, 0, all[len(all)-1].Last+1)
		want(t, s, 0, all)
		all = append(all, put(t, s, 2, 5, 1200, uint64(round))...)
		want(t, s, 0, all)
		want(t, s, all[len(all)-1].Last, all[len(all)-1:])
	}
}

func holes(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	all := put(t, s, 10, 10, 2500, 1)
	check(t, s.Trim(30, nil))
	check(t, s.Close())
	expect := func(start, next, from, to int64) {
		t.Helper()
		var hole *storage.HoleError
		_, err := e.Open(logA, storage.Mark{Start: start, Next: next})
		if !errors.As(err, &hole) || *hole != (storage.HoleError{Log: logA, From: from, To: to}) {
			t.Fatalf("open from %d to %d: %v, want a hole from %d to %d", start, next, err, from, to)
		}
	}
	expect(0, 100, 0, 30)
	expect(25, 100, 25, 30)
	expect(30, 130, 100, 130)
	expect(200, 210, 200, 210)
	// A mark in the middle of a chunk was never one: that chunk can't be served in part.
	expect(30, 95, 90, 95)
	// Nothing was deleted by any of these.
	s = openLog(t, e, logA, 30, 100)
	want(t, s, 0, all[3:])
	check(t, s.Close())
	// A lone replica opens anyway; what is there is served, the next offset stands.
	s, err := e.Open(logA, storage.Mark{Start: 10, Next: 130, AllowHoles: true})
	check(t, err)
	if s.Next() != 130 {
		t.Fatalf("next is %d, want 130", s.Next())
	}
	want(t, s, 0, all[3:])
	want(t, s, 110, nil)
	more := put(t, s, 1, 5, 100, 1)
	want(t, s, 0, append(all[3:len(all):len(all)], more...))
	if _, err := e.Open(storage.LogID{Topic: 7}, storage.Mark{Start: 5, Next: 3}); err == nil {
		t.Fatal("a mark that ends before it begins was taken")
	}
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

func manyLogs(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	const n = 60
	all := make(map[storage.LogID][]storage.Chunk)
	var mu sync.Mutex
	var writers sync.WaitGroup
	for i := range uint64(n) {
		id := storage.LogID{Topic: i % 4, Partition: i / 4 % 5, Replica: i}
		s := openLog(t, e, id, 0, 0)
		writers.Go(func() {
			var mine []storage.Chunk
			for j := range 10 {
				c := MakeChunk(s.Next(), s.Next()+int64(j), 300*j, i)
				if err := s.Append([]storage.Chunk{c}, nil); err != nil {
					t.Error(err)
					return
				}
				mine = append(mine, c)
			}
			mu.Lock()
			defer mu.Unlock()
			all[id] = mine
		})
	}
	writers.Wait()
	check(t, e.Sync())
	check(t, e.Close())
	e = engine(t, open, dir)
	ids, err := e.Logs()
	check(t, err)
	if len(ids) != n {
		t.Fatalf("%d logs, want %d", len(ids), n)
	}
	for i, id := range ids {
		if i > 0 && !ids[i-1].Less(id) {
			t.Fatalf("%s is listed before %s", ids[i-1], id)
		}
		s := openLog(t, e, id, 0, 55)
		want(t, s, 0, all[id])
	}
}

func inUse(t *testing.T, open Opener) {
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	if _, err := e.Open(logA, storage.Mark{}); !errors.Is(err, storage.ErrInUse) {
		t.Fatalf("second open: %v, want ErrInUse", err)
	}
	check(t, s.Close())
	check(t, openLog(t, e, logA, 0, 0).Close())
}

func closed(t *testing.T, open Opener) {
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	put(t, s, 1, 1, 10, 1)
	check(t, s.Close())
	calls := func(s storage.Store) map[string]error {
		_, _, _, seek := s.Seek(nil, nil)
		_, _, _, back := s.SeekBack([]byte{1})
		return map[string]error{
			"append": s.Append([]storage.Chunk{MakeChunk(1, 1, 1, 1)}, nil),
			"read":   s.Read(0, func(storage.Chunk) bool { return true }),
			"seek":   seek, "seek back": back,
			"trim": s.Trim(1, nil), "reset": s.Reset(0),
		}
	}
	for name, err := range calls(s) {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s on a closed store: %v, want ErrClosed", name, err)
		}
	}
	s = openLog(t, e, logA, 0, 1)
	check(t, e.Close())
	check(t, e.Close())
	for name, err := range calls(s) {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s on a closed engine: %v, want ErrClosed", name, err)
		}
	}
	_, err := e.Open(logA, storage.Mark{})
	_, listErr := e.Logs()
	for name, err := range map[string]error{"open": err, "sync": e.Sync(), "drop": e.Drop(logA), "logs": listErr} {
		if !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s on a closed engine: %v, want ErrClosed", name, err)
		}
	}
}

func readersBesideWriter(t *testing.T, open Opener) {
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	const chunks = 400
	var start atomic.Int64
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				from, next := start.Load(), s.Next()
				expect := int64(-1)
				err := s.Read(from, func(c storage.Chunk) bool {
					if expect >= 0 && c.Base != expect {
						t.Errorf("chunk at %d after one that ended below %d", c.Base, expect)
						return false
					}
					if !Same(c, MakeChunk(c.Base, c.Last, len(c.Data), 5)) {
						t.Errorf("chunk at %d was changed", c.Base)
						return false
					}
					expect = c.Last + 1
					return true
				})
				if err != nil {
					t.Errorf("read from %d: %v", from, err)
					return
				}
				if expect >= 0 && expect < next {
					t.Errorf("read ended at %d, next was %d before it began", expect, next)
				}
			}
		})
	}
	for i := range int64(chunks) {
		check(t, s.Append([]storage.Chunk{MakeChunk(s.Next(), s.Next()+i%5, int(i%7)*500, 5)}, nil))
		if i%20 == 19 {
			at := s.Next() * 2 / 3
			start.Store(at)
			check(t, s.Trim(at, nil))
		}
		if i%100 == 50 {
			check(t, e.Sync())
		}
		if i == chunks/2 {
			check(t, e.Collect(nil))
		}
	}
	close(done)
	readers.Wait()
}

// randomOperations compares an engine with the simplest model there is.
func randomOperations(t *testing.T, open Opener) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	var model []storage.Chunk
	var start int64
	pairs := make(map[string]string)
	verify := func() {
		t.Helper()
		from := start
		if s.Next() > start {
			from = start + r.Int64N(s.Next()-start+1)
		}
		var rest []storage.Chunk
		for _, c := range model {
			if c.Last >= from {
				rest = append(rest, c)
			}
		}
		want(t, s, from, rest)
		if s.Bytes() != sizeOf(model) {
			t.Fatalf("%d bytes, want %d", s.Bytes(), sizeOf(model))
		}
		key := fmt.Sprintf("%02d", r.IntN(40))
		above, below := "", ""
		for k := range pairs {
			if k >= key && (above == "" || k < above) {
				above = k
			}
			if k <= key && k > below {
				below = k
			}
		}
		k, v, _, err := s.Seek([]byte(key), nil)
		check(t, err)
		if string(k) != above || string(v) != pairs[above] {
			t.Fatalf("seek %s: %s=%s, want %s=%s", key, k, v, above, pairs[above])
		}
		k, v, _, err = s.SeekBack([]byte(key))
		check(t, err)
		if string(k) != below || string(v) != pairs[below] {
			t.Fatalf("seek back %s: %s=%s, want %s=%s", key, k, v, below, pairs[below])
		}
	}
	for step := range 600 {
		switch p := r.IntN(100); {
		case p < 70:
			var chunks []storage.Chunk
			next := s.Next()
			for range r.IntN(4) {
				c := MakeChunk(next, next+r.Int64N(30), r.IntN(3000), uint64(step))
				chunks, next = append(chunks, c), c.Last+1
			}
			var index []storage.IndexEntry
			for range r.IntN(3) {
				k := fmt.Sprintf("%02d", r.IntN(40))
				if r.IntN(4) == 0 {
					index = append(index, storage.IndexEntry{Key: []byte(k)})
					delete(pairs, k)
				} else {
					v := fmt.Sprint(step)
					index = append(index, storage.IndexEntry{Key: []byte(k), Value: []byte(v)})
					pairs[k] = v
				}
			}
			check(t, s.Append(chunks, index))
			model = append(model, chunks...)
		case p < 80:
			if s.Next() > start {
				start += r.Int64N(s.Next() - start + 1)
			}
			below := fmt.Sprintf("%02d", r.IntN(10))
			check(t, s.Trim(start, []byte(below)))
			for len(model) > 0 && model[0].Last < start {
				model = model[1:]
			}
			for k := range pairs {
				if k < below {
					delete(pairs, k)
				}
			}
		case p < 82:
			start = r.Int64N(1000)
			check(t, s.Reset(start))
			model = nil
			clear(pairs)
		case p < 90:
			check(t, e.Sync())
		case p < 92:
			check(t, e.Collect(nil))
		case p < 95:
			next := s.Next()
			check(t, s.Close())
			if p == 94 {
				check(t, e.Close())
				e = engine(t, open, dir)
			}
			s = openLog(t, e, logA, start, next)
		}
		verify()
	}
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
