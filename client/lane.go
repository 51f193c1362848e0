package client

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// A lane takes a Producer's records to one partition: in order, each once.
//
// # How
//
// A batch gets a number when it is sealed: the producer's id and epoch, and the
// sequence of its first record. A partition takes a batch only when its sequence
// follows the last one taken (else out_of_order_sequence), answers "duplicate" to
// one that it has, refuses older epochs (producer_fenced), and lets an epoch and a
// producer begin at sequence 0 only (else unknown_producer). It remembers the
// newest five batches.
//
// At most five batches are in flight, counted from the oldest that isn't settled to
// the newest that was ever sent. A failed attempt stalls the lane: nothing new is
// sent, the attempts that are out are waited for, then after a pause the oldest batch
// alone is sent again, the same bytes under the same number, and when it is acked
// the others follow. Batches are settled strictly in order.
//
// # Not obvious
//
//  1. An ack may be believed whichever attempt it answers, and so may a
//     duplicate: the number says which batch it is. Only the newest attempt of a
//     batch is listened to all the same, as a resend of a stored batch costs
//     nothing but time.
//  2. out_of_order and unknown_producer mean "the broker has lost our place" only
//     when the attempt left after everything before it was settled (batch.alone).
//     Otherwise the batch has merely overtaken an earlier one, whose own answer may
//     even have been read first.
//  3. A batch may be given a new number only when it is certain that it isn't stored
//     under the old one, or it might be stored twice. Certain means one of:
//     every attempt was answered with a definite refusal (batch.maybe is
//     false); out_of_order was the answer to it alone: had it been stored,
//     the partition's last sequence would be at least its own; a batch before
//     it in the same epoch is certainly not stored: the sequence admits no gap.
//     unknown_producer proves nothing about earlier attempts, as the partition
//     has forgotten them.
//  4. So when the place is lost, or the oldest batch fails for good and would leave a
//     gap, the lane waits until nothing is out, then raises the epoch. Batches
//     that are certainly not stored are numbered anew from 0; those that may
//     be are failed with outcome unknown. Late copies of them can still be
//     stored before the first batch of the new epoch, in their order, but not
//     after it: they are fenced. A batch that fails behind others waits until those
//     are settled: they may still be stored under their numbers.
//  5. When a later batch of the same epoch is acked, an earlier one that never got its
//     answer is stored too, as the sequence admits no gap. It is a success
//     without an offset when its time is up.
//  6. Sequences end at 2^31-1. Before that the lane waits until nothing is in flight and
//     raises the epoch; after the last epoch it takes a new id.
//  7. A lane changes its connection only when nothing is out: on two at once a later batch
//     would overtake an earlier one. When answers are overdue, and another leader is
//     known by now or the connection is silent altogether, they are given up for
//     lost, which costs nothing but a resend.
//  8. Epochs are the lane's own, not the Producer's: a partition that can't be
//     reached doesn't disturb the others.
//
// # Who touches what
//
// Senders append to the open batch under mu. Everything else belongs to the lane's
// goroutine, which exchange and senders wake.
type lane struct {
	p         *Producer
	partition int32
	subject   string
	wake      chan struct{} // capacity 1

	mu      sync.Mutex
	open    *batch    // guarded by mu; nil when there is none
	closed  []*batch  // guarded by mu; full or flushed, oldest first
	shutOff bool      // guarded by mu; no more records
	answers []arrival // guarded by mu; not looked at yet
	up      bool      // guarded by mu; a connection came back
	newest  *outcome  // guarded by mu; of the last batch that was closed, for flush

	// Of the lane's goroutine.
	flight   []*batch        // sealed, oldest first, at most maxInFlight
	next     record.Producer // of the next batch to be sealed
	via      exchange        // where attempts go; see 7
	lookAt   time.Time       // when to ask again whether answers are overdue
	attempts uint64          // requests made; each has its number
	out      int             // attempts without an answer
	stalled  bool            // wait until out is 0 and retryAt has passed
	probing  bool            // only the oldest batch is sent
	lost     *Error          // the broker has lost our place, says its answer to flight[0]
	newID    bool            // the next epoch is to be another id's first
	tries    int             // failures in a row
	retryAt  time.Time
	denied   time.Time   // since when brokers say that there is no such topic, zero: they don't
	trouble  *Error      // why the last attempt failed, nil since an ack
	swap     []arrival   // the other half of answers
	troubled atomic.Bool // stalled or probing: better partitions may be around
}

const (
	// overdueAfter is when the lack of an answer raises the question whether the
	// partition has another leader; it is asked again every overdueAgain.
	overdueAfter = time.Second
	overdueAgain = 250 * time.Millisecond
)

type arrival struct {
	tag uint64
	r   reply
}

func newLane(p *Producer, partition int32) *lane {
	return &lane{
		p: p, partition: partition,
		subject: wire.PartitionSubject(wire.PubPrefix, p.topic, partition),
		wake:    make(chan struct{}, 1),
		next:    record.Producer{ID: newProducerID()},
	}
}

func (l *lane) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// add appends a record to the open batch.
func (l *lane) add(r *record.Record, size int, now time.Time, fn func(Ack, error)) (Future, error) {
	l.mu.Lock()
	if l.shutOff {
		l.mu.Unlock()
		return Future{}, ErrClosed
	}
	wake := false
	if b := l.open; b != nil && b.builder.Size()+size > l.p.cfg.batchBytes {
		l.closeOpen()
		wake = true
	}
	for {
		b := l.open
		if b == nil {
			b = l.p.pool.Get().(*batch)
			b.out = &outcome{done: make(chan struct{}), ack: Ack{Topic: l.p.topic, Partition: l.partition}}
			b.since = now
			l.open = b
		}
		before := b.builder.Size()
		err := b.builder.Append(r)
		if errors.Is(err, record.ErrBatchFull) {
			l.closeOpen()
			wake = true
			continue
		}
		if err != nil {
			l.mu.Unlock()
			return Future{}, tooLarge(err)
		}
		f := Future{b.out, b.records}
		if fn != nil {
			b.calls = append(b.calls, callback{b.records, fn})
		}
		b.records++
		b.bytes += size
		// The goroutine is woken by what may change its mind only: a first record, a
		// batch that gets well filled, a closed one.
		eager := l.p.eagerBytes()
		wake = wake || b.records == 1 || before < eager && b.builder.Size() >= eager
		l.mu.Unlock()
		if wake {
			l.nudge()
		}
		return f, nil
	}
}

// eagerBytes is the size at which a batch no longer waits for an answer that is on
// its way: large enough to be worth it, small enough that the broker always has
// the next one when it is done with the last.
func (p *Producer) eagerBytes() int { return p.cfg.batchBytes / 4 }

// closeOpen ends the open batch's gathering. l.mu is held.
func (l *lane) closeOpen() {
	l.closed = append(l.closed, l.open)
	l.newest = l.open.out
	l.open = nil
	l.p.unstick(l.partition)
}

// flush closes the open batch and returns what is closed when everything taken so
// far is settled.
func (l *lane) flush() []<-chan struct{} {
	l.mu.Lock()
	if l.open != nil && l.open.records > 0 {
		l.closeOpen()
	}
	newest := l.newest
	l.mu.Unlock()
	l.nudge()
	if newest == nil {
		return nil
	}
	return []<-chan struct{}{newest.done}
}

func (l *lane) shut() {
	l.mu.Lock()
	l.shutOff = true
	l.mu.Unlock()
}

func (l *lane) retryNow() {
	l.mu.Lock()
	l.up = true
	l.mu.Unlock()
	l.nudge()
}

// answered is called by the exchange.
func (l *lane) answered(tag uint64, r reply) {
	l.mu.Lock()
	l.answers = append(l.answers, arrival{tag, r})
	l.mu.Unlock()
	l.nudge()
}

// run is the lane's goroutine.
func (l *lane) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		l.take(now)
		due := l.advance(now)
		if due.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(due), 0))
		}
		select {
		case <-l.wake:
		case <-timer.C:
		case <-l.p.stop:
			l.abandon()
			return
		}
	}
}

// take handles the answers that have come and the attempts that none came to.
func (l *lane) take(now time.Time) {
	l.mu.Lock()
	l.answers, l.swap = l.swap[:0], l.answers
	up := l.up
	l.up = false
	l.mu.Unlock()
	for i := range l.swap {
		a := &l.swap[i]
		for _, b := range l.flight {
			if b.attempt == a.tag {
				l.settle(b, a.r, now)
				break
			}
		}
		*a = arrival{}
	}
	for _, b := range l.flight {
		if b.attempt != 0 && now.Sub(b.sentAt) >= l.p.attemptTimeout() {
			b.via.forget(b.token)
			l.settle(b, reply{err: unanswered(l.subject, l.p.attemptTimeout())}, now)
		}
	}
	l.overdue(now)
	if up && l.stalled {
		l.retryAt = now
	}
}

// overdue looks for attempts whose answer should have come long ago: their broker may be
// gone without a word, or cut off from the others. Whether another one leads by now,
// and whether it still answers anything, the metadata says. All that is out goes
// over one connection (7), so all of it is given up, and sent again in order.
func (l *lane) overdue(now time.Time) {
	l.lookAt = time.Time{}
	if l.out == 0 || !l.p.routes.several() {
		return
	}
	oldest := now
	for _, b := range l.flight {
		if b.attempt != 0 && b.sentAt.Before(oldest) {
			oldest = b.sentAt
		}
	}
	if since := now.Sub(oldest); since < overdueAfter {
		l.lookAt = oldest.Add(overdueAfter)
		return
	}
	l.lookAt = now.Add(overdueAgain)
	l.p.c.topics.stale()
	if l.route() == l.via {
		return
	}
	for _, b := range l.flight {
		if b.attempt != 0 {
			b.via.forget(b.token)
			l.settle(b, reply{err: unanswered(l.subject, now.Sub(b.sentAt).Round(time.Millisecond))}, now)
		}
	}
}

func (l *lane) route() exchange { return l.p.routes.to(l.p.view, l.partition) }

// steer chooses the connection, and says no where that has to wait: see 7.
func (l *lane) steer() bool {
	if x := l.route(); x != l.via {
		if l.out > 0 {
			return false
		}
		l.via = x
	}
	return true
}

// advance does all that can be done now and returns when to look again, zero for
// when woken.
func (l *lane) advance(now time.Time) (due time.Time) {
	l.finish()
	if l.out == 0 {
		l.giveUp(now)
		for l.lost != nil || len(l.flight) > 0 && l.flight[0].failed != nil {
			l.raiseEpoch()
			l.giveUp(now)
		}
		if l.stalled && (len(l.flight) == 0 || !now.Before(l.retryAt)) {
			l.stalled = false
			l.probing = len(l.flight) > 0 && l.tries > 0
		}
	}
	if !l.stalled {
		due = l.send(now)
	}
	if !l.stalled && !l.probing {
		l.troubled.Store(false)
	}
	return l.earliest(due)
}

// finish settles acked batches from the front.
func (l *lane) finish() {
	n := 0
	for n < len(l.flight) && l.flight[n].acked {
		n++
	}
	done := l.flight[:n]
	for _, b := range done {
		l.complete(b, nil)
	}
	l.drop(n)
}

// drop removes the first n of flight.
func (l *lane) drop(n int) {
	if n > 0 {
		m := copy(l.flight, l.flight[n:])
		clear(l.flight[m:])
		l.flight = l.flight[:m]
	}
}

// giveUp ends what has been tried for too long. Nothing is out.
func (l *lane) giveUp(now time.Time) {
	if !l.stalled {
		return
	}
	if len(l.flight) > 0 {
		if b := l.flight[0]; b.failed == nil && l.tooOld(b, now) {
			b.failed = l.final(b, l.gaveUp())
		}
		return
	}
	// Nothing is in front of those that wait: they were never sent.
	for {
		l.mu.Lock()
		var b *batch
		if len(l.closed) > 0 {
			if l.tooOld(l.closed[0], now) {
				b = l.popClosed()
			}
		} else if l.open != nil && l.open.records > 0 && l.tooOld(l.open, now) {
			b = l.takeOpen()
		}
		l.mu.Unlock()
		if b == nil {
			return
		}
		l.complete(b, l.final(b, l.gaveUp()))
	}
}

func (l *lane) tooOld(b *batch, now time.Time) bool { return now.Sub(b.since) >= l.p.cfg.giveUp }

func (l *lane) gaveUp() *Error {
	text := fmt.Sprintf("gave up publishing to %s/%d after %s", l.p.topic, l.partition, l.p.cfg.giveUp)
	if l.trouble != nil {
		text += ", the last failure was: " + l.trouble.Error()
	}
	return &Error{Code: 504, Reason: wire.ReasonTimeout, Retriable: true, Description: text, Outcome: OutcomeRejected}
}

// send sends what may be sent and returns when a lingering batch is due.
func (l *lane) send(now time.Time) (due time.Time) {
	if !l.steer() {
		return due
	}
	for i, b := range l.flight {
		if b.failed != nil || l.probing && i > 0 {
			return due
		}
		if !b.acked && b.attempt == 0 && !l.attempt(b, i == 0, now) {
			return due
		}
	}
	for len(l.flight) < maxInFlight && !l.probing {
		b, wait := l.pick(now)
		if b == nil {
			return wait
		}
		if l.next.Sequence > math.MaxInt32-wire.MaxBatchRecords {
			if len(l.flight) > 0 {
				l.unpick(b)
				return due // see 6
			}
			l.nextEpoch(false)
		}
		l.number(b)
		var err error
		if b.sealed, err = b.builder.Finish(b.sealed[:0], b.id); err != nil {
			l.next = b.id
			l.complete(b, &Error{Code: 400, Reason: wire.ReasonInvalidBatch, Outcome: OutcomeRejected,
				Description: "seal batch: " + err.Error()})
			continue
		}
		l.flight = append(l.flight, b)
		if !l.attempt(b, len(l.flight) == 1, now) {
			return due
		}
	}
	return due
}

// pick takes the next batch that may leave, or says when the open one may.
func (l *lane) pick(now time.Time) (b *batch, due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.closed) > 0 {
		return l.popClosed(), due
	}
	b = l.open
	if b == nil || b.records == 0 {
		return nil, due
	}
	if linger := l.p.cfg.linger; linger > 0 {
		if at := b.since.Add(linger); now.Before(at) {
			return nil, at
		}
	} else if len(l.flight) > 0 && b.builder.Size() < l.p.eagerBytes() {
		return nil, due
	}
	return l.takeOpen(), due
}

// popClosed takes the oldest closed batch. l.mu is held.
func (l *lane) popClosed() *batch {
	b := l.closed[0]
	n := copy(l.closed, l.closed[1:])
	l.closed[n] = nil
	l.closed = l.closed[:n]
	return b
}

// takeOpen takes the open batch, which is the oldest. l.mu is held.
func (l *lane) takeOpen() *batch {
	b := l.open
	l.newest, l.open = b.out, nil
	l.p.unstick(l.partition)
	return b
}

// unpick puts back what pick took.
func (l *lane) unpick(b *batch) {
	l.mu.Lock()
	l.closed = append([]*batch{b}, l.closed...)
	l.mu.Unlock()
}

// attempt sends b. It returns false when that failed at once.
func (l *lane) attempt(b *batch, first bool, now time.Time) bool {
	l.attempts++
	b.attempt, b.alone, b.sentAt, b.via = l.attempts, first, now, l.via
	l.out++
	token, err := l.via.request(l.subject, nil, b.sealed, l, b.attempt)
	if err != nil {
		e := asError(err)
		if e == nil {
			e = lost(err.Error())
		}
		l.settle(b, reply{err: e}, now)
		return false
	}
	b.token = token
	if l.lookAt.IsZero() && l.p.routes.several() {
		l.lookAt = now.Add(overdueAfter)
	}
	return true
}

// complete tells everybody what became of a batch and takes its memory back.
func (l *lane) complete(b *batch, err error) {
	o, calls := b.out, b.calls
	if err == nil {
		o.ack = b.ack
	} else {
		o.err = err
	}
	l.p.budget.give(b.bytes, b.records)
	for i := range calls {
		calls[i].fn(o.of(calls[i].index))
	}
	close(o.done) // after the callbacks: Flush waits for this, and promises them
	b.reuse()
	l.p.pool.Put(b)
}

// earliest is the next moment at which something may be due.
func (l *lane) earliest(due time.Time) time.Time {
	sooner := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	for _, b := range l.flight {
		if b.attempt != 0 {
			sooner(b.sentAt.Add(l.p.attemptTimeout()))
		}
	}
	if l.out > 0 && !l.lookAt.IsZero() {
		sooner(l.lookAt)
	}
	if l.stalled && l.out == 0 {
		sooner(l.retryAt)
		if len(l.flight) > 0 {
			sooner(l.flight[0].since.Add(l.p.cfg.giveUp))
		}
	}
	return due
}

// abandon fails what is left when the Producer closes.
func (l *lane) abandon() {
	for _, b := range l.flight {
		if b.attempt != 0 {
			b.via.forget(b.token)
		}
		if b.acked {
			l.complete(b, nil)
			continue
		}
		outcome := OutcomeRejected
		if b.attempt != 0 || b.maybe {
			outcome = OutcomeUnknown
		}
		l.complete(b, closedError{outcome})
	}
	l.flight = nil
	l.mu.Lock()
	rest := l.closed
	if l.open != nil {
		rest = append(rest, l.open)
	}
	l.closed, l.open = nil, nil
	l.mu.Unlock()
	for _, b := range rest {
		l.complete(b, closedError{OutcomeRejected})
	}
}

// closedError is ErrClosed for a record that was taken.
type closedError struct{ outcome string }

func (e closedError) Error() string {
	return "producer closed before the ack came, outcome " + e.outcome
}
func (e closedError) Is(target error) bool { return target == ErrClosed }
