package raft

import (
	"fmt"
	"os"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication"
)

// Dragonboat starts a replica under a lock that its ticks and its step workers need too, and
// within it writes the replica's bootstrap record and makes its directory: an
// fsync each, or three. While many are started one after another, those that
// run already miss their ticks, and elect. Made beforehand, side by side, both cost a
// look (ADR 0106). Where it ends in between, the next start finds what was made.

// snapshotParts is how many directories dragonboat spreads replicas' over.
const snapshotParts = 512

// snapshotDir is where dragonboat keeps a replica's snapshots.
func (h *Host) snapshotDir(fsys vfs.FS, shard, replica uint64) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	return fsys.PathJoin(h.config.Dir, host, fmt.Sprintf("%020d", h.config.Deployment),
		fmt.Sprintf("snapshot-part-%d", shard%snapshotParts), fmt.Sprintf("snapshot-%d-%d", shard, replica)), nil
}

// prepare makes what dragonboat would make as it starts the replica.
func (h *Host) prepare(r replication.Replica, members map[uint64]string, known bool) error {
	store := h.store.Load()
	if known || store == nil {
		return nil // it is there, or dragonboat's own store makes it
	}
	fsys := vfs.Default
	if h.config.FS != nil {
		fsys = h.config.FS
	}
	dir, err := h.snapshotDir(fsys, r.Shard, r.Replica)
	if err != nil {
		return err
	}
	// In this order, as dragonboat does: the record says that the replica exists.
	if err := store.SaveBootstrapInfo(r.Shard, r.Replica, raftpb.NewBootstrapInfo(r.Join, raftpb.OnDiskStateMachine, members)); err != nil {
		return err
	}
	if err := makeDir(fsys, dir); err != nil {
		return fmt.Errorf("make directory of log %d: %w", r.Shard, err)
	}
	return nil
}
