package replicationtest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/parleymq/parley/replication"
)

// Line is one applied entry.
type Line struct {
	Index uint64
	Data  string
}

// Disk is what a Ledger has on disk: it outlives the Ledger.
type Disk struct {
	mu    sync.Mutex
	lines []Line
}

// Lines is what is durable.
func (d *Disk) Lines() []Line {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

// Ledger is a state machine that writes down each entry, in order. The result of an entry is
// its place in the ledger, from 1, and its data. It checks what a state
// machine is promised, and keeps the first broken promise for Broken.
type Ledger struct {
	Disk *Disk

	mu        sync.Mutex
	lines     []Line
	opened    bool
	closed    bool
	applying  bool
	reapplied int // lines applied since Open
	recovered int // snapshots taken in
	broken    error
}

// NewLedger returns a ledger that opens at what d holds; nil is an empty disk.
func NewLedger(d *Disk) *Ledger {
	if d == nil {
		d = new(Disk)
	}
	return &Ledger{Disk: d}
}

func (l *Ledger) promise(ok bool, format string, args ...any) {
	if !ok && l.broken == nil {
		l.broken = fmt.Errorf(format, args...)
	}
}

// Open implements replication.StateMachine.
func (l *Ledger) Open(<-chan struct{}) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promise(!l.opened, "Open was called twice")
	l.opened = true
	l.lines = l.Disk.Lines()
	return l.last(), nil
}

func (l *Ledger) last() uint64 {
	if len(l.lines) == 0 {
		return 0
	}
	return l.lines[len(l.lines)-1].Index
}

// Apply implements replication.StateMachine.
func (l *Ledger) Apply(entries []replication.Entry) error {
	l.mu.Lock()
	l.promise(!l.applying, "Apply was called beside itself or a snapshot")
	l.promise(l.opened && !l.closed, "Apply was called before Open or after Close")
	l.promise(len(entries) > 0, "Apply was called without entries")
	l.applying = true
	l.mu.Unlock()
	defer l.done()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		l.promise(e.Index > l.last(), "entry %d came after entry %d", e.Index, l.last())
		l.lines = append(l.lines, Line{e.Index, string(e.Data)})
		l.reapplied++
		e.Result = replication.Result{Value: uint64(len(l.lines)), Data: slices.Clone(e.Data)}
	}
	return nil
}

func (l *Ledger) done() {
	l.mu.Lock()
	l.applying = false
	l.mu.Unlock()
}

// Sync implements replication.StateMachine.
func (l *Ledger) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promise(l.opened && !l.closed, "Sync was called before Open or after Close")
	l.Disk.mu.Lock()
	l.Disk.lines = slices.Clone(l.lines)
	l.Disk.mu.Unlock()
	return nil
}

// PrepareSnapshot implements replication.StateMachine.
func (l *Ledger) PrepareSnapshot() (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promise(!l.applying, "PrepareSnapshot was called beside Apply")
	return slices.Clone(l.lines), nil
}

// SaveSnapshot implements replication.StateMachine.
func (l *Ledger) SaveSnapshot(point any, w io.Writer, _ <-chan struct{}) error {
	data, err := json.Marshal(point)
	if err != nil {
		return err
	}
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(data)))
	if _, err := w.Write(size[:]); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// RecoverFromSnapshot implements replication.StateMachine.
func (l *Ledger) RecoverFromSnapshot(r io.Reader, _ <-chan struct{}) error {
	var size [8]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	data := make([]byte, binary.BigEndian.Uint64(size[:]))
	if _, err := io.ReadFull(r, data); err != nil {
		return err
	}
	var lines []Line
	if err := json.Unmarshal(data, &lines); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promise(!l.applying, "RecoverFromSnapshot was called beside Apply")
	l.lines = lines
	l.recovered++
	l.Disk.mu.Lock()
	l.Disk.lines = slices.Clone(lines)
	l.Disk.mu.Unlock()
	return nil
}

// Close implements replication.StateMachine.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promise(!l.closed, "Close was called twice")
	l.promise(!l.applying, "Close was called beside Apply")
	l.closed = true
	return nil
}

// Crash implements memlog.Crasher: what wasn't synced is gone.
func (l *Ledger) Crash() replication.StateMachine {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return NewLedger(l.Disk)
}

// Lines is what was applied, in order.
func (l *Ledger) Lines() []Line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Applied counts the entries that came since Open, Recovered the snapshots.
func (l *Ledger) Applied() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reapplied
}

// Recovered counts the snapshots that were taken in.
func (l *Ledger) Recovered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recovered
}

// Closed tells whether Close was called.
func (l *Ledger) Closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// Broken is the first promise to a state machine that was not kept.
func (l *Ledger) Broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}
