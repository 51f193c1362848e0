package raft

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/lni/dragonboat/v4/raftpb"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft/journal"
)

// What a replica's own log holds can be told, and applied, without dragonboat and without the other replicas: for
// a log whose majority is gone for good while others of this host go on. Nothing is sent or heard meanwhile.

var _ replication.Keeping = (*Host)(nil)

// replayBatch is about how many bytes of entries are applied at once.
const replayBatch = 4 << 20

var errPebble = errors.New("this broker's Raft directory was made by an earlier version, with a Pebble log, which can't be looked into while the broker runs")

// End implements replication.Keeping.
func (h *Host) End(shard, replica uint64) (term, index uint64, err error) {
	s := h.store.Load()
	if s == nil {
		return 0, 0, errPebble
	}
	return endOf(s.journal, journal.Key{Shard: shard, Replica: replica})
}

// Shards implements replication.Keeping.
func (h *Host) Shards(replica uint64) (shards []uint64) {
	if s := h.store.Load(); s != nil {
		for _, key := range s.journal.Replicas() {
			if key.Replica == replica {
				shards = append(shards, key.Shard)
			}
		}
	}
	return shards
}

// endOf is the term and index of a replica's last entry; of its snapshot, where it holds none after that.
func endOf(j *journal.Journal, key journal.Key) (term, index uint64, err error) {
	known, ok := j.Status(key)
	if !ok {
		return 0, 0, nil
	}
	if known.Snapshot != nil {
		var snapshot raftpb.Snapshot
		if err := snapshot.Unmarshal(known.Snapshot); err != nil {
			return 0, 0, fmt.Errorf("decode snapshot of log %d: %w", key.Shard, err)
		}
		term, index = snapshot.Term, snapshot.Index
	}
	if known.Last < known.First || known.Last <= index {
		return term, index, nil
	}
	err = j.Read(key, known.Last, known.Last+1, func(at uint64, data []byte) (bool, error) {
		var e raftpb.Entry
		if err := e.Unmarshal(data); err != nil || e.Index != at {
			return false, undecodable(key, at, e.Index, err)
		}
		term, index = e.Term, e.Index
		return true, nil
	})
	return term, index, err
}

func undecodable(key journal.Key, at, index uint64, err error) error {
	return fmt.Errorf("entry %d of log %d can't be decoded (index %d): %w", at, key.Shard, index, errors.Join(journal.ErrDamaged, err))
}

// Replay implements replication.Keeping.
func (h *Host) Replay(ctx context.Context, shard, id uint64, sm replication.StateMachine) error {
	fail := func(err error) error { return fmt.Errorf("replay replica %d of log %d: %w", id, shard, err) }
	s := h.store.Load()
	if s == nil {
		return fail(errPebble)
	}
	if h.replica(shard) != nil {
		return fail(errors.New("it runs: close it first"))
	}
	halt, cancel := h.whileRunning(ctx)
	defer cancel()
	opened, err := sm.Open(halt)
	if err != nil {
		return fail(err)
	}
	if err := replay(s.journal, journal.Key{Shard: shard, Replica: id}, opened, sm, halt); err != nil {
		return fail(errors.Join(err, sm.Close()))
	}
	return nil
}

func replay(j *journal.Journal, key journal.Key, opened uint64, sm replication.StateMachine, halt <-chan struct{}) error {
	known, ok := j.Status(key)
	if !ok && opened > 0 {
		return fmt.Errorf("%w: state machine is at index %d, but its Raft log is gone", replication.ErrLost, opened)
	}
	if !ok || known.Last < known.First || known.Last <= opened {
		return nil
	}
	if known.First > opened+1 {
		return fmt.Errorf("%w: state machine is at index %d, but its Raft log begins with %d", replication.ErrLost, opened, known.First)
	}
	var batch []replication.Entry
	size := 0
	apply := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := sm.Apply(batch)
		batch, size = batch[:0], 0
		return err
	}
	last := opened
	err := j.Read(key, opened+1, known.Last+1, func(at uint64, data []byte) (bool, error) {
		var e raftpb.Entry
		if err := e.Unmarshal(data); err != nil || e.Index != at || at != last+1 {
			return false, undecodable(key, at, e.Index, err)
		}
		last = at
		if stopped(halt) {
			return false, replication.ErrClosed
		}
		if !e.IsUpdateEntry() {
			return true, nil
		}
		payload, err := payloadOf(&e)
		if err != nil {
			return false, fmt.Errorf("entry %d of log %d: %w", at, key.Shard, err)
		}
		batch = append(batch, replication.Entry{Index: e.Index, Data: payload})
		if size += len(payload); size >= replayBatch {
			return true, apply()
		}
		return true, nil
	})
	if err == nil {
		err = apply()
	}
	if err == nil && last != known.Last {
		err = fmt.Errorf("%w: its log ends at %d, and only entries up to %d could be read", journal.ErrDamaged, known.Last, last)
	}
	return err
}

// Ends are the ends of all logs in the directory of a host that isn't open, by shard and replica; none where the directory has the log store of
// earlier versions. The journal is opened for it as at a start.
func Ends(dir string) (_ map[replication.LogOf]replication.LogEnd, err error) {
	found, err := filepath.Glob(filepath.Join(dir, "*", "*", journalDir))
	if err != nil || len(found) != 1 {
		return nil, err
	}
	j, err := journal.Open(found[0], journal.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	ends := map[replication.LogOf]replication.LogEnd{}
	for _, key := range j.Replicas() {
		term, index, err := endOf(j, key)
		if err != nil {
			return nil, err
		}
		known, _ := j.Status(key)
		ends[replication.LogOf{Shard: key.Shard, Replica: key.Replica}] = replication.LogEnd{Term: term, Index: index, Snapshot: known.SnapshotIndex}
	}
	return ends, nil
}

// payloadOf is what was proposed. Dragonboat writes one byte before it, which says how it is encoded: 0 is plain, and nothing else is
// asked for by us.
func payloadOf(e *raftpb.Entry) ([]byte, error) {
	switch {
	case e.Type == raftpb.ApplicationEntry:
		return e.Cmd, nil
	case e.Type == raftpb.EncodedEntry && len(e.Cmd) > 0 && e.Cmd[0] == 0:
		return e.Cmd[1:], nil
	}
	return nil, fmt.Errorf("%w: an entry of type %v that this program doesn't write", journal.ErrDamaged, e.Type)
}
