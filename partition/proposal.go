package partition

import (
	"sync"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/replication"
)

// A Receiver is told what became of what it appended: once for each Append
// that returned nil. Settle runs on the partition's own goroutine, or within the
// Append of what was published before, and must not block; reply is what the
// Append was given and is valid during the call.
type Receiver interface {
	Settle(reply []byte, o Outcome)
}

// Outcome of an append.
type Outcome struct {
	Topic     string
	Partition int32
	// Offset of the record, or of a batch's first record; -1 for a duplicate
	// whose first offset is no longer known.
	Offset    int64
	Epoch     uint64 // the epoch that the partition's replicas go by
	Duplicate bool
	Err       *Error

	// Record, beside ErrNotLeader, ErrClosed and ErrUnavailable, is what a single record's publish was about, so that it can be
	// published again; Expect is as in Publication. Valid during Settle; nil for batches.
	Record *record.Record
	Expect int64
}

// proposal is what becomes one entry of the log: batches that came ready made and
// batches built from single records, in the order in which they were taken.
// Control commands (trim, barrier) are proposals of their own.
type proposal struct {
	kind    commandKind
	header  commandHeader
	buf     []byte // the entry; owned by the log once proposed
	items   []proposalItem
	records []pendingRecord
	replies []byte
	hashes  []idAt // of all items
	count   int    // records, for the queue's bound
	bytes   int    // bytes, for the queue's bound

	pending replication.Pending
	refused error // Propose's, when pending is nil
	unknown bool  // an attempt may have been committed
	control chan<- *Error
	entry   func(results []byte, e *Error) // told the outcome of an entry about groups
	at      int64                          // when it was proposed first, see Partition.now
}

// proposalItem is one batch: its pending records, its message ids, where its bytes are.
type proposalItem struct {
	at                int // of the batch in buf
	records, recordsN int
	hashes, hashesN   int
	expect            int64
	ready             bool // came as a batch: one pending record for all of it
}

type pendingRecord struct {
	receiver        Receiver
	reply, replyLen int
}

var proposals = sync.Pool{New: func() any { return new(proposal) }}

func newProposal(kind commandKind, capacity int) *proposal {
	g := proposals.Get().(*proposal)
	g.kind = kind
	g.buf = make([]byte, commandHeaderSize, commandHeaderSize+capacity)
	return g
}

// release gives the proposal's own memory back; buf belongs to the log.
func (g *proposal) release() {
	clear(g.records)
	*g = proposal{items: g.items[:0], records: g.records[:0], replies: g.replies[:0], hashes: g.hashes[:0]}
	proposals.Put(g)
}

func (g *proposal) reply(r *pendingRecord) []byte {
	if r.replyLen == 0 {
		return nil
	}
	return g.replies[r.reply : r.reply+r.replyLen]
}

func (g *proposal) addPending(rcv Receiver, reply []byte) {
	g.records = append(g.records, pendingRecord{receiver: rcv, reply: len(g.replies), replyLen: len(reply)})
	g.replies = append(g.replies, reply...)
}

// openItem is the batch under construction at the end of a proposal.
type openItem struct {
	builder *record.Builder
	records int // index of its first pending record
	hashes  int
	expect  int64
}
