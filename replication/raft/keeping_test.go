package raft

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft/journal"
)

// TestStay: an entry that removes the replica itself becomes an empty one, every other one stays as it is.
func TestStay(t *testing.T) {
	t.Parallel()
	change := func(kind raftpb.ConfigChangeType, replica uint64) raftpb.Entry {
		cmd, err := (&raftpb.ConfigChange{Type: kind, ReplicaID: replica}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return raftpb.Entry{Index: 7, Term: 3, Key: 5, Type: raftpb.ConfigChangeEntry, Cmd: cmd}
	}
	for _, c := range []struct {
		name  string
		entry raftpb.Entry
		empty bool
	}{
		{"removes itself", change(raftpb.RemoveNode, 2), true},
		{"removes another", change(raftpb.RemoveNode, 3), false},
		{"adds itself", change(raftpb.AddNode, 2), false},
		{"proposal", raftpb.Entry{Index: 7, Term: 3, Type: raftpb.EncodedEntry, Cmd: change(raftpb.RemoveNode, 2).Cmd}, false},
	} {
		e := c.entry
		if err := stay(&e, 2); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if e.Index != 7 || e.Term != 3 || e.IsEmpty() != c.empty || (!c.empty && e.Type != c.entry.Type) {
			t.Errorf("%s: it became %+v", c.name, e)
		}
	}
	bad := raftpb.Entry{Index: 7, Type: raftpb.ConfigChangeEntry, Cmd: []byte{0xff}}
	if err := stay(&bad, 2); !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("bytes that are no change: %v", err)
	}
}

// TestUnprovenInPebble: a log of an earlier version says what it holds and doesn't know to be committed, as it can't be told to apply it.
func TestUnprovenInPebble(t *testing.T) {
	t.Parallel()
	const acked, alone = 5, 1
	c := newTrioOf(t, 1, true)
	for range acked {
		c.commit(0, []byte("acked"), nil)
	}
	n, l := c.leader(0)
	for n == 0 {
		c.commit(0, []byte("acked"), nil)
		n, l = c.leader(0)
	}
	var others []*Host
	for o := uint64(1); o <= 3; o++ {
		if o != n {
			others = append(others, c.kill(o))
		}
	}
	p, err := l.Propose([]byte("alone"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err == nil {
		t.Fatal("an entry was committed by one of three")
	}
	for _, h := range others {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	c.close(n)
	c.open(n)
	c.start(n)
	c.mu.Lock()
	l = c.at[n][0]
	c.mu.Unlock()
	var left *replication.UnprovenError
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := l.(replication.Holding).Unapplied()
		if errors.As(err, &left) && left.Proposals == alone {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v; want %d entries that are not known to be committed", err, alone)
		}
	}
	if old, err := OldStore(filepath.Join(c.dir, fmt.Sprint(n))); err != nil || !old {
		t.Errorf("a directory of an earlier version: %v %v", old, err)
	}
	if old, err := OldStore(t.TempDir()); err != nil || old {
		t.Errorf("a new directory: %v %v", old, err)
	}
}
