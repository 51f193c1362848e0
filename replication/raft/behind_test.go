package raft

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/replicationtest"
)

// A state machine that lost what the Raft log no longer holds costs its replica, not
// the process, and not the other replicas.
func TestStateOlderThanItsLog(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	c.SnapshotCount, c.RetainBytes = 40, 1
	h, err := NewHost(c)
	if err != nil {
		t.Fatal(err)
	}
	r := replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address()}}
	l := mustLead(t, h, replicationtest.NewLedger(nil))
	for deadline := time.Now().Add(20 * time.Second); h.Figures()["cuts"] == 0; {
		mustPropose(t, l, "x")
		if time.Now().After(deadline) {
			t.Fatal("the log was not cut")
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = mustHost(t, c)
	if _, err := h.Start(t.Context(), r, replicationtest.NewLedger(nil)); err == nil || !strings.Contains(err.Error(), "its data is older") {
		t.Fatalf("start: %v", err)
	}
	other, err := h.Start(t.Context(), replication.Replica{Shard: 2, Replica: 1, Initial: map[uint64]string{1: h.Address()}}, discard{})
	if err != nil {
		t.Fatal(err)
	}
	waitLead(t, other)
	mustPropose(t, other, "still here")
}

// far says that entries up to reach were applied before.
type far struct {
	*replicationtest.Ledger
	reach uint64
}

func (f far) Reach() uint64 { return f.reach }

// A replica whose Raft log ends before what was applied doesn't start, and nobody hears of it.
func TestLogLostItsEnd(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	h, err := NewHost(c)
	if err != nil {
		t.Fatal(err)
	}
	r := replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address()}}
	ledger := replicationtest.NewLedger(nil)
	l := mustLead(t, h, ledger)
	for range 10 {
		mustPropose(t, l, "x")
	}
	last := l.Applied()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = mustHost(t, c)
	if _, err := h.Start(t.Context(), r, far{replicationtest.NewLedger(ledger.Disk), last + 100}); !errors.Is(err, replication.ErrLost) {
		t.Fatalf("start: %v", err)
	}
	again, err := h.Start(t.Context(), r, far{replicationtest.NewLedger(ledger.Disk), last})
	if err != nil {
		t.Fatalf("a log that has it all: %v", err)
	}
	waitLead(t, again)
	mustPropose(t, again, "still here")
	unknown := replication.Replica{Shard: 2, Replica: 2, Again: true}
	if _, err := h.Start(t.Context(), unknown, replicationtest.NewLedger(nil)); !errors.Is(err, replication.ErrLost) {
		t.Errorf("a member of which nothing is known: %v", err)
	}
}
