package broker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

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
	settled(t, b3, "b5", 3, 5) // of eleven on three
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

// TestRecoverKilled: all brokers are killed right after the last ack, when none of them has noted
// that the last entries are committed. A majority has all that was acked on disk, and recovers it.
func TestRecoverKilled(t *testing.T) {
	t.Parallel()
	const records = 300
	c := brokertest.StartCluster(t, 3, quick(time.Minute), func(c *broker.Config) { c.CheckpointEvery = time.Hour })
	createR3(t, c, "t", 1)
	c.InSync("t")
	nc := c.Brokers[0].Connect()
	var publishing sync.WaitGroup
	deadline := time.Now().Add(brokertest.Wait)
	for k := range 4 { // so that entries are on their way together
		publishing.Go(func() {
			for n := k; n < records; n += 4 {
				m := &nats.Msg{Subject: "t", Data: strconv.AppendInt(nil, int64(n), 10)}
				_, err := brokertest.Publish(nc, m)
				for err != nil && time.Now().Before(deadline) { // the leader may change on a busy machine
					_, err = brokertest.Publish(nc, m)
				}
				if err != nil {
					t.Errorf("no ack: %v", err)
				}
			}
		})
	}
	publishing.Wait()
	var dirs []string
	for _, m := range c.Brokers { // what is on disk now is what a kill leaves
		dirs = append(dirs, killed(t, m))
	}
	for _, m := range c.Brokers {
		m.Kill()
	}
	whole := 0
	for i, dir := range dirs {
		ctx, cancel := context.WithTimeout(t.Context(), brokertest.Wait)
		_, err := broker.Recover(ctx, broker.Config{DataDir: dir, Logger: c.Brokers[i].Config().Logger})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		b := brokertest.StartIn(t, dir, func(c *broker.Config) { c.Name = fmt.Sprintf("b%d", i+1) })
		all, err := brokertest.ReadAll(b.Connect(), "t", 0)
		if err != nil {
			t.Fatal(err)
		}
		left := map[string]bool{}
		for _, r := range all {
			left[string(r.Value)] = true
		}
		t.Logf("b%d has %d of %d", i+1, len(left), records)
		if len(left) == records {
			whole++
		}
		b.Stop()
	}
	if whole < 2 {
		t.Errorf("%d brokers recovered all that was acked: a majority had it on disk", whole)
	}
}

// killed copies a running broker's directory.
func killed(t *testing.T, m *brokertest.Member) (dir string) {
	t.Helper()
	brokertest.Eventually(t, "a copy while no file is made or deleted", func() bool {
		dir = t.TempDir()
		before := journalEnd(t, m.Dir())
		return os.CopyFS(dir, os.DirFS(m.Dir())) == nil && journalEnd(t, m.Dir()) == before
	})
	return dir
}

// journalEnd is the note of how far the Raft journal went: it comes after what it speaks of, and a copy made meanwhile may have one without
// the other, which no kill leaves.
func journalEnd(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "raft", "*", "*", "journal", "END"))
	if err != nil || len(found) != 1 {
		t.Fatalf("notes of the journal's end: %v, %v", found, err)
	}
	end, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(end)
}

// TestRecoverAgain: one that ended before everything was applied is begun again there; no broker starts meanwhile.
func TestRecoverAgain(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, quick(time.Minute), func(c *broker.Config) { c.CheckpointEvery = time.Hour })
	createR3(t, c, "t", 1)
	c.InSync("t")
	if _, err := brokertest.Publish(c.Brokers[0].Connect(), nats.NewMsg("t")); err != nil {
		t.Fatal(err)
	}
	c.InSync("t")
	dir := killed(t, c.Brokers[1])
	c.Stop()
	if err := os.WriteFile(filepath.Join(dir, "recover"), []byte("keeping\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := brokertest.Config(dir, func(c *broker.Config) { c.Name = "b2" })
	if _, err := broker.Start(t.Context(), config); !errors.Is(err, broker.ErrRecovering) {
		t.Errorf("started in the middle of a recovery: %v", err)
	}
	if plan, err := broker.PlanRecovery(dir); err != nil || !plan.Begun {
		t.Errorf("%+v, %v", plan, err)
	}
	if _, err := broker.Recover(t.Context(), broker.Config{DataDir: dir, Logger: config.Logger}); err != nil {
		t.Fatal(err)
	}
	b := brokertest.StartIn(t, dir, func(c *broker.Config) { c.Name = "b2" })
	if all, err := brokertest.ReadAll(b.Connect(), "t", 0); err != nil || len(all) != 1 {
		t.Errorf("%d records, %v", len(all), err)
	}
}
