package broker_test

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestClusterForms: three brokers form a cluster, a topic gets three replicas, and
// whatever broker is asked publishes and reads.
func TestClusterForms(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	res := c.Brokers[1].CreateTopic(wire.TopicSpec{Name: "orders", Partitions: 6})
	if res.Detail != "6 partitions, 3 replicas" {
		t.Errorf("created %+v", res)
	}
	for i, m := range c.Brokers {
		nc := m.Connect()
		for n := range int32(6) {
			h := nats.Header{wire.HeaderPart: {fmt.Sprint(n)}}
			ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "orders", Data: []byte(m.Name), Header: h})
			if err != nil || ack.Partition != n || ack.Offset != int64(i) || ack.Epoch != res.Epoch {
				t.Fatalf("%s, partition %d: ack %+v, %v", m.Name, n, ack, err)
			}
		}
	}
	for _, m := range c.Brokers {
		nc := m.Connect()
		for n := range int32(6) {
			all, err := brokertest.ReadAll(nc, "orders", n)
			if err != nil || len(all) != 3 {
				t.Fatalf("%s, partition %d: %d records, %v", m.Name, n, len(all), err)
			}
			for i, r := range all {
				if string(r.Value) != c.Brokers[i].Name {
					t.Errorf("record %d is %q", i, r.Value)
				}
			}
		}
	}
	c.InSync("orders")
	led := map[string]int{}
	for _, p := range c.Describe("orders").Partitions {
		led[p.Leader]++
		if len(p.Replicas) != 3 || p.NextOffset != 3 {
			t.Errorf("partition %+v", p)
		}
	}
	brokertest.Eventually(t, "leaders are spread", func() bool {
		led := map[string]int{}
		for _, p := range c.Describe("orders").Partitions {
			led[p.Leader]++
		}
		return led["b1"] == 2 && led["b2"] == 2 && led["b3"] == 2
	})
}
