package client

import (
	"context"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// batch is the records of one partition that are sent, stored and settled
// together. It goes through these hands, one at a time:
//
//	open    senders append, under the lane's lock
//	closed  in the lane's queue, nobody touches it
//	flight  sealed and numbered, the lane's goroutine alone
//	settled outcome told, the memory goes back to the pool
type batch struct {
	builder *record.Builder
	out     *outcome
	calls   []callback
	records int
	bytes   int       // taken from the budget
	since   time.Time // when the first record came

	// Of the lane's goroutine.
	sealed  []byte
	id      record.Producer
	attempt uint64 // the request under way, 0: none
	token   uint64
	via     exchange
	sentAt  time.Time
	alone   bool   // the attempt left when everything before it was settled
	maybe   bool   // an attempt ended without the certainty that nothing was stored
	acked   bool   // ack is valid
	ack     Ack    // of the first record
	failed  *Error // it will not be sent again
}

// outcome is what is known of a batch that isn't acked.
func (b *batch) outcome() string {
	switch {
	case b.failed != nil:
		return b.failed.Outcome
	case b.maybe || b.attempt != 0:
		return OutcomeUnknown
	}
	return OutcomeRejected
}

// callback is for one record of a batch.
type callback struct {
	index int
	fn    func(Ack, error)
}

// outcome is what a batch's futures share. It outlives the batch.
type outcome struct {
	done chan struct{} // closed after the fields are written
	ack  Ack           // of the first record
	err  error
}

func (o *outcome) of(index int) (Ack, error) {
	if o.err != nil {
		return Ack{Topic: o.ack.Topic, Partition: o.ack.Partition, Offset: -1}, o.err
	}
	a := o.ack
	if a.Offset >= 0 {
		a.Offset += int64(index)
	}
	return a, nil
}

// Future is the answer to come for one record. The zero value is not useful.
type Future struct {
	out   *outcome
	index int
}

// Done returns a channel that is closed when the record is settled.
func (f Future) Done() <-chan struct{} { return f.out.done }

// Wait waits until the record is settled or ctx ends. When ctx ends first the
// record is still on its way: Wait may be called again.
func (f Future) Wait(ctx context.Context) (Ack, error) {
	select {
	case <-f.out.done:
		return f.out.of(f.index)
	default:
	}
	select {
	case <-f.out.done:
		return f.out.of(f.index)
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
}

// batchLimits are those of the wire: a batch is closed at the size that the
// Producer was asked for, but one large record may exceed that.
var batchLimits = record.Limits{
	MaxBatchBytes:  wire.MaxBatch,
	MaxRecordBytes: wire.MaxRecord,
	MaxRecords:     wire.MaxBatchRecords,
	MaxHeaders:     record.MaxSentHeaders,
}

// letterLimits are those of dead letters: a record as large as one can be must fit, under the headers that say where
// it comes from.
var letterLimits = record.Limits{
	MaxBatchBytes:  wire.MaxBatch,
	MaxRecordBytes: wire.MaxRecord + record.AddedBytes,
	MaxRecords:     wire.MaxBatchRecords,
	MaxHeaders:     record.MaxSentHeaders + record.AddedHeaders,
}

func newBatch(codec Codec) *batch {
	return &batch{builder: record.NewBuilder(codec, batchLimits)}
}

// reuse makes a settled batch as good as new, keeping its memory.
func (b *batch) reuse() {
	b.builder.Reset()
	clear(b.calls)
	*b = batch{builder: b.builder, calls: b.calls[:0], sealed: b.sealed[:0]}
}
