package brokertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	_ "github.com/parleymq/parley/partition/storage/badger" // the engine that wrote it
)

// Alter changes the stored batch that holds an offset in the log of a stopped broker, and seals it with a new CRC, so that
// nothing about the batch itself tells.
func Alter(t testing.TB, dir string, replica uint64, offset int64) {
	t.Helper()
	if err := alter(dir, replica, offset, 1); err != nil {
		t.Fatalf("alter offset %d of replica %d in %s: %v", offset, replica, dir, err)
	}
}

// AlterOtherwise does so in another way.
func AlterOtherwise(t testing.TB, dir string, replica uint64, offset int64) {
	t.Helper()
	if err := alter(dir, replica, offset, 2); err != nil {
		t.Fatalf("alter offset %d of replica %d in %s: %v", offset, replica, dir, err)
	}
}

func alter(dir string, replica uint64, offset int64, how byte) (err error) {
	e, err := storage.OpenEngine("badger", storage.Options{Dir: filepath.Join(dir, "log", "store")})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := e.Close(); err == nil {
			err = cerr
		}
	}()
	cps, err := storage.OpenCheckpointer(filepath.Join(dir, "log", "checkpoints"), e, storage.CheckpointOptions{Logger: zerolog.Nop()})
	if err != nil {
		return err
	}
	logs, err := e.Logs()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(logs, func(id storage.LogID) bool { return id.Replica == replica })
	if at < 0 {
		return fmt.Errorf("it has %v", logs)
	}
	cp, ok := cps.Load(logs[at])
	if err := cps.Close(); err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("log %s has no checkpoint", logs[at])
	}
	s, err := e.Open(logs[at], cp.Mark)
	if err != nil {
		return err
	}
	var chunk storage.Chunk
	if err := s.Read(offset, func(c storage.Chunk) bool {
		chunk = c
		chunk.Data, chunk.Meta = bytes.Clone(c.Data), bytes.Clone(c.Meta)
		return false
	}); err != nil {
		return err
	}
	for data := chunk.Data; ; {
		b, rest, err := record.Split(data)
		if err != nil {
			return err
		}
		if b.LastOffset() < offset {
			data = rest
			continue
		}
		b[len(b)-2] ^= how // within the last record's value or headers
		binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
		break
	}
	if err := s.Mend([]storage.Chunk{chunk}, nil); err != nil {
		return err
	}
	if err := s.Settle(cp.Mark); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	return e.Sync()
}
