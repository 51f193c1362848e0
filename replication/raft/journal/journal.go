// Package journal keeps the Raft logs of all replicas of a broker in one append-only
// journal: each payload is written once, and one fsync serves every replica that has
// something to save at that moment. It knows nothing of Raft's library: an entry is bytes
// at an index of a replica's log. The bytes on disk: docs/format/raft-journal.md.
//
//   - files.go     the file system as far as the journal needs it
//   - frame.go     frames and segment headers
//   - record.go    what a frame says about a replica
//   - index.go     where each replica's entries are; what else is known of it
//   - batch.go     encoding what is to be saved together
//   - commit.go    one write and one fsync for everybody who waits
//   - segment.go   the files: made, sealed, used again
//   - end.go       how far the journal went, beside the segments
//   - recovery.go  reading them back; torn or damaged
//   - cleaning.go  old segments: what is alive in them is copied to the end
//   - read.go      entries read back
//
// Invariants, each of which a bug or a crash would like to break:
//
//   - What END says was reached was on disk before END said so. A journal that ends before that is damaged.
//   - Batch n+1 is written only after batch n is on disk. So a damaged frame of batch n with a
//     whole frame of batch n+1 anywhere behind it was acked once: it is damage, not a torn tail.
//   - A batch counts whole or not at all: its last frame says that it is the last.
//   - A segment is named only when its header is on disk, and it is followed by another one only
//     when all of it is; the next header says where it ends.
//   - Segments go in the order in which they came, and only when what replaces what is alive in them is on
//     disk. So what is left is always the end of one history, and replaying it gives
//     the state.
//   - The index changes only when the batch is on disk, in the order of the frames, by whoever
//     has the turn to write. What it says, a crash can't take back, except for a commit index.
package journal

import (
	"errors"
	"fmt"
	"sync"
)

// Defaults and limits.
const (
	DefaultSegmentBytes = 64 << 20
	// MaxSpares is how many emptied segments are kept to be written again: that saves the file system's
	// own journal a commit with each fsync.
	MaxSpares = 5
	// MaxEntry is how long an entry may be.
	MaxEntry = 80 << 20
	// splitBytes is when the entries of one Save go on in another frame: a frame is what is read
	// to read one of its entries.
	splitBytes = 1 << 20
	// batchBytes is when a batch is full; what waits beyond has the next fsync.
	batchBytes = 32 << 20
	// moveBytes is how much is copied forward with one fsync.
	moveBytes = 1 << 20
	// mergeBytes is how much of the journal one element of the index may span.
	mergeBytes = 64 << 10
	// mergeShare is how many times as much may be read as is wanted, when logs are interleaved.
	mergeShare = 16
)

// Errors.
var (
	ErrClosed = errors.New("journal is closed")
	// ErrDamaged is what a *DamageError is.
	ErrDamaged = errors.New("raft journal is damaged")
)

// A DamageError says where something that was on disk once can't be read any more.
type DamageError struct {
	File   string
	Offset int64
	What   string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("raft journal is damaged: %s at offset %d: %s: check the disk; this broker's replicas can be replaced from the others",
		e.File, e.Offset, e.What)
}

func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

// Options of Open. Zero values mean the defaults.
type Options struct {
	FS           FS
	SegmentBytes int64
	// OnError is told once of the error after which nothing can be saved any more.
	OnError func(error)
	// OnMended is told of damage that cost nothing.
	OnMended func(what string)

	byHand bool // no goroutine cleans: a test calls tidy
}

// A Journal holds the logs of many replicas. Its methods may be called concurrently, except that
// the saves of one replica come one after the other.
type Journal struct {
	dir     string
	fs      FS
	options Options
	id      uint64 // random; frames of another journal's files don't count

	mu      sync.Mutex
	index   *index
	queue   []*request
	leading bool  // somebody has the turn to write
	broken  error // of a write, an fsync: nothing is saved any more
	closed  bool
	figures Figures

	// segments are the sealed ones and the active one, in order.
	segments []*segment
	spares   []*segment // not named yet
	// spareCount makes their names.
	spareCount uint64

	// Of whoever has the turn.
	batch   uint64 // number of the newest batch
	floor   uint64 // segments before it are not needed
	scratch []byte
	newest  int64 // where the newest batch began that Open found, in its segment
	end     File  // END; nil on a file system in memory
	endTurn uint8 // which of its notes was written last
	note    [endNote]byte

	wake    chan struct{} // the cleaner
	stop    chan struct{}
	cleaner sync.WaitGroup
}

// Figures of a journal.
type Figures struct {
	Segments     int
	SegmentBytes int64  // in use, of all segments
	LiveBytes    int64  // of them, in entries that are not removed
	Runs         int    // elements of the index
	Batches      uint64 // and fsyncs
	Bytes        uint64 // written
	MovedBytes   uint64 // of them, copied forward
	Joined       uint64 // saves that shared another's fsync
}

// Figures reports counts since Open.
func (j *Journal) Figures() Figures {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := j.figures
	f.Segments = len(j.segments)
	for _, s := range j.segments {
		f.SegmentBytes += int64(s.end)
		f.LiveBytes += s.live
	}
	for _, l := range j.index.logs {
		f.Runs += len(l.runs)
	}
	return f
}

// Close waits for what is being saved, saves commit indexes, and closes the files.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	close(j.stop)
	j.cleaner.Wait()
	// The end frame makes a batch of its own: after an orderly end, damage to the last
	// entries can't be taken for a torn tail.
	err := j.commit(&request{closing: true, late: func(b *Batch) error {
		b.metas(func(l *log) bool { return l.unsaved })
		b.end()
		return nil
	}})
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = ErrClosed
	}
	if j.end != nil {
		if serr := j.syncEnd(); err == nil {
			err = serr
		}
		if cerr := j.end.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %s of the raft journal: %w", endFile, cerr)
		}
	}
	for _, s := range append(j.segments, j.spares...) {
		s.use.Lock()
		if cerr := s.file.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %s: %w", s.name, cerr)
		}
		s.use.Unlock()
	}
	return err
}
