package partition

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
)

// faultyEngine is an engine whose stores fail when they are told to.
type faultyEngine struct {
	storage.Engine
	append, read atomic.Pointer[error]
}

type faultyStore struct {
	storage.Store
	e *faultyEngine
}

func (e *faultyEngine) Open(id storage.LogID, m storage.Mark) (storage.Store, error) {
	s, err := e.Engine.Open(id, m)
	if err != nil {
		return nil, err
	}
	return faultyStore{s, e}, nil
}

func (s faultyStore) Append(chunks []storage.Chunk, index []storage.IndexEntry) error {
	if err := s.e.append.Load(); err != nil {
		return *err
	}
	return s.Store.Append(chunks, index)
}

func (s faultyStore) Read(offset int64, visit func(storage.Chunk) bool) error {
	if err := s.e.read.Load(); err != nil {
		return *err
	}
	return s.Store.Read(offset, visit)
}

var errDisk = errors.New("disk on fire")

// TestFailedAppendIsNeverCheckpointed: what could not be stored must not become
// durable by a round that runs before the process is gone, or the log's entries
// would be cut although nobody else has the records.
func TestFailedAppendIsNeverCheckpointed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := &faultyEngine{Engine: memoryEngine(t, dir)}
	m, cp := openMachine(t, e, dir)
	one := itemOf(t, -1, record.NoProducer, nil, "v")
	m.do(t, 1, command(commandHeader{kind: kindStart, term: 1}))
	m.do(t, 2, command(commandHeader{kind: kindAppend, term: 1, counter: 1}, one))
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	e.append.Store(&errDisk)
	lost := []replication.Entry{{Index: 3, Data: command(commandHeader{kind: kindAppend, term: 1, counter: 2}, one)}}
	if err := m.Apply(lost); !errors.Is(err, errDisk) {
		t.Fatalf("apply: %v", err)
	}
	if err := m.Sync(); !errors.Is(err, errDisk) {
		t.Errorf("sync after an append that failed: %v: the log would be cut at an entry that is not stored", err)
	}
	if c, ok := cp.Load(m.id); !ok || c.Index != 2 || c.Mark.Next != 1 {
		t.Errorf("checkpoint %+v (%v), want the one of entry 2", c, ok)
	}
	e.append.Store(nil)
	if err := m.Apply(lost); !errors.Is(err, errDisk) {
		t.Errorf("apply after an apply that failed: %v", err)
	}
}

// TestOpenAfterFailedOpen: an open that failed lets go of the log.
func TestOpenAfterFailedOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := &faultyEngine{Engine: memoryEngine(t, dir)}
	m, cp := openMachine(t, e, dir)
	m.do(t, 1, command(commandHeader{kind: kindStart, term: 1}))
	m.do(t, 2, command(commandHeader{kind: kindAppend, term: 1, counter: 1}, itemOf(t, -1, record.NoProducer, nil, "v")))
	if err := errors.Join(m.Sync(), m.Close()); err != nil {
		t.Fatal(err)
	}
	e.read.Store(&errDisk)
	again := newMachine(&Config{Log: m.id, Engine: e, Checkpoints: cp})
	if _, err := again.Open(nil); !errors.Is(err, errDisk) {
		t.Fatalf("open: %v", err)
	}
	e.read.Store(nil)
	if index, err := newMachine(&Config{Log: m.id, Engine: e, Checkpoints: cp}).Open(nil); err != nil || index != 2 {
		t.Fatalf("open again: %d, %v", index, err)
	}
}
