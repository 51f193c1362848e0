package storagetest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

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
