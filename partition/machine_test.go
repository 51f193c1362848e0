package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/memory"
	"github.com/parleymq/parley/replication"
)

// lone opens a machine on an engine of its own.
func openMachine(t testing.TB, e storage.Engine, dir string) (*machine, *storage.Checkpointer) {
	t.Helper()
	cp, err := storage.OpenCheckpointer(dir, e, storage.CheckpointOptions{EveryBytes: 1 << 40, Every: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(&Config{Log: storage.LogID{Topic: 1, Partition: 1, Replica: 1}, Engine: e, Checkpoints: cp, Logger: zerolog.Nop()})
	if _, err := m.Open(nil); err != nil {
		t.Fatal(err)
	}
	return m, cp
}

func memoryEngine(t testing.TB, dir string) storage.Engine {
	t.Helper()
	e, err := storage.OpenEngine("memory", storage.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func command(h commandHeader, items ...func([]byte) []byte) []byte {
	b := make([]byte, commandHeaderSize)
	h.put(b)
	for _, it := range items {
		b = it(b)
	}
	return b
}

func itemOf(t testing.TB, expect int64, p record.Producer, ids []string, values ...string) func([]byte) []byte {
	return func(b []byte) []byte {
		var at []idAt
		for i, id := range ids {
			at = append(at, idAt{delta: int32(i), hash: hashMessageID([]byte(id))})
		}
		b = appendItemPrefix(b, expect, at)
		return append(b, batch(t, p, values...)...)
	}
}

func (m *machine) do(t testing.TB, index uint64, cmd []byte) replication.Result {
	t.Helper()
	es := []replication.Entry{{Index: index, Data: cmd}}
	if err := m.Apply(es); err != nil {
		t.Fatal(err)
	}
	return es[0].Result
}

func TestApplyFences(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	one := itemOf(t, -1, record.NoProducer, nil, "v")
	index := uint64(0)
	apply := func(name string, want uint64, cmd []byte) replication.Result {
		t.Helper()
		index += 2 // the log's own entries leave gaps
		r := m.do(t, index, cmd)
		if r.Value != want {
			t.Fatalf("%s: result %d, want %d", name, r.Value, want)
		}
		return r
	}
	apply("append before any start", resultStaleTerm, command(commandHeader{kind: kindAppend, term: 1, counter: 1}, one))
	apply("start", resultOK, command(commandHeader{kind: kindStart, term: 3}))
	apply("start again, nothing between", resultOK, command(commandHeader{kind: kindStart, term: 3}))
	apply("first", resultOK, command(commandHeader{kind: kindAppend, term: 3, counter: 1}, one))
	apply("start of the same term late", resultStaleTerm, command(commandHeader{kind: kindStart, term: 3}))
	apply("gap", resultSkipped, command(commandHeader{kind: kindAppend, term: 3, counter: 3}, one))
	if r := apply("twin", resultOK, command(commandHeader{kind: kindAppend, term: 3, counter: 1}, one)); !bytes.Equal(r.Data, appendItemResult(nil, itemOK, 0)) {
		t.Fatalf("twin: %x", r.Data)
	}
	apply("barrier", resultOK, append(command(commandHeader{kind: kindBarrier, term: 3, counter: 2}), 0, 0, 0, 0, 0, 0, 0, 9))
	apply("older barrier", resultStaleBarrier, command(commandHeader{kind: kindAppend, term: 3, counter: 3, barrier: 8}, one))
	apply("same barrier", resultOK, command(commandHeader{kind: kindAppend, term: 3, counter: 3, barrier: 9}, one))
	apply("newer start", resultOK, command(commandHeader{kind: kindStart, term: 4, barrier: 9}))
	apply("deposed leader", resultStaleTerm, command(commandHeader{kind: kindAppend, term: 3, counter: 4, barrier: 9}, one))
	apply("older start", resultStaleTerm, command(commandHeader{kind: kindStart, term: 3, barrier: 9}))
	if b := m.look(); b.next != 2 || b.barrier != 9 || b.term != 4 {
		t.Fatalf("bounds %+v", b)
	}
}

func TestApplyRejectsLateDuplicatesWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	m.do(t, 1, command(commandHeader{kind: kindStart, term: 1, logTime: 1}))
	m.do(t, 2, command(commandHeader{kind: kindAppend, term: 1, counter: 1, logTime: 1}, itemOf(t, -1, record.NoProducer, []string{"a", "b"}, "1", "2")))
	r := m.do(t, 3, command(commandHeader{kind: kindAppend, term: 1, counter: 2, logTime: 2},
		itemOf(t, -1, record.NoProducer, []string{"c", "b"}, "3", "4"), itemOf(t, -1, record.NoProducer, []string{"d"}, "5")))
	want := appendItemResult(appendItemResult(nil, itemDuplicateID, 1), itemOK, 2)
	if !bytes.Equal(r.Data, want) {
		t.Fatalf("results %x, want %x", r.Data, want)
	}
}

// A batch whose ids came another way is built anew: what is a duplicate is
// answered so, the rest is appended, nobody is forgotten.
func TestRejectedBatchIsBuiltAnew(t *testing.T) {
	t.Parallel()
	r := newRig(t, 21)
	r.open()
	a := newAnswers()
	r.host.gate.Lock()
	for i := range 5 {
		r.publish(a, i, fmt.Sprint("id", i))
	}
	r.publish(a, 5, "")
	twin := newAnswers()
	r.publish(twin, 100, "id1") // waits for the first
	r.publish(twin, 101, "id2")
	// id1 and id3 reach the window behind the appender's back.
	r.p.m.state.ids.add(hashMessageID([]byte("id1")), r.p.m.state.logTime, 0)
	r.p.m.state.ids.add(hashMessageID([]byte("id3")), r.p.m.state.logTime, 0)
	r.p.Flush()
	r.host.gate.Unlock()
	r.until("rebuilt", func() bool { r.p.Flush(); return a.count() == 6 && twin.count() == 2 })
	dup := 0
	for i := range 6 {
		if o := a.get(fmt.Sprint(i)); o.Err != nil {
			t.Fatalf("%d: %+v", i, o)
		} else if o.Duplicate {
			dup++
		}
	}
	if dup != 2 || !twin.get("100").Duplicate || !twin.get("101").Duplicate {
		t.Fatalf("%d duplicates, want 2: %+v", dup, twin.by)
	}
	got := ""
	for _, rec := range r.readAll() {
		got += string(rec.Value)
	}
	if got != "0245" {
		t.Fatalf("log holds %q, want 0245", got)
	}
}

// randomLog makes a log with everything in it that replicas must agree on.
func randomLog(t testing.TB, seed uint64, n int) [][]byte {
	rng := rand.New(rand.NewPCG(seed, 2))
	var log [][]byte
	term, counter, now := uint64(1), uint64(0), int64(1_000_000)
	log = append(log, command(commandHeader{kind: kindStart, term: 1, logTime: now}))
	seqs := map[int64]int32{}
	for range n {
		now += rng.Int64N(3000)
		h := commandHeader{kind: kindAppend, term: term, counter: counter + 1, logTime: now}
		switch rng.IntN(20) {
		case 0:
			term, counter = term+1, 0
			log = append(log, command(commandHeader{kind: kindStart, term: term, logTime: now}))
			continue
		case 1:
			h.counter += 3 // skipped
			log = append(log, command(h, itemOf(t, -1, record.NoProducer, nil, "x")))
			continue
		case 2:
			h.kind = kindTrim
			log = append(log, append(command(h), 0, 0, 0, 0, 0, 0, byte(rng.IntN(2)), byte(rng.IntN(256))))
			counter++
			continue
		case 3, 4:
			h.kind = kindGroup
			log = append(log, randomGroupEntry(rng, command(h), len(log)))
			counter++
			continue
		}
		var items []func([]byte) []byte
		for range 1 + rng.IntN(3) {
			p := record.NoProducer
			var ids []string
			switch rng.IntN(3) {
			case 0:
				id := rng.Int64N(4)
				p = record.Producer{ID: id, Sequence: seqs[id]}
				if rng.IntN(4) > 0 {
					seqs[id]++
				}
			case 1:
				ids = []string{fmt.Sprint(rng.IntN(60))}
			}
			items = append(items, itemOf(t, -1, p, ids, fmt.Sprint("v", rng.Int())))
		}
		log = append(log, command(h, items...))
		counter++
	}
	return log
}

// randomGroupEntry has operations some of which apply.
func randomGroupEntry(rng *rand.Rand, buf []byte, entries int) []byte {
	var e group.Entry
	e.Reset(buf)
	for range 1 + rng.IntN(3) {
		name := fmt.Sprint("g", rng.IntN(3))
		token := uint64(entries - rng.IntN(min(entries, 30)))
		switch rng.IntN(6) {
		case 0, 1:
			o := group.Options{DeadLetter: "d", BackoffMS: []int64{1, 2}}.WithDefaults(group.Exclusive)
			e.Make(name, &o, rng.Int64N(50))
		case 2:
			e.Grant(name, token, "m", rng.Uint64N(9))
		case 3:
			e.Commit(name, token, rng.Int64N(100), rng.IntN(4) == 0)
		case 4:
			e.Move(name, rng.Int64N(50))
		case 5:
			if rng.IntN(4) == 0 {
				e.Delete(name)
			}
		}
	}
	return e.Bytes()
}

// A replica that crashes at any moment and goes on from its newest checkpoint
// ends up with what one that never stopped has.
func TestCrashesLeadToTheSameState(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 40; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			log := randomLog(t, seed, 300)
			steady, _ := openMachine(t, memoryEngine(t, t.TempDir()), t.TempDir())
			results := make([]replication.Result, len(log))
			for i, cmd := range log {
				results[i] = steady.do(t, uint64(i+1), cmd)
			}

			rng := rand.New(rand.NewPCG(seed, 3))
			dir := t.TempDir()
			e := memoryEngine(t, dir)
			m, cp := openMachine(t, e, dir)
			crashes := 0
			for i := 0; i < len(log); {
				r := m.do(t, uint64(i+1), log[i])
				// Terms that a restart has ended are not proposed to again, so what a
				// leader remembers of its results may differ.
				if r.Value != results[i].Value || !bytes.Equal(r.Data, results[i].Data) {
					t.Fatalf("entry %d: result %d %x, want %d %x", i+1, r.Value, r.Data, results[i].Value, results[i].Data)
				}
				i++
				if rng.IntN(25) == 0 {
					if err := cp.Sync(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				if rng.IntN(40) == 0 {
					crashes++
					cp.Unregister(m.id)
					e = crash(t, e, dir)
					m, cp = openMachine(t, e, dir)
					i = int(m.state.index)
				}
			}
			if crashes == 0 {
				t.Fatal("no crash happened")
			}
			if a, b := steady.state.encode(nil), m.state.encode(nil); !bytes.Equal(a, b) {
				t.Fatalf("states differ after %d crashes: %x and %x", crashes, a, b)
			}
			if a, b := contents(t, steady), contents(t, m); !bytes.Equal(a, b) {
				t.Fatal("logs differ")
			}
		})
	}
}

func crash(t testing.TB, e storage.Engine, dir string) storage.Engine {
	t.Helper()
	c, ok := e.(*memory.Engine)
	if !ok {
		t.Fatalf("engine %T cannot crash", e)
	}
	c.Crash()
	return memoryEngine(t, dir)
}

func contents(t testing.TB, m *machine) (all []byte) {
	t.Helper()
	start := m.look().start
	if err := m.store.Read(start, func(c storage.Chunk) bool {
		if err := verify(c.Data, func(b record.Batch) bool {
			if b.LastOffset() >= start {
				all = append(all, b...)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// A log that doesn't bring again what was applied before a crash has lost acked
// records: the partition must not go on as if they had never been.
func TestLogThatLostItsEndIsRefused(t *testing.T) {
	t.Parallel()
	for lose := range 4 {
		t.Run(fmt.Sprint("lost ", lose), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 31)
			r.open()
			a := newAnswers()
			for i := range 20 {
				r.publish(a, i, "")
				r.p.Flush()
				r.until("answered", func() bool { return a.count() == i+1 })
				if i == 9 {
					if err := r.cp.Sync(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := r.p.Close(); err != nil {
				t.Fatal(err)
			}
			r.host.entries = r.host.entries[:len(r.host.entries)-lose]
			p, err := Open(context.Background(), Config{
				Topic: "orders", Log: storage.LogID{Topic: 1, Partition: 2, Replica: 3}, Shard: 2, Replica: 3,
				Host: r.host, Engine: r.engine, Checkpoints: r.cp, RetentionEvery: time.Hour, Logger: zerolog.Nop(),
			})
			if err != nil {
				t.Fatal(err)
			}
			r.p = p
			r.until("leading or refused", func() bool { return p.Leading() || p.refused.Load() != nil })
			pub := Publication{Record: record.Record{Value: []byte("new")}, Expect: -1}
			err = p.Append(context.Background(), &pub)
			if lose == 0 && err != nil {
				t.Fatalf("nothing was lost: %v", err)
			}
			if lose > 0 && (!errors.Is(err, ErrDamaged) || p.Leading() || p.Status().Damage == "") {
				t.Fatalf("%d entries lost: %v, leading %v", lose, err, p.Leading())
			}
		})
	}
}
