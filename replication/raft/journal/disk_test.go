package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// disk is a disk that can lose its power. It knows what would be left: what was synced for
// certain; of what was not, any of the 512-byte sectors that were written, and of the changes
// to the directory the first few.
type disk struct {
	mu      sync.Mutex
	names   map[string]*inode
	durable map[string]*inode
	changes []func(map[string]*inode) // since the directory was synced

	ops     int // that change something
	cutAt   int // the power goes with this op; 0 never
	failAt  int // this op fails with EIO, once; 0 none
	off     bool
	trace   []string
	noSync  bool // Sync of a file does nothing: a mutant
	noNames bool // SyncDir does nothing: a mutant
}

type inode struct {
	data    []byte
	synced  []byte
	pending []written
}

// written is a write or, without data, a change of length.
type written struct {
	off  int64
	data []byte
}

var errPower = errors.New("the power is off")

func newDisk() *disk {
	return &disk{names: make(map[string]*inode), durable: make(map[string]*inode)}
}

// op counts an operation that changes something, and says whether it is carried out.
func (d *disk) op(what string, args ...any) error {
	if d.off {
		return errPower
	}
	d.ops++
	d.trace = append(d.trace, fmt.Sprintf(what, args...))
	if d.ops == d.cutAt {
		d.off = true
		return errPower
	}
	if d.ops == d.failAt {
		return syscall.EIO
	}
	return nil
}

// goOn is the disk when its power didn't go, only the process ended.
func (d *disk) goOn() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off, d.cutAt, d.failAt = false, 0, 0
}

// after is the disk when the power is back.
func (d *disk) after(rng *rand.Rand) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	n := newDisk()
	left := make(map[string]*inode)
	for name, node := range d.durable {
		left[name] = node
	}
	if len(d.changes) > 0 {
		for _, change := range d.changes[:rng.IntN(len(d.changes)+1)] {
			change(left)
		}
	}
	keep := []float64{0, 0.5, 0.9, 1}[rng.IntN(4)]
	done := make(map[*inode]*inode)
	for name, node := range left {
		c := done[node]
		if c == nil {
			c = &inode{data: node.left(rng, keep)}
			c.synced = slices.Clone(c.data)
			done[node] = c
		}
		n.names[name], n.durable[name] = c, c
	}
	return n
}

func (n *inode) left(rng *rand.Rand, keep float64) []byte {
	data := slices.Clone(n.synced)
	for _, w := range n.pending {
		if w.data == nil {
			if keep == 1 || rng.Float64() < keep {
				data = resize(data, w.off)
			}
			continue
		}
		for i := int64(0); i < int64(len(w.data)); {
			// To the end of the sector.
			k := min(512-(w.off+i)%512, int64(len(w.data))-i)
			if keep == 1 || rng.Float64() < keep {
				data = put(data, w.off+i, w.data[i:i+k])
			}
			i += k
		}
	}
	return data
}

func resize(data []byte, n int64) []byte {
	if int64(len(data)) >= n {
		return data[:n]
	}
	return append(data, make([]byte, n-int64(len(data)))...)
}

func put(data []byte, off int64, b []byte) []byte {
	if end := off + int64(len(b)); end > int64(len(data)) {
		data = resize(data, end)
	}
	copy(data[off:], b)
	return data
}

func (d *disk) List(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.names {
		names = append(names, filepath.Base(name))
	}
	return names, nil
}

func (d *disk) change(f func(map[string]*inode)) {
	f(d.names)
	d.changes = append(d.changes, f)
}

func (d *disk) Create(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op("create %s", name); err != nil {
		return nil, err
	}
	node := &inode{}
	d.change(func(names map[string]*inode) { names[name] = node })
	return &diskFile{d, node, name}, nil
}

func (d *disk) Open(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	node := d.names[name]
	if node == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &diskFile{d, node, name}, nil
}

func (d *disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op("rename %s %s", from, to); err != nil {
		return err
	}
	node := d.names[from]
	d.change(func(names map[string]*inode) {
		delete(names, from)
		names[to] = node
	})
	return nil
}

func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op("remove %s", name); err != nil {
		return err
	}
	d.change(func(names map[string]*inode) { delete(names, name) })
	return nil
}

func (d *disk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op("sync directory"); err != nil {
		return err
	}
	if d.noNames {
		return nil
	}
	for _, change := range d.changes {
		change(d.durable)
	}
	d.changes = nil
	return nil
}

func (d *disk) Reusable() bool { return true }

type diskFile struct {
	d    *disk
	n    *inode
	name string
}

func (f *diskFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *diskFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.d.op("write %s %d+%d", f.name, off, len(b))
	if err == nil || f.d.off && f.d.cutAt == f.d.ops || errors.Is(err, syscall.EIO) {
		// A write that failed, or that the power went with, may have written.
		f.n.data = put(f.n.data, off, b)
		f.n.pending = append(f.n.pending, written{off, slices.Clone(b)})
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *diskFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.d.op("sync %s", f.name)
	switch {
	case f.d.off || err == nil && f.d.noSync:
		return err
	case err == nil:
		f.n.synced = f.n.left(nil, 1)
	}
	f.n.pending = nil // after an error too: they count as clean, and are only in memory
	return err
}

func (f *diskFile) resize(n int64) error {
	if err := f.d.op("resize %s %d", f.name, n); err != nil {
		return err
	}
	f.n.data = resize(f.n.data, n)
	f.n.pending = append(f.n.pending, written{off: n})
	return nil
}

func (f *diskFile) Allocate(n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.resize(n)
}

func (f *diskFile) Truncate(n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.resize(n)
}

func (f *diskFile) Close() error { return nil }

func (f *diskFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.n.data)), nil
}
