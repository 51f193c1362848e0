package raft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
)

// A replica's Raft log begins behind its newest cut. A state machine that is
// durable only up to a point before it (its files were restored from a backup, or
// lost) can't go on: dragonboat panics, in a goroutine of its own. So the cut is looked up
// before, and the start of this one replica fails instead.
//
// Dragonboat keeps a note of each cut in
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
		return 0, fmt.Errorf("%w: the note of the newest cut in %s is damaged", ErrForeignDirectory, in)
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
