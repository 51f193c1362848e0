package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// flip flips a bit in the middle of each file below a directory whose name ends so.
func flip(t *testing.T, dir, suffix string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(path, suffix) {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content := len(bytes.TrimRight(b, "\x00"))
		if content < 1000 {
			return nil
		}
		n++
		b[content/2] ^= 4
		return os.WriteFile(path, b, 0o600)
	})
	if err != nil || n == 0 {
		t.Fatalf("flip bits in %s below %s: %d files, %v", suffix, dir, n, err)
	}
}

// transfer has a broker lead partition 0 of a topic.
func transfer(t *testing.T, c *brokertest.Cluster, topic, to string) {
	t.Helper()
	brokertest.Eventually(t, to+" leads "+topic, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), brokertest.Wait)
		defer cancel()
		_, err := c.Brokers[0].API().PartitionTransfer(ctx, wire.PartitionTransfer{Topic: topic, To: to})
		if e := api.AsError(err); err != nil && !e.Retriable {
			t.Fatal(err)
		}
		return err == nil
	})
}

// TestQuarantine: a replica that is damaged or has lost something is replaced by a fresh one on its broker, its files
// stay until then, and no reader notices more than a pause.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	const records = 300
	value := func(i int) string { return fmt.Sprintf("%d-%s", i, strings.Repeat("v", 2000)) }
	for _, damage := range []struct {
		name string
		do   func(dir string)
		// found: it is found when records are read.
		found bool
	}{
		{"a flipped bit in each value log", func(dir string) { flip(t, filepath.Join(dir, "log"), ".vlog") }, true},
		{"a lost Raft log", func(dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "raft")); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a lost store", func(dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "log", "store")); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(damage.name, func(t *testing.T) {
			t.Parallel()
			c := brokertest.StartCluster(t, 3, quickTrash, unkept)
			createOn(t, c, "t", "b1", "b2", "b3")
			nc := c.Brokers[0].Connect()
			for i := range records {
				if _, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Data: []byte(value(i))}); err != nil {
					t.Fatal(err)
				}
			}
			c.InSync("t")
			topic := c.Epoch().Topic("t").ID
			b2 := c.Member("b2")
			before, _ := c.Epoch().Topic("t").Partitions[0].On(c.Epoch().BrokerNamed("b2").ID)
			dir := b2.Dir()
			b2.Stop()
			damage.do(dir)
			// Until it is replaced its files stay.
			b2.Launch(func(c *broker.Config) { c.TrashGrace = brokertest.Wait })
			if b2.Broker == nil {
				t.FailNow()
			}
			if damage.found {
				c.InSync("t")
				transfer(t, c, "t", "b2")
				brokertest.Eventually(t, "all records are read", func() bool { // by a client that tries again
					all, err := brokertest.ReadAll(nc, "t", 0)
					var e *wire.Error
					if errors.As(err, &e) && !e.Retriable {
						t.Fatalf("a reader is refused for good: %v", err)
					}
					for i, r := range all {
						if string(r.Value) != value(i) {
							t.Fatalf("record %d is %.20q", i, r.Value)
						}
					}
					return err == nil && len(all) == records
				})
			}
			brokertest.Eventually(t, "b2 gets a fresh replica", func() bool {
				p := c.Partition("t", 0)
				now, _ := p.On(c.Epoch().BrokerNamed("b2").ID)
				return now.ID != before.ID
			})
			c.Moved("t")
			p := c.Partition("t", 0)
			if len(p.Retired) != 1 || p.Retired[0] != before {
				t.Errorf("retired are %v, wanted is %v", p.Retired, before)
			}
			if damage.name != "a lost store" && !slices.Contains(logsHeld(t, b2, topic), before.ID) {
				t.Error("the damaged replica's files are gone already")
			}
			if d := c.Describe("t").Partitions[0]; len(d.Damaged) > 0 || d.Problem != "" {
				t.Errorf("it is still said to be damaged: %+v", d)
			}
			b2.Stop()
			b2.Start()
			clean(t, c, "t")
			transfer(t, c, "t", "b2") // which has it all
			if all, err := brokertest.ReadAll(b2.Connect(), "t", 0); err != nil || len(all) != records {
				t.Errorf("b2 serves %d records, %v", len(all), err)
			}
		})
	}
}

// TestQuarantineSpares: a damaged replica goes on as a voter while the others have no majority without it, and says that it is
// damaged.
func TestQuarantineSpares(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, quickTrash, unkept)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(200)
	b2, b3 := c.Member("b2"), c.Member("b3")
	dir := b2.Dir()
	b2.Stop()
	if err := os.RemoveAll(filepath.Join(dir, "log", "store")); err != nil {
		t.Fatal(err)
	}
	b3.Stop()
	before := c.Partition("t", 0)
	b2.Launch()
	if b2.Broker == nil {
		t.FailNow()
	}
	load.More(200) // b1 and b2 are the majority
	brokertest.Eventually(t, "the damage is told", func() bool {
		p := c.Describe("t").Partitions[0]
		return slices.Equal(p.Damaged, []string{"b2"}) && !slices.Contains(p.InSync, "b2")
	})
	c.Running()[0].Health("damage", func(h wire.ClusterHealth) bool { return strings.Contains(strings.Join(h.Problems, "; "), "damaged") })
	load.More(500) // as long as it takes to look again
	if p := c.Partition("t", 0); p.Moving() || !slices.Equal(p.Replicas, before.Replicas) {
		t.Errorf("it is being replaced while b3 is away: %+v", p)
	}
	b3.Start()
	brokertest.Eventually(t, "b2 gets a fresh replica", func() bool {
		p := c.Partition("t", 0)
		return !p.Moving() && !slices.Equal(p.Replicas, before.Replicas)
	})
	c.Moved("t")
	load.Check(c.URLs())
	clean(t, c, "t")
}
