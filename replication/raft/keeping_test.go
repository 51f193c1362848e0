package raft

import (
	"errors"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"

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
