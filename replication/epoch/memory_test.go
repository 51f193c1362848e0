package epoch

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"
)

// memoryDirectory is a directory in memory that knows what was synced.
type memoryDirectory struct {
	mu      sync.Mutex
	names   map[string]*memoryFile
	durable map[string]*memoryFile // names as of the last sync
	slow    time.Duration          // of a sync
	lies    bool                   // syncs do nothing
	broken  bool                   // syncs fail
}

func newMemoryDirectory() *memoryDirectory {
	return &memoryDirectory{names: map[string]*memoryFile{}, durable: map[string]*memoryFile{}}
}

// memoryFile is a file, what of it was synced, and the writes since.
type memoryFile struct {
	dir      *memoryDirectory
	data     []byte
	synced   []byte
	unsynced []memoryWrite
}

type memoryWrite struct {
	at int64
	b  []byte
}

func (d *memoryDirectory) slowTo(sync time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = sync
}

func (d *memoryDirectory) path(name string) string { return "memory/" + name }

func (d *memoryDirectory) read(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(f.data), nil
}

func (d *memoryDirectory) open(name string, truncate bool) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.names[name]
	if f == nil {
		f = &memoryFile{dir: d}
		d.names[name] = f
	} else if truncate {
		f.data = nil
	}
	return f, nil
}

func (d *memoryDirectory) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (d *memoryDirectory) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return fs.ErrNotExist
	}
	delete(d.names, name)
	return nil
}

func (d *memoryDirectory) sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable = map[string]*memoryFile{}
	for name, f := range d.names {
		d.durable[name] = f
	}
	return nil
}

func put(data []byte, at int64, b []byte) []byte {
	if need := at + int64(len(b)); need > int64(len(data)) {
		data = append(data, make([]byte, need-int64(len(data)))...)
	}
	copy(data[at:], b)
	return data
}

func (f *memoryFile) WriteAt(b []byte, at int64) (int, error) {
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	f.data = put(f.data, at, b)
	f.unsynced = append(f.unsynced, memoryWrite{at, bytes.Clone(b)})
	return len(b), nil
}

func (f *memoryFile) ReadAt(b []byte, at int64) (int, error) {
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	if at > int64(len(f.data)) {
		return 0, io.EOF
	}
	if n := copy(b, f.data[at:]); n < len(b) {
		return n, io.EOF
	}
	return len(b), nil
}

func (f *memoryFile) Truncate(size int64) error {
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	f.data = f.data[:size:size]
	for i := range f.unsynced {
		if w := &f.unsynced[i]; w.at+int64(len(w.b)) > size {
			w.b = w.b[:max(0, size-w.at)]
		}
	}
	return nil
}

func (f *memoryFile) Sync() error {
	f.dir.mu.Lock()
	slow := f.dir.slow
	f.dir.mu.Unlock()
	time.Sleep(slow)
	f.dir.mu.Lock()
	defer f.dir.mu.Unlock()
	if f.dir.broken {
		return errFault
	}
	if !f.dir.lies {
		for _, w := range f.unsynced {
			f.synced = put(f.synced, w.at, w.b)
		}
		f.synced, f.unsynced = f.synced[:len(f.data)], nil
	}
	return nil
}

func (f *memoryFile) Close() error { return nil }

// crash is the directory as a power cut leaves it: what was synced, and of each later
// write all, nothing or some first blocks.
func (d *memoryDirectory) crash(r *rand.Rand) *memoryDirectory {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := newMemoryDirectory()
	n.slow, n.lies = d.slow, d.lies
	for name, f := range d.durable {
		data := bytes.Clone(f.synced)
		forgets := len(f.unsynced)
		if d.lies { // and then forgets the last few writes, all of them
			forgets -= r.IntN(min(6, forgets+1))
		}
		for i, w := range f.unsynced {
			keep := 0
			switch draw := r.IntN(3); {
			case d.lies && i >= forgets:
			case d.lies, draw == 0:
				keep = len(w.b)
			case draw == 1:
				keep = r.IntN(len(w.b)/block+1) * block
			}
			data = put(data, w.at, w.b[:keep])
		}
		c := &memoryFile{dir: n, data: data, synced: bytes.Clone(data)}
		n.names[name], n.durable[name] = c, c
	}
	return n
}
