package api

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// named is how many partitions an error names.
const named = 5

func some(names []string) string {
	if len(names) <= named {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:named], ", "), len(names)-named)
}

func (h *Handlers) live(id uint64) bool { return h.Runtime.Reach(id).Up }

// member changes a broker of the newest configuration by edit, which returns what it did and a
// detail for people, or epoch.ErrUnchanged.
func (h *Handlers) member(ctx context.Context, name string, edit func(next *config.Config, b *config.Broker) (change, detail string, err error)) (wire.BrokerChange, error) {
	res := wire.BrokerChange{Name: name}
	var id uint64
	c, err := h.Store.Propose(ctx, func(next *config.Config) error {
		b := next.BrokerNamed(name)
		if b == nil {
			return failf(404, wire.ReasonBadRequest, "there is no broker %q, there are %s", name, brokerNames(next))
		}
		id = b.ID
		var err error
		if res.Change, res.Detail, err = edit(next, b); err != nil {
			return err
		}
		next.Change = fmt.Sprintf("broker %s %s", name, res.Change)
		return nil
	})
	if errors.Is(err, epoch.ErrUnchanged) {
		if res.Change == "" {
			res.Change = "unchanged"
		}
		res.Epoch, res.Replicas = c.Epoch, c.Holds(id)
		return res, nil
	}
	if err != nil {
		return wire.BrokerChange{}, h.undecided(err)
	}
	res.Epoch, res.Replicas = c.Epoch, c.Holds(id)
	h.carried(ctx, c.Epoch)
	return res, nil
}

// BrokerDrain has a broker give all its replicas to others.
func (h *Handlers) BrokerDrain(ctx context.Context, q wire.NameRequest) (wire.BrokerChange, error) {
	return h.member(ctx, q.Name, func(next *config.Config, b *config.Broker) (string, string, error) {
		if b.State == config.Draining {
			return "", "", epoch.ErrUnchanged
		}
		if err := movable(next); err != nil {
			return "", "", err
		}
		if next.LastActive(b.ID) {
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s can't be drained: there is no other active broker to take its replicas", q.Name)
		}
		if lone := upkeep.Lone(next, b.ID, h.live); len(lone) > 0 && b.State != config.Dead {
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s can't be drained: it has the only live copy of %s: bring back the brokers that have the others (%s)",
				q.Name, plural(len(lone), "partition"), some(lone))
		}
		detail := ""
		if n := upkeep.Stuck(next, b.ID); n > 0 {
			detail = fmt.Sprintf("%s can't move, since all other active brokers have one of the same partition: they stay until a broker joins, or the topics get fewer replicas",
				plural(n, "replica"))
		}
		b.State = config.Draining
		return "draining", detail, nil
	})
}

// BrokerResume gives a broker that drains its share again.
func (h *Handlers) BrokerResume(ctx context.Context, q wire.NameRequest) (wire.BrokerChange, error) {
	return h.member(ctx, q.Name, func(next *config.Config, b *config.Broker) (string, string, error) {
		switch b.State {
		case config.Active:
			return "", "", epoch.ErrUnchanged
		case config.Dead:
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s is dead: it is taken for active again by itself when it comes back", q.Name)
		}
		b.State = config.Active
		next.EvenOut()
		return "resumed", "", nil
	})
}

// BrokerRemove takes a broker out of the cluster for good: one that holds nothing, or one that is gone: dead, or
// draining and out of reach. The replicas of one that is gone are given up first, where nobody can take them.
func (h *Handlers) BrokerRemove(ctx context.Context, q wire.NameRequest) (wire.BrokerChange, error) {
	return h.member(ctx, q.Name, func(next *config.Config, b *config.Broker) (string, string, error) {
		id, state := b.ID, b.State
		if len(next.Brokers) == 1 {
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s is the only one: a cluster of none is no cluster", q.Name)
		}
		up := h.live(id)
		gone := state == config.Dead || state == config.Draining && !up
		if held := next.Holds(id); held > 0 {
			switch {
			case gone:
				return h.giveUp(next, q.Name, id, held)
			case state == config.Draining:
				return "", "", retriable(409, wire.ReasonUnavailable, "broker %s still holds %s, which move away%s", q.Name, plural(held, "replica"), h.stuckText(next, id))
			case !up:
				return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s holds %s and can't be reached: bring it back and drain it; or, if it is gone for good, wait until it is dead (dead-after), "+
					"or drain it now (parley broker drain %s), and remove it then", q.Name, plural(held, "replica"), q.Name)
			}
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s holds %s: drain it first (parley broker drain %s --wait)", q.Name, plural(held, "replica"), q.Name)
		}
		needed := next.NeededOn(id, h.has(next))
		switch {
		case len(needed) == 0 || gone:
		case !up:
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s can't be reached, and deleted topics that can still be restored need what it has of them (%s): bring it back; or, if it is gone for good, "+
				"drain it (parley broker drain %s) and remove it then, and they are lost with it", q.Name, some(needed), q.Name)
		default:
			return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s has what deleted topics that can still be restored need for a majority (%s): restore them (parley topic restore NAME) and let them move, "+
				"or wait until their grace is over", q.Name, some(needed))
		}
		next.RemoveBroker(id)
		if len(next.Council) == 0 {
			// The only seat of a small cluster: it passes on in the same epoch.
			if !next.StepCouncil(h.live) {
				return "", "", retriable(503, wire.ReasonUnavailable, "broker %s is the whole council, and no other broker can be reached to follow it", q.Name)
			}
		}
		if len(needed) > 0 {
			return "removed", "deleted topics that can't be restored any more: " + some(needed), nil
		}
		return "removed", "", nil
	})
}

// has says which brokers have what they hold: those that are neither dead nor out of reach.
func (h *Handlers) has(c *config.Config) func(uint64) bool {
	return func(id uint64) bool {
		b := c.Broker(id)
		return b != nil && b.State != config.Dead && h.live(id)
	}
}

// stuckText says which replicas of a broker nobody can take, if any.
func (h *Handlers) stuckText(c *config.Config, id uint64) string {
	if n := upkeep.Stuck(c, id); n > 0 {
		return fmt.Sprintf(": %s can't, since all other active brokers have one of the same partition: add a broker, or give the topics fewer replicas (parley topic alter NAME --replicas N)", plural(n, "replica"))
	}
	return ""
}

func (h *Handlers) giveUp(next *config.Config, name string, id uint64, held int) (string, string, error) {
	// Before anything else: what waits for others to take it over would wait for ever.
	if bereft := upkeep.Bereft(next, id, h.live); len(bereft) > 0 {
		return "", "", failf(409, wire.ReasonInvalidConfig, "broker %s can't be removed: %s would lose their last copy, or their majority (%s): bring it back; or, if it is gone for good, "+
			"go on with what is left of them (parley partition recover %s), or delete those topics", name, plural(len(bereft), "partition"), some(bereft), bereft[0])
	}
	moving := 0
	for i := range next.Topics {
		for n := range next.Topics[i].Partitions {
			if p := &next.Topics[i].Partitions[n]; p.Moving() {
				if _, there := p.On(id); there {
					moving++
				}
			}
		}
	}
	stuck := upkeep.Stuck(next, id)
	if moving+stuck < held {
		return "", "", retriable(409, wire.ReasonUnavailable, "broker %s is gone and still holds %s: others take them over, it can be removed after that (parley partition list says how far they are)", name, plural(held, "replica"))
	}
	dropped, err := upkeep.GiveUp(next, id)
	switch {
	case err != nil:
		return "", "", err
	case dropped == 0:
		return "removing", fmt.Sprintf("%s are being given up", plural(held, "replica")), epoch.ErrUnchanged
	}
	return "removing", fmt.Sprintf("%s that nobody can take are given up: those partitions have one replica fewer from now on", plural(dropped, "replica")), nil
}

// movable refuses what needs moves while some broker doesn't know them.
func movable(c *config.Config) error {
	if c.FeatureLevel >= config.LevelMoves {
		return nil
	}
	return retriable(503, wire.ReasonUnavailable, "nothing can move at feature level %d, level %d is needed: "+raiseHint, c.FeatureLevel, config.LevelMoves)
}
