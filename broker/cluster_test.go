package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/api"
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
			// Leaders move to where the epoch prefers them: no client sees that.
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

func createR3(t *testing.T, c *brokertest.Cluster, name string, partitions int32) {
	t.Helper()
	c.Running()[0].CreateTopic(wire.TopicSpec{Name: name, Partitions: partitions, Replicas: 3})
	c.InSync(name)
}

// TestFailover: the broker that leads goes away under load, once after handing over
// and once without a word.
func TestFailover(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	load.More(100)
	for _, how := range []string{"stopped", "killed"} {
		load.Gap()
		leader := c.Member(c.Describe("t").Partitions[0].Leader)
		if how == "killed" {
			leader.Kill()
		} else {
			leader.Stop()
		}
		load.More(100)
		t.Logf("leader %s %s: %v without an ack", leader.Name, how, load.Gap().Round(time.Millisecond))
		leader.Start()
		c.InSync("t")
	}
	load.Check(c.URLs())
}

// TestRollingRestart: each broker in turn is restarted under load, and no client
// sees an error.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	for _, m := range c.Brokers {
		load.More(50)
		m.Stop()
		load.More(50)
		m.Start()
	}
	load.More(50)
	t.Logf("%v without an ack at the most", load.Gap().Round(time.Millisecond))
	load.Check(c.URLs())
}

// TestMajorityLost: with two of three brokers gone nothing is acked, and the errors
// say why; all goes on when one is back.
func TestMajorityLost(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	nc := c.Brokers[0].Connect()
	if _, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil {
		t.Fatal(err)
	}
	c.Brokers[1].Kill()
	c.Brokers[2].Kill()
	brokertest.Eventually(t, "the last broker has noticed", func() bool {
		return c.Describe("t").Partitions[0].Leader == ""
	})
	var e *wire.Error
	brokertest.Eventually(t, "a publish is told why it is refused", func() bool {
		_, err := brokertest.Publish(nc, nats.NewMsg("t"))
		return errors.As(err, &e) && e.Reason == wire.ReasonNotLeader && e.Retriable && e.Outcome == wire.OutcomeRejected &&
			strings.Contains(e.Description, "2 of its 3 replicas can't be reached")
	})
	if _, _, _, err := brokertest.Fetch(nc, "t", 0, wire.FetchRequest{}); !errors.As(err, &e) || e.Reason != wire.ReasonNotLeader {
		t.Errorf("fetch: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := c.Brokers[0].API().TopicCreate(ctx, wire.TopicSpec{Name: "u", Replicas: 1}); !errors.As(err, &e) || !e.Retriable ||
		!strings.Contains(e.Description, "majority of the council") {
		t.Errorf("create: %v", err)
	}
	c.Brokers[0].Health("b2 can't be reached", func(h wire.ClusterHealth) bool {
		return !h.Healthy && strings.Contains(strings.Join(h.Problems, "\n"), "broker b2 can't be reached")
	})
	c.Brokers[1].Start()
	brokertest.Eventually(t, "publishing goes on", func() bool {
		_, err := brokertest.Publish(nc, nats.NewMsg("t"))
		return err == nil
	})
	c.Brokers[0].CreateTopic(wire.TopicSpec{Name: "v", Replicas: 1})
	c.Brokers[2].Start()
	c.InSync("t")
}

// TestAllRestarted: whatever was acked is there after all brokers were down, and
// their ports are others.
func TestAllRestarted(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(50)
	load.Stop() // no address that the SDK knows stays right
	var wg sync.WaitGroup
	for _, m := range c.Brokers {
		wg.Go(m.Kill)
	}
	wg.Wait()
	c.StartAll(func(c *broker.Config) { c.Rack = "r-" + c.Name })
	c.InSync("t")
	load.Check(c.URLs())
	brokertest.Eventually(t, "the new addresses are on record", func() bool {
		for _, m := range c.Brokers {
			r, err := m.API().BrokerList(t.Context(), api.None{})
			if err != nil {
				return false
			}
			for i, b := range r.Brokers {
				if b.Address != c.Brokers[i].Addresses().Clients || b.Rack != "r-"+b.Name || !b.Reachable {
					return false
				}
			}
		}
		return true
	})
}

// TestOneWayIn: a client that reaches only one broker has all partitions.
func TestOneWayIn(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, func(c *broker.Config) {
		if c.Name != "b1" {
			c.AdvertiseClient = "127.0.0.1:1" // nothing listens there
		}
	})
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.Brokers[0].URL(), "t", 1)
	load.More(100)
	load.Check(c.Brokers[0].URL())
	var q wire.OffsetResponse
	nc := c.Brokers[0].Connect()
	now := time.Now().Add(time.Hour).UnixMilli()
	for n := range int32(3) {
		if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: "t", Partition: n, TimeMS: &now}, &q); err != nil || q.Next == 0 || q.Offset != q.Next {
			t.Errorf("offset of partition %d: %+v, %v", n, q, err)
		}
	}
}

// TestTransfer: leadership moves on request, stays there, and an epoch says so.
func TestTransfer(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	nc := c.Brokers[2].Connect()
	for _, to := range []string{"b1", "b2", "b3", "b1"} {
		var res wire.PartitionChange
		if err := brokertest.Call(nc, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: "t", To: to}, &res); err != nil {
			t.Fatalf("transfer to %s: %v", to, err)
		}
		// It is done where it was asked for; b1, which describes, may hear of it a moment later.
		brokertest.Eventually(t, "b1 knows of the transfer to "+to, func() bool {
			p := c.Describe("t").Partitions[0]
			return p.Leader == to && p.Replicas[0] == to
		})
		if _, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil {
			t.Error(err)
		}
	}
	var e *wire.Error
	err := brokertest.Call(nc, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: "t", To: "b4"}, nil)
	if !errors.As(err, &e) || !strings.Contains(e.Description, "there are b1, b2, b3") {
		t.Errorf("transfer to a stranger: %v", err)
	}
	c.Brokers[1].CreateTopic(wire.TopicSpec{Name: "one", Replicas: 1})
	holder := c.Describe("one").Partitions[0].Replicas[0]
	for _, m := range c.Brokers {
		if m.Name == holder {
			continue
		}
		err := brokertest.Call(nc, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: "one", To: m.Name}, nil)
		if !errors.As(err, &e) || !strings.Contains(e.Description, "has no replica") {
			t.Errorf("transfer to a broker without replica: %v", err)
		}
	}
}

// TestClocksApart: an hour between the brokers' clocks disturbs nothing, and log
// time goes on from where it was.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, func(c *broker.Config) {
		switch c.Name {
		case "b1":
			c.Clock = func() time.Time { return time.Now().Add(time.Hour) }
		case "b3":
			c.Clock = func() time.Time { return time.Now().Add(-time.Hour) }
		}
	})
	createR3(t, c, "t", 1)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	nc := c.Brokers[1].Connect()
	for _, to := range []string{"b1", "b3", "b2"} {
		load.More(20)
		if err := brokertest.Call(nc, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: "t", To: to}, nil); err != nil {
			t.Fatal(err)
		}
	}
	load.More(20)
	load.Check(c.URLs())
}

// TestOneDiskFull: a broker without room gives its leadership away, so that every
// partition takes records.
func TestOneDiskFull(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	c := brokertest.StartCluster(t, 3, func(c *broker.Config) {
		if c.Name == "b1" {
			c.FreeSpaceFloor = 1 << 20
			c.FreeSpace = func(string) (uint64, uint64, error) {
				if full.Load() {
					return 1000, 1 << 30, nil
				}
				return 1 << 29, 1 << 30, nil
			}
		}
	})
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	full.Store(true)
	brokertest.Eventually(t, "b1 leads nothing", func() bool {
		for _, p := range c.Describe("t").Partitions {
			if p.Leader == "b1" || p.Leader == "" {
				return false
			}
		}
		return true
	})
	load.More(50)
	full.Store(false)
	brokertest.Eventually(t, "b1 leads again", func() bool {
		for _, p := range c.Describe("t").Partitions {
			if p.Leader == "b1" {
				return true
			}
		}
		return false
	})
	load.More(20)
	load.Check(c.URLs())
}

// TestPurgedEverywhere: a deleted topic is forgotten once no broker has data of it.
func TestPurgedEverywhere(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, func(c *broker.Config) {
		c.DeleteGrace, c.PurgeEvery = time.Millisecond, 50*time.Millisecond
	})
	createR3(t, c, "t", 3)
	c.Brokers[2].Stop()
	if _, err := c.Brokers[0].API().TopicDelete(t.Context(), wire.NameRequest{Name: "t"}); err != nil {
		t.Fatal(err)
	}
	purged := func() bool {
		d, err := c.Brokers[1].API().EpochShow(t.Context(), wire.EpochRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(d.Topics) == 0
	}
	brokertest.Eventually(t, "the topic is to be purged", func() bool {
		d, err := c.Brokers[1].API().EpochShow(t.Context(), wire.EpochRequest{})
		return err == nil && strings.Contains(d.Change, "to be purged")
	})
	if purged() {
		t.Error("a topic is forgotten that a stopped broker may have data of")
	}
	c.Brokers[2].Start()
	brokertest.Eventually(t, "the topic is forgotten", purged)
}
