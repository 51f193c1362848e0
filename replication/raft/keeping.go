package raft

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft/journal"
)

// A log whose majority is gone for good is opened once more with Config.KeepAll: the commit index that the
// store tells dragonboat is the log's last index. It is what the group would have come to had this replica
// been elected, with all others behind it: entries of one replica's log are always a beginning of
// some leader's.

// stay makes nothing of an entry that removes the replica itself: dragonboat would stop it there, and what
// comes after would not be applied.
func stay(e *raftpb.Entry, replica uint64) error {
	if e.Type != raftpb.ConfigChangeEntry {
		return nil
	}
	var change raftpb.ConfigChange
	if err := change.Unmarshal(e.Cmd); err != nil {
		return fmt.Errorf("entry %d can't be decoded as a change of members: %w", e.Index, errors.Join(journal.ErrDamaged, err))
	}
	if change.Type == raftpb.RemoveNode && change.ReplicaID == replica {
		*e = raftpb.Entry{Index: e.Index, Term: e.Term}
	}
	return nil
}

var _ replication.Holding = (*replica)(nil)

// Unapplied implements replication.Holding.
func (p *replica) Unapplied() (uint64, error) {
	s := p.h.store.Load()
	if s == nil {
		return 0, p.unproven()
	}
	key := journal.Key{Shard: p.Shard, Replica: p.Replica.Replica}
	known, ok := s.journal.Status(key)
	applied := p.Applied()
	if !ok || known.Last < known.First || known.Last <= applied {
		return 0, nil
	}
	last := uint64(0)
	err := s.journal.Read(key, max(applied+1, known.First), known.Last+1, func(index uint64, data []byte) (bool, error) {
		var e raftpb.Entry
		if err := e.Unmarshal(data); err != nil || e.Index != index {
			return false, fmt.Errorf("entry %d of log %d can't be decoded (index %d): %w", index, p.Shard, e.Index, errors.Join(journal.ErrDamaged, err))
		}
		if e.IsUpdateEntry() {
			last = index
		}
		return true, nil
	})
	if err != nil {
		return 0, fmt.Errorf("look for what is not applied: %w", err)
	}
	return last, nil
}

// unprovenBytes is how much of a Pebble log is read at once.
const unprovenBytes = 8 << 20

// unproven counts what a Pebble log holds beyond what is applied. Dragonboat's own store can't be told another commit index.
func (p *replica) unproven() error {
	log, err := p.h.nh.GetLogReader(p.Shard)
	if err != nil {
		return fmt.Errorf("look for what is not applied: %w", err)
	}
	first, last := log.GetRange()
	found := replication.UnprovenError{}
	for at := max(first, p.Applied()+1); at <= last; {
		entries, err := log.Entries(at, last+1, unprovenBytes)
		if err != nil || len(entries) == 0 {
			return fmt.Errorf("look for what is not applied: read entries of log %d from %d: %w", p.Shard, at, cmp.Or(err, journal.ErrDamaged))
		}
		for i := range entries {
			if entries[i].IsUpdateEntry() {
				found.Proposals++
				found.Last = entries[i].Index
			}
		}
		at = entries[len(entries)-1].Index + 1
	}
	if found.Proposals > 0 {
		return &found
	}
	return nil
}

// OldStore says whether a Raft directory has the log store of earlier versions.
func OldStore(dir string) (bool, error) {
	ours, err := keepsJournal(vfs.Default, dir)
	return !ours, err
}
