package raft

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft/journal"
	"github.com/parleymq/parley/replication/replicationtest"
)

// snapshotBytes is a snapshot file as dragonboat writes it, streamed or saved.
func snapshotBytes(t *testing.T, payload []byte, streamed bool) []byte {
	t.Helper()
	var blocks, sums []byte
	for len(payload) > 0 {
		n := min(len(payload), snapshotBlock)
		blocks = append(blocks, payload[:n]...)
		blocks = binary.BigEndian.AppendUint32(blocks, crc32.ChecksumIEEE(payload[:n]))
		sums = append(sums, blocks[len(blocks)-4:]...)
		payload = payload[n:]
	}
	sum := func(b []byte) []byte { return binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	header := raftpb.SnapshotHeader{UnreliableTime: 1, PayloadChecksum: make([]byte, 4), ChecksumType: raftpb.CRC32IEEE, Version: 2}
	if !streamed {
		header.PayloadChecksum = sum(sums)
	}
	data, err := header.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var behind []byte
	if streamed {
		behind = sum(data)
	} else {
		header.HeaderChecksum = sum(data)
		if data, err = header.Marshal(); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, snapshotHeader)
	binary.LittleEndian.PutUint64(b, uint64(len(data)))
	copy(b[8:], append(data, behind...))
	b = append(b, blocks...)
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(blocks))), snapshotMagic...)
}

// Each byte of a snapshot file counts.
func TestSnapshotFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "snapshot")
	check := func(b []byte) error {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return verifySnapshot(vfs.Default, path)
	}
	long := make([]byte, 2*snapshotBlock+100)
	for _, streamed := range []bool{true, false} {
		for _, payload := range [][]byte{make([]byte, 17), long, long[:2*snapshotBlock]} {
			if err := check(snapshotBytes(t, payload, streamed)); err != nil {
				t.Errorf("%d bytes, streamed %v: %v", len(payload), streamed, err)
			}
		}
		if err := check(snapshotBytes(t, make([]byte, 16), streamed)); !errors.Is(err, errSnapshotTaken) {
			t.Errorf("one that was taken: %v", err)
		}
		whole := snapshotBytes(t, []byte("17 bytes, I think"), streamed)
		for at := 0; at < len(whole); at += 1 + at/100 {
			bad := append([]byte(nil), whole...)
			bad[at] ^= 1 << (at % 8)
			if err := check(bad); err == nil {
				t.Fatalf("a bit of byte %d is turned, streamed %v: no error", at, streamed)
			}
			if err := check(whole[:at]); err == nil {
				t.Fatalf("cut at %d, streamed %v: no error", at, streamed)
			}
		}
	}
}

// A replica whose state machine has yet to take a snapshot doesn't start without that file; one that has taken it starts
// whatever became of it, and the broker isn't ended by either.
func TestSnapshotFileIsDamaged(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	h, err := NewHost(c)
	if err != nil {
		t.Fatal(err)
	}
	r := replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address()}}
	ledger := replicationtest.NewLedger(nil)
	l := mustLead(t, h, ledger)
	for range 10 {
		mustPropose(t, l, "x")
	}
	last := l.Applied()
	if err := ledger.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// As if all of it had been received.
	known, _ := h.store.Load().journal.Status(journal.Key{Shard: 1, Replica: 1})
	ss := raftpb.Snapshot{Index: last, Term: known.State.Term, ShardID: 1, Type: raftpb.OnDiskStateMachine, OnDiskIndex: last,
		Membership: raftpb.Membership{ConfigChangeId: 1, Addresses: map[uint64]string{1: target(1, 1)}}}
	if err := h.store.Load().SaveSnapshots([]raftpb.Update{{ShardID: 1, ReplicaID: 1, Snapshot: ss}}); err != nil {
		t.Fatal(err)
	}
	behind := replicationtest.NewLedger(nil)
	if _, err := h.Start(t.Context(), r, behind); !errors.Is(err, replication.ErrLost) {
		t.Fatalf("a snapshot that is needed is gone: %v", err)
	}
	again, err := h.Start(t.Context(), r, replicationtest.NewLedger(ledger.Disk))
	if err != nil {
		t.Fatalf("one that isn't needed is gone: %v", err)
	}
	waitLead(t, again)
	mustPropose(t, again, "still here")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// The host's id is dragonboat's alone.
	if err := os.WriteFile(filepath.Join(c.Dir, hostIDFile), []byte("what is this?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err = NewHost(c); err != nil {
		t.Fatalf("the host's id is damaged: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}
