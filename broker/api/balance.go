package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// maxPlanned is how many moves of a plan are listed; MaxParts of each kind.
const maxPlanned = MaxParts

// ClusterBalance plans what moves until each broker holds its share, and, unless it is a dry
// run, has that begun: the moves follow by themselves, some at a time.
func (h *Handlers) ClusterBalance(ctx context.Context, q wire.BalanceRequest) (wire.BalancePlan, error) {
	c := h.Store.Current()
	if err := movable(c); err != nil {
		return wire.BalancePlan{}, err
	}
	plan, err := upkeep.Balance(c, h.present(c))
	if err != nil {
		return wire.BalancePlan{}, err
	}
	res := h.describePlan(ctx, c, plan)
	res.Change, res.Epoch = "planned", c.Epoch
	if q.DryRun {
		return res, nil
	}
	if len(plan.Moves)+len(plan.Leads) == 0 {
		res.Change = "unchanged"
		return res, nil
	}
	res.Change = "begun"
	c, err = h.Store.Propose(ctx, func(next *config.Config) error {
		if next.Uneven > 0 {
			return epoch.ErrUnchanged
		}
		next.EvenOut()
		next.Change = fmt.Sprintf("replicas are to be evened out: %s", plural(len(plan.Moves), "move"))
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		return wire.BalancePlan{}, h.undecided(err)
	}
	res.Epoch = c.Epoch
	return res, nil
}

// present is what this broker sees of the others now.
func (h *Handlers) present(c *config.Config) upkeep.Options {
	o := upkeep.Options{Shy: map[uint64]bool{}, Down: map[uint64]bool{}}
	for i := range c.Brokers {
		if id := c.Brokers[i].ID; !h.live(id) {
			o.Shy[id], o.Down[id] = true, true
		}
	}
	return o
}

func (h *Handlers) describePlan(ctx context.Context, c *config.Config, plan *upkeep.Plan) wire.BalancePlan {
	type key struct {
		topic uint64
		n     int
	}
	bytes := map[key]int64{}
	held := map[uint64]int64{}
	for _, p := range h.look(ctx, c) {
		bytes[key{p.topic.ID, int(p.number)}] = p.Bytes
		for _, r := range p.topic.Partitions[p.number].Wanted() {
			held[r.Broker] += p.Bytes
		}
	}
	res := wire.BalancePlan{Moves: []wire.PlannedMove{}, Leaders: []wire.PlannedMove{}, Brokers: []wire.BrokerLoad{}}
	list := func(from []upkeep.PlannedMove, into *[]wire.PlannedMove, copies bool) {
		for _, m := range from {
			w := wire.PlannedMove{Topic: m.Topic, Partition: int32(m.Number), From: brokerName(c, m.From), To: brokerName(c, m.To), Reason: m.Code, Why: m.Why}
			if copies && m.To != 0 {
				w.Bytes = bytes[key{m.TopicID, m.Number}]
				res.Bytes += w.Bytes
			}
			if len(*into) < maxPlanned {
				*into = append(*into, w)
			} else {
				res.More++
			}
		}
	}
	list(plan.Moves, &res.Moves, true)
	list(plan.Leads, &res.Leaders, false)
	list(plan.Held, &res.Held, false)
	after := map[uint64]int64{}
	for _, m := range plan.Moves {
		b := bytes[key{m.TopicID, m.Number}]
		after[m.From] -= b
		after[m.To] += b
	}
	for i := range plan.Loads {
		l := &plan.Loads[i]
		res.Brokers = append(res.Brokers, wire.BrokerLoad{
			Name: brokerName(c, l.Broker), ReplicasBefore: l.Before, ReplicasAfter: l.After, LeadersBefore: l.LedBefore, LeadersAfter: l.LedAfter,
			BytesBefore: held[l.Broker], BytesAfter: held[l.Broker] + after[l.Broker],
		})
	}
	return res
}

// PartitionMove gives a partition other brokers, by an epoch; its leader carries that out. A move
// that is under way is replaced.
func (h *Handlers) PartitionMove(ctx context.Context, q wire.MoveRequest) (wire.PartitionChange, error) {
	res := wire.PartitionChange{Topic: q.Topic, Partition: q.Partition, Replicas: q.To}
	if len(q.To) > 0 {
		res.Leader = q.To[0]
	}
	var topic uint64
	var ids []uint64
	c, err := h.Store.Propose(ctx, func(next *config.Config) error {
		t, err := findPartition(next, q.Topic, q.Partition)
		if err != nil {
			return err
		}
		p := &t.Partitions[q.Partition]
		if ids, err = h.targets(next, p, q); err != nil {
			return err
		}
		topic, res.Detail = t.ID, ""
		if p.Moving() {
			res.Detail = fmt.Sprintf("it replaces the move to %s, which was under way", upkeep.Names(next, brokersIn(p.Target)))
		}
		if err := next.SetTarget(t.ID, int(q.Partition), ids); err != nil {
			return err
		}
		res.Change = "moving"
		if !p.Moving() {
			res.Change = "reordered"
		}
		next.Change = fmt.Sprintf("partition %s/%d is to move to %s", q.Topic, q.Partition, strings.Join(q.To, ","))
		return nil
	})
	if errors.Is(err, epoch.ErrUnchanged) {
		res.Change, res.Epoch = "unchanged", c.Epoch
		if t := c.Topic(q.Topic); t != nil && int(q.Partition) < len(t.Partitions) && t.Partitions[q.Partition].Moving() {
			res.Detail = "it is on its way there"
		}
		return res, nil
	}
	if err != nil {
		return wire.PartitionChange{}, h.undecided(err)
	}
	// Requests of the same moment share an epoch, which then has what the last one of them wants.
	if t := c.Topic(q.Topic); t != nil && t.ID == topic && int(q.Partition) < len(t.Partitions) {
		if has := brokersIn(t.Partitions[q.Partition].Wanted()); !slices.Equal(has, ids) {
			return wire.PartitionChange{}, failf(409, wire.ReasonBadRequest, "another request of the same moment has partition %s/%d move to %s (epoch %d): ask again to have it on %s instead",
				q.Topic, q.Partition, upkeep.Names(c, has), c.Epoch, strings.Join(q.To, ","))
		}
	}
	res.Epoch = c.Epoch
	h.carried(ctx, c.Epoch)
	return res, nil
}

func brokersIn(replicas []config.Replica) []uint64 {
	ids := make([]uint64, len(replicas))
	for i, r := range replicas {
		ids[i] = r.Broker
	}
	return ids
}

// targets checks where a partition is to move.
func (h *Handlers) targets(next *config.Config, p *config.Partition, q wire.MoveRequest) ([]uint64, error) {
	if len(q.To) != len(p.Wanted()) {
		return nil, failf(400, wire.ReasonBadRequest, "partition %s/%d has %s: name as many brokers, not %d; parley topic alter %s --replicas N changes the number",
			q.Topic, q.Partition, plural(len(p.Wanted()), "replica"), len(q.To), q.Topic)
	}
	var ids []uint64
	for _, name := range q.To {
		b := next.BrokerNamed(name)
		switch {
		case b == nil:
			return nil, failf(404, wire.ReasonBadRequest, "there is no broker %q, there are %s", name, brokerNames(next))
		case slices.Contains(ids, b.ID):
			return nil, failf(400, wire.ReasonBadRequest, "broker %s is named twice: each replica needs a broker of its own", name)
		}
		ids = append(ids, b.ID)
		if slices.Contains(brokersIn(p.Wanted()), b.ID) {
			continue
		}
		if b.State != config.Active {
			return nil, failf(409, wire.ReasonInvalidConfig, "broker %s is %s: it takes no replicas", name, b.State)
		}
		if r := h.Runtime.Reach(b.ID); !r.Up {
			return nil, retriable(503, wire.ReasonUnavailable, "broker %s can't be reached: %s", name, r.Problem)
		}
	}
	if slices.Equal(ids, brokersIn(p.Wanted())) {
		return nil, epoch.ErrUnchanged
	}
	return ids, movable(next)
}
