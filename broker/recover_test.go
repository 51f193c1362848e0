package broker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestRecover: two of three brokers are gone for good. What the third one has goes on, what it
// doesn't have begins anew, and others may join it.
func TestRecover(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, quick(time.Minute))
	createR3(t, c, "t", 3)
	c.Brokers[0].CreateTopic(wire.TopicSpec{Name: "single", Partitions: 6, Replicas: 1})
	c.InSync("single")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(50)
	load.Stop()
	c.InSync("t")
	epoch := status(t, c.Brokers[0]).Epoch
	kept := 0
	for _, p := range c.Describe("single").Partitions {
		if slices.Contains(p.Replicas, "b3") {
			kept++
		}
	}
	b3 := c.Member("b3")
	dir := b3.Dir()
	if _, err := broker.PlanRecovery(dir); !errors.Is(err, broker.ErrLocked) {
		t.Errorf("planned while the broker runs: %v", err)
	}
	for _, m := range c.Brokers {
		m.Kill()
	}
	plan, err := broker.PlanRecovery(dir)
	if err != nil || plan.Name != "b3" || plan.Epoch < epoch || !slices.Equal(plan.Lost, []string{"b1", "b2"}) || len(plan.Partitions) != 9 {
		t.Fatalf("%+v, %v", plan, err)
	}
	// One that ended after the point of no return: no broker starts, and the next one goes on.
	if err := os.WriteFile(filepath.Join(dir, "recover"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.Start(t.Context(), b3.Config()); !errors.Is(err, broker.ErrRecovering) {
		t.Errorf("started in the middle of a recovery: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "recover")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), brokertest.Wait)
	defer cancel()
	cur, err := broker.Recover(ctx, broker.Config{DataDir: dir, Logger: b3.Config().Logger})
	if err != nil || cur.Epoch != plan.Epoch+1 || len(cur.Brokers) != 1 || !strings.Contains(cur.Change, "recovered by force") {
		t.Fatalf("%+v, %v", cur, err)
	}
	if _, err := broker.PlanRecovery(dir); err == nil || !strings.Contains(err.Error(), "is the whole cluster") {
		t.Errorf("planned again: %v", err)
	}

	b3.Start()
	c.Brokers = slices.DeleteFunc(c.Brokers, func(m *brokertest.Member) bool { return m != b3 })
	load.Check(c.URLs())
	after := 0
	for _, p := range c.Describe("single").Partitions {
		if p.Leader != "b3" || !slices.Equal(p.Replicas, []string{"b3"}) {
			t.Errorf("partition %d is on %v, led by %q", p.Partition, p.Replicas, p.Leader)
		}
		after++
	}
	if after != 6 || kept == 0 {
		t.Errorf("%d partitions, %d were on b3", after, kept)
	}
	// It is a cluster like any other: it survives a restart, takes records and grows.
	b3.Stop()
	b3.Start()
	b3.CreateTopic(wire.TopicSpec{Name: "u", Partitions: 2, Replicas: 1})
	more := brokertest.StartLoad(t, c.URLs(), "u", 1)
	more.More(20)
	c.Join("b4")
	c.Join("b5")
	settled(t, b3)
	for _, topic := range []string{"t", "u"} {
		if r, err := b3.API().TopicAlter(t.Context(), wire.TopicAlter{Name: topic, Replicas: 3}); err != nil {
			t.Fatalf("%+v, %v", r, err)
		}
		brokertest.Eventually(t, "three replicas each", func() bool {
			for _, p := range c.Describe(topic).Partitions {
				if len(p.Replicas) != 3 || p.Move != nil {
					return false
				}
			}
			return true
		})
		c.InSync(topic)
	}
	more.More(20)
	more.Check(c.URLs())
	load.Check(c.URLs())
}
