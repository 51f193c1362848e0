package badger

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
	"github.com/parleymq/parley/replication/format"
)

// damageBase is a directory as a killed process leaves it, with files of every
// kind, and what its logs hold.
type damageBase struct {
	dir  string
	logs []*logModel
}

func newDamageBase(t *testing.T) *damageBase {
	t.Helper()
	b := &damageBase{dir: filepath.Join(memoryDir(t), "killed")}
	shadow := newShadow(filepath.Join(memoryDir(t), "store"))
	e, err := openEngine(storage.Options{Dir: shadow.dir}, small, hooks{fsync: shadow.hook})
	check(t, err)
	defer func() { check(t, e.Close()) }()
	for i := range 2 {
		l := &logModel{id: storage.LogID{Topic: 1, Partition: uint64(i), Replica: 1}, salt: uint64(i)}
		l.store, err = e.Open(l.id, storage.Mark{})
		check(t, err)
		b.logs = append(b.logs, l)
	}
	for i := range 2500 {
		l := b.logs[i%2]
		size := 800 // beside its key
		if i%25 == 0 {
			size = 40_000 // in the value log
		}
		c := storagetest.MakeChunk(l.store.Next(), l.store.Next()+4, size, l.salt)
		check(t, l.store.Append([]storage.Chunk{c}, nil))
		l.chunks = append(l.chunks, c)
	}
	check(t, e.Sync())
	shadow.image(t, rand.New(rand.NewPCG(1, 1)), b.dir)
	for _, l := range b.logs {
		l.promise = storage.Mark{Next: l.store.Next()}
	}
	return b
}

func (b *damageBase) files(t *testing.T, ext string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.dir, dbDir))
	check(t, err)
	for _, f := range entries {
		info, err := f.Info()
		check(t, err)
		if strings.HasSuffix(f.Name(), ext) && info.Size() > logHeaderBytes {
			names = append(names, f.Name())
		}
	}
	if len(names) == 0 {
		t.Fatalf("no %s file to damage", ext)
	}
	return names
}

// look opens what is in dir and reads all of it. It returns what was reported;
// wrong or silently missing chunks fail the test.
func (b *damageBase) look(t *testing.T, dir string) (reports []error) {
	t.Helper()
	e, err := openEngine(storage.Options{Dir: dir}, small, hooks{})
	if err != nil {
		if !errors.Is(err, storage.ErrCorrupt) {
			t.Fatalf("open: %v, want ErrCorrupt", err)
		}
		return []error{err}
	}
	defer func() { check(t, e.Close()) }()
	for _, l := range b.logs {
		s, err := e.Open(l.id, l.promise)
		var hole *storage.HoleError
		if errors.As(err, &hole) || errors.Is(err, storage.ErrCorrupt) {
			reports = append(reports, err)
			continue
		}
		check(t, err)
		i := 0
		err = s.Read(0, func(c storage.Chunk) bool {
			if i >= len(l.chunks) || !storagetest.Same(c, l.chunks[i]) {
				t.Errorf("log %s: chunk of offsets %d to %d is not what was stored", l.id, c.Base, c.Last)
				return false
			}
			i++
			return true
		})
		switch {
		case errors.Is(err, storage.ErrCorrupt):
			reports = append(reports, err)
			if !strings.Contains(err.Error(), l.id.String()) || !strings.Contains(err.Error(), fmt.Sprint(l.chunks[i].Base)) {
				t.Errorf("%v: it should name log %s and offset %d", err, l.id, l.chunks[i].Base)
			}
		case err != nil:
			t.Errorf("read: %v", err)
		case i < len(l.chunks):
			t.Errorf("log %s: %d chunks read, %d were stored, and nobody complained", l.id, i, len(l.chunks))
		}
	}
	return reports
}

// kept tells whether what a file held is still somewhere: under its name, or set aside.
func kept(t *testing.T, dir, name string, content []byte) bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, asideDir, "*-"+name))
	check(t, err)
	for _, path := range append(paths, filepath.Join(dir, dbDir, name)) {
		if got, err := os.ReadFile(path); err == nil && bytes.HasPrefix(got, bytes.TrimRight(content, "\x00")) {
			return true
		}
	}
	return false
}

func TestDamageIsReportedAndNothingDeleted(t *testing.T) {
	t.Parallel()
	b := newDamageBase(t)
	check(t, func() error {
		if r := b.look(t, copyOf(t, b.dir)); len(r) > 0 {
			return fmt.Errorf("undamaged: %v", r)
		}
		return nil
	}())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	for _, ext := range []string{vlogExt, memExt, tableExt, badgerManifest} {
		names := b.files(t, ext)
		reported := 0
		for range 12 {
			name := names[r.IntN(len(names))]
			dir := copyOf(t, b.dir)
			path := filepath.Join(dir, dbDir, name)
			content, err := os.ReadFile(path)
			check(t, err)
			used := len(bytes.TrimRight(content, "\x00"))
			at := r.IntN(used)
			how := "cut short"
			if r.IntN(3) > 0 {
				how = "bit flipped"
				content[at] ^= 1 << r.IntN(8)
				check(t, os.WriteFile(path, content, 0o600))
			} else {
				content = content[:at]
				check(t, os.Truncate(path, int64(at)))
			}
			reports := b.look(t, dir)
			if len(reports) > 0 {
				reported++
			}
			if t.Failed() {
				t.Fatalf("%s %s at byte %d of %d; reported: %v", name, how, at, used, reports)
			}
			if len(content) > logHeaderBytes && !kept(t, dir, name, content) {
				t.Fatalf("%s, %s at byte %d of %d, is gone", name, how, at, used)
			}
			for _, other := range b.files(t, tableExt) {
				if other == name {
					continue
				}
				whole, err := os.ReadFile(filepath.Join(b.dir, dbDir, other))
				check(t, err)
				if ext == badgerManifest && !kept(t, dir, other, whole) {
					t.Fatalf("%s is gone after %s was %s at byte %d", other, name, how, at)
				}
			}
			check(t, os.RemoveAll(dir))
		}
		t.Logf("%s: %d of 12 were reported, the others hit nothing that is needed", ext, reported)
		if reported == 0 {
			t.Errorf("%s: not one was reported", ext)
		}
	}
}

// A bit that flipped in a value log file takes one chunk, not those behind it,
// and with the bit put right everything is there again.
func TestDamagedValueLogIsNotCut(t *testing.T) {
	t.Parallel()
	b := newDamageBase(t)
	names := b.files(t, vlogExt)
	dir := copyOf(t, b.dir)
	path := filepath.Join(dir, dbDir, names[len(names)-1]) // the newest, which Badger would cut
	flip := func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		check(t, err)
		var one [1]byte
		_, err = f.ReadAt(one[:], 1000)
		check(t, err)
		one[0] ^= 0x10
		_, err = f.WriteAt(one[:], 1000)
		check(t, err)
		check(t, f.Close())
	}
	flip()
	for range 2 {
		if reports := b.look(t, dir); len(reports) != 1 {
			t.Fatalf("reported: %v, want one damaged chunk", reports)
		}
	}
	flip()
	if reports := b.look(t, dir); len(reports) != 0 {
		t.Fatalf("reported after the bit was put right: %v", reports)
	}
}

// Badger takes a damaged entry in a memtable log for a torn tail and drops what
// follows. That must show as a hole, and the log must be set aside.
func TestDamagedMemtableLogIsAHole(t *testing.T) {
	t.Parallel()
	b := newDamageBase(t)
	dir := copyOf(t, b.dir)
	names := b.files(t, memExt)
	path := filepath.Join(dir, dbDir, names[len(names)-1])
	content, err := os.ReadFile(path)
	check(t, err)
	content[2000] ^= 1
	check(t, os.WriteFile(path, content, 0o600))
	reports := b.look(t, dir)
	var hole *storage.HoleError
	if len(reports) == 0 || !errors.As(reports[0], &hole) {
		t.Fatalf("reported: %v, want a hole", reports)
	}
	if !kept(t, dir, names[len(names)-1], content) {
		t.Fatal("the damaged log was not set aside")
	}
	// It stays aside while the hole is there.
	e, err := openEngine(storage.Options{Dir: dir}, small, hooks{})
	check(t, err)
	defer e.Close()
	l := b.logs[0]
	mark := l.promise
	mark.AllowHoles = true
	s, err := e.Open(l.id, mark)
	check(t, err)
	check(t, s.Append([]storage.Chunk{storagetest.MakeChunk(s.Next(), s.Next(), 10, 1)}, nil))
	check(t, e.Sync())
	check(t, e.Collect(nil))
	if !kept(t, dir, names[len(names)-1], content) {
		t.Fatal("a collection removed what was set aside although chunks are missing")
	}
}

func TestFilesThatACrashLeftEmpty(t *testing.T) {
	t.Parallel()
	b := newDamageBase(t)
	dir := copyOf(t, b.dir)
	files := filepath.Join(dir, dbDir)
	check(t, os.WriteFile(filepath.Join(files, "00777.mem"), nil, 0o600))
	check(t, os.WriteFile(filepath.Join(files, "000777.vlog"), nil, 0o600))
	// The discard table: a file twice, one that isn't there, and a ragged end.
	ragged := append(bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0}, 2), 0, 0, 0, 0, 0, 0, 9, 9, 1)
	check(t, os.WriteFile(filepath.Join(files, badgerDiscard), ragged, 0o600))
	for range 2 {
		if reports := b.look(t, dir); len(reports) != 0 {
			t.Fatalf("reported: %v", reports)
		}
	}
	e, err := openEngine(storage.Options{Dir: dir}, small, hooks{})
	check(t, err)
	check(t, e.Collect(nil))
	check(t, e.Close())
	// A value log file that somebody emptied is damage; its number is not used again.
	names := b.files(t, vlogExt)
	check(t, os.Truncate(filepath.Join(files, names[0]), 0))
	if reports := b.look(t, dir); len(reports) == 0 {
		t.Fatal("an emptied value log file was not reported")
	}
}

func TestDirectoryIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, err := openEngine(storage.Options{Dir: dir}, small, hooks{})
	check(t, err)
	_, err = storage.OpenEngine("badger", storage.Options{Dir: dir})
	if !errors.Is(err, storage.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("second open: %v, want ErrInUse with the process's number", err)
	}
	check(t, e.Close())
	e, err = openEngine(storage.Options{Dir: dir}, small, hooks{})
	check(t, err)
	check(t, e.Close())
}

func TestForeignDirectoriesAreRefused(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(dir string) error{
		"earlier version": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, versionFile), []byte("parley-log badger 0\n"), 0o600)
		},
		"another format": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, versionFile), bytes.Repeat([]byte{0xff}, 1000), 0o600)
		},
		"a database of somebody else's": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, badgerManifest), []byte("Bdgr"), 0o600)
		},
		"a database without a version": func(dir string) error {
			if err := os.Mkdir(filepath.Join(dir, dbDir), 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, dbDir, "000001.vlog"), []byte("x"), 0o600)
		},
	} {
		dir := t.TempDir()
		check(t, prepare(dir))
		if _, err := storage.OpenEngine("badger", storage.Options{Dir: dir}); !errors.Is(err, storage.ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, versionFile), []byte("parley-log badger 2\n"), 0o600))
	if _, err := storage.OpenEngine("badger", storage.Options{Dir: dir}); !errors.Is(err, format.ErrNewer) {
		t.Errorf("a later version: %v, want ErrNewer", err)
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(memoryDir(t), "copy")
	copyTree(t, dir, to)
	return to
}

// What is for encryption holds nothing, since nothing is encrypted: damage to it is mended and said.
func TestDamageThatCostsNothing(t *testing.T) {
	t.Parallel()
	b := newDamageBase(t)
	for _, name := range []string{badgerKeys, b.files(t, vlogExt)[0], b.files(t, memExt)[0]} {
		for what, damage := range map[string]func(path string) error{
			"a bit": func(path string) error {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				at := 3 // in the heads
				if name == badgerKeys {
					at = 20
				}
				content[at] ^= 4
				return os.WriteFile(path, content, 0o600)
			},
			"gone": os.Remove,
		} {
			if what == "gone" && name != badgerKeys {
				continue
			}
			dir := copyOf(t, b.dir)
			path := filepath.Join(dir, dbDir, name)
			check(t, damage(path))
			told := ""
			e, err := openEngine(storage.Options{Dir: dir, Logf: func(level, message string) {
				if level == "warn" && strings.Contains(message, path) {
					told = message
				}
			}}, small, hooks{})
			check(t, err)
			check(t, e.Close())
			if told == "" {
				t.Errorf("%s of %s: nothing was said", what, name)
			}
			if reports := b.look(t, dir); len(reports) != 0 {
				t.Errorf("%s of %s: %v", what, name, reports)
			}
		}
	}
	// A directory that has lost its version isn't taken for a new one, whatever is left of the database.
	dir := copyOf(t, b.dir)
	check(t, os.Remove(filepath.Join(dir, versionFile)))
	for _, name := range []string{badgerManifest, b.files(t, vlogExt)[0]} {
		check(t, os.Remove(filepath.Join(dir, dbDir, name)))
	}
	for _, name := range b.files(t, vlogExt)[1:] {
		check(t, os.Remove(filepath.Join(dir, dbDir, name)))
	}
	if _, err := openEngine(storage.Options{Dir: dir}, small, hooks{}); !errors.Is(err, storage.ErrFormat) || !strings.Contains(err.Error(), versionFile) {
		t.Errorf("without its version: %v", err)
	}
}
