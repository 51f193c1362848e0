package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// claim is a member's work on one partition that its assignment has: it gets the lease, holds it as long as it may, and
// begins anew when it was lost. It has one goroutine, and while it holds the partition its keeper is
// another.
//
// # The end of a tenure
//
//  1. No more records are fetched, and nothing more is begun: what wasn't goes back. Only gaps below what was
//     handled are filled, where a position is committed.
//  2. Handlers at work are waited for, DrainTimeout at most; then their contexts end. (Of a
//     lost partition they have ended at once.)
//  3. OnRevoked is called.
//  4. The keeper commits the position, or sends the last acks, and gives the lease back.
type claim struct {
	s         *Subscription
	partition int32
	ctx       context.Context // ends when the partition is to be given back
	revoke    context.CancelFunc
	ended     chan struct{}
	newer     chan struct{} // capacity 1; the assignment has a new generation

	began     chan struct{} // closed when the partition's leader knows of the group
	beganOnce sync.Once

	generation atomic.Uint64 // of the newest assignment that has the partition
	tenure     atomic.Pointer[tenure]
}

func newClaim(s *Subscription, partition int32, generation uint64) *claim {
	c := &claim{
		s: s, partition: partition, ended: make(chan struct{}), newer: make(chan struct{}, 1), began: make(chan struct{}),
	}
	c.ctx, c.revoke = context.WithCancel(s.life)
	c.generation.Store(generation)
	return c
}

func (c *claim) known() { c.beganOnce.Do(func() { close(c.began) }) }

// run is the claim's goroutine.
func (c *claim) run() {
	defer c.s.claimEnded(c)
	defer c.known()
	for c.ctx.Err() == nil {
		t, ok := c.acquire()
		if !ok {
			return
		}
		c.tenure.Store(t)
		c.hold(t)
		c.tenure.Store(nil)
	}
}

// leaseWait is how long one request waits for a lease that another member holds. It is short, because its answer is waited
// for also when the lease is no longer wanted: it may be a lease, to be given back.
const leaseWait = time.Second

// acquire gets the partition: in an exclusive group its lease. false: the claim is over.
func (c *claim) acquire() (*tenure, bool) {
	s := c.s
	l := Lease{Topic: s.topic, Partition: c.partition}
	if s.shared() {
		return newTenure(c, l, c.generation.Load()), true
	}
	var patience patience
	for n := 0; ; n++ {
		generation := c.generation.Load()
		req := wire.GroupLeaseRequest{Group: s.group, Member: s.id, Generation: generation, Options: s.options(),
			WaitMS: min(leaseWait, s.session()/3).Milliseconds()}
		sent := time.Now()
		leased, err := groupAskOut(c.ctx, s, wire.GroupLease, c.partition, req, time.Duration(req.WaitMS)*time.Millisecond, c.awaitLease,
			func(out *wire.GroupLeased) *Error { return out.Error })
		if err == nil {
			l.Token, l.Next = leased.Token, leased.Next
			t := newTenure(c, l, generation)
			if t.renewed(sent); leased.Wanted {
				t.end() // a newer generation than ours waits for it
			}
			if c.ctx.Err() != nil {
				t.finishLease(l.Next, nil)
				t.end()
				t.stop()
				return nil, false
			}
			return t, true
		}
		if c.ctx.Err() != nil {
			return nil, false
		}
		e := asError(err)
		pause := backoff(n)
		switch {
		case e != nil && e.Reason == wire.ReasonLeaseHeld:
			// The request waited. One that is refused at once must not make a busy loop.
			c.known()
			patience.over()
			if n = 0; time.Since(sent) > leaseWait/10 {
				continue
			}
		case e != nil && (e.Reason == wire.ReasonStaleGeneration || e.Reason == wire.ReasonLeaseLost || e.Reason == wire.ReasonUnknownMember):
			// The anchor has, or will have, a newer assignment for us.
			patience.over()
			s.hear(leased.Generation)
			s.askAnchor()
			pause = backoffMax
		case s.fatal(e, err, &patience):
			s.fail(err)
			return nil, false
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-c.newer:
		case <-c.ctx.Done():
		}
		timer.Stop()
	}
}

// awaitLease says how long a lease that is no longer wanted is waited for: until it can't come any more. One that
// nobody knows of would keep the partition from others for a session.
func (c *claim) awaitLease(exchange) time.Duration { return leaseWait + c.s.c.cfg.requestTimeout }

// hold works on the partition until it is lost or to be given back.
func (c *claim) hold(t *tenure) {
	s := c.s
	var keeping sync.WaitGroup
	finish := make(chan struct{})
	keeping.Go(func() { t.keep(finish) })
	if f := s.cfg.onAssigned; f != nil {
		f(t.ctx, t.lease)
	}
	if s.shared() {
		t.pulling()
	} else {
		t.fetching()
	}
	s.crew.finish(t)
	c.drain(t)
	s.crew.retire(t)
	if f := s.cfg.onRevoked; f != nil {
		f(s.handling, t.lease, t.lost.Load())
	}
	close(finish)
	keeping.Wait()
	t.lost.Store(true) // what is acked from here on is nobody's any more
	t.stop()
	t.dead.Wait()
	t.end()
}

// gapPatience bounds how long gaps below what was handled are filled, when a partition is given back: a key that is
// far behind must not keep it from others. What isn't filled then is handled again, with what lies above it.
const gapPatience = 5 * time.Second

// drain waits until nothing is in hand. What callers of Next hold when the subscription is closed is given up:
// who closes doesn't go on to ack.
func (c *claim) drain(t *tenure) {
	s := c.s
	timer := time.NewTimer(s.cfg.drainTimeout)
	defer timer.Stop()
	limit := timer.C
	filling := time.NewTimer(min(gapPatience, s.cfg.drainTimeout/2))
	defer filling.Stop()
	closing := s.closing
	for !s.crew.idle(t) {
		select {
		case <-t.quiet:
			continue
		case <-filling.C:
			s.crew.retire(t) // what is at work has the rest of the time
			continue
		case <-closing:
			if closing = nil; s.worked() {
				limit = nil // Close has a limit of its own
				continue
			}
		case <-s.life.Done():
		case <-limit:
			s.c.cfg.log("handlers took too long to give a partition back", "topic", s.topic, "partition", c.partition,
				"group", s.group, "limit", s.cfg.drainTimeout)
		}
		s.crew.retire(t)
		s.interrupt(t, func(*Message) bool { return true }, ErrLost)
		if s.shared() && !s.worked() {
			t.giveUp()
		}
		return
	}
}

// giveUp naks what is in the hands of callers of Next.
func (t *tenure) giveUp() {
	t.mu.Lock()
	parcels := slices.Clone(t.inHand)
	t.mu.Unlock()
	for _, p := range parcels {
		for i := range p.messages {
			if m := &p.messages[i]; atomic.LoadUint32(&m.state) == stateBegun {
				_ = t.nak(m, 0, "its consumer was closed") // or it was settled just now
			}
		}
	}
}

// patience is for an error that may go by itself: brokers may not have heard of a new topic yet.
type patience struct{ since time.Time }

func (d *patience) over() { d.since = time.Time{} }

// fatal says whether an error of a request will stay, and asks for new metadata where that may help.
func (s *Subscription) fatal(e *Error, err error, d *patience) bool {
	switch {
	case e == nil:
		return errors.Is(err, ErrClosed)
	case e.Reason == wire.ReasonTopicNotFound || e.Reason == wire.ReasonPartNotFound:
		s.c.topics.stale()
		if d.since.IsZero() {
			d.since = time.Now()
		}
		return time.Since(d.since) >= notFoundPatience
	}
	d.over()
	switch e.Reason {
	case wire.ReasonNotLeader, wire.ReasonUnavailable, wire.ReasonTimeout:
		s.c.topics.stale()
		return false
	case wire.ReasonGroupNotFound, wire.ReasonUnknownMember:
		s.askAnchor()
		return false
	}
	return !e.Retriable
}

// fetching gets an exclusive group's records, one fetch at a time, until t.ctx ends.
func (t *tenure) fetching() {
	s, c := t.s, t.c
	at := t.lease.Next
	var gap [2]int64
	var patience patience
	c.known()
	for tries := 0; ; {
		n := s.holds()
		each := fetchShare(s.cfg.prefetchBytes, n)
		for t.bytes.Load() >= int64(max(s.cfg.prefetchBytes/n, minFetch)) {
			select {
			case <-t.room:
			case <-t.ctx.Done():
				return
			}
		}
		asked := time.Now()
		r, err := s.fetch(t.ctx, c.partition, wire.FetchRequest{Offset: at, MaxBytes: each, MaxWaitMS: int(fetchWait / time.Millisecond)})
		if t.ctx.Err() != nil {
			return
		}
		var p *parcel
		size, last := 0, at-1
		if err == nil {
			if last, err = lastOffset(r.data, at, &gap); err == nil {
				if size, err = countRecords(r.data); err == nil {
					p, err = t.unpack(r.data, size, func(offset int64) (int32, uint64, bool) { return 1, t.lease.Token, offset >= at })
				}
			}
			if err != nil {
				err = &Error{Code: 500, Reason: wire.ReasonDamaged, Retriable: true, Description: "fetch: " + err.Error()}
			}
		}
		if err == nil {
			tries = 0
			patience.over()
			if len(p.messages) > 0 {
				t.took(p)
				s.crew.add(p)
			}
			at = last + 1
			if next := r.headerInt(wire.HeaderNext); next >= 0 {
				t.lag(next - at + t.waiting.Load())
			}
			if len(r.data) > 0 || time.Since(asked) >= fetchWait/2 {
				continue
			}
		} else {
			e := asError(err)
			if e != nil && e.Reason == wire.ReasonOffsetOutOfRange {
				if start := r.headerInt(wire.HeaderStart); start > at {
					s.c.cfg.log("records were removed before the group had them", "topic", s.topic, "partition", c.partition,
						"group", s.group, "from", at, "to", start)
					at = start
					continue
				}
			} else if s.fatal(e, err, &patience) {
				s.fail(err)
				return
			}
			tries++
		}
		if s.c.pause(t.ctx, backoff(tries)) != nil {
			return
		}
	}
}

func (t *tenure) lag(n int64) {
	if h := t.s.cfg.hooks.Lag; h != nil {
		h(t.c.partition, max(n, 0))
	}
}

// firstPullWait is short, so that Subscribe soon knows that the leader knows of the group.
const firstPullWait = 50 * time.Millisecond

// pulling gets a shared group's records, one pull at a time, until t.ctx ends.
func (t *tenure) pulling() {
	s, c := t.s, t.c
	var patience patience
	wait := firstPullWait
	for tries := 0; ; {
		room := 0
		for room <= 0 {
			waiting := t.waiting.Load()
			if waiting <= t.low.Load() {
				room = int(min(t.window.Load()-waiting, int64(s.cfg.prefetchRecords)-(t.unsettled.Load()-int64(s.cfg.concurrency))))
			}
			if t.bytes.Load() >= int64(max(s.cfg.prefetchBytes/s.holds(), minFetch)) {
				room = 0
			}
			if room > 0 {
				break
			}
			select {
			case <-t.room:
			case <-t.ctx.Done():
				return
			}
		}
		number := t.pulls.Add(1)
		asked := time.Now()
		head, batches, next, err := s.pull(t.ctx, c, room, fetchShare(s.cfg.prefetchBytes, s.holds()), wait)
		if err == nil {
			c.known()
			wait, tries = fetchWait, 0
			patience.over()
			if t.ctx.Err() != nil {
				s.crew.retire(t) // so that all of it goes back
			}
			if len(head.Deliveries) > 0 {
				err = t.receive(head.Deliveries, batches, number)
			}
		}
		if t.ctx.Err() != nil {
			return
		}
		if err == nil {
			if next >= 0 && len(head.Deliveries) > 0 {
				t.lag(next - 1 - head.Deliveries[len(head.Deliveries)-1].Last + t.waiting.Load())
			}
			if len(head.Deliveries) > 0 || time.Since(asked) >= min(wait, fetchWait)/2 {
				continue
			}
		} else if e := asError(err); s.fatal(e, err, &patience) {
			s.fail(err)
			return
		}
		tries++
		if s.c.pause(t.ctx, backoff(tries)) != nil {
			return
		}
	}
}

// receive takes what a pull brought.
func (t *tenure) receive(all []wire.GroupDelivery, batches []byte, pull uint64) error {
	s, size := t.s, int64(0)
	for _, d := range all {
		if d.Last < d.First || d.Last-d.First >= wire.MaxInFlight {
			return &Error{Code: 500, Reason: wire.ReasonInternal, Retriable: true, Description: "pull: a delivery that makes no sense"}
		}
		size += d.Last - d.First + 1
		if d.Deliveries > 1 {
			s.count.redelivered.Add(uint64(d.Last - d.First + 1))
		}
	}
	if n, err := countRecords(batches); err != nil {
		return &Error{Code: 500, Reason: wire.ReasonDamaged, Retriable: true, Description: "pull: " + err.Error()}
	} else if int64(n) < size {
		size = int64(n)
	}
	f := finder{all: all}
	p, err := t.unpack(batches, int(size), f.find)
	if err != nil {
		// Its deliveries run out and come again.
		return &Error{Code: 500, Reason: wire.ReasonDamaged, Retriable: true, Description: "pull: " + err.Error()}
	}
	p.pull = pull
	p.valid.Store(int64(p.came.Add(s.ackWait()).Sub(s.start)))
	if len(p.messages) == 0 {
		return nil
	}
	t.took(p)
	for _, m := range t.early(p) {
		_ = m.settle(stateReturned) // nobody else has seen it
	}
	s.crew.add(p)
	return nil
}
