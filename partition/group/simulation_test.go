package group

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// simSeeds: go test ./partition/group -run Simulation -sim.seeds 20000 -sim.first 1000
var (
	simSeeds = flag.Int("sim.seeds", 0, "how many seeds the simulation runs; 0: a few")
	simFirst = flag.Uint64("sim.first", 1, "the first seed")
)

// world is one shared group on one partition: leaders that come and go, a log, members that pull, answer, stall and
// repeat themselves, and for each record a plain account of what happened to it.
type world struct {
	rng    *rand.Rand
	mode   Mode
	o      Options
	mutant string
	now    int64
	fault  string // what was found

	state, replica *State
	index          uint64
	next, start    int64
	keyOf          []uint64

	d        *Dispatcher
	leader   int // how many there have been
	inflight *simEntry
	waiting  []*simAnswer // for the entry that gathers

	records []*simRecord
	members []*simMember
	calm    bool
	letters int
	minus   int64 // the clock of this leader is behind the log's by this
}

type simEntry struct {
	body    []byte
	d       *Dispatcher
	answers []*simAnswer
}

// simAnswer is an ack, or an end, that was taken and is answered when its entry is committed.
type simAnswer struct {
	m     *simMember
	item  AckItem
	parts []*simDelivery
}

type simRecord struct {
	off        int64
	deliveries []*simDelivery
	ackedBy    *simDelivery // answered
	endedBy    *simDelivery // likewise: never again
	dead       bool         // buried, committed
	cameBack   int          // event number when it last came back to this leader
	buried     int
}

// simDelivery is one record with one member.
type simDelivery struct {
	rec      *simRecord
	m        *simMember
	token    uint64
	n        int32
	leader   int
	event    int // number, of all deliveries and returns
	deadline int64
	answered bool
	void     bool
	returned bool
}

type simMember struct {
	id     string
	hand   []*simDelivery
	paused int64 // until
	sent   []AckItem
}

func newWorld(seed uint64, mode Mode, mutant string) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 99)), mode: mode, mutant: mutant, now: 1000, state: NewState(), replica: NewState()}
	w.o = Options{
		Mode: mode, AckWaitMS: 50 + w.rng.Int64N(100), MaxDeliveries: int32(w.rng.IntN(5)),
		MaxInFlight: 5 + int32(w.rng.IntN(60)), MaxInFlightMember: 5 + int32(w.rng.IntN(30)),
	}.WithDefaults(mode)
	if w.rng.IntN(2) == 0 {
		w.o.BackoffMS = []int64{0, 20, 100}
	}
	for i := range 1 + w.rng.IntN(5) {
		w.members = append(w.members, &simMember{id: fmt.Sprint("m", i)})
	}
	var e Entry
	e.Reset(nil)
	e.Make("g", &w.o, 0)
	w.apply(e.Bytes())
	return w
}

func (w *world) find(format string, args ...any) {
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
	}
}

// apply commits an entry, on the leader's state and on a replica's, which is now and then read back from its checkpoint.
func (w *world) apply(body []byte) []byte {
	w.index += 1 + w.rng.Uint64N(3)
	c := Context{Index: w.index, LogTime: w.logNow(), Start: w.start, Next: w.next}
	r1, err := w.state.Apply(c, body)
	if err != nil {
		w.find("apply: %v", err)
	}
	if w.rng.IntN(4) == 0 {
		s, err := DecodeState(w.replica.Encode(nil))
		if err != nil {
			w.find("read the checkpoint: %v", err)
			return nil
		}
		w.replica = s
	}
	r2, err := w.replica.Apply(c, body)
	if err != nil || !bytes.Equal(r1, r2) {
		w.find("replicas answer %x and %x, %v", r1, r2, err)
	}
	if a, b := w.state.Encode(nil), w.replica.Encode(nil); !bytes.Equal(a, b) {
		w.find("replicas differ after entry %d", w.index)
	}
	return r1
}

func (w *world) logNow() int64 { return w.now + 5000 - w.minus }

func (w *world) append() {
	for range 1 + w.rng.IntN(20) {
		key := uint64(1 + w.rng.IntN(6))
		if w.rng.IntN(10) == 0 {
			key = 0
		}
		w.records = append(w.records, &simRecord{off: w.next})
		w.keyOf = append(w.keyOf, key)
		w.next++
	}
}

// elect ends a leader's term: what it had in flight may be committed or not.
func (w *world) elect() {
	if e := w.inflight; e != nil {
		w.inflight = nil
		if w.rng.IntN(2) == 0 {
			w.apply(e.body)
		}
	}
	w.waiting = nil // nobody hears
	w.leader++
	w.minus = w.rng.Int64N(3)
	var e Entry
	e.Reset(nil)
	e.Open("g")
	w.apply(e.Bytes())
	w.d, _ = NewDispatcher(w.state, "g", w.next, w.now, w.logNow())
	for _, r := range w.records {
		r.cameBack = 0
	}
}

var events int // not shared: simulations of one test run one after another; see run

func (w *world) feed() {
	for w.mode == KeyOrdered && w.d.Hungry() {
		c := w.d.Cursor()
		hashes := slices.Clone(w.keyOf[c:min(w.next, c+7)])
		if w.mutant == "key lock dropped" {
			clear(hashes)
		}
		w.d.Feed(hashes)
	}
}

func (w *world) pull(m *simMember) {
	w.d.Advance(w.next)
	w.feed()
	most := 1 + w.rng.IntN(30)
	ds := w.d.Take(nil, m.id, most, w.now)
	if n := len(ds); n > 0 && w.rng.IntN(4) == 0 { // does not fit
		v := ds[n-1]
		v.First += w.rng.Int64N(v.Last - v.First + 1)
		w.d.GiveBack(m.id, v)
		ds[n-1].Last = v.First - 1
	}
	at := int64(-1)
	for _, v := range ds {
		for off := v.First; off <= v.Last; off++ {
			if off <= at {
				w.find("offset %d after %d in one pull", off, at)
			}
			at = off
			w.delivered(m, off, v)
		}
	}
	out := 0
	for _, x := range w.members {
		mine := 0
		for _, h := range x.hand {
			if w.live(h) {
				mine++
			}
		}
		if out += mine; mine > int(w.o.MaxInFlightMember) {
			w.find("%s has %d records, at most %d are allowed", x.id, mine, w.o.MaxInFlightMember)
		}
	}
	if out > int(w.o.MaxInFlight) {
		w.find("%d records are out, at most %d are allowed", out, w.o.MaxInFlight)
	}
}

func (w *world) delivered(m *simMember, off int64, v Delivery) {
	if off < 0 || off >= w.next {
		w.find("offset %d was delivered, the log ends at %d", off, w.next)
		return
	}
	r := w.records[off]
	events++
	x := &simDelivery{rec: r, m: m, token: v.Token, n: v.Deliveries, leader: w.leader, event: events, deadline: w.now + w.o.AckWaitMS}
	if r.ackedBy != nil || r.dead {
		w.find("offset %d was delivered to %s after its ack was answered", off, m.id)
	}
	if y := r.endedBy; y != nil {
		w.find("offset %d was delivered to %s after %s was told that it is ended, under token %d", off, m.id, y.m.id, y.token)
	}
	for _, y := range r.deliveries {
		if y.token > x.token || y.token == x.token && !y.returned {
			w.find("offset %d was delivered with token %d after token %d", off, x.token, y.token)
		}
		if w.live(y) {
			w.find("offset %d was delivered to %s while %s has it", off, m.id, y.m.id)
		}
	}
	if n := int32(len(r.deliveries)) + 1; v.Deliveries > n {
		w.find("offset %d: delivery %d is the %d.", off, v.Deliveries, n)
	}
	if w.o.MaxDeliveries > 0 && v.Deliveries > w.o.MaxDeliveries {
		w.find("offset %d was delivered the %d. time, at most %d are allowed", off, v.Deliveries, w.o.MaxDeliveries)
	}
	if key := w.keyOf[off]; w.mode == KeyOrdered && key != 0 {
		for other, k := range w.keyOf {
			if k != key || int64(other) == off {
				continue
			}
			for _, y := range w.records[other].deliveries {
				if y.token > x.token {
					w.find("key %d: offset %d with token %d after offset %d with token %d", key, off, x.token, other, y.token)
				}
				if y.m != m && w.live(y) {
					w.find("key %d: offset %d was delivered to %s while %s has offset %d", key, off, m.id, y.m.id, other)
				}
			}
			if int64(other) < off && !w.over(w.records[other]) && !w.handedTo(w.records[other], m) {
				w.find("key %d: offset %d was delivered while offset %d before it waits", key, off, other)
			}
		}
	}
	r.deliveries = append(r.deliveries, x)
	m.hand = append(m.hand, x)
}

// live: the member may be at work on it, and nothing tells that it should not.
func (w *world) live(x *simDelivery) bool {
	return x.leader == w.leader && !x.answered && x.deadline > w.now && x.rec.off >= w.start
}

func (w *world) handedTo(r *simRecord, m *simMember) bool {
	return slices.ContainsFunc(r.deliveries, func(x *simDelivery) bool {
		return x.m == m && x.leader == w.leader && !x.answered && !x.void && x.deadline > w.now
	})
}

// over: handled as far as anybody was told, or about to be.
func (w *world) over(r *simRecord) bool {
	if r.ackedBy != nil || r.dead || w.state.groups["g"].isDone(r.off, r.off) {
		return true
	}
	v, ok := w.d.slots.get(r.off)
	return !ok || v.state == settling && v.done || v.state == dead
}

// answer makes a member say something about what it has, old and new.
func (w *world) answer(m *simMember) {
	if len(m.hand) == 0 {
		return
	}
	var items []AckItem
	if w.calm {
		for _, x := range slices.Clone(m.hand) {
			w.say(m, AckItem{Kind: Ack, First: x.rec.off, Last: x.rec.off, Token: x.token})
		}
		return
	}
	if len(m.sent) > 0 && w.rng.IntN(8) == 0 {
		items = append(items, m.sent[w.rng.IntN(len(m.sent))]) // again
	}
	for range 1 + w.rng.IntN(4) {
		i := w.rng.IntN(len(m.hand))
		if w.rng.IntN(2) == 0 {
			i = 0
		}
		x := m.hand[i]
		it := AckItem{Kind: Ack, First: x.rec.off, Last: x.rec.off, Token: x.token, DelayMS: -1}
		for j := i + 1; j < len(m.hand) && m.hand[j].token == x.token && m.hand[j].rec.off == it.Last+1 && w.rng.IntN(5) > 0; j++ {
			it.Last++
		}
		if !w.calm {
			switch w.rng.IntN(8) {
			case 0:
				it.Kind = Nak
				if w.rng.IntN(2) == 0 {
					it.DelayMS = w.rng.Int64N(60)
				}
			case 1:
				if it.Kind = Progress; w.rng.IntN(3) == 0 {
					it.Kind = Return
				}
			case 2:
				if w.rng.IntN(4) == 0 {
					it.Kind, it.Reason = Term, "bad"
				}
			}
		}
		items = append(items, it)
	}
	for _, it := range items {
		w.say(m, it)
	}
}

func (w *world) say(m *simMember, it AckItem) {
	// What a member has given back as not begun it doesn't ack: there is nothing in the log to refuse it by.
	for off := it.First; off <= it.Last; off++ {
		for _, y := range w.records[off].deliveries {
			if y.m == m && y.token == it.Token && y.returned {
				return
			}
		}
	}
	m.sent = append(m.sent, it)
	w.d.Advance(w.next)
	sent := it
	if v, ok := w.d.slots.get(it.First); ok && w.mutant == "end of what comes back" && it.Kind == Term &&
		v.state == settling && !v.done && v.token == it.Token && w.d.has(m.id, v.member) {
		it.Last = it.First
		w.taken(m, it, true) // as it was once: the record's time ran out, and the entry that says so is under way
		return
	}
	if w.mutant == "old token accepted" {
		if v, ok := w.d.slots.get(it.First); ok && v.state == out {
			sent.Token = v.token
			m2 := w.d.members.list[v.member].id
			for _, x := range w.members {
				if x.id == m2 {
					sent.First, sent.Last = it.First, it.First
					it = sent
					refused := w.d.Ack(nil, m2, []AckItem{sent}, w.now)
					w.taken(m, it, len(refused) == 0)
					return
				}
			}
		}
	}
	for upTo := w.d.Late([]AckItem{it}); w.d.Cursor() < upTo; {
		c := w.d.Cursor()
		w.d.Feed(slices.Clone(w.keyOf[c:min(w.next, c+7)]))
		if w.d.Cursor() == c {
			break
		}
	}
	refused := w.d.Ack(nil, m.id, []AckItem{sent}, w.now)
	w.taken(m, it, len(refused) == 0)
}

// taken keeps the account of an item.
func (w *world) taken(m *simMember, it AckItem, ok bool) {
	a := &simAnswer{m: m, item: it}
	for off := it.First; off <= it.Last; off++ {
		var x *simDelivery
		for _, y := range w.records[off].deliveries {
			if y.m == m && (y.token == it.Token || w.mutant == "old token accepted") {
				x = y
			}
		}
		if x == nil {
			if ok {
				w.find("%s acked offset %d under token %d, which it never had", m.id, off, it.Token)
			}
			return
		}
		again := x.answered                                      // then it is the first answer that counts
		if it.Kind != Progress && (ok || x.void || !w.live(x)) { // else it is the member's still
			x.answered = true
		}
		if !ok {
			continue
		}
		a.parts = append(a.parts, x)
		w.accepted(m, it, x, again)
	}
	if !ok {
		m.hand = slices.DeleteFunc(m.hand, func(x *simDelivery) bool { return x.answered && w.rng.IntN(2) == 0 })
		return
	}
	if it.Kind == Ack || it.Kind == Term {
		w.waiting = append(w.waiting, a)
		if w.mutant == "ack lost on failover" && it.Kind == Ack {
			w.tell(a)
		}
	}
	m.hand = slices.DeleteFunc(m.hand, func(x *simDelivery) bool { return x.answered && w.rng.IntN(10) > 0 })
}

// accepted checks that an item might be taken.
func (w *world) accepted(m *simMember, it AckItem, x *simDelivery, again bool) {
	r := x.rec
	for _, y := range r.deliveries {
		if y.token > x.token && it.Kind != Progress && it.Kind != Return {
			w.find("%s of offset %d by %s under token %d was taken, it was handed out again under %d", kinds[it.Kind], r.off, m.id, x.token, y.token)
		}
	}
	if r.ackedBy != nil && r.ackedBy != x {
		w.find("offset %d was acked by %s under token %d, and again by %s under token %d", r.off, r.ackedBy.m.id, r.ackedBy.token, m.id, x.token)
	}
	switch it.Kind {
	case Return:
		x.returned = true
	case Progress:
		x.deadline = w.now + w.o.AckWaitMS
	case Nak:
		if !again {
			w.returns(x)
		}
	case Ack:
		key := w.keyOf[r.off]
		if w.mode != KeyOrdered || key == 0 || again {
			return
		}
		for off := range r.off {
			b := w.records[off]
			if w.keyOf[off] == key && b.cameBack > x.event && !w.over(b) && x.leader == w.leader {
				w.find("key %d: ack of offset %d was taken, offset %d before it came back meanwhile", key, r.off, off)
			}
		}
	}
}

// returns notes that a record comes back, unless it is dead now.
func (w *world) returns(x *simDelivery) {
	if w.o.MaxDeliveries > 0 && x.n >= w.o.MaxDeliveries {
		return
	}
	events++
	x.rec.cameBack = events
	w.markVoid(x.rec)
}

// markVoid: deliveries of later records of the key are in vain.
func (w *world) markVoid(r *simRecord) {
	if key := w.keyOf[r.off]; w.mode == KeyOrdered && key != 0 {
		for off := r.off + 1; off < w.next; off++ {
			if w.keyOf[off] == key {
				for _, y := range w.records[off].deliveries {
					y.void = true
				}
			}
		}
	}
}

var kinds = map[AckKind]string{Ack: "ack", Nak: "nak", Progress: "progress", Term: "term", Return: "return"}

// tell answers an ack, or an end.
func (w *world) tell(a *simAnswer) {
	for _, x := range a.parts {
		if r := x.rec; a.item.Kind == Term {
			if r.ackedBy != nil {
				w.find("offset %d: its ack was answered, and its end by %s under token %d", r.off, x.m.id, x.token)
			}
			r.endedBy = x
		} else if r.endedBy != nil {
			w.find("offset %d: its end was answered, and its ack by %s under token %d", r.off, x.m.id, x.token)
		} else if r.ackedBy != nil && r.ackedBy != x {
			w.find("offset %d: ack of %s under token %d was answered, and that of %s under %d", r.off, r.ackedBy.m.id, r.ackedBy.token, x.m.id, x.token)
		} else {
			r.ackedBy = x
		}
	}
}

// commit proposes what has gathered, or commits what is in flight.
func (w *world) commit() {
	if e := w.inflight; e != nil {
		w.inflight = nil
		results := w.apply(e.body)
		code, value, ok := Result(results, len(results)/ResultSize-1)
		if e.d != w.d || !ok {
			return
		}
		if code == OK {
			w.d.Applied(value, w.now)
			for _, a := range e.answers {
				w.tell(a)
			}
		}
		return
	}
	if !w.d.Changed() {
		return
	}
	var e Entry
	e.Reset(nil)
	w.d.Change(&e, "g", w.now, w.logNow())
	w.inflight = &simEntry{body: e.Bytes(), d: w.d, answers: w.waiting}
	w.waiting = nil
}

func (w *world) buryDead() {
	dead := w.d.Dead(nil, 5)
	if w.rng.IntN(2) == 0 {
		dead = w.d.Aside(dead[:0], 0, 5)
	}
	for _, x := range dead {
		for off := x.First; off <= x.Last; off++ {
			r := w.records[off]
			if r.ackedBy != nil {
				w.find("offset %d is dead, and was acked", off)
			}
			r.buried++
			w.letters++
		}
		if w.rng.IntN(3) > 0 || w.calm {
			w.d.Buried(x.First, x.Last)
		} else {
			w.d.SetAside(x.First, x.Last)
		}
	}
}

func (w *world) step() {
	m := w.members[w.rng.IntN(len(w.members))]
	switch p := w.rng.IntN(100); {
	case p < 8:
		if !w.calm {
			w.append()
		}
	case p < 40:
		if m.paused <= w.now {
			w.pull(m)
		}
	case p < 70:
		if m.paused <= w.now {
			w.answer(m)
		}
	case p < 85:
		w.commit()
	case p < 93:
		before := w.outs()
		w.now += w.rng.Int64N(40)
		w.d.Tick(w.now)
		w.noteExpired(before)
	case p < 95:
		w.buryDead()
	case p < 97:
		if !w.calm {
			m.paused = w.now + w.rng.Int64N(600)
		}
	case p < 99:
		if !w.calm && w.rng.IntN(3) == 0 {
			w.elect()
		}
	default:
		if !w.calm && w.rng.IntN(3) == 0 {
			w.trim()
		}
	}
}

func (w *world) outs() (list []*simDelivery) {
	for _, r := range w.records {
		if n := len(r.deliveries); n > 0 && w.live(r.deliveries[n-1]) {
			list = append(list, r.deliveries[n-1])
		}
	}
	return list
}

func (w *world) noteExpired(before []*simDelivery) {
	for _, x := range before {
		if x.deadline <= w.now && !x.void {
			w.returns(x)
		}
	}
}

func (w *world) trim() {
	to := w.start + w.rng.Int64N(8)
	if to = min(to, w.next); to <= w.start {
		return
	}
	w.start = to
	w.state.Trim(to)
	w.replica.Trim(to)
	w.d.Trim(to)
	for off := range to {
		w.records[off].dead = true
	}
}

// run plays a world and says what was wrong with it.
func run(seed uint64, mode Mode, mutant string, steps int) string {
	w := newWorld(seed, mode, mutant)
	w.elect()
	for i := 0; i < steps && w.fault == ""; i++ {
		w.step()
	}
	// Then nothing goes wrong any more, and everything must come to its end.
	w.calm = true
	for i := 0; w.fault == ""; i++ {
		w.step()
		if g := w.state.groups["g"]; g.floor == w.next {
			break
		}
		if i == 100_000 {
			w.find("not all is handled in the end: cursor %d of %d, slots %v", w.state.groups["g"].floor, w.next, w.d.dump())
		}
	}
	if w.fault != "" {
		return w.fault
	}
	for _, r := range w.records {
		if r.ackedBy == nil && !r.dead && r.buried == 0 && len(r.deliveries) == 0 {
			return fmt.Sprintf("offset %d is handled and was never delivered", r.off)
		}
	}
	pending, again, deadLetters, _ := w.d.Figures()
	if w.d.Tick(w.now + 1<<40); pending != 0 || again != 0 || deadLetters != 0 || w.d.slots.count != 0 {
		return fmt.Sprintf("in the end %d pending, %d redelivering, %d dead, %d slots", pending, again, deadLetters, w.d.slots.count)
	}
	if k := w.d.keyed; k != nil && (k.byHash.count != 0 || k.live != 0 || k.byOff.count != 0 || k.offered != 0 || k.open.count != 0) {
		return fmt.Sprintf("in the end %d keys, %d records with keys, %d offers", k.byHash.count, k.live, k.offered)
	}
	return ""
}

func (d *Dispatcher) dump() (s []string) {
	d.slots.all(func(r runOf[slot]) bool {
		s = append(s, fmt.Sprintf("%d..%d state %d n %d at %d member %d", r.first, r.last, r.v.state, r.v.deliveries, r.v.at, r.v.member))
		return len(s) < 20
	})
	return s
}

func TestSimulation(t *testing.T) {
	seeds := *simSeeds
	if seeds == 0 {
		seeds = 60
	}
	for _, mode := range []Mode{Shared, KeyOrdered} {
		t.Run(mode.String(), func(t *testing.T) {
			for i := range seeds {
				seed := *simFirst + uint64(i)
				if fault := run(seed, mode, "", 1500); fault != "" {
					t.Fatalf("seed %d: %s", seed, fault)
				}
			}
		})
	}
}

// What the simulation must notice.
func TestSimulationCatchesMutants(t *testing.T) {
	for mutant, mode := range map[string]Mode{
		"old token accepted": Shared, "ack lost on failover": Shared, "key lock dropped": KeyOrdered,
		"end of what comes back": Shared,
	} {
		t.Run(mutant, func(t *testing.T) {
			for seed := range uint64(200) {
				if fault := run(seed, mode, mutant, 1500); fault != "" {
					t.Logf("seed %d: %s", seed, fault)
					return
				}
			}
			t.Fatal("not caught")
		})
	}
}
