//go:build linux || darwin

package storage

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestSpaceIsFullBelowTheFloorUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	free := uint64(1000)
	s, err := NewSpaceFunc("/data", 400, 0, func(dir string) (uint64, uint64, error) { return free, 2000, nil })
	if err != nil {
		t.Fatal(err)
	}
	var told []bool
	s.Tell(func(full bool) { told = append(told, full) })
	for _, step := range []struct {
		free uint64
		full bool
	}{{1000, false}, {400, false}, {399, true}, {400, true}, {499, true}, {500, false}, {450, false}, {0, true}, {2000, false}} {
		free = step.free
		if err := s.Look(); err != nil {
			t.Fatal(err)
		}
		if s.Full() != step.full {
			t.Errorf("%d bytes free: full is %v", step.free, s.Full())
		}
		if s.Free() != int64(step.free) || s.Total() != 2000 {
			t.Errorf("%d of %d bytes are said to be free", s.Free(), s.Total())
		}
	}
	if want := []bool{true, false, true, false}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// TestSpaceMarksForCopies: copies stop at the floor, or at a reserve where the floor is lower; everything at half of that.
func TestSpaceMarksForCopies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		floor       int64
		free, total uint64
		low, scarce bool
	}{
		{1000, 1000, 1200, false, false}, {1000, 999, 1200, true, false}, {1000, 499, 1200, true, true},
		{0, 250, 1000, false, false}, {0, 249, 1000, true, false}, {0, 124, 1000, true, true},
		{0, 256 << 20, 1 << 40, false, false}, {0, 255 << 20, 1 << 40, true, false}, {0, 127 << 20, 1 << 40, true, true},
	} {
		s, err := NewSpaceFunc("/data", c.floor, 0, func(string) (uint64, uint64, error) { return c.free, c.total, nil })
		if err != nil {
			t.Fatal(err)
		}
		if s.Low() != c.low || s.Scarce() != c.scarce {
			t.Errorf("floor %d, %d of %d free: low %v, scarce %v", c.floor, c.free, c.total, s.Low(), s.Scarce())
		}
	}
}

func TestSpaceThatCannotBeAskedFor(t *testing.T) {
	t.Parallel()
	broken := errors.New("stale file handle")
	fail := false
	look := func(string) (uint64, uint64, error) {
		if fail {
			return 0, 0, broken
		}
		return 10, 100, nil
	}
	s, err := NewSpaceFunc("/data", 50, 0, look)
	if err != nil {
		t.Fatal(err)
	}
	fail = true
	if err := s.Look(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "/data") {
		t.Errorf("look: %v", err)
	}
	now := false
	if s.Tell(func(full bool) { now = full }); !now {
		t.Error("who asks to be told is not told that space is below the floor already")
	}
	if !s.Full() || s.Free() != 10 {
		t.Error("a look that failed changed what was known")
	}
	if _, err := NewSpaceFunc("/data", 50, 0, look); !errors.Is(err, broken) {
		t.Errorf("new: %v", err)
	}
	if _, err := NewSpace(filepath.Join(t.TempDir(), "missing"), 1, 0); err == nil {
		t.Error("a directory that is missing has free space")
	}
}

func TestSpaceOfARealDirectory(t *testing.T) {
	t.Parallel()
	s, err := NewSpace(t.TempDir(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s.Full() || s.Total() <= 0 || s.Free() > s.Total() {
		t.Errorf("full %v, %d of %d bytes free", s.Full(), s.Free(), s.Total())
	}
	if s, err = NewSpace(t.TempDir(), 1<<62, 0); err != nil || !s.Full() {
		t.Errorf("a floor that no disk has: full %v, %v", s.Full(), err)
	}
}

func TestSpaceRunLooksAgain(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	free.Store(10)
	s, err := NewSpaceFunc("/data", 100, time.Millisecond, func(string) (uint64, uint64, error) { return free.Load(), 1000, nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	free.Store(500)
	eventually(t, "there is room again", func() bool { return !s.Full() })
	cancel()
	<-ended
}
