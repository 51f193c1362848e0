package raft

import (
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
