package client

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// A delivery is a Message of a subscription. Its state goes forward only, by compare-and-swap, but for a retry of an
// exclusive group, which puts it back to waiting. Whoever settles it tells the parcel; the tenure's keeper finds it by
// going through the parcels, and makes ranges of what lies side by side: so an ack costs no lock
// and no memory, and many make one request.
const (
	stateWaiting  uint32 = iota // not begun
	stateBegun                  // a handler, or the caller of Next, has it
	stateLapsed                 // begun, and took too long: its ack wait is no longer extended
	stateDone                   // acked
	stateNak                    // again, later
	stateTerm                   // never again
	stateReturned               // not begun, and somebody else's turn
	stateVoid                   // the partition was lost, or the delivery has expired
	stateReported uint32 = 16   // flag: taken up by the keeper
)

// Errors of Message.Ack and its kin.
var (
	// ErrSettled: the message was acked, nak'd or ended before.
	ErrSettled = errors.New("the message is settled already")

	// ErrLost: the partition, or the message, may be somebody else's by now: another member handles it.
	ErrLost = errors.New("the message is no longer this member's: its partition went to another, or its time ran out")

	errNoDelivery = errors.New("the message is no delivery of a subscription: there is nothing to ack")
)

// parcel is what one answer brought of a partition.
type parcel struct {
	t        *tenure
	messages []Message
	bytes    int
	came     time.Time
	end      int64        // offset after the last one
	pull     uint64       // shared: number of the pull
	left     atomic.Int32 // messages that are not settled
	valid    atomic.Int64 // shared: until when they are ours unless extended, on the subscription's clock

	seen  int // messages[:seen] are reported; of the keeper
	taken int // messages[:taken] are begun or in line; guarded by crew.mu
}

// settle moves m on to a final state, if it has none.
func (m *Message) settle(to uint32) error {
	if m.in == nil {
		return errNoDelivery
	}
	for {
		switch s := atomic.LoadUint32(&m.state); s &^ stateReported {
		case stateWaiting, stateBegun, stateLapsed:
			if atomic.CompareAndSwapUint32(&m.state, s, to) {
				m.in.settled(s == stateWaiting)
				return nil
			}
		case stateVoid, stateReturned:
			return ErrLost
		default:
			return ErrSettled
		}
	}
}

// buried: the dead letter of a record of an exclusive group is written, which handles it.
func (m *Message) buried() {
	if atomic.CompareAndSwapUint32(&m.state, stateTerm, stateDone) {
		m.in.settled(false)
	}
}

// resume takes m, which isn't settled, back to a state before.
func (m *Message) resume(to uint32) bool {
	for {
		switch s := atomic.LoadUint32(&m.state); s {
		case stateBegun, stateLapsed, stateNak:
			if atomic.CompareAndSwapUint32(&m.state, s, to) {
				return true
			}
		default:
			return false
		}
	}
}

// begin marks m as handed to somebody.
func (m *Message) begin() bool {
	if !atomic.CompareAndSwapUint32(&m.state, stateWaiting, stateBegun) {
		return false
	}
	m.in.t.begun()
	return true
}

// settled counts one message as settled.
func (p *parcel) settled(waiting bool) {
	t := p.t
	if waiting {
		t.begun()
	}
	if t.unsettled.Add(-1) == 0 && t.s.cfg.group.Mode == wire.ModeKeyOrdered {
		nudge(t.wake) // the keeper waits for more no longer
	}
	if p.left.Add(-1) == 0 {
		t.parcelDone(p)
	}
	t.touch()
}

// Ack says that the message is handled. It is sent, coalesced with others, within milliseconds (shared) or
// CommitEvery (exclusive); Subscription.Commit waits for that.
func (m *Message) Ack() error {
	if m.in != nil && m.in.t.lost.Load() {
		return ErrLost
	}
	if err := m.settle(stateDone); err != nil {
		return err
	}
	s := m.in.t.s
	s.count.handled.Add(1)
	if h := s.cfg.hooks.Handled; h != nil {
		h(m)
	}
	return nil
}

// Forget leaves a message of a shared or key-ordered group to itself: it is neither acked nor extended, and doesn't
// count as in this member's hands any more. It is delivered again, to any member, when its ack wait is over. Of a key-ordered
// group forget what follows of its key, too: what is acked of that is not delivered again after it.
func (m *Message) Forget() error {
	switch {
	case m.in == nil:
		return errNoDelivery
	case !m.in.t.s.shared():
		return errors.New("forget a message of an exclusive group: its position doesn't move past what isn't handled, see ManualCommit")
	}
	return m.settle(stateVoid)
}

// Nak says that the message could not be handled: it is delivered again after delay, or after the group's
// back-off when that is negative. In an exclusive group this member gets it again and, with the order kept
// per partition or key, nothing that follows before that.
func (m *Message) Nak(delay time.Duration) error {
	if m.in == nil {
		return errNoDelivery
	}
	return m.in.t.nak(m, delay, "")
}

// Term says that the message will never be handled: it goes to the dead-letter topic, with the reason. In an exclusive
// group it is this member who writes it there, and tries until it can.
func (m *Message) Term(reason string) error {
	if m.in == nil {
		return errNoDelivery
	}
	return m.in.t.term(m, reason)
}

// InProgress extends the delivery's ack wait. The SDK does so by itself for what a member holds; it is for
// messages that ran into HandlerTimeout.
func (m *Message) InProgress() error {
	if m.in == nil {
		return errNoDelivery
	}
	switch atomic.LoadUint32(&m.state) &^ stateReported {
	case stateWaiting, stateBegun:
		return nil
	case stateLapsed:
		if atomic.CompareAndSwapUint32(&m.state, stateLapsed, stateBegun) {
			return nil
		}
		return ErrLost
	case stateVoid, stateReturned:
		return ErrLost
	}
	return ErrSettled
}

// unpack makes messages of whole batches, in one piece of memory: those that want says are ours. Size is how many
// there are at most. What the messages refer to is data, or what a codec made of it.
func (t *tenure) unpack(data []byte, size int, want func(offset int64) (deliveries int32, token uint64, ok bool)) (*parcel, error) {
	p := &parcel{t: t, messages: make([]Message, 0, size), bytes: len(data), came: time.Now()}
	var plain record.Iterator
	var headers []Header
	for len(data) > 0 {
		b, rest, err := record.Split(data)
		if err != nil {
			return nil, err
		}
		data = rest
		if err := b.VerifyCRC(); err != nil {
			return nil, err
		}
		it := &plain
		if b.Codec() != record.None {
			it = new(record.Iterator) // its memory is the messages' own
		}
		if err := it.Reset(b, record.DefaultLimits); err != nil {
			return nil, err
		}
		for it.Next() {
			r := it.Record()
			deliveries, token, ok := want(r.Offset)
			if !ok {
				continue
			}
			p.messages = append(p.messages, Message{
				Topic: t.s.topic, Partition: t.c.partition, Deliveries: deliveries, Offset: r.Offset,
				Timestamp: time.UnixMilli(r.Timestamp), Key: r.Key, Value: r.Value, Token: token, in: p,
			})
			if len(r.Headers) > 0 {
				at := len(headers)
				headers = append(headers, r.Headers...)
				p.messages[len(p.messages)-1].Headers = headers[at:len(headers):len(headers)]
			}
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
		p.end = b.LastOffset() + 1
	}
	p.left.Store(int32(len(p.messages)))
	return p, nil
}

// countRecords is how many records are in whole batches, as their headers say.
func countRecords(data []byte) (n int, err error) {
	for len(data) > 0 {
		b, rest, err := record.Split(data)
		if err != nil {
			return 0, err
		}
		if c := b.Count(); c < 0 || c > wire.MaxBatchRecords {
			return 0, fmt.Errorf("a batch of %d records", c)
		}
		n += b.Count()
		data = rest
	}
	return n, nil
}

// pulled takes PULL's answer apart: what is ours, and the batches.
func pulled(data []byte) (head wire.GroupPulled, batches []byte, err error) {
	if len(data) == 0 {
		return head, nil, nil
	}
	if len(data) < 4 {
		return head, nil, fmt.Errorf("%d bytes", len(data))
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-4) {
		return head, nil, fmt.Errorf("a head of %d bytes in %d", n, len(data))
	}
	if err := json.Unmarshal(data[4:4+n], &head); err != nil {
		return head, nil, err
	}
	slices.SortFunc(head.Deliveries, func(a, b wire.GroupDelivery) int { return int(min(max(a.First-b.First, -1), 1)) })
	return head, data[4+n:], nil
}

// finder looks offsets up in deliveries, which both ascend.
type finder struct {
	all []wire.GroupDelivery
	at  int
}

func (f *finder) find(offset int64) (deliveries int32, token uint64, ok bool) {
	for f.at < len(f.all) && f.all[f.at].Last < offset {
		f.at++
	}
	if f.at == len(f.all) || offset < f.all[f.at].First {
		return 0, 0, false
	}
	return f.all[f.at].Deliveries, f.all[f.at].Token, true
}
