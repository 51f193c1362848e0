package broker_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// smallDisk gives one broker a disk whose free space the test sets, of 100 GiB with a floor of 1 GiB.
func smallDisk(name string, free *atomic.Uint64) brokertest.Option {
	free.Store(90 << 30)
	return func(c *broker.Config) {
		if c.Name == name {
			c.FreeSpaceFloor = 1 << 30
			c.FreeSpace = func(string) (uint64, uint64, error) { return free.Load(), 100 << 30, nil }
		}
	}
}

// TestDiskFillsDuringCopy: a copy waits while the disk that it goes to is almost full, says so, and goes on where it was.
func TestDiskFillsDuringCopy(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, copying, smallDisk("b4", &free))
	createOn(t, c, "t", "b1", "b2", "b3")
	bytes := fill(t, c.Brokers[0], "t", 90)
	c.Move("t", 0, "b1", "b2", "b4")
	brokertest.Eventually(t, "some is copied", func() bool {
		a, ok := adding(c, "t", "b4")
		return ok && a.Bytes > 1<<20 && a.Bytes < bytes/2
	})
	free.Store(1 << 20)
	brokertest.Eventually(t, "the move says what it waits for", func() bool {
		m := c.Describe("t").Partitions[0].Move
		return m != nil && strings.Contains(m.Detail, "its disk is full")
	})
	brokertest.Eventually(t, "the broker says what it waits for", func() bool {
		return strings.Contains(strings.Join(c.Member("b4").Problems(), " "), "almost full")
	})
	paused := figure(t, c.Member("b4"), "parley_catchup_fetched_bytes_total")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1) // the others go on
	load.More(100)
	for end := time.Now().Add(time.Second); time.Now().Before(end); load.More(10) {
		if now := figure(t, c.Member("b4"), "parley_catchup_fetched_bytes_total"); now > paused+1<<20 { // one request may have been under way
			t.Fatalf("%d bytes are fetched with the disk full, after %d", now, paused)
		}
	}
	if m := c.Partition("t", 0); len(m.Retired) > 0 {
		t.Fatal("it has moved")
	}
	free.Store(90 << 30)
	c.Moved("t")
	load.Stop()
	clean(t, c, "t")
}

// TestFollowersDiskIsFull: a replica whose disk is almost full takes nothing in; the others go on without it, and it gets what it lacks when
// there is room.
func TestFollowersDiskIsFull(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	c := brokertest.StartCluster(t, 3, unkept, smallDisk("b3", &free))
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	c.InSync("t")
	free.Store(1 << 20)
	brokertest.Eventually(t, "b3 says that it takes nothing in", func() bool {
		return strings.Contains(strings.Join(c.Member("b3").Problems(), " "), "take nothing in")
	})
	brokertest.Eventually(t, "entries are left out", func() bool { return figure(t, c.Member("b3"), "parley_raft_spared_messages") > 0 })
	var stored [2]int64
	next := func(name string) int64 {
		return int64(metric(t, c.Member(name).Addresses().HTTP, `parley_partition_next_offset{partition="0",topic="t"}`))
	}
	stored[0] = next("b3")
	load.More(200)
	if stored[1] = next("b3"); stored[1] > stored[0] {
		t.Errorf("b3 took records in with its disk full: it ended at %d, and now at %d", stored[0], stored[1])
	}
	if now := next("b1"); now < stored[0]+200 {
		t.Errorf("b1 ends at %d", now)
	}
	free.Store(90 << 30)
	c.InSync("t")
	load.Check(c.URLs())
}

// TestNewcomerWithoutRoom: a broker that joins with its disk almost full gets its share by the epochs, and can't take it: whoever is asked says which
// broker it is, how much is free there and how much is needed. The others go on; once there is room, so does the move.
func TestNewcomerWithoutRoom(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	c := brokertest.StartCluster(t, 3, quickTrash, quick(time.Minute))
	createR3(t, c, "t", 2)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	option := smallDisk("b4", &free)
	free.Store(300 << 20)
	c.Join("b4", option)
	want := []string{"on b4: ", "300MiB free of 100GiB", "1.2GiB must be free", "this partition takes "}
	has := func(text string) bool {
		for _, w := range want {
			if !strings.Contains(text, w) {
				return false
			}
		}
		return true
	}
	for _, m := range c.Brokers {
		m.Health("the disk of b4 is told", func(h wire.ClusterHealth) bool {
			return !h.Healthy && slices.ContainsFunc(h.Problems, func(p string) bool { return strings.Contains(p, "can't move") && has(p) })
		})
		brokertest.Eventually(t, "a move says what it waits for", func() bool {
			d, err := m.API().TopicDescribe(t.Context(), wire.NameRequest{Name: "t"})
			return err == nil && slices.ContainsFunc(d.Partitions, func(p wire.PartitionDescription) bool { return p.Move != nil && has(p.Move.Detail) })
		})
	}
	load.More(20)
	if n := logsHeld(t, c.Member("b4"), c.Epoch().Topic("t").ID); len(n) > 0 {
		t.Errorf("b4 holds %v on a disk without room", n)
	}
	free.Store(90 << 30)
	settled(t, c.Brokers[0], "b4", 1, 2) // of 6 on four
	c.InSync("t")
	c.Healthy()
	load.Check(c.URLs())
}
