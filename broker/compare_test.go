package broker_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// onlyAsked compares replicas only when a test asks for it.
func onlyAsked(c *broker.Config) { c.CompareEvery, c.CompareRate = -1, -1 }

// compare has the replicas of a topic's partition 0 compared, until all of them were there, and returns what came of it.
func compare(t *testing.T, c *brokertest.Cluster, topic string) (out wire.PartitionComparison) {
	t.Helper()
	brokertest.Eventually(t, "a comparison of all replicas", func() bool {
		out = comparison(t, c, topic)
		return out.Result != "incomplete"
	})
	return out
}

// comparison is compare with the replicas that are there.
func comparison(t *testing.T, c *brokertest.Cluster, topic string) wire.PartitionComparison {
	t.Helper()
	h := c.Running()[0].API()
	q := wire.PartitionRequest{Topic: topic}
	var passes uint64
	brokertest.Eventually(t, "a comparison begins", func() bool {
		begun, err := h.PartitionCompare(context.Background(), q)
		passes = begun.Passes
		return err == nil
	})
	var out wire.PartitionComparison
	brokertest.Eventually(t, "the comparison ends", func() bool {
		d, err := h.PartitionDescribe(context.Background(), q)
		if err != nil || d.Comparison == nil || d.Comparison.Passes <= passes {
			return false
		}
		out = *d.Comparison
		return true
	})
	return out
}

// filled is a cluster with one topic on all its brokers and so many records.
func filled(t *testing.T, n, records int, value func(int) string) *brokertest.Cluster {
	t.Helper()
	c := brokertest.StartCluster(t, n, quickTrash, unkept, onlyAsked)
	var names []string
	for _, m := range c.Brokers {
		names = append(names, m.Name)
	}
	createOn(t, c, "t", names...)
	nc := c.Brokers[0].Connect()
	for i := range records {
		if _, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Data: []byte(value(i))}); err != nil {
			t.Fatal(err)
		}
	}
	c.InSync("t")
	return c
}

// replicaOn is the id of a broker's replica of the topic.
func replicaOn(c *brokertest.Cluster, name string) uint64 {
	p := c.Partition("t", 0)
	r, _ := p.On(c.Epoch().BrokerNamed(name).ID)
	return r.ID
}

// alterOn changes a record in the log of one broker.
func alterOn(t *testing.T, c *brokertest.Cluster, name string, offset int64) {
	t.Helper()
	m := c.Member(name)
	replica, dir := replicaOn(c, name), m.Dir()
	m.Stop()
	brokertest.Alter(t, dir, replica, offset)
	m.Start()
	c.InSync("t")
}

// TestCompareReplacesWhoDiffers: one replica of three has another record than the others, with a CRC that is right. It is found,
// wherever it is, also where it leads, replaced, and nobody reads it any more.
func TestCompareReplacesWhoDiffers(t *testing.T) {
	t.Parallel()
	const records = 120
	value := func(i int) string { return fmt.Sprintf("%d-%s", i, strings.Repeat("v", 500)) }
	for _, on := range []string{"b2", "b1"} { // b1 leads
		t.Run(on, func(t *testing.T) {
			t.Parallel()
			c := filled(t, 3, records, value)
			if r := compare(t, c, "t"); r.Result != "same" || !r.State || r.UpTo != records || r.Bytes == 0 {
				t.Fatalf("before anything was altered: %+v", r)
			}
			alterOn(t, c, on, 57)
			transfer(t, c, "t", "b1")
			before := replicaOn(c, on)
			r := compare(t, c, "t")
			brokertest.Eventually(t, on+" gets a fresh replica", func() bool { return replicaOn(c, on) != before })
			c.Moved("t")
			// What was found stays to be seen until all have the same.
			if on == "b2" && (r.Result != "different" || len(r.Differences) != 1 || r.Differences[0].From != 57 || r.Differences[0].To != 58 ||
				r.Differences[0].Verdict != "replaced") {
				t.Errorf("what is told: %+v", r)
			}
			brokertest.Eventually(t, "the difference is over", func() bool {
				r = compare(t, c, "t")
				return r.Result == "same"
			})
			transfer(t, c, "t", on) // which has it all
			all, err := brokertest.ReadAll(c.Brokers[0].Connect(), "t", 0)
			if err != nil || len(all) != records {
				t.Fatalf("%d records, %v", len(all), err)
			}
			for i, r := range all {
				if string(r.Value) != value(i) {
					t.Errorf("record %d is %.30q", i, r.Value)
				}
			}
			clean(t, c, "t")
			if h, err := c.Brokers[0].API().ClusterHealth(context.Background(), api.None{}); err != nil || !h.Healthy {
				t.Errorf("health: %+v, %v", h, err)
			}
		})
	}
}

// TestCompareWithoutMajority: two replicas that differ, and three that all do, are told of and left alone.
func TestCompareWithoutMajority(t *testing.T) {
	t.Parallel()
	value := func(i int) string { return fmt.Sprint("value ", i) }
	for n, altered := range map[int][]string{2: {"b2"}, 3: {"b2", "b3"}} {
		t.Run(fmt.Sprint(n, " replicas"), func(t *testing.T) {
			t.Parallel()
			c := filled(t, n, 50, value)
			for i, name := range altered {
				alterOn(t, c, name, 20)
				if i > 0 { // otherwise than the one before
					alterAgain(t, c, name, 20)
				}
			}
			transfer(t, c, "t", "b1")
			before := c.Partition("t", 0)
			r := compare(t, c, "t")
			if r.Result != "different" || len(r.Differences) != 1 || r.Differences[0].Verdict != "undecided" || r.Differences[0].From != 20 ||
				len(r.Differences[0].Replicas) != n {
				t.Fatalf("what is told: %+v", r)
			}
			for _, one := range r.Differences[0].Replicas {
				if one.Bad || (one.Odd != "") != slices.Contains(altered, one.Broker) {
					t.Errorf("what is told of %s: %+v", one.Broker, one)
				}
			}
			if !strings.Contains(r.Differences[0].Detail, "parley partition move t/0") {
				t.Errorf("what to do: %s", r.Differences[0].Detail)
			}
			h, err := c.Brokers[0].API().ClusterHealth(context.Background(), api.None{})
			if err != nil || h.Healthy || !strings.Contains(strings.Join(h.Problems, "; "), "different records at offsets 20 to 20") {
				t.Errorf("health: %+v, %v", h, err)
			}
			compare(t, c, "t")
			p := c.Partition("t", 0)
			if p.Moving() || !slices.Equal(p.Replicas, before.Replicas) || len(c.Describe("t").Partitions[0].Damaged) > 0 {
				t.Errorf("something was done: %+v", p)
			}
			// Known by whoever leads next.
			transfer(t, c, "t", "b2")
			brokertest.Eventually(t, "the next leader knows", func() bool {
				d := c.Describe("t").Partitions[0]
				return d.Leader == "b2" && d.Comparison != nil && len(d.Comparison.Differences) == 1
			})
			c.Stop() // and after a restart
			c.StartAll()
			brokertest.Eventually(t, "it is still known", func() bool {
				d := c.Describe("t").Partitions[0]
				return d.Comparison != nil && len(d.Comparison.Differences) == 1 && d.Comparison.Passes > 0
			})
		})
	}
}

func alterAgain(t *testing.T, c *brokertest.Cluster, name string, offset int64) {
	t.Helper()
	m := c.Member(name)
	replica, dir := replicaOn(c, name), m.Dir()
	m.Stop()
	brokertest.AlterOtherwise(t, dir, replica, offset)
	m.Start()
	c.InSync("t")
}

// TestCompareMeetsDamage: a flipped bit in what nobody reads is found by reading it back.
func TestCompareMeetsDamage(t *testing.T) {
	t.Parallel()
	const records = 200
	value := func(i int) string { return fmt.Sprintf("%d-%s", i, strings.Repeat("v", 2000)) }
	c := filled(t, 3, records, value)
	before := replicaOn(c, "b3")
	b3 := c.Member("b3")
	dir := b3.Dir()
	b3.Stop()
	flip(t, filepath.Join(dir, "log"), ".vlog")
	b3.Start()
	c.InSync("t")
	compare(t, c, "t")
	brokertest.Eventually(t, "b3 gets a fresh replica", func() bool { return replicaOn(c, "b3") != before })
	c.Moved("t")
	if r := compare(t, c, "t"); r.Result != "same" {
		t.Errorf("afterwards: %+v", r)
	}
	clean(t, c, "t")
}

// TestCompareUnderLoad: while records come in, retention takes others, leaders change and brokers restart, nothing is ever found to
// differ.
func TestCompareUnderLoad(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, quickTrash, unkept, func(c *broker.Config) {
		c.CompareEvery, c.CompareRate = time.Second, -1
		c.RetentionEvery, c.CheckpointEvery, c.CutBytes = 50*time.Millisecond, 100*time.Millisecond, 1<<20
	})
	c.Brokers[0].CreateTopic(wire.TopicSpec{Name: "t", Partitions: 2, Replicas: 3, Config: map[string]string{"max_bytes": "40000"}})
	c.InSync("t")
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	for round := range 3 {
		load.More(500)
		m := c.Brokers[round]
		m.Stop()
		load.More(300)
		m.Start()
		c.InSync("t")
		compare(t, c, "t")
	}
	load.Stop()
	for _, m := range c.Brokers {
		if d, p := m.Differences(); d != 0 || p != 0 {
			t.Errorf("%s found %d differences, %d of them gone at second look", m.Name, d, p)
		}
	}
	for _, p := range c.Describe("t").Partitions {
		if p.StartOffset == 0 {
			t.Errorf("partition %d: retention took nothing", p.Partition)
		}
		if len(p.Damaged) > 0 || p.Comparison == nil || len(p.Comparison.Differences) > 0 {
			t.Errorf("partition %d: %+v, %+v", p.Partition, p, p.Comparison)
		}
	}
}
