package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication/epoch/config"
)

// holdUp holds up the work on each topic before the step that the topic is named after ("at-STEP"), until it is let go.
type holdUp struct {
	mu   sync.Mutex
	at   map[string]bool
	free chan struct{}
	once sync.Once
}

func newHoldUp() *holdUp { return &holdUp{at: map[string]bool{}, free: make(chan struct{})} }

// clustered starts a cluster that can stop whatever is held up when the test fails.
func (h *holdUp) clustered(t *testing.T, n int, options ...brokertest.Option) *brokertest.Cluster {
	c := brokertest.StartCluster(t, n, options...)
	t.Cleanup(h.release)
	return c
}

func (h *holdUp) step(topic string, _ int32, step string) {
	if topic != "at-"+step {
		return
	}
	h.mu.Lock()
	h.at[step] = true
	h.mu.Unlock()
	<-h.free
}

// await waits until the work on topics has come to these steps.
func (h *holdUp) await(t *testing.T, steps ...string) {
	t.Helper()
	brokertest.Eventually(t, fmt.Sprint("work has come to the steps ", steps), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return !slices.ContainsFunc(steps, func(s string) bool { return !h.at[s] })
	})
}

func (h *holdUp) release() { h.once.Do(func() { close(h.free) }) }

// TestSalvageCrashes: a broker brings six partitions over to new Raft groups, from its replicas alone, each has come to another step, and
// the broker crashes. Started again it is through with all of them, and has all that was acked.
func TestSalvageCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes more than three seconds")
	}
	t.Parallel()
	const records = 20
	h := newHoldUp()
	c := h.clustered(t, 4, quickTrash, unkept, func(c *broker.Config) {
		if c.Name == "b3" {
			c.OnRepairStep = h.step
		}
	})
	steps := []string{"replay", "begin", "cut", "forget", "reopen", "confirm"}
	b1, b3 := c.Brokers[0], c.Member("b3")
	nc := b1.Connect()
	var made sync.WaitGroup
	for _, s := range steps {
		made.Go(func() {
			createOn(t, c, "at-"+s, "b4", "b3")
			publishNumbers(t, nc, "at-"+s, records)
			c.InSync("at-" + s)
		})
	}
	made.Wait()
	c.Member("b4").Kill()
	// In one epoch, so that all are carried out at the same time.
	c.Propose(func(next *config.Config) error {
		for _, s := range steps {
			topic := next.Topic("at-" + s)
			r, _ := topic.Partitions[0].On(next.BrokerNamed("b3").ID)
			if err := next.GoOn(topic.ID, 0, r.ID, config.Origin{Index: 1_000_000_000}); err != nil {
				return err
			}
		}
		return nil
	})
	h.await(t, steps...)
	b3.Crash(h.release)
	for _, s := range steps {
		if p := c.Partition("at-"+s, 0); !p.Salvaging() {
			t.Errorf("%s: it was through before the crash: %+v", s, p)
		}
	}
	b3.Launch()
	if b3.Broker == nil {
		t.FailNow()
	}
	for _, s := range steps {
		brokertest.Eventually(t, s+": it is recovered", func() bool { p := c.Partition("at-"+s, 0); return !p.Salvaging() && !p.Moving() })
		c.InSync("at-" + s)
		if ack := publishNumbers(t, nc, "at-"+s, 1); ack.Offset != records {
			t.Errorf("%s: the next record has offset %d, there were %d", s, ack.Offset, records)
		}
		all, err := brokertest.ReadAll(nc, "at-"+s, 0)
		if err != nil || len(all) != records+1 {
			t.Errorf("%s: %d of %d records, %v", s, len(all), records+1, err)
			continue
		}
		for i, r := range all[:records] {
			if string(r.Value) != strconv.Itoa(i) {
				t.Errorf("%s: record %d is %q", s, i, r.Value)
			}
		}
	}
}

// TestRepairCrashes: five replicas of one broker differ from the others. Each has come to another step of being condemned and replaced when the
// broker crashes. Started again all are healed, at the latest when they are compared once more, and nothing of what was wrong is left.
func TestRepairCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes more than three seconds")
	}
	t.Parallel()
	const records = 20
	h := newHoldUp()
	c := h.clustered(t, 3, quickTrash, unkept, onlyAsked, func(c *broker.Config) { c.OnRepairStep, c.OnMoveStep = h.step, h.step })
	steps := []string{"add", "remove", "done", "replace", "condemn"} // in this order, as the last two hold up others
	before := map[string]uint64{}
	at := func(topic string) uint64 {
		p := c.Partition(topic, 0)
		r, _ := p.On(c.Epoch().BrokerNamed("b2").ID)
		return r.ID
	}
	b1, b2 := c.Member("b1"), c.Member("b2")
	nc := b1.Connect()
	for _, s := range steps {
		b1.CreateTopic(wire.TopicSpec{Name: "at-" + s, Partitions: 1, Replicas: 3})
		transfer(t, c, "at-"+s, "b1")
		publishNumbers(t, nc, "at-"+s, records)
		c.InSync("at-" + s)
		before[s] = at("at-" + s)
	}
	dir := b2.Dir()
	b2.Stop()
	for _, s := range steps {
		brokertest.Alter(t, dir, before[s], records/2)
	}
	b2.Start()
	look := func(s string) {
		brokertest.Eventually(t, "a comparison begins", func() bool {
			_, err := b1.API().PartitionCompare(t.Context(), wire.PartitionRequest{Topic: "at-" + s})
			return err == nil
		})
	}
	for _, s := range steps {
		c.InSync("at-" + s)
		transfer(t, c, "at-"+s, "b1")
		look(s)
		h.await(t, s)
	}
	b2.Crash(h.release)
	b2.Launch()
	if b2.Broker == nil {
		t.FailNow()
	}
	for _, s := range steps {
		topic := "at-" + s
		again := time.Now()
		brokertest.Eventually(t, s+": b2 has a fresh replica", func() bool {
			if at(topic) == before[s] && time.Since(again) > time.Second { // what it was told is forgotten with the crash
				again = time.Now()
				_, _ = b1.API().PartitionCompare(t.Context(), wire.PartitionRequest{Topic: topic}) // not while one is under way
			}
			return at(topic) != before[s]
		})
		c.Moved(topic)
		clean(t, c, topic)
		transfer(t, c, topic, "b2")
		all, err := brokertest.ReadAll(nc, topic, 0)
		if err != nil || len(all) != records {
			t.Errorf("%s: %d of %d records, %v", s, len(all), records, err)
			continue
		}
		for i, r := range all {
			if string(r.Value) != strconv.Itoa(i) {
				t.Errorf("%s: record %d is %q", s, i, r.Value)
			}
		}
	}
}

// TestCondemnedByAnotherVersion: a leader of another version says that a replica's state is wrong: the replica doesn't believe it, for it can't know whether not
// the other one's is. One of its own version is believed, and the replica is replaced.
func TestCondemnedByAnotherVersion(t *testing.T) {
	t.Parallel()
	const records = 20
	c := filled(t, 3, records, strconv.Itoa)
	compare(t, c, "t") // so that there is a state that both know
	b1 := c.Member("b1")
	before := replicaOn(c, "b2")
	condemn := func(version string) error {
		return b1.CondemnState(t.Context(), "b2", "t", version, func(d *partition.StateDigest) { d.Producers[0]++ })
	}
	var e *wire.Error
	if err := condemn(broker.Version + ".1"); !errors.As(err, &e) || !strings.Contains(e.Description, "another version") {
		t.Errorf("condemned by another version: %v", err)
	}
	if err := condemn(""); !errors.As(err, &e) || !strings.Contains(e.Description, "another version") {
		t.Errorf("condemned by a version that doesn't say which it is: %v", err)
	}
	if d := c.Member("b2").Damage("t", 0); d != "" {
		t.Errorf("it believed that it is damaged: %s", d)
	}
	if err := condemn(broker.Version); err != nil {
		t.Errorf("condemned by its own version: %v", err)
	}
	brokertest.Eventually(t, "b2 gets a fresh replica", func() bool { return replicaOn(c, "b2") != before })
	c.Moved("t")
	if all, err := brokertest.ReadAll(b1.Connect(), "t", 0); err != nil || len(all) != records {
		t.Errorf("%d of %d records, %v", len(all), records, err)
	}
	clean(t, c, "t")
}
