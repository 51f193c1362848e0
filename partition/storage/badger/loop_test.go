package badger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

// The real thing: a process writes to an ext4 file system on a loop device, and
// the file system is shut down under it, journal not flushed, as by a power cut.
// What it finds after a new mount is what was on the disk. Unlike a copy of the
// backing file, that is one moment.
//
// A longer run, as root: PARLEY_POWER_CUTS=50 go test -run LoopDevice ./partition/storage/badger

// ext4Shutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32); 2 is NOLOGFLUSH.
const (
	ext4Shutdown = 0x8004587d
	noLogFlush   = 2
)

// justCollected is what a child says when a file was rewritten and not yet synced.
const justCollected = "collected"

const powerChildDir, powerMutant = "PARLEY_POWER_CHILD", "PARLEY_POWER_MUTANT"

// childLog appends chunks whose bounds and content follow from their base alone,
// so that another process can check them.
type childLog struct {
	id    storage.LogID
	store storage.Store
	start int64
}

const childLogs = 3

func childID(i int) storage.LogID {
	return storage.LogID{Topic: 9, Partition: uint64(i), Replica: 1}
}

func childChunk(i int, base int64) storage.Chunk {
	r := rand.New(rand.NewPCG(uint64(base), uint64(i)))
	size := 300
	if r.IntN(4) > 0 {
		size = 2000 + r.IntN(40_000)
	}
	return storagetest.MakeChunk(base, base+r.Int64N(40), size, uint64(i))
}

func (l *childLog) Capture() (storage.Checkpoint, error) {
	next := l.store.Next()
	return storage.Checkpoint{Log: l.id, Index: uint64(next), Mark: storage.Mark{Start: l.start, Next: next}}, nil
}

// Durable says so to the parent: what was said must hold from then on.
func (l *childLog) Durable(c storage.Checkpoint) {
	fmt.Println(l.id.Partition, c.Mark.Start, c.Mark.Next)
	if err := l.store.Trim(c.Mark.Start, nil); err != nil {
		panic(err)
	}
}

// powerChild writes until somebody kills it.
func powerChild(dir string) error {
	mutant := os.Getenv(powerMutant)
	h := hooks{midCollect: func(step string) {
		if step != "rewritten" {
			return
		}
		// Somebody else fsyncs on the same file system, as a Raft log does all the
		// time: that makes removals durable, not the copies.
		if err := writeDurably(filepath.Join(dir, "somebody-else"), []byte("x")); err != nil {
			panic(err)
		}
		fmt.Println(justCollected)
		if mutant == "no guard" {
			select {}
		}
	}}
	late := false
	switch mutant {
	case "":
	case "no guard":
		h.noGuard = true
	case "checkpoint first":
		late = true
	default:
		return fmt.Errorf("no mutant %q", mutant)
	}
	e, err := openEngine(storage.Options{Dir: filepath.Join(dir, "store")}, small, h)
	if err != nil {
		return err
	}
	var synced storage.Engine = e
	if late {
		synced = lateSync{e}
	}
	cp, err := openCheckpoints(filepath.Join(dir, "checkpoints"), synced)
	if err != nil {
		return err
	}
	var logs []*childLog
	for i := range childLogs {
		l := &childLog{id: childID(i)}
		c, _ := cp.Load(l.id)
		l.start = c.Mark.Start
		if l.store, err = e.Open(l.id, c.Mark); err != nil {
			return err
		}
		logs = append(logs, l)
		cp.Register(l.id, l)
	}
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for step := 1; ; step++ {
		i := r.IntN(childLogs)
		l := logs[i]
		if err := l.store.Append([]storage.Chunk{childChunk(i, l.store.Next())}, nil); err != nil {
			return err
		}
		if step%60 == 0 {
			for i, l := range logs {
				// One log keeps long, so that files hold what lives and what doesn't.
				l.start = max(l.start, l.store.Next()-int64(4000/(1+i*20)))
			}
			if err := cp.Sync(context.Background()); err != nil {
				return err
			}
		}
		if step%400 == 0 && !late { // a collection would sync
			if err := e.Collect(nil); err != nil {
				return err
			}
		}
	}
}

// loopDisk is an ext4 file system in a file.
type loopDisk struct{ image, dir string }

func newLoopDisk(t *testing.T) *loopDisk {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s here", tool)
		}
	}
	d := &loopDisk{image: filepath.Join(t.TempDir(), "disk"), dir: t.TempDir()}
	f, err := os.Create(d.image)
	check(t, err)
	check(t, errors.Join(f.Truncate(512<<20), f.Close()))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	if out, err := d.mount(); err != nil {
		t.Skipf("no loop mounts here: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", d.dir).Run() })
	return d
}

func (d *loopDisk) mount() ([]byte, error) {
	return exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput()
}

// cut shuts the file system down as it is.
func (d *loopDisk) cut() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush)
	return errors.Join(err, f.Close())
}

// restart mounts what the cut has left.
func (d *loopDisk) restart(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		out, err := exec.Command("umount", d.dir).CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("umount: %v: %s", err, out)
		}
		time.Sleep(20 * time.Millisecond) // the killed process is still being taken apart
	}
	if out, err := d.mount(); err != nil {
		t.Fatalf("mount after the cut: %v: %s", err, out)
	}
}

// run lets a child write until it has said often enough that something is
// durable, cuts the power and returns the newest of what it said.
func (d *loopDisk) run(t *testing.T, mutant string, words int) map[int]storage.Mark {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), powerChildDir+"="+d.dir, powerMutant+"="+mutant)
	child.Dir = "/"
	var stderr strings.Builder
	child.Stderr = &stderr
	out, err := child.StdoutPipe()
	check(t, err)
	check(t, child.Start())
	defer func() { _ = child.Wait() }()
	defer func() { _ = child.Process.Kill() }()
	said := make(map[int]storage.Mark)
	lines := bufio.NewScanner(out)
	for range words {
		if !lines.Scan() {
			t.Fatalf("the child ended: %s", stderr.String())
		}
		if lines.Text() == justCollected {
			if rand.IntN(3) == 0 || mutant == "no guard" {
				break // the worst moment there is
			}
			continue
		}
		var log int
		var m storage.Mark
		if _, err := fmt.Sscan(lines.Text(), &log, &m.Start, &m.Next); err != nil {
			t.Fatalf("the child said %q: %v", lines.Text(), err)
		}
		said[log] = m
	}
	check(t, d.cut())
	return said
}

// verify checks what is on the disk against what was said.
func (d *loopDisk) verify(said map[int]storage.Mark) (err error) {
	e, err := openEngine(storage.Options{Dir: filepath.Join(d.dir, "store")}, small, hooks{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	cp, err := openCheckpoints(filepath.Join(d.dir, "checkpoints"), e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cp.Close()) }()
	for i := range childLogs {
		id := childID(i)
		c, _ := cp.Load(id)
		if c.Mark.Start < said[i].Start || c.Mark.Next < said[i].Next {
			return fmt.Errorf("log %s: checkpoint says %v, %v was durable", id, c.Mark, said[i])
		}
		s, err := e.Open(id, c.Mark)
		if err != nil {
			return err
		}
		end := int64(-1)
		var wrong error
		if err := s.Read(c.Mark.Start, func(got storage.Chunk) bool {
			if !storagetest.Same(got, childChunk(i, got.Base)) {
				wrong = fmt.Errorf("log %s: chunk of offsets %d to %d is not what was stored", id, got.Base, got.Last)
			}
			end = got.Last + 1
			return wrong == nil
		}); err != nil || wrong != nil {
			return errors.Join(err, wrong)
		}
		if c.Mark.Next > c.Mark.Start && end != c.Mark.Next || s.Next() != c.Mark.Next {
			return fmt.Errorf("log %s: read up to %d, next is %d, the checkpoint says %v", id, end, s.Next(), c.Mark)
		}
	}
	return nil
}

func TestPowerCutOnLoopDevice(t *testing.T) {
	t.Parallel()
	d := newLoopDisk(t)
	cuts := envInt("PARLEY_POWER_CUTS", 3)
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for n := range cuts {
		said := d.run(t, "", 5+r.IntN(60))
		d.restart(t)
		if err := d.verify(said); err != nil {
			t.Fatalf("after cut %d: %v", n+1, err)
		}
	}
	t.Logf("%d cuts, each after the one before", cuts)
}

// Two of the mutants. That rotated files are left out shows on a real disk only
// while a memtable that has rotated waits for its flush: the shadow's tests catch it.
func TestPowerCutOnLoopDeviceCatchesMutants(t *testing.T) {
	t.Parallel()
	for _, mutant := range []string{"checkpoint first", "no guard"} {
		t.Run(mutant, func(t *testing.T) {
			t.Parallel()
			d := newLoopDisk(t)
			for n := range 10 {
				words := 60
				if mutant == "no guard" {
					words = 1 << 30 // up to a collection
				}
				said := d.run(t, mutant, words)
				d.restart(t)
				if err := d.verify(said); err != nil {
					t.Logf("caught by cut %d: %v", n+1, err)
					return
				}
			}
			t.Fatal("10 cuts did not notice it")
		})
	}
}
