package memlog_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/memlog"
	"github.com/parleymq/parley/replication/replicationtest"
)

// world is a log of three replicas that is stepped by hand.
type world struct {
	t       testing.TB
	c       *memlog.Cluster
	hosts   []*memlog.Host
	logs    []replication.Log
	ledgers []*ledger
}

// ledger follows its replica through crashes.
type ledger struct{ now *replicationtest.Ledger }

type tracked struct {
	*replicationtest.Ledger
	at *ledger
}

func (k tracked) Crash() replication.StateMachine {
	next := k.Ledger.Crash().(*replicationtest.Ledger)
	k.at.now = next
	return tracked{next, k.at}
}

func newWorld(t testing.TB, n int, o memlog.Options) *world {
	w := &world{t: t, c: memlog.NewCluster(o)}
	initial := make(map[uint64]string)
	for i := range n {
		w.hosts = append(w.hosts, w.c.Host(fmt.Sprint("host-", i)))
		initial[uint64(i+1)] = w.hosts[i].Address()
	}
	for i, h := range w.hosts {
		l := &ledger{now: replicationtest.NewLedger(nil)}
		log, err := h.Start(t.Context(), replication.Replica{Shard: 1, Replica: uint64(i + 1), Initial: initial}, tracked{l.now, l})
		if err != nil {
			t.Fatal(err)
		}
		w.logs = append(w.logs, log)
		w.ledgers = append(w.ledgers, l)
	}
	w.c.Settle()
	return w
}

func (w *world) leader() int {
	return slices.IndexFunc(w.logs, func(l replication.Log) bool { return l.Leadership().Self })
}

func (w *world) propose(i int, data string) replication.Pending {
	w.t.Helper()
	p, err := w.logs[i].Propose([]byte(data), time.Second)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) data(i int) []string {
	var out []string
	for _, l := range w.ledgers[i].now.Lines() {
		out = append(out, l.Data)
	}
	return out
}

func TestFates(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fates []memlog.Fate
		errs  []error
		want  []string
	}{
		{[]memlog.Fate{memlog.Commit, memlog.Commit}, []error{nil, nil}, []string{"a", "b"}},
		{[]memlog.Fate{memlog.Drop, memlog.Commit}, []error{replication.ErrDropped, nil}, []string{"b"}},
		{[]memlog.Fate{memlog.Lose, memlog.Commit}, []error{replication.ErrUnknown, nil}, []string{"b"}},
		{[]memlog.Fate{memlog.CommitMutely, memlog.Commit}, []error{replication.ErrUnknown, nil}, []string{"a", "b"}},
		{[]memlog.Fate{memlog.CommitTwice, memlog.Commit}, []error{nil, nil}, []string{"a", "a", "b"}},
		{[]memlog.Fate{memlog.CommitBehind, memlog.Commit}, []error{nil, nil}, []string{"b", "a"}},
	} {
		t.Run(fmt.Sprint(c.fates), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, memlog.Options{Seed: 7})
			w.c.Fate(1, c.fates...)
			a, b := w.propose(w.leader(), "a"), w.propose(w.leader(), "b")
			for i, p := range []replication.Pending{a, b} {
				if _, err := p.Wait(); !errors.Is(err, c.errs[i]) {
					t.Errorf("proposal %d: %v, want %v", i, err, c.errs[i])
				}
			}
			w.c.Settle()
			for i := range w.logs {
				if got := w.data(i); !slices.Equal(got, c.want) {
					t.Errorf("replica %d has %q, want %q", i+1, got, c.want)
				}
			}
		})
	}
}

// ErrUnknown comes first, the commit after a later proposal was answered.
func TestCommitLate(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		w := newWorld(t, 3, memlog.Options{Seed: seed})
		w.c.Fate(1, memlog.CommitLate)
		late := w.propose(w.leader(), "late")
		if _, err := late.Wait(); !errors.Is(err, replication.ErrUnknown) {
			t.Fatal(err)
		}
		w.c.Settle()
		if got := w.data(0); !slices.Equal(got, []string{"late"}) {
			t.Fatalf("seed %d: %q", seed, got)
		}
	}
}

func TestIsolatedLeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, memlog.Options{Seed: 3})
	old := w.leader()
	w.c.Isolate(w.hosts[old])
	lost := w.propose(old, "lost") // it believes that it leads
	w.c.Settle()
	now := w.leader()
	if now == old || now < 0 {
		t.Fatalf("the leader is replica %d after replica %d was cut off", now+1, old+1)
	}
	kept := w.propose(now, "kept")
	if _, err := kept.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.Wait(); !errors.Is(err, replication.ErrUnknown) {
		t.Fatalf("a proposal of a leader that was cut off: %v, want ErrUnknown", err)
	}
	if err := w.logs[old].Barrier(t.Context()); err == nil {
		t.Fatal("a barrier passed on a replica that is cut off")
	}
	w.c.Heal(w.hosts[old])
	w.c.Settle()
	if got := w.data(old); !slices.Equal(got, []string{"kept"}) {
		t.Fatalf("after healing: %q", got)
	}
}

func TestFollowerForwards(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, memlog.Options{Seed: 4})
	follower := (w.leader() + 1) % 3
	if _, err := w.propose(follower, "x").Wait(); err != nil {
		t.Fatal(err)
	}
	// While the leader hands over, it drops its own for certain, and a follower's without a word.
	if err := w.logs[0].Transfer(t.Context(), uint64(follower+1)); err != nil {
		t.Fatal(err)
	}
	own, other := w.propose(w.leader(), "y"), w.propose(follower, "z")
	if _, err := own.Wait(); !errors.Is(err, replication.ErrDropped) {
		t.Errorf("the leader's own: %v, want ErrDropped", err)
	}
	if _, err := other.Wait(); !errors.Is(err, replication.ErrUnknown) {
		t.Errorf("a follower's: %v, want ErrUnknown", err)
	}
	if got := w.leader(); got != follower {
		t.Errorf("replica %d leads, want %d", got+1, follower+1)
	}
}

func TestGapsAndSnapshots(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, memlog.Options{Seed: 5})
	laggard := (w.leader() + 1) % 3
	w.c.Isolate(w.hosts[laggard])
	for i := range 5 {
		w.c.Gap(1, i)
		if _, err := w.propose(w.leader(), fmt.Sprint(i)).Wait(); err != nil {
			t.Fatal(err)
		}
	}
	lines := w.ledgers[w.leader()].now.Lines()
	if first, last := lines[0].Index, lines[4].Index; last-first < 4+1+2+3+4 {
		t.Fatalf("indexes %d to %d have no gaps", first, last)
	}
	w.c.Settle()
	if err := w.c.Compact(1, 1); err != nil {
		t.Fatal(err)
	}
	w.c.Heal(w.hosts[laggard])
	w.c.Settle()
	if w.ledgers[laggard].now.Recovered() != 1 {
		t.Fatal("the laggard got no snapshot")
	}
	if got := w.data(laggard); len(got) != 5 {
		t.Fatalf("the laggard has %q", got)
	}
}

func TestReopenAppliesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, memlog.Options{Seed: 6})
	for i := range 6 {
		if _, err := w.propose(0, fmt.Sprint(i)).Wait(); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			if err := w.ledgers[0].now.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := w.ledgers[0].now.Lines()
	if err := w.c.Reopen(1, 1); err != nil {
		t.Fatal(err)
	}
	w.c.Settle()
	if got := w.ledgers[0].now.Applied(); got != 3 {
		t.Errorf("%d entries were applied again, want 3", got)
	}
	if got := w.ledgers[0].now.Lines(); !slices.Equal(got, before) {
		t.Errorf("before %v, after %v", before, got)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, memlog.Options{MaxInFlight: 2})
	a := w.propose(0, "a")
	w.propose(0, "b")
	if _, err := w.logs[0].Propose([]byte("c"), time.Second); !errors.Is(err, replication.ErrBusy) {
		t.Fatalf("third of two: %v, want ErrBusy", err)
	}
	if _, err := a.Wait(); err != nil {
		t.Fatal(err)
	}
}

// simulate runs a workload under all faults at once and returns a transcript.
func simulate(t testing.TB, seed uint64) string {
	w := newWorld(t, 3, memlog.Options{Seed: seed, Faults: memlog.Faults{
		Drop: 0.05, Lose: 0.05, CommitMutely: 0.05, CommitLate: 0.05, CommitTwice: 0.05, CommitBehind: 0.1,
		Elect: 0.02, Gap: 0.05, Reopen: 0.01, Sync: 0.02, Compact: 0.02,
	}})
	rng := rand.New(rand.NewPCG(seed, 1))
	type flight struct {
		value string
		p     replication.Pending
	}
	var inFlight []flight
	acked, dropped := make(map[string]bool), make(map[string]bool)
	transcript := ""
	finish := func(f flight) {
		r, err := f.p.Wait()
		transcript += fmt.Sprintln(f.value, r.Value, err)
		switch {
		case err == nil:
			acked[f.value] = true
		case errors.Is(err, replication.ErrDropped):
			dropped[f.value] = true
		}
	}
	for i := range 200 {
		v := fmt.Sprint("v", i)
		if p, err := w.logs[rng.IntN(3)].Propose([]byte(v), time.Second); err == nil {
			inFlight = append(inFlight, flight{v, p})
		}
		for range rng.IntN(6) {
			w.c.Step()
		}
		if len(inFlight) > 5 {
			finish(inFlight[0])
			inFlight = inFlight[1:]
		}
	}
	for _, f := range inFlight {
		finish(f)
	}
	w.c.SetFaults(memlog.Faults{})
	w.c.Settle()
	want := w.ledgers[0].now.Lines()
	n := make(map[string]int)
	for _, l := range want {
		n[l.Data]++
	}
	for v := range acked {
		if n[v] == 0 {
			t.Errorf("seed %d: %q was answered and is not in the log", seed, v)
		}
	}
	for v := range dropped {
		if n[v] != 0 {
			t.Errorf("seed %d: %q was dropped and is in the log", seed, v)
		}
	}
	for i, l := range w.ledgers {
		if got := l.now.Lines(); !slices.Equal(got, want) {
			t.Errorf("seed %d: replica %d has %d lines, replica 1 has %d", seed, i+1, len(got), len(want))
		}
		if err := l.now.Broken(); err != nil {
			t.Errorf("seed %d: replica %d: %v", seed, i+1, err)
		}
	}
	if len(acked) < 50 {
		t.Errorf("seed %d: only %d of 200 were answered", seed, len(acked))
	}
	return transcript + fmt.Sprint(want)
}

func TestSimulation(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		first := simulate(t, seed)
		if seed < 10 && simulate(t, seed) != first {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}
