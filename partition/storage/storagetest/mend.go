package storagetest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

// survey collects what a survey visits.
func survey(t *testing.T, s storage.Store, from, to int64) (out []storage.Chunk) {
	t.Helper()
	check(t, s.Survey(from, to, func(c storage.Chunk) bool {
		c.Meta, c.Data = bytes.Clone(c.Meta), bytes.Clone(c.Data)
		out = append(out, c)
		return true
	}))
	return out
}

func same(t *testing.T, what string, got, want []storage.Chunk) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d chunks, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !Same(got[i], want[i]) {
			t.Fatalf("%s: chunk %d is %d..%d, want %d..%d, or its content differs", what, i, got[i].Base, got[i].Last, want[i].Base, want[i].Last)
		}
	}
}

func made(from, to, step int64, size int, salt uint64) (out []storage.Chunk) {
	for at := from; at < to; at += step {
		out = append(out, MakeChunk(at, min(at+step, to)-1, size, salt))
	}
	return out
}

// mendAbove fills a log above its end, out of order and in two runs, and shows it then.
func mendAbove(t *testing.T, open Opener) {
	dir := t.TempDir()
	e := engine(t, open, dir)
	s := openLog(t, e, logA, 0, 0)
	all := append(put(t, s, 3, 10, 1500, 1), made(30, 200, 10, 1500, 1)...)
	check(t, s.Mend(all[12:20], []storage.IndexEntry{{Key: []byte("b"), Value: []byte("2")}}))
	check(t, s.Mend(all[5:8], nil))
	want(t, s, 0, all[:3])
	if s.Next() != 30 {
		t.Fatalf("next is %d after a mend above it, want 30", s.Next())
	}
	if err := s.Append(all[3:4], nil); !errors.Is(err, storage.ErrUnsettled) {
		t.Fatalf("append to a mended log: %v, want ErrUnsettled", err)
	}
	var hole *storage.HoleError
	if err := s.Settle(storage.Mark{Next: 200}); !errors.As(err, &hole) || hole.From != 30 || hole.To != 50 {
		t.Fatalf("settle with holes: %v, want one from 30 to 50", err)
	}
	want(t, s, 0, all[:3])
	same(t, "survey", survey(t, s, 25, 85), append(append([]storage.Chunk(nil), all[2]), all[5:8]...))
	// What was mended outlives an end in between, hidden as before.
	check(t, e.Sync())
	check(t, s.Close())
	check(t, e.Close())
	e = engine(t, open, dir)
	s = openLog(t, e, logA, 0, 30)
	want(t, s, 0, all[:3])
	if s.Reach() != all[19].Index {
		t.Fatalf("reach %d, want %d", s.Reach(), all[19].Index)
	}
	same(t, "survey", survey(t, s, 30, 1000), append(append([]storage.Chunk(nil), all[5:8]...), all[12:20]...))
	check(t, s.Mend(all[3:5], nil))
	check(t, s.Mend(all[8:12], []storage.IndexEntry{{Key: []byte("a"), Value: []byte("1")}}))
	check(t, s.Settle(storage.Mark{Start: 15, Next: 180}))
	want(t, s, 0, all[1:18])
	if s.Next() != 180 || s.Bytes() != sizeOf(all[1:18]) {
		t.Fatalf("next %d, %d bytes, want 180 and %d", s.Next(), s.Bytes(), sizeOf(all[1:18]))
	}
	same(t, "survey above", survey(t, s, 180, 1000), nil)
	more := put(t, s, 2, 5, 100, 3)
	want(t, s, 0, append(all[1:18:18], more...))
	for _, k := range []string{"a", "b"} {
		if _, _, ok, err := s.Seek([]byte(k), append([]byte(k), 0)); !ok || err != nil {
			t.Fatalf("index pair %q of a mend: %v, %v", k, ok, err)
		}
	}
	check(t, s.Close())
	s = openLog(t, e, logA, 15, 190)
	want(t, s, 15, append(all[1:18:18], more...))
}

// mendOver replaces chunks by others with other bounds.
func mendOver(t *testing.T, open Opener) {
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	old := put(t, s, 10, 10, 2000, 1)
	other := made(33, 61, 7, 1200, 9)
	check(t, s.Mend(other, nil))
	var hole *storage.HoleError
	if err := s.Settle(storage.Mark{Next: 100}); !errors.As(err, &hole) || hole.From != 30 || hole.To != 33 {
		t.Fatalf("settle: %v, want a hole from 30 to 33", err)
	}
	check(t, s.Mend(made(30, 33, 3, 10, 9), nil))
	check(t, s.Mend(made(61, 70, 9, 10, 9), nil))
	check(t, s.Settle(storage.Mark{Next: 100}))
	all := append(append(append(append([]storage.Chunk(nil), old[:3]...), made(30, 33, 3, 10, 9)...), other...), made(61, 70, 9, 10, 9)...)
	all = append(all, old[7:]...)
	want(t, s, 0, all)
	if s.Bytes() != sizeOf(all) {
		t.Fatalf("%d bytes, want %d", s.Bytes(), sizeOf(all))
	}
	// An empty log anywhere: what is stored above and below doesn't count.
	check(t, s.Settle(storage.Mark{Start: 500, Next: 500}))
	want(t, s, 0, nil)
	all = put(t, s, 2, 10, 10, 1)
	want(t, s, 0, all)
	if all[0].Base != 500 {
		t.Fatalf("the next chunk begins at %d, want 500", all[0].Base)
	}
}

// mendAtRandom: whatever order the pieces come in, the log is whole in the end.
func mendAtRandom(t *testing.T, open Opener) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	e := engine(t, open, t.TempDir())
	s := openLog(t, e, logA, 0, 0)
	all := made(0, 3000, 10, 700, 1)
	check(t, s.Append(all[:rng.IntN(len(all))], nil))
	for i := range 40 { // of another history, partly over what is shown
		at := rng.Int64N(2900)
		check(t, s.Mend(made(at, at+1+rng.Int64N(100), 1+rng.Int64N(20), 50, uint64(100+i)), nil))
	}
	for _, p := range rng.Perm(len(all) / 20) {
		check(t, s.Mend(all[p*20:p*20+20], nil))
	}
	check(t, s.Settle(storage.Mark{Next: 3000}))
	want(t, s, 0, all)
	same(t, "survey", survey(t, s, 0, 1<<40), all)
}
