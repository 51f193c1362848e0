package storagetest

import (
	"errors"
	"sync"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

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
	if want := all[9].Index; s.Reach() != want {
		t.Fatalf("reach %d, want %d", s.Reach(), want)
	}
	// The rest is hidden, and gone for good once others have come in its place.
	all = append(all[:6:6], put(t, s, 3, 14, 700, 2)...)
	want(t, s, 0, all)
	check(t, s.Close())
	var hole *storage.HoleError
	if _, err := e.Open(logA, storage.Mark{Next: 110}); !errors.As(err, &hole) || hole.From != 102 || hole.To != 110 {
		t.Fatalf("open at a higher mark: %v, want a hole from 102 to 110", err)
	}
	s = openLog(t, e, logA, 0, 102)
	want(t, s, 0, all)
	if s.Reach() != 0 {
		t.Fatalf("reach %d with nothing above the mark", s.Reach())
	}
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
