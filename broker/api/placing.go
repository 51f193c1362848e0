package api

import (
	"fmt"

	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch/config"
)

// grow adds partitions to a topic, their replicas where placement has them.
// What stands stays where it is: moving is a change of its own.
func grow(next *config.Config, t *config.Topic, partitions, replicas int32) error {
	in := placement.Input{}
	for i := range next.Brokers {
		b := &next.Brokers[i]
		in.Brokers = append(in.Brokers, placement.Broker{
			ID: b.ID, Name: b.Name, Weight: b.Weight, Rack: b.Rack, State: placement.State(b.State),
		})
	}
	for i := range next.Topics {
		for n := range next.Topics[i].Partitions {
			in.Partitions = append(in.Partitions, placed(&next.Topics[i].Partitions[n]))
		}
	}
	if next.Topic(t.Name) != t { // a new one is not among the topics yet
		for n := range t.Partitions {
			in.Partitions = append(in.Partitions, placed(&t.Partitions[n]))
		}
	}
	first, added := next.NextShard, len(t.Partitions) > 0 && next.FeatureLevel >= config.LevelAnchors
	for range partitions {
		in.Partitions = append(in.Partitions, placement.Partition{Shard: next.TakeShard(), Factor: int(replicas)})
	}
	plan, err := placement.Make(in)
	if err != nil {
		return fmt.Errorf("place partitions of topic %s: %w", t.Name, err)
	}
	at := map[uint64][]uint64{}
	for _, a := range plan.Assignments {
		at[a.Shard] = a.Replicas
	}
	for shard := first; shard < next.NextShard; shard++ {
		p := config.Partition{Shard: shard, Added: added}
		for _, broker := range at[shard] {
			p.Replicas = append(p.Replicas, config.Replica{ID: next.TakeReplica(), Broker: broker})
		}
		if len(p.Replicas) < int(replicas) {
			return tooMany(replicas, in.Hosts())
		}
		t.Partitions = append(t.Partitions, p)
	}
	return nil
}

func placed(p *config.Partition) placement.Partition {
	out := placement.Partition{Shard: p.Shard, Factor: len(p.Wanted())}
	for _, r := range p.Wanted() {
		out.Replicas = append(out.Replicas, r.Broker)
	}
	return out
}
