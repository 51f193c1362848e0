package memlog_test

import (
	"fmt"
	"testing"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/memlog"
	"github.com/parleymq/parley/replication/replicationtest"
)

// harness is a cluster that runs by itself.
type harness struct {
	t     *testing.T
	c     *memlog.Cluster
	hosts map[int]*memlog.Host
}

func (h *harness) Host(n int) replication.Host {
	if h.hosts[n] == nil {
		h.hosts[n] = h.c.Host(h.Address(n))
	}
	return h.hosts[n]
}

func (h *harness) Address(n int) string { return fmt.Sprintf("host-%d", n) }

func (h *harness) Restart(n int) {
	if err := h.hosts[n].Close(); err != nil {
		h.t.Fatal(err)
	}
	h.hosts[n] = h.c.Host(h.Address(n))
}

func (h *harness) Cut(_ int, shard uint64) {
	if err := h.c.Compact(shard, 0); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) Place(uint64, uint64, int) {}

func TestConformance(t *testing.T) {
	t.Parallel()
	replicationtest.Run(t, func(t *testing.T) replicationtest.Harness {
		c := memlog.NewCluster(memlog.Options{Seed: 1})
		c.Run()
		t.Cleanup(c.Stop)
		return &harness{t: t, c: c, hosts: make(map[int]*memlog.Host)}
	})
}

// The suite holds for a log that drops, loses and repeats, too.
func TestConformanceWithFaults(t *testing.T) {
	t.Parallel()
	replicationtest.Run(t, func(t *testing.T) replicationtest.Harness {
		c := memlog.NewCluster(memlog.Options{Seed: 2, Faults: memlog.Faults{
			Drop: 0.1, Lose: 0.05, CommitMutely: 0.05, CommitLate: 0.05, CommitBehind: 0.1, Gap: 0.1,
		}})
		c.Run()
		t.Cleanup(c.Stop)
		return &harness{t: t, c: c, hosts: make(map[int]*memlog.Host)}
	})
}
