// Package memory is a storage engine without a disk, for tests and
// simulations. It keeps the promises of the seam including the weak one: what
// was not synced is lost when the power is cut (Crash).
//
// The content lives in a Disk, which outlives the engine as a directory would.
// OpenEngine("memory", Options{Dir}) uses one Disk per directory name within
// the process.
package memory

import (
	"fmt"
	"sort"
	"sync"

	"github.com/parleymq/parley/partition/storage"
)

func init() {
	storage.Register("memory", func(o storage.Options) (storage.Engine, error) { return diskOf(o.Dir).Open() })
}

var disks = struct {
	sync.Mutex
	byDir map[string]*Disk
}{byDir: make(map[string]*Disk)}

func diskOf(dir string) *Disk {
	if dir == "" {
		return NewDisk()
	}
	disks.Lock()
	defer disks.Unlock()
	d := disks.byDir[dir]
	if d == nil {
		d = NewDisk()
		disks.byDir[dir] = d
	}
	return d
}

// A Disk keeps what engines store, as a directory does.
type Disk struct {
	mu      sync.Mutex
	durable map[storage.LogID]content // as of the newest Sync
	cached  map[storage.LogID]content // what a clean close or a killed process leaves
	engine  *Engine
}

// NewDisk returns an empty disk.
func NewDisk() *Disk {
	return &Disk{durable: make(map[storage.LogID]content), cached: make(map[storage.LogID]content)}
}

// Open opens the engine on this disk. One engine can be open at a time.
func (d *Disk) Open() (*Engine, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.engine != nil {
		return nil, fmt.Errorf("open memory disk: %w: it is open already", storage.ErrInUse)
	}
	e := &Engine{disk: d, logs: make(map[storage.LogID]*log, len(d.cached))}
	for id, c := range d.cached {
		e.logs[id] = &log{engine: e, id: id, content: c.fork()}
	}
	d.engine = e
	return e, nil
}

// content of a log. Chunks are immutable once stored.
type content struct {
	chunks []storage.Chunk
	index  []pair // ordered by key
	bytes  int64
}

type pair struct {
	key   string
	value []byte
}

// fork returns a copy that may be changed without the other one noticing.
func (c content) fork() content {
	c.chunks = c.chunks[:len(c.chunks):len(c.chunks)]
	c.index = append([]pair(nil), c.index...)
	return c
}

func (c *content) empty() bool { return len(c.chunks) == 0 && len(c.index) == 0 }

// An Engine is open on one Disk.
type Engine struct {
	disk *Disk

	mu     sync.Mutex // taken before a log's
	logs   map[storage.LogID]*log
	closed bool

	// FailSync, when set, is asked before each Sync; its error is returned.
	FailSync func() error
}

// Open implements storage.Engine.
func (e *Engine) Open(id storage.LogID, m storage.Mark) (storage.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("open log %s: %w", id, storage.ErrClosed)
	}
	l := e.logs[id]
	if l == nil {
		l = &log{engine: e, id: id}
		e.logs[id] = l
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		return nil, fmt.Errorf("open log %s: %w: it is open already", id, storage.ErrInUse)
	}
	if m.Start < 0 || m.Next < m.Start {
		return nil, fmt.Errorf("open log %s: mark from %d to %d makes no sense", id, m.Start, m.Next)
	}
	keep, err := l.adjoining(m)
	if err != nil {
		return nil, err
	}
	reach := uint64(0)
	if n := len(l.chunks); n > keep {
		reach = l.chunks[n-1].Index
	}
	l.next, l.floor = m.Next, m.Start
	l.bytes = l.size()
	l.open = &store{log: l, reach: reach}
	return l.open, nil
}

// Logs implements storage.Engine.
func (e *Engine) Logs() ([]storage.LogID, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("list logs: %w", storage.ErrClosed)
	}
	var ids []storage.LogID
	for id, l := range e.logs {
		l.mu.RLock()
		if !l.empty() {
			ids = append(ids, id)
		}
		l.mu.RUnlock()
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i].Less(ids[j]) })
	return ids, nil
}

// Drop implements storage.Engine.
func (e *Engine) Drop(id storage.LogID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fmt.Errorf("drop log %s: %w", id, storage.ErrClosed)
	}
	l := e.logs[id]
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		return fmt.Errorf("drop log %s: %w: close it first", id, storage.ErrInUse)
	}
	delete(e.logs, id)
	return nil
}

// Sync implements storage.Engine.
func (e *Engine) Sync() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fmt.Errorf("sync: %w", storage.ErrClosed)
	}
	if e.FailSync != nil {
		if err := e.FailSync(); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	e.disk.durable = e.fork()
	return nil
}

// fork copies all content. The caller holds e.mu.
func (e *Engine) fork() map[storage.LogID]content {
	all := make(map[storage.LogID]content, len(e.logs))
	for id, l := range e.logs {
		l.mu.Lock()
		all[id] = l.content.fork()
		// Appends go to a new array from here on: the copy shares this one.
		l.chunks = l.chunks[:len(l.chunks):len(l.chunks)]
		l.mu.Unlock()
	}
	return all
}

// Collect implements storage.Engine; there is nothing to collect.
func (e *Engine) Collect(<-chan struct{}) error { return nil }

// Figures implements storage.Engine.
func (e *Engine) Figures() map[string]float64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	var bytes, chunks float64
	for _, l := range e.logs {
		l.mu.RLock()
		bytes += float64(l.bytes)
		chunks += float64(len(l.chunks))
		l.mu.RUnlock()
	}
	return map[string]float64{"memory_bytes": bytes, "memory_chunks": chunks}
}

// Close implements storage.Engine. As with a process that ends, what was not
// synced is still there when the disk is opened again.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	cached := e.fork()
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	e.disk.cached = cached
	e.closeLocked()
	return nil
}

// Crash cuts the power: whatever was not synced is gone, the engine and its
// stores are closed, and the disk can be opened again.
func (e *Engine) Crash() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	e.disk.cached = e.disk.durable
	e.closeLocked()
}

func (e *Engine) closeLocked() {
	e.closed = true
	for _, l := range e.logs {
		l.mu.Lock()
		if l.open != nil {
			l.open.closed = true
			l.open = nil
		}
		l.mu.Unlock()
	}
	e.disk.engine = nil
}
