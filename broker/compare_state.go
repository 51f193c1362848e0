package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication/epoch/config"
)

// stateWait is how long the others may take to apply the barrier at which states are compared.
const stateWait = 5 * time.Second

// compareStates has all replicas apply a barrier and compares what their state was there. The barrier is the
// partition's own, once more: it changes nothing. What differs is looked at twice.
func (k *comparer) compareStates(ctx context.Context, s *slot, p *partition.Partition) {
	var votes []ballot
	var own partition.StateDigest
	for range 2 {
		var ok bool
		if own, votes, ok = k.statesOnce(ctx, s, p); !ok {
			k.change(s, func(n *comparison) { n.StateAt = 0 })
			return
		}
		if judge(votes, len(s.replicas())).same {
			var old []difference
			k.change(s, func(n *comparison) {
				n.StateAt = own.Index
				if len(votes) == len(s.replicas()) {
					old = n.states()
				}
			})
			for i := range old {
				k.over(s, old[i], "all replicas have the same state now")
			}
			return
		}
	}
	k.act(ctx, s, p, &difference{What: whatState, Votes: votes, State: &own, Found: time.Now().UnixMilli()})
}

// statesOnce is false where there was nothing to compare.
func (k *comparer) statesOnce(ctx context.Context, s *slot, p *partition.Partition) (own partition.StateDigest, votes []ballot, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, stateWait)
	defer cancel()
	barrier := p.Status().Barrier
	if barrier == 0 {
		return own, nil, false // its first one is on its way
	}
	err := p.Barrier(ctx, barrier)
	if err == nil {
		own, err = p.StateAt(0)
	}
	if err != nil {
		k.b.c.Logger.Debug().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("the state of replicas was not compared")
		return own, nil, false
	}
	votes = []ballot{{Broker: k.b.self(), Replica: s.replica.ID, Digest: stateText(&own)}}
	for _, a := range others[stateAnswer](ctx, k, s, stateWait, subjectState, func(r config.Replica) any {
		return stateQuestion{Shard: s.shard, Replica: r.ID, Index: own.Index}
	}) {
		switch {
		case a.err != nil:
			k.b.c.Logger.Debug().Err(a.err).Str("topic", s.topic).Int32("partition", s.number).Str("broker", k.b.brokerName(a.replica.Broker)).
				Msg("the state of a replica was not compared")
		case a.value.comparable(&stateAnswer{own, Version}): // else an older or a newer broker's
			if a.value.Chain != own.Chain && a.value.Differs(own) == "" {
				k.b.c.Logger.Info().Str("topic", s.topic).Int32("partition", s.number).Str("broker", k.b.brokerName(a.replica.Broker)).
					Msg("replicas have other chains and the same state: one of them is from before there were chains, or their logs differ, which the comparison shows")
			}
			votes = append(votes, ballot{Broker: a.replica.Broker, Replica: a.replica.ID, Digest: stateText(&a.value.StateDigest)})
		}
	}
	return own, votes, true
}

// stateText is short: what is the same in two texts is the same in the states.
func stateText(d *partition.StateDigest) string {
	return fmt.Sprintf("position %s next %d producers %s groups %s", d.Position, d.Next, d.Producers, d.Groups)
}
