package storage

import (
	"errors"
	"fmt"
	"math"
)

// Limits of what a log stores. They are part of the seam: an engine may rely on
// them, and CheckAppend enforces them.
const (
	MaxChunkBytes      = 64 << 20 // Data of one chunk
	MaxMetaBytes       = 16 << 20 // Meta of one chunk
	MaxIndexKeyBytes   = 64
	MaxIndexValueBytes = 256
)

// MaxOffset is the highest offset that a log can hold.
const MaxOffset = math.MaxInt64 - 1

// ErrGap: a chunk's Base is not the log's Next.
var ErrGap = errors.New("chunk does not adjoin the log")

// ErrTooLarge: a chunk or index pair is over a limit of the seam.
var ErrTooLarge = errors.New("over a limit of the store")

// CheckAppend tells whether chunks and index entries may be appended to a log
// that ends at next. Engines call it before they touch anything.
func CheckAppend(id LogID, next int64, chunks []Chunk, index []IndexEntry) error {
	for i := range chunks {
		c := &chunks[i]
		if c.Base != next || c.Last < c.Base || c.Last > MaxOffset {
			return fmt.Errorf("append to log %s: chunk with offsets %d to %d, next is %d: %w",
				id, c.Base, c.Last, next, ErrGap)
		}
		if len(c.Data) > MaxChunkBytes || len(c.Meta) > MaxMetaBytes {
			return fmt.Errorf("append to log %s: chunk at %d has %d bytes of data and %d of meta, allowed are %d and %d: %w",
				id, c.Base, len(c.Data), len(c.Meta), MaxChunkBytes, MaxMetaBytes, ErrTooLarge)
		}
		next = c.Last + 1
	}
	for i := range index {
		k, v := index[i].Key, index[i].Value
		if len(k) == 0 || len(k) > MaxIndexKeyBytes || len(v) > MaxIndexValueBytes {
			return fmt.Errorf("append to log %s: index key of %d bytes and value of %d, allowed are 1..%d and 0..%d: %w",
				id, len(k), len(v), MaxIndexKeyBytes, MaxIndexValueBytes, ErrTooLarge)
		}
	}
	return nil
}
