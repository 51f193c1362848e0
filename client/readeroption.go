package client

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// A ReaderOption configures NewReader.
type ReaderOption interface{ reader(*readerConfig) error }

type readerOption func(*readerConfig) error

func (o readerOption) reader(c *readerConfig) error { return o(c) }

type readerConfig struct {
	from       startAt
	offset     int64
	offsets    map[int32]int64
	time       time.Time
	partitions []int32 // nil: all
	untilEnd   bool
	prefetch   int
	outOfRange OutOfRangePolicy
}

type startAt int

const (
	startEarliest startAt = iota
	startLatest
	startOffset
	startOffsets
	startTime
)

// DefaultPrefetch is how many bytes a Reader fetches ahead.
const DefaultPrefetch = 8 << 20

// A Start says where to begin: an option of NewReader, and of Subscribe and its kin, where
// it holds for the member that makes the group; afterwards a group goes on where it is.
type Start struct {
	at     startAt
	offset int64
	time   time.Time
}

func (s Start) check() error {
	if s.at == startOffset && s.offset < 0 {
		return fmt.Errorf("start offset %d: must be 0 or more", s.offset)
	}
	return nil
}

func (s Start) reader(c *readerConfig) error {
	c.from, c.offset, c.time = s.at, s.offset, s.time
	return s.check()
}

// FromEarliest starts at the oldest record there is. It is the default.
func FromEarliest() Start { return Start{at: startEarliest} }

// FromLatest starts after the newest record there is when NewReader or Subscribe is
// called: what is published after it has returned is read.
func FromLatest() Start { return Start{at: startLatest} }

// FromOffset starts each partition at this offset.
func FromOffset(offset int64) Start { return Start{at: startOffset, offset: offset} }

// FromOffsets starts each partition that is a key at its offset and the others at
// the earliest: what Positions returned goes on where that Reader was.
func FromOffsets(offsets map[int32]int64) ReaderOption {
	return readerOption(func(c *readerConfig) error {
		for p, o := range offsets {
			if p < 0 || o < 0 {
				return fmt.Errorf("start offset %d of partition %d: both must be 0 or more", o, p)
			}
		}
		c.from, c.offsets = startOffsets, maps.Clone(offsets)
		return nil
	})
}

// FromTime starts each partition at the first record that was stored at or after
// t, by the log's own time, to the millisecond.
func FromTime(t time.Time) Start { return Start{at: startTime, time: t} }

// Partitions reads these partitions. Without it a Reader reads all, also those
// that are added later.
func Partitions(partitions ...int32) ReaderOption {
	return readerOption(func(c *readerConfig) error {
		if len(partitions) == 0 {
			return fmt.Errorf("partitions: name at least one")
		}
		c.partitions = slices.Clone(partitions)
		slices.Sort(c.partitions)
		c.partitions = slices.Compact(c.partitions)
		if c.partitions[0] < 0 {
			return fmt.Errorf("partition %d: must be 0 or more", c.partitions[0])
		}
		return nil
	})
}

// UntilEnd ends the Reader where each partition ended when NewReader was called.
func UntilEnd() ReaderOption {
	return readerOption(func(c *readerConfig) error { c.untilEnd = true; return nil })
}

// PrefetchBytes is what Prefetch returns.
type PrefetchBytes int

// Prefetch bounds in bytes what is fetched ahead, over all partitions, at least
// 64 KiB. Each partition may hold one fetch beyond it, which is a share of the
// bound between 64 KiB and 1 MiB. Default 8 MiB.
func Prefetch(bytes int) PrefetchBytes { return PrefetchBytes(bytes) }

func (p PrefetchBytes) check() error {
	if p < minFetch {
		return fmt.Errorf("prefetch of %d bytes: at least %d", int(p), minFetch)
	}
	return nil
}

func (p PrefetchBytes) reader(c *readerConfig) error {
	c.prefetch = int(p)
	return p.check()
}

// OutOfRangePolicy says what to do when retention has removed, or the log doesn't
// reach, the offset that a Reader is at.
type OutOfRangePolicy int

const (
	OutOfRangeFail     OutOfRangePolicy = iota // return an *OffsetOutOfRangeError
	OutOfRangeEarliest                         // go on at the oldest record
	OutOfRangeLatest                           // go on after the newest record
)

// OnOutOfRange sets the OutOfRangePolicy. Default OutOfRangeFail.
func OnOutOfRange(p OutOfRangePolicy) ReaderOption {
	return readerOption(func(c *readerConfig) error {
		if p < OutOfRangeFail || p > OutOfRangeLatest {
			return fmt.Errorf("out of range policy %d: use one of the constants", p)
		}
		c.outOfRange = p
		return nil
	})
}

// Bounds of a fetch.
const (
	minFetch   = 64 << 10
	maxFetches = 32               // of partitions known to have more; a fetch brings a whole batch, however large
	fetchWait  = 10 * time.Second // how long a broker holds a fetch at the end of the log
)

// fetchBytes is what one fetch asks for when n partitions share the bound.
func (c *readerConfig) fetchBytes(n int) int { return fetchShare(c.prefetch, n) }

func fetchShare(prefetch, n int) int {
	return min(max(prefetch/(2*max(n, 1)), minFetch), wire.MaxFetch)
}
