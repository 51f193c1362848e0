// Package replicationtest is the suite that every replication.Host and its logs
// must pass.
package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/replication"
)

// Harness makes hosts that can reach each other.
type Harness interface {
	// Host returns host n, 0 or more. It is opened when it isn't.
	Host(n int) replication.Host

	// Address of host n, which is open.
	Address(n int) string

	// Restart closes host n and opens it again on what it stored. Its address may change:
	// the harness sees to it that the others find it.
	Restart(n int)

	// Cut makes the leader, on host n, forget what it applied of a log, so that whoever joins
	// needs a snapshot.
	Cut(n int, shard uint64)

	// Place tells the hosts where a replica lives.
	Place(shard, replica uint64, n int)
}

const (
	patience = 20 * time.Second
	// timeout of one proposal; a lost one is proposed again.
	timeout = 2 * time.Second
)

// Run runs the suite. Each test gets a harness of its own.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, h Harness)
	}{
		{"Propose", testPropose},
		{"Refusals", testRefusals},
		{"Restart", testRestart},
		{"Close", testClose},
		{"StartTwice", testStartTwice},
		{"OpenFails", testOpenFails},
		{"ManyLogs", testManyLogs},
		{"Order", testOrder},
		{"Leadership", testLeadership},
		{"Barrier", testBarrier},
		{"Members", testMembers},
		{"Replace", testReplace},
		{"OneChange", testOneChange},
		{"Snapshot", testSnapshot},
		{"RestartOne", testRestartOne},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, newHarness(t))
		})
	}
}

// peer is one replica in a test.
type peer struct {
	t      *testing.T
	n      int
	shard  uint64
	id     uint64
	ledger *Ledger
	log    replication.Log

	mu    sync.Mutex
	views []replication.Leadership
}

func start(t *testing.T, h Harness, n int, shard, id uint64, initial map[uint64]string, disk *Disk) *peer {
	t.Helper()
	p := &peer{t: t, n: n, shard: shard, id: id, ledger: NewLedger(disk)}
	h.Place(shard, id, n)
	log, err := h.Host(n).Start(t.Context(), replication.Replica{
		Shard: shard, Replica: id, Initial: initial, Join: len(initial) == 0,
		OnLeader: func(l replication.Leadership) {
			p.mu.Lock()
			p.views = append(p.views, l)
			p.mu.Unlock()
		},
	}, p.ledger)
	if err != nil {
		t.Fatalf("start replica %d: %v", id, err)
	}
	p.log = log
	t.Cleanup(func() {
		if err := p.ledger.Broken(); err != nil {
			t.Errorf("replica %d: a promise to its state machine was broken: %v", id, err)
		}
	})
	return p
}

// startGroup starts replicas 1..n of a log on hosts 0..n-1.
func startGroup(t *testing.T, h Harness, shard uint64, n int) []*peer {
	t.Helper()
	initial := make(map[uint64]string, n)
	for i := range n {
		h.Host(i)
		initial[uint64(i+1)] = h.Address(i)
		h.Place(shard, uint64(i+1), i)
	}
	peers := make([]*peer, n)
	for i := range n {
		peers[i] = start(t, h, i, shard, uint64(i+1), initial, nil)
	}
	return peers
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v until %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// leader waits until one of the peers leads and the others agree.
func leader(t *testing.T, peers []*peer) *peer {
	t.Helper()
	var found *peer
	eventually(t, "the replicas agree on a leader", func() bool {
		found = nil
		for _, p := range peers {
			l := p.log.Leadership()
			if l.Leader == 0 || l != (replication.Leadership{Leader: l.Leader, Term: peers[0].log.Leadership().Term, Self: l.Leader == p.id}) {
				return false
			}
			if l.Self {
				found = p
			}
		}
		return found != nil
	})
	return found
}

// write proposes until it commits for certain. Where outcomes get lost, a value may be in the log
// more than once.
func (p *peer) write(data string) (replication.Result, error) {
	deadline := time.Now().Add(patience)
	for {
		pending, err := p.log.Propose([]byte(data), timeout)
		var r replication.Result
		if err == nil {
			r, err = pending.Wait()
		}
		if err == nil || errors.Is(err, replication.ErrClosed) || time.Now().After(deadline) {
			return r, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (p *peer) mustWrite(data string) replication.Result {
	p.t.Helper()
	r, err := p.write(data)
	if err != nil {
		p.t.Fatalf("replica %d: propose %q: %v", p.id, data, err)
	}
	return r
}

func (p *peer) barrier() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := p.log.Barrier(ctx); err != nil {
		p.t.Fatalf("replica %d: barrier: %v", p.id, err)
	}
}

func (p *peer) members() replication.Membership {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	m, err := p.log.Members(ctx)
	if err != nil {
		p.t.Fatalf("replica %d: members: %v", p.id, err)
	}
	return m
}

// change alters the membership, from whatever it is now.
func (p *peer) change(c replication.Change) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := p.log.Change(p.t.Context(), c, p.members().ConfigID)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("replica %d: %v", p.id, err)
		}
		// It may have been done all the same.
		m := p.members()
		_, voter := m.Voters[c.Replica]
		_, nonVoting := m.NonVoting[c.Replica]
		_, removed := m.Removed[c.Replica]
		if c.Kind == replication.AddNonVoting && nonVoting || c.Kind == replication.Promote && voter ||
			c.Kind == replication.Remove && removed {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func checkSame(t *testing.T, peers ...*peer) {
	t.Helper()
	for _, p := range peers {
		p.barrier()
	}
	want := peers[0].ledger.Lines()
	for _, p := range peers[1:] {
		got := p.ledger.Lines()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("replicas %d and %d differ: %d and %d lines\n%v\n%v", peers[0].id, p.id, len(want), len(got), want, got)
		}
	}
}

func count(lines []Line) map[string]int {
	n := make(map[string]int)
	for _, l := range lines {
		n[l.Data]++
	}
	return n
}
