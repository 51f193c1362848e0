package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// raiseHint is what follows a refusal for the sake of the feature level.
const raiseHint = "once every broker runs a version that knows it, parley cluster raise-level has all use it"

// ClusterLevel raises the cluster's feature level, or says what that would mean. It is the end of an upgrade:
// from then on brokers write what earlier versions can't read.
func (h *Handlers) ClusterLevel(ctx context.Context, q wire.LevelRequest) (wire.LevelChange, error) {
	known := h.Runtime.Levels(ctx)
	c := h.Store.Current()
	res, err := planLevel(c, known, q.To)
	switch {
	case q.DryRun && err != nil:
		var e *wire.Error
		if !errors.As(err, &e) || !e.Retriable {
			return wire.LevelChange{}, err
		}
		res.Blocked = e.Description
		return res, nil
	case err != nil:
		return wire.LevelChange{}, err
	case q.DryRun || res.Change == "unchanged":
		return res, nil
	}
	c, err = h.Store.Propose(ctx, func(next *config.Config) error {
		var err error
		if res, err = planLevel(next, known, res.To); err != nil {
			return err
		}
		if res.Change == "unchanged" {
			return epoch.ErrUnchanged
		}
		next.FeatureLevel = res.To
		next.Change = fmt.Sprintf("feature level %d", res.To)
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		return wire.LevelChange{}, h.undecided(err)
	}
	if err == nil {
		res.Change = "raised"
	}
	res.Epoch = c.Epoch
	h.carried(ctx, c.Epoch)
	return res, nil
}

// planLevel says which level a cluster can have, by what its brokers said that they know. A retriable error says why it can't have it yet.
func planLevel(c *config.Config, known map[uint64]uint32, to uint32) (wire.LevelChange, error) {
	res := wire.LevelChange{Change: "planned", From: c.FeatureLevel, Epoch: c.Epoch, Brings: []string{}}
	var silent, low []string
	newest, all := uint32(config.Level), true
	for i := range c.Brokers {
		b := &c.Brokers[i]
		knows, told := known[b.ID]
		res.Brokers = append(res.Brokers, wire.BrokerLevel{Name: b.Name, State: b.State.String(), Told: told, Knows: knows})
		switch {
		case b.State == config.Dead: // it comes back with a version that knows, or is refused by its own journal
		case !told:
			silent, all = append(silent, b.Name), false
		default:
			newest = min(newest, knows)
			if to > 0 && knows < to {
				low = append(low, fmt.Sprintf("%s knows up to %d", b.Name, knows))
			}
		}
	}
	if to == 0 {
		if to = c.FeatureLevel; all {
			to = max(to, newest)
		}
	}
	res.To = to
	for l := c.FeatureLevel + 1; l <= to; l++ {
		res.Brings = append(res.Brings, fmt.Sprintf("%d: %s", l, config.LevelText(l)))
	}
	switch {
	case to > config.Level:
		return res, failf(400, wire.ReasonBadRequest, "feature level %d: this version knows up to %d", to, config.Level)
	case to < c.FeatureLevel:
		return res, failf(409, wire.ReasonInvalidConfig, "the feature level is %d and never falls: versions that know no more than %d can't be used again", c.FeatureLevel, to)
	case len(silent) > 0:
		return res, retriable(503, wire.ReasonUnavailable, "broker %s did not say which feature level it knows: the level rises when all brokers that aren't dead do", some(silent))
	case len(low) > 0:
		return res, retriable(409, wire.ReasonUnavailable, "feature level %d needs every broker: %s: upgrade it first", to, some(low))
	case to == c.FeatureLevel:
		res.Change = "unchanged"
	}
	return res, nil
}

// levelWarning reminds of an upgrade that was not brought to its end.
func (h *Handlers) levelWarning(ctx context.Context, c *config.Config) string {
	res, err := planLevel(c, h.Runtime.Levels(ctx), 0)
	if err != nil || res.To <= res.From {
		return ""
	}
	return fmt.Sprintf("all brokers know feature level %d, the cluster is at %d: parley cluster raise-level ends the upgrade; until then the version before can be brought back", res.To, res.From)
}
