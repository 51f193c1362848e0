package partition

import (
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

// TestDropUnproven: a recovered log isn't taken for one that has lost its end because of what is
// stored above its checkpoint; what is below stays.
func TestDropUnproven(t *testing.T) {
	t.Parallel()
	engine, err := storage.OpenEngine("badger", storage.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close() //nolint:errcheck // nothing is kept
	id := storage.LogID{Topic: 1, Replica: 2}
	s, err := engine.Open(id, storage.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(2) {
		if err := s.Append([]storage.Chunk{{Base: 3 * i, Last: 3*i + 2, Index: uint64(7 + i), Data: []byte("batch")}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mark := storage.Mark{Next: 3}
	for range 2 { // it can be repeated
		if err := dropUnproven(engine, id, mark); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = engine.Open(id, mark); err != nil || s.Reach() != 0 || s.Next() != 3 || s.Bytes() == 0 {
		t.Fatalf("reach %d, next %d, %d bytes, %v", s.Reach(), s.Next(), s.Bytes(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
