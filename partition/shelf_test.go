package partition

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// countedStore counts what is read from it.
type countedStore struct {
	storage.Store
	reads, chunks int
	damaged       int64 // offset of a batch that is; 0: none
}

func (s *countedStore) Read(offset int64, visit func(storage.Chunk) bool) error {
	s.reads++
	return s.Store.Read(offset, func(c storage.Chunk) bool {
		s.chunks++
		if c.Base <= s.damaged && s.damaged <= c.Last && s.damaged > 0 {
			c.Data = slices.Clone(c.Data)
			for rest := c.Data; len(rest) > 0; {
				b, after, err := record.Split(rest)
				if err != nil {
					return false
				}
				if b.BaseOffset() == s.damaged {
					b[len(b)-1] ^= 1
				}
				rest = after
			}
		}
		return visit(c)
	})
}

// TestShelfSparesReads: a batch that one reader shared is not read from the store again, from whatever offset on; what it
// doesn't have is, and no record is passed over or comes twice where the two meet.
func TestShelfSparesReads(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 200, "x", "y")
	m := machineAt(t, log, len(log))
	m.tail.clear()
	s := &countedStore{Store: m.store}
	m.store = s
	read := func(from, most int64, shared bool) (got []record.Batch) {
		t.Helper()
		if err := m.batchesFrom(from, "t/0", func(b record.Batch) (bool, bool) {
			got = append(got, slices.Clone(b))
			return b.LastOffset()+1 < most, shared
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	all := read(0, 200, false)
	again := read(0, 200, false)
	if s.reads != 2 || len(again) != len(all) {
		t.Fatalf("%d reads, %d batches after %d: what nobody shares is kept", s.reads, len(again), len(all))
	}
	read(0, 100, true)
	for _, from := range []int64{0, 1, 57, 99} {
		before := s.reads
		if got := read(from, 100, true); got[0].LastOffset() < from || got[0].BaseOffset() > from || s.reads != before {
			t.Errorf("from %d: first batch at %d, %d reads more", from, got[0].BaseOffset(), s.reads-before)
		}
	}
	before := s.chunks
	got := read(0, 200, true)
	if !slices.EqualFunc(got, all, func(a, b record.Batch) bool { return bytes.Equal(a, b) }) {
		t.Errorf("half from the shelf, half from the store: %d batches, want %d", len(got), len(all))
	}
	if n := s.chunks - before; n > 110 {
		t.Errorf("%d chunks of the store were read for the half that the shelf lacks", n)
	}
	m.shelf.clear()
	before = s.reads
	if read(0, 100, false); s.reads != before+1 {
		t.Error("a shelf that was cleared has something")
	}
	// What other replicas have something else at isn't served from memory either.
	read(0, 200, true)
	m.condemned.Store(&condemned{50, 60})
	if err := m.batchesFrom(55, "t/0", func(record.Batch) (bool, bool) { return true, false }); err == nil {
		t.Error("a condemned offset was read")
	}
	if got := read(40, 200, false); got[len(got)-1].LastOffset() != 49 {
		t.Errorf("read up to %d, want 49", got[len(got)-1].LastOffset())
	}
}

// TestShelfTakesChunksWhole: who has enough in the middle of a chunk has the rest of it kept, which he would read all of it for. What
// is damaged there isn't kept: whoever wants it hears of it.
func TestShelfTakesChunksWhole(t *testing.T) {
	t.Parallel()
	item := func(value string) func([]byte) []byte { return itemOf(t, -1, record.NoProducer, nil, value) }
	log := [][]byte{command(commandHeader{kind: kindStart, term: 1}),
		command(commandHeader{kind: kindAppend, term: 1, counter: 1, logTime: 1}, item("a"), item("b"), item("c"), item("d")),
		command(commandHeader{kind: kindAppend, term: 1, counter: 2, logTime: 2}, item("e"))}
	m := machineAt(t, log, len(log))
	m.tail.clear()
	s := &countedStore{Store: m.store}
	m.store = s
	first := func(from int64) *Error {
		return m.batchesFrom(from, "t/0", func(record.Batch) (more, shared bool) { return false, true })
	}
	for from := range int64(4) {
		if err := first(from); err != nil || s.reads != 1 {
			t.Fatalf("offset %d: %d reads, %v", from, s.reads, err)
		}
	}
	if err := first(4); err != nil || s.reads != 2 {
		t.Fatalf("the next chunk: %d reads, %v", s.reads, err)
	}
	m.shelf.clear()
	s.damaged = 2
	for from, want := range []bool{true, true, false} {
		if err := first(int64(from)); (err == nil) != want || err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("offset %d: %v", from, err)
		}
	}
}

// TestShelfIsBounded: by itself and by the broker's budget, which it gives back; and what it handed out stays as it was.
func TestShelfIsBounded(t *testing.T) {
	t.Parallel()
	b := batch(t, record.NoProducer, string(make([]byte, 60<<10)))
	budget := &TailBudget{Limit: 64 << 20}
	s := shelf{budget: budget}
	at := func(offset int64) record.Batch {
		x := slices.Clone(b)
		x.Stamp(offset, 1)
		return x
	}
	s.put(at(0), s.generation())
	first := s.from(0)
	was := slices.Clone(first)
	for i := int64(1); i < 500; i++ {
		s.put(at(i), s.generation())
		if got := s.from(i); got == nil {
			t.Fatalf("batch %d isn't there", i)
		}
		if s.bytes > maxShelfBytes || budget.used.Load() != s.bytes {
			t.Fatalf("%d bytes of at most %d, %d of the budget", s.bytes, maxShelfBytes, budget.used.Load())
		}
	}
	if s.from(0) != nil || s.from(500) != nil || !bytes.Equal(first, was) {
		t.Error("the oldest is still there, or isn't what it was")
	}
	budget.Limit = 1
	s.put(at(1000), s.generation())
	if s.from(1000) != nil {
		t.Error("it grows beyond the broker's budget")
	}
	budget.Limit = 0
	generation := s.generation()
	s.clear()
	s.put(at(0), generation)
	if s.from(0) != nil || budget.used.Load() != 0 {
		t.Errorf("what was read before it was cleared is kept, or %d bytes of the budget are", budget.used.Load())
	}
	s.close()
	s.put(at(0), s.generation())
	if s.from(0) != nil {
		t.Error("it goes on after close")
	}
}

// BenchmarkShelf is a batch of 500 records from the shelf; it takes no memory.
func BenchmarkShelf(b *testing.B) {
	values := make([]string, 500)
	for i := range values {
		values[i] = string(make([]byte, 128))
	}
	x := batch(b, record.NoProducer, values...)
	x.Stamp(0, 1)
	var s shelf
	s.put(x, 0)
	next := int64(0)
	visit := func([]byte, bool) bool { next += 500; return true }
	b.ReportAllocs()
	b.SetBytes(int64(len(x)))
	for b.Loop() {
		next = 0
		s.walk(&next, 500, visit)
	}
}
