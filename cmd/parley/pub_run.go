package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// pubRun is one publishing of many lines. Counters are written by the
// producer's callbacks.
type pubRun struct {
	a        *app
	producer *client.Producer
	shape    *shape
	begin    time.Time

	sent, acked, failed, bytes, read atomic.Int64
	gaveUp                           atomic.Bool

	mu       sync.Mutex
	first    error      // guarded by mu; the first failure
	told     int        // guarded by mu
	text     string     // guarded by mu; what was told last
	last     client.Ack // guarded by mu
	stopLine int64      // lines after this one were not sent; 0: all were
}

// maxTold bounds how many failures are printed one by one; a failure that reads
// like the one before it is only counted.
const maxTold = 5

// one publishes a VALUE, which may hold line feeds.
func (r *pubRun) one(ctx context.Context, value []byte) error {
	rec, err := r.shape.record(value)
	if err != nil {
		return err
	}
	return r.send(ctx, rec, r.settled)
}

// send hands a record to the producer; one that it doesn't take isn't counted.
func (r *pubRun) send(ctx context.Context, rec client.Record, settled func(client.Ack, error)) error {
	size := int64(len(rec.Key) + len(rec.Value))
	r.sent.Add(1)
	r.bytes.Add(size)
	err := r.producer.SendFunc(ctx, rec, settled)
	if err != nil {
		r.sent.Add(-1)
		r.bytes.Add(-size)
	}
	return err
}

func (r *pubRun) lines(ctx context.Context, source io.Reader) error {
	in := newLines(source, wire.MaxRecord)
	settled := r.settled // one closure for all records
	for {
		line, err := in.next()
		switch tooLong := (*lineTooLong)(nil); {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &tooLong):
			r.refuse(err)
			continue
		case err != nil:
			return err
		}
		r.read.Add(int64(len(line)) + 1)
		rec, err := r.shape.record(line)
		if err == nil {
			err = r.send(ctx, rec, settled)
			if err == nil {
				if r.gaveUp.Load() {
					r.stopLine = in.number
					return nil
				}
				continue
			}
			if ctx.Err() != nil {
				r.stopLine = in.number
				return ctx.Err()
			}
			if !ofThisRecord(err) {
				r.refuse(fmt.Errorf("line %d: %w", in.number, err))
				r.stopLine = in.number
				return nil
			}
		}
		r.refuse(fmt.Errorf("line %d: %w", in.number, err))
	}
}

// ofThisRecord says whether a failure is due to the record itself, so that the
// next one may fare better.
func ofThisRecord(err error) bool {
	for _, own := range []error{client.ErrTooLarge, client.ErrInvalidBatch, client.ErrPartNotFound} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// refuse counts a record that was never sent.
func (r *pubRun) refuse(err error) {
	r.failed.Add(1)
	r.tell(err)
}

func (r *pubRun) tell(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		r.first = err
	}
	if text := err.Error(); text == r.text {
		return
	} else {
		r.text = text
	}
	if r.told++; r.told <= maxTold {
		fmt.Fprintf(r.a.stderr, "parley: %v\n", err)
	} else if r.told == maxTold+1 {
		fmt.Fprintln(r.a.stderr, "parley: further failures are only counted")
	}
}

// settled is called by the producer for each record.
func (r *pubRun) settled(ack client.Ack, err error) {
	if err == nil {
		if r.acked.Add(1) == 1 {
			r.mu.Lock()
			r.last = ack
			r.mu.Unlock()
		}
		return
	}
	r.failed.Add(1)
	if !ofThisRecord(err) {
		r.gaveUp.Store(true)
	}
	r.tell(err)
}

func (r *pubRun) status(size int64) status {
	s := status{done: r.acked.Load(), unit: "records acked", share: -1, bytes: r.bytes.Load()}
	if size > 0 {
		// Of what was read, the part that is acked.
		if sent := r.sent.Load(); sent > 0 {
			s.share = float64(r.read.Load()) / float64(size) * float64(s.done) / float64(sent)
		} else {
			s.share = 0
		}
	}
	if failed := r.failed.Load(); failed > 0 {
		s.note = fmt.Sprintf("%d failed", failed)
	}
	return s
}

// pubResult is what parley pub prints with -o json.
type pubResult struct {
	Acked         int64   `json:"acked"`
	Failed        int64   `json:"failed"`
	Bytes         int64   `json:"bytes"`
	Seconds       float64 `json:"seconds"`
	RecordsPerSec float64 `json:"records_per_s"`
	Partition     *int32  `json:"partition,omitempty"` // of a single record
	Offset        *int64  `json:"offset,omitempty"`
	Duplicate     bool    `json:"duplicate,omitempty"`
}

func (r *pubRun) report(single bool, err error) error {
	result := pubResult{Acked: r.acked.Load(), Failed: r.failed.Load(), Bytes: r.bytes.Load(), Seconds: time.Since(r.begin).Seconds()}
	result.RecordsPerSec = float64(result.Acked) / result.Seconds
	r.mu.Lock()
	first, ack := r.first, r.last
	r.mu.Unlock()
	if single && result.Acked == 1 {
		result.Partition, result.Offset, result.Duplicate = &ack.Partition, &ack.Offset, ack.Duplicate
	}
	return r.a.reportPub(result, r.stopLine, first, err)
}

func (a *app) reportPub(result pubResult, stopLine int64, first, err error) error {
	text := "1 record"
	if result.Acked != 1 {
		text = grouped(fmt.Sprint(result.Acked)) + " records"
	}
	text += fmt.Sprintf(" acked, %s, %.2f s", wire.FormatSize(result.Bytes), result.Seconds)
	if result.Acked > 1 {
		text += fmt.Sprintf(", %s/s", grouped(fmt.Sprintf("%.0f", result.RecordsPerSec)))
	}
	if result.Offset != nil {
		text += fmt.Sprintf(", partition %d offset %d", *result.Partition, *result.Offset)
		if result.Duplicate {
			text += ", a duplicate"
		}
	}
	if result.Failed > 0 {
		text += fmt.Sprintf("; %s FAILED", grouped(fmt.Sprint(result.Failed)))
	}
	if stopLine > 0 {
		text += fmt.Sprintf("; lines after %d were not sent", stopLine)
	}
	fmt.Fprintln(a.stderr, text)
	if err != nil {
		fmt.Fprintf(a.stderr, "parley: %v\n", err)
		first = err
	}
	if a.json() {
		if result.Acked == 0 && first != nil {
			// Nothing came through: the reason is the result.
			printError(a.stdout, describe(first, false))
			if errors.Is(err, errInterrupted) {
				return errors.Join(errReported, errInterrupted)
			}
			return errReported
		}
		if e := a.printJSON(result); e != nil {
			return e
		}
	}
	switch {
	case errors.Is(err, errInterrupted):
		return errors.Join(errReported, errInterrupted)
	case err != nil, result.Failed > 0 || stopLine > 0:
		return errReported // each was told
	}
	return nil
}
