package partition

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	_ "github.com/parleymq/parley/partition/storage/memory"
)

// bench is a partition on a lone replicated log and the memory engine.
type rig struct {
	t      testing.TB
	host   *loneHost
	engine storage.Engine
	cp     *storage.Checkpointer
	p      *Partition
	limits Limits
	ret    Retention

	deadLetter DeadLetterFunc
	clock      func() time.Time // nil: the real one
}

func newRig(t testing.TB, seed uint64) *rig {
	t.Helper()
	r := &rig{t: t, host: newLoneHost(seed)}
	dir := t.TempDir()
	var err error
	if r.engine, err = storage.OpenEngine("memory", storage.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if r.cp, err = storage.OpenCheckpointer(dir, r.engine, storage.CheckpointOptions{EveryBytes: 1 << 40, Every: time.Hour}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.p != nil {
			if err := r.p.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(r.cp.Close(), r.engine.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) open() *Partition {
	r.t.Helper()
	p, err := Open(context.Background(), Config{
		Topic: "orders", Number: 3, Log: storage.LogID{Topic: 1, Partition: 2, Replica: 3}, Shard: 2, Replica: 3,
		Host: r.host, Engine: r.engine, Checkpoints: r.cp, Limits: r.limits, Retention: r.ret, RetentionEvery: time.Hour,
		DeadLetter: r.deadLetter, Logger: zerolog.Nop(), Clock: r.clock,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.p = p
	r.waitLeading()
	return p
}

// commit has the log bring an entry, with host.mu held.
func (r *rig) commit(entry []byte) {
	r.t.Helper()
	if _, err := r.host.log.commit(entry); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) waitLeading() {
	r.t.Helper()
	r.until("leading", r.p.Leading)
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not %s after 20 s", what)
		}
	}
}

// answers collects outcomes by reply.
type answers struct {
	mu sync.Mutex
	by map[string]Outcome
	n  int
}

func newAnswers() *answers { return &answers{by: map[string]Outcome{}} }

func (a *answers) Settle(reply []byte, o Outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, twice := a.by[string(reply)]; twice {
		panic("answered twice: " + string(reply))
	}
	a.by[string(reply)] = o
	a.n++
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

func (a *answers) get(reply string) Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.by[reply]
}

// readAll returns every record from the start offset on.
func (r *rig) readAll() []record.Record {
	r.t.Helper()
	start, next := r.p.Bounds()
	return r.read(start, next)
}

func (r *rig) read(from, next int64) (out []record.Record) {
	r.t.Helper()
	for from < next {
		res, err := r.p.Fetch(context.Background(), FetchRequest{Offset: from, MaxBytes: 3000}, nil)
		if err != nil {
			r.t.Fatalf("fetch %d: %v", from, err)
		}
		if len(res.Batches) == 0 {
			r.t.Fatalf("fetch %d of %d: nothing", from, next)
		}
		if err := verify(res.Batches, func(b record.Batch) bool {
			var it record.Iterator
			if err := it.Reset(b, record.DefaultLimits); err != nil {
				r.t.Fatal(err)
			}
			for it.Next() {
				rec := *it.Record()
				if rec.Offset < from {
					continue
				}
				if rec.Offset != from {
					r.t.Fatalf("offset %d follows %d", rec.Offset, from-1)
				}
				rec.Key, rec.Value = append([]byte(nil), rec.Key...), append([]byte(nil), rec.Value...)
				out = append(out, rec)
				from++
			}
			return true
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	return out
}

func (r *rig) publish(a *answers, i int, msgID string) {
	r.t.Helper()
	pub := Publication{Record: record.Record{Value: fmt.Append(nil, i), Timestamp: 1}, Expect: -1, Reply: fmt.Append(nil, i), Receiver: a}
	if msgID != "" {
		pub.MsgID = []byte(msgID)
	}
	if err := r.p.Append(context.Background(), &pub); err != nil {
		r.t.Fatal(err)
	}
}

func TestAppendAndReadBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	a := newAnswers()
	const n = 5000
	for i := range n {
		r.publish(a, i, "")
		if i%7 == 0 {
			r.p.Flush()
		}
	}
	r.p.Flush()
	r.until("answered", func() bool { return a.count() == n })
	recs := r.readAll()
	if len(recs) != n {
		t.Fatalf("%d records, want %d", len(recs), n)
	}
	for i, rec := range recs {
		if string(rec.Value) != fmt.Sprint(i) || a.get(fmt.Sprint(i)).Offset != int64(i) {
			t.Fatalf("record %d: %q, acked at %d", i, rec.Value, a.get(fmt.Sprint(i)).Offset)
		}
	}
	// And again from the store alone.
	r.p.m.visible.Lock()
	r.p.m.tail.clear()
	r.p.m.visible.Unlock()
	if again := r.readAll(); len(again) != n {
		t.Fatalf("%d records from the store, want %d", len(again), n)
	}
}

// Whatever happens to proposals, each taken record is in the log once, in
// order, and each answer is true.
func TestFaultyLogKeepsOrderAndTruth(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 30; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, seed)
			r.limits = Limits{GroupBytes: 2000, PipelineBytes: 300}
			r.host.faults = faults{drop: 50, lose: 50, commitUnknown: 50, late: 50, double: 50, busy: 50}
			r.open()
			a := newAnswers()
			const n = 1500
			for i := range n {
				r.publish(a, i, "")
				if i%5 == 0 {
					r.p.Flush()
				}
			}
			r.p.Flush()
			r.until("answered", func() bool { return a.count() == n })
			recs := r.readAll()
			if len(recs) != n {
				t.Fatalf("%d records, want %d", len(recs), n)
			}
			for i, rec := range recs {
				o := a.get(fmt.Sprint(i))
				if string(rec.Value) != fmt.Sprint(i) || o.Err != nil || o.Offset != int64(i) {
					t.Fatalf("record %d: %q, answer %+v", i, rec.Value, o)
				}
			}
			if r.p.Status().Retried == 0 {
				t.Fatal("no proposal was made again: the faults did not strike")
			}
		})
	}
}

// Terms change under load: what was acked is there once; what was refused is not;
// only "unknown" may be either, and nothing is there twice.
func TestLeadershipChangesUnderLoad(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, seed)
			r.limits = Limits{GroupBytes: 2000, PipelineBytes: 300}
			r.host.faults = faults{drop: 30, lose: 100, commitUnknown: 100, late: 100, double: 30}
			r.open()
			a := newAnswers()
			taken := 0
			for i := range 1500 {
				if i%150 == 149 {
					r.until("half answered", func() bool { return a.count() >= taken-30 })
					r.host.elect()
				}
				for {
					pub := Publication{Record: record.Record{Value: fmt.Append(nil, taken)}, Expect: -1, Reply: fmt.Append(nil, taken), Receiver: a}
					err := r.p.Append(context.Background(), &pub)
					if err == nil {
						break
					}
					if !errors.Is(err, ErrNotLeader) {
						t.Fatal(err)
					}
					r.waitLeading()
				}
				taken++
				r.p.Flush()
			}
			r.until("answered", func() bool { return a.count() == taken })
			r.waitLeading()
			seen := map[string]int64{}
			for _, rec := range r.readAll() {
				if _, twice := seen[string(rec.Value)]; twice {
					t.Fatalf("record %q is there twice", rec.Value)
				}
				seen[string(rec.Value)] = rec.Offset
			}
			acked, unknown := 0, 0
			for i := range taken {
				o := a.get(fmt.Sprint(i))
				off, there := seen[fmt.Sprint(i)]
				switch {
				case o.Err == nil:
					acked++
					if !there || off != o.Offset {
						t.Fatalf("record %d acked at %d: there %v at %d", i, o.Offset, there, off)
					}
				case o.Err.Unknown:
					unknown++
				case there:
					t.Fatalf("record %d was refused (%v) and is at %d", i, o.Err, off)
				}
			}
			if acked == 0 {
				t.Fatal("nothing was acked")
			}
		})
	}
}

func TestRestartReappliesFromTheCheckpoint(t *testing.T) {
	t.Parallel()
	r := newRig(t, 5)
	r.open()
	a := newAnswers()
	for i := range 100 {
		r.publish(a, i, fmt.Sprint("id", i))
		r.p.Flush()
	}
	r.until("answered", func() bool { return a.count() == 100 })
	if err := r.cp.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i := 100; i < 200; i++ {
		r.publish(a, i, fmt.Sprint("id", i))
		r.p.Flush()
	}
	r.until("answered", func() bool { return a.count() == 200 })
	if err := r.p.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	if n := r.p.Status().Reapplied; n == 0 {
		t.Fatal("no entry was applied again")
	}
	if recs := r.readAll(); len(recs) != 200 {
		t.Fatalf("%d records, want 200", len(recs))
	}
	// The window was rebuilt: the same ids are duplicates, at their first offsets.
	again := newAnswers()
	for i := range 200 {
		r.publish(again, i, fmt.Sprint("id", i))
	}
	r.p.Flush()
	r.until("answered", func() bool { return again.count() == 200 })
	for i := range 200 {
		if o := again.get(fmt.Sprint(i)); !o.Duplicate || o.Offset != int64(i) {
			t.Fatalf("id %d again: %+v", i, o)
		}
	}
}

func TestMessageIDsInFlightShareOneOutcome(t *testing.T) {
	t.Parallel()
	r := newRig(t, 6)
	r.open()
	a, b := newAnswers(), newAnswers()
	r.publish(a, 1, "same")
	r.publish(b, 2, "same")
	r.p.Flush()
	r.until("answered", func() bool { return a.count()+b.count() == 2 })
	if x, y := a.get("1"), b.get("2"); x.Duplicate || !y.Duplicate || x.Offset != 0 || y.Offset != 0 {
		t.Fatalf("first %+v, second %+v", x, y)
	}
}

// TestMessageIDsExpireWhileIdle: the window ends with the time that passed, also
// where nothing else was published meanwhile.
func TestMessageIDsExpireWhileIdle(t *testing.T) {
	t.Parallel()
	r := newRig(t, 16)
	began := time.Now()
	var passed atomic.Int64
	p, err := Open(context.Background(), Config{
		Topic: "t", Log: storage.LogID{Topic: 1, Partition: 2, Replica: 3}, Shard: 2, Replica: 3, Host: r.host, Engine: r.engine,
		Checkpoints: r.cp, RetentionEvery: time.Hour, Logger: zerolog.Nop(),
		Clock: func() time.Time { return began.Add(time.Duration(passed.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.p = p
	r.waitLeading()
	a := newAnswers()
	for i, c := range []struct {
		after time.Duration
		again bool
	}{{0, false}, {messageIDWindow / 2, true}, {messageIDWindow, false}} {
		passed.Add(int64(c.after))
		r.publish(a, i, "same")
		r.p.Flush()
		r.until("answered", func() bool { return a.count() == i+1 })
		if o := a.get(fmt.Sprint(i)); o.Err != nil || o.Duplicate != c.again {
			t.Errorf("%v later: %+v", c.after, o)
		}
	}
}

func TestCompareAndAppend(t *testing.T) {
	t.Parallel()
	r := newRig(t, 7)
	r.open()
	a := newAnswers()
	for i, expect := range []int64{0, 0, 1, 5, -1, 3} {
		pub := Publication{Record: record.Record{Value: []byte("v")}, Expect: expect, Reply: fmt.Append(nil, i), Receiver: a}
		if err := r.p.Append(context.Background(), &pub); err != nil {
			t.Fatal(err)
		}
	}
	r.p.Flush()
	r.until("answered", func() bool { return a.count() == 6 })
	for i, ok := range []bool{true, false, true, false, true, true} {
		if o := a.get(fmt.Sprint(i)); (o.Err == nil) != ok || !ok && !errors.Is(o.Err, ErrExpectMismatch) {
			t.Fatalf("append %d: %+v", i, o)
		}
	}
}

func batch(t testing.TB, p record.Producer, values ...string) record.Batch {
	t.Helper()
	b := record.NewBuilder(record.None, record.DefaultLimits)
	for _, v := range values {
		if err := b.Append(&record.Record{Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	buf, err := b.Finish(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return buf
}

func TestBatchesOfAnIdempotentProducer(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8)
	r.open()
	a := newAnswers()
	send := func(name string, b record.Batch) Outcome {
		if err := r.p.AppendBatch(context.Background(), b, -1, []byte(name), a); err != nil {
			t.Fatal(err)
		}
		r.p.Flush()
		n := a.count() + 1
		r.until("answered", func() bool { return a.count() >= n || a.get(name) != Outcome{} })
		return a.get(name)
	}
	p := record.Producer{ID: 9}
	if o := send("first", batch(t, p, "a", "b")); o.Err != nil || o.Offset != 0 {
		t.Fatalf("%+v", o)
	}
	if o := send("twin", batch(t, p, "a", "b")); o.Err != nil || !o.Duplicate || o.Offset != 0 {
		t.Fatalf("%+v", o)
	}
	expect := int64(2)
	for _, again := range []bool{false, true} {
		q := record.Producer{ID: 11}
		name := fmt.Sprint("expecting", again)
		if err := r.p.AppendBatch(context.Background(), batch(t, q, "c"), expect, []byte(name), a); err != nil {
			t.Fatal(err)
		}
		r.p.Flush()
		r.until("answered", func() bool { return a.get(name) != Outcome{} })
		if o := a.get(name); o.Err != nil || o.Duplicate != again || o.Offset != expect {
			t.Fatalf("compare and append, again %v: %+v", again, o)
		}
	}
	p.Sequence = 5
	if o := send("gap", batch(t, p, "x")); !errors.Is(o.Err, ErrOutOfOrder) {
		t.Fatalf("%+v", o)
	}
	if o := send("stranger", batch(t, record.Producer{ID: 10, Sequence: 4}, "x")); !errors.Is(o.Err, ErrUnknownProducer) {
		t.Fatalf("%+v", o)
	}
	bad := batch(t, p, "x")
	bad[len(bad)-1] ^= 1
	if err := r.p.AppendBatch(context.Background(), bad, -1, nil, a); !errors.Is(err, ErrInvalidBatch) {
		t.Fatalf("damaged batch: %v", err)
	}
}

func TestFetchBoundsAndWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, 9)
	r.open()
	ctx := context.Background()
	if _, err := r.p.Fetch(ctx, FetchRequest{Offset: 1}, nil); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("beyond the end: %v", err)
	}
	if _, err := r.p.Fetch(ctx, FetchRequest{Offset: -1}, nil); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("before the start: %v", err)
	}
	if res, err := r.p.Fetch(ctx, FetchRequest{Offset: 0, MaxWait: time.Millisecond}, nil); err != nil || len(res.Batches) != 0 {
		t.Fatalf("empty log: %v %v", res, err)
	}
	got := make(chan error, 1)
	go func() {
		res, err := r.p.Fetch(ctx, FetchRequest{Offset: 0, MaxWait: 10 * time.Second}, nil)
		if err == nil && len(res.Batches) == 0 {
			err = errors.New("woke with nothing")
		}
		got <- err
	}()
	r.until("waiting", func() bool {
		r.p.m.visible.RLock()
		defer r.p.m.visible.RUnlock()
		return r.p.m.wake != nil
	})
	r.publish(newAnswers(), 1, "")
	r.p.Flush()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// TestDeposedAtOnce: who was deposed while a proposal hangs neither takes records nor tells where
// the log ends.
func TestDeposedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, 10)
	r.open()
	ctx := context.Background()
	r.host.gate.Lock()
	a := newAnswers()
	r.publish(a, 1, "")
	r.p.Flush()
	r.host.depose()
	if r.p.Leading() {
		t.Error("it still leads")
	}
	pub := Publication{Record: record.Record{Value: []byte("late")}, Expect: -1, Reply: []byte("late"), Receiver: a}
	if err := r.p.Append(ctx, &pub); !errors.Is(err, ErrNotLeader) {
		t.Errorf("append: %v", err)
	}
	if _, err := r.p.Fetch(ctx, FetchRequest{Offset: 1}, nil); !errors.Is(err, ErrNotLeader) {
		t.Errorf("fetch beyond the end: %v", err)
	}
	if err := r.p.Await(ctx, 1, time.Second); !errors.Is(err, ErrNotLeader) {
		t.Errorf("await beyond the end: %v", err)
	}
	r.host.gate.Unlock()
	r.until("answered", func() bool { return a.count() == 1 })
	if r.p.Leading() {
		t.Error("it leads again")
	}
}

// TestStaleEpochIsStampedAnew: a record that was proposed behind a barrier, stamped with the epoch before,
// is refused by the log, stamped anew and then taken, once.
func TestStaleEpochIsStampedAnew(t *testing.T) {
	t.Parallel()
	r := newRig(t, 12)
	r.limits.PipelineBytes = 1 // the record doesn't wait for the barrier's outcome
	r.open()
	r.host.gate.Lock()
	done := make(chan error, 1)
	go func() { done <- r.p.Barrier(context.Background(), 9) }()
	inFlight := func(n int) func() bool {
		return func() bool { r.p.a.mu.Lock(); defer r.p.a.mu.Unlock(); return r.p.a.inFlight == n }
	}
	r.until("the barrier is in flight", inFlight(1))
	a := newAnswers()
	r.publish(a, 1, "")
	r.p.Flush()
	r.until("the record is in flight", inFlight(2))
	r.host.gate.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.until("answered", func() bool { return a.count() == 1 })
	if o := a.get("1"); o.Err != nil || o.Offset != 0 || o.Epoch != 9 {
		t.Errorf("outcome %+v", o)
	}
	r.host.mu.Lock()
	defer r.host.mu.Unlock()
	h, _, err := parseCommand(r.host.entries[len(r.host.entries)-1])
	if err != nil || h.kind != kindAppend || h.barrier != 9 {
		t.Errorf("the log ends with %+v, %v; want the record, stamped with epoch 9", h, err)
	}
}

// TestDeposedAnswersSoon: what a deposed leader has under way is answered as soon as it is known: in the log, or
// never; and with an unknown outcome when nobody tells.
func TestDeposedAnswersSoon(t *testing.T) {
	t.Parallel()
	start := func(term uint64) []byte { return command(commandHeader{kind: kindStart, term: term}) }
	for name, c := range map[string]struct {
		before func(r *rig, entry []byte) // what the log does before the leader is deposed
		want   func(o Outcome) bool
	}{
		"nobody tells":                        {func(*rig, []byte) {}, func(o Outcome) bool { return errors.Is(o.Err, ErrUnavailable) }},
		"a newer term has started without it": {func(r *rig, _ []byte) { r.commit(start(2)) }, func(o Outcome) bool { return errors.Is(o.Err, ErrNotLeader) }},
		"a newer term has started after it": {func(r *rig, entry []byte) { r.commit(entry); r.commit(start(2)) },
			func(o Outcome) bool { return errors.Is(o.Err, ErrUnavailable) }}, // its result went with the leader
		"two newer terms have started": {func(r *rig, _ []byte) { r.commit(start(2)); r.commit(start(3)) }, func(o Outcome) bool { return errors.Is(o.Err, ErrNotLeader) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 13)
			r.limits.ProposeTimeout = time.Hour
			r.open()
			r.host.gate.Lock()
			defer r.host.gate.Unlock()
			a := newAnswers()
			r.publish(a, 1, "")
			r.p.Flush()
			r.host.mu.Lock()
			c.before(r, r.host.last)
			r.host.mu.Unlock()
			r.host.depose()
			r.until("answered", func() bool { return a.count() == 1 })
			if o := a.get("1"); !c.want(o) {
				t.Errorf("outcome %+v, %v", o, o.Err)
			}
		})
	}
}

// TestBeyondTheEndIsConfirmed: a leader says that an offset is beyond its log only when the others
// confirm that it leads.
func TestBeyondTheEndIsConfirmed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 11)
	r.open()
	ctx := context.Background()
	if err := r.p.Await(ctx, 1, time.Second); err != nil {
		t.Errorf("confirmed: %v", err)
	}
	r.host.mu.Lock()
	r.host.barrier = func(context.Context) error { return errors.New("no majority") }
	r.host.mu.Unlock()
	if err := r.p.Await(ctx, 1, time.Second); !errors.Is(err, ErrNotLeader) {
		t.Errorf("cut off: %v", err)
	}
	if err := r.p.Await(ctx, 0, time.Millisecond); err != nil {
		t.Errorf("at the end: %v", err)
	}
	r.host.mu.Lock()
	r.host.barrier = func(context.Context) error { r.host.depose(); return nil }
	r.host.mu.Unlock()
	if err := r.p.Await(ctx, 1, time.Second); !errors.Is(err, ErrNotLeader) {
		t.Errorf("deposed meanwhile: %v", err)
	}
}

func TestRetentionTrims(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ret        Retention
		start, max int64
	}{
		"records": {Retention{MaxRecords: 10}, 90, 90},
		"bytes":   {Retention{MaxBytes: 1}, 1, 99},
		"age":     {Retention{MaxAge: time.Nanosecond}, 1, 100},
		"all fit": {Retention{MaxAge: time.Hour, MaxBytes: 1 << 30, MaxRecords: 1000}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			var mu sync.Mutex
			r := newRig(t, 10)
			r.ret = c.ret
			p, err := Open(context.Background(), Config{
				Topic: "t", Log: storage.LogID{Topic: 1, Partition: 2, Replica: 3}, Shard: 2, Replica: 3, Host: r.host, Engine: r.engine,
				Checkpoints: r.cp, Retention: c.ret, RetentionEvery: time.Hour, Logger: zerolog.Nop(),
				Clock: func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(500 * time.Millisecond); return now },
			})
			if err != nil {
				t.Fatal(err)
			}
			r.p = p
			r.waitLeading()
			a := newAnswers()
			for i := range 100 {
				r.publish(a, i, "")
				r.p.Flush()
				r.until("answered", func() bool { return a.count() == i+1 })
			}
			if err := r.p.Retain(context.Background()); err != nil {
				t.Fatal(err)
			}
			start, next := r.p.Bounds()
			if start < c.start || start > c.max || next != 100 {
				t.Fatalf("bounds %d..%d, want a start in %d..%d", start, next, c.start, c.max)
			}
			if err := r.cp.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := r.readAll(); int64(len(got)) != next-start {
				t.Fatalf("%d records, want %d", len(got), next-start)
			}
			if start > 0 {
				if _, err := r.p.Fetch(context.Background(), FetchRequest{Offset: start - 1}, nil); !errors.Is(err, ErrOutOfRange) {
					t.Fatalf("below the start: %v", err)
				}
			}
			if err := r.p.Close(); err != nil {
				t.Fatal(err)
			}
			r.open()
			if s, n := r.p.Bounds(); s != start || n != next {
				t.Fatalf("after a restart: bounds %d..%d, want %d..%d", s, n, start, next)
			}
		})
	}
}

func TestOffsetAtTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, 12)
	var mu sync.Mutex
	now := time.Now()
	p, err := Open(context.Background(), Config{
		Topic: "t", Log: storage.LogID{Topic: 1, Partition: 2, Replica: 3}, Shard: 2, Replica: 3, Host: r.host, Engine: r.engine,
		Checkpoints: r.cp, RetentionEvery: time.Hour, Logger: zerolog.Nop(),
		Clock: func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(300 * time.Millisecond); return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.p = p
	r.waitLeading()
	a := newAnswers()
	for i := range 200 {
		r.publish(a, i, "")
		r.p.Flush()
		r.until("answered", func() bool { return a.count() == i+1 })
	}
	var times []int64
	if err := r.p.m.store.Read(0, func(c storage.Chunk) bool { times = append(times, c.LogTime); return true }); err != nil {
		t.Fatal(err)
	}
	for probe := times[0] - 500; probe < times[199]+500; probe += 137 {
		want := int64(200)
		for i, at := range times {
			if at >= probe {
				want = int64(i)
				break
			}
		}
		if got, err := p.OffsetAt(probe); err != nil || got != want {
			t.Fatalf("time %d: offset %d, want %d (%v)", probe, got, want, err)
		}
	}
}

func TestFullQueueSaysBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t, 13)
	r.limits = Limits{QueueBytes: 1000, BusyWait: 10 * time.Millisecond}
	r.open()
	r.host.gate.Lock() // nothing commits
	a := newAnswers()
	var err error
	taken := 0
	for range 1000 {
		pub := Publication{Record: record.Record{Value: make([]byte, 100)}, Expect: -1, Reply: fmt.Append(nil, taken), Receiver: a}
		if err = r.p.Append(context.Background(), &pub); err != nil {
			break
		}
		taken++
	}
	r.host.gate.Unlock()
	if !errors.Is(err, ErrBusy) || taken > 10 {
		t.Fatalf("after %d records: %v", taken, err)
	}
	r.p.Flush()
	r.until("answered", func() bool { return a.count() == taken })
}
