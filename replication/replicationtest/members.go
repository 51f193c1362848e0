package replicationtest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/parleymq/parley/replication"
)

// A replica is replaced by one with a fresh id on its own host: the old one is closed and stays a
// voter until the new one has taken its place; then its data goes while the new one runs.
func testReplace(t *testing.T, h Harness) {
	peers := startGroup(t, h, 1, 3)
	for i := range 60 {
		peers[i%3].mustWrite(fmt.Sprint("before ", i))
	}
	lead := leader(t, peers)
	var old, other *peer
	for _, p := range peers {
		switch {
		case p == lead:
		case old == nil:
			old = p
		default:
			other = p
		}
	}
	h.Cut(lead.n, 1)
	if err := old.log.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := start(t, h, old.n, 1, 4, nil, nil)
	lead.mustWrite("with two of three")
	lead.change(replication.Change{Kind: replication.AddNonVoting, Replica: 4, Address: h.Address(old.n)})
	checkSame(t, lead, fresh)
	lead.change(replication.Change{Kind: replication.Promote, Replica: 4})
	lead.change(replication.Change{Kind: replication.Remove, Replica: old.id})
	if m := lead.members(); len(m.Voters) != 3 || m.Voters[4] != h.Address(old.n) || len(m.NonVoting) != 0 {
		t.Fatalf("members after the replacement: %+v", m)
	}
	if err := h.Host(old.n).Remove(t.Context(), 1, 4); err == nil {
		t.Fatal("a running replica's data was removed")
	}
	if err := h.Host(old.n).Remove(t.Context(), 1, old.id); err != nil {
		t.Fatalf("remove the replaced replica beside its successor: %v", err)
	}
	if err := h.Host(old.n).Remove(t.Context(), 1, old.id); err != nil {
		t.Fatalf("remove it again: %v", err)
	}
	// The promoted one is a voter after a restart: the two of them have the majority.
	h.Restart(fresh.n)
	fresh = start(t, h, fresh.n, 1, 4, nil, fresh.ledger.Disk)
	if err := other.log.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		lead.mustWrite(fmt.Sprint("after ", i))
	}
	checkSame(t, lead, fresh)
}

// Of two changes that were made for the same members one is carried out.
func testOneChange(t *testing.T, h Harness) {
	p := startGroup(t, h, 1, 1)[0]
	p.mustWrite("x")
	h.Host(1)
	at := p.members().ConfigID
	var changes sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		id := uint64(2 + i)
		h.Place(1, id, 1)
		changes.Go(func() {
			errs[i] = p.log.Change(t.Context(), replication.Change{Kind: replication.AddNonVoting, Replica: id, Address: h.Address(1)}, at)
		})
	}
	changes.Wait()
	done := 0
	for _, err := range errs {
		switch {
		case err == nil:
			done++
		case !errors.Is(err, replication.ErrConfigChanged) && !errors.Is(err, replication.ErrBusy) && !errors.Is(err, replication.ErrUnknown):
			t.Errorf("a change that came late: %v", err)
		}
	}
	if m := p.members(); done > 1 || len(m.NonVoting) != 1 {
		t.Fatalf("%d changes were made, members %+v", done, m)
	}
}
