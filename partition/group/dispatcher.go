package group

import (
	"fmt"
	"math"
)

// Dispatcher hands the records of a shared group to its members. One belongs to a leader's
// term: it begins with what the log says (what is handled, what came back) and knows the rest,
// who has which record until when, by itself. It isn't safe for concurrent use.
//
// A record's way:
//
//	      Take              Ack: ack        Applied
//	ready ────▶ out ──────────────────▶ settling ─────▶ handled
//	  ▲          │ nak, wait ran out           │ Applied
//	  │          └─────────────▶ settling ─────┼─▶ waiting ──▶ ready, when its delay is over
//	  └────────────────────────────────────────┘ └▶ dead: for the dead-letter topic, then as acked
//
// A record leaves settling only when the entry that says so is committed: so an ack that was answered
// is never undone, and no record is out a second time under a token that is not newer.
//
// Records are kept as runs: what one pull took costs one. See keyed for what KeyOrdered adds.
type Dispatcher struct {
	o      Options
	token  uint64 // of deliveries from now on
	opened uint64 // token at the start: older ones are another leader's
	before uint64 // tokens from here on are the leader's before this one
	void   uint64
	next   int64 // of the log
	// cursor is the first offset that was not looked at. Below it, what has no slot is handled.
	cursor int64
	slots  runs[slot]
	ready  runs[struct{}] // may be taken; not with keys
	keyed  *keyed

	due     dueHeap // waiting, by time
	expiry  expiryQueue
	members memberTable
	out     int64 // records out, and void
	parked  int64 // records that came back and wait, or are settling
	dead    runs[struct{}]
	aside   runs[struct{}] // dead, and could not be buried

	acks, acksSent   runs[struct{}]
	backs, backsSent runs[backing]
	recent           [recentAcks]recentAck
	recentAt         int

	counters Counters
}

// Counters since a dispatcher began.
type Counters struct {
	Handled, Delivered, Redelivered, DeadLetters uint64
}

type slotState uint8

const (
	ready    slotState = iota + 1
	waiting            // for its delay
	out                // a member has it
	void               // likewise, but one before it of the same key came back: answering is in vain
	settling           // acked or come back, not committed
	dead
)

// slot is what is known of a record that is not handled.
type slot struct {
	state slotState
	// fresh: this leader has not handed it out. One that held it before the leader changed may still ack it.
	fresh      bool
	done       bool   // settling: it was acked
	ends       bool   // settling: it came back and is dead by that
	deliveries int32  // the number of this delivery, or of the next one
	member     int32  // out, void, settling
	token      uint64 // likewise; of a fresh one the smallest that a delivery by the leader before can have
	at         int64  // out, void: deadline; waiting, settling: when it may be taken
	reason     string
}

// backing is what the next entry says about records that came back.
type backing struct {
	deliveries int32
	at         int64 // ms of the leader's clock
	dead       bool
	reason     string
}

// recentAcks is how many acked deliveries are remembered, so that an ack sent again is known for what it is.
const recentAcks = 512

type recentAck struct {
	first, last int64
	member      string
	token       uint64
}

// NewDispatcher begins with what the log says of a shared group, right after the entry that opened it
// was applied. now is the leader's clock, logNow log time at that moment, next the log's next offset.
func NewDispatcher(s *State, name string, next, now, logNow int64) (*Dispatcher, bool) {
	g := s.groups[name]
	if g == nil || g.options.Mode == Exclusive {
		return nil, false
	}
	d := &Dispatcher{o: g.options, token: g.token, opened: g.token, before: g.before, void: g.void, next: next, cursor: g.floor}
	if g.options.Mode == KeyOrdered {
		d.keyed = newKeyed(d)
	}
	end := g.floor // beyond what the log knows anything of
	g.done.all(func(r runOf[struct{}]) bool {
		if d.keyed != nil {
			d.keyed.handled.set(r.first, r.last, r.v)
		}
		end = max(end, r.last+1)
		return true
	})
	g.back.all(func(r runOf[back]) bool {
		end = max(end, r.last+1)
		return true
	})
	if d.keyed == nil {
		// What was neither handled nor came back is ready, between and below.
		at := g.floor
		g.done.all(func(r runOf[struct{}]) bool {
			d.fill(at, r.first-1)
			at = r.last + 1
			return true
		})
		d.fill(at, end-1)
		d.cursor = end
	}
	g.back.all(func(r runOf[back]) bool {
		v := slot{state: ready, fresh: true, deliveries: r.v.deliveries, token: r.v.entry}
		switch delay := r.v.notBefore - logNow; {
		case r.v.dead:
			v.state, v.reason = dead, r.v.reason
			d.dead.set(r.first, r.last, struct{}{})
			d.ready.clear(r.first, r.last)
		case delay > 0:
			v.state, v.at = waiting, now+delay
			d.due.push(v.at, r.first, r.last)
			d.ready.clear(r.first, r.last)
		}
		if !r.v.dead && r.v.deliveries > 1 {
			d.parked += r.last - r.first + 1
		}
		d.slots.set(r.first, r.last, v)
		return true
	})
	return d, true
}

func (d *Dispatcher) fill(first, last int64) {
	if first <= last {
		d.slots.set(first, last, slot{state: ready, fresh: true, deliveries: 1})
		d.ready.set(first, last, struct{}{})
	}
}

// Advance tells of records that were appended.
func (d *Dispatcher) Advance(next int64) { d.next = max(d.next, next) }

// Trim tells that the log begins at start now: what lies below counts as handled.
func (d *Dispatcher) Trim(start int64) {
	for at := int64(0); at < start; {
		r, ok := d.slots.next(at)
		if !ok || r.first >= start {
			break
		}
		last := min(r.last, start-1)
		d.forget(r.first, last, r.v)
		at = last + 1
	}
	d.cursor = max(d.cursor, start)
	d.acks.clear(0, start-1)
	d.backs.clear(0, start-1)
}

// forget drops records of one slot from all books.
func (d *Dispatcher) forget(first, last int64, v slot) {
	n := last - first + 1
	switch v.state {
	case out, void:
		d.release(v.member, n)
	case dead:
		d.unbury(first, last)
	case settling, waiting, ready:
		if v.state == settling {
			d.unname(v.member, n)
		}
		if !v.done && (v.state != ready || v.deliveries > 1) {
			d.parked -= n
		}
	}
	if d.keyed != nil {
		d.keyed.drop(first, last)
	}
	d.ready.clear(first, last)
	d.slots.clear(first, last)
}

func (d *Dispatcher) release(member int32, n int64) {
	d.out -= n
	d.members.add(member, -n)
}

// name and unname count the settling records that name a member.
func (d *Dispatcher) name(member int32, n int64) { d.members.list[member].names += n }

func (d *Dispatcher) unname(member int32, n int64) {
	if member >= 0 {
		d.members.list[member].names -= n
		d.members.tidy(member)
	}
}

// maxSlots bounds what is remembered; see MaxHoles.
func (d *Dispatcher) maxSlots() int { return MaxHoles + int(d.o.MaxInFlight) }

// Take hands records to a member, most of them in one or two runs, and appends the deliveries to dst.
func (d *Dispatcher) Take(dst []Delivery, member string, most int, now int64) []Delivery {
	d.tick(now)
	m := d.members.index(member)
	room := min(int64(most), int64(d.o.MaxInFlight)-d.out, int64(d.o.MaxInFlightMember)-d.members.list[m].out)
	if room <= 0 {
		d.members.tidy(m)
		return dst
	}
	if d.keyed != nil {
		dst = d.keyed.take(dst, m, room, now)
		d.members.tidy(m)
		return dst
	}
	for room > 0 {
		var first, last int64
		n := int32(1)
		if r, ok := d.ready.next(0); ok {
			s, _ := d.slots.next(r.first)
			first, last = r.first, min(r.last, s.last, r.first+room-1)
			n = s.v.deliveries
			d.ready.clear(first, last)
		} else if d.cursor < d.next && d.slots.count < d.maxSlots() {
			first, last = d.cursor, min(d.next, d.cursor+room)-1
			d.cursor = last + 1
		} else {
			break
		}
		dst = d.deliver(dst, m, first, last, n, now)
		room -= last - first + 1
	}
	d.members.tidy(m)
	return dst
}

// deliver moves records to out.
func (d *Dispatcher) deliver(dst []Delivery, m int32, first, last int64, n int32, now int64) []Delivery {
	at := now + d.o.AckWaitMS
	d.slots.set(first, last, slot{state: out, deliveries: n, member: m, token: d.token, at: at})
	d.expiry.push(at, first, last)
	count := last - first + 1
	d.out += count
	d.members.add(m, count)
	d.counters.Delivered += uint64(count)
	if n > 1 {
		d.counters.Redelivered += uint64(count)
		d.parked -= count
	}
	if k := len(dst) - 1; k >= 0 && dst[k].Last+1 == first && dst[k].Deliveries == n && dst[k].Token == d.token {
		dst[k].Last = last
		return dst
	}
	return append(dst, Delivery{First: first, Last: last, Deliveries: n, Token: d.token})
}

// GiveBack takes records back that Take has just handed to the member and that did not fit into its answer.
func (d *Dispatcher) GiveBack(member string, v Delivery) {
	for at := v.First; at <= v.Last; {
		r, ok := d.slots.next(at)
		if !ok || r.first > v.Last {
			return
		}
		first, last := max(at, r.first), min(v.Last, r.last)
		at = last + 1
		if r.v.state == void && r.v.token == v.Token && d.members.list[r.v.member].id == member {
			d.voidAnswered(first, last, r.v)
			continue
		}
		if r.v.state != out || r.v.token != v.Token || d.members.list[r.v.member].id != member {
			continue
		}
		count := last - first + 1
		d.release(r.v.member, count)
		d.counters.Delivered -= uint64(count)
		if r.v.deliveries > 1 {
			d.counters.Redelivered -= uint64(count)
			d.parked += count
		}
		d.slots.set(first, last, slot{state: ready, deliveries: r.v.deliveries})
		if d.keyed != nil {
			d.keyed.givenBack(first, last)
		} else {
			d.ready.set(first, last, struct{}{})
		}
	}
}

// Tick moves on what time has moved on: deliveries whose wait ran out, records whose delay is over. It
// returns when to look again; 0 when there is nothing to wait for.
func (d *Dispatcher) Tick(now int64) (next int64) {
	d.tick(now)
	next = math.MaxInt64
	if e, ok := d.expiry.front(); ok {
		next = e.at
	}
	if len(d.due) > 0 {
		next = min(next, d.due[0].at)
	}
	if next == math.MaxInt64 {
		return 0
	}
	return next
}

func (d *Dispatcher) tick(now int64) {
	for len(d.due) > 0 && d.due[0].at <= now {
		x := d.due.pop()
		d.eachSlot(x.first, x.last, func(first, last int64, v slot) {
			if v.state != waiting || v.at > now {
				return
			}
			v.state, v.at = ready, 0
			d.slots.set(first, last, v)
			if d.keyed != nil {
				d.keyed.changed(first, last)
			} else {
				d.ready.set(first, last, struct{}{})
			}
		})
	}
	for {
		x, ok := d.expiry.front()
		if !ok || x.at > now {
			break
		}
		d.expiry.pop()
		d.eachSlot(x.first, x.last, func(first, last int64, v slot) {
			if v.at > now {
				return
			}
			switch v.state {
			case out:
				d.comeBack(first, last, v, now+d.o.delay(v.deliveries), "", "no answer in time")
			case void:
				d.voidAnswered(first, last, v)
			}
		})
	}
	if d.expiry.len() > 2*d.slots.count+1024 {
		d.expiry.compact(func(x timedRun) bool {
			live := false
			d.eachSlot(x.first, x.last, func(_, _ int64, v slot) {
				live = live || (v.state == out || v.state == void) && v.at == x.at
			})
			return live
		})
	}
}

// eachSlot visits the slots within first..last, cut to it. visit may set those it is given.
func (d *Dispatcher) eachSlot(first, last int64, visit func(first, last int64, v slot)) {
	for at := first; at <= last; {
		r, ok := d.slots.next(at)
		if !ok || r.first > last {
			return
		}
		to := min(last, r.last)
		visit(max(at, r.first), to, r.v)
		at = to + 1
	}
}

// comeBack notes that deliveries failed: the next entry says so. With a term reason the records are dead at once.
func (d *Dispatcher) comeBack(first, last int64, v slot, at int64, term, why string) {
	b := backing{deliveries: v.deliveries, at: at}
	switch {
	case term != "":
		b.dead, b.reason = true, term
	case d.o.MaxDeliveries > 0 && v.deliveries >= d.o.MaxDeliveries:
		b.dead, b.reason = true, fmt.Sprintf("delivered %d times, at most %d are allowed; the last time: %s", v.deliveries, d.o.MaxDeliveries, why)
	case v.deliveries < math.MaxInt32:
		b.deliveries++
	}
	d.name(v.member, last-first+1)
	d.release(v.member, last-first+1)
	d.parked += last - first + 1
	d.backs.set(first, last, b)
	d.slots.set(first, last, slot{state: settling, ends: b.dead, deliveries: b.deliveries, member: v.member, token: v.token, at: at})
	if d.keyed != nil {
		d.keyed.failed(first, last, b.dead)
	}
}

func (d *Dispatcher) voidAnswered(first, last int64, v slot) {
	d.release(v.member, last-first+1)
	d.slots.set(first, last, slot{state: ready, deliveries: v.deliveries})
	if v.deliveries > 1 {
		d.parked += last - first + 1
	}
	d.keyed.voidAnswered(first, last)
}

// Changed tells whether there is something for the next entry.
func (d *Dispatcher) Changed() bool { return d.acks.count > 0 || d.backs.count > 0 }

// Urgent tells whether what has gathered should be committed soon: records that came back, many acks, or acks of keys that
// members wait for: others, or their owner, who has too many.
func (d *Dispatcher) Urgent(acks int64) bool {
	if d.backs.count > 0 || d.acks.covered >= acks {
		return true
	}
	k := d.keyed
	return k != nil && (k.offered > 0 && d.members.hungry > 0 || k.open.count > 0 && d.members.waiting > 0 && d.members.active > 1)
}

// Change writes what has gathered. Applied must be called with its outcome before Change is called again.
func (d *Dispatcher) Change(e *Entry, name string, now, logNow int64) {
	if d.acks.count > 0 {
		e.op(opDone, name)
		e.buf = appendInt(appendUint(e.buf, d.void), int64(d.acks.count))
		at := int64(0)
		d.acks.all(func(r runOf[struct{}]) bool {
			e.buf = appendInt(appendInt(e.buf, r.first-at), r.last-r.first)
			at = r.last
			return true
		})
		d.acks, d.acksSent = d.acksSent, d.acks
	}
	if d.backs.count > 0 {
		e.op(opBack, name)
		e.buf = appendInt(appendUint(e.buf, d.void), int64(d.backs.count))
		at := int64(0)
		d.backs.all(func(r runOf[backing]) bool {
			e.buf = appendInt(appendInt(e.buf, r.first-at), r.last-r.first)
			at = r.last
			b := back{deliveries: r.v.deliveries, dead: r.v.dead, reason: r.v.reason}
			if !b.dead && r.v.at > now {
				b.notBefore = max(0, logNow+r.v.at-now)
			}
			e.buf = appendBack(e.buf, &b)
			return true
		})
		d.backs, d.backsSent = d.backsSent, d.backs
	}
}

// Applied says that what Change wrote is committed, with the index of its entry.
func (d *Dispatcher) Applied(index uint64, now int64) {
	d.acksSent.all(func(r runOf[struct{}]) bool {
		d.eachSlot(r.first, r.last, func(first, last int64, v slot) {
			if v.state != settling || !v.done {
				return
			}
			d.slots.clear(first, last)
			if v.member >= 0 {
				d.counters.Handled += uint64(last - first + 1)
			} else {
				d.counters.DeadLetters += uint64(last - first + 1)
			}
			d.unname(v.member, last-first+1)
			if d.keyed != nil {
				d.keyed.settled(first, last)
			}
		})
		return true
	})
	d.acksSent.reset()
	if d.backsSent.count > 0 {
		d.token = index
	}
	sent := d.backsSent
	d.backsSent = runs[backing]{} // keyed looks at what is not committed
	sent.all(func(r runOf[backing]) bool {
		d.eachSlot(r.first, r.last, func(first, last int64, v slot) {
			if v.state != settling || v.done {
				if d.keyed != nil && v.state == ready {
					d.keyed.changed(first, last)
				}
				return
			}
			d.unname(v.member, last-first+1)
			v = slot{state: ready, deliveries: r.v.deliveries}
			switch {
			case r.v.dead:
				v.state, v.reason = dead, r.v.reason
				d.dead.set(first, last, struct{}{})
				d.parked -= last - first + 1
			case r.v.at > now:
				v.state, v.at = waiting, r.v.at
				d.due.push(v.at, first, last)
			}
			d.slots.set(first, last, v)
			switch {
			case d.keyed != nil:
				d.keyed.back(first, last, v.state == dead)
			case v.state == ready:
				d.ready.set(first, last, struct{}{})
			}
		})
		return true
	})
	sent.reset()
	d.backsSent = sent
}

// reset empties r and keeps its memory.
func (r *runs[V]) reset() {
	for _, b := range r.blocks {
		if len(r.spare) < 4 {
			clear(b)
			r.spare = append(r.spare, b[:0])
		}
	}
	clear(r.blocks)
	r.blocks, r.count, r.covered = r.blocks[:0], 0, 0
}

// Available tells whether a Take by some member may find a record, as far as no limit of that member is in the way.
func (d *Dispatcher) Available() bool {
	if d.out >= int64(d.o.MaxInFlight) {
		return false
	}
	if d.keyed != nil {
		return d.keyed.open.count > 0 || d.keyed.offered > 0
	}
	return d.ready.count > 0 || d.cursor < d.next && d.slots.count < d.maxSlots()
}

// Figures returns what is pending: with members, on its way back, dead, and what was counted.
func (d *Dispatcher) Figures() (pending, redelivering, deadLetters int64, c Counters) {
	return d.out, max(0, d.parked), d.dead.covered + d.aside.covered, d.counters
}

// Idle tells that nothing is out, on its way or to be committed: what this dispatcher knows is in the log.
func (d *Dispatcher) Idle() bool {
	return d.out == 0 && d.parked == 0 && d.dead.count == 0 && d.aside.count == 0 && !d.Changed() && d.acksSent.count == 0 && d.backsSent.count == 0
}
