package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// live is a partition of a live topic and how it does.
type live struct {
	topic  *config.Topic
	number int32
	PartitionStatus
}

func (p *live) replicas() []config.Replica { return p.topic.Partitions[p.number].Replicas }

// lacking says that some replica isn't in sync, and not just for a moment.
func (p *live) lacking() bool { return len(p.InSync)+len(p.Late) < len(p.replicas()) }

func (p *live) problem() string {
	where := fmt.Sprintf("partition %s/%d", p.topic.Name, p.number)
	switch have, want := len(p.InSync), len(p.replicas()); {
	case p.Problem != "":
		if len(p.Damaged) > 0 {
			return where + ": " + p.Problem + "; " + p.damageText()
		}
		return where + ": " + p.Problem
	case p.Leader == 0:
		return where + " has no leader"
	case p.Comparison != nil && len(p.Comparison.Differences) > 0:
		return where + ": " + p.differenceText(&p.Comparison.Differences[0])
	case len(p.Damaged) > 0:
		return fmt.Sprintf("%s has %d of %d replicas in sync: %s", where, have, want, p.damageText())
	case p.lacking():
		return fmt.Sprintf("%s has %d of %d replicas in sync", where, have, want)
	case p.Move != nil && p.Move.NoRoom:
		return where + " can't move: " + p.Move.Detail
	}
	return ""
}

// problem is p's, with the way out where its majority is away.
func (h *Handlers) problem(c *config.Config, p *live) string {
	text := p.problem()
	if text == "" || p.Leader != 0 {
		return text
	}
	var away []string
	for _, r := range p.replicas() {
		if b := c.Broker(r.Broker); b.State == config.Dead || !h.live(r.Broker) {
			away = append(away, b.Name)
		}
	}
	if n := len(p.replicas()); len(away) > 0 && n-len(away) <= n/2 {
		text += fmt.Sprintf("; %d of its %s are on brokers that are away (%s): bring them back, or, if they are gone for good, parley partition recover %s/%d",
			len(away), plural(n, "replica"), strings.Join(away, ", "), p.topic.Name, p.number)
	}
	return text
}

func (p *live) describe(c *config.Config) wire.PartitionDescription {
	d := wire.PartitionDescription{
		Topic: p.topic.Name, Partition: p.number, Leader: brokerName(c, p.Leader), Term: p.Term,
		Replicas: []string{}, InSync: []string{}, StartOffset: p.Start, NextOffset: p.Next, Bytes: p.Bytes, Problem: p.Problem,
	}
	for _, r := range p.replicas() {
		d.Replicas = append(d.Replicas, brokerName(c, r.Broker))
	}
	for _, id := range p.InSync {
		d.InSync = append(d.InSync, brokerName(c, id))
	}
	for _, id := range p.Damaged {
		d.Damaged = append(d.Damaged, brokerName(c, id))
	}
	d.Move = p.move(c)
	d.Comparison = p.comparison(c)
	return d
}

// damageText says which replicas are damaged, and what becomes of that.
func (p *live) damageText() string {
	part := &p.topic.Partitions[p.number]
	switch {
	case part.Moving():
		return "a damaged one is being replaced"
	case len(part.Replicas) < 3:
		return fmt.Sprintf("one is damaged, and with %d replicas it can't be replaced on its broker: move it to another one", len(part.Replicas))
	}
	return "a damaged one is to be replaced once the others have a majority in sync"
}

// move describes a move: what it is about from the epoch, how far it is from the leader.
func (p *live) move(c *config.Config) *wire.PartitionMove {
	part := &p.topic.Partitions[p.number]
	if !part.Moving() {
		return nil
	}
	m := &wire.PartitionMove{Phase: "waiting", Detail: "its leader has not taken it up", Target: []string{}, Adding: []wire.ReplicaCopy{}, Removing: []string{}}
	for _, r := range part.Target {
		m.Target = append(m.Target, brokerName(c, r.Broker))
	}
	for _, r := range slices.Concat(part.Removing(), part.Abandoned) {
		m.Removing = append(m.Removing, brokerName(c, r.Broker))
	}
	far := map[uint64]ReplicaStatus{}
	if p.Move != nil {
		m.Phase, m.Detail, m.Seconds = p.Move.Phase, p.Move.Detail, p.Move.Seconds
		for _, s := range p.Move.Adding {
			far[s.Replica] = s
		}
	}
	for _, r := range part.Adding() {
		s := far[r.ID]
		m.Adding = append(m.Adding, wire.ReplicaCopy{
			Broker: brokerName(c, r.Broker), Replica: r.ID, Bytes: s.Bytes, OfBytes: s.OfBytes, Behind: s.Behind, InSync: s.InSync,
		})
	}
	return m
}

// partitions lists those of live topics, by topic and number.
func partitions(c *config.Config) []live {
	var all []live
	for i := range c.Topics {
		if t := &c.Topics[i]; t.Live() {
			for n := range t.Partitions {
				all = append(all, live{topic: t, number: int32(n)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b live) int { return strings.Compare(a.topic.Name, b.topic.Name) })
	return all
}

// ask fills in how the partitions do.
func (h *Handlers) ask(ctx context.Context, parts []live) {
	q := make([]Part, len(parts))
	for i := range parts {
		q[i] = Part{Topic: parts[i].topic.ID, Number: parts[i].number}
	}
	for i, s := range h.Runtime.Partitions(ctx, q) {
		parts[i].PartitionStatus = s
	}
}

// look asks about all partitions.
func (h *Handlers) look(ctx context.Context, c *config.Config) []live {
	all := partitions(c)
	h.ask(ctx, all)
	return all
}

// led lists all partitions with their leaders alone, which asks nobody.
func (h *Handlers) led(c *config.Config) []live {
	all := partitions(c)
	for i := range all {
		all[i].Leader = h.Runtime.Leader(all[i].topic.ID, all[i].number)
	}
	return all
}

// Partitions describes a topic's partitions.
func (h *Handlers) Partitions(ctx context.Context, c *config.Config, t *config.Topic) []wire.PartitionDescription {
	parts := make([]live, len(t.Partitions))
	for n := range parts {
		parts[n] = live{topic: t, number: int32(n)}
	}
	h.ask(ctx, parts)
	out := make([]wire.PartitionDescription, len(parts))
	for n := range parts {
		out[n] = parts[n].describe(c)
		out[n].Topic = ""
	}
	return out
}

// PartitionList lists partitions by topic and number.
func (h *Handlers) PartitionList(ctx context.Context, q wire.PartitionListRequest) (wire.PartitionList, error) {
	c := h.Store.Current()
	if q.Limit < 0 {
		return wire.PartitionList{}, failf(400, wire.ReasonBadRequest, "limit %d: allowed are 1 to %d", q.Limit, MaxParts)
	}
	limit := MaxParts
	if q.Limit > 0 {
		limit = min(limit, q.Limit)
	}
	if q.Topic != "" && c.Topic(q.Topic) == nil {
		return wire.PartitionList{}, noTopic(q.Topic)
	}
	after, number, err := partitionName(q.After)
	if err != nil {
		return wire.PartitionList{}, err
	}
	res := wire.PartitionList{Partitions: []wire.PartitionDescription{}, Epoch: c.Epoch}
	var page []live
	for _, p := range partitions(c) {
		if q.Topic != "" && p.topic.Name != q.Topic || q.After != "" && (p.topic.Name < after || p.topic.Name == after && p.number <= number) {
			continue
		}
		if len(page) == limit {
			res.More = true
			break
		}
		page = append(page, p)
	}
	h.ask(ctx, page)
	for i := range page {
		res.Partitions = append(res.Partitions, page[i].describe(c))
	}
	return res, nil
}

// partitionName takes "TOPIC/N" apart.
func partitionName(s string) (topic string, number int32, err error) {
	if s == "" {
		return "", 0, nil
	}
	topic, text, ok := strings.Cut(s, "/")
	n, perr := strconv.ParseInt(text, 10, 32)
	if !ok || perr != nil || n < 0 {
		return "", 0, failf(400, wire.ReasonBadRequest, "after %q: wanted is TOPIC/N", s)
	}
	return topic, int32(n), nil
}

// PartitionDescribe describes one partition.
func (h *Handlers) PartitionDescribe(ctx context.Context, q wire.PartitionRequest) (wire.PartitionDescription, error) {
	c := h.Store.Current()
	t, err := findPartition(c, q.Topic, q.Partition)
	if err != nil {
		return wire.PartitionDescription{}, err
	}
	one := []live{{topic: t, number: q.Partition}}
	h.ask(ctx, one)
	return one[0].describe(c), nil
}

func findPartition(c *config.Config, topic string, number int32) (*config.Topic, error) {
	t := c.Topic(topic)
	if t == nil {
		return nil, noTopic(topic)
	}
	if number < 0 || int(number) >= len(t.Partitions) {
		return nil, NoPartition(topic, int64(number), len(t.Partitions))
	}
	return t, nil
}

// transferWait bounds how long a transfer may take, the epoch apart.
const transferWait = 5 * time.Second

// PartitionTransfer makes a broker the preferred leader of a partition, by an
// epoch, and moves the leadership there. Without the epoch it would go back.
func (h *Handlers) PartitionTransfer(ctx context.Context, q wire.PartitionTransfer) (wire.PartitionChange, error) {
	res := wire.PartitionChange{Topic: q.Topic, Partition: q.Partition, Change: "transferred", Leader: q.To}
	var topic, to uint64
	c, err := h.Store.Propose(ctx, func(next *config.Config) error {
		t, err := findPartition(next, q.Topic, q.Partition)
		if err != nil {
			return err
		}
		b := next.BrokerNamed(q.To)
		if b == nil {
			return failf(404, wire.ReasonBadRequest, "there is no broker %q, there are %s", q.To, brokerNames(next))
		}
		p := &t.Partitions[q.Partition]
		topic, to = t.ID, b.ID
		at := slices.IndexFunc(p.Replicas, func(r config.Replica) bool { return r.Broker == b.ID })
		if at < 0 {
			var have []string
			for _, r := range p.Replicas {
				have = append(have, brokerName(next, r.Broker))
			}
			return failf(400, wire.ReasonBadRequest, "broker %s has no replica of partition %s/%d, those that have one are %s",
				q.To, q.Topic, q.Partition, strings.Join(have, ", "))
		}
		if r := h.Runtime.Reach(b.ID); !r.Up {
			return retriable(503, wire.ReasonUnavailable, "broker %s can't be reached: %s", q.To, r.Problem)
		}
		if at == 0 {
			return epoch.ErrUnchanged
		}
		r := p.Replicas[at]
		p.Replicas = slices.Insert(slices.Delete(p.Replicas, at, at+1), 0, r)
		if p.Moving() {
			at := slices.Index(p.Target, r)
			if at < 0 {
				return failf(409, wire.ReasonBadRequest, "partition %s/%d is moving away from broker %s: let it move elsewhere first", q.Topic, q.Partition, q.To)
			}
			p.Target = slices.Insert(slices.Delete(p.Target, at, at+1), 0, r)
		}
		next.Change = fmt.Sprintf("partition %s/%d prefers broker %s as its leader", q.Topic, q.Partition, q.To)
		return nil
	})
	unchanged := errors.Is(err, epoch.ErrUnchanged)
	if err != nil && !unchanged {
		return wire.PartitionChange{}, h.undecided(err)
	}
	res.Epoch = c.Epoch
	if unchanged && h.Runtime.Leader(topic, q.Partition) == to {
		res.Change = "unchanged"
		return res, nil
	}
	h.carried(ctx, c.Epoch)
	wait, cancel := context.WithTimeout(ctx, transferWait)
	defer cancel()
	if err := h.Runtime.Transfer(wait, topic, q.Partition, to); err != nil {
		e := AsError(err)
		return wire.PartitionChange{}, retriable(e.Code, e.Reason, "epoch %d prefers broker %s as the leader of %s/%d, but it does not lead yet: %s",
			c.Epoch, q.To, q.Topic, q.Partition, e.Description)
	}
	return res, nil
}

func brokerNames(c *config.Config) string {
	names := make([]string, len(c.Brokers))
	for i := range c.Brokers {
		names[i] = c.Brokers[i].Name
	}
	return strings.Join(names, ", ")
}

// undecided says of a change that took too long whom it waits for, where that
// is known.
func (h *Handlers) undecided(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	c := h.Store.Current()
	down := h.down(c, c.Council)
	if 2*len(down) < len(c.Council) {
		return err
	}
	return retriable(503, wire.ReasonUnavailable, "the change waits for a majority of the council (%s), of which %s can't be reached: "+
		"it may still be made once they are back; publishing goes on", strings.Join(council(c, c.Council), ", "), strings.Join(down, ", "))
}
