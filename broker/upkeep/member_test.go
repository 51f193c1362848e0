package upkeep_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/replication/epoch/config"
)

// TestBereft: what a broker that is gone has the last copy of, or what has no majority without it,
// nobody can take over. The rest of what it had can be given up.
func TestBereft(t *testing.T) {
	t.Parallel()
	all := func(uint64) bool { return true }
	for _, x := range []struct {
		brokers, replicas int
		live              func(uint64) bool
		want              bool
	}{
		{3, 3, all, false},
		{3, 3, func(id uint64) bool { return id != 1 }, true},
		{3, 2, all, true},
		{3, 1, all, true},
		{5, 5, all, false},
	} {
		c := cluster(t, x.brokers, 6, x.replicas)
		c = follow(t, c, func(n *config.Config) { n.Broker(3).State = config.Dead })
		var want []string
		for i, p := range c.Topics[0].Partitions {
			if x.want && slices.ContainsFunc(p.Replicas, func(r config.Replica) bool { return r.Broker == 3 }) {
				want = append(want, fmt.Sprintf("t/%d", i))
			}
		}
		if x.want && len(want) == 0 {
			t.Fatalf("%+v: broker 3 has nothing", x)
		}
		if got := upkeep.Bereft(c, 3, x.live); !slices.Equal(got, want) {
			t.Errorf("%d replicas on %d brokers: %v, want %v", x.replicas, x.brokers, got, want)
		}
		if x.want {
			continue
		}
		c = follow(t, c, func(n *config.Config) {
			if dropped, err := upkeep.GiveUp(n, 3); err != nil || dropped != 6 {
				t.Errorf("%d given up, %v", dropped, err)
			}
		})
		for i, p := range c.Topics[0].Partitions {
			if len(p.Target) != x.replicas-1 {
				t.Errorf("partition %d is to have %v", i, p.Target)
			}
		}
	}
}

// TestSupersededGoes: a broker whose name another one took over is removed when it holds nothing any more,
// whether it was drained by hand or not.
func TestSupersededGoes(t *testing.T) {
	t.Parallel()
	for _, state := range []config.BrokerState{config.Dead, config.Draining} {
		c := cluster(t, 4, 6, 3)
		c = follow(t, c, func(n *config.Config) { n.Broker(4).State, n.Broker(4).Name = state, "b4~4" })
		for c.Holds(4) > 0 {
			if d, err := upkeep.Decide(c, upkeep.Facts{Superseded: "~"}); err != nil || d.Removed != 0 {
				t.Fatalf("%+v, %v", d, err)
			}
			c = newMover(t).run(c, upkeep.Options{})
		}
		if d, err := upkeep.Decide(c, upkeep.Facts{Superseded: "~"}); err != nil || d.Removed != 4 {
			t.Errorf("%v: %+v, %v", state, d, err)
		}
	}
}
