package broker_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch/config"
)

// quickTrash empties the trash at once.
func quickTrash(c *broker.Config) {
	c.TrashGrace, c.PurgeEvery = time.Millisecond, 50*time.Millisecond
}

// unkept has no cluster upkeep move anything beside what a test moves.
func unkept(c *broker.Config) {
	c.DeadAfter, c.BalanceAfter = time.Hour, time.Hour
}

// createOn creates a topic of one partition on these brokers, whatever placement thinks.
func createOn(t *testing.T, c *brokertest.Cluster, topic string, brokers ...string) {
	t.Helper()
	c.Running()[0].CreateTopic(wire.TopicSpec{Name: topic, Partitions: 1, Replicas: int32(len(brokers))})
	c.InSync(topic)
	c.Move(topic, 0, brokers...)
	c.Moved(topic)
	brokertest.Eventually(t, "the preferred leader leads", func() bool { return c.Describe(topic).Partitions[0].Leader == brokers[0] })
}

// logsHeld lists the replicas of a topic that have data on a broker.
func logsHeld(t *testing.T, m *brokertest.Member, topic uint64) (ids []uint64) {
	t.Helper()
	logs, err := m.Logs()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range logs {
		if l.Topic == topic {
			ids = append(ids, l.Replica)
		}
	}
	return ids
}

// clean waits until each broker holds what the newest epoch gives it of a topic, and nothing else.
func clean(t *testing.T, c *brokertest.Cluster, topic string) {
	t.Helper()
	state := ""
	brokertest.Eventually(t, "nothing is left of what moved away: "+topic, func() bool {
		cur := c.Epoch()
		p := cur.Topic(topic).Partitions[0]
		if len(p.Retired) > 0 || p.Moving() {
			state = fmt.Sprintf("%+v", p)
			return false
		}
		for _, m := range c.Running() {
			var want []uint64
			if r, ok := p.On(cur.BrokerNamed(m.Name).ID); ok {
				want = append(want, r.ID)
			}
			if got := logsHeld(t, m, cur.Topic(topic).ID); !slices.Equal(got, want) {
				state = fmt.Sprintf("%s holds %v, wanted is %v", m.Name, got, want)
				return false
			}
		}
		return true
	})
	_ = state
}

// agree checks that all replicas of a partition know the same members.
func agree(t *testing.T, c *brokertest.Cluster, topic string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), brokertest.Wait)
	defer cancel()
	// A step that another leader was about to take may have been made after all: what it did is undone.
	brokertest.Eventually(t, "all know the same members, and no one else is among them", func() bool { return agreed(t, ctx, c, topic) })
}

func agreed(t *testing.T, ctx context.Context, c *brokertest.Cluster, topic string) bool {
	t.Helper()
	var first *replication.Membership
	for _, name := range c.Describe(topic).Partitions[0].Replicas {
		m, err := c.Member(name).Members(ctx, topic, 0)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = &m
		}
		if m.ConfigID != first.ConfigID || !maps.Equal(m.Voters, first.Voters) || len(m.NonVoting) > 0 {
			t.Logf("members as %s knows them are %+v, another says %+v", name, m, *first)
			return false
		}
	}
	return true
}

// TestMove: a partition moves under load, one replica and all of them at once, with one replica and with three.
func TestMove(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	load.More(100)
	for _, to := range [][]string{{"b1", "b2", "b4"}, {"b4", "b3", "b2"}, {"b1"}, {"b2"}, {"b3", "b4"}, {"b2", "b1", "b3"}} {
		load.Gap()
		start := time.Now()
		c.Move("t", 0, to...)
		c.Moved("t")
		t.Logf("to %v in %v, %v without an ack", to, time.Since(start).Round(time.Millisecond), load.Gap().Round(time.Millisecond))
		if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, to) {
			t.Errorf("it is on %v, wanted is %v", got, to)
		}
		load.More(50)
	}
	load.Check(c.URLs())
	clean(t, c, "t")
}

// trap isolates a broker at the moment before a step is taken, once.
type trap struct {
	step   atomic.Pointer[string]
	victim atomic.Pointer[brokertest.Member]
	sprung chan struct{}
}

func (x *trap) set(step string, victim *brokertest.Member) {
	x.sprung = make(chan struct{})
	x.victim.Store(victim)
	x.step.Store(&step)
}

func (x *trap) option(c *broker.Config) {
	c.OnMoveStep = func(_ string, _ int32, step string) {
		want := x.step.Load()
		if want == nil || *want != step || !x.step.CompareAndSwap(want, nil) {
			return
		}
		x.victim.Load().Isolate(true)
		close(x.sprung)
	}
}

// kill waits until the trap has sprung, stops the broker, which nobody has heard since, and starts it again.
func (x *trap) kill(t *testing.T, then func()) {
	t.Helper()
	select {
	case <-x.sprung:
	case <-time.After(brokertest.Wait):
		t.Fatalf("no step %s was taken", *x.step.Load())
	}
	m := x.victim.Load()
	m.Stop()
	m.Isolate(false)
	then()
	m.Start()
}

// TestMoveInterrupted: at each step of a move a broker goes away at the worst moment, comes back, and the move ends as if
// nothing had been. PARLEY_MOVES=all tries every broker at every step.
func TestMoveInterrupted(t *testing.T) {
	t.Parallel()
	var x trap
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, x.option)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	all := os.Getenv("PARLEY_MOVES") == "all"
	short := map[string]bool{"promote target": true, "transfer leader": true, "remove leader": true}
	for _, step := range []string{"add", "promote", "transfer", "remove", "done"} {
		for _, who := range []string{"leader", "target", "leaver", "other"} {
			if !all && !short[step+" "+who] {
				continue
			}
			// The leader, which is preferred, leaves where that is what is tested; else the last one does.
			p := c.Describe("t").Partitions[0]
			spare := ""
			for _, m := range c.Brokers {
				if !slices.Contains(p.Replicas, m.Name) {
					spare = m.Name
				}
			}
			brokertest.Eventually(t, "the preferred leader leads", func() bool { return c.Describe("t").Partitions[0].Leader == p.Replicas[0] })
			to := []string{p.Replicas[0], p.Replicas[1], spare}
			leaver := p.Replicas[2]
			if step == "transfer" {
				to, leaver = []string{spare, p.Replicas[1], p.Replicas[2]}, p.Replicas[0]
			}
			victim := map[string]string{"leader": p.Replicas[0], "target": spare, "leaver": leaver, "other": p.Replicas[1]}[who]
			x.set(step, c.Member(victim))
			start := time.Now()
			c.Move("t", 0, to...)
			x.kill(t, func() { load.More(20) })
			c.Moved("t")
			t.Logf("%s %s (%s): moved in %v", step, who, victim, time.Since(start).Round(time.Millisecond))
			if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, to) {
				t.Errorf("%s %s: it is on %v, wanted is %v", step, who, got, to)
			}
		}
	}
	load.Check(c.URLs())
	clean(t, c, "t")
}

// TestTargetReplaced: a move whose target is down waits, and says so; another target is carried out instead. The broker that
// was to have it learns when it is back that it hasn't.
func TestTargetReplaced(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	createOn(t, c, "t", "b1", "b2", "b3")
	b4 := c.Member("b4")
	b4.Kill()
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	c.Move("t", 0, "b1", "b2", "b4")
	brokertest.Eventually(t, "the move says what it waits for", func() bool {
		m := c.Describe("t").Partitions[0].Move
		return m != nil && m.Phase == "adding" && m.Detail != "" && len(m.Adding) == 1 && m.Adding[0].Broker == "b4" && slices.Equal(m.Removing, []string{"b3"})
	})
	load.More(50)
	c.Move("t", 0, "b3", "b2", "b1") // as it was, in another order
	c.Moved("t")
	b4.Start()
	clean(t, c, "t")
	load.Check(c.URLs())
}

// TestTargetReplacedLate: the target is replaced just before the replica that it doesn't have any more is added, promoted, or
// when the one that stays after all is about to be removed.
func TestTargetReplacedLate(t *testing.T) {
	t.Parallel()
	var hook atomic.Pointer[func(step string)]
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, func(c *broker.Config) {
		c.OnMoveStep = func(_ string, _ int32, step string) {
			if h := hook.Load(); h != nil {
				(*h)(step)
			}
		}
	})
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	for _, step := range []string{"add", "promote", "remove", "done"} {
		done := make(chan struct{})
		once := func(now string) {
			if now == step {
				hook.Store(nil)
				c.Move("t", 0, "b1", "b2", "b3")
				close(done)
			}
		}
		hook.Store(&once)
		c.Move("t", 0, "b1", "b2", "b4")
		select {
		case <-done:
		case <-time.After(brokertest.Wait):
			t.Fatalf("no step %s was taken", step)
		}
		c.Moved("t")
		if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, []string{"b1", "b2", "b3"}) {
			t.Errorf("replaced before %s: it is on %v", step, got)
		}
	}
	load.Check(c.URLs())
	clean(t, c, "t")
}

// TestMoveCutOff: the new replica can't be reached by the leader, and by nobody else either, but by all others: the move waits until
// it can.
func TestMoveCutOff(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	brokertest.Eventually(t, "b1 leads", func() bool { return c.Describe("t").Partitions[0].Leader == "b1" })
	c.Network.Cut("b1", "b4")
	c.Move("t", 0, "b1", "b2", "b4")
	load.More(500)
	if p := c.Partition("t", 0); !p.Moving() {
		t.Error("it moved over a link that is cut")
	}
	c.Network.Heal("b1", "b4")
	c.Moved("t")
	load.Check(c.URLs())
	clean(t, c, "t")
}

// TestMoveRestart: all brokers are restarted while partitions move.
func TestMoveRestart(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(100)
	load.Stop()
	for _, to := range [][]string{{"b3", "b4", "b1"}, {"b2"}} {
		c.Move("t", 0, to...)
		c.Stop()
		c.StartAll()
		c.Moved("t")
		if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, to) {
			t.Errorf("it is on %v, wanted is %v", got, to)
		}
	}
	load.Check(c.URLs())
	clean(t, c, "t")
}

// TestMovedAway: a broker that was down while its replica moved away learns it when it is back; a broker that was down from the
// beginning doesn't start a second group; what no epoch retires stays.
func TestMovedAway(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(100)
	b3 := c.Member("b3")
	b3.Kill()
	c.Move("t", 0, "b1", "b2", "b4")
	c.Moved("t")
	topic := c.Epoch().Topic("t")
	// An epoch that forgets the retired replica before its broker has confirmed anything: only a mistake could do that, and
	// then data stays rather than goes.
	c.Propose(func(next *config.Config) error {
		next.ForgetRetired(func(_ *config.Topic, _ int, r config.Replica) bool { return r.Broker == next.BrokerNamed("b3").ID })
		return nil
	})
	b3.Start()
	load.More(100)
	brokertest.Eventually(t, "b3 knows the newest epoch", func() bool { return b3.API().Store.Current().Epoch == c.Epoch().Epoch })
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got := logsHeld(t, b3, topic.ID); len(got) != 1 { // looked at every PurgeEvery
			t.Fatalf("b3 holds %v of the topic: what no epoch retires was deleted", got)
		}
	}
	brokertest.Eventually(t, "b3 knows who has the partition and who leads it", func() bool {
		d, err := b3.API().PartitionDescribe(context.Background(), wire.PartitionRequest{Topic: "t"})
		return err == nil && !slices.Contains(d.Replicas, "b3") && d.Leader != ""
	})
	load.Check(b3.URL()) // it passes on to those that have it

	// A topic is created while b3 is away, which is to have a replica of it, and its replica set is another when b3 is
	// back: it gets a fresh one, instead of making a second group of the replicas that it finds.
	b3.Kill()
	c.Propose(func(next *config.Config) error {
		u := config.Topic{ID: next.TakeTopic(), Name: "u", Subjects: config.DefaultSubjects("u"), CreatedAt: 1}
		p := config.Partition{Shard: next.TakeShard()}
		for _, name := range []string{"b1", "b2", "b3"} {
			p.Replicas = append(p.Replicas, config.Replica{ID: next.TakeReplica(), Broker: next.BrokerNamed(name).ID})
		}
		u.Partitions = []config.Partition{p}
		next.Topics = append(next.Topics, u)
		return nil
	})
	brokertest.Eventually(t, "the topic has a leader", func() bool { return c.Describe("u").Partitions[0].Leader != "" })
	second := brokertest.StartLoad(t, c.URLs(), "u", 1)
	second.More(50)
	c.Move("u", 0, "b1", "b4", "b3")
	brokertest.Eventually(t, "it has moved with b3 away", func() bool { p := c.Partition("u", 0); return !p.Moving() })
	second.More(50)
	b3.Start()
	c.Moved("u")
	agree(t, c, "u")
	c.Move("u", 0, "b3", "b4", "b1")
	c.Moved("u")
	brokertest.Eventually(t, "b3 leads", func() bool { return c.Describe("u").Partitions[0].Leader == "b3" })
	c.Move("u", 0, "b3", "b4", "b2") // which b3 carries out
	c.Moved("u")
	agree(t, c, "u")
	second.More(50)
	second.Check(c.URLs())
	clean(t, c, "u")
}

// TestMoveComparesMembers: members that were changed between the decision and the step stop the step.
func TestMoveComparesMembers(t *testing.T) {
	t.Parallel()
	var hook atomic.Pointer[func(step string)]
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, func(c *broker.Config) {
		c.OnMoveStep = func(_ string, _ int32, step string) {
			if h := hook.Load(); h != nil {
				(*h)(step)
			}
		}
	})
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	at := map[string]uint64{}
	for _, r := range c.Partition("t", 0).Replicas {
		at[c.Epoch().Broker(r.Broker).Name] = r.ID
	}
	b1 := c.Member("b1")
	ctx, cancel := context.WithTimeout(context.Background(), brokertest.Wait)
	defer cancel()
	seen := make(chan error, 1)
	changed := false
	once := func(step string) {
		switch {
		case step == "remove" && !changed: // b3, while somebody else removes b2
			changed = true
			if err := b1.ChangeMembers(ctx, "t", 0, replication.Change{Kind: replication.Remove, Replica: at["b2"]}); err != nil {
				seen <- err
			}
		case changed: // the step after that one
			hook.Store(nil)
			m, err := b1.Members(ctx, "t", 0)
			if _, voter := m.Voters[at["b3"]]; err == nil && !voter {
				err = fmt.Errorf("b3 was removed by a step that was made for other members: before %s there are %+v", step, m)
			}
			seen <- err
		}
	}
	hook.Store(&once)
	c.Move("t", 0, "b1", "b2", "b4")
	select {
	case err := <-seen:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Fatal("the move does not go on")
	}
	c.Moved("t") // b2 has a fresh replica
	load.Check(c.URLs())
	clean(t, c, "t")
}

// TestMoveFullDisk: nothing is copied to a disk that is full; when it no longer is, the move goes on.
func TestMoveFullDisk(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	free.Store(100 << 30)
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, func(c *broker.Config) {
		if c.Name == "b4" {
			c.FreeSpaceFloor = 1 << 30
			c.FreeSpace = func(string) (uint64, uint64, error) { return free.Load(), 100 << 30, nil }
		}
	})
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	free.Store(1)
	brokertest.Eventually(t, "b4 says that its disk is full", func() bool {
		return strings.Contains(strings.Join(c.Member("b4").Problems(), " "), "free disk space")
	})
	c.Move("t", 0, "b1", "b2", "b4")
	brokertest.Eventually(t, "the move says what it waits for", func() bool {
		m := c.Describe("t").Partitions[0].Move
		return m != nil && strings.Contains(m.Detail, "its disk is full")
	})
	load.More(50)
	free.Store(100 << 30)
	c.Moved("t")
	load.Check(c.URLs())
	clean(t, c, "t")
}
