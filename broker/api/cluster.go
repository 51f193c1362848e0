package api

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// ClusterStatus is the cluster at a glance.
func (h *Handlers) ClusterStatus(ctx context.Context, _ None) (wire.ClusterStatus, error) {
	c := h.Store.Current()
	all := h.look(ctx, c)
	s := wire.ClusterStatus{ClusterID: c.ClusterID, Epoch: c.Epoch, Council: council(c, c.Council), Brokers: h.brokers(c, all)}
	for _, p := range all {
		s.Partitions++
		if p.Leader == 0 {
			s.Leaderless++
		}
		if p.lacking() {
			s.UnderReplicated++
		}
	}
	for i := range c.Topics {
		t := &c.Topics[i]
		if !t.Live() {
			continue
		}
		s.Topics++
		for n := range t.Partitions {
			if t.Partitions[n].Moving() {
				s.Moving++
			}
		}
	}
	s.FeatureLevel, s.Uneven = c.FeatureLevel, c.Uneven > 0
	return s, nil
}

// ClusterHealth lists what is wrong, and what is merely unwise.
func (h *Handlers) ClusterHealth(ctx context.Context, _ None) (wire.ClusterHealth, error) {
	c := h.Store.Current()
	res := wire.ClusterHealth{Problems: append([]string{}, h.Runtime.Problems()...)}
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if r := h.Runtime.Reach(b.ID); !r.Up && b.State != config.Dead {
			res.Problems = append(res.Problems, fmt.Sprintf("broker %s can't be reached from here: %s", b.Name, r.Problem))
		}
	}
	if down := h.councilDown(c); 2*down >= len(c.Council) {
		res.Problems = append(res.Problems, fmt.Sprintf("%d of %d members of the council can't be reached: topics can't be changed before a majority is back, publishing goes on",
			down, len(c.Council)))
	}
	more := 0
	for _, p := range h.look(ctx, c) {
		text := h.problem(c, &p)
		switch {
		case text == "":
		case len(res.Problems) >= MaxPage:
			more++
		default:
			res.Problems = append(res.Problems, text)
		}
		// A user's topic or handler, most likely, and not the cluster: no reason to call it unhealthy.
		for _, g := range p.Groups {
			if len(res.Warnings) < MaxPage {
				res.Warnings = append(res.Warnings, fmt.Sprintf("partition %s/%d, %s", p.topic.Name, p.number, g))
			}
		}
	}
	if more > 0 {
		res.Problems = append(res.Problems, fmt.Sprintf("and %s more", plural(more, "partition")))
	}
	if len(c.Brokers) >= 3 {
		for i := range c.Topics {
			t := &c.Topics[i]
			if n := len(t.Partitions[0].Replicas); t.Live() && n < 3 && len(res.Warnings) < MaxPage {
				res.Warnings = append(res.Warnings, fmt.Sprintf("topic %s has %s on %d brokers: a lost disk can lose records", t.Name, plural(n, "replica"), len(c.Brokers)))
			}
		}
	}
	if w := h.levelWarning(ctx, c); w != "" {
		res.Warnings = append(res.Warnings, w)
	}
	res.Healthy = len(res.Problems) == 0
	return res, nil
}

func (h *Handlers) councilDown(c *config.Config) (down int) {
	for _, id := range c.Council {
		if !h.Runtime.Reach(id).Up {
			down++
		}
	}
	return down
}

// BrokerList lists the brokers.
func (h *Handlers) BrokerList(_ context.Context, _ None) (wire.BrokerList, error) {
	c := h.Store.Current()
	return wire.BrokerList{Brokers: h.brokers(c, h.led(c))}, nil
}

// BrokerDescribe describes one broker and the partitions that it has.
func (h *Handlers) BrokerDescribe(ctx context.Context, q wire.NameRequest) (wire.BrokerDetails, error) {
	c := h.Store.Current()
	b := c.BrokerNamed(q.Name)
	if b == nil {
		return wire.BrokerDetails{}, failf(404, wire.ReasonBadRequest, "there is no broker %q, there are %s", q.Name, brokerNames(c))
	}
	r := h.Runtime.Reach(b.ID)
	d := wire.BrokerDetails{
		Incarnation: b.Incarnation, PeerAddress: b.Addresses.Peer, RaftAddress: b.Addresses.Raft,
		RTTMicros: r.RTT.Microseconds(), Problem: r.Problem, Epoch: c.Epoch, Partitions: []wire.PartitionDescription{},
	}
	for _, o := range h.brokers(c, h.led(c)) {
		if o.Name == b.Name {
			d.BrokerDescription = o
		}
	}
	var held []live
	for _, p := range partitions(c) {
		if _, ok := p.topic.Partitions[p.number].On(b.ID); ok && len(held) < MaxParts {
			held = append(held, p)
		}
	}
	h.ask(ctx, held)
	for i := range held {
		d.Partitions = append(d.Partitions, held[i].describe(c))
	}
	return d, nil
}

func (h *Handlers) brokers(c *config.Config, all []live) []wire.BrokerDescription {
	replicas, leaders := map[uint64]int{}, map[uint64]int{}
	for i := range all {
		for _, r := range all[i].replicas() {
			replicas[r.Broker]++
		}
		if all[i].Leader != 0 {
			leaders[all[i].Leader]++
		}
	}
	out := plainBrokers(c)
	for i := range out {
		id := c.Brokers[i].ID
		r := h.Runtime.Reach(id)
		out[i].Replicas, out[i].Leaders = replicas[id], leaders[id]
		out[i].Reachable, out[i].Version = r.Up, r.Version
	}
	return out
}

// plainBrokers describes brokers by what an epoch says of them.
func plainBrokers(c *config.Config) []wire.BrokerDescription {
	out := make([]wire.BrokerDescription, len(c.Brokers))
	for i := range c.Brokers {
		b := &c.Brokers[i]
		out[i] = wire.BrokerDescription{
			Name: b.Name, ID: strconv.FormatUint(b.ID, 10), State: b.State.String(), Rack: b.Rack,
			Weight: b.Weight, Address: b.Addresses.Client,
		}
	}
	return out
}

func council(c *config.Config, ids []uint64) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		if names[i] = brokerName(c, id); names[i] == "" {
			names[i] = strconv.FormatUint(id, 10)
		}
	}
	return names
}

// EpochShow describes one epoch, the newest when none is named.
func (h *Handlers) EpochShow(_ context.Context, q wire.EpochRequest) (wire.EpochDescription, error) {
	n := h.Store.Current().Epoch
	if q.Epoch != nil {
		n = *q.Epoch
	}
	head, c, err := h.Store.At(n)
	switch {
	case errors.Is(err, epoch.ErrUnknownEpoch):
		return wire.EpochDescription{}, failf(404, wire.ReasonBadRequest, "there is no epoch %d, the newest is %d", n, h.Store.Current().Epoch)
	case errors.Is(err, epoch.ErrForgotten):
		return describe(head, h.Store.Current()), nil
	case err != nil:
		return wire.EpochDescription{}, err
	}
	d := describe(head, c)
	d.Brokers = plainBrokers(c)
	d.Topics = []wire.TopicSummary{}
	for i := range c.Topics {
		d.Topics = append(d.Topics, summary(&c.Topics[i]))
	}
	for id := range d.Brokers {
		for i := range c.Topics {
			for p := range c.Topics[i].Partitions {
				if _, ok := c.Topics[i].Partitions[p].On(c.Brokers[id].ID); ok && c.Topics[i].Live() {
					d.Brokers[id].Replicas++
				}
			}
		}
	}
	return d, nil
}

// EpochList lists epochs, newest first. After is the last epoch of the page
// before.
func (h *Handlers) EpochList(_ context.Context, q wire.ListRequest) (wire.EpochList, error) {
	limit, err := pageSize(q.Limit)
	if err != nil {
		return wire.EpochList{}, err
	}
	c := h.Store.Current()
	res := wire.EpochList{Epochs: []wire.EpochDescription{}}
	from := c.Epoch
	if q.After != "" {
		after, err := strconv.ParseUint(q.After, 10, 64)
		if err != nil {
			return wire.EpochList{}, failf(400, wire.ReasonBadRequest, "after %q: allowed is an epoch's number", q.After)
		}
		if after == 0 {
			return res, nil
		}
		from = min(from, after-1)
	}
	for _, head := range h.Store.History(from, limit) {
		res.Epochs = append(res.Epochs, describe(head, c))
	}
	if n := len(res.Epochs); n > 0 {
		res.More = res.Epochs[n-1].Epoch > 0
	}
	return res, nil
}

func describe(head epoch.Header, names *config.Config) wire.EpochDescription {
	return wire.EpochDescription{
		Epoch: head.Epoch, Hash: head.Hash.String(), Previous: head.Previous.String(), By: head.By,
		At: time.UnixMilli(head.At).UTC().Format(time.RFC3339Nano), Change: head.Change, Council: council(names, head.Council),
	}
}
