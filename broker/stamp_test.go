package broker_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestStaleLeaderIsFenced: a leader that was cut off while an epoch changed its topic acks nothing under the
// older epoch any more, neither when it comes back nor when it leads again.
func TestStaleLeaderIsFenced(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	stale := c.Member(c.Describe("t").Partitions[0].Leader)
	var other *brokertest.Member
	for _, m := range c.Brokers {
		if m != stale {
			other = m
		}
	}
	nc, there := other.Connect(), stale.Connect()
	old, err := brokertest.Publish(there, nats.NewMsg("t"))
	if err != nil {
		t.Fatal(err)
	}
	stale.Isolate(true)
	var change wire.TopicChange
	brokertest.Eventually(t, "the others change the topic", func() bool {
		return brokertest.Call(nc, wire.APITopicAlter, wire.TopicAlter{Name: "t", Config: map[string]string{"retention": "77h"}}, &change) == nil
	})
	if change.Epoch <= old.Epoch {
		t.Fatalf("the change is epoch %d, the ack before named %d", change.Epoch, old.Epoch)
	}
	brokertest.Eventually(t, "acks of the others name the epoch", func() bool {
		ack, err := brokertest.Publish(nc, nats.NewMsg("t"))
		return err == nil && ack.Epoch >= change.Epoch
	})
	stale.Isolate(false)
	brokertest.Eventually(t, "the stale leader leads again", func() bool {
		for _, at := range []*nats.Conn{nc, there} {
			if ack, err := brokertest.Publish(at, nats.NewMsg("t")); err == nil && ack.Epoch < change.Epoch {
				t.Fatalf("acked with epoch %d after epoch %d changed the topic", ack.Epoch, change.Epoch)
			}
		}
		_ = brokertest.Call(nc, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: "t", To: stale.Name}, nil) // until it is in sync
		return c.Describe("t").Partitions[0].Leader == stale.Name
	})
	for range 10 {
		if ack, err := brokertest.Publish(there, nats.NewMsg("t")); err != nil || ack.Epoch < change.Epoch {
			t.Errorf("the stale leader: ack %+v, %v", ack, err)
		}
	}
}
