package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/statemachine"

	"github.com/parleymq/parley/replication"
)

// machine is a replication.StateMachine as dragonboat wants it. It was opened by Host.Start
// already, so that a state machine that won't open costs its replica and not the
// process.
type machine struct {
	sm      replication.StateMachine
	opened  uint64
	fatal   func(error)
	warn    func(event string, err error)
	grown   func(size int64) // tells what was applied
	limits  cutLimits
	applied atomic.Uint64
	closed  chan struct{}
	err     error // of Close; read after closed

	pace func(stop <-chan struct{}, n int) bool // nil: snapshots are not held up

	entries []replication.Entry // reused by Update

	// Applied since the last cut.
	bytes atomic.Int64
	count atomic.Int64
	seed  atomic.Int64 // bytes that may have been applied before the start

	host    *Host // nil in tests of its own
	backlog backlog
}

// entryOverhead is what an entry takes beside its bytes, in the journal and in its index in memory: the limits of
// what isn't cut bound both.
const entryOverhead = 128

type cutLimits struct {
	bytes int64
	count int64
}

func newMachine(sm replication.StateMachine, opened uint64, limits cutLimits, fatal func(error), warn func(string, error), grown func(int64)) *machine {
	m := &machine{sm: sm, opened: opened, fatal: fatal, warn: warn, grown: grown, limits: limits, closed: make(chan struct{})}
	m.applied.Store(opened)
	return m
}

// Open implements statemachine.IOnDiskStateMachine.
func (m *machine) Open(<-chan struct{}) (uint64, error) { return m.opened, nil }

// Update implements statemachine.IOnDiskStateMachine.
func (m *machine) Update(in []statemachine.Entry) ([]statemachine.Entry, error) {
	if cap(m.entries) < len(in) {
		m.entries = make([]replication.Entry, len(in))
	}
	entries := m.entries[:len(in)]
	size := 0
	for i := range in {
		entries[i] = replication.Entry{Index: in[i].Index, Data: in[i].Cmd}
		size += len(in[i].Cmd) + entryOverhead
	}
	if err := m.sm.Apply(entries); err != nil {
		err = fmt.Errorf("apply entries %d to %d: %w", in[0].Index, in[len(in)-1].Index, err)
		m.fatal(err)
		return nil, err
	}
	for i := range in {
		in[i].Result = statemachine.Result{Value: entries[i].Result.Value, Data: entries[i].Result.Data}
		entries[i] = replication.Entry{}
	}
	m.applied.Store(in[len(in)-1].Index)
	m.bytes.Add(int64(size))
	m.count.Add(int64(len(in)))
	m.grown(int64(size))
	return in, nil
}

// Lookup implements statemachine.IOnDiskStateMachine. Reads don't go through here.
func (m *machine) Lookup(any) (any, error) {
	return nil, errors.New("look up: a log answers no queries")
}

// Sync implements statemachine.IOnDiskStateMachine.
func (m *machine) Sync() error {
	if err := m.sm.Sync(); err != nil {
		err = fmt.Errorf("sync state machine: %w", err)
		m.fatal(err)
		return err
	}
	return nil
}

// A streamed snapshot is the state machine's own bytes behind 8 bytes of the
// index that it stands for, which dragonboat doesn't tell a state machine.
type snapshotPoint struct {
	index uint64
	point any
}

// PrepareSnapshot implements statemachine.IOnDiskStateMachine.
func (m *machine) PrepareSnapshot() (any, error) {
	point, err := m.sm.PrepareSnapshot()
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	return snapshotPoint{index: m.applied.Load(), point: point}, nil
}

// SaveSnapshot implements statemachine.IOnDiskStateMachine. An error gives up this
// one stream: the follower asks again.
func (m *machine) SaveSnapshot(point any, w io.Writer, stop <-chan struct{}) error {
	p := point.(snapshotPoint)
	var index [8]byte
	binary.BigEndian.PutUint64(index[:], p.index)
	_, err := w.Write(index[:])
	if err == nil {
		if m.pace != nil {
			w = pacedWriter{w, m.pace, stop}
		}
		err = m.sm.SaveSnapshot(p.point, w, stop)
	}
	switch {
	case err == nil:
		return nil
	case stopped(stop):
		return statemachine.ErrSnapshotStopped
	default:
		m.warn("raft snapshot was not sent", err)
		if w, ok := m.sm.(replication.Warned); ok {
			w.SnapshotFailed(err)
		}
		return statemachine.ErrSnapshotStreaming
	}
}

// pacedWriter holds a snapshot up.
type pacedWriter struct {
	next io.Writer
	pace func(stop <-chan struct{}, n int) bool
	stop <-chan struct{}
}

func (w pacedWriter) Write(b []byte) (int, error) {
	if !w.pace(w.stop, len(b)) {
		return 0, statemachine.ErrSnapshotStopped
	}
	return w.next.Write(b)
}

// RecoverFromSnapshot implements statemachine.IOnDiskStateMachine.
func (m *machine) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	if m.host != nil {
		m.host.beginRestore(m)
		defer m.host.endRestore(m)
	}
	var index [8]byte
	_, err := io.ReadFull(r, index[:])
	if err == nil {
		err = m.sm.RecoverFromSnapshot(r, stop)
	}
	if err == nil {
		m.applied.Store(binary.BigEndian.Uint64(index[:]))
		return nil
	}
	if stopped(stop) {
		return statemachine.ErrSnapshotStopped
	}
	err = fmt.Errorf("recover from snapshot: %w", err)
	m.fatal(err)
	return err
}

// Close implements statemachine.IOnDiskStateMachine.
func (m *machine) Close() error {
	m.err = m.sm.Close()
	close(m.closed)
	return nil
}

func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}
