package broker

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
)

// acker answers publishes. What a partition keeps of each is a tag: when it was
// taken (8 bytes, nanoseconds of the broker's own monotonic clock), then the
// reply subject, which may be empty.
type acker struct {
	router  *interest.Router
	since   time.Time // the tag's time is counted from here
	metrics *metrics
	muted   atomic.Bool
	resends *resends // nil: nothing is sent again
}

// mute ends all acks, for good: the disk can't be trusted.
func (a *acker) mute() { a.muted.Store(true) }

const tagTime = 8

func (a *acker) now() int64 { return int64(time.Since(a.since)) }

// appendTag makes the tag of a publish.
func appendTag(b []byte, at int64, reply []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	return append(b, reply...)
}

// reply is one answer under way. They are pooled: an answer allocates nothing.
type reply struct {
	m    interest.Message
	body []byte
}

var replies = sync.Pool{New: func() any { return &reply{body: make([]byte, 0, 256)} }}

func (r *reply) put() {
	r.m = interest.Message{}
	if cap(r.body) <= 64<<10 {
		replies.Put(r)
	}
}

// Settle implements partition.Receiver.
func (a *acker) Settle(tag []byte, o partition.Outcome) {
	taken := int64(binary.LittleEndian.Uint64(tag))
	if o.Record != nil && !a.muted.Load() && a.resends != nil && a.resends.settled(taken, tag[tagTime:], &o) {
		return
	}
	a.metrics.publishLatency.Observe(float64(a.now()-taken) / 1e9)
	if o.Err != nil {
		a.metrics.publishFailed(o.Err.Reason)
	}
	if len(tag) == tagTime || a.muted.Load() {
		return
	}
	r := replies.Get().(*reply)
	if o.Err != nil {
		r.body = appendError(r.body[:0], wireError(o.Err))
	} else {
		r.body = appendAck(r.body[:0], o.Topic, o.Partition, o.Offset, o.Epoch, o.Duplicate)
	}
	a.send(r, tag[tagTime:])
}

// forwardedAcks answer what another broker has forwarded: that one keeps it, and sends it again.
type forwardedAcks struct{ *acker }

// Settle implements partition.Receiver.
func (a forwardedAcks) Settle(tag []byte, o partition.Outcome) {
	o.Record = nil
	a.acker.Settle(tag, o)
}

// refuse answers a publish that no partition has taken.
func (a *acker) refuse(subject []byte, e *wire.Error) {
	a.metrics.publishFailed(e.Reason)
	if len(subject) == 0 {
		return
	}
	if e.Outcome == "" {
		e.Outcome = wire.OutcomeRejected
	}
	r := replies.Get().(*reply)
	r.body = appendError(r.body[:0], e)
	a.send(r, subject)
}

func (a *acker) send(r *reply, subject []byte) {
	r.m.Subject, r.m.Payload = subject, r.body
	a.router.Route(&r.m, nil)
	r.put()
}

// appendAck writes a wire.PubAck. Topic names need no escaping.
func appendAck(b []byte, topic string, partition int32, offset int64, epoch uint64, duplicate bool) []byte {
	b = append(b, `{"topic":"`...)
	b = append(b, topic...)
	b = append(b, `","partition":`...)
	b = strconv.AppendInt(b, int64(partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, offset, 10)
	b = append(b, `,"epoch":`...)
	b = strconv.AppendUint(b, epoch, 10)
	b = append(b, `,"stream":"`...)
	b = append(b, topic...)
	b = append(b, `","seq":`...)
	b = strconv.AppendInt(b, offset+1, 10)
	if duplicate {
		b = append(b, `,"duplicate":true`...)
	}
	return append(b, '}')
}

func appendError(b []byte, e *wire.Error) []byte {
	j, err := json.Marshal(struct {
		Error *wire.Error `json:"error"`
	}{e})
	if err != nil { // strings, numbers and booleans always marshal
		panic(err)
	}
	return append(b, j...)
}

// wireError puts a partition's error into the wire's form.
func wireError(err error) *wire.Error {
	var w *wire.Error
	if errors.As(err, &w) {
		return w
	}
	var p *partition.Error
	if !errors.As(err, &p) {
		return &wire.Error{Code: 500, Reason: wire.ReasonInternal, Description: err.Error()}
	}
	w = &wire.Error{Code: p.Code, Reason: p.Reason, Retriable: p.Retriable, Description: p.Description, Outcome: wire.OutcomeRejected}
	if p.Unknown {
		w.Outcome = wire.OutcomeUnknown
	}
	return w
}
