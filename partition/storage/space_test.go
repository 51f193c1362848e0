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
