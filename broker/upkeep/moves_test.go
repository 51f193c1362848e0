package upkeep_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/replication/epoch/config"
)

// TestJoinEvensOut: a newcomer gets its share, and hardly more than that is copied.
func TestJoinEvensOut(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ brokers, partitions, replicas int }{{3, 64, 3}, {4, 100, 3}, {1, 16, 1}, {9, 128, 3}} {
		c := cluster(t, x.brokers, x.partitions, x.replicas)
		if moves, settled, err := upkeep.Next(c, upkeep.Options{}); len(moves) > 0 || !settled || err != nil {
			t.Errorf("%v: nothing changed, and %d moves, settled %v, %v", x, len(moves), settled, err)
		}
		id := uint64(0)
		c = follow(t, c, func(n *config.Config) { id = add(n); n.EvenOut() })
		m := newMover(t)
		c = m.run(c, upkeep.Options{})
		best := x.partitions * x.replicas / (x.brokers + 1)
		if got := loads(c); float64(got[id]) < 0.9*float64(best) || m.copied > best*11/10 {
			t.Errorf("%v: %v, %d copied, the share is %d", x, got, m.copied, best)
		}
		if m.most > upkeep.MaxMoving || m.received > upkeep.MaxReceiving {
			t.Errorf("%v: %d partitions moved at once, a broker got %d at once", x, m.most, m.received)
		}
	}
}

// TestNothingMovesUnasked: replicas that were moved on purpose stay where they are.
func TestNothingMovesUnasked(t *testing.T) {
	t.Parallel()
	c := cluster(t, 4, 12, 1)
	c = follow(t, c, func(n *config.Config) {
		for i := range n.Topics[0].Partitions {
			_ = n.SetTarget(1, i, []uint64{1}) // ErrUnchanged where it is already
		}
	})
	for i := range c.Topics[0].Partitions {
		if p := &c.Topics[0].Partitions[i]; p.Moving() {
			c = follow(t, c, func(n *config.Config) { _ = n.FinishMove(1, i, p.Target) })
		}
	}
	moves, settled, err := upkeep.Next(c, upkeep.Options{})
	if len(moves) > 0 || !settled || err != nil || loads(c)[1] != 12 {
		t.Errorf("%v: moves %+v, settled %v, %v", loads(c), moves, settled, err)
	}
	c = newMover(t).run(follow(t, c, func(n *config.Config) { n.EvenOut() }), upkeep.Options{})
	if got := fmt.Sprint(loads(c)); got != "map[1:3 2:3 3:3 4:3]" {
		t.Errorf("evened out: %s", got)
	}
}

// TestDrainAndDeath: what they had is elsewhere in the end, and no more than that moves.
func TestDrainAndDeath(t *testing.T) {
	t.Parallel()
	for _, state := range []config.BrokerState{config.Draining, config.Dead} {
		c := cluster(t, 5, 60, 3)
		had := loads(c)[2]
		c = follow(t, c, func(n *config.Config) { n.Broker(2).State = state })
		m := newMover(t)
		c = m.run(c, upkeep.Options{})
		if got := loads(c); got[2] != 0 || m.copied != had {
			t.Errorf("%v: %v, %d copied, it had %d", state, got, m.copied, had)
		}
		if m.received > upkeep.MaxReceiving || m.most > upkeep.MaxMoving {
			t.Errorf("%v: %d at once, %d to one", state, m.most, m.received)
		}
	}
}

// TestTargetOfTheDead: a partition that moves to a broker which dies gets another target.
func TestTargetOfTheDead(t *testing.T) {
	t.Parallel()
	c := cluster(t, 5, 40, 3)
	c = follow(t, c, func(n *config.Config) { n.Broker(2).State = config.Draining })
	moves, _, err := upkeep.Next(c, upkeep.Options{})
	if err != nil || len(moves) == 0 {
		t.Fatal(len(moves), err)
	}
	c = follow(t, c, func(n *config.Config) {
		for _, m := range moves {
			if err := n.SetTarget(m.Topic, m.Number, m.Brokers); err != nil {
				t.Fatal(err)
			}
		}
	})
	c = follow(t, c, func(n *config.Config) { n.Broker(4).State = config.Dead })
	c = newMover(t).run(c, upkeep.Options{})
	if got := loads(c); got[2] != 0 || got[4] != 0 {
		t.Errorf("%v", got)
	}
}

// TestLostMovesTakeNoRoom: moves of partitions whose last copy is gone don't end, and others are
// healed all the same.
func TestLostMovesTakeNoRoom(t *testing.T) {
	t.Parallel()
	c := cluster(t, 5, 200, 1)
	c = follow(t, c, func(n *config.Config) { n.Broker(2).State = config.Draining })
	moves, _, err := upkeep.Next(c, upkeep.Options{Moving: 10})
	if err != nil || len(moves) != 10 {
		t.Fatal(len(moves), err)
	}
	c = follow(t, c, func(n *config.Config) {
		for _, m := range moves {
			if err := n.SetTarget(m.Topic, m.Number, m.Brokers); err != nil {
				t.Fatal(err)
			}
		}
	})
	down := map[uint64]bool{2: true}
	c = follow(t, c, func(n *config.Config) { n.Broker(3).State = config.Draining })
	moves, _, err = upkeep.Next(c, upkeep.Options{Moving: 10, Down: down, Shy: down})
	if err != nil || len(moves) != 10 || slices.ContainsFunc(moves, func(m upkeep.Move) bool {
		return c.Topics[0].Partitions[m.Number].Replicas[0].Broker != 3
	}) {
		t.Errorf("%d moves, %v", len(moves), err)
	}
}

// TestShyGetNothing: neither brokers that are down for a moment nor those that just came back.
func TestShyGetNothing(t *testing.T) {
	t.Parallel()
	c := cluster(t, 5, 60, 3)
	c = follow(t, c, func(n *config.Config) { n.Broker(2).State = config.Dead; n.EvenOut() })
	before := loads(c)
	shy := map[uint64]bool{4: true}
	c = newMover(t).run(c, upkeep.Options{Shy: shy})
	if got := loads(c); got[2] != 0 || got[4] != before[4] || c.Uneven == 0 {
		t.Errorf("%v, before it was %v; uneven since %d", got, before, c.Uneven)
	}
	c = newMover(t).run(c, upkeep.Options{})
	if got := loads(c); got[4] < 40 || c.Uneven != 0 {
		t.Errorf("%v once it is not shy any more; uneven since %d", got, c.Uneven)
	}
	if moves, _, _ := upkeep.Next(follow(t, c, func(n *config.Config) { n.Broker(1).State = config.Dead }), upkeep.Options{Paused: true}); len(moves) > 0 {
		t.Errorf("paused: %+v", moves)
	}
}

// TestDrainOfWhoIsDown: a broker that drains and can't be reached is emptied by the others.
func TestDrainOfWhoIsDown(t *testing.T) {
	t.Parallel()
	c := cluster(t, 5, 30, 3)
	c = follow(t, c, func(n *config.Config) { n.Broker(2).State = config.Draining })
	down := map[uint64]bool{2: true}
	if got := loads(newMover(t).run(c, upkeep.Options{Shy: down, Down: down})); got[2] != 0 {
		t.Errorf("%v", got)
	}
}

// TestMajorityStays is against a dumb oracle: random clusters with brokers dead, down, draining.
// Whatever is planned, of a partition's voters that live a majority keeps its replica, or
// nothing at all is planned for it.
func TestMajorityStays(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	planned := 0
	for range 300 {
		c := cluster(t, 3+r.IntN(5), 1+r.IntN(30), 1+2*r.IntN(2))
		o := upkeep.Options{Shy: map[uint64]bool{}, Down: map[uint64]bool{}, Moving: 1 + r.IntN(8), Receiving: 1 + r.IntN(3)}
		c = follow(t, c, func(n *config.Config) {
			for i := range n.Brokers {
				n.Brokers[i].State = []config.BrokerState{config.Active, config.Active, config.Active, config.Draining, config.Dead}[r.IntN(5)]
				if id := n.Brokers[i].ID; r.IntN(5) == 0 {
					o.Down[id], o.Shy[id] = true, true
				}
			}
			if r.IntN(2) == 0 {
				n.EvenOut()
			}
		})
		moves, _, err := upkeep.Next(c, o)
		if err != nil {
			t.Fatal(err)
		}
		planned += len(moves)
		getting := map[uint64]int{}
		copies := 0
		for _, m := range moves {
			if judge(t, c, o, m, getting) {
				copies++
			}
		}
		if copies > o.Moving {
			t.Errorf("%d partitions move, at most %d are allowed", copies, o.Moving)
		}
		for id, n := range getting {
			if n > o.Receiving {
				t.Errorf("broker %d gets %d at once, at most %d are allowed", id, n, o.Receiving)
			}
		}
	}
	if planned < 100 {
		t.Errorf("only %d moves were planned: the test looks at nothing", planned)
	}
}

// judge looks at one move, and says whether anything is copied for it.
func judge(t *testing.T, c *config.Config, o upkeep.Options, m upkeep.Move, getting map[uint64]int) (copies bool) {
	voters := c.Topics[0].Partitions[m.Number].Replicas
	live, stay := 0, 0
	for _, v := range voters {
		if c.Broker(v.Broker).State != config.Dead && !o.Down[v.Broker] {
			live++
		}
	}
	for _, id := range m.Brokers {
		if !slices.ContainsFunc(voters, func(v config.Replica) bool { return v.Broker == id }) {
			getting[id]++
			copies = true
			if b := c.Broker(id); b.State != config.Active || o.Shy[id] {
				t.Errorf("broker %d, %v, shy %v, gets a replica", id, b.State, o.Shy[id])
			}
		} else if c.Broker(id).State != config.Dead && !o.Down[id] {
			stay++
		}
	}
	majority := len(voters)/2 + 1
	if live < majority || live < len(voters) && stay < majority {
		t.Errorf("of %d voters %d live and %d of them stay: %+v", len(voters), live, stay, m)
	}
	return copies
}

func BenchmarkNext(b *testing.B) {
	c := cluster(b, 9, 1024, 3)
	c.Uneven = 1
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := upkeep.Next(c, upkeep.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestLeaderlessArePassedOver: partitions without a leader get no target and hold nobody up, whether they had one
// before or not; once they have a leader they are taken up.
func TestLeaderlessArePassedOver(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3, 60, 2)
	c = follow(t, c, func(n *config.Config) { add(n); n.EvenOut() })
	moves, _, err := upkeep.Next(c, upkeep.Options{})
	if err != nil || len(moves) == 0 {
		t.Fatal(len(moves), err)
	}
	// Those of the first moves have no leader: two have been given a target, the others not yet.
	dead := map[uint64]bool{}
	for _, m := range moves {
		dead[c.Topics[0].Partitions[m.Number].Shard] = true
	}
	c = follow(t, c, func(n *config.Config) {
		for _, m := range moves[:2] {
			if err := n.SetTarget(m.Topic, m.Number, m.Brokers); err != nil {
				t.Fatal(err)
			}
		}
	})
	o := upkeep.Options{Leaderless: dead}
	before := c
	for round := 0; ; round++ {
		moves, settled, err := upkeep.Next(c, o)
		if err != nil || settled || round > 1000 {
			t.Fatalf("round %d: settled %v, %v", round, settled, err)
		}
		if len(moves) == 0 {
			break
		}
		for _, m := range moves {
			if dead[c.Topics[0].Partitions[m.Number].Shard] {
				t.Fatalf("partition %d has no leader, and is to move: %+v", m.Number, m)
			}
		}
		c = follow(t, c, func(n *config.Config) {
			for _, m := range moves {
				if err := n.SetTarget(m.Topic, m.Number, m.Brokers); err != nil {
					t.Fatal(err)
				}
			}
		})
		c = follow(t, c, func(n *config.Config) {
			for _, m := range moves {
				p := &n.Topics[0].Partitions[m.Number]
				if !p.Moving() {
					continue // only its preferred leader is another one
				}
				if err := n.FinishMove(m.Topic, m.Number, p.Target); err != nil {
					t.Fatal(err)
				}
			}
		})
		c = follow(t, c, func(n *config.Config) {
			n.ForgetRetired(func(*config.Topic, int, config.Replica) bool { return true })
		})
	}
	if got, was := loads(c)[4], loads(before)[4]; got <= was {
		t.Errorf("the new broker has %d replicas, before %d: those without a leader hold the others up", got, was)
	}
	c = newMover(t).run(c, upkeep.Options{})
	if got := loads(c); got[4] < 28 || c.Uneven != 0 {
		t.Errorf("%v once they have leaders; uneven since %d", got, c.Uneven)
	}
}
