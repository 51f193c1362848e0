package raft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication"
)

// A replica's Raft log begins behind its newest cut. A state machine that is
// durable only up to a point before it (its files were restored from a backup, or
// lost) can't go on: dragonboat panics, in a goroutine of its own. So the cut is looked up
// before, and the start of this one replica fails instead.
//
// With our own journal its record of the cut says so. In a directory with a Pebble log, which can't be asked, it is
// a note that dragonboat keeps of each cut in
//
//	dir/<host name>/<deployment>/snapshot-part-<n>/snapshot-<shard>-<replica>/snapshot-<index, hex>/snapshot.metadata
//
// in the format of its status file. Cuts have Dummy set; a snapshot that was received has
// not, and is handed to the state machine again when that lags behind it.

// cutAt is the index that a state machine must at least be at, 0 for any.
func cutAt(fsys vfs.FS, dir, deployment string, shard, replica uint64) (uint64, error) {
	host, err := os.Hostname()
	if err != nil {
		return 0, err
	}
	base := fsys.PathJoin(dir, host, deployment)
	parts, err := list(fsys, base)
	if err != nil {
		return 0, err
	}
	newest, in := uint64(0), ""
	for _, part := range parts {
		if !strings.HasPrefix(part, "snapshot-part-") {
			continue
		}
		at := fsys.PathJoin(base, part, fmt.Sprintf("snapshot-%d-%d", shard, replica))
		cuts, err := list(fsys, at)
		if err != nil {
			return 0, err
		}
		for _, cut := range cuts {
			hex, ok := strings.CutPrefix(cut, "snapshot-")
			index, err := strconv.ParseUint(hex, 16, 64)
			if ok && err == nil && index > newest { // others are being made, or received
				newest, in = index, fsys.PathJoin(at, cut)
			}
		}
	}
	if newest == 0 {
		return 0, nil
	}
	f, err := fsys.Open(fsys.PathJoin(in, "snapshot.metadata"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // it was received by a version that wrote none; dragonboat knows
	}
	if err != nil {
		return 0, err
	}
	data, err := io.ReadAll(f)
	_ = f.Close()
	var note raftpb.Snapshot
	if err != nil || len(data) < 8 || !bytes.Equal(data[:8], statusHash(data[8:])) || note.Unmarshal(data[8:]) != nil {
		return 0, fmt.Errorf("%w: the note of the newest cut in %s is damaged: ask for a fresh replica id", replication.ErrLost, in)
	}
	if !note.Dummy {
		return 0, nil
	}
	return note.OnDiskIndex, nil
}

// list is the names in a directory, none when it is missing.
func list(fsys vfs.FS, dir string) ([]string, error) {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

func (h *Host) cutAt(shard, replica uint64) (uint64, error) {
	if store := h.store.Load(); store != nil {
		// Our own journal has the record that dragonboat goes by. The files of a cut are not needed then, whatever becomes of them.
		cut, err := store.GetSnapshot(shard, replica)
		if err != nil || !cut.Dummy {
			return 0, err
		}
		return cut.OnDiskIndex, nil
	}
	fsys := vfs.Default
	if h.config.FS != nil {
		fsys = h.config.FS
	}
	index, err := cutAt(fsys, h.config.Dir, fmt.Sprintf("%020d", h.config.Deployment), shard, replica)
	if err != nil {
		return 0, fmt.Errorf("look up the newest cut: %w", err)
	}
	return index, nil
}

// checkEnd stops a replica whose log has lost its end: entries that were applied before are not in
// it. It may have voted on the strength of them, so it must not take part again. Nobody has
// heard of it yet, and it has heard nobody: see screen.
func (h *Host) checkEnd(p *replica, sm replication.StateMachine, opened uint64) error {
	reaching, ok := sm.(replication.Reaching)
	if !ok {
		return nil
	}
	reach := reaching.Reach()
	if reach == 0 {
		return nil
	}
	reach = max(reach, opened)
	log, err := h.nh.GetLogReader(p.Shard)
	if err != nil {
		err = fmt.Errorf("look at the end of the Raft log: %w", sentinel(err))
	} else if _, last := log.GetRange(); last < reach {
		err = fmt.Errorf("%w: entries up to %d were applied, and its Raft log ends at %d: ask for a fresh replica id", replication.ErrLost, reach, last)
	}
	if err == nil {
		return nil
	}
	if stopErr := h.nh.StopReplica(p.Shard, p.Replica.Replica); stopErr != nil {
		return errors.Join(err, fmt.Errorf("stop it: %w", sentinel(stopErr)))
	}
	<-p.machine.closed
	return err
}

// screen drops messages to replicas that are being started: one whose log turns out to have lost
// its end must not have answered anything.
func (h *Host) screen(batch *raftpb.MessageBatch) {
	if h.checking.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	batch.Requests = slices.DeleteFunc(batch.Requests, func(m raftpb.Message) bool {
		p := h.replicas[m.ShardID]
		return p != nil && !p.launched
	})
}
