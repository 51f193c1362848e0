package group

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
	recs    []rec
	freeRec int32
	at      map[int64]int32 // offset: its place in recs
	keys    []key
	freeKey int32
	byHash  map[uint64]int32

	takes  uint64 // the number of the take that is going on, or was the last
	taking bool
	offs   []int64 // scratch
}

// rec is a record that has a key and is not handled.
type rec struct {
	off        int64
	key        int32
	prev, next int32 // in one of its key's lists
	waits      bool
}

const none = -1

type key struct {
	hash             uint64
	head, tail       int32 // waiting, by offset
	held             int32 // first of those that the owner has, in no order
	out, voids, busy int32 // of those; busy: settling
	failing          int32 // of busy, those that came back
	owner            int32
	alone            bool   // a delivery after the first is out
	take             uint64 // that handed out the newest of them
	offer            int64  // the record on offer, none
	to               int32  // member, none: to all
}

func newKeyed(d *Dispatcher) *keyed {
	return &keyed{d: d, at: map[int64]int32{}, byHash: map[uint64]int32{}, freeRec: none, freeKey: none}
}

// Feed tells the keys of the records from the cursor on, as hashes, 0 for none. It takes as many as it has
// room for.
func (d *Dispatcher) Feed(hashes []uint64) {
	k := d.keyed
	for _, h := range hashes {
		off := d.cursor
		if off >= d.next {
			return
		}
		d.cursor++
		if _, ok := k.handled.get(off); ok {
			continue
		}
		if _, ok := d.slots.get(off); !ok {
			d.slots.set(off, off, slot{state: ready, fresh: true, deliveries: 1})
		}
		v, _ := d.slots.get(off)
		if v.state == dead {
			continue
		}
		if h == 0 {
			if v.state == ready {
				k.open.set(off, off, struct{}{})
			}
			continue
		}
		i := k.key(h)
		k.enqueue(k.rec(off, i))
		if k.keys[i].offer == none {
			k.refresh(i)
		}
	}
	if d.cursor > 0 {
		k.handled.clear(0, d.cursor-1)
	}
}

// Hungry tells whether the keys of more records are wanted, from Cursor on.
func (d *Dispatcher) Hungry() bool {
	const ahead = 2 * MaxPullMessages
	k := d.keyed
	return k != nil && d.cursor < d.next && k.open.covered < ahead && len(k.at) < MaxParked && d.slots.count < MaxParked
}

// Cursor is the first offset that was not looked at.
func (d *Dispatcher) Cursor() int64 { return d.cursor }

func (k *keyed) key(h uint64) int32 {
	if i, ok := k.byHash[h]; ok {
		return i
	}
	i := k.freeKey
	if i != none {
		k.freeKey = k.keys[i].head
	} else {
		i = int32(len(k.keys))
		k.keys = append(k.keys, key{})
	}
	k.keys[i] = key{hash: h, head: none, tail: none, held: none, owner: none, offer: none, to: none}
	k.byHash[h] = i
	return i
}

func (k *keyed) rec(off int64, key int32) int32 {
	i := k.freeRec
	if i != none {
		k.freeRec = k.recs[i].next
	} else {
		i = int32(len(k.recs))
		k.recs = append(k.recs, rec{})
	}
	k.recs[i] = rec{off: off, key: key, prev: none, next: none}
	k.at[off] = i
	return i
}

// enqueue puts a record among those that wait, by offset. It is mostly the last, or one of the first.
func (k *keyed) enqueue(i int32) {
	r := &k.recs[i]
	key := &k.keys[r.key]
	r.waits = true
	if key.tail == none || k.recs[key.tail].off < r.off {
		r.prev, r.next = key.tail, none
		if key.tail != none {
			k.recs[key.tail].next = i
		} else {
			key.head = i
		}
		key.tail = i
		return
	}
	n := key.head
	for k.recs[n].off < r.off {
		n = k.recs[n].next
	}
	r.prev, r.next = k.recs[n].prev, n
	k.recs[n].prev = i
	if r.prev != none {
		k.recs[r.prev].next = i
	} else {
		key.head = i
	}
}

// hold puts a record among those that the owner has.
func (k *keyed) hold(i int32) {
	r := &k.recs[i]
	key := &k.keys[r.key]
	r.waits, r.prev, r.next = false, none, key.held
	if key.held != none {
		k.recs[key.held].prev = i
	}
	key.held = i
}

func (k *keyed) unlink(i int32) {
	r := &k.recs[i]
	key := &k.keys[r.key]
	if r.prev != none {
		k.recs[r.prev].next = r.next
	} else if r.waits {
		key.head = r.next
	} else {
		key.held = r.next
	}
	if r.next != none {
		k.recs[r.next].prev = r.prev
	} else if r.waits {
		key.tail = r.prev
	}
	r.prev, r.next = none, none
}

func (k *keyed) removeRec(i int32) {
	k.unlink(i)
	delete(k.at, k.recs[i].off)
	k.recs[i].next = k.freeRec
	k.freeRec = i
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
			delete(k.byHash, key.hash)
			key.head = k.freeKey
			k.freeKey = i
		}
		return
	}
	off := k.recs[key.head].off
	v, _ := k.d.slots.get(off)
	if v.state != ready || key.failing > 0 || key.alone || v.deliveries > 1 && key.out > 0 {
		return
	}
	if key.out > 0 && !(k.taking && key.take == k.takes) {
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
	} else {
		k.d.members.list[key.owner].offers.set(off, off, struct{}{})
		k.offered++
	}
}

// voidBelow tells whether a void record has its turn before off.
func (k *keyed) voidBelow(key *key, off int64) bool {
	for n := key.held; n != none; n = k.recs[n].next {
		if k.recs[n].off < off {
			if v, _ := k.d.slots.get(k.recs[n].off); v.state == void {
				return true
			}
		}
	}
	return false
}

// each visits the records with a key in first..last.
func (k *keyed) each(first, last int64, visit func(i int32, r *rec, key *key)) {
	for off := first; off <= last; off++ {
		if i, ok := k.at[off]; ok {
			r := &k.recs[i]
			visit(i, r, &k.keys[r.key])
		}
	}
}

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
	if others > 0 {
		active := d.members.active
		if me.waiting == 0 && me.out == 0 {
			active++
		}
		share = (int64(len(k.byHash)) + int64(active) - 1) / int64(active)
	}
	k.takes++
	k.taking = true
	defer k.endTake(m)
	for room > 0 {
		me = &d.members.list[m]
		a, okA := k.open.next(0)
		b, okB := me.offers.next(0)
		okA = okA && (share < 0 || me.keys < share)
		okB = okB && (share < 0 || me.keys <= share)
		var off int64
		switch {
		case okA && (!okB || a.first < b.first):
			off = a.first
		case okB:
			off = b.first
		default:
			return dst
		}
		v, _ := d.slots.get(off)
		dst = d.deliver(dst, m, off, off, v.deliveries, now)
		if i, ok := k.at[off]; ok {
			k.takenRec(i, m, v.deliveries)
		} else {
			k.open.clear(off, off)
		}
		room--
	}
	return dst
}

// endTake takes off offer what only this take could have had.
func (k *keyed) endTake(m int32) {
	k.taking = false
	k.offs = k.offs[:0]
	k.d.members.list[m].offers.all(func(r runOf[struct{}]) bool {
		for off := r.first; off <= r.last; off++ {
			k.offs = append(k.offs, off)
		}
		return true
	})
	for _, off := range k.offs {
		i := k.recs[k.at[off]].key
		if k.keys[i].out > 0 {
			k.refresh(i)
		}
	}
}

func (k *keyed) takenRec(i, m int32, deliveries int32) {
	key := &k.keys[k.recs[i].key]
	key.take = k.takes
	k.unlink(i)
	k.hold(i)
	key.out++
	key.alone = key.alone || deliveries > 1
	if key.owner == none {
		// Off offer first: refresh looks among the new owner's.
		k.open.clear(key.offer, key.offer)
		key.offer = none
		key.owner = m
		k.d.members.list[m].keys++
	}
	k.refresh(k.recs[i].key)
}

// taken is takenRec for acks that come late: the member had the record from an earlier leader.
func (k *keyed) taken(first, last int64, m int32) {
	for off := first; off <= last; off++ {
		if i, ok := k.at[off]; ok {
			v, _ := k.d.slots.get(off)
			k.takenRec(i, m, v.deliveries)
		} else {
			k.open.clear(off, off)
		}
	}
}

// free tells whether nobody but the member has records of the key, and none that waits comes before off, but for those
// from first on, which the same answer is about.
func (k *keyed) free(off, first int64, member string) bool {
	i, ok := k.at[off]
	if !ok {
		return true
	}
	key := &k.keys[k.recs[i].key]
	if key.head != none && k.recs[key.head].off < first {
		return false
	}
	owner := key.owner
	return owner == none || member != "" && k.d.has(member, owner)
}

// acked notes records that are settling as done.
func (k *keyed) acked(first, last int64) {
	k.each(first, last, func(_ int32, r *rec, key *key) {
		key.out--
		key.busy++
		key.alone = false // it was the only one, or none was
		k.refresh(r.key)
	})
}

// failed notes records that are settling and come back. What is dead doesn't come back: it makes none void.
func (k *keyed) failed(first, last int64, dead bool) {
	for off := first; off <= last; off++ {
		i, ok := k.at[off]
		if !ok {
			continue
		}
		key := &k.keys[k.recs[i].key]
		key.out--
		key.busy++
		key.failing++
		key.alone = false
		for n := key.held; n != none && !dead; n = k.recs[n].next {
			later := k.recs[n].off
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

// settled notes that what was settling is committed: gone, or back among those that wait.
func (k *keyed) settled(first, last int64, gone bool) {
	if gone && last >= k.d.cursor { // dead since before this leader
		k.handled.set(max(first, k.d.cursor), last, struct{}{})
	}
	for off := first; off <= last; off++ {
		i, ok := k.at[off]
		if !ok {
			if v, _ := k.d.slots.get(off); !gone && v.state == ready {
				k.open.set(off, off, struct{}{})
			}
			continue
		}
		n := k.recs[i].key
		key := &k.keys[n]
		key.busy--
		if gone {
			if _, isDead := k.d.slots.get(off); isDead {
				key.failing--
			}
			k.removeRec(i)
		} else {
			key.failing--
			k.unlink(i)
			k.enqueue(i)
		}
		k.refresh(n)
	}
}

// changed notes that waiting records became ready.
func (k *keyed) changed(first, last int64) {
	for off := first; off <= last; off++ {
		if i, ok := k.at[off]; ok {
			k.refresh(k.recs[i].key)
		} else if off < k.d.cursor {
			k.open.set(off, off, struct{}{})
		}
	}
}

func (k *keyed) voidAnswered(first, last int64) {
	k.each(first, last, func(i int32, r *rec, key *key) {
		key.voids--
		k.unlink(i)
		k.enqueue(i)
		k.refresh(r.key)
	})
}

// givenBack undoes deliveries.
func (k *keyed) givenBack(first, last int64) {
	for off := last; off >= first; off-- {
		i, ok := k.at[off]
		if !ok {
			k.open.set(off, off, struct{}{})
			continue
		}
		n := k.recs[i].key
		k.keys[n].out--
		k.keys[n].alone = false
		k.unlink(i)
		k.enqueue(i)
		k.refresh(n)
	}
}

// drop forgets records that retention took.
func (k *keyed) drop(first, last int64) {
	k.open.clear(first, last)
	for off := first; off <= last; off++ {
		i, ok := k.at[off]
		if !ok {
			continue
		}
		n := k.recs[i].key
		key := &k.keys[n]
		v, _ := k.d.slots.get(off)
		switch v.state {
		case out:
			key.out--
			key.alone = key.alone && v.deliveries == 1
		case void:
			key.voids--
		case settling:
			key.busy--
			if !v.done {
				key.failing--
			}
		}
		k.removeRec(i)
		k.refresh(n)
	}
}
