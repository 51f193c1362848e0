package badger

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// shadowDisk is a crash model that needs no special rights. It remembers what
// each memtable log, value log file and discard table held when it was last
// fsynced by the engine. An image of the directory, as a power cut may leave it,
// is made of that and, page by page and at random, of what was written since.
//
// What it assumes of the file system holds for ext4, xfs and btrfs: a file that
// was fsynced can be found under its name; a rename is atomic. Tables and manifest
// are taken as they are: Badger fsyncs them itself before it relies on them.
type shadowDisk struct {
	dir   string // the engine's
	mu    sync.Mutex
	kept  map[string][]byte // by name within Badger's directory
	fsync func(path string) // told before each
}

const pageBytes = 4096

func newShadow(dir string) *shadowDisk {
	return &shadowDisk{dir: dir, kept: make(map[string][]byte)}
}

// hook stands in for fsync.
func (d *shadowDisk) hook(path string) error {
	if d.fsync != nil {
		d.fsync(path)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if path == filepath.Join(d.dir, dbDir) {
		// Names are durable now, and so are removals.
		for name := range d.kept {
			if _, err := os.Stat(filepath.Join(path, name)); os.IsNotExist(err) {
				delete(d.kept, name)
			}
		}
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d.kept[filepath.Base(path)] = content
	return nil
}

// image writes what a power cut right now may leave to a directory.
func (d *shadowDisk) image(t *testing.T, r *rand.Rand, to string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	from := filepath.Join(d.dir, dbDir)
	files := filepath.Join(to, dbDir)
	check(t, os.MkdirAll(files, 0o700))
	for _, name := range []string{versionFile, collectNote} {
		copyIfThere(t, filepath.Join(d.dir, name), filepath.Join(to, name))
	}
	volatile := func(name string) bool {
		return strings.HasSuffix(name, memExt) || strings.HasSuffix(name, vlogExt) || name == badgerDiscard
	}
	entries, err := os.ReadDir(from)
	check(t, err)
	there := make(map[string]bool)
	for _, f := range entries {
		there[f.Name()] = true
		if !volatile(f.Name()) {
			continue
		}
		now, err := os.ReadFile(filepath.Join(from, f.Name()))
		if os.IsNotExist(err) {
			now = nil // removed meanwhile
		} else {
			check(t, err)
		}
		before, synced := d.kept[f.Name()]
		if !synced && r.IntN(3) == 0 {
			continue // not even its name was durable
		}
		check(t, os.WriteFile(filepath.Join(files, f.Name()), mix(r, before, now), 0o600))
	}
	for name, before := range d.kept {
		if !there[name] && r.IntN(2) == 0 {
			check(t, os.WriteFile(filepath.Join(files, name), before, 0o600)) // removed, but not durably
		}
	}
	// Tables come and go; a copy is consistent when the manifest stood still.
	for {
		manifest, err := os.ReadFile(filepath.Join(from, badgerManifest))
		check(t, err)
		entries, err := os.ReadDir(from)
		check(t, err)
		for _, f := range entries {
			if !volatile(f.Name()) && f.Name() != "LOCK" {
				copyIfThere(t, filepath.Join(from, f.Name()), filepath.Join(files, f.Name()))
			}
		}
		again, err := os.ReadFile(filepath.Join(from, badgerManifest))
		check(t, err)
		if bytes.Equal(manifest, again) {
			check(t, os.WriteFile(filepath.Join(files, badgerManifest), manifest, 0o600))
			return
		}
	}
}

// mix takes each page from before or from now. One call in three keeps all of
// before, one keeps all of now.
func mix(r *rand.Rand, before, now []byte) []byte {
	share := r.Float64()*3 - 1 // below 0: before; above 1: now
	size := len(before)
	if r.Float64() < share {
		size = len(now)
	}
	out := make([]byte, size)
	copy(out, before)
	for at := 0; at < size; at += pageBytes {
		end := min(at+pageBytes, size)
		if r.Float64() < share && at < len(now) {
			clear(out[at:end])
			copy(out[at:end], now[at:min(end, len(now))])
		}
	}
	return out
}

func copyIfThere(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if os.IsNotExist(err) {
		return
	}
	check(t, err)
	defer src.Close()
	dst, err := os.Create(to)
	check(t, err)
	_, err = io.Copy(dst, src)
	check(t, err)
	check(t, dst.Close())
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	check(t, filepath.WalkDir(from, func(path string, f fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if f.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		copyIfThere(t, path, filepath.Join(to, rel))
		return nil
	}))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
