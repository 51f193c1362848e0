package mesh

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"github.com/parleymq/parley/broker/interest"
)

// Replies on their way to another broker: replyPrefix, the broker's id, the
// original subject. They need no interest: the id says where they go.
const (
	internalPrefix = "_PARLEY."
	replyPrefix    = "_PARLEY.R."
)

func replySubject(broker uint64) string {
	return replyPrefix + strconv.FormatUint(broker, 10) + ".>"
}

func appendReplySubject(b []byte, broker uint64, reply []byte) []byte {
	b = append(b, replyPrefix...)
	b = strconv.AppendUint(b, broker, 10)
	b = append(b, '.')
	return append(b, reply...)
}

// Forward sends a publish or a fetch to the broker that leads the partition, on
// the data link. m.Reply is answered straight back, see OnForward. It copies m.
//
// When as much is under way as may be, Forward waits for room, up to
// Config.ForwardWait and only while the peer takes something in; then it fails
// with ErrBusy. Without a link it fails with ErrUnreachable, over MaxPayload with
// ErrTooLarge. After nil the message can still be lost with the link: the sender
// then gets no answer.
func (m *Mesh) Forward(broker uint64, topic string, partition int32, msg *interest.Message) error {
	p := m.peer(broker)
	if p == nil {
		return ErrUnreachable
	}
	size := forwardSize(topic, msg)
	if size > MaxPayload {
		return ErrTooLarge
	}
	var deadline *time.Timer
	for {
		d := p.data.up.Load()
		if d == nil {
			return p.errUnreachable
		}
		b, v := d.out.reserve(size, classMessage)
		switch v {
		case granted:
			d.out.commit(appendForward(b, topic, partition, msg))
			d.out.Wake()
			p.forwards.Add(1)
			return nil
		case stuck:
			p.busy.Add(1)
			return p.errBusy
		case closed:
			return p.errUnreachable
		}
		if deadline == nil {
			deadline = time.NewTimer(m.c.ForwardWait)
			defer deadline.Stop()
		}
		room := d.out.awaitRoom()
		if room == nil {
			continue
		}
		select {
		case <-room:
		case <-deadline.C:
			p.busy.Add(1)
			return p.errBusy
		}
	}
}

// OnForward sets what takes the messages that peers forward. It is called from
// one goroutine for each peer, in the order in which they were sent, and may
// block for a bounded time: credit is given when it returns, so that is the
// backpressure, and what else comes over the link doesn't wait for it. The
// message is valid during the call. An answer routed to m.Reply, which is
// "_PARLEY.R.<origin>.<original reply>", goes straight back to the origin.
func (m *Mesh) OnForward(f func(from uint64, topic string, partition int32, msg *interest.Message)) {
	m.onForward.Store(&f)
}

// OnForwardFlush sets what is called, from the same goroutine, after a run of
// forwarded messages, when there is none left for the moment.
func (m *Mesh) OnForwardFlush(f func(from uint64)) { m.onFlush.Store(&f) }

// OnReply sets what takes each answer that comes straight back from a peer. It calls route, with another subject
// if it likes, or keeps the answer from going on. It is called from the link's reader and must be quick.
func (m *Mesh) OnReply(f func(from uint64, m *interest.Message, route func(*interest.Message))) {
	m.onReply.Store(&f)
}

// Deliver implements interest.Sink, for whom doesn't know PeerSink.
func (p *peer) Deliver(s *interest.Subscription, m *interest.Message) bool {
	if s.Queue == "" {
		return p.DeliverPeer(m, true, nil)
	}
	return p.DeliverPeer(m, false, []string{s.Queue})
}

// DeliverPeer implements interest.PeerSink: core routing to the peer. It is
// called by whoever publishes and never waits.
func (p *peer) DeliverPeer(m *interest.Message, plain bool, groups []string) bool {
	d := p.data.up.Load()
	if d == nil || internal(m.Subject) {
		return false
	}
	size := coreSize(m, groups)
	if size > MaxPayload {
		p.dropped.Add(1)
		return false
	}
	b, v := d.out.reserve(size, classMessage)
	if v != granted {
		p.dropped.Add(1)
		return false
	}
	b = appendCore(b, m, plain, groups)
	burst := m.Burst()
	if burst != nil {
		if d.out.burst != burst.ID() {
			d.out.burst = burst.ID()
			burst.Touch(&d.out)
		}
		if room := d.out.congestedLocked(); room != nil {
			burst.Congested(room)
		}
	}
	d.out.commit(b)
	if burst == nil {
		d.out.Wake()
	}
	p.routed.Add(1)
	return true
}

// internal subjects go straight to one broker, to no other.
func internal(subject []byte) bool {
	return len(subject) > len(internalPrefix) && string(subject[:len(internalPrefix)]) == internalPrefix
}

// replySink sends replies straight back to a peer.
type replySink struct{ p *peer }

// Deliver implements interest.Sink.
func (s replySink) Deliver(_ *interest.Subscription, m *interest.Message) bool {
	p := s.p
	d := p.data.up.Load()
	if d == nil {
		p.dropped.Add(1)
		p.m.strand(p.id)
		return false
	}
	rest := m.Subject[len(replyPrefix):]
	subject := rest[bytes.IndexByte(rest, '.')+1:]
	size := frameHead + messageSize(m)
	if size > MaxPayload {
		p.dropped.Add(1)
		p.m.strand(p.id)
		return false
	}
	b, v := d.out.reserve(size, classReply)
	if v != granted {
		p.dropped.Add(1)
		p.m.strand(p.id)
		return false
	}
	d.out.commit(appendReply(b, subject, m))
	d.out.Wake()
	p.replied.Add(1)
	return true
}

var errBehind = errors.New("the peer is too far behind to be told of subscriptions")

// tellInterest is a link's hook in the router: it runs inside the router's lock.
// What a peer is not told it would never learn, so when there is no room the link
// starts anew, with everything.
func (d *dialled) tellInterest(subject, queue string, members int) {
	if internal([]byte(subject)) {
		return
	}
	c := classInterest
	if !d.followed.Load() {
		c = classPing // the first lot: as large as it is
	}
	b, v := d.out.reserve(frameHead+2*maxVarint+len(queue)+len(subject), c)
	switch v {
	case granted:
		d.out.commit(appendInterest(b, subject, queue, members))
		d.out.Wake()
	case full, stuck:
		d.fail(errBehind)
	}
}
