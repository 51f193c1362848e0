package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// ackEvery is how long acks of a shared group gather. While a request with some is under way the next ones
// gather anyway.
const ackEvery = 2 * time.Millisecond

// ackGather is how long acks of a key-ordered group gather at most, while there is more in hand. A request frees its keys once
// it is committed, and the next one has to wait for that: with the first of a run's acks in one request and the rest in the
// next, most keys would be locked for two rounds.
const ackGather = 10 * time.Millisecond

// endPatience bounds the last commit or acks of a tenure: what isn't known then is delivered again.
const endPatience = 5 * time.Second

// keep tells the partition's leader what was handled and keeps the lease, or the deliveries, alive. It ends after finish.
func (t *tenure) keep(finish <-chan struct{}) {
	var err error // of the last commit, or acks: all that was handled is in them
	if t.s.shared() {
		err = t.keepDeliveries(finish)
	} else {
		err = t.keepLease(finish)
	}
	t.mu.Lock()
	flushes := t.flushes
	t.flushes, t.kept = nil, true
	t.mu.Unlock()
	answer(flushes, err)
}

func (t *tenure) renewed(at time.Time) { t.renewedAt.Store(int64(at.Sub(t.s.start))) }
func (t *tenure) sinceRenewal() time.Duration {
	return time.Since(t.s.start) - time.Duration(t.renewedAt.Load())
}

// assureLook is how often a worker looks whether the keeper has found out.
const assureLook = 5 * time.Millisecond

// assured waits while the lease of an exclusive group may be another's by now. A process that was stopped for a while finds
// records in its memory and in its sockets, and must not begin them before its keeper has looked at the clock.
func (t *tenure) assured(ctx context.Context) bool {
	if t.s.shared() {
		return true // its deliveries have their own times
	}
	for t.sinceRenewal() >= t.s.session() && !t.retired.Load() {
		nudge(t.wake)
		timer := time.NewTimer(assureLook)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
	return true
}

// position is what may be committed: everything below it is handled. -1: nothing new.
func (t *tenure) position() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := int64(-1)
	for len(t.inHand) > 0 {
		p := t.inHand[0]
		for p.seen < len(p.messages) && atomic.LoadUint32(&p.messages[p.seen].state) == stateDone {
			p.seen++
		}
		if p.seen < len(p.messages) {
			if p.seen > 0 {
				at = p.messages[p.seen-1].Offset + 1
			}
			break
		}
		at = p.end
		n := copy(t.inHand, t.inHand[1:])
		t.inHand[n] = nil
		t.inHand = t.inHand[:n]
	}
	return at
}

// keepLease commits the position while it moves, and renews the lease when it doesn't.
func (t *tenure) keepLease(finish <-chan struct{}) error {
	s := t.s
	committed, position := t.lease.Next, t.lease.Next
	var last time.Time // commit
	var flushes []chan error
	tries := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if t.lost.Load() {
			answer(flushes, ErrLost)
			return ErrLost
		}
		t.mu.Lock()
		flushes = append(flushes, t.flushes...)
		t.flushes = nil
		t.mu.Unlock()
		now := time.Now()
		dirty := t.touched.Load()
		due := last.Add(s.cfg.commitEvery)
		urgent := t.fresh.Load() >= commitRecords || len(flushes) > 0
		var err error
		switch automatic := !s.cfg.manualCommit; {
		case len(flushes) > 0 || automatic && dirty && (urgent || !now.Before(due)):
			t.touched.Store(false)
			t.fresh.Store(0)
			if at := t.position(); at >= 0 {
				position = at
			}
			if last = now; position > committed {
				if err = t.commit(position, false); err == nil {
					committed = position
				} else {
					t.touched.Store(true)
				}
			}
			if err == nil || t.lost.Load() {
				answer(flushes, err)
				flushes = nil
			}
		case t.sinceRenewal() >= s.session()/3 || t.news.Load():
			err = t.renew()
		}
		switch {
		case err == nil:
			tries = 0
		case t.lost.Load():
			continue
		default:
			tries++
		}
		if t.sinceRenewal() >= s.session() {
			// Nobody has heard from us for a session: the lease may be another's by now.
			t.lose(fmt.Errorf("the lease was not renewed for %s", s.session()))
			continue
		}
		wait := s.session()/3 - t.sinceRenewal()
		if !s.cfg.manualCommit && t.touched.Load() {
			wait = min(wait, time.Until(last.Add(s.cfg.commitEvery)))
		}
		if tries > 0 {
			wait = backoff(tries - 1)
		}
		timer.Reset(max(wait, 0))
		wake := t.wake
		if tries > 0 && !t.lost.Load() {
			wake = nil // it is no reason to hurry
		}
		select {
		case <-wake:
		case <-timer.C:
		case <-finish:
			return t.finishLease(committed, flushes)
		}
	}
}

func answer(flushes []chan error, err error) {
	for _, f := range flushes {
		f <- err // capacity 1, one answer
	}
}

// finishLease commits once more and gives the lease back. It returns what to say to those who want a commit later.
func (t *tenure) finishLease(committed int64, flushes []chan error) error {
	at := int64(-1)
	t.mu.Lock()
	flushes = append(flushes, t.flushes...)
	t.flushes = nil
	t.mu.Unlock()
	commits := !t.s.cfg.manualCommit || len(flushes) > 0
	if commits {
		if at = t.position(); at <= committed {
			at = -1
		}
	}
	until := time.Now().Add(endPatience)
	var err error = ErrLost
	for n := 0; !t.lost.Load() && t.sinceRenewal() < t.s.session(); n++ {
		if err = t.commit(at, true); err == nil || time.Now().After(until) {
			break
		}
		if t.s.c.pause(context.Background(), backoff(n)) != nil {
			break
		}
	}
	answer(flushes, err)
	if !commits {
		return ErrLost
	}
	return err
}

// commit commits a position; -1: none. A lease that is lost ends the tenure.
func (t *tenure) commit(at int64, release bool) error {
	s, sent, news := t.s, time.Now(), t.news.Swap(false)
	out, err := groupAsk(context.Background(), s, wire.GroupCommit, t.c.partition,
		wire.GroupCommitRequest{Group: s.group, Member: s.id, Token: t.lease.Token, Offset: at, Release: release, Stuck: t.stuckNow()}, 0,
		func(out *wire.GroupCommitted) *Error { return out.Error })
	return t.upheld(sent, out.Wanted, err, news)
}

func (t *tenure) renew() error {
	s, sent, news := t.s, time.Now(), t.news.Swap(false)
	out, err := groupAsk(context.Background(), s, wire.GroupLease, t.c.partition,
		wire.GroupLeaseRequest{Group: s.group, Member: s.id, Generation: t.c.generation.Load(), Token: t.lease.Token, Options: s.options(), Stuck: t.stuckNow()}, 0,
		func(out *wire.GroupLeased) *Error { return out.Error })
	return t.upheld(sent, out.Wanted, err, news)
}

// upheld takes the answer to a commit or a renewal that was sent then, and was news to the leader of what is stuck.
func (t *tenure) upheld(sent time.Time, wanted bool, err error, news bool) error {
	if err == nil {
		t.renewed(sent)
		if wanted {
			t.end() // finish, commit, release
		}
		return nil
	}
	if news {
		t.news.Store(true) // it may not have heard
	}
	e := asError(err)
	var none patience
	switch {
	case e != nil && (e.Reason == wire.ReasonLeaseLost || e.Reason == wire.ReasonStaleGeneration || e.Reason == wire.ReasonStaleToken ||
		e.Reason == wire.ReasonGroupNotFound || e.Reason == wire.ReasonUnknownMember):
		t.lose(err)
		t.s.askAnchor()
	case t.s.fatal(e, err, &none):
		// Such as a position beyond a log that was cut: to begin anew is all that is left.
		t.lose(err)
	}
	return err
}

// ackAnswer is what became of one request with acks.
type ackAnswer struct {
	items, again []wire.GroupAckItem
	refused, err error
}

// keepDeliveries sends acks, and extends what is in hand. One request is under way at a time, and what is settled meanwhile
// gathers: of two the second could come first, or alone, and then a key's records come again after later ones of it.
func (t *tenure) keepDeliveries(finish <-chan struct{}) error {
	s := t.s
	// At the leader, too, acks may gather; not those of a key-ordered group, whose next request tells which keys are free.
	gather := s.cfg.group.Mode != wire.ModeKeyOrdered
	var pending []wire.GroupAckItem // to be sent, or sent again
	answers := make(chan ackAnswer, 1)
	under := false // a request
	var request sync.WaitGroup
	defer request.Wait()
	var flushes []chan error
	flushing := false       // what the flushes wait for is under way: nothing follows it
	var last time.Time      // acks
	var since time.Time     // something is settled that was not sent
	var round time.Duration // of the last request
	extended := time.Now()
	var refused error // of what the flushes wait for
	timer := time.NewTimer(0)
	defer timer.Stop()
	var until time.Time // zero: not finishing
	tries := 0
	var retryAt time.Time
	for {
		if t.lost.Load() {
			answer(flushes, ErrLost)
			return ErrLost
		}
		if !flushing {
			t.mu.Lock()
			flushes = append(flushes, t.flushes...)
			t.flushes = nil
			t.mu.Unlock()
		}
		now := time.Now()
		every := s.ackWait() / 3
		wait := every - now.Sub(extended)
		if wait <= 0 {
			extended, wait = now, every
			t.extend(now)
		}
		hurry := len(flushes) > 0 || !until.IsZero()
		if t.touched.Load() || len(pending) > 0 || hurry {
			gap := ackEvery - now.Sub(last)
			if !gather {
				if since.IsZero() {
					since = now
				}
				if gap = 0; t.unsettled.Load() > 0 {
					gap = min(max(round/2, ackEvery), ackGather) - now.Sub(since)
				}
			}
			if hurry && tries == 0 {
				gap = 0
			}
			gap = max(gap, retryAt.Sub(now))
			switch {
			case under:
			case gap > 0:
				wait = min(wait, gap)
			default:
				t.touched.Store(false)
				pending = t.settledItems(pending)
				last, since = now, time.Time{}
				if n := min(len(pending), wire.MaxAckItems); n > 0 {
					items := slices.Clone(pending[:n])
					pending = append(pending[:0], pending[n:]...)
					under = true
					request.Go(func() {
						again, late, err := t.ack(items, gather && !hurry)
						answers <- ackAnswer{items, again, late, err}
					})
				}
				flushing = len(flushes) > 0 && len(pending) == 0
			}
			if !under && len(pending) == 0 && (len(flushes) == 0 || flushing) {
				answer(flushes, refused)
				flushes, refused, flushing = nil, nil, false
				if !until.IsZero() && !t.touched.Load() {
					return nil
				}
				if !until.IsZero() || t.touched.Load() {
					wait = min(wait, ackEvery)
				}
			}
			if !until.IsZero() && now.After(until) {
				err := errors.New("acks could not be sent")
				answer(flushes, err)
				return err
			}
			if !until.IsZero() {
				wait = min(wait, time.Until(until)+time.Millisecond)
			}
		}
		wake := t.wake
		if pause := retryAt.Sub(now); pause > 0 {
			wake, wait = nil, min(wait, pause) // it is no reason to hurry
		}
		if under {
			wake = nil
		}
		timer.Reset(max(wait, 0))
		select {
		case <-wake:
		case <-timer.C:
		case a := <-answers:
			under, round = false, time.Since(last)
			if a.err != nil {
				tries++
				retryAt = time.Now().Add(backoff(tries - 1))
				pending = append(withoutReturns(a.items), pending...)
				flushing = false
				break
			}
			tries, retryAt = 0, time.Time{}
			if len(flushes) > 0 {
				refused = errors.Join(refused, a.refused)
			}
			if len(a.again) > 0 {
				pending, flushing = append(pending, a.again...), false
			}
		case <-finish:
			finish, until = nil, time.Now().Add(endPatience)
		}
	}
}

// settledItems appends what was settled since it was called last, in ranges.
func (t *tenure) settledItems(items []wire.GroupAckItem) []wire.GroupAckItem {
	t.mu.Lock()
	defer t.mu.Unlock()
	begin := len(items)
	for i := 0; i < len(t.inHand); i++ {
		p := t.inHand[i]
		prefix := true
		for j := p.seen; j < len(p.messages); j++ {
			m := &p.messages[j]
			state := atomic.LoadUint32(&m.state)
			switch {
			case state >= stateReported, state == stateVoid:
			case state >= stateDone:
				atomic.StoreUint32(&m.state, state|stateReported)
				items = t.item(items, begin, m, state)
			default:
				prefix = false
			}
			if prefix {
				p.seen = j + 1
			}
		}
	}
	t.inHand = slices.DeleteFunc(t.inHand, func(p *parcel) bool { return p.seen == len(p.messages) })
	return items
}

// item appends one settled record, or adds it to the range before it. t.mu is held.
func (t *tenure) item(items []wire.GroupAckItem, begin int, m *Message, state uint32) []wire.GroupAckItem {
	it := wire.GroupAckItem{First: m.Offset, Last: m.Offset, Token: m.Token}
	switch state {
	case stateDone:
		it.Kind = wire.AckDone
	case stateReturned:
		it.Kind = wire.AckReturn
	case stateNak:
		it.Kind, it.DelayMS, it.Reason = wire.AckNak, t.details[m].wireDelay(), t.details[m].reason
	case stateTerm:
		it.Kind, it.Reason = wire.AckTerm, t.details[m].reason
	}
	delete(t.details, m)
	if n := len(items); n > begin {
		if l := &items[n-1]; l.Kind == it.Kind && l.Token == it.Token && l.Last+1 == it.First && l.DelayMS == it.DelayMS && l.Reason == it.Reason {
			l.Last = it.Last
			return items
		}
	}
	return append(items, it)
}

// wireDelay: on the wire 0 is the back-off.
func (d detail) wireDelay() int64 {
	if d.delay < 0 {
		return -1
	}
	return max(d.delay.Milliseconds(), 1)
}

// ack sends acks, at most as many as one request takes. refused is about those that came too late. A leader takes or refuses
// an item as a whole, so of a range that it refused both halves are to be sent again.
func (t *tenure) ack(items []wire.GroupAckItem, gather bool) (again []wire.GroupAckItem, refused, err error) {
	s := t.s
	out, err := t.sendAcks(items, gather)
	if err != nil {
		e := asError(err)
		var none patience
		if e != nil && e.Reason == wire.ReasonGroupNotFound || s.fatal(e, err, &none) {
			t.lose(err)
		}
		return nil, nil, err
	}
	for _, r := range out.Refused {
		if r.Item < 0 || r.Item >= len(items) {
			continue
		}
		it := items[r.Item]
		switch {
		case it.First < it.Last:
			again = append(again, halves(it)...)
		case it.Kind == wire.AckDone && r.Reason == wire.ReasonAlreadyDone, it.Kind == wire.AckReturn:
			// Sent twice, or of no consequence.
		default:
			refused = fmt.Errorf("%s of offset %d was refused: %s (%s)", it.Kind, it.First, r.Description, r.Reason)
			s.refused(t.c.partition, refused)
		}
	}
	t.acknowledged(items)
	return again, refused, nil
}

func (t *tenure) sendAcks(items []wire.GroupAckItem, gather bool) (wire.GroupAcked, error) {
	return groupAsk(context.Background(), t.s, wire.GroupAck, t.c.partition,
		wire.GroupAckRequest{Group: t.s.group, Member: t.s.id, Items: items, Gather: gather}, 0,
		func(out *wire.GroupAcked) *Error { return out.Error })
}

// withoutReturns is what is sent again after an answer that did not come. To give a record back a second time might
// take it from whoever got it after the first, under the same token: its ack wait runs out instead.
func withoutReturns(items []wire.GroupAckItem) []wire.GroupAckItem {
	return slices.DeleteFunc(items, func(it wire.GroupAckItem) bool { return it.Kind == wire.AckReturn })
}

func halves(it wire.GroupAckItem) []wire.GroupAckItem {
	a, b := it, it
	a.Last = it.First + (it.Last-it.First)/2
	b.First = a.Last + 1
	return []wire.GroupAckItem{a, b}
}

// extend starts the ack wait of what is in hand anew.
func (t *tenure) extend(now time.Time) {
	s := t.s
	var items []wire.GroupAckItem
	var asked []*parcel
	t.mu.Lock()
	for _, p := range t.inHand {
		if now.Sub(p.came) < s.ackWait()/4 {
			continue // fresh
		}
		n := len(items)
		for j := p.seen; j < len(p.messages); j++ {
			m := &p.messages[j]
			if state := atomic.LoadUint32(&m.state); state != stateWaiting && state != stateBegun {
				continue
			}
			if k := len(items); k > n && items[k-1].Token == m.Token && items[k-1].Last+1 == m.Offset {
				items[k-1].Last = m.Offset
			} else if k < wire.MaxAckItems {
				items = append(items, wire.GroupAckItem{Kind: wire.AckProgress, First: m.Offset, Last: m.Offset, Token: m.Token})
			}
		}
		if len(items) > n {
			asked = append(asked, p)
		}
	}
	t.mu.Unlock()
	for len(items) > 0 {
		out, err := t.sendAcks(items[:min(len(items), wire.MaxAckItems)], false)
		if err != nil {
			return // the acks meet the same trouble, and say so
		}
		var again []wire.GroupAckItem
		for _, r := range out.Refused {
			if r.Item < 0 || r.Item >= len(items) {
				continue
			}
			it := items[r.Item]
			if it.First < it.Last {
				again = append(again, halves(it)...)
				continue
			}
			s.refused(t.c.partition, fmt.Errorf("offset %d is somebody else's by now: %s (%s)", it.First, r.Description, r.Reason))
			t.forfeit(it)
		}
		items = append(items[min(len(items), wire.MaxAckItems):], again...)
	}
	for _, p := range asked {
		p.valid.Store(int64(now.Add(s.ackWait()).Sub(s.start)))
	}
}

// forfeit drops deliveries that are no longer ours.
func (t *tenure) forfeit(it wire.GroupAckItem) {
	mine := func(m *Message) bool { return m.Token == it.Token && it.First <= m.Offset && m.Offset <= it.Last }
	t.s.interrupt(t, mine, ErrLost)
	t.mu.Lock()
	parcels := slices.Clone(t.inHand)
	t.mu.Unlock()
	for _, p := range parcels {
		for i := range p.messages {
			if m := &p.messages[i]; mine(m) {
				_ = m.settle(stateVoid) // or it is settled
			}
		}
	}
}
