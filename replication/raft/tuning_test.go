package raft

import (
	"path/filepath"
	"testing"

	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication"
)

// TestQueuesAreShort: dragonboat's lengths are where they are looked for.
func TestQueuesAreShort(t *testing.T) {
	t.Parallel()
	for i, q := range queueLengths {
		if *q.of != q.new {
			t.Errorf("length %d is %d, want %d: dragonboat keeps it elsewhere, or its default is not %d any more", i, *q.of, q.new, q.was)
		}
	}
}

// TestPreparedDirectory: what is made before a start is what dragonboat would have made.
func TestPreparedDirectory(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	h := mustHost(t, c)
	shard := uint64(3*snapshotParts + 17)
	l, err := h.Start(t.Context(), replication.Replica{Shard: shard, Replica: 5, Initial: map[uint64]string{5: "x"}}, discard{})
	if err != nil {
		t.Fatal(err)
	}
	waitLead(t, l)
	dir, err := h.snapshotDir(vfs.Default, shard, 5)
	if err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(c.Dir, "*", "*", "snapshot-part-*", "*"))
	if err != nil || len(made) != 1 || made[0] != dir {
		t.Errorf("directories of replicas: %v, %v; want only %s", made, err, dir)
	}
}
