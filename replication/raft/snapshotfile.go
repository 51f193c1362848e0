package raft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft/journal"
)

// A snapshot that a replica has received lies in a file until its state machine has taken it. Dragonboat opens that file at each
// start, needed or not, in a goroutine of its own, and panics where it is damaged or gone: the broker would end for the sake of one
// replica. So
//
//   - what the state machine has taken already is told to dragonboat as a cut, of which it opens nothing: store.GetSnapshot;
//   - a file that is still needed is verified here, before the replica starts. It can't be had again: the log
//     begins behind it. A replica without it is replaced.
//
// The file: length of the header (uint64, little-endian), header (protobuf), its CRC-32 (of one that was streamed; else that is in the
// header, of what it is without it, and so is one of the blocks' CRCs), zeros up to 1024 bytes, then blocks of up to 2 MiB with a CRC-32 behind each, the length of all of them (uint64) and
// 8 bytes of a magic number.
const (
	snapshotHeader = 1024
	snapshotBlock  = 2 << 20
	snapshotTail   = 16
	// snapshotShrunk is the block of a snapshot that was taken: dragonboat keeps no more of it.
	snapshotShrunk = 16 + 4
)

var snapshotMagic = []byte{0x3F, 0x5B, 0xCB, 0xF1, 0xFA, 0xBA, 0x81, 0x9F}

// checkSnapshot verifies the snapshot that a replica has yet to take, if there is one. opened is what its state machine has.
func (h *Host) checkSnapshot(shard, replica, opened uint64) error {
	store := h.store.Load()
	if store == nil {
		return nil
	}
	fsys := vfs.Default
	if h.config.FS != nil {
		fsys = h.config.FS
	}
	store.taken.Store(journal.Key{Shard: shard, Replica: replica}, opened)
	ss, err := store.GetSnapshot(shard, replica)
	if err != nil || raftpb.IsEmptySnapshot(ss) || ss.Dummy || ss.Witness || ss.OnDiskIndex <= opened {
		return err
	}
	dir, err := h.snapshotDir(fsys, shard, replica)
	if err != nil {
		return err
	}
	name := fsys.PathJoin(dir, fmt.Sprintf("snapshot-%016X", ss.Index), fmt.Sprintf("snapshot-%016X.gbsnap", ss.Index))
	if err := verifySnapshot(fsys, name); err != nil {
		return fmt.Errorf("%w: it has yet to take a snapshot up to entry %d, and %s can't be read: %w: ask for a fresh replica id", replication.ErrLost, ss.OnDiskIndex, name, err)
	}
	return nil
}

var (
	errSnapshotDamaged = errors.New("it is damaged")
	errSnapshotTaken   = errors.New("it was taken once, and what it held is gone: the state machine has lost what it had since")
)

func verifySnapshot(fsys vfs.FS, name string) error {
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(f, head); err != nil {
		return fmt.Errorf("%w: it ends within its header", errSnapshotDamaged)
	}
	size := binary.LittleEndian.Uint64(head)
	if size > snapshotHeader-8-4 {
		return fmt.Errorf("%w: its header", errSnapshotDamaged)
	}
	data, sum := head[8:8+size], head[8+size:8+size+4]
	var header raftpb.SnapshotHeader
	if header.Unmarshal(data) != nil || header.Version != 2 || header.ChecksumType != raftpb.CRC32IEEE || !allZero(head[8+size+4:]) {
		return fmt.Errorf("%w: its header", errSnapshotDamaged)
	}
	// As it was written: what else a parser makes the same of isn't.
	if b, err := header.Marshal(); err != nil || !bytes.Equal(b, data) {
		return fmt.Errorf("%w: its header", errSnapshotDamaged)
	}
	if allZero(sum) {
		bare := header
		bare.HeaderChecksum = nil
		var err error
		if data, err = bare.Marshal(); err != nil {
			return fmt.Errorf("%w: its header: %w", errSnapshotDamaged, err)
		}
		sum = header.HeaderChecksum
	}
	if !bytes.Equal(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(data)), sum) {
		return fmt.Errorf("%w: its header", errSnapshotDamaged)
	}
	left := info.Size() - snapshotHeader - snapshotTail
	if left < 0 {
		return fmt.Errorf("%w: it is cut off", errSnapshotDamaged)
	}
	if left == snapshotShrunk {
		return errSnapshotTaken
	}
	total, sums := left, crc32.NewIEEE()
	block := make([]byte, min(left, snapshotBlock+4))
	for left > 0 {
		b := block[:min(left, snapshotBlock+4)]
		if _, err := io.ReadFull(f, b); err != nil {
			return err
		}
		end := len(b) - 4
		if end < 1 || crc32.ChecksumIEEE(b[:end]) != binary.BigEndian.Uint32(b[end:]) {
			return fmt.Errorf("%w: the block at byte %d", errSnapshotDamaged, snapshotHeader+total-left)
		}
		_, _ = sums.Write(b[end:]) // never fails
		left -= int64(len(b))
	}
	tail := make([]byte, snapshotTail)
	if _, err := io.ReadFull(f, tail); err != nil {
		return err
	}
	if int64(binary.LittleEndian.Uint64(tail)) != total || !bytes.Equal(tail[8:], snapshotMagic) {
		return fmt.Errorf("%w: its end", errSnapshotDamaged)
	}
	if !allZero(header.PayloadChecksum) && !bytes.Equal(sums.Sum(nil), header.PayloadChecksum) {
		return fmt.Errorf("%w: its blocks are not what its header says", errSnapshotDamaged)
	}
	return nil
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
