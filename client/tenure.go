package client

import (
	"context"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/parleymq/parley/client/wire"
)

// tenure is a member's time with one partition: under one lease, or, in a shared group, while its assignment has
// the partition. Its claim's goroutine gets records, the crew hands them out, its keeper tells the partition's leader what
// became of them.
type tenure struct {
	s     *Subscription
	c     *claim
	lease Lease
	born  uint64 // generation of the lease

	ctx context.Context // ends when the partition is lost or is to be given back
	end context.CancelFunc

	wake  chan struct{} // for the keeper; capacity 1
	room  chan struct{} // for who gets records; capacity 1
	quiet chan struct{} // for who waits until nothing is in hand; capacity 1

	finishing atomic.Bool // nothing begins any more but what fills gaps, see crew.finish
	retired   atomic.Bool // nothing begins any more
	lost      atomic.Bool // it is somebody else's
	touched   atomic.Bool // something was settled that the keeper hasn't looked at
	news      atomic.Bool // exclusive: the leader doesn't know of stuck as it is

	below     atomic.Int64  // what lies here and beyond isn't begun
	unsettled atomic.Int64  // records that came and are not settled
	waiting   atomic.Int64  // of them, not begun
	bytes     atomic.Int64  // of parcels that are not settled whole
	low       atomic.Int64  // shared: where waiting falls to this, there is room for a pull
	window    atomic.Int64  // shared: records to hold, see pace
	pulls     atomic.Uint64 // shared: that were sent
	fresh     atomic.Int64  // exclusive: records settled since the last commit, by parcels
	renewedAt atomic.Int64  // exclusive: when the newest request that kept the lease was sent, on the subscription's clock

	deck deck // guarded by crew.mu

	work context.Context // for dead letters; ends when the partition is lost or was given back
	stop context.CancelFunc
	dead sync.WaitGroup // the goroutine that writes dead letters

	mu       sync.Mutex
	inHand   []*parcel           // guarded by mu; oldest first, until reported whole
	details  map[*Message]detail // guarded by mu; of naks and terms
	withheld map[string]*holdup  // guarded by mu; key-ordered: keys of which a record failed
	told     map[int64]string    // guarded by mu; the key of each record that is counted in a holdup
	graves   []*Message          // guarded by mu; exclusive: to become dead letters
	burying  bool                // guarded by mu; t.dead has its goroutine
	stuck    *stuckLetter        // guarded by mu; what t.dead can't write
	flushes  []chan error        // guarded by mu; Commits that wait
	kept     bool                // guarded by mu; the keeper has gone
}

type detail struct {
	delay  time.Duration // of a nak; negative: the group's back-off
	reason string
}

// maxWhy bounds the reason that goes with a nak or a term. A leader refuses acks with longer ones.
const maxWhy = wire.MaxMemberText

// brief cuts a text so that it is no longer in JSON either, where a byte that is no UTF-8 becomes three.
func brief(s string, most int) string {
	s = strings.ToValidUTF8(s[:min(len(s), most+utf8.UTFMax)], "?")
	if len(s) <= most {
		return s
	}
	for !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// holdup: a record of a key was nak'd. What the member holds of the key, or gets by a pull that was under way
// before the leader knew of the nak, comes too early: it goes back, once. What comes again was handed out
// after the leader knew.
type holdup struct {
	first int64              // lowest offset that was nak'd
	back  map[int64]struct{} // offsets that went back, or were nak'd
	open  int                // of them, those that the leader may not know of
	until uint64             // once open is 0: what comes with pulls up to this one may be too early
	limit time.Time          // then it is forgotten: an answer got lost, and another has the key
}

func newTenure(c *claim, l Lease, generation uint64) *tenure {
	t := &tenure{
		s: c.s, c: c, lease: l, born: generation,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), quiet: make(chan struct{}, 1),
		details: make(map[*Message]detail),
	}
	t.window.Store(int64(min(windowFirst, c.s.cfg.prefetchRecords)))
	t.low.Store(t.window.Load() / 2)
	t.below.Store(math.MaxInt64)
	t.ctx, t.end = context.WithCancel(c.ctx)
	t.work, t.stop = context.WithCancel(c.s.life)
	return t
}

func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// touch tells the keeper that something was settled.
func (t *tenure) touch() {
	if !t.touched.Load() && !t.touched.Swap(true) {
		nudge(t.wake)
	}
	t.settledSome()
}

// settledSome tells who waits for the end.
func (t *tenure) settledSome() {
	if t.over() {
		nudge(t.quiet)
	}
}

// begun counts one record that doesn't wait any more.
func (t *tenure) begun() {
	if t.waiting.Add(-1) == t.low.Load() {
		nudge(t.room)
	}
}

// parcelDone: all of a parcel is settled.
func (t *tenure) parcelDone(p *parcel) {
	t.bytes.Add(-int64(p.bytes))
	if t.s.shared() {
		t.pace(p)
	} else if t.fresh.Add(int64(len(p.messages))) >= commitRecords {
		nudge(t.wake)
	}
	nudge(t.room)
}

// Pace: how much a member of a shared group holds. Records that are handled within paceFast of their coming let
// it hold twice as many, slower ones than paceSlow half: a member hoards about what it handles in a second.
const (
	windowFirst = 64
	paceFast    = 500 * time.Millisecond
	paceSlow    = 2 * time.Second
)

func (t *tenure) pace(p *parcel) {
	w := t.window.Load()
	switch took := time.Since(p.came); {
	case took < paceFast && int64(len(p.messages)) >= w/4:
		w = min(2*w, int64(t.s.cfg.prefetchRecords))
	case took > paceSlow:
		w = max(w/2, 1)
	}
	t.window.Store(w)
	t.low.Store(w / 2)
}

// took enters a parcel in the books; then it goes to the crew.
func (t *tenure) took(p *parcel) {
	n := int64(len(p.messages))
	t.mu.Lock()
	t.inHand = append(t.inHand, p)
	t.mu.Unlock()
	t.unsettled.Add(n)
	t.waiting.Add(n)
	t.bytes.Add(int64(p.bytes))
	t.s.count.delivered.Add(uint64(n))
	if h := t.s.cfg.hooks.Delivered; h != nil {
		h(t.c.partition, int(n))
	}
}

// lose ends the tenure when another may have the partition: nothing more is begun, handlers are told.
func (t *tenure) lose(err error) {
	if t.lost.Swap(true) {
		return
	}
	t.s.c.cfg.log("partition lost", "topic", t.s.topic, "partition", t.c.partition, "group", t.s.group, "error", err)
	t.s.refused(t.c.partition, err)
	t.end()
	t.stop()
	t.s.crew.retire(t)
	t.s.interrupt(t, func(*Message) bool { return true }, ErrLost)
	nudge(t.wake)
	nudge(t.quiet) // the end waits for nothing any more that only the lease could settle
}

func (t *tenure) detail(m *Message) detail {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.details[m]
	delete(t.details, m)
	return d
}

func (t *tenure) nak(m *Message, delay time.Duration, why string) error {
	if t.lost.Load() {
		return ErrLost
	}
	t.mu.Lock()
	t.details[m] = detail{delay: delay, reason: brief(why, maxWhy)}
	t.mu.Unlock()
	if t.s.shared() {
		if err := m.settle(stateNak); err != nil {
			t.detail(m)
			return err
		}
		t.withhold(m)
		return nil
	}
	// The record stays unsettled: this member tries it again.
	for _, from := range []uint32{stateBegun, stateLapsed} {
		if atomic.CompareAndSwapUint32(&m.state, from, stateNak) {
			if !t.s.worked() { // else its worker looks after it
				if wait, again := t.retry(m, t.detail(m).delay, errNak); again {
					t.s.crew.again(t, nil, []*Message{m}, nil, wait)
				}
			}
			return nil
		}
	}
	t.detail(m)
	return ErrSettled
}

func (t *tenure) term(m *Message, reason string) error {
	if t.lost.Load() {
		return ErrLost
	}
	if t.s.shared() {
		t.mu.Lock()
		t.details[m] = detail{reason: brief(reason, maxWhy)}
		t.mu.Unlock()
		if err := m.settle(stateTerm); err != nil {
			t.detail(m)
			return err
		}
	} else {
		// It is settled when the dead letter is written.
		if !atomic.CompareAndSwapUint32(&m.state, stateBegun, stateTerm) && !atomic.CompareAndSwapUint32(&m.state, stateLapsed, stateTerm) {
			return ErrSettled
		}
		t.mu.Lock()
		t.details[m] = detail{reason: reason}
		t.graves = append(t.graves, m)
		if !t.burying {
			t.burying = true
			t.dead.Go(t.bury)
		}
		t.mu.Unlock()
	}
	t.s.count.dead.Add(1)
	if h := t.s.cfg.hooks.Dead; h != nil {
		h(m, reason)
	}
	return nil
}

// withhold begins a holdup, or goes on with it.
func (t *tenure) withhold(m *Message) {
	if t.s.cfg.group.Mode != wire.ModeKeyOrdered || m.Key == nil {
		return
	}
	t.mu.Lock()
	t.holdUp(m)
	t.mu.Unlock()
	t.s.crew.withhold(t, m.Key)
}

// holdUp counts a record that was nak'd or is going back. t.mu is held.
func (t *tenure) holdUp(m *Message) {
	if t.withheld == nil {
		t.withheld, t.told = make(map[string]*holdup), make(map[int64]string)
	}
	h := t.withheld[string(m.Key)]
	if h == nil {
		h = &holdup{first: m.Offset, back: make(map[int64]struct{})}
		t.withheld[string(m.Key)] = h
	}
	h.first, h.limit = min(h.first, m.Offset), time.Now().Add(2*t.s.ackWait())
	h.back[m.Offset] = struct{}{}
	if _, twice := t.told[m.Offset]; !twice {
		t.told[m.Offset] = string(m.Key)
		h.open++
	}
}

// release ends a holdup. t.mu is held.
func (t *tenure) release(key string, h *holdup) {
	delete(t.withheld, key)
	for o := range h.back {
		delete(t.told, o)
	}
}

// early finds the messages of keys that are held up, which must not be begun.
func (t *tenure) early(p *parcel) (early []*Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.withheld) == 0 {
		return nil
	}
	for i := range p.messages {
		m := &p.messages[i]
		if m.Key == nil {
			continue
		}
		h := t.withheld[string(m.Key)]
		if h == nil {
			continue
		}
		_, again := h.back[m.Offset]
		switch {
		case again, m.Offset <= h.first, h.open == 0 && p.pull > h.until, p.came.After(h.limit):
			t.release(string(m.Key), h) // its turn has come
		default:
			early = append(early, m)
			t.holdUp(m)
		}
	}
	return early
}

// acknowledged: the leader knows of these, so pulls that begin now bring nothing too early.
func (t *tenure) acknowledged(items []wire.GroupAckItem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.told) == 0 {
		return
	}
	for _, it := range items {
		if it.Kind != wire.AckNak && it.Kind != wire.AckReturn {
			continue
		}
		for o := it.First; o <= it.Last; o++ {
			key, ok := t.told[o]
			if !ok {
				continue
			}
			delete(t.told, o)
			if h := t.withheld[key]; h != nil {
				if h.open--; h.open <= 0 {
					h.open, h.until = 0, t.pulls.Load()
				}
			}
		}
	}
	now := time.Now()
	for key, h := range t.withheld {
		if now.After(h.limit) {
			t.release(key, h)
		}
	}
}

// expired: a delivery's time is over, unless the leader thinks otherwise.
func (p *parcel) expired(now time.Time) bool {
	return now.Sub(p.t.s.start) > time.Duration(p.valid.Load())
}
