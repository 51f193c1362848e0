package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch/config"
)

// PartitionRecover has a partition that has lost its majority for good go on with the replica that has most of its
// log, or begin anew where nothing is left, while the rest of the cluster goes on. Without Accept it only says what it would do.
func (h *Handlers) PartitionRecover(ctx context.Context, q wire.RecoverRequest) (wire.PartitionRecovery, error) {
	c := h.Store.Current()
	t, err := findPartition(c, q.Topic, q.Partition)
	if err != nil {
		return wire.PartitionRecovery{}, err
	}
	part := &t.Partitions[q.Partition]
	if err := h.lost(ctx, c, t, q.Partition); err != nil {
		return wire.PartitionRecovery{}, err
	}
	left := h.Runtime.Survivors(ctx, Part{Topic: t.ID, Number: q.Partition})
	slices.SortStableFunc(left, func(a, b Survivor) int { return -compareSurvivors(part, a, b) })
	res := wire.PartitionRecovery{Topic: q.Topic, Partition: q.Partition, Change: "planned", Replicas: []wire.ReplicaSurvivor{}, Epoch: c.Epoch}
	next, index := int64(0), uint64(0)
	for _, s := range left {
		res.Replicas = append(res.Replicas, wire.ReplicaSurvivor{
			Broker: brokerName(c, s.Broker), Replica: s.Replica, Reachable: !s.Away, Term: s.Term, Index: s.Index, NextOffset: s.Next, Bytes: s.Bytes, Problem: s.Problem,
		})
		next, index = max(next, s.Next), max(index, s.Index)
	}
	if whole := wholeOf(part, left); !part.Moving() && whole > len(part.Replicas)/2 {
		return wire.PartitionRecovery{}, retriable(409, wire.ReasonUnavailable,
			"%d of the %d replicas of partition %s/%d are whole and can be reached, which is a majority: it gets a leader by itself, and nothing need be lost; if it gets none, see whether its brokers reach each other", whole, len(part.Replicas), q.Topic, q.Partition)
	}
	from, err := chooseSurvivor(c, q, left)
	if err != nil {
		return wire.PartitionRecovery{}, err
	}
	origin := t.Beyond(int(q.Partition), h.Clock().UnixMilli(), next, part.Origin.Index+index)
	var brokers []uint64
	if from == nil {
		if brokers, err = h.homes(c, part); err != nil {
			return wire.PartitionRecovery{}, err
		}
		for _, id := range brokers {
			res.To = append(res.To, brokerName(c, id))
		}
		res.NextOffset = origin.Offset
	} else {
		res.From = brokerName(c, from.Broker)
		origin.Offset = part.Origin.Offset
	}
	res.Loss = loss(c, part, from, left)
	if !q.Accept {
		return res, nil
	}
	shard := part.Shard
	c, err = h.Store.Propose(ctx, func(next *config.Config) error {
		t, err := findPartition(next, q.Topic, q.Partition)
		if err != nil {
			return err
		}
		if t.Partitions[q.Partition].Shard != shard {
			return failf(409, wire.ReasonEpochConflict, "partition %s/%d was recovered by somebody else meanwhile: look at it (parley partition describe %s/%d)", q.Topic, q.Partition, q.Topic, q.Partition)
		}
		if from != nil {
			next.Change = fmt.Sprintf("partition %s/%d recovered by force from broker %s alone: %s", q.Topic, q.Partition, res.From, res.Loss)
			err = next.GoOn(t.ID, int(q.Partition), from.Replica, origin)
		} else {
			next.Change = fmt.Sprintf("partition %s/%d recovered by force: it begins anew, empty, at offset %d on %s: %s", q.Topic, q.Partition, origin.Offset, strings.Join(res.To, ","), res.Loss)
			err = next.BeginAnew(t.ID, int(q.Partition), brokers, origin)
		}
		next.Change = next.Change[:min(len(next.Change), config.MaxText)]
		if errors.Is(err, config.ErrInvalid) {
			return failf(409, wire.ReasonInvalidConfig, "%v", err)
		}
		return err
	})
	if err != nil {
		return wire.PartitionRecovery{}, h.undecided(err)
	}
	res.Change, res.Epoch = "recovering", c.Epoch
	h.carried(ctx, c.Epoch)
	return res, nil
}

// lost refuses a partition that doesn't need a recovery: one that has a leader, or will have one.
func (h *Handlers) lost(ctx context.Context, c *config.Config, t *config.Topic, n int32) error {
	part := &t.Partitions[n]
	name := fmt.Sprintf("%s/%d", t.Name, n)
	one := []live{{topic: t, number: n}}
	h.ask(ctx, one)
	if leader := one[0].Leader; leader != 0 && h.live(leader) && len(one[0].InSync) > 0 {
		return failf(409, wire.ReasonInvalidConfig, "partition %s has a leader, broker %s: there is nothing to recover", name, brokerName(c, leader))
	}
	if part.Salvaging() && h.live(part.Replicas[0].Broker) {
		return failf(409, wire.ReasonInvalidConfig, "partition %s is being recovered from broker %s already: parley partition describe %s tells how it does", name, brokerName(c, part.Replicas[0].Broker), name)
	}
	return nil
}

// compareSurvivors says who has more: who can be gone on with at all, whose log ends higher, then a voter before one that was
// being copied.
func compareSurvivors(part *config.Partition, a, b Survivor) int {
	voter := func(s Survivor) bool {
		return slices.ContainsFunc(part.Replicas, func(r config.Replica) bool { return r.ID == s.Replica })
	}
	flag := func(x, y bool) int {
		switch {
		case x == y:
			return 0
		case x:
			return 1
		}
		return -1
	}
	return cmp.Or(flag(usable(a), usable(b)), cmp.Compare(a.Term, b.Term), cmp.Compare(a.Index, b.Index), flag(voter(a), voter(b)), cmp.Compare(a.Next, b.Next))
}

// usable says that a replica can be gone on with without a person's word: it has something, and all of what it once had.
func usable(s Survivor) bool { return !s.Away && s.Problem == "" && s.Index > 0 }

// wholeOf counts the replicas that vote and have all that they once had.
func wholeOf(part *config.Partition, left []Survivor) (n int) {
	for _, s := range left {
		if usable(s) && slices.ContainsFunc(part.Replicas, func(r config.Replica) bool { return r.ID == s.Replica }) {
			n++
		}
	}
	return n
}

// chooseSurvivor picks the replica to go on with, nil for none. left is in order, the best first.
func chooseSurvivor(c *config.Config, q wire.RecoverRequest, left []Survivor) (*Survivor, error) {
	name := fmt.Sprintf("%s/%d", q.Topic, q.Partition)
	switch {
	case q.Empty && q.From != "":
		return nil, failf(400, wire.ReasonBadRequest, "a partition begins anew, empty, or goes on with a broker's replica: not both")
	case q.Empty:
		return nil, nil
	case q.From != "":
		for i := range left {
			if s := &left[i]; brokerName(c, s.Broker) == q.From {
				if s.Away {
					return nil, retriable(503, wire.ReasonUnavailable, "broker %s can't be reached: partition %s can't go on with its replica", q.From, name)
				}
				return s, nil
			}
		}
		return nil, failf(400, wire.ReasonBadRequest, "broker %s has no replica of partition %s", q.From, name)
	}
	var doubtful []string
	for i := range left {
		s := &left[i]
		if usable(*s) {
			return s, nil
		}
		if !s.Away && s.Index > 0 {
			doubtful = append(doubtful, brokerName(c, s.Broker)+" ("+s.Problem+")")
		}
	}
	if len(doubtful) > 0 {
		return nil, failf(409, wire.ReasonInvalidConfig, "no replica of partition %s is whole; left are %s: say which one it goes on with (--from BROKER), or that it begins anew (--empty)",
			name, strings.Join(doubtful, ", "))
	}
	return nil, nil
}

// homes are the brokers that a partition begins anew on: as many as it had, as the planner would place a new one.
func (h *Handlers) homes(c *config.Config, part *config.Partition) ([]uint64, error) {
	in := placement.Input{}
	for _, b := range upkeep.Brokers(c) {
		if b.State == placement.Active && !h.live(b.ID) {
			b.State = placement.Draining
		}
		in.Brokers = append(in.Brokers, b)
	}
	able := 0
	for _, b := range in.Brokers {
		if b.State == placement.Active {
			able++
		}
	}
	if able == 0 {
		return nil, retriable(503, wire.ReasonUnavailable, "no active broker can be reached that could take it")
	}
	for i := range c.Topics {
		for n := range c.Topics[i].Partitions {
			if p := &c.Topics[i].Partitions[n]; p.Shard != part.Shard && c.Topics[i].Live() {
				in.Partitions = append(in.Partitions, placed(p)) // so that loads count
			}
		}
	}
	in.Partitions = append(in.Partitions, placement.Partition{Shard: c.NextShard, Factor: min(len(part.Wanted()), able)})
	plan, err := placement.Make(in)
	if err != nil {
		return nil, err
	}
	for _, a := range plan.Assignments {
		if a.Shard == c.NextShard {
			return a.Replicas, nil
		}
	}
	return nil, fmt.Errorf("place partition: the plan has no place for it")
}

// loss says what a recovery may lose.
func loss(c *config.Config, part *config.Partition, from *Survivor, left []Survivor) string {
	var away, behind []string // of replicas that can't tell, or not all of it
	for _, s := range left {
		switch {
		case from != nil && s.Replica == from.Replica:
		case !usable(s):
			away = append(away, brokerName(c, s.Broker))
		case from != nil && (s.Term > from.Term || s.Term == from.Term && s.Index > from.Index):
			behind = append(behind, fmt.Sprintf("%s (%d entries more)", brokerName(c, s.Broker), s.Index-min(from.Index, s.Index)))
		}
	}
	switch {
	case from == nil:
		return "all records of the partition, and what its groups had handled"
	case len(behind) > 0:
		return "what " + strings.Join(behind, ", ") + " has beyond it"
	case from.Problem != "":
		return "what this replica lacks: " + from.Problem
	case len(away) == 0:
		return "nothing: no other replica's log has more"
	case len(away) >= len(part.Replicas)/2+1:
		return fmt.Sprintf("what only %s had: acked records at the end of the log may be among it", strings.Join(away, ", "))
	}
	return fmt.Sprintf("nothing that was acked: %s had no majority", strings.Join(away, ", "))
}
