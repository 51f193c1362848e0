package raft_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lni/vfs"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft"
	"github.com/parleymq/parley/replication/replicationtest"
)

// harness runs hosts in this process, on ports of the kernel's choice: each restart
// gets another one.
type harness struct {
	t      *testing.T
	memory bool
	dir    string

	mu     sync.Mutex
	hosts  map[int]*raft.Host
	disks  map[int]vfs.FS
	places map[[2]uint64]int
}

func newHarness(t *testing.T, memory bool) *harness {
	h := &harness{
		t: t, memory: memory, dir: t.TempDir(),
		hosts: make(map[int]*raft.Host), disks: make(map[int]vfs.FS), places: make(map[[2]uint64]int),
	}
	t.Cleanup(func() {
		for _, host := range h.hosts {
			if err := host.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return h
}

func (h *harness) config(n int) raft.Config {
	c := raft.Config{
		Dir:           filepath.Join(h.dir, fmt.Sprint(n)),
		Listen:        "127.0.0.1:0",
		Tick:          20 * time.Millisecond,
		SnapshotCount: 40,
		RetainBytes:   1,
		SegmentBytes:  1 << 20,
		WriteBuffer:   4 << 20,
		Resolve: func(shard, replica uint64) (string, bool) {
			h.mu.Lock()
			defer h.mu.Unlock()
			n, ok := h.places[[2]uint64{shard, replica}]
			if !ok || h.hosts[n] == nil {
				return "", false
			}
			return h.hosts[n].Address(), true
		},
		OnFatal: func(err error) { h.t.Errorf("fatal: %v", err) },
	}
	if os.Getenv("PARLEY_TEST_LOG") != "" {
		c.Logger = zerolog.New(zerolog.NewTestWriter(h.t)).With().Int("host", n).Logger()
	} else {
		c.Logger = zerolog.Nop()
	}
	if h.memory {
		if h.disks[n] == nil {
			h.disks[n] = vfs.NewStrictMem()
		}
		c.Dir = fmt.Sprintf("/raft/%d", n)
		c.FS = h.disks[n]
	}
	return c
}

func (h *harness) open(n int) *raft.Host {
	h.mu.Lock()
	host := h.hosts[n]
	h.mu.Unlock()
	if host != nil {
		return host
	}
	host, err := raft.NewHost(h.config(n))
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.hosts[n] = host
	h.mu.Unlock()
	return host
}

func (h *harness) Host(n int) replication.Host { return h.open(n) }

func (h *harness) Address(n int) string { return h.open(n).Address() }

func (h *harness) Restart(n int) {
	if err := h.open(n).Close(); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	delete(h.hosts, n)
	h.mu.Unlock()
	h.open(n)
}

func (h *harness) Cut(n int, _ uint64) {
	deadline := time.Now().Add(10 * time.Second)
	for h.open(n).Figures()["cuts"] == 0 {
		if time.Now().After(deadline) {
			h.t.Fatal("the log was not cut")
		}
		time.Sleep(time.Millisecond)
	}
}

func (h *harness) Place(shard, replica uint64, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.places[[2]uint64{shard, replica}] = n
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, memory := range []bool{true, false} {
		name := "disk"
		if memory {
			name = "memory"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replicationtest.Run(t, func(t *testing.T) replicationtest.Harness { return newHarness(t, memory) })
		})
	}
}
