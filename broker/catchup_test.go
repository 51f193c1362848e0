package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

const (
	laggardCut   = 1 << 20
	laggardValue = 64 << 10
)

// laggards is a cluster that cuts its Raft logs early, and so makes laggards.
func laggards(t *testing.T, options ...brokertest.Option) *brokertest.Cluster {
	t.Helper()
	return brokertest.StartCluster(t, 3, append([]brokertest.Option{func(c *broker.Config) {
		c.CutBytes, c.CheckpointEvery = laggardCut, 100*time.Millisecond
	}}, options...)...)
}

// fill publishes n large records and returns their bytes.
func fill(t *testing.T, m *brokertest.Member, topic string, n int) int64 {
	t.Helper()
	nc := m.Connect()
	value := bytes.Repeat([]byte("0123456789abcdef"), laggardValue/16)
	for range n {
		brokertest.Eventually(t, "a record is taken", func() bool {
			_, err := brokertest.Publish(nc, &nats.Msg{Subject: topic, Data: value})
			return err == nil
		})
	}
	return int64(n) * laggardValue
}

func figure(t *testing.T, m *brokertest.Member, name string) int64 {
	t.Helper()
	return int64(metric(t, m.Addresses().HTTP, name))
}

// follower of a topic's only partition that doesn't lead it.
func follower(c *brokertest.Cluster, topic string) *brokertest.Member {
	p := c.Describe(topic).Partitions[0]
	for _, name := range p.Replicas {
		if name != p.Leader {
			return c.Member(name)
		}
	}
	return nil
}

func whole(t *testing.T, c *brokertest.Cluster, topic string, records int) {
	t.Helper()
	for _, name := range c.Describe(topic).Partitions[0].Replicas {
		var res wire.PartitionChange
		m := c.Member(name)
		nc := m.Connect()
		if err := brokertest.Call(nc, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: topic, To: m.Name}, &res); err != nil {
			t.Fatalf("transfer to %s: %v", m.Name, err)
		}
		all, err := brokertest.ReadAll(nc, topic, 0)
		if err != nil || len(all) != records {
			t.Fatalf("%s has %d records, want %d (%v)", m.Name, len(all), records, err)
		}
	}
}

// TestLaggardFetchesWhatItLacks: a broker that was away while the Raft log was cut fetches
// what was written meanwhile, and not what it has.
func TestLaggardFetchesWhatItLacks(t *testing.T) {
	t.Parallel()
	c := laggards(t)
	createR3(t, c, "t", 1)
	had := fill(t, c.Brokers[0], "t", 120)
	c.InSync("t")
	f := follower(c, "t")
	f.Stop()
	lacks := fill(t, c.Running()[0], "t", 60)
	f.Start()
	c.InSync("t")
	fetched := figure(t, f, "parley_catchup_fetched_bytes_total")
	t.Logf("it had %d bytes, lacked %d, fetched %d", had, lacks, fetched)
	if fetched > lacks*11/10+laggardCut {
		t.Errorf("it fetched %d bytes and lacked %d", fetched, lacks)
	}
	if fetched < lacks/2 {
		t.Errorf("it fetched %d bytes of %d: the log was not cut, and nothing is shown", fetched, lacks)
	}
	whole(t, c, "t", 180)
}

// TestLaggardOutlivesOthers: while a replica fetches what it lacks, the broker that it fetches
// from goes away, then itself. It goes on elsewhere, and where it was.
func TestLaggardOutlivesOthers(t *testing.T) {
	t.Parallel()
	c := laggards(t, func(c *broker.Config) { c.Limits.CatchUpRate = 3 << 20 })
	createR3(t, c, "t", 1)
	fill(t, c.Brokers[0], "t", 10)
	c.InSync("t")
	f := follower(c, "t")
	f.Stop()
	lacks := fill(t, c.Running()[0], "t", 150)
	fetching := func(bytes int64) {
		t.Helper()
		brokertest.Eventually(t, fmt.Sprintf("%d bytes are fetched", bytes), func() bool {
			return figure(t, f, "parley_catchup_fetched_bytes_total") >= bytes
		})
	}
	f.Launch()
	fetching(1 << 20)
	brokertest.Eventually(t, "it says that it is catching up", func() bool {
		return strings.Contains(c.Describe("t").Partitions[0].Problem, "catching up")
	})
	// The one that it fetches from: the other follower.
	var source *brokertest.Member
	for _, m := range c.Running() {
		if m != f && m.Name != c.Describe("t").Partitions[0].Leader {
			source = m
		}
	}
	source.Kill()
	fetching(3 << 20)
	first := figure(t, f, "parley_catchup_fetched_bytes_total")
	f.Kill()
	source.Start()
	f.Start() // ready: once it has all that there was
	c.InSync("t")
	second := figure(t, f, "parley_catchup_fetched_bytes_total")
	t.Logf("it lacked %d bytes, fetched %d before it was killed and %d afterwards", lacks, first, second)
	if first+second > lacks*5/4+2*laggardCut {
		t.Errorf("it fetched %d and %d bytes, and lacked %d", first, second, lacks)
	}
	whole(t, c, "t", 160)
}

// TestLaggardAndItsLeader: the leader goes away in the middle, under load, and comes back.
func TestLaggardAndItsLeader(t *testing.T) {
	t.Parallel()
	c := laggards(t, func(c *broker.Config) { c.Limits.CatchUpRate = 4 << 20 })
	createR3(t, c, "t", 1)
	c.InSync("t")
	f := follower(c, "t")
	f.Stop()
	fill(t, c.Running()[0], "t", 100)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	f.Launch()
	brokertest.Eventually(t, "some is fetched", func() bool {
		return figure(t, f, "parley_catchup_fetched_bytes_total") >= 1<<20
	})
	leader := c.Member(c.Describe("t").Partitions[0].Leader)
	leader.Kill()
	load.More(50) // with the laggard as the second of a majority
	leader.Start()
	ctx, cancel := context.WithTimeout(t.Context(), brokertest.Wait)
	defer cancel()
	if err := f.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	c.InSync("t")
	load.Stop()
}
