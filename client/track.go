package client

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// track is a Reader's place in one partition. A fetch is under way, or held back
// because enough waits to be read, or is tried again later.
type track struct {
	r         *Reader
	partition int32
	subject   string

	// Guarded by r.mu.
	queue   []chunk  // fetched and not yet taken by the consumer
	bytes   int      // of queue
	inLine  bool     // r.line holds it
	fetchAt int64    // where the next fetch begins
	end     int64    // read up to, not including; -1: no end
	next    int64    // the log's next offset, as last heard
	gap     [2]int64 // offsets on both sides of a hole that was shown once
	fresh   bool     // nothing was fetched yet of a partition that was added: start where it does
	ended   bool     // the consumer has had everything up to end
	err     error    // told to the consumer until Seek

	attempt  uint64 // the fetch under way, 0: none
	token    uint64
	via      exchange // of token; nil before the request is out
	asked    time.Time
	tries    int // failures in a row
	retryAt  time.Time
	denied   time.Time // since when brokers say that there is no such topic
	attempts uint64

	// Of the consumer.
	rest []byte // what is left of the chunk taken last
	pos  int64  // next offset to hand out
	bad  int    // damaged batches in a row
}

// chunk is whole batches. The records before from are not for the consumer: the
// first batch may begin earlier than was asked for.
type chunk struct {
	data []byte
	from int64
}

// damagedTries is how often a batch that doesn't verify is fetched again before it
// is believed to be damaged where it is stored.
const damagedTries = 3

func newTrack(r *Reader, partition int32, start, end int64) *track {
	return &track{
		r: r, partition: partition,
		subject: wire.PartitionSubject(wire.FetchPrefix, r.topic, partition),
		fetchAt: start, pos: start, end: end,
	}
}

// answered is called by the exchange.
func (t *track) answered(tag uint64, rep reply) {
	t.r.mu.Lock()
	t.r.arrivals = append(t.r.arrivals, fetched{t, tag, rep})
	t.r.mu.Unlock()
	t.r.nudge()
}

// wants says whether a fetch should begin. r.mu is held.
func (t *track) wants(now time.Time, room bool) bool {
	return t.attempt == 0 && t.err == nil && !t.atEnd() &&
		(room || len(t.queue) == 0) && !now.Before(t.retryAt)
}

func (t *track) atEnd() bool { return t.end >= 0 && t.fetchAt >= t.end }

// seek forgets what was fetched and goes on at offset. r.mu is held.
func (t *track) seek(offset int64) {
	if t.attempt != 0 {
		t.forget()
		t.attempt = 0
	}
	t.r.bytes -= t.bytes
	t.queue, t.bytes, t.rest = nil, 0, nil
	t.fetchAt, t.pos = offset, offset
	t.err, t.retryAt, t.tries = nil, time.Time{}, 0
	if t.ended {
		t.ended = false
		t.r.live++
	}
}

// forget drops the fetch under way. r.mu is held.
func (t *track) forget() {
	if t.via != nil {
		t.via.forget(t.token)
	}
	t.via = nil
}

// fetch sends the request that begin has booked.
func (t *track) fetch(attempt uint64, offset int64, bytes int) {
	req, err := json.Marshal(wire.FetchRequest{Offset: offset, MaxBytes: bytes, MaxWaitMS: int(fetchWait / time.Millisecond)})
	var token uint64
	x := t.r.routes.to(t.r.view, t.partition)
	if err == nil {
		token, err = x.request(t.subject, nil, req, t, attempt)
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	if t.attempt != attempt {
		x.forget(token) // a Seek came in between
		return
	}
	t.token, t.via = token, x
	if err != nil {
		t.attempt, t.via = 0, nil
		e := asError(err)
		if e == nil {
			e = lost(err.Error())
		}
		t.failed(e, nil, time.Now())
	}
}

// arrived takes the answer to a fetch. r.mu is held.
func (t *track) arrived(rep *reply, now time.Time) {
	t.attempt, t.via = 0, nil
	if rep.err != nil {
		t.failed(rep.err, nil, now)
		return
	}
	if err := batchesError(rep); err != nil {
		t.failed(asError(err), rep, now)
		return
	}
	if n := rep.headerInt(wire.HeaderNext); n >= 0 {
		t.next = n
	}
	at, err := lastOffset(rep.data, t.fetchAt, &t.gap)
	if err != nil {
		t.failed(&Error{Code: 500, Reason: wire.ReasonDamaged, Retriable: true, Description: "fetch: " + err.Error()}, nil, now)
		return
	}
	t.fresh, t.denied = false, time.Time{}
	if len(rep.data) == 0 {
		// The wait was over. An answer that comes at once and brings nothing must not
		// make a busy loop.
		t.tries = 0
		if now.Sub(t.asked) < fetchWait/2 {
			t.retryAt = now.Add(backoffMin)
		}
		return
	}
	t.tries, t.retryAt = 0, time.Time{}
	from := t.fetchAt
	t.fetchAt = at + 1
	t.queue = append(t.queue, chunk{rep.data, from})
	t.bytes += len(rep.data)
	t.r.bytes += len(rep.data)
	t.r.enqueue(t)
}

// lastOffset is the last offset of the batches in an answer to a fetch from an offset. It looks at their
// headers only, of which the checksum doesn't cover the base offset: so they
// must adjoin each other and what was read before. A gap is believed when the
// partition shows it twice: gap keeps the one that was shown last.
func lastOffset(data []byte, from int64, gap *[2]int64) (int64, error) {
	last := from - 1
	for first := true; len(data) > 0; first = false {
		b, rest, err := record.Split(data)
		if err != nil {
			return 0, err
		}
		data = rest
		base, end := b.BaseOffset(), b.LastOffset()
		if base <= last && !first || end <= last {
			return 0, fmt.Errorf("a batch from offset %d to %d follows offset %d", base, end, last)
		}
		if base > last+1 && *gap != [2]int64{last, base} {
			*gap = [2]int64{last, base}
			return 0, fmt.Errorf("no batch between offsets %d and %d", last, base)
		}
		last = end
	}
	return last, nil
}

// failed decides what to do after a fetch that brought an error. r.mu is held.
func (t *track) failed(e *Error, rep *reply, now time.Time) {
	switch e.Reason {
	case wire.ReasonOffsetOutOfRange:
		t.outOfRange(rep)
		return
	case wire.ReasonTopicNotFound, wire.ReasonPartNotFound:
		if t.denied.IsZero() {
			t.denied = now
		}
		if now.Sub(t.denied) >= notFoundPatience {
			t.fail(e)
			return
		}
	case wire.ReasonNotLeader, wire.ReasonUnavailable, wire.ReasonTimeout:
		t.r.c.topics.stale()
		t.denied = time.Time{}
	default:
		t.denied = time.Time{}
		if !e.Retriable {
			t.fail(e)
			return
		}
	}
	t.retryAt = now.Add(backoff(t.tries))
	t.tries++
}

// fail leaves an error for the consumer, behind the records that it has yet to
// read.
func (t *track) fail(err error) {
	t.err = err
	t.r.enqueue(t)
}

func (t *track) outOfRange(rep *reply) {
	start, next := int64(-1), int64(-1)
	if rep != nil {
		start, next = rep.headerInt(wire.HeaderStart), rep.headerInt(wire.HeaderNext)
	}
	t.outside(start, next)
}

// outside goes on within the bounds of the log as the policy has it, or fails. r.mu is
// held.
func (t *track) outside(start, next int64) {
	to := int64(-1)
	switch policy := t.r.cfg.outOfRange; {
	case t.fresh || policy == OutOfRangeEarliest:
		to = start
	case policy == OutOfRangeLatest:
		to = next
	}
	if to < 0 || to == t.fetchAt {
		t.fail(&OffsetOutOfRangeError{Topic: t.r.topic, Partition: t.partition, Offset: t.fetchAt, Start: start, Next: next})
		return
	}
	t.fetchAt, t.retryAt = to, time.Time{}
	t.r.enqueue(t) // the consumer may be at the end now
}
