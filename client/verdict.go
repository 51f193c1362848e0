package client

import (
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// What an answer means for a batch, and how a lane goes on when it has lost its
// place. The numbers refer to the comment at lane.

// settle ends an attempt.
func (l *lane) settle(b *batch, r reply, now time.Time) {
	b.attempt, b.via = 0, nil
	l.out--
	err := r.err
	if err == nil {
		var ack wire.PubAck
		switch e := json.Unmarshal(r.data, &ack); {
		case e != nil:
			err = lost("the answer to a publish is no ack: " + e.Error())
		case ack.Error != nil:
			err = ack.Error
		default:
			b.acked = true
			b.ack = Ack{Topic: l.p.topic, Partition: l.partition, Offset: ack.Offset, Duplicate: ack.Duplicate, Epoch: ack.Epoch}
			l.tries, l.probing, l.denied, l.trouble = 0, false, time.Time{}, nil
			return
		}
	}
	l.refused(b, err, now)
}

// refused decides what becomes of a batch whose attempt failed.
func (l *lane) refused(b *batch, err *Error, now time.Time) {
	l.trouble = err
	certain := rejected(err)
	denied := false
	switch err.Reason {
	case wire.ReasonOutOfOrder, wire.ReasonUnknownProducer, wire.ReasonProducerFenced:
		// The partition didn't store this attempt, whatever the outcome field says.
		certain = true
		fenced := err.Reason == wire.ReasonProducerFenced
		if b.alone && (b.id.Sequence > 0 || fenced) { // else see 2
			if err.Reason == wire.ReasonOutOfOrder {
				b.maybe = false // see 3
			}
			l.lost, l.newID = err, fenced
		}
	case wire.ReasonTopicNotFound, wire.ReasonPartNotFound:
		l.p.c.topics.stale()
		if denied = true; l.denied.IsZero() {
			l.denied = now
		}
		if now.Sub(l.denied) >= notFoundPatience {
			b.failed = l.final(b, err)
		}
	case wire.ReasonNotLeader, wire.ReasonUnavailable, wire.ReasonTimeout:
		l.p.c.topics.stale()
	default:
		if !err.Retriable {
			b.failed = l.final(b, err)
		}
	}
	if !certain {
		b.maybe = true
	}
	if !denied {
		l.denied = time.Time{}
	}
	if !l.stalled {
		l.stalled = true
		l.troubled.Store(true)
		l.p.unstick(l.partition)
		l.retryAt = now.Add(backoff(l.tries))
		l.tries++
	}
}

// final is err as a batch's last word, with the outcome that all its attempts
// together allow.
func (l *lane) final(b *batch, err *Error) *Error {
	e := *err
	e.Outcome = OutcomeRejected
	if b.maybe || !rejected(err) {
		e.Outcome = OutcomeUnknown
	}
	return &e
}

// raiseEpoch settles what can't be kept, and numbers the rest anew: see 4. Nothing
// is out.
func (l *lane) raiseEpoch() {
	cause := l.lost
	if cause == nil {
		cause = l.flight[0].failed
	}
	stored := -1 // flight[:stored] is in the log: see 5
	certain := false
	for i, b := range l.flight {
		if b.acked {
			stored = i
		}
	}
	flight := append([]*batch(nil), l.flight...)
	l.drop(len(l.flight))
	l.nextEpoch(l.newID)
	l.lost, l.newID = nil, false
	for i, b := range flight {
		certain = certain || !b.maybe && !b.acked && b.outcome() != OutcomeUnknown // see 3
		switch {
		case b.acked:
			l.complete(b, nil)
		case i < stored:
			b.ack = Ack{Topic: l.p.topic, Partition: l.partition, Offset: -1, Duplicate: true, Epoch: flight[stored].ack.Epoch}
			l.complete(b, nil)
		case b.failed != nil:
			l.complete(b, b.failed)
		case !certain:
			l.complete(b, &Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Outcome: OutcomeUnknown,
				Description: fmt.Sprintf("a publish to %s/%d got no answer and can't be repeated without the danger of storing it twice, after: %v", l.p.topic, l.partition, cause)})
		default:
			b.maybe = false
			l.number(b)
			if err := record.Batch(b.sealed).SetProducer(b.id); err != nil {
				panic("client: producer made a bad number: " + err.Error())
			}
			l.flight = append(l.flight, b)
		}
	}
	l.p.c.cfg.log("producer begins a new epoch", "topic", l.p.topic, "partition", l.partition,
		"epoch", l.next.Epoch, "cause", cause)
}

func (l *lane) nextEpoch(newID bool) {
	if newID || l.next.Epoch == math.MaxInt16 {
		l.next = record.Producer{ID: newProducerID()}
		return
	}
	l.next.Epoch++
	l.next.Sequence = 0
}

// number gives b the next place in the sequence.
func (l *lane) number(b *batch) {
	b.id = l.next
	l.next.Sequence += int32(b.records)
}
