package client

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// crew hands records to whoever handles them: the subscription's workers, or the callers of Messages.Next.
//
// Tenures with something to begin stand in line, each once, and take turns. Who takes from one gets a run of its
// records. What may run side by side is up to the order that is kept: PerPartition, a tenure is busy while a run
// of it is being handled; PerKey, its records are dealt to strands by their key's hash, and a strand is busy; Unordered,
// nothing is. A record that is to be tried again later parks its tenure or strand, and nobody else.
//
// Callers of Next get records in order and are not waited for: with several goroutines it is they who keep order.
type crew struct {
	s     *Subscription
	ready chan struct{} // capacity 1; who takes the token passes it on while there is a line

	mu   sync.Mutex
	line []*tenure // guarded by mu
}

// deck is what a tenure has for the crew. Guarded by crew.mu.
type deck struct {
	inLine  bool
	busy    bool // PerPartition, with workers
	parked  int  // delays that hold the tenure up
	working int  // runs under way
	queue   []*parcel
	redo    []*Message // before the queue
	limbo   []*Message // Unordered: to be tried again later
	highest int64      // offset that was taken
	strands []strand   // PerKey
	open    *strand    // strands that are ready, a list
	last    *strand
}

// strand is the records of some keys, in order.
type strand struct {
	first, last *Message
	next        *strand // that is ready
	listed      bool
	busy        bool
	parked      int
}

// maxStrands of a tenure. Keys that share one wait for each other, which costs time and nothing else. A batch is of
// one strand: with batches there are fewer.
const maxStrands = 256

func (s *Subscription) strandCount() int {
	if s.handleBatch != nil {
		return min(2*s.cfg.concurrency, maxStrands)
	}
	return maxStrands
}

var strandSeed = maphash.MakeSeed()

// A run is as many records as take about runTime, up to runMost: few locks where handlers are fast, and
// nobody waits behind a slow one.
const (
	runMost = 256
	runTime = time.Millisecond
	runOver = 10 * time.Millisecond // then the rest of a run is put back
)

func newCrew(s *Subscription) *crew { return &crew{s: s, ready: make(chan struct{}, 1)} }

func (cr *crew) signal() {
	select {
	case cr.ready <- struct{}{}:
	default:
	}
}

// add puts a parcel in the line.
func (cr *crew) add(p *parcel) {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	t := p.t
	if t.over() {
		t.discard(p.messages)
		return
	}
	if t.strandsOrder() {
		if t.deck.strands == nil {
			t.deck.strands = make([]strand, t.s.strandCount())
		}
		for i := range p.messages {
			m := &p.messages[i]
			t.push(t.strandOf(m), m)
		}
	} else {
		t.deck.queue = append(t.deck.queue, p)
	}
	cr.enqueue(t)
}

// enqueue puts t in line when there is something to begin. cr.mu is held.
func (cr *crew) enqueue(t *tenure) {
	if t.deck.inLine || t.retired.Load() || !t.available() {
		return
	}
	t.deck.inLine = true
	cr.line = append(cr.line, t)
	cr.signal()
}

// strandsOrder: records are dealt to strands.
func (t *tenure) strandsOrder() bool { return t.s.cfg.order == PerKey && t.s.worked() }

func (t *tenure) strandOf(m *Message) *strand {
	if m.Key == nil {
		return &t.deck.strands[m.Offset%int64(len(t.deck.strands))]
	}
	return t.strandOfKey(m.Key)
}

func (t *tenure) strandOfKey(key []byte) *strand {
	return &t.deck.strands[maphash.Bytes(strandSeed, key)%uint64(len(t.deck.strands))]
}

// push appends m to a strand. crew.mu is held.
func (t *tenure) push(st *strand, m *Message) {
	if st.last == nil {
		st.first = m
	} else {
		st.last.after = m
	}
	st.last = m
	t.list(st)
}

// unshift puts messages at the head of a strand. crew.mu is held.
func (st *strand) unshift(ms []*Message) {
	for i := len(ms) - 1; i >= 0; i-- {
		ms[i].after = st.first
		st.first = ms[i]
		if st.last == nil {
			st.last = ms[i]
		}
	}
}

// list marks a strand as ready, if it is. crew.mu is held.
func (t *tenure) list(st *strand) {
	if st.listed || st.busy || st.parked > 0 || st.first == nil {
		return
	}
	st.listed = true
	if t.deck.last == nil {
		t.deck.open = st
	} else {
		t.deck.last.next = st
	}
	t.deck.last = st
}

// available says whether something may begin. crew.mu is held.
func (t *tenure) available() bool {
	d := &t.deck
	if d.strands != nil {
		return d.open != nil
	}
	if t.s.cfg.order != Unordered && (d.busy || d.parked > 0) {
		return false
	}
	return len(d.redo) > 0 || len(d.queue) > 0
}

// take gets a run of at most limit records. nil: there is none now.
func (cr *crew) take(run []*Message, limit int) (t *tenure, st *strand, _ []*Message) {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	run = run[:0]
	for len(cr.line) > 0 {
		t = cr.line[0]
		n := copy(cr.line, cr.line[1:])
		cr.line[n] = nil
		cr.line = cr.line[:n]
		t.deck.inLine = false
		if t.retired.Load() {
			continue
		}
		if st, run = t.next(run, limit); len(run) == 0 {
			cr.enqueue(t) // an emptied strand: there may be others
			continue
		}
		for _, m := range run {
			t.deck.highest = max(t.deck.highest, m.Offset)
		}
		if t.s.worked() {
			t.deck.working++
			if st != nil {
				st.busy = true
			} else if t.s.cfg.order == PerPartition {
				t.deck.busy = true
			}
		}
		cr.enqueue(t)
		if len(cr.line) > 0 {
			cr.signal()
		}
		return t, st, run
	}
	return nil, nil, run
}

// next takes a run from the deck. crew.mu is held.
func (t *tenure) next(run []*Message, limit int) (*strand, []*Message) {
	d := &t.deck
	if d.strands != nil {
		st := d.open
		if st == nil {
			return nil, run
		}
		if d.open = st.next; d.open == nil {
			d.last = nil
		}
		st.next, st.listed = nil, false
		for m := st.first; m != nil && len(run) < limit; m = st.first {
			run = append(run, m)
			if st.first = m.after; st.first == nil {
				st.last = nil
			}
			m.after = nil
		}
		return st, run
	}
	if !t.available() {
		return nil, run
	}
	if n := min(limit, len(d.redo)); n > 0 {
		run = append(run, d.redo[:n]...)
		m := copy(d.redo, d.redo[n:])
		clear(d.redo[m:])
		d.redo = d.redo[:m]
	}
	for len(run) < limit && len(d.queue) > 0 {
		p := d.queue[0]
		n := min(limit-len(run), len(p.messages)-p.taken)
		for i := range n {
			run = append(run, &p.messages[p.taken+i])
		}
		if p.taken += n; p.taken == len(p.messages) {
			m := copy(d.queue, d.queue[1:])
			d.queue[m] = nil
			d.queue = d.queue[:m]
		}
	}
	return nil, run
}

// putBack gives back what of a run was not begun: it comes next. It leaves the run as it is.
func (cr *crew) putBack(t *tenure, st *strand, rest []*Message) {
	if len(rest) == 0 {
		return
	}
	cr.mu.Lock()
	defer cr.mu.Unlock()
	if t.retired.Load() {
		t.discardAll(rest)
		return
	}
	cr.front(t, st, rest)
	cr.enqueue(t)
}

// front puts records before all others. cr.mu is held.
func (cr *crew) front(t *tenure, st *strand, ms []*Message) {
	if st != nil {
		st.unshift(ms)
		t.list(st)
		return
	}
	t.deck.redo = append(append(make([]*Message, 0, len(ms)+len(t.deck.redo)), ms...), t.deck.redo...)
}

// done ends a run.
func (cr *crew) done(t *tenure, st *strand) {
	cr.mu.Lock()
	t.deck.working--
	if st != nil {
		st.busy = false
		t.list(st)
	} else {
		t.deck.busy = false
	}
	cr.enqueue(t)
	cr.mu.Unlock()
	t.settledSome()
}

// again hands failed records out once more after delay, and before them, with an order that is kept, nothing of their strand
// or partition: rest is what followed in their run.
func (cr *crew) again(t *tenure, st *strand, failed, rest []*Message, delay time.Duration) {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	failed = slices.DeleteFunc(slices.Clone(failed), func(m *Message) bool { return !m.resume(stateWaiting) })
	for _, m := range failed {
		m.Deliveries++
		t.waiting.Add(1)
	}
	d := &t.deck
	if len(failed) == 0 { // they were settled just now
		if t.retired.Load() {
			t.discardAll(rest)
		} else if len(rest) > 0 {
			cr.front(t, st, rest)
			cr.enqueue(t)
		}
		return
	}
	if t.over() {
		// The position can't pass the failed ones: what lies beyond them comes again anyway.
		first := failed[0].Offset
		for _, m := range failed {
			first = min(first, m.Offset)
		}
		t.discardAll(failed)
		if t.retired.Load() {
			t.discardAll(rest)
			return
		}
		cr.front(t, st, rest) // without an order some may lie below
		cr.keepBelow(t, first)
		cr.enqueue(t)
		return
	}
	if st == nil && d.strands != nil {
		st = t.strandOf(failed[0])
	}
	unordered := st == nil && t.s.cfg.order == Unordered
	switch {
	case unordered:
		cr.front(t, nil, rest)
		d.limbo = append(d.limbo, failed...)
	case st != nil:
		st.parked++
		cr.front(t, st, append(failed, rest...))
	default:
		d.parked++
		cr.front(t, nil, append(failed, rest...))
	}
	cr.enqueue(t)
	time.AfterFunc(delay, func() { // at worst it finds a tenure that is over, and does nothing
		cr.mu.Lock()
		defer cr.mu.Unlock()
		switch {
		case t.over():
			return
		case st != nil:
			st.parked--
			t.list(st)
		case unordered:
			d.limbo = slices.DeleteFunc(d.limbo, func(m *Message) bool { return slices.Contains(failed, m) })
			d.redo = append(d.redo, failed...)
		default:
			d.parked--
		}
		cr.enqueue(t)
	})
}

// withhold takes the records of a key out of a strand: a key-ordered group gives them again after the one
// that failed.
func (cr *crew) withhold(t *tenure, key []byte) {
	for _, w := range cr.s.hands {
		w.mu.Lock()
		if w.t == t {
			for _, m := range w.rest {
				t.sendBack(m, key)
			}
		}
		w.mu.Unlock()
	}
	cr.mu.Lock()
	defer cr.mu.Unlock()
	for _, p := range t.deck.queue { // of callers of Next
		for i := p.taken; i < len(p.messages); i++ {
			t.sendBack(&p.messages[i], key)
		}
	}
	if t.deck.strands == nil || t.retired.Load() {
		return
	}
	t.strandOfKey(key).cut(func(m *Message) bool { return t.sendBack(m, key) })
}

// sendBack gives m back if it has the key, and says whether it has.
func (t *tenure) sendBack(m *Message, key []byte) bool {
	if string(m.Key) != string(key) {
		return false
	}
	if atomic.LoadUint32(&m.state) == stateWaiting {
		t.mu.Lock()
		t.holdUp(m)
		t.mu.Unlock()
		t.discardOne(m)
	}
	return true
}

// finish begins the end of a tenure that is still ours. Of an exclusive group a position is committed, and strands and runs
// leave gaps below what was handled. They are filled, or all beyond the first would be handled again by the next
// member, out of order for those who have seen it. What lies higher isn't begun.
func (cr *crew) finish(t *tenure) {
	s := t.s
	if s.shared() || !s.worked() || s.cfg.order == PerPartition || s.cfg.manualCommit || s.stopped.Load() {
		cr.retire(t)
		return
	}
	cr.mu.Lock()
	defer cr.mu.Unlock()
	d := &t.deck
	t.finishing.Store(true)
	below := d.highest + 1
	for _, m := range d.limbo { // they wait for long, maybe
		below = min(below, m.Offset)
	}
	for i := range d.strands {
		if st := &d.strands[i]; st.parked > 0 && st.first != nil {
			below = min(below, st.first.Offset)
		}
	}
	cr.keepBelow(t, below)
}

// keepBelow gives back what was not begun at that offset and beyond, and what waits to be tried again. cr.mu is held.
func (cr *crew) keepBelow(t *tenure, offset int64) {
	d := &t.deck
	t.below.Store(min(t.below.Load(), offset))
	high := func(m *Message) bool {
		if m.Offset >= offset {
			t.discardOne(m)
			return true
		}
		return false
	}
	t.discardAll(d.limbo)
	d.limbo = nil
	d.redo = slices.DeleteFunc(d.redo, high)
	for _, p := range d.queue { // they stay in it: who takes them finds that they are not to begin
		for i := p.taken; i < len(p.messages); i++ {
			high(&p.messages[i])
		}
	}
	for i := range d.strands {
		d.strands[i].cut(high)
	}
}

// cut takes messages out. A strand that became empty stays listed: who takes it finds nothing. crew.mu is held.
func (st *strand) cut(out func(*Message) bool) {
	var first, last *Message
	for m := st.first; m != nil; {
		after := m.after
		m.after = nil
		if !out(m) {
			if last == nil {
				first = m
			} else {
				last.after = m
			}
			last = m
		}
		m = after
	}
	st.first, st.last = first, last
}

// over: no records come any more, and nothing is tried again.
func (t *tenure) over() bool { return t.retired.Load() || t.finishing.Load() }

// retire takes a tenure out: nothing of it begins any more, and what hasn't is given back.
func (cr *crew) retire(t *tenure) {
	if t.retired.Swap(true) {
		return
	}
	for _, w := range cr.s.hands {
		w.mu.Lock()
		if w.t == t {
			t.discardAll(w.rest)
			w.rest = nil
		}
		w.mu.Unlock()
	}
	cr.mu.Lock()
	defer cr.mu.Unlock()
	d := &t.deck
	t.discardAll(d.redo)
	t.discardAll(d.limbo)
	for _, p := range d.queue {
		t.discard(p.messages[p.taken:])
	}
	for i := range d.strands {
		for m := d.strands[i].first; m != nil; m = m.after {
			t.discardAll([]*Message{m})
		}
		d.strands[i].first, d.strands[i].last = nil, nil
	}
	d.redo, d.limbo, d.queue, d.open, d.last = nil, nil, nil, nil, nil
}

// discard gives back messages that were not begun.
func (t *tenure) discard(ms []Message) {
	for i := range ms {
		t.discardOne(&ms[i])
	}
}

func (t *tenure) discardAll(ms []*Message) {
	for _, m := range ms {
		t.discardOne(m)
	}
}

func (t *tenure) discardOne(m *Message) {
	to := stateReturned
	if !t.s.shared() {
		to = stateVoid
	}
	if atomic.CompareAndSwapUint32(&m.state, stateWaiting, to) {
		m.in.settled(true)
	}
}

// idle: nothing of t is in anybody's hands.
func (cr *crew) idle(t *tenure) bool {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	return t.deck.working == 0 && (t.unsettled.Load() == 0 || t.lost.Load())
}

// wait waits until there may be something to take.
func (cr *crew) wait(ctx context.Context, stop <-chan struct{}) error {
	select {
	case <-cr.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-stop:
		return ErrClosed
	}
}
