package raft

import (
	"sync/atomic"

	"github.com/lni/dragonboat/v4/raftpb"
)

// A replica whose state machine takes a snapshot applies nothing meanwhile, but goes on
// taking entries into its log. Beyond MaxUnapplied dragonboat would have its leader
// refuse proposals, for the sake of a follower that nobody waits for. A state machine that
// fetches what it lacks may be at it for minutes. So what comes for it beyond half of
// that is dropped here, as a network might: the leader sends it again afterwards, or
// another snapshot. The same goes for all entries of others while the disk is almost full: whoever
// leads has refused publishes by then if its own is.
type restoring struct {
	replicas atomic.Int32 // that take a snapshot now; 0: there is nothing to look at
	dropped  atomic.Uint64
	taken    atomic.Uint64 // snapshots
}

// backlog of one replica.
type backlog struct {
	taking atomic.Bool
	bytes  atomic.Int64 // of entries that came since the snapshot began
}

func (h *Host) beginRestore(m *machine) {
	m.backlog.bytes.Store(0)
	m.backlog.taking.Store(true)
	h.restoring.replicas.Add(1)
}

func (h *Host) endRestore(m *machine) {
	m.backlog.taking.Store(false)
	h.restoring.taken.Add(1)
	h.restoring.replicas.Add(-1)
}

// spare takes entries out of a batch of messages that are too much for their replicas now.
func (h *Host) spare(batch *raftpb.MessageBatch) {
	full := h.config.NoRoom != nil && h.config.NoRoom()
	if h.restoring.replicas.Load() == 0 && !full {
		return
	}
	kept := batch.Requests[:0]
	for i := range batch.Requests {
		msg := &batch.Requests[i]
		if msg.Type == raftpb.Replicate && len(msg.Entries) > 0 && (full || h.tooMuch(msg)) {
			h.restoring.dropped.Add(1)
			continue
		}
		kept = append(kept, *msg)
	}
	batch.Requests = kept
}

func (h *Host) tooMuch(msg *raftpb.Message) bool {
	h.mu.Lock()
	p := h.replicas[msg.ShardID]
	launched := p != nil && p.launched
	h.mu.Unlock()
	if !launched || !p.machine.backlog.taking.Load() {
		return false
	}
	size := int64(0)
	for i := range msg.Entries {
		size += int64(len(msg.Entries[i].Cmd))
	}
	return p.machine.backlog.bytes.Add(size) > int64(h.config.MaxUnapplied)/2
}
