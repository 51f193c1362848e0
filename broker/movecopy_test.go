package broker_test

import (
	"slices"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

const copyRate = 1 << 20

// copying is a cluster whose Raft logs are cut early, so that a new replica is handed a list of what a partition
// is made of, and whose copies are slow.
func copying(c *broker.Config) {
	c.CutBytes, c.CheckpointEvery, c.CopyRate = laggardCut, 100*time.Millisecond, copyRate
}

// adding is what the leader says of the replica that comes to a broker.
func adding(c *brokertest.Cluster, topic, to string) (wire.ReplicaCopy, bool) {
	m := c.Describe(topic).Partitions[0].Move
	if m == nil {
		return wire.ReplicaCopy{}, false
	}
	i := slices.IndexFunc(m.Adding, func(r wire.ReplicaCopy) bool { return r.Broker == to })
	if i < 0 {
		return wire.ReplicaCopy{}, false
	}
	return m.Adding[i], true
}

// TestMoveCopies: a new replica fetches what the partition holds, at the rate at which copies are sent. How far it is shows. Killed in the
// middle it goes on where it was, and is no member that counts before it has all of it.
func TestMoveCopies(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, copying)
	createOn(t, c, "t", "b1", "b2", "b3")
	bytes := fill(t, c.Brokers[0], "t", 90)
	b4 := c.Member("b4")
	begin := time.Now()
	c.Move("t", 0, "b1", "b2", "b4")
	progress := func(least int64, done bool) {
		t.Helper()
		brokertest.Eventually(t, "the leader tells how far the copy is", func() bool {
			if done && c.Describe("t").Partitions[0].Move == nil {
				return true // too quick to be seen: what was fetched tells in the end
			}
			a, ok := adding(c, "t", "b4")
			if ok && a.InSync && a.Bytes < bytes {
				t.Fatalf("it counts as in sync with %d bytes", a.Bytes)
			}
			if !done && !ok && len(c.Partition("t", 0).Retired) > 0 {
				t.Fatal("it has moved already")
			}
			return ok && a.Bytes >= least && a.Bytes < a.OfBytes
		})
	}
	progress(bytes*5/8, false)
	if moving := metric(t, c.Member("b1").Addresses().HTTP, `parley_partition_copied_bytes{partition="0",to="b4",topic="t"}`); moving < 1<<20 {
		t.Errorf("the metric says that %d bytes are copied", moving)
	}
	fetched := figure(t, b4, "parley_catchup_fetched_bytes_total")
	b4.Kill()
	b4.Launch()
	progress(fetched-1<<20, true) // what it fetched before counts: more than it has yet to fetch
	c.Moved("t")
	took := time.Since(begin)
	fetched += figure(t, b4, "parley_catchup_fetched_bytes_total")
	t.Logf("%d bytes were copied as %d in %v", bytes, fetched, took)
	if fetched < bytes*3/4 || fetched > bytes*5/4+2*laggardCut {
		t.Errorf("%d bytes were fetched of %d", fetched, bytes)
	}
	most := int64(0) // that one broker sent
	for _, name := range []string{"b1", "b2", "b3"} {
		most = max(most, figure(t, c.Member(name), "parley_copied_bytes_total"))
	}
	if least := time.Duration(most-1<<20) * time.Second / copyRate; took < least || most == 0 {
		t.Errorf("one broker sent %d bytes in %v, less than %v: the rate does not hold", most, took, least)
	}
	clean(t, c, "t")
	whole(t, c, "t", 90)
}

// TestMoveOfWholeLog: where the Raft log still has all its entries a new replica doesn't get them one by one, at whatever rate Raft
// sends them: it fetches what the partition holds, at the rate of copies.
func TestMoveOfWholeLog(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, func(c *broker.Config) { c.CopyRate = 2 * copyRate })
	createOn(t, c, "t", "b1", "b2", "b3")
	bytes := fill(t, c.Brokers[0], "t", 90)
	begin := time.Now()
	c.Move("t", 0, "b1", "b2", "b4")
	c.Moved("t")
	took := time.Since(begin)
	if fetched := figure(t, c.Member("b4"), "parley_catchup_fetched_bytes_total"); fetched < bytes*9/10 {
		t.Errorf("%d bytes were fetched of %d: the others came as entries", fetched, bytes)
	}
	most := int64(0) // that one broker sent
	for _, name := range []string{"b1", "b2", "b3"} {
		most = max(most, figure(t, c.Member(name), "parley_copied_bytes_total"))
	}
	if least := time.Duration(most-1<<20) * time.Second / (2 * copyRate); took < least {
		t.Errorf("one broker sent %d bytes in %v, less than %v: the rate does not hold", most, took, least)
	}
	clean(t, c, "t")
	whole(t, c, "t", 90)
}

// TestMoveCopyGivenUp: a move gets another target while its copy is under way: the copy ends at once, and its data goes.
func TestMoveCopyGivenUp(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, copying)
	createOn(t, c, "t", "b1", "b2", "b3")
	fill(t, c.Brokers[0], "t", 120)
	c.Move("t", 0, "b1", "b2", "b4")
	brokertest.Eventually(t, "some is copied", func() bool {
		a, ok := adding(c, "t", "b4")
		return ok && a.Bytes > 1<<20 && a.Bytes < a.OfBytes
	})
	c.Move("t", 0, "b2", "b1", "b3")
	begin := time.Now()
	c.Moved("t")
	clean(t, c, "t")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the copy ended after %v", took)
	}
	if ids := logsHeld(t, c.Member("b4"), c.Epoch().Topic("t").ID); len(ids) > 0 {
		t.Errorf("b4 holds %v", ids)
	}
	whole(t, c, "t", 120)
}
