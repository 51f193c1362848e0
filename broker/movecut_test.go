package broker_test

import (
	"context"
	"slices"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// prefer has a broker lead the topic's partition 0, while that moves too.
func prefer(t *testing.T, c *brokertest.Cluster, topic, to string) {
	t.Helper()
	brokertest.Eventually(t, to+" leads "+topic, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), brokertest.Wait)
		defer cancel()
		_, err := c.Member("b2").API().PartitionTransfer(ctx, wire.PartitionTransfer{Topic: topic, To: to})
		return err == nil && c.Describe(topic).Partitions[0].Leader == to
	})
}

// TestMoveCutOffInMidCopy: the link between a new replica and the leader is cut in the middle of the copy, and the leadership changes, to a
// broker that is then cut off from it too. Nothing is promoted that hasn't all; taken back, nothing stays of it; healed, the move completes.
func TestMoveCutOffInMidCopy(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes more than three seconds")
	}
	t.Parallel()
	const records = 50
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, copying)
	createOn(t, c, "t", "b1", "b2", "b3")
	fill(t, c.Brokers[0], "t", records)
	begin := func() {
		t.Helper()
		c.Move("t", 0, "b1", "b2", "b4")
		brokertest.Eventually(t, "some is copied", func() bool {
			a, ok := adding(c, "t", "b4")
			return ok && a.Bytes > 1<<20 && a.Bytes < a.OfBytes
		})
		c.Network.Cut("b1", "b4")
		prefer(t, c, "t", "b2")
		c.Network.Cut("b2", "b4")
	}
	begin()
	n := records + 30
	fill(t, c.Brokers[0], "t", 30) // acked by those that are left
	p := c.Partition("t", 0)
	m, err := c.Member("b2").Members(t.Context(), "t", 0)
	if id, _ := p.On(c.Epoch().BrokerNamed("b4").ID); err != nil || !p.Moving() || m.Voters[id.ID] != "" {
		t.Fatalf("b4 has not all, and: %+v, %+v, %v", p, m, err)
	}
	// Taken back while b4 can't be told.
	c.Move("t", 0, "b2", "b1", "b3")
	brokertest.Eventually(t, "it is on those that it was on", func() bool { p := c.Partition("t", 0); return !p.Moving() })
	agree(t, c, "t")
	c.Network.Heal("b1", "b4")
	c.Network.Heal("b2", "b4")
	c.Moved("t")
	clean(t, c, "t")

	prefer(t, c, "t", "b1")
	begin()
	c.Network.Heal("b2", "b4")
	c.Network.Heal("b1", "b4")
	c.Moved("t")
	if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, []string{"b2", "b1", "b4"}) {
		t.Errorf("it is on %v", got)
	}
	clean(t, c, "t")
	agree(t, c, "t")
	whole(t, c, "t", n)
}
