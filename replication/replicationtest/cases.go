package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/replication"
)

// A proposal's result is the state machine's, and indexes rise.
func testPropose(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	for i := range 20 {
		data := fmt.Sprintf("line %d", i)
		r := p.mustWrite(data)
		if string(r.Data) != data || r.Value < uint64(i+1) {
			t.Fatalf("result of %q: %d, %q", data, r.Value, r.Data)
		}
	}
	big := strings.Repeat("x", 1<<20)
	if r := p.mustWrite(big); string(r.Data) != big {
		t.Fatal("a large entry was changed on its way")
	}
	lines := p.ledger.Lines()
	if got := p.log.Applied(); got != lines[len(lines)-1].Index {
		t.Fatalf("Applied() = %d, the newest line is %d", got, lines[len(lines)-1].Index)
	}
	// Many in flight at once: each one that is answered is in there.
	pending := make([]replication.Pending, 50)
	for i := range pending {
		var err error
		if pending[i], err = p.log.Propose(fmt.Appendf(nil, "flight %d", i), timeout); err != nil {
			t.Fatal(err)
		}
	}
	answered := 0
	for i, w := range pending {
		if r, err := w.Wait(); err == nil {
			answered++
			if want := fmt.Sprintf("flight %d", i); string(r.Data) != want {
				t.Fatalf("result of %q is %q", want, r.Data)
			}
		}
	}
	if answered == 0 {
		t.Fatal("none of 50 proposals was answered")
	}
}

// What can't be proposed is refused at once.
func testRefusals(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	p.mustWrite("first")
	if _, err := p.log.Propose([]byte("x"), 0); err == nil {
		t.Error("a timeout of 0 was accepted")
	}
	if _, err := p.log.Propose(make([]byte, 9<<20), timeout); !errors.Is(err, replication.ErrTooLarge) {
		t.Errorf("propose 9 MiB: %v, want ErrTooLarge", err)
	}
	p.mustWrite("last")
	if n := len(count(p.ledger.Lines())); n != 2 {
		t.Errorf("%d different lines, want 2", n)
	}
}

// After a restart everything above the index that Open returned is applied again, and
// nothing else.
func testRestart(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	for i := range 10 {
		p.mustWrite(fmt.Sprint("synced ", i))
	}
	if err := p.ledger.Sync(); err != nil {
		t.Fatal(err)
	}
	durable := len(p.ledger.Disk.Lines())
	for i := range 10 {
		p.mustWrite(fmt.Sprint("not synced ", i))
	}
	before := p.ledger.Lines()
	h.Restart(0)
	if !p.ledger.Closed() {
		t.Fatal("the host was closed and left a state machine open")
	}
	// The second time with Initial left out.
	for _, initial := range []map[uint64]string{{1: h.Address(0)}, nil} {
		disk := &Disk{lines: before[:durable]}
		p = start(t, h, 0, 1, 1, initial, disk)
		p.barrier()
		after := p.ledger.Lines()
		if len(after) < len(before) || fmt.Sprint(after[:len(before)]) != fmt.Sprint(before) {
			t.Fatalf("before the restart:\n%v\nafter:\n%v", before, after)
		}
		if again := p.ledger.Applied(); again != len(after)-durable {
			t.Fatalf("%d entries were applied again, want %d", again, len(after)-durable)
		}
		if err := p.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Close closes the state machine, ends what is pending, and refuses the rest.
func testClose(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	p.mustWrite("x")
	var pending []replication.Pending
	for range 100 {
		w, err := p.log.Propose([]byte("y"), timeout)
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, w)
	}
	if err := p.log.Close(); err != nil {
		t.Fatal(err)
	}
	if !p.ledger.Closed() {
		t.Fatal("Close returned before the state machine was closed")
	}
	for _, w := range pending {
		if _, err := w.Wait(); err != nil && !errors.Is(err, replication.ErrClosed) && !errors.Is(err, replication.ErrUnknown) &&
			!errors.Is(err, replication.ErrDropped) {
			t.Fatalf("a proposal that was pending at Close ended with %v", err)
		}
	}
	if _, err := p.log.Propose([]byte("z"), timeout); !errors.Is(err, replication.ErrClosed) {
		t.Fatalf("propose after Close: %v, want ErrClosed", err)
	}
	if err := p.log.Barrier(t.Context()); !errors.Is(err, replication.ErrClosed) {
		t.Fatalf("barrier after Close: %v, want ErrClosed", err)
	}
	if l := p.log.Leadership(); l.Self || l.Leader != 0 {
		t.Fatalf("leadership after Close: %+v", l)
	}
	if err := p.log.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	// It can be removed now, and the host closes without it.
	if err := h.Host(0).Remove(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := h.Host(0).Close(); err != nil {
		t.Fatal(err)
	}
}

func testStartTwice(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	p.mustWrite("x")
	other := NewLedger(nil)
	_, err := h.Host(0).Start(t.Context(), replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address(0)}}, other)
	if err == nil {
		t.Fatal("a replica was started twice")
	}
	if err := h.Host(0).Remove(t.Context(), 1, 1); err == nil {
		t.Fatal("a running replica was removed")
	}
	p.mustWrite("y")
	if _, err := h.Host(0).Start(t.Context(), replication.Replica{Shard: 2, Replica: 1}, other); err == nil {
		t.Fatal("a replica was started out of nothing")
	}
	if _, err := h.Host(0).Start(t.Context(), replication.Replica{Shard: 0, Replica: 1, Initial: map[uint64]string{1: "x"}}, other); err == nil {
		t.Fatal("log 0 was started")
	}
}

// failing doesn't open.
type failing struct{ *Ledger }

var errBroken = errors.New("broken")

func (failing) Open(<-chan struct{}) (uint64, error) { return 0, errBroken }

// ahead claims to have what the log never had.
type ahead struct{ *Ledger }

func (ahead) Open(<-chan struct{}) (uint64, error) { return 1000, nil }

// A state machine that doesn't open costs its replica, not the host.
func testOpenFails(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	first := replication.Replica{Shard: 2, Replica: 1, Initial: map[uint64]string{1: h.Address(0)}}
	if _, err := h.Host(0).Start(t.Context(), first, failing{NewLedger(nil)}); !errors.Is(err, errBroken) {
		t.Fatalf("start: %v, want the state machine's error", err)
	}
	if _, err := h.Host(0).Start(t.Context(), first, ahead{NewLedger(nil)}); err == nil {
		t.Fatal("a state machine that is ahead of its log was started")
	}
	p.mustWrite("still there")
	start(t, h, 0, 2, 1, first.Initial, nil).mustWrite("and so is this")
}

// Logs of one host don't disturb each other.
func testManyLogs(t *testing.T, h Harness) {
	const logs = 8
	var all sync.WaitGroup
	for shard := uint64(1); shard <= logs; shard++ {
		p := startGroup(t, h, shard, 1)[0]
		all.Go(func() {
			for i := range 10 {
				if _, err := p.write(fmt.Sprintf("%d/%d", shard, i)); err != nil {
					t.Error(err)
				}
			}
			p.barrier()
			for _, l := range p.ledger.Lines() {
				if !strings.HasPrefix(l.Data, fmt.Sprintf("%d/", shard)) {
					t.Errorf("log %d holds %q", shard, l.Data)
				}
			}
		})
	}
	all.Wait()
}

// All replicas apply the same in the same order, whoever proposes, and each proposal that was
// answered is there.
func testOrder(t *testing.T, h Harness) {
	peers := startGroup(t, h, 1, 3)
	leader(t, peers)
	const each = 40
	var all sync.WaitGroup
	for _, p := range peers {
		all.Go(func() {
			for i := range each {
				if _, err := p.write(fmt.Sprintf("%d-%d", p.id, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	checkSame(t, peers...)
	n := count(peers[0].ledger.Lines())
	for _, p := range peers {
		for i := range each {
			if v := fmt.Sprintf("%d-%d", p.id, i); n[v] == 0 {
				t.Errorf("%q was answered and is not in the log", v)
			}
		}
	}
}

// Leadership is told in order, moves on request, and there is one leader a term.
func testLeadership(t *testing.T, h Harness) {
	peers := startGroup(t, h, 1, 3)
	for range 2 {
		from := leader(t, peers)
		from.mustWrite("by the leader")
		to := peers[from.id%3]
		eventually(t, "the leadership moved", func() bool {
			if to.log.Leadership().Self {
				return true
			}
			if err := from.log.Transfer(t.Context(), to.id); err != nil {
				t.Log(err)
			}
			time.Sleep(50 * time.Millisecond)
			return to.log.Leadership().Self
		})
		if now := leader(t, peers); now.log.Leadership().Term <= 1 {
			t.Fatalf("term after a transfer: %d", now.log.Leadership().Term)
		}
	}
	leaders := make(map[uint64]uint64) // by term
	for _, p := range peers {
		eventually(t, "OnLeader says what Leadership says", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.views) > 0 && p.views[len(p.views)-1] == p.log.Leadership()
		})
		p.mu.Lock()
		var term uint64
		for _, v := range p.views {
			if v.Term < term {
				t.Errorf("replica %d was told of term %d after %d", p.id, v.Term, term)
			}
			term = v.Term
			if v.Self != (v.Leader == p.id) {
				t.Errorf("replica %d was told %+v", p.id, v)
			}
			if v.Leader == 0 {
				continue
			}
			if other, ok := leaders[v.Term]; ok && other != v.Leader {
				t.Errorf("term %d has leaders %d and %d", v.Term, other, v.Leader)
			}
			leaders[v.Term] = v.Leader
		}
		p.mu.Unlock()
	}
	if err := peers[0].log.Transfer(t.Context(), 0); err == nil {
		t.Error("the leadership was handed to replica 0")
	}
}

// After a barrier, any replica has what was answered anywhere.
func testBarrier(t *testing.T, h Harness) {
	peers := startGroup(t, h, 1, 3)
	leader(t, peers)
	for i := range 15 {
		writer, reader := peers[i%3], peers[(i+1)%3]
		v := fmt.Sprint("v", i)
		writer.mustWrite(v)
		reader.barrier()
		if count(reader.ledger.Lines())[v] == 0 {
			t.Fatalf("replica %d has no %q after a barrier", reader.id, v)
		}
	}
	// Two of three gone: no barrier.
	for _, p := range peers[1:] {
		if err := p.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := peers[0].log.Barrier(ctx); err == nil {
		t.Fatal("a barrier passed without a majority")
	}
}

// Members change one step at a time, by compare and set.
func testMembers(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	for i := range 10 {
		p.mustWrite(fmt.Sprint("before ", i))
	}
	m := p.members()
	if len(m.Voters) != 1 || m.Voters[1] != h.Address(0) || m.ConfigID == 0 {
		t.Fatalf("members of a new log: %+v", m)
	}
	h.Host(1)
	h.Place(1, 2, 1)
	add := replication.Change{Kind: replication.AddNonVoting, Replica: 2, Address: h.Address(1)}
	if err := p.log.Change(t.Context(), add, m.ConfigID+7); !errors.Is(err, replication.ErrConfigChanged) {
		t.Fatalf("change with a wrong config id: %v, want ErrConfigChanged", err)
	}
	if err := p.log.Change(t.Context(), replication.Change{Kind: replication.Promote, Replica: 2}, m.ConfigID); err == nil {
		t.Fatal("a stranger was promoted")
	}
	if err := p.log.Change(t.Context(), replication.Change{Kind: replication.Remove, Replica: 1}, p.members().ConfigID); err == nil {
		t.Fatal("the last voter was removed")
	}
	if err := p.log.Change(t.Context(), replication.Change{Kind: 99, Replica: 1}, p.members().ConfigID); err == nil {
		t.Fatal("a change of no kind was made")
	}
	p.change(add)
	if got := p.members(); len(got.Voters) != 1 || got.NonVoting[2] != h.Address(1) || got.ConfigID <= m.ConfigID {
		t.Fatalf("members after an addition: %+v", got)
	}
	if err := p.log.Change(t.Context(), add, m.ConfigID); !errors.Is(err, replication.ErrConfigChanged) {
		t.Fatalf("change with an old config id: %v, want ErrConfigChanged", err)
	}
	second := start(t, h, 1, 1, 2, nil, nil)
	checkSame(t, p, second)
	p.change(replication.Change{Kind: replication.Promote, Replica: 2})
	if got := p.members(); len(got.Voters) != 2 || len(got.NonVoting) != 0 {
		t.Fatalf("members after a promotion: %+v", got)
	}
	second.mustWrite("by the second")
	checkSame(t, p, second)

	// The promoted one restarts as what it is now, whatever Initial says.
	for _, initial := range []map[uint64]string{nil, {1: h.Address(0)}, {1: h.Address(0), 2: h.Address(1)}} {
		if err := second.log.Close(); err != nil {
			t.Fatal(err)
		}
		second = start(t, h, 1, 1, 2, initial, second.ledger.Disk)
		second.mustWrite("by the second, again")
		checkSame(t, p, second)
	}

	// And takes over from the first.
	eventually(t, "the second leads", func() bool {
		if second.log.Leadership().Self {
			return true
		}
		_ = p.log.Transfer(t.Context(), 2)
		time.Sleep(50 * time.Millisecond)
		return second.log.Leadership().Self
	})
	second.change(replication.Change{Kind: replication.Remove, Replica: 1})
	got := second.members()
	if _, removed := got.Removed[1]; len(got.Voters) != 1 || !removed {
		t.Fatalf("members after a removal: %+v", got)
	}
	if err := p.log.Close(); err != nil {
		t.Fatal(err)
	}
	second.mustWrite("alone")
	if err := second.log.Change(t.Context(), replication.Change{Kind: replication.AddNonVoting, Replica: 1, Address: h.Address(0)}, got.ConfigID); err == nil {
		t.Fatal("a removed replica was added again")
	}
	if err := h.Host(0).Remove(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
}

// Whoever joins a log that was cut gets a snapshot, then goes on from there.
func testSnapshot(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	for i := range 60 {
		p.mustWrite(fmt.Sprint("old ", i))
	}
	h.Cut(0, 1)
	if len(p.ledger.Disk.Lines()) == 0 {
		t.Fatal("the log was cut and the state machine not synced")
	}
	h.Host(1)
	h.Place(1, 2, 1)
	p.change(replication.Change{Kind: replication.AddNonVoting, Replica: 2, Address: h.Address(1)})
	second := start(t, h, 1, 1, 2, nil, nil)
	p.mustWrite("new")
	checkSame(t, p, second)
	if second.ledger.Recovered() == 0 {
		t.Fatal("the second replica got no snapshot")
	}
	if got, want := second.log.Applied(), p.log.Applied(); got != want {
		t.Fatalf("Applied() = %d after a snapshot, the other says %d", got, want)
	}
	// It restarts from what it recovered.
	if err := second.log.Close(); err != nil {
		t.Fatal(err)
	}
	second = start(t, h, 1, 1, 2, nil, second.ledger.Disk)
	p.mustWrite("newer")
	checkSame(t, p, second)
}

// One of three restarts, at another address maybe, and catches up.
func testRestartOne(t *testing.T, h Harness) {
	peers := startGroup(t, h, 1, 3)
	for i := range 10 {
		peers[i%3].mustWrite(fmt.Sprint("before ", i))
	}
	last := leader(t, peers)
	rest := []*peer{peers[last.id%3], peers[(last.id+1)%3]}
	h.Restart(last.n)
	for i := range 10 {
		rest[i%2].mustWrite(fmt.Sprint("meanwhile ", i))
	}
	// Initial may name who is there now.
	again := start(t, h, last.n, 1, last.id, map[uint64]string{2: "", 3: "", 7: ""}, last.ledger.Disk)
	again.mustWrite("back")
	checkSame(t, rest[0], rest[1], again)
}
