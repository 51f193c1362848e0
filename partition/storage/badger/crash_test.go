package badger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

// logModel is a log as it should be, and the partition that owns it.
type logModel struct {
	id      storage.LogID
	salt    uint64
	store   storage.Store
	chunks  []storage.Chunk
	start   int64
	promise storage.Mark // what a checkpoint said is durable
}

func (l *logModel) Capture() (storage.Checkpoint, error) {
	return storage.Checkpoint{
		Log: l.id, Index: uint64(l.store.Next()), State: fmt.Append(nil, l.start),
		Mark: storage.Mark{Start: l.start, Next: l.store.Next()},
	}, nil
}

func (l *logModel) Durable(c storage.Checkpoint) {
	l.promise = c.Mark
	if err := l.store.Trim(c.Mark.Start, nil); err != nil {
		panic(err)
	}
}

// append adds chunks whose content follows from where they are.
func (l *logModel) append(r *rand.Rand) error {
	var chunks []storage.Chunk
	next := l.store.Next()
	for range 1 + r.IntN(3) {
		size := 200
		if r.IntN(5) > 0 {
			size = 4000 + r.IntN(30_000)
		}
		c := storagetest.MakeChunk(next, next+r.Int64N(50), size, l.salt)
		chunks, next = append(chunks, c), c.Last+1
	}
	l.chunks = append(l.chunks, chunks...)
	return l.store.Append(chunks, nil)
}

// crashRun is one engine under load whose power is cut again and again. The cut
// happens to a copy, so the load goes on.
type crashRun struct {
	t      *testing.T
	r      *rand.Rand
	dir    string
	shadow *shadowDisk
	engine *Engine
	cp     *storage.Checkpointer
	logs   []*logModel
	images int
	lost   error // the first breach of the promise
	late   bool  // mutant: the checkpointer's engine doesn't sync, that comes after
}

// lateSync is the mutant that writes the checkpoint before the engine is synced.
type lateSync struct{ storage.Engine }

func (lateSync) Sync() error { return nil }

func newCrashRun(t *testing.T, seed uint64, h hooks, late bool) *crashRun {
	t.Helper()
	c := &crashRun{t: t, r: rand.New(rand.NewPCG(seed, 1)), dir: memoryDir(t), late: late}
	c.shadow = newShadow(filepath.Join(c.dir, "store"))
	h.fsync = c.shadow.hook
	if h.midCollect == nil {
		h.midCollect = func(string) { c.cut() }
	}
	var err error
	c.engine, err = openEngine(storage.Options{Dir: c.shadow.dir}, small, h)
	check(t, err)
	var synced storage.Engine = c.engine
	if late {
		synced = lateSync{c.engine}
	}
	c.cp, err = openCheckpoints(filepath.Join(c.dir, "checkpoints"), synced)
	check(t, err)
	for i := range 3 {
		l := &logModel{id: storage.LogID{Topic: 1, Partition: uint64(i), Replica: 1}, salt: uint64(i)}
		l.store, err = c.engine.Open(l.id, storage.Mark{})
		check(t, err)
		c.logs = append(c.logs, l)
		c.cp.Register(l.id, l)
	}
	// Cut in the middle of a sync too, before a file of it is durable.
	c.shadow.fsync = func(string) {
		if c.r.IntN(12) == 0 {
			c.cut()
		}
	}
	return c
}

// load is what a broker does: append, checkpoint, trim, collect.
func (c *crashRun) load(steps int) error {
	for step := range steps {
		if c.lost != nil {
			return c.lost
		}
		l := c.logs[c.r.IntN(len(c.logs))]
		switch p := c.r.IntN(100); {
		case p < 80:
			if err := l.append(c.r); err != nil {
				return err
			}
		case p < 90:
			// The first log keeps everything, so that files hold what lives and what doesn't.
			if l != c.logs[0] && l.store.Next() > l.start {
				l.start += c.r.Int64N(l.store.Next() - l.start + 1)
			}
		case p < 97:
			if err := c.checkpoint(); err != nil {
				return err
			}
		}
		if step%60 == 59 {
			if err := c.checkpoint(); err != nil {
				return err
			}
			if err := c.engine.Collect(nil); err != nil {
				return err
			}
		}
		if c.r.IntN(20) == 0 {
			c.cut()
		}
	}
	return c.lost
}

func (c *crashRun) checkpoint() error {
	if err := c.cp.Sync(context.Background()); err != nil || !c.late {
		return err
	}
	return c.engine.Sync()
}

func (c *crashRun) close() {
	c.shadow.fsync = nil
	_ = c.cp.Close()
	_ = c.engine.Close()
}

// cut makes an image of this moment and checks it. It is called from the
// goroutine of the load, or while that one waits.
func (c *crashRun) cut() {
	if c.lost != nil {
		return
	}
	c.images++
	dir, err := os.MkdirTemp(c.dir, "image")
	check(c.t, err)
	defer os.RemoveAll(dir)
	promised := make(map[storage.LogID]storage.Mark)
	for _, l := range c.logs {
		promised[l.id] = l.promise
	}
	// Checkpoints first: what they say must hold of everything copied later.
	copyTree(c.t, filepath.Join(c.dir, "checkpoints"), filepath.Join(dir, "checkpoints"))
	c.shadow.image(c.t, c.r, filepath.Join(dir, "store"))
	if err := verifyImage(dir, c.logs, promised, c.r); err != nil {
		c.lost = fmt.Errorf("image %d: %w", c.images, err)
	}
}

// verifyImage opens what a power cut left and compares it with the models.
func verifyImage(dir string, logs []*logModel, promised map[storage.LogID]storage.Mark, r *rand.Rand) (err error) {
	e, err := openEngine(storage.Options{Dir: filepath.Join(dir, "store")}, small, hooks{fsync: func(string) error { return nil }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	cp, err := openCheckpoints(filepath.Join(dir, "checkpoints"), e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cp.Close()) }()
	for _, l := range logs {
		c, found := cp.Load(l.id)
		if p := promised[l.id]; c.Mark.Next < p.Next || c.Mark.Start < p.Start {
			return fmt.Errorf("log %s: checkpoint says %v (%v), %v was durable", l.id, c.Mark, found, p)
		}
		s, err := e.Open(l.id, c.Mark)
		if err != nil {
			return err
		}
		if err := sameLog(s, l, c.Mark); err != nil {
			return fmt.Errorf("log %s at %v: %w", l.id, c.Mark, err)
		}
		// Nothing that was above the mark comes back below other chunks.
		other := &logModel{id: l.id, salt: 1000 + l.salt, store: s}
		for range 3 {
			if err := other.append(r); err != nil {
				return err
			}
		}
		got, err := storagetest.Collect(s, c.Mark.Next)
		if err != nil {
			return err
		}
		if len(got) != len(other.chunks) {
			return fmt.Errorf("log %s: %d chunks above the mark, %d were appended", l.id, len(got), len(other.chunks))
		}
		for i := range got {
			if !storagetest.Same(got[i], other.chunks[i]) {
				return fmt.Errorf("log %s: chunk at %d is not the one that was appended", l.id, got[i].Base)
			}
		}
	}
	return nil
}

func sameLog(s storage.Store, l *logModel, m storage.Mark) error {
	if s.Next() != m.Next {
		return fmt.Errorf("next is %d", s.Next())
	}
	var want []storage.Chunk
	for _, c := range l.chunks {
		if c.Last >= m.Start && c.Last < m.Next {
			want = append(want, c)
		}
	}
	got, err := storagetest.Collect(s, m.Start)
	if err != nil {
		return err
	}
	for i, c := range got {
		if i >= len(want) || !storagetest.Same(c, want[i]) {
			return fmt.Errorf("chunk of offsets %d to %d is not what was stored", c.Base, c.Last)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d chunks, want %d", len(got), len(want))
	}
	return nil
}

func openCheckpoints(dir string, e storage.Engine) (*storage.Checkpointer, error) {
	return storage.OpenCheckpointer(dir, e, storage.CheckpointOptions{Every: time.Hour})
}

// A longer run: PARLEY_CRASH_RUNS=200 go test -run TestPowerCut ./partition/storage/badger
func TestPowerCutLosesNothingDurable(t *testing.T) {
	t.Parallel()
	runs := envInt("PARLEY_CRASH_RUNS", 2)
	seed := rand.Uint64()
	images, collected := 0, int64(0)
	for i := range uint64(runs) {
		c := newCrashRun(t, seed+i, hooks{}, false)
		err := c.load(240)
		collected += c.engine.collected.Load()
		c.close()
		images += c.images
		if err != nil {
			t.Fatalf("seed %d: %v", seed+i, err)
		}
	}
	t.Logf("%d images, %d value log files collected, seeds from %d", images, collected, seed)
	if collected == 0 {
		t.Error("nothing was collected, so that collections were not tested")
	}
}

// The checker must notice when a safeguard is missing.
func TestPowerCutCatchesMutants(t *testing.T) {
	t.Parallel()
	for _, mutant := range []struct {
		name  string
		hooks hooks
		late  bool
	}{
		{"files that have rotated are not fsynced", hooks{onlyActive: true}, false},
		{"collection without the guard", hooks{noGuard: true}, false},
		{"collection with an open iterator only", hooks{noNote: true}, false},
		{"checkpoint before the sync", hooks{}, true},
	} {
		t.Run(mutant.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			for i := range uint64(20) {
				c := newCrashRun(t, seed+i, mutant.hooks, mutant.late)
				err := c.load(240)
				c.close()
				if err != nil {
					t.Logf("caught by run %d: %v", i+1, err)
					return
				}
			}
			t.Fatalf("20 runs from seed %d did not notice it", seed)
		})
	}
}

func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// memoryDir is a directory in memory where there is such a file system: the
// model decides what is durable, so the real fsyncs only cost time.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "parley-crash")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
