package broker_test

import (
	"slices"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// quickTrash empties the trash at once.
func quickTrash(c *broker.Config) {
	c.TrashGrace, c.PurgeEvery = time.Millisecond, 50*time.Millisecond
}

// oneOn creates a topic of one partition with these brokers, whatever placement thinks.
func createOn(t *testing.T, c *brokertest.Cluster, topic string, brokers ...string) {
	t.Helper()
	c.Running()[0].CreateTopic(wire.TopicSpec{Name: topic, Partitions: 1, Replicas: int32(len(brokers))})
	c.InSync(topic)
	c.Move(topic, 0, brokers...)
	c.Moved(topic)
}

// TestMove: partitions move under load, one replica and all of them at once, with one replica and with three.
func TestMove(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	load.More(100)
	for _, to := range [][]string{{"b1", "b2", "b4"}, {"b4", "b3", "b2"}, {"b1"}, {"b2"}, {"b3", "b4"}, {"b2", "b1", "b3"}} {
		load.Gap()
		start := time.Now()
		c.Move("t", 0, to...)
		c.Moved("t")
		t.Logf("to %v in %v, %v without an ack", to, time.Since(start).Round(time.Millisecond), load.Gap().Round(time.Millisecond))
		if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, to) {
			t.Errorf("it is on %v, wanted is %v", got, to)
		}
		load.More(50)
	}
	load.Check(c.URLs())
	brokertest.Eventually(t, "retired replicas are deleted and forgotten", func() bool { return len(c.Partition("t", 0).Retired) == 0 })
}
