package mesh

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/interest"
)

// dataSession takes in what a peer's data link carries. Its reader routes core
// messages and replies, and never waits; forwarded messages are handed to a
// goroutine that may; credit is given by another, for what has been dealt with.
type dataSession struct {
	requests
	peer      *peer
	publisher *interest.Publisher
	message   interest.Message
	groups    [][]byte
	route     func(*interest.Message)
	interests map[interest.Interest]*interest.Subscription

	cancel context.CancelFunc

	consumed  atomic.Uint64 // bytes of payloads dealt with
	forwarded inbox

	credit chan struct{} // 1; wakes the creditor
	holdMu sync.Mutex
	hold   <-chan struct{} // a local subscriber is far behind: credit waits for it, for a while
}

// creditEvery bytes consumed the sender is told, and with each ping.
const creditEvery = 64 << 10

func newDataSession(s *session, p *peer) *dataSession {
	d := &dataSession{
		peer:      p,
		publisher: s.m.c.Router.Publisher(),
		interests: make(map[interest.Interest]*interest.Subscription),
		credit:    make(chan struct{}, 1),
	}
	d.s, d.from = s, s.hello.Identity
	d.route = func(m *interest.Message) { d.publisher.Route(m, nil) }
	d.forwarded.wake = make(chan struct{}, 1)
	d.ctx, d.cancel = context.WithCancel(s.m.ctx)
	d.wg.Add(2)
	go func() {
		defer d.wg.Done()
		d.forward()
	}()
	go func() {
		defer d.wg.Done()
		d.giveCredit()
	}()
	return d
}

func (d *dataSession) close() {
	d.cancel()
	for _, sub := range d.interests {
		d.s.m.c.Router.Unsubscribe(sub)
	}
	d.publisher.Flush()
	d.wg.Wait()
	d.forwarded.discard()
}

func (d *dataSession) frame(kind byte, body []byte) error {
	size := frameHead + len(body)
	f := fields{b: body}
	switch kind {
	case frameCore:
		var plain bool
		plain, d.groups = f.core(&d.message, d.groups[:0])
		if f.bad {
			return errBadFrame
		}
		_, lost := d.publisher.RouteLocal(&d.message, plain, d.groups)
		d.peer.received.Add(1)
		if lost > 0 {
			d.s.m.stats.lostGroups.Add(uint64(lost))
		}
	case frameReply:
		f.message(&d.message)
		if f.bad {
			return errBadFrame
		}
		if call := d.s.m.onReply.Load(); call != nil {
			(*call)(d.peer.id, &d.message, d.route)
		} else {
			d.route(&d.message)
		}
		d.peer.received.Add(1)
	case frameInterest:
		members, queue := f.number(), f.bytes()
		if f.bad || !interest.ValidFilter(f.b) {
			return errBadFrame
		}
		d.interest(string(f.b), string(queue), int(min(members, 1<<20)))
	case frameForward:
		if !d.forwarded.put(kind, body, 2*d.s.m.c.Window+MaxPayload) {
			return fmt.Errorf("more than %d bytes forwarded without credit", d.s.m.c.Window)
		}
		return nil // consumed once it is handled
	case frameRequest:
		if d.take(&f); f.bad {
			return errBadFrame
		}
	case framePing:
		id := f.number()
		if f.bad {
			return errBadFrame
		}
		d.s.send(appendNumbers(nil, framePong, nil, id, d.consumed.Add(uint64(size))))
		return nil
	}
	d.consumed.Add(uint64(size))
	return nil
}

// interest notes what subscribers of the peer want.
func (d *dataSession) interest(subject, queue string, members int) {
	key := interest.Interest{Subject: subject, Queue: queue}
	router := d.s.m.c.Router
	sub := d.interests[key]
	switch {
	case members == 0 && sub != nil:
		delete(d.interests, key)
		router.Unsubscribe(sub)
	case members == 0:
	case sub != nil:
		router.SetMembers(sub, members)
	default:
		sub = &interest.Subscription{Subject: subject, Queue: queue, Sink: d.peer, Peer: true}
		d.interests[key] = sub
		if err := router.Subscribe(sub); err != nil {
			panic("valid subscription refused: " + err.Error())
		}
		if members > 1 {
			router.SetMembers(sub, members)
		}
	}
	d.peer.interests.Store(int64(len(d.interests)))
}

// flush ends a burst. The reader doesn't wait for subscribers that are far
// behind: the credit of this link does.
func (d *dataSession) flush() {
	if congested := d.publisher.Flush(); congested != nil {
		d.holdMu.Lock()
		d.hold = congested
		d.holdMu.Unlock()
	}
	d.wakeCreditor()
}

func (d *dataSession) wakeCreditor() {
	select {
	case d.credit <- struct{}{}:
	default:
	}
}

func (d *dataSession) giveCredit() {
	var given uint64
	var frame []byte
	limit := time.NewTimer(0)
	defer limit.Stop()
	for {
		select {
		case <-d.credit:
		case <-d.ctx.Done():
			return
		}
		d.holdMu.Lock()
		hold := d.hold
		d.hold = nil
		d.holdMu.Unlock()
		if hold != nil {
			limit.Reset(creditHold)
			select {
			case <-hold:
			case <-limit.C:
			case <-d.ctx.Done():
				return
			}
		}
		if consumed := d.consumed.Load(); consumed-given >= creditEvery {
			given = consumed
			frame = appendNumbers(frame[:0], frameCredit, nil, consumed)
			d.s.send(frame)
		}
	}
}

// forward hands forwarded messages to OnForward, in order.
func (d *dataSession) forward() {
	var taken [][]byte
	var reply []byte
	var m interest.Message
	from := d.peer.id
	topics := make(map[string]string)
	for {
		taken = d.forwarded.take(taken[:0])
		for i, chunk := range taken {
			var n uint64
			for b := chunk; len(b) > 0; {
				_, body, rest, err := nextFrame(b)
				if err != nil {
					panic("frame that was copied whole: " + err.Error())
				}
				b = rest
				f := fields{b: body}
				partition := int32(uint32(f.number()))
				topic := intern(topics, f.bytes())
				f.message(&m)
				if !f.bad {
					if len(m.Reply) > 0 {
						reply = appendReplySubject(reply[:0], from, m.Reply)
						m.Reply = reply
					}
					if call := d.s.m.onForward.Load(); call != nil && d.ctx.Err() == nil {
						(*call)(from, topic, partition, &m)
					}
				}
				n = uint64(frameHead + len(body))
				d.consumed.Add(n)
			}
			d.peer.takenIn.Add(1)
			freeChunk(chunk)
			taken[i] = nil
			d.forwarded.freed(len(chunk))
			d.wakeCreditor()
		}
		if len(taken) > 0 {
			continue
		}
		if call := d.s.m.onFlush.Load(); call != nil {
			(*call)(from)
		}
		select {
		case <-d.forwarded.wake:
		case <-d.ctx.Done():
			return
		}
	}
}

// maxInterned topics are remembered, so that a forwarded message allocates no
// string.
const maxInterned = 1024

func intern(known map[string]string, b []byte) string {
	if s, ok := known[string(b)]; ok {
		return s
	}
	if len(known) >= maxInterned {
		clear(known)
	}
	s := string(b)
	known[s] = s
	return s
}

// inbox holds copies of forwarded messages until they are handled. The sender's
// window bounds it.
type inbox struct {
	wake chan struct{} // 1

	mu     sync.Mutex
	chunks [][]byte
	held   int64 // bytes, those being handled too
}

func (q *inbox) put(kind byte, body []byte, limit int64) bool {
	size := frameHead + len(body)
	q.mu.Lock()
	if q.held+int64(size) > limit {
		q.mu.Unlock()
		return false
	}
	q.held += int64(size)
	last := len(q.chunks) - 1
	if last < 0 || cap(q.chunks[last])-len(q.chunks[last]) < size {
		q.chunks = append(q.chunks, newChunk(size))
		last++
	}
	b, at := beginFrame(q.chunks[last], kind)
	q.chunks[last] = endFrame(append(b, body...), at)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

func (q *inbox) take(to [][]byte) [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	to = append(to, q.chunks...)
	clear(q.chunks)
	q.chunks = q.chunks[:0]
	return to
}

func (q *inbox) freed(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held -= int64(n)
}

func (q *inbox) discard() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, b := range q.chunks {
		freeChunk(b)
		q.chunks[i] = nil
	}
	q.chunks = nil
}
