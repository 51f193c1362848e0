package raft

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/replicationtest"
)

func testConfig(dir string) Config {
	return Config{Dir: dir, Listen: "127.0.0.1:0", Tick: 20 * time.Millisecond, SegmentBytes: 4 << 20, WriteBuffer: 4 << 20, Logger: zerolog.Nop()}
}

func mustHost(t *testing.T, c Config) *Host {
	t.Helper()
	h, err := NewHost(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// mustLead starts the only replica of log 1 and waits for its leadership.
func mustLead(t *testing.T, h *Host, sm replication.StateMachine) replication.Log {
	t.Helper()
	l, err := h.Start(t.Context(), replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address()}}, sm)
	if err != nil {
		t.Fatal(err)
	}
	waitLead(t, l)
	return l
}

func mustPropose(t *testing.T, l replication.Log, data string) {
	t.Helper()
	p, err := l.Propose([]byte(data), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A container made anew on the same volume has another host name.
func TestHostNameChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// Each step is a state of the directory in which a process may have died.
	for i, before := range []func(){
		func() {},
		// Another host's: recorded and named so.
		func() {
			rename(t, filepath.Join(dir, host), filepath.Join(dir, "0123456789ab"))
			recordHostname(t, dir, "0123456789ab")
		},
		// The record was blanked already, the directory not renamed yet.
		func() { rename(t, filepath.Join(dir, host), filepath.Join(dir, "ffffffffffff")) },
		// Recorded as another's, named as ours.
		func() { recordHostname(t, dir, "0123456789ab") },
		func() {},
	} {
		before()
		h, err := NewHost(testConfig(dir))
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		ledger := replicationtest.NewLedger(nil)
		l := mustLead(t, h, ledger)
		mustPropose(t, l, fmt.Sprint("step ", i))
		if n := len(ledger.Lines()); n != i+1 {
			t.Fatalf("step %d: %d lines, want %d", i, n, i+1)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Two hosts' data: nobody can tell which is right.
	if err := os.CopyFS(filepath.Join(dir, "0123456789ab"), os.DirFS(filepath.Join(dir, host))); err != nil {
		t.Fatal(err)
	}
	if _, err := NewHost(testConfig(dir)); !errors.Is(err, ErrForeignDirectory) {
		t.Fatalf("open a directory with two host names: %v, want ErrForeignDirectory", err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func recordHostname(t *testing.T, dir, name string) {
	t.Helper()
	file := filepath.Join(dir, statusFile)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s raftpb.RaftDataStatus
	if err := s.Unmarshal(data[8:]); err != nil {
		t.Fatal(err)
	}
	s.Hostname = name
	msg, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(statusHash(msg), msg...), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDirectoryIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustHost(t, testConfig(dir))
	_, err := NewHost(testConfig(dir))
	var locked *LockedError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) {
		t.Fatalf("open a directory twice: %v, want ErrLocked", err)
	}
	if want := fmt.Sprint("process ", os.Getpid()); !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%q doesn't name %q and %q", err, want, dir)
	}
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	c := testConfig(dir)
	c.Listen = l.Addr().String()
	_, err = NewHost(c)
	if !errors.Is(err, ErrAddressInUse) || !strings.Contains(err.Error(), c.Listen) {
		t.Fatalf("listen on a taken port: %v, want ErrAddressInUse naming %s", err, c.Listen)
	}
	// The directory was given back.
	mustHost(t, testConfig(dir))
}

func TestForeignDirectory(t *testing.T) {
	t.Parallel()
	open := func(c Config) error {
		h, err := NewHost(c)
		if err == nil {
			err = h.Close()
		}
		return err
	}
	dir := t.TempDir()
	if err := open(testConfig(dir)); err != nil {
		t.Fatal(err)
	}
	other := testConfig(dir)
	other.Deployment = 7
	if err := open(other); !errors.Is(err, ErrForeignDirectory) {
		t.Errorf("another deployment: %v, want ErrForeignDirectory", err)
	}
	file := filepath.Join(dir, statusFile)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range [][]byte{nil, data[:5], data[:len(data)-1], append([]byte{data[0] ^ 1}, data[1:]...)} {
		if err := os.WriteFile(file, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := open(testConfig(dir)); !errors.Is(err, ErrForeignDirectory) {
			t.Errorf("damaged status file of %d bytes: %v, want ErrForeignDirectory", len(damaged), err)
		}
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(testConfig(dir)); err != nil {
		t.Errorf("restored: %v", err)
	}
}

func TestUnwritableDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewHost(testConfig(filepath.Join(file, "raft"))); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("a directory below a file: %v", err)
	}
}

// A power cut loses what wasn't synced, and nothing that was answered.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	disk := vfs.NewStrictMem()
	want := 0
	for range 3 {
		c := testConfig("/raft")
		c.FS = disk
		h, err := NewHost(c)
		if err != nil {
			t.Fatal(err)
		}
		ledger := replicationtest.NewLedger(nil) // nothing of it was synced
		l := mustLead(t, h, ledger)
		if err := l.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(ledger.Lines()); n != want {
			t.Fatalf("%d lines after a power cut, want %d", n, want)
		}
		for range 50 {
			mustPropose(t, l, "line")
			want++
		}
		// From here on nothing reaches the disk; closing is only tidying up.
		disk.SetIgnoreSyncs(true)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		disk.ResetToSyncedState()
		disk.SetIgnoreSyncs(false)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"Dir":           func(c *Config) { c.Dir = "" },
		"Tick":          func(c *Config) { c.Tick = time.Microsecond },
		"ElectionTicks": func(c *Config) { c.ElectionTicks = 2 },
		"MaxUnapplied":  func(c *Config) { c.MaxUnapplied = 1 << 20 },
		"SegmentBytes":  func(c *Config) { c.SegmentBytes = 1 },
		"MaxEntry":      func(c *Config) { c.MaxEntry = 1 << 30; c.MaxUnapplied = 2 << 30 },
	} {
		c := testConfig(t.TempDir())
		change(&c)
		if _, err := NewHost(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
