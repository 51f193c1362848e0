package upkeep_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch/config"
)

// cluster is a configuration of n brokers, placed as a new topic's partitions are.
func cluster(t testing.TB, n, partitions, replicas int) *config.Config {
	t.Helper()
	c := &config.Config{ClusterID: "c", Epoch: 1, Previous: config.Hash{1}, FeatureLevel: config.Level, NextBroker: 1, NextTopic: 1, NextShard: 1, NextReplica: 1}
	for range n {
		add(c)
	}
	c.Council = []uint64{1}
	for range config.CouncilSize(n) - 1 {
		c.Council = append(c.Council, uint64(len(c.Council)+1))
	}
	in := placement.Input{Brokers: upkeep.Brokers(c)}
	topic := config.Topic{ID: c.TakeTopic(), Name: "t", Subjects: []string{"t"}}
	for range partitions {
		in.Partitions = append(in.Partitions, placement.Partition{Shard: c.TakeShard(), Factor: min(n, replicas)})
	}
	plan, err := placement.Make(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range plan.Assignments {
		p := config.Partition{Shard: a.Shard}
		for _, b := range a.Replicas {
			p.Replicas = append(p.Replicas, config.Replica{ID: c.TakeReplica(), Broker: b})
		}
		topic.Partitions = append(topic.Partitions, p)
	}
	c.Topics = []config.Topic{topic}
	check(t, c)
	return c
}

func add(c *config.Config) uint64 {
	id := c.TakeBroker()
	c.Brokers = append(c.Brokers, config.Broker{ID: id, Name: fmt.Sprint("b", id), Incarnation: fmt.Sprint("i", id), Weight: 100})
	return id
}

func check(t testing.TB, c *config.Config) {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
}

// follow makes the next epoch of c by change.
func follow(t testing.TB, c *config.Config, change func(*config.Config)) *config.Config {
	t.Helper()
	n := c.Clone()
	n.Epoch++
	n.Previous = c.Hash()
	change(n)
	if err := n.Follows(c); err != nil {
		t.Fatal(err)
	}
	check(t, n)
	return n
}

// mover plays the part of leaders: it finishes moves one at a time, in random order.
type mover struct {
	t        testing.TB
	random   *rand.Rand
	copied   int // replicas
	most     int // partitions at once
	received int // replicas that one broker got at once
}

func newMover(t testing.TB) *mover {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &mover{t: t, random: rand.New(rand.NewPCG(seed, 0))}
}

// run goes on until nothing is left to do, or what is left waits for somebody.
func (m *mover) run(c *config.Config, o upkeep.Options) *config.Config {
	m.t.Helper()
	for round := 0; ; round++ {
		if round > 10_000 {
			m.t.Fatal("it doesn't come to an end")
		}
		moves, settled, err := upkeep.Next(c, o)
		if err != nil {
			m.t.Fatal(err)
		}
		if settled && c.Uneven == 0 {
			return c
		}
		if len(moves) > 0 || settled {
			c = follow(m.t, c, func(n *config.Config) {
				if settled {
					n.Uneven = 0
				}
				for _, x := range moves {
					if err := n.SetTarget(x.Topic, x.Number, x.Brokers); err != nil {
						m.t.Fatalf("%+v: %v", x, err)
					}
				}
			})
		}
		moving := m.look(c)
		if len(moving) == 0 {
			if len(moves) == 0 && !settled {
				return c
			}
			continue
		}
		done := moving[m.random.IntN(len(moving))]
		c = follow(m.t, c, func(n *config.Config) {
			p := &n.Topics[0].Partitions[done]
			m.copied += len(p.Adding())
			if err := n.FinishMove(n.Topics[0].ID, done, p.Target); err != nil {
				m.t.Fatal(err)
			}
		})
		c = follow(m.t, c, func(n *config.Config) {
			n.ForgetRetired(func(*config.Topic, int, config.Replica) bool { return true })
		})
	}
}

// look returns which partitions move, and notes how much that is.
func (m *mover) look(c *config.Config) (moving []int) {
	getting := map[uint64]int{}
	for n := range c.Topics[0].Partitions {
		if p := &c.Topics[0].Partitions[n]; p.Moving() {
			moving = append(moving, n)
			for _, r := range p.Adding() {
				getting[r.Broker]++
			}
		}
	}
	m.most = max(m.most, len(moving))
	for _, n := range getting {
		m.received = max(m.received, n)
	}
	return moving
}

func loads(c *config.Config) map[uint64]int {
	n := map[uint64]int{}
	for i := range c.Brokers {
		n[c.Brokers[i].ID] = c.Holds(c.Brokers[i].ID)
	}
	return n
}
