package raft

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/replicationtest"
)

var nilConfig config.NodeHostConfig

// A group of one leads at once, at default ticks, whatever address it has.
func TestLeadsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 3 {
		c := testConfig(dir)
		c.Tick = 0
		start := time.Now()
		h, err := NewHost(c)
		if err != nil {
			t.Fatal(err)
		}
		l := mustLead(t, h, replicationtest.NewLedger(nil))
		mustPropose(t, l, "x")
		// An election timeout would be one to two seconds.
		if took := time.Since(start); took > DefaultTick*DefaultElectionTicks*9/10 {
			t.Errorf("ready after %v", took)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The Raft log doesn't grow with what was written.
func TestLogIsCut(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	c.SnapshotBytes, c.RetainBytes, c.SegmentBytes = 2<<20, 1<<20, 1<<20
	h := mustHost(t, c)
	l := mustLead(t, h, discard{})
	data := make([]byte, 256<<10)
	const total = 64 << 20
	deadline := time.Now().Add(20 * time.Second)
	for n := 0; n < total; {
		p, err := l.Propose(data, 10*time.Second)
		if err == nil {
			_, err = p.Wait()
		}
		switch {
		case err == nil:
			n += len(data)
		case errors.Is(err, replication.ErrBusy) && time.Now().Before(deadline):
			time.Sleep(time.Millisecond) // such small memory tables make the log store stall
		default:
			t.Fatal(err)
		}
	}
	for h.Figures()["cuts"] < 10 || size(t, c.Dir) > total/4 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are left of %d after %v cuts", size(t, c.Dir), total, h.Figures()["cuts"])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestLogIsShortened: a log that has all its entries is cut, but for a few, and is left alone from then on.
func TestLogIsShortened(t *testing.T) {
	t.Parallel()
	h := mustHost(t, testConfig(t.TempDir()))
	l := mustLead(t, h, discard{})
	for range 40 {
		mustPropose(t, l, "some bytes")
	}
	p := l.(*replica)
	if first, last, err := p.span(); err != nil || first != 1 || last < 40 {
		t.Fatalf("the log is from %d to %d (%v), want from 1 on", first, last, err)
	}
	if cut, err := p.Shorten(t.Context()); err != nil || !cut {
		t.Fatalf("shorten: %v, %v, want true", cut, err)
	}
	first, last, err := p.span()
	if err != nil || first == 1 || last-first < last/2-1 {
		t.Errorf("the log is from %d to %d (%v), want its newer half", first, last, err)
	}
	cuts := h.Figures()["cuts"]
	if cut, err := p.Shorten(t.Context()); err != nil || cut {
		t.Errorf("shorten again: %v, %v, want false: whoever joins gets a snapshot already", cut, err)
	}
	if again, _, err := p.span(); err != nil || again != first || h.Figures()["cuts"] != cuts {
		t.Errorf("the log begins at %d after that (%v), want %d", again, err, first)
	}
	mustPropose(t, l, "more")
}

// Many logs that fill slowly are cut when all together are long.
func TestLogsAreCutTogether(t *testing.T) {
	t.Parallel()
	c := testConfig(t.TempDir())
	c.LogBytes = 1 << 20
	h := mustHost(t, c)
	data := make([]byte, 32<<10)
	for shard := uint64(1); shard <= 8; shard++ {
		l, err := h.Start(t.Context(), replication.Replica{Shard: shard, Replica: 1, Initial: map[uint64]string{1: h.Address()}}, discard{})
		if err != nil {
			t.Fatal(err)
		}
		waitLead(t, l)
		for range 12 { // 384 KiB a log, 3 MiB in all
			mustPropose(t, l, string(data))
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for f := h.Figures(); f["cuts"] < 2 || f["uncut_bytes"] >= float64(c.LogBytes); f = h.Figures() {
		if time.Now().After(deadline) {
			t.Fatalf("%v", f)
		}
		time.Sleep(time.Millisecond)
	}
}

func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		if info, ierr := d.Info(); ierr == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTimeoutBelowATick(t *testing.T) {
	t.Parallel()
	h := mustHost(t, testConfig(t.TempDir()))
	l := mustLead(t, h, replicationtest.NewLedger(nil))
	if _, err := l.Propose([]byte("x"), h.config.Tick-1); err == nil || !strings.Contains(err.Error(), "tick") {
		t.Fatalf("propose with less than a tick: %v", err)
	}
}

// Without a leader a proposal is dropped, for certain.
func TestDroppedWithoutLeader(t *testing.T) {
	t.Parallel()
	h := mustHost(t, testConfig(t.TempDir()))
	l, err := h.Start(t.Context(), replication.Replica{
		Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address(), 2: "127.0.0.1:1", 3: "127.0.0.1:1"},
	}, replicationtest.NewLedger(nil))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		p, err := l.Propose([]byte("x"), time.Second)
		if err == nil {
			_, err = p.Wait()
		}
		if errors.Is(err, replication.ErrDropped) {
			return
		}
		// Until it has started.
		if !errors.Is(err, replication.ErrNoLeader) || time.Now().After(deadline) {
			t.Fatalf("propose without a leader: %v, want ErrDropped", err)
		}
	}
}

// broken fails to apply.
type broken struct{ discard }

func (broken) Apply([]replication.Entry) error { return errors.New("disk on fire") }

// What can't go on tells OnFatal, which may end the process with one clear line.
func TestFatal(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("PARLEY_TEST_FATAL"); dir != "" {
		die(t, dir, os.Getenv("PARLEY_TEST_FATAL_BY"))
		return
	}
	for by, want := range map[string]string{
		"apply": "FATAL apply entries",
		"log":   "FATAL raft log: ",
	} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestFatal$")
			cmd.Env = append(os.Environ(), "PARLEY_TEST_FATAL="+t.TempDir(), "PARLEY_TEST_FATAL_BY="+by)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Fatalf("exit: %v, want status 3\n%s", err, out)
			}
			if !strings.Contains(string(out), want) {
				t.Fatalf("no %q in\n%s", want, out)
			}
		})
	}
}

func die(t *testing.T, dir, by string) {
	c := testConfig(dir)
	c.Logger = zerolog.Nop()
	c.OnFatal = func(err error) {
		fmt.Println("FATAL", err)
		os.Exit(3)
	}
	c.WriteBuffer, c.SegmentBytes = 1<<20, 1<<20
	h := mustHost(t, c)
	var sm replication.StateMachine = broken{}
	if by == "log" {
		sm = discard{}
	}
	l := mustLead(t, h, sm)
	if by == "log" {
		limitFileSize(t, 512<<10)
	}
	for range 100 {
		p, err := l.Propose(make([]byte, 128<<10), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = p.Wait()
	}
	t.Fatal("it went on")
}
