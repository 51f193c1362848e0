// Package storage is the seam between a partition and the engine that keeps
// its log on disk. It is shaped like a log, not like a key-value store: chunks
// of record batches are appended, read from an offset, and trimmed from the
// front; beside them there is one small ordered index per partition.
//
// Appends are not fsynced one by one. What is durable is said by checkpoints:
// the Checkpointer captures each partition's state, makes everything stored so
// far durable (Engine.Sync), and only then writes the checkpoint. A partition
// opens at its newest checkpoint; the Store drops whatever lies above it and the
// replicated log applies the rest again.
package storage

import (
	"errors"
	"fmt"
)

// LogID names one replica's log. All three come from counters that are never
// reused, so that nothing old can surface under something new.
type LogID struct {
	Topic     uint64
	Partition uint64
	Replica   uint64
}

func (id LogID) String() string {
	return fmt.Sprintf("t%d-p%d-r%d", id.Topic, id.Partition, id.Replica)
}

// Less orders ids by topic, partition and replica.
func (id LogID) Less(o LogID) bool {
	if id.Topic != o.Topic {
		return id.Topic < o.Topic
	}
	if id.Partition != o.Partition {
		return id.Partition < o.Partition
	}
	return id.Replica < o.Replica
}

// A Chunk is what one replicated entry stored: record batches with adjoining
// offsets. Meta is small, opaque to the store, and kept with the chunk.
type Chunk struct {
	Base    int64  // offset of the first record
	Last    int64  // offset of the last record
	Index   uint64 // index of the replicated entry
	LogTime int64  // log time, Unix milliseconds
	Meta    []byte
	Data    []byte // whole record batches, byte for byte
}

// IndexEntry is a pair of the ordered index. Keys order bytewise. A nil Value
// deletes the key.
type IndexEntry struct {
	Key   []byte // 1..64 bytes
	Value []byte // up to 256 bytes
}

// Mark says what a log is known to hold durably: every offset in [Start, Next).
type Mark struct {
	Start int64
	Next  int64
	// AllowHoles opens a log although chunks are missing between Start and
	// Next: for a lone replica, which serves what verifies. Next stays the
	// store's next offset even where the newest chunks are the missing ones,
	// and nothing is deleted below Next.
	AllowHoles bool
}

// A Store is one replica's log. Append, Trim, Reset, Mend and Settle have one
// caller at a time; the rest may be called concurrently with them and with each other.
type Store interface {
	// Append stores chunks and index entries, all or nothing. They are visible
	// to readers on return and durable after the next Engine.Sync. The first
	// chunk's Base must be Next(). The store copies what it keeps.
	//
	// An engine may have to split a very large call. It does so between chunks
	// only; the index entries then come with or before the last chunk, Next
	// moves once, at the end, and readers see nothing before that. After an error other
	// than ErrGap and ErrTooLarge the store takes no more appends: open it anew.
	Append(chunks []Chunk, index []IndexEntry) error

	// Read calls visit with the chunk that holds offset and those after it, in
	// order, until visit returns false or the end is reached. The slices of a
	// chunk are valid during the call only; the caller verifies the batches' CRCs, the
	// store verifies everything else of a chunk (ErrCorrupt names the offset).
	// An offset below the first stored chunk starts at that chunk. What is
	// visible is what Next() said when the call began. Where chunks are missing
	// it is ErrCorrupt with the offsets; a log that was opened with AllowHoles
	// goes on behind the hole.
	//
	// Visit copies and returns: the engine may hold a file for it that its writer
	// waits for. So it must neither wait for anything (a socket, a lock that an
	// appender holds) nor call the store.
	Read(offset int64, visit func(Chunk) bool) error

	// Next is one above the newest stored offset.
	Next() int64

	// Reach is the highest Chunk.Index that was there when the log was opened,
	// those above the mark included; 0 when there was none above it. The
	// replicated log must bring that entry again, or it has lost what it had.
	Reach() uint64

	// Seek returns the first index pair whose key is at or above key and, with
	// upTo non-nil, below upTo. The slices are the caller's.
	Seek(key, upTo []byte) (k, v []byte, ok bool, err error)

	// SeekBack returns the last index pair whose key is at or below key.
	SeekBack(key []byte) (k, v []byte, ok bool, err error)

	// Trim gives back the space of chunks that lie wholly below start, and of
	// index pairs below indexBelow. It may do so lazily. Only ask for it once a checkpoint
	// with this start is durable.
	Trim(start int64, indexBelow []byte) error

	// Reset drops everything; the next chunk's Base will be next.
	Reset(next int64) error

	// Survey visits, in the order of their last offsets, the chunks that end at or
	// above from and begin below to, and passes over what can't be read. Those that are
	// hidden above Next are visited too; chunks may overlap and leave gaps. Visit is as in Read.
	Survey(from, to int64, visit func(Chunk) bool) error

	// Mend stores chunks that adjoin each other, and index pairs with or before the
	// last of them, wherever their offsets are: whatever overlaps them goes. What lies
	// above Next stays hidden. From the first Mend to Settle the log takes no appends.
	Mend(chunks []Chunk, index []IndexEntry) error

	// Settle makes m the log's bounds, as if it had been opened at m: what was hidden
	// below m.Next is shown, what lies above is dropped. Where chunks don't adjoin it
	// is a *HoleError, and nothing has changed.
	Settle(m Mark) error

	// Bytes is the size of the stored chunks as appended, Data and Meta.
	Bytes() int64

	// Close releases the store, not the data.
	Close() error
}

// An Engine keeps the logs of one broker in one directory.
type Engine interface {
	// Open opens or creates a log, hides every chunk above m.Next (it goes at the
	// latest when others come in its place) and verifies that the chunks' ranges
	// adjoin from m.Start up to m.Next. It returns a *HoleError
	// where they don't; nothing is deleted then. Index pairs are not dropped: those of
	// entries above the checkpoint stay until the entries are applied again.
	Open(id LogID, m Mark) (Store, error)

	// Logs lists the logs that hold data.
	Logs() ([]LogID, error)

	// Drop deletes a closed log's data, in steps that let others write between
	// them. Dropping what isn't there is no error.
	Drop(id LogID) error

	// Sync makes durable everything whose Append returned before the call. An error
	// is final: the data may be gone from the page cache.
	Sync() error

	// Collect gives back space that trims and drops have freed. It may take long;
	// it stops early when stop is closed.
	Collect(stop <-chan struct{}) error

	// Figures reports engine metrics by name, in base units.
	Figures() map[string]float64

	Close() error
}

// ErrCorrupt: what was read back is not what was stored.
var ErrCorrupt = errors.New("stored data is damaged")

// ErrUnknownEngine: no engine of that name was registered.
var ErrUnknownEngine = errors.New("unknown storage engine")

// ErrInUse: another engine, in this process or another one, holds the
// directory; or the log is open already.
var ErrInUse = errors.New("in use")

// ErrFormat: the directory was written by something else, or by a version that
// this one does not read.
var ErrFormat = errors.New("foreign format")

// ErrUnsettled: the log was mended, and is to be settled before anything is appended.
var ErrUnsettled = errors.New("log was mended and not settled")

// ErrClosed: the store or the engine was closed.
var ErrClosed = errors.New("store is closed")

// HoleError says which offsets a log should hold and doesn't.
type HoleError struct {
	Log      LogID
	From, To int64 // missing: [From, To)
}

func (e *HoleError) Error() string {
	return fmt.Sprintf("log %s: offsets %d to %d are missing", e.Log, e.From, e.To-1)
}

// Options of an engine. Zero values mean the engine's defaults.
type Options struct {
	Dir         string
	MemoryBytes int64 // what caches and write buffers may take together
	Logf        func(level, message string)
}
