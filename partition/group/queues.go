package group

// timedRun is something to look at when its time has come: what it says may be out of date by then.
type timedRun struct{ at, first, last int64 }

// dueHeap has the earliest first.
type dueHeap []timedRun

func (h *dueHeap) push(at, first, last int64) {
	*h = append(*h, timedRun{at, first, last})
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if s[up].at <= s[i].at {
			break
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
}

func (h *dueHeap) pop() timedRun {
	s := *h
	top := s[0]
	n := len(s) - 1
	s[0] = s[n]
	s = s[:n]
	*h = s
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && s[c+1].at < s[c].at {
			c++
		}
		if s[i].at <= s[c].at {
			break
		}
		s[i], s[c] = s[c], s[i]
		i = c
	}
	return top
}

// expiryQueue holds deliveries in the order of their deadlines, which is the order in which they were made: the
// ack wait of a group is one, and the clock doesn't go back.
type expiryQueue struct {
	q    []timedRun
	head int
}

func (e *expiryQueue) push(at, first, last int64) {
	if n := len(e.q); n > e.head {
		if b := &e.q[n-1]; b.at == at && b.last+1 == first {
			b.last = last
			return
		}
	}
	if e.head > 0 && len(e.q) == cap(e.q) {
		n := copy(e.q, e.q[e.head:])
		e.q, e.head = e.q[:n], 0
	}
	e.q = append(e.q, timedRun{at, first, last})
}

func (e *expiryQueue) len() int { return len(e.q) - e.head }

func (e *expiryQueue) front() (timedRun, bool) {
	if e.head == len(e.q) {
		return timedRun{}, false
	}
	return e.q[e.head], true
}

func (e *expiryQueue) pop() {
	if e.head++; e.head == len(e.q) {
		e.q, e.head = e.q[:0], 0
	}
}

// compact drops what is no longer live.
func (e *expiryQueue) compact(live func(timedRun) bool) {
	kept := e.q[:0]
	for _, x := range e.q[e.head:] {
		if live(x) {
			kept = append(kept, x)
		}
	}
	e.q, e.head = kept, 0
}

// memberTable counts what each member has. Who has nothing, waits for nothing and owns no key is
// forgotten, unless a settling record still names it: so places are given anew only in turn.
type memberTable struct {
	list    []memberSlot
	byID    map[string]int32
	free    []int32
	hungry  int // members that wait and have nothing
	waiting int // pulls of all
	active  int // members that wait or have something
}

type memberSlot struct {
	id      string
	out     int64
	keys    int64 // that it owns
	names   int64 // settling records that name it
	waiting int   // pulls
	offers  runs[struct{}]
}

func (t *memberTable) index(id string) int32 {
	if i, ok := t.byID[id]; ok {
		return i
	}
	if t.byID == nil {
		t.byID = map[string]int32{}
	}
	var i int32
	if n := len(t.free); n > 0 {
		i = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		i = int32(len(t.list))
		t.list = append(t.list, memberSlot{})
	}
	t.list[i].id = id
	t.byID[id] = i
	return i
}

func (t *memberTable) change(i int32, f func(m *memberSlot)) {
	m := &t.list[i]
	count := func(by int) {
		if m.waiting > 0 && m.out == 0 {
			t.hungry += by
		}
		if m.waiting > 0 || m.out > 0 {
			t.active += by
		}
	}
	count(-1)
	f(m)
	count(1)
}

func (t *memberTable) add(i int32, n int64) {
	t.change(i, func(m *memberSlot) { m.out += n })
}

// tidy forgets a member with nothing.
func (t *memberTable) tidy(i int32) {
	m := &t.list[i]
	if m.id != "" && m.out == 0 && m.keys == 0 && m.names == 0 && m.waiting == 0 && m.offers.count == 0 {
		delete(t.byID, m.id)
		m.id = ""
		t.free = append(t.free, i)
	}
}

// Wait tells that a member waits for records (1) or does so no longer (-1): whoever owns more than
// its share of keys then makes room.
func (d *Dispatcher) Wait(member string, by int) {
	i := d.members.index(member)
	d.members.change(i, func(m *memberSlot) { m.waiting += by })
	d.members.waiting += by
	d.members.tidy(i)
}
