//go:build linux || darwin

package storage

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSpaceEvery is how often free space is looked at by default.
const DefaultSpaceEvery = 250 * time.Millisecond

// spaceReserve is what copies leave on a disk whatever the floor is, unless that is more than a quarter of it: files are reserved ahead, 64 MiB
// of the Raft log's at once, and a disk without room for them ends the process.
const spaceReserve = 256 << 20

// A Space watches the free space of the file system that holds a directory.
// Below the floor it is Full, until a quarter of the floor more is free again:
// engines and replicated logs break badly on a full disk (a write through a
// memory map raises SIGBUS), so publishes are refused while there is still room.
//
// What others publish comes to this broker's replicas all the same, and copies of whole partitions do. So there are two more marks, which
// follow from the floor and a reserve that holds for low floors too: below the first one space is Low and no copy goes on, below half of
// it space is Scarce and nothing at all should be taken in.
type Space struct {
	dir    string
	floor  uint64
	every  time.Duration
	look   func(dir string) (free, total uint64, err error)
	free   atomic.Uint64
	total  atomic.Uint64
	full   atomic.Bool
	low    atomic.Bool
	scarce atomic.Bool
	tell   atomic.Pointer[func(full bool)]
}

// NewSpace looks once and fails if it can't. Run keeps looking.
func NewSpace(dir string, floorBytes int64, every time.Duration) (*Space, error) {
	return newSpace(dir, floorBytes, every, statfs)
}

// NewSpaceFunc is NewSpace with another way to look, for tests: look returns
// the bytes that are free and those there are.
func NewSpaceFunc(dir string, floorBytes int64, every time.Duration, look func(dir string) (free, total uint64, err error)) (*Space, error) {
	return newSpace(dir, floorBytes, every, look)
}

func newSpace(dir string, floorBytes int64, every time.Duration, look func(string) (uint64, uint64, error)) (*Space, error) {
	if every <= 0 {
		every = DefaultSpaceEvery
	}
	s := &Space{dir: dir, floor: uint64(max(floorBytes, 0)), every: every, look: look}
	if err := s.Look(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run looks every so often until ctx ends. A look that fails changes nothing:
// a file system that can't be asked is reported by those who write to it.
func (s *Space) Run(ctx context.Context) {
	t := time.NewTicker(s.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_ = s.Look()
		}
	}
}

// Look asks the file system now.
func (s *Space) Look() error {
	free, total, err := s.look(s.dir)
	if err != nil {
		return fmt.Errorf("ask for free space of %s: %w", s.dir, err)
	}
	s.free.Store(free)
	s.total.Store(total)
	was := s.full.Load()
	full := below(free, s.floor, was)
	s.full.Store(full)
	mark := s.mark()
	s.low.Store(below(free, mark, s.low.Load()))
	s.scarce.Store(below(free, mark/2, s.scarce.Load()))
	if tell := s.tell.Load(); tell != nil && full != was {
		(*tell)(full)
	}
	return nil
}

// below a mark, until a quarter of it more is there.
func below(free, mark uint64, was bool) bool {
	if was {
		return free < mark+mark/4
	}
	return free < mark
}

// Tell has f called whenever the floor is crossed, in either direction, and at once if space is
// below it already.
func (s *Space) Tell(f func(full bool)) {
	s.tell.Store(&f)
	if s.full.Load() {
		f(true)
	}
}

// mark is below what space is Low.
func (s *Space) mark() uint64 { return max(s.floor, min(spaceReserve, s.total.Load()/4)) }

// ForCopies is how many bytes must be free for copies to go on.
func (s *Space) ForCopies() int64 {
	mark := s.mark()
	if s.low.Load() {
		mark += mark / 4
	}
	return int64(mark)
}

// Full tells whether publishes must be refused.
func (s *Space) Full() bool { return s.full.Load() }

// Low tells whether copies of partitions must wait.
func (s *Space) Low() bool { return s.low.Load() }

// Scarce tells whether nothing may be taken in, whoever acks it.
func (s *Space) Scarce() bool { return s.scarce.Load() }

// Free is how many bytes were free at the last look, Total how many there are.
func (s *Space) Free() int64  { return int64(s.free.Load()) }
func (s *Space) Total() int64 { return int64(s.total.Load()) }

func statfs(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	size := uint64(st.Bsize)
	return st.Bavail * size, st.Blocks * size, nil
}
