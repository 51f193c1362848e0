package partition

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
)

func TestProducerTableDecides(t *testing.T) {
	t.Parallel()
	pr := func(epoch int16, seq int32) record.Producer {
		return record.Producer{ID: 7, Epoch: epoch, Sequence: seq}
	}
	type step struct {
		p     record.Producer
		count int
		code  itemCode
		off   int64
	}
	for name, steps := range map[string][]step{
		"in order":               {{pr(0, 0), 10, itemOK, 0}, {pr(0, 10), 5, itemOK, 0}, {pr(0, 15), 1, itemOK, 0}},
		"unknown with sequence":  {{pr(0, 3), 1, itemUnknownProducer, -1}},
		"gap":                    {{pr(0, 0), 10, itemOK, 0}, {pr(0, 11), 1, itemOutOfOrder, -1}},
		"duplicate":              {{pr(0, 0), 10, itemOK, 0}, {pr(0, 10), 5, itemOK, 0}, {pr(0, 0), 10, itemDuplicate, 100}, {pr(0, 10), 5, itemDuplicate, 110}},
		"overlap is no twin":     {{pr(0, 0), 10, itemOK, 0}, {pr(0, 5), 10, itemOutOfOrder, -1}},
		"older epoch":            {{pr(2, 0), 1, itemOK, 0}, {pr(1, 1), 1, itemFenced, -1}},
		"newer epoch from 0":     {{pr(0, 0), 1, itemOK, 0}, {pr(1, 0), 1, itemOK, 0}, {pr(1, 1), 1, itemOK, 0}},
		"newer epoch not from 0": {{pr(0, 0), 1, itemOK, 0}, {pr(1, 1), 1, itemOutOfOrder, -1}},
		"old duplicate": {{pr(0, 0), 1, itemOK, 0}, {pr(0, 1), 1, itemOK, 0}, {pr(0, 2), 1, itemOK, 0}, {pr(0, 3), 1, itemOK, 0},
			{pr(0, 4), 1, itemOK, 0}, {pr(0, 5), 1, itemOK, 0}, {pr(0, 0), 1, itemDuplicate, -1}, {pr(0, 1), 1, itemDuplicate, 101}},
	} {
		t.Run(name, func(t *testing.T) {
			table, next := newProducerTable(), int64(100)
			for i, s := range steps {
				code, off := table.check(s.p, s.count)
				if code != s.code || code == itemDuplicate && off != s.off {
					t.Fatalf("step %d: code %d offset %d, want %d %d", i, code, off, s.code, s.off)
				}
				if code == itemOK {
					table.add(s.p, s.count, next)
					next += int64(s.count)
				}
			}
		})
	}
}

func TestProducerSequenceWraps(t *testing.T) {
	t.Parallel()
	table := newProducerTable()
	table.add(record.Producer{ID: 1, Sequence: 0}, 1, 0)
	table.byID[1].recent[0] = producerBatch{first: sequenceMask - 1, last: sequenceMask, offset: 50}
	if code, _ := table.check(record.Producer{ID: 1, Sequence: 0}, 3); code != itemOK {
		t.Fatalf("sequence 0 after the largest one: code %d", code)
	}
	table.add(record.Producer{ID: 1, Sequence: 0}, 3, 52)
	if code, off := table.check(record.Producer{ID: 1, Sequence: sequenceMask - 1}, 2); code != itemDuplicate || off != 50 {
		t.Fatalf("duplicate before the wrap: code %d offset %d", code, off)
	}
}

func TestProducerTableEvictsTheLongestSilent(t *testing.T) {
	t.Parallel()
	table := newProducerTable()
	for i := range int64(maxProducers) {
		table.add(record.Producer{ID: i}, 1, i)
	}
	table.add(record.Producer{ID: 0, Sequence: 1}, 1, 1) // 1 is now the oldest
	table.add(record.Producer{ID: maxProducers}, 1, 1)
	if len(table.byID) != maxProducers || table.byID[1] != nil || table.byID[0] == nil {
		t.Fatalf("table of %d, producer 0 %v, producer 1 %v", len(table.byID), table.byID[0], table.byID[1])
	}
}

func TestStateSurvivesItsEncoding(t *testing.T) {
	t.Parallel()
	s := newState()
	s.index, s.term, s.counter, s.barrier, s.logTime = 9, 8, 7, 6, 5
	s.start, s.next, s.stored, s.marked, s.markedAt = 3, 400, 1<<40, 1<<39, 44
	for i := range 100 {
		s.producers.add(record.Producer{ID: int64(i % 37), Sequence: 0, Epoch: int16(i)}, i+1, int64(i))
	}
	enc := s.encode(nil)
	got, err := decodeState(enc)
	if err != nil {
		t.Fatal(err)
	}
	if again := got.encode(nil); !bytes.Equal(enc, again) {
		t.Fatal("decoded state encodes differently")
	}
	for n := range enc {
		if _, err := decodeState(enc[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes: no error", n, len(enc))
		}
	}
	// What an older broker wrote has no groups.
	old := append([]byte{stateGroupless}, enc[1:len(enc)-len(s.groups.encode(nil))]...)
	if was, err := decodeState(old); err != nil || !bytes.Equal(was.encode(nil), enc) {
		t.Fatalf("a state without groups: %v", err)
	}
	if _, err := decodeState(append(enc, 0)); err == nil {
		t.Fatal("a byte too many: no error")
	}
	for _, v := range []byte{0, stateVersion + 1} {
		if _, err := decodeState(append([]byte{v}, enc[1:]...)); err == nil {
			t.Fatalf("version %d: no error", v)
		}
	}
	s.chain = 0
	if got, err = decodeState(unchained(s)); err != nil || !bytes.Equal(got.encode(nil), s.encode(nil)) {
		t.Fatalf("a state without a chain: %v", err)
	}
}

// TestFormOfAState: an older form is written as long as it holds all of the state, and read as what was written. Whoever
// knows only that form finds its number, and nothing that it doesn't know.
func TestFormOfAState(t *testing.T) {
	t.Parallel()
	s := newState()
	s.index, s.term, s.next, s.chain = 9, 8, 40, 77
	newest := s.encode(nil)
	old := s.encodeAs(nil, FormChain)
	if old[0] != stateGroupless || len(old) >= len(newest) {
		t.Fatalf("version %d with %d bytes, the newest has %d", old[0], len(old), len(newest))
	}
	got, err := decodeState(old)
	if err != nil || !bytes.Equal(got.encode(nil), newest) {
		t.Fatalf("read again: %v", err)
	}
	var e group.Entry
	e.Reset(nil)
	e.Delete("none") // applied to nothing, it leaves nothing
	if _, err := s.groups.apply(1, s, e.Bytes()); err != nil {
		t.Fatal(err)
	}
	if b := s.encodeAs(nil, FormChain); b[0] != stateGroupless {
		t.Errorf("version %d without groups", b[0])
	}
	e.Reset(nil)
	e.Make("g", &group.Options{Mode: group.Exclusive, SessionMS: 10_000}, 0)
	if _, err := s.groups.apply(2, s, e.Bytes()); err != nil {
		t.Fatal(err)
	}
	b := s.encodeAs(nil, FormChain)
	if got, err = decodeState(b); err != nil || b[0] != stateVersion || got.groups.empty() {
		t.Errorf("version %d: groups were left out: %v", b[0], err)
	}
	cp, err := Rebase(storage.Checkpoint{State: old})
	if err != nil || cp.State[0] != stateGroupless {
		t.Errorf("rebased: version %d, %v", cp.State[0], err)
	}
}

// TestFormsOnTheWire: replicas of a cluster that writes the older form, and of one that writes the newer, get one
// another's snapshots, whichever is behind.
func TestFormsOnTheWire(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 200, "a", "b")
	for _, forms := range [][2]Form{{FormChain, FormGroups}, {FormGroups, FormChain}, {FormChain, FormChain}} {
		source, laggard := machineAt(t, log, len(log)), machineAt(t, log, 50)
		source.form, laggard.form = func() Form { return forms[0] }, func() Form { return forms[1] }
		snap := mustSnapshot(t, source)
		if state := snap[9:]; state[0] != byte(forms[0]) { // behind the magic, the version and the length
			t.Errorf("the snapshot's state is version %d, want %d", state[0], forms[0])
		}
		laggard.recover(t, snap, &sources{of: map[uint64]*machine{1: source}})
		alike(t, laggard, source)
		cp, found := laggard.checkpoints.Load(laggard.id)
		if !found || cp.State[0] != byte(forms[1]) {
			t.Errorf("checkpoint %v of version %d, want %d", found, cp.State[0], forms[1])
		}
		if s, err := decodeState(cp.State); err != nil || !bytes.Equal(s.encode(nil), source.state.encode(nil)) {
			t.Errorf("the checkpoint is another state: %v", err)
		}
	}
}

// unchained encodes a state as it was before there were chains and groups.
func unchained(s *state) []byte {
	const chain = 1 + 10*8
	enc := s.encode(nil)
	enc = enc[:len(enc)-len(s.groups.encode(nil))]
	return append(append([]byte{stateUnchained}, enc[1:chain]...), enc[chain+8:]...)
}

func FuzzDecodeState(f *testing.F) {
	s := newState()
	s.next = 10
	s.producers.add(record.Producer{ID: 1}, 3, 4)
	f.Add(s.encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err == nil && b[0] == stateVersion && !bytes.Equal(s.encode(nil), b) {
			t.Fatal("accepted bytes do not encode back")
		}
	})
}

func FuzzParseCommand(f *testing.F) {
	b := record.NewBuilder(record.None, record.DefaultLimits)
	if err := b.Append(&record.Record{Value: []byte("v")}); err != nil {
		f.Fatal(err)
	}
	e := make([]byte, commandHeaderSize)
	commandHeader{kind: kindAppend, term: 1, counter: 1}.put(e)
	e = appendItemPrefix(e, 5, []idAt{{delta: 0}})
	e, err := b.Finish(e, record.NoProducer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, body, err := parseCommand(b)
		if err != nil || h.kind != kindAppend {
			return
		}
		for len(body) > 0 {
			if _, body, err = nextItem(body); err != nil {
				return
			}
		}
	})
}

func TestIDWindow(t *testing.T) {
	t.Parallel()
	w := newIDWindow()
	h := func(i int) idHash { return hashMessageID(fmt.Append(nil, i)) }
	w.add(h(1), 1000, 0)
	w.add(h(2), 2000, 1)
	end := 1000 + messageIDWindow.Milliseconds()
	if off, ok := w.find(h(1), end, 0); !ok || off != 0 {
		t.Fatal("not found at the end of its window")
	}
	if _, ok := w.find(h(1), end+1, 0); ok {
		t.Fatal("found after its window")
	}
	if _, ok := w.find(h(1), 1000, 1); ok {
		t.Fatal("found although its record was trimmed")
	}
	w.add(h(1), end+1, 2) // comes again after it expired
	w.add(h(3), end+2000, 3)
	if off, ok := w.find(h(1), end+2000, 0); !ok || off != 2 {
		t.Fatalf("the newer one was forgotten with the older one: %d %v", off, ok)
	}
}

// The window after a rebuild decides like the one that was never rebuilt.
func TestIDWindowRebuildDecidesAlike(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(11, 4))
	live := newIDWindow()
	var all []windowEntry
	now := int64(1_000_000)
	for i := range 5000 {
		now += rng.Int64N(200)
		e := windowEntry{hash: hashMessageID(fmt.Append(nil, rng.IntN(3000))), logTime: now, offset: int64(i)}
		if _, dup := live.find(e.hash, now, 0); dup {
			continue
		}
		live.add(e.hash, e.logTime, e.offset)
		all = append(all, e)
	}
	start := all[len(all)/2].offset
	rebuilt := newIDWindow()
	for _, e := range all {
		if e.logTime >= now-messageIDWindow.Milliseconds() && e.offset >= start {
			rebuilt.add(e.hash, e.logTime, e.offset)
		}
	}
	for i := range 3000 {
		h := hashMessageID(fmt.Append(nil, i))
		a, okA := live.find(h, now, start)
		b, okB := rebuilt.find(h, now, start)
		if okA != okB || a != b {
			t.Fatalf("id %d: live %d %v, rebuilt %d %v", i, a, okA, b, okB)
		}
	}
}

func TestLogTimeNeverGoesBackAndIsSlewed(t *testing.T) {
	t.Parallel()
	base := time.Now()
	elapsed := time.Duration(0)
	now := func() time.Time { return base.Add(elapsed) } // wall and monotonic move together
	c := newLogClock(now, 0)
	first := c.stamp()
	elapsed += time.Second
	if got := c.stamp(); got != first+1000 {
		t.Fatalf("after a second: %d, want %d", got, first+1000)
	}

	// The log's newest time is an hour ahead of the wall: time goes on, slower.
	ahead := base.Add(elapsed).UnixMilli() + time.Hour.Milliseconds()
	c = newLogClock(now, ahead)
	if got := c.stamp(); got != ahead {
		t.Fatalf("log time went back: %d, want %d", got, ahead)
	}
	elapsed += 8 * time.Second
	if got := c.stamp(); got != ahead+7000 {
		t.Fatalf("8 s later: %d ms on, want 7000", got-ahead)
	}

	// The wall runs an hour ahead: log time gains an eighth.
	c = newLogClock(now, 0)
	c.ms -= time.Hour.Milliseconds()
	before := c.ms
	elapsed += 8 * time.Second
	if got := c.stamp(); got != before+9000 {
		t.Fatalf("8 s later: %d ms on, want 9000", got-before)
	}
}

// behind is a log that applies what an earlier leader committed before what it is
// given.
type behind struct {
	replication.Log
	m     *machine
	first []byte
}

func (l behind) Propose(data []byte, _ time.Duration) (replication.Pending, error) {
	es := []replication.Entry{{Index: l.m.look().index + 1, Data: l.first}, {Index: l.m.look().index + 2, Data: data}}
	err := l.m.Apply(es)
	return applied(es[1].Result), err
}

type applied replication.Result

func (a applied) Wait() (replication.Result, error) { return replication.Result(a), nil }

func (a applied) WaitContext(context.Context) (replication.Result, error) { return a.Wait() }

// TestLogTimeGoesOnFromTheLastLeader: a new leader's log time runs from the newest
// entry of the one before, though it had not applied that when it was elected.
// Else log time would stand still until the clock has caught up, and no window end.
func TestLogTimeGoesOnFromTheLastLeader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	ahead := time.Now().Add(time.Hour).UnixMilli()
	p := &Partition{m: m, c: Config{Clock: time.Now, Logger: zerolog.Nop()}}
	p.log = behind{m: m, first: command(commandHeader{kind: kindStart, term: 1, logTime: ahead})}
	l := &leadership{term: 2, ctx: context.Background()}
	if !p.start(l) {
		t.Fatal("not started")
	}
	if got := l.clock.stamp(); got < ahead {
		t.Errorf("log time is %d ms behind the newest entry", ahead-got)
	}
}
