package group

import "math"

// MaxParked is how many records of a key-ordered group are looked at ahead of the oldest ones that can't be taken yet.
const MaxParked = 1 << 17

// keyed decides which records a KeyOrdered group may hand to whom. A key belongs to the member that has
// records of it (out, void, or answered and not committed); others get its records only when none is left.
//
// Of a key's waiting records only the oldest is on offer: to its owner, or to all. One take hands out several of
// a key, in order. The next take has more of it only when those are answered: an answer to a pull may be lost on its
// way, and then its member would have later records of the key and not the earlier ones. A delivery after the
// first goes out alone: what came back is done, or dead, before the next one of its key is handed out.
//
// When a record comes back, later ones of its key that the same member has are void: acks of them are
// refused and they are delivered again, after it. So whatever a handler did with them is done again in
// order. They hold the key until the member answers or their time runs out, for it may still be busy with them.
type keyed struct {
	d       *Dispatcher
	handled runs[struct{}] // at the start, above the cursor
	open    runs[struct{}] // on offer to all
	offered int            // keys on offer to their owners
	keyRecs
	keys    []key
	freeKey int32
	byHash  table // to a place in keys

	takes  uint64 // the number of the take that is going on, or was the last
	taking bool
	reach  int64   // of the take that is going on: it hands out nothing beyond
	chains []int32 // keys of which it put another record on offer
}

const none = -1

// key is one cache line.
type key struct {
	hash       uint64
	take       uint64 // that handed out the newest of them
	offer      int64  // the record on offer, none
	to         int32  // member, none: to all
	head, tail int32  // waiting, by offset
	held       int32  // first of those that the owner has, in no order
	out, voids int32  // of those
	failing    int32  // of those, settling and come back
	owner      int32
	alone      bool // a delivery after the first is out
}

func newKeyed(d *Dispatcher) *keyed {
	return &keyed{d: d, keyRecs: newKeyRecs(), freeKey: none}
}

// Feed tells the keys of the records from the cursor on, as hashes, 0 for none. It takes as many as there are
// records.
func (d *Dispatcher) Feed(hashes []uint64) {
	k := d.keyed
	hashes = hashes[:min(int64(len(hashes)), max(0, d.next-d.cursor))]
	for len(hashes) > 0 {
		// A stretch of which the log says the same.
		first, last := d.cursor, d.cursor+int64(len(hashes))-1
		h, isHandled := k.handled.next(first)
		if isHandled = isHandled && h.first <= last; isHandled && h.first > first {
			last, isHandled = h.first-1, false
		} else if isHandled {
			last = min(last, h.last)
		}
		if !isHandled {
			r, known := d.slots.next(first)
			state := ready
			switch {
			case known && r.first <= first:
				last, state = min(last, r.last), r.v.state
			case known && r.first <= last:
				last = r.first - 1
				fallthrough
			default:
				d.slots.set(first, last, slot{state: ready, fresh: true, deliveries: 1})
			}
			if state != dead {
				k.feed(first, hashes[:last-first+1], state == ready)
			}
		}
		d.cursor = last + 1
		hashes = hashes[last-first+1:]
	}
	if d.cursor > 0 {
		k.handled.clear(0, d.cursor-1)
	}
}

// feed takes a stretch of records with one state.
func (k *keyed) feed(first int64, hashes []uint64, isReady bool) {
	from, to := first, first-1 // on offer to all, not noted yet
	offer := func(off int64) {
		if to+1 != off {
			if from <= to {
				k.open.set(from, to, struct{}{})
			}
			from = off
		}
		to = off
	}
	// Records that come back may have keys that are not known yet; refresh looks.
	plain := isReady && k.d.backs.count == 0 && k.d.backsSent.count == 0
	for j, h := range hashes {
		off := first + int64(j)
		if h == 0 {
			if isReady {
				offer(off)
			}
			continue
		}
		i, isNew := k.key(h)
		key := &k.keys[i]
		k.enqueue(k.add(off, i), key)
		switch {
		case isNew && plain: // as refresh would
			key.offer = off
			offer(off)
		case key.offer == none:
			k.refresh(i)
		}
	}
	if from <= to {
		k.open.set(from, to, struct{}{})
	}
}

// Hungry tells whether the keys of more records are wanted, from Cursor on.
func (d *Dispatcher) Hungry() bool {
	const ahead = 2 * MaxPullMessages
	k := d.keyed
	return k != nil && d.cursor < d.next && k.open.covered < ahead && k.live < MaxParked && d.slots.count < MaxParked
}

// Cursor is the first offset that was not looked at.
func (d *Dispatcher) Cursor() int64 { return d.cursor }

// key returns the place of a key, and whether it was not known.
func (k *keyed) key(h uint64) (i int32, isNew bool) {
	e := k.byHash.place(h)
	if e.value != 0 {
		return e.value - 1, false
	}
	if i = k.freeKey; i != none {
		k.freeKey = k.keys[i].head
	} else {
		i = int32(len(k.keys))
		k.keys = append(k.keys, key{})
	}
	k.keys[i] = key{hash: h, head: none, tail: none, held: none, owner: none, offer: none, to: none}
	k.byHash.put(e, h, i)
	return i, true
}

// refresh puts the right record of a key on offer, frees the key when its owner has nothing more of it, and forgets
// it when nothing is left.
func (k *keyed) refresh(i int32) {
	key := &k.keys[i]
	if key.offer != none {
		if key.to == none {
			k.open.clear(key.offer, key.offer)
		} else {
			k.d.members.list[key.to].offers.clear(key.offer, key.offer)
			k.offered--
		}
		key.offer, key.to = none, none
	}
	if key.owner != none && key.held == none {
		m := key.owner
		k.d.members.list[m].keys--
		key.owner = none
		k.d.members.tidy(m)
	}
	if key.head == none {
		if key.held == none {
			k.byHash.remove(key.hash)
			key.head = k.freeKey
			k.freeKey = i
		}
		return
	}
	if key.failing > 0 || key.alone {
		return
	}
	off := k.offset(key.head)
	chained := key.out > 0
	if chained && !(k.taking && key.take == k.takes && off <= k.reach) {
		return
	}
	v, _ := k.d.slots.get(off)
	if v.state != ready || v.deliveries > 1 && key.out > 0 {
		return
	}
	if key.voids > 0 && k.voidBelow(key, off) {
		return
	}
	if d := k.d; d.backs.count > 0 || d.backsSent.count > 0 {
		// It was void, and the entry that gives it a newer token is not committed.
		if _, is := d.backs.get(off); is {
			return
		}
		if _, is := d.backsSent.get(off); is {
			return
		}
	}
	key.offer, key.to = off, key.owner
	if key.owner == none {
		k.open.set(off, off, struct{}{})
		return
	}
	k.d.members.list[key.owner].offers.set(off, off, struct{}{})
	k.offered++
	if chained {
		k.chains = append(k.chains, i)
	}
}

// voidBelow tells whether a void record has its turn before off.
func (k *keyed) voidBelow(key *key, off int64) bool {
	for n := key.held; n != none; n = k.recs[n].next {
		if at := k.offset(n); at < off {
			if v, _ := k.d.slots.get(at); v.state == void {
				return true
			}
		}
	}
	return false
}

// freeKeys is how many keys a member may have in any case. Beyond it, several members together take no more than five sixths
// of the keys in sight: then most records that come next in the log have free keys, and a take finds them side by side. With
// all keys taken it finds its own ones here and there, in batches that hold mostly others'.
const freeKeys = 512

// take hands out what is on offer to a member, in order of offset.
func (k *keyed) take(dst []Delivery, m int32, room, now int64) []Delivery {
	d := k.d
	// While others wait with nothing, nobody locks more than a fair share of the keys, or goes
	// on with more than that.
	share := int64(-1)
	me := &d.members.list[m]
	others := d.members.hungry
	if me.waiting > 0 && me.out == 0 {
		others--
	}
	active := int64(d.members.active)
	if me.waiting == 0 && me.out == 0 {
		active++
	}
	if others > 0 {
		share = (int64(k.byHash.count) + active - 1) / active
	}
	free := int64(math.MaxInt64)
	if active > 1 {
		free = max(int64(k.byHash.count)*5/(6*active), freeKeys)
	}
	if me.keys > free-free/4 {
		free = me.keys // not a few at a time
	}
	if share >= 0 {
		free = min(free, share)
	}
	k.takes++
	k.taking = true
	k.reach = k.reachOf(room, share)
	defer k.endTake()
	for room > 0 {
		me = &d.members.list[m]
		a, okA := k.open.next(0)
		b, okB := me.offers.next(0)
		okB = okB && (share < 0 || me.keys <= share)
		if okA && me.keys >= free {
			// It doesn't go on with its own keys far ahead instead: they are free, side by side with others, soon.
			if !okB || a.first < b.first {
				return dst
			}
		}
		// A stretch of one kind: its records are of different keys, and what comes on offer once they
		// are taken lies beyond it.
		x := a
		switch {
		case okA && (!okB || a.first < b.first):
			if okB {
				x.last = min(x.last, b.first-1)
			}
		case okB:
			if x = b; okA {
				x.last = min(x.last, a.first-1)
			}
		default:
			return dst
		}
		isOpen := x.first == a.first && okA
		s, _ := d.slots.next(x.first)
		x.last = min(x.last, s.last, x.first+room-1)
		if isOpen && x.last-x.first >= free-me.keys {
			x.last = k.keysUpTo(x.first, x.last, free-me.keys)
		}
		if isOpen {
			k.open.clear(x.first, x.last)
		} else {
			me.offers.clear(x.first, x.last)
			k.offered -= int(x.last - x.first + 1)
		}
		dst = d.deliver(dst, m, x.first, x.last, s.v.deliveries, now)
		for off := x.first; off <= x.last; off++ {
			if i := k.find(off); i != none {
				key := &k.keys[k.recs[i].key]
				key.offer, key.to = none, none
				k.handOut(i, m, s.v.deliveries)
			}
		}
		room -= x.last - x.first + 1
	}
	return dst
}

// reachOf returns an offset that a take doesn't get beyond, as what it takes lies in order.
func (k *keyed) reachOf(room, share int64) int64 {
	reach := int64(math.MaxInt64)
	if share < 0 && k.open.covered >= room {
		k.open.all(func(r runOf[struct{}]) bool {
			reach = min(r.last, r.first+room-1)
			room -= r.last - r.first + 1
			return room > 0
		})
	}
	return reach
}

// keysUpTo cuts a stretch of records, each of another key or of none, so that it has that many keys.
func (k *keyed) keysUpTo(first, last, most int64) int64 {
	for off := first; off <= last; off++ {
		if k.find(off) != none {
			if most--; most == 0 {
				return off
			}
		}
	}
	return last
}

// endTake takes off offer what only this take could have had.
func (k *keyed) endTake() {
	k.taking = false
	for _, i := range k.chains {
		if key := &k.keys[i]; key.offer != none && key.out > 0 {
			k.refresh(i)
		}
	}
	k.chains = k.chains[:0]
}

// handOut gives a record that is not on offer any more to a member, with its key.
func (k *keyed) handOut(i, m int32, deliveries int32) {
	n := k.recs[i].key
	key := &k.keys[n]
	key.take = k.takes
	k.unlink(i, key)
	k.hold(i, key)
	key.out++
	key.alone = key.alone || deliveries > 1
	if key.owner == none {
		key.owner = m
		k.d.members.list[m].keys++
	}
	if key.head != none || key.offer != none {
		k.refresh(n)
	}
}

// taken is for acks that come late: the member had the record from an earlier leader.
func (k *keyed) taken(first, last int64, m int32) {
	for off := first; off <= last; off++ {
		i := k.find(off)
		if i == none {
			k.open.clear(off, off)
			continue
		}
		key := &k.keys[k.recs[i].key]
		if key.owner == none && key.offer != none {
			// Off offer first: refresh looks among the new owner's.
			k.open.clear(key.offer, key.offer)
			key.offer = none
		}
		v, _ := k.d.slots.get(off)
		k.handOut(i, m, v.deliveries)
	}
}

// free tells whether nobody but the member has records of the key, and none that waits comes before off, but for those
// from first on, which the same answer is about.
func (k *keyed) free(off, first int64, member string) bool {
	i := k.find(off)
	if i == none {
		return true
	}
	key := &k.keys[k.recs[i].key]
	if key.head != none && k.offset(key.head) < first {
		return false
	}
	owner := key.owner
	return owner == none || member != "" && k.d.has(member, owner)
}

// acked notes records that are settling as done.
func (k *keyed) acked(first, last int64) {
	for off := first; off <= last; off++ {
		i := k.find(off)
		if i == none {
			continue
		}
		n := k.recs[i].key
		key := &k.keys[n]
		key.out--
		key.alone = false // it was the only one, or none was
		if key.head != none {
			k.refresh(n)
		}
	}
}

// failed notes records that are settling and come back. What is dead doesn't come back: it makes none void.
func (k *keyed) failed(first, last int64, dead bool) {
	for off := first; off <= last; off++ {
		i := k.find(off)
		if i == none {
			continue
		}
		key := &k.keys[k.recs[i].key]
		key.out--
		key.failing++
		key.alone = false
		for n := key.held; n != none && !dead; n = k.recs[n].next {
			later := k.offset(n)
			if later <= off {
				continue
			}
			if v, _ := k.d.slots.get(later); v.state == out {
				v.state = void
				k.d.slots.set(later, later, v)
				// The log must know too, or the next leader would take an ack of this delivery.
				k.d.backs.set(later, later, backing{deliveries: v.deliveries})
				key.out--
				key.voids++
			}
		}
		k.refresh(k.recs[i].key)
	}
}

// settled notes that what was settling is committed as done.
func (k *keyed) settled(first, last int64) {
	if last >= k.d.cursor { // dead since before this leader
		k.handled.set(max(first, k.d.cursor), last, struct{}{})
	}
	for off := first; off <= last; off++ {
		if i := k.find(off); i != none {
			k.gone(i)
		}
	}
}

// gone forgets a record.
func (k *keyed) gone(i int32) {
	n := k.recs[i].key
	k.unlink(i, &k.keys[n])
	k.remove(i)
	k.refresh(n)
}

// back notes that records which came back are committed: dead, or among those that wait.
func (k *keyed) back(first, last int64, dead bool) {
	if dead && last >= k.d.cursor {
		k.handled.set(max(first, k.d.cursor), last, struct{}{})
	}
	for off := first; off <= last; off++ {
		i := k.find(off)
		if i == none {
			if v, _ := k.d.slots.get(off); !dead && v.state == ready {
				k.open.set(off, off, struct{}{})
			}
			continue
		}
		n := k.recs[i].key
		key := &k.keys[n]
		key.failing--
		if dead {
			k.gone(i)
			continue
		}
		k.unlink(i, key)
		k.enqueue(i, key)
		k.refresh(n)
	}
}

// changed notes that waiting records became ready.
func (k *keyed) changed(first, last int64) {
	for off := first; off <= last; off++ {
		if i := k.find(off); i != none {
			k.refresh(k.recs[i].key)
		} else if off < k.d.cursor {
			k.open.set(off, off, struct{}{})
		}
	}
}

func (k *keyed) voidAnswered(first, last int64) {
	for off := first; off <= last; off++ {
		i := k.find(off)
		if i == none {
			continue
		}
		n := k.recs[i].key
		key := &k.keys[n]
		key.voids--
		k.unlink(i, key)
		k.enqueue(i, key)
		k.refresh(n)
	}
}

// givenBack undoes deliveries.
func (k *keyed) givenBack(first, last int64) {
	for off := last; off >= first; off-- {
		i := k.find(off)
		if i == none {
			k.open.set(off, off, struct{}{})
			continue
		}
		n := k.recs[i].key
		key := &k.keys[n]
		key.out--
		key.alone = false
		k.unlink(i, key)
		k.enqueue(i, key)
		k.refresh(n)
	}
}

// drop forgets records that retention took.
func (k *keyed) drop(first, last int64) {
	k.open.clear(first, last)
	for off := first; off <= last; off++ {
		i := k.find(off)
		if i == none {
			continue
		}
		key := &k.keys[k.recs[i].key]
		v, _ := k.d.slots.get(off)
		switch v.state {
		case out:
			key.out--
			key.alone = key.alone && v.deliveries == 1
		case void:
			key.voids--
		case settling:
			if !v.done {
				key.failing--
			}
		}
		k.gone(i)
	}
}
