package group

import "fmt"

// Ack takes what a member ("": whoever was handed them) says about records, item by item; refused ones are appended to dst. What was taken waits for the
// next entry, but for Progress and Return. Items are checked: kinds, and First <= Last.
func (d *Dispatcher) Ack(dst []Refusal, member string, items []AckItem, now int64) []Refusal {
	d.tick(now)
	for i := range items {
		it := &items[i]
		if reason, why := d.judge(member, it); reason != "" {
			d.answerVoid(member, it)
			dst = append(dst, Refusal{Item: i, Reason: reason, Description: why})
			continue
		}
		d.take(member, it, now)
	}
	return dst
}

// maxWhy bounds what a nak's reason adds to a dead letter's.
const maxWhy = 256

// Late tells up to where (exclusive) records must be fed before Ack, for acks under tokens of an earlier
// leader: which key a record has is known only then. 0 when none is needed.
func (d *Dispatcher) Late(items []AckItem) (upTo int64) {
	if d.keyed == nil {
		return 0
	}
	for i := range items {
		if it := &items[i]; it.Token < d.opened && it.Token >= d.before && it.Last < d.next && it.Last >= d.cursor && it.Last < d.cursor+MaxParked {
			upTo = max(upTo, it.Last+1)
		}
	}
	return upTo
}

// has: the record that m was handed is the member's. A plain client says no name, its token will do: under
// one token a record is with one member at a time.
func (d *Dispatcher) has(member string, m int32) bool {
	return member == "" || d.members.list[m].id == member
}

// judge says why an item can't be taken: all of its records must be the member's under its token.
func (d *Dispatcher) judge(member string, it *AckItem) (reason, why string) {
	if it.Token < d.void {
		return StaleToken, fmt.Sprintf("the group was made anew or reset after token %d", it.Token)
	}
	if it.Last >= d.next {
		return NotDelivered, fmt.Sprintf("offset %d is beyond the log, which ends before %d", it.Last, d.next)
	}
	for at := it.First; at <= it.Last; {
		r, ok := d.slots.next(at)
		switch {
		case ok && r.first <= at:
			if reason, why = d.judgeSlot(member, it, at, r.v); reason != "" {
				return reason, why
			}
			at = r.last + 1
		case at < d.cursor:
			last := min(it.Last, d.cursor-1)
			if ok {
				last = min(last, r.first-1)
			}
			if reason, why = d.judgeHandled(member, it, at, last); reason != "" {
				return reason, why
			}
			at = last + 1
		default: // not looked at by this leader
			if d.keyed != nil {
				if h, is := d.keyed.handled.next(at); is && h.first <= at { // the log says so
					last := min(it.Last, h.last)
					if reason, why = d.judgeHandled(member, it, at, last); reason != "" {
						return reason, why
					}
					at = last + 1
					continue
				}
			}
			if it.Token >= d.opened {
				return NotDelivered, fmt.Sprintf("offset %d was not delivered yet", at)
			}
			if d.keyed != nil || it.Token < d.before || it.Kind != Ack && it.Kind != Term {
				return StaleToken, fmt.Sprintf("token %d is of an earlier leader: the record is delivered again", it.Token)
			}
			return "", ""
		}
	}
	return "", ""
}

func (d *Dispatcher) judgeSlot(member string, it *AckItem, at int64, v slot) (reason, why string) {
	switch v.state {
	case out:
		switch {
		case v.token == it.Token && d.has(member, v.member):
			return "", ""
		case it.Token < v.token:
			return StaleToken, fmt.Sprintf("offset %d was handed out again under token %d", at, v.token)
		}
		return NotDelivered, fmt.Sprintf("another member has offset %d", at)
	case void:
		return StaleToken, fmt.Sprintf("a record before offset %d of the same key came back: both are delivered again", at)
	case settling:
		// The same answer again, while the first is on its way. A record that comes back for another reason, as its time
		// ran out, is not the one to end: it is delivered again.
		if v.token == it.Token && v.member >= 0 && d.has(member, v.member) && (it.Kind == Ack && v.done || it.Kind == Nak && !v.done || it.Kind == Term && v.ends) {
			return "", ""
		}
	case ready, waiting:
		if v.fresh && it.Token < d.opened && it.Token >= max(d.before, v.token) && (it.Kind == Ack || it.Kind == Term) && (d.keyed == nil || at < d.cursor && d.keyed.free(at, it.First, member)) {
			return "", "" // nobody else has had it from this leader
		}
		if v.fresh && it.Token >= d.opened {
			return NotDelivered, fmt.Sprintf("offset %d was not delivered yet", at)
		}
	}
	return StaleToken, fmt.Sprintf("the delivery of offset %d under token %d is over", at, it.Token)
}

// judgeHandled is about records that are handled: an ack that comes again is taken, if it is known.
func (d *Dispatcher) judgeHandled(member string, it *AckItem, first, last int64) (reason, why string) {
	for i := range d.recent {
		r := &d.recent[i]
		if r.first > last || r.last < first || r.member == "" {
			continue
		}
		if member != "" && r.member != member || r.token != it.Token {
			return StaleToken, fmt.Sprintf("offset %d was acked under token %d", max(first, r.first), r.token)
		}
		if it.Kind == Ack && r.first <= first && r.last >= last {
			return "", ""
		}
	}
	return AlreadyDone, fmt.Sprintf("offset %d is handled already", first)
}

// take carries an item out that judge let pass.
func (d *Dispatcher) take(member string, it *AckItem, now int64) {
	if d.cursor <= it.Last { // late, see judge
		d.fill(d.cursor, it.Last)
		d.cursor = it.Last + 1
	}
	d.eachSlot(it.First, it.Last, func(first, last int64, v slot) {
		if v.state == ready || v.state == waiting {
			// Late: as if this leader had handed it out.
			m := d.members.index(member)
			d.ready.clear(first, last)
			if v.deliveries > 1 {
				d.parked -= last - first + 1
			}
			d.out += last - first + 1
			d.members.add(m, last-first+1)
			v = slot{state: out, deliveries: v.deliveries, member: m, token: it.Token}
			d.slots.set(first, last, v)
			if d.keyed != nil {
				d.keyed.taken(first, last, m)
			}
		}
		if v.state == void { // since a record before it came back in this very item
			d.voidAnswered(first, last, v)
			return
		}
		if v.state != out {
			return
		}
		switch it.Kind {
		case Ack:
			d.acked(first, last, v)
		case Nak:
			delay := it.DelayMS
			if delay < 0 {
				delay = d.o.delay(v.deliveries)
			}
			why := it.Reason[:min(len(it.Reason), maxWhy)]
			if why == "" {
				why = "refused by its consumer"
			}
			d.comeBack(first, last, v, now+delay, "", why)
		case Term:
			reason := it.Reason
			if reason == "" {
				reason = "ended by its consumer"
			}
			d.comeBack(first, last, v, now, reason, "")
		case Progress:
			v.at = now + d.o.AckWaitMS
			d.slots.set(first, last, v)
			d.expiry.push(v.at, first, last)
		case Return:
			d.GiveBack(d.members.list[v.member].id, Delivery{First: first, Last: last, Token: v.token})
		}
	})
}

func (d *Dispatcher) acked(first, last int64, v slot) {
	d.name(v.member, last-first+1)
	d.release(v.member, last-first+1)
	d.acks.set(first, last, struct{}{})
	d.slots.set(first, last, slot{state: settling, done: true, deliveries: v.deliveries, member: v.member, token: v.token})
	if d.keyed != nil {
		d.keyed.acked(first, last)
	}
	member := d.members.list[v.member].id
	// One entry for what is acked in a row.
	r := &d.recent[d.recentAt]
	if r.member == member && r.token == v.token && r.last+1 == first {
		r.last = last
		return
	}
	d.recentAt = (d.recentAt + 1) % recentAcks
	d.recent[d.recentAt] = recentAck{first, last, member, v.token}
}

// answerVoid notes that the member has answered for records that it had in vain.
func (d *Dispatcher) answerVoid(member string, it *AckItem) {
	if d.keyed == nil || it.Kind == Progress {
		return
	}
	d.eachSlot(it.First, it.Last, func(first, last int64, v slot) {
		if v.state == void && v.token == it.Token && d.has(member, v.member) {
			d.voidAnswered(first, last, v)
		}
	})
}
