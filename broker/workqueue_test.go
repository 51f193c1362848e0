package broker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestWorkQueue: a topic that is a work queue lets go of what every group has handled, and
// of nothing else, from the moment when it became one.
func TestWorkQueue(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.RetentionEvery = 10 * time.Millisecond })
	b.CreateTopic(wire.TopicSpec{Name: "jobs", Config: map[string]string{wire.ConfigWorkQueue: "true"}})
	b.CreateTopic(wire.TopicSpec{Name: "late"})
	nc := b.Connect()
	start := func(topic string) int64 {
		var q wire.OffsetResponse
		if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: topic}, &q); err != nil {
			t.Fatal(err)
		}
		return q.Start
	}
	const n = 10
	for _, topic := range []string{"jobs", "late"} {
		for i := range n {
			if _, err := brokertest.Publish(nc, &nats.Msg{Subject: topic, Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
		}
		// A second group that has handled less holds back what it has not.
		slow := one(t, nc, topic, "slow", wire.NextRequest{ExpiresMS: 10_000})
		for range n {
			mustSettle(t, nc, one(t, nc, topic, "fast", wire.NextRequest{ExpiresMS: 10_000}), "+ACK")
		}
		if topic == "jobs" && start(topic) != 0 {
			t.Fatalf("topic jobs starts at %d, and group slow has handled nothing", start(topic))
		}
		mustSettle(t, nc, slow, "+ACK")
	}
	brokertest.Eventually(t, "what both have handled is gone", func() bool { return start("jobs") == 1 })
	mustSettle(t, nc, one(t, nc, "jobs", "slow", wire.NextRequest{ExpiresMS: 10_000}), "+ACK")
	brokertest.Eventually(t, "and the next one", func() bool { return start("jobs") == 2 })
	if got := start("late"); got != 0 {
		t.Fatalf("topic late starts at %d without being a work queue", got)
	}
	if err := brokertest.Call(nc, wire.APITopicAlter, wire.TopicAlter{Name: "late", Config: map[string]string{wire.ConfigWorkQueue: "true"}}, nil); err != nil {
		t.Fatal(err)
	}
	brokertest.Eventually(t, "the topic is a work queue by now", func() bool { return start("late") == 1 })
}
