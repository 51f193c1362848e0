package memory

import (
	"errors"
	"testing"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t *testing.T, dir string) storage.Engine {
		e, err := storage.OpenEngine("memory", storage.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
}

func TestCrashKeepsWhatWasSynced(t *testing.T) {
	t.Parallel()
	d := NewDisk()
	e, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(); !errors.Is(err, storage.ErrInUse) {
		t.Fatalf("second open: %v, want ErrInUse", err)
	}
	id := storage.LogID{Topic: 1}
	s, err := e.Open(id, storage.Mark{})
	if err != nil {
		t.Fatal(err)
	}
	put := func(s storage.Store, n int, salt uint64) {
		t.Helper()
		for range n {
			if err := s.Append([]storage.Chunk{storagetest.MakeChunk(s.Next(), s.Next()+4, 100, salt)}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(s, 2, 1)
	if err := e.Sync(); err != nil {
		t.Fatal(err)
	}
	put(s, 3, 2)
	e.Crash()
	if err := s.Append(nil, nil); !errors.Is(err, storage.ErrClosed) {
		t.Fatalf("append after the crash: %v, want ErrClosed", err)
	}
	for range 2 {
		if e, err = d.Open(); err != nil {
			t.Fatal(err)
		}
		var hole *storage.HoleError
		if _, err := e.Open(id, storage.Mark{Next: 25}); !errors.As(err, &hole) || hole.From != 10 {
			t.Fatalf("open above what was synced: %v, want a hole from 10 on", err)
		}
		if s, err = e.Open(id, storage.Mark{Next: 10}); err != nil {
			t.Fatal(err)
		}
		put(s, 1, 3) // not synced: it must not leak into what was
		e.Crash()
	}
}
