package api

import (
	"context"
	"slices"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// TopicList lists topics by name, or deleted ones that can be restored.
func (h *Handlers) TopicList(_ context.Context, q wire.ListRequest) (wire.TopicList, error) {
	limit, err := pageSize(q.Limit)
	if err != nil {
		return wire.TopicList{}, err
	}
	c := h.Store.Current()
	var found []*config.Topic
	for i := range c.Topics {
		t := &c.Topics[i]
		if t.Live() == q.Deleted || t.Name <= q.After && q.After != "" || q.Deleted && c.Tombstone(t.Name) != t {
			continue
		}
		found = append(found, t)
	}
	slices.SortFunc(found, func(a, b *config.Topic) int {
		if a.Name < b.Name {
			return -1
		}
		if a.Name > b.Name {
			return 1
		}
		return 0
	})
	res := wire.TopicList{Topics: []wire.TopicSummary{}, Epoch: c.Epoch}
	for _, t := range found {
		if len(res.Topics) == limit {
			res.More = true
			break
		}
		res.Topics = append(res.Topics, summary(t))
	}
	return res, nil
}

func summary(t *config.Topic) wire.TopicSummary {
	return wire.TopicSummary{
		Name: t.Name, Partitions: int32(len(t.Partitions)), Replicas: int32(len(t.Partitions[0].Replicas)),
		Subjects: t.Subjects, Config: configOf(t), DeletedAt: t.DeletedAt,
	}
}

func configOf(t *config.Topic) map[string]string {
	if t.Config == nil {
		return map[string]string{}
	}
	return t.Config
}

// TopicDescribe describes one topic with its partitions.
func (h *Handlers) TopicDescribe(ctx context.Context, q wire.NameRequest) (wire.TopicDescription, error) {
	c := h.Store.Current()
	t := c.Topic(q.Name)
	if t == nil {
		return wire.TopicDescription{}, noTopic(q.Name)
	}
	return wire.TopicDescription{
		Name: t.Name, Partitions: h.Partitions(ctx, c, t), Config: configOf(t), Subjects: t.Subjects, Epoch: c.Epoch,
	}, nil
}

func brokerName(c *config.Config, id uint64) string {
	if b := c.Broker(id); b != nil {
		return b.Name
	}
	return ""
}

// Metadata tells a client where partitions live.
func (h *Handlers) Metadata(_ context.Context, q wire.MetadataRequest) (wire.Metadata, error) {
	if len(q.Topics) > maxNames {
		return wire.Metadata{}, failf(400, wire.ReasonBadRequest, "%d topics: at most %d may be asked for at once", len(q.Topics), maxNames)
	}
	c := h.Store.Current()
	res := wire.Metadata{ClusterID: c.ClusterID, Epoch: c.Epoch, Topics: []wire.TopicMetadata{}}
	for i := range c.Brokers {
		res.Brokers = append(res.Brokers, wire.BrokerAddress{Name: c.Brokers[i].Name, Address: c.Brokers[i].Addresses.Client})
	}
	for _, name := range q.Topics {
		m := wire.TopicMetadata{Name: name, Leaders: []string{}}
		if t := c.Topic(name); t == nil {
			m.Error = noTopic(name)
		} else {
			parsed, err := config.ParseTopicConfig(t.Config)
			if err != nil {
				return wire.Metadata{}, err
			}
			m.Key, m.Anchors = parsed.Key.String(), t.Anchors()
			for n := range t.Partitions {
				// The term first: one that is older than the leader's own does no harm.
				m.Terms = append(m.Terms, h.Runtime.Term(t.ID, int32(n)))
				m.Leaders = append(m.Leaders, brokerName(c, h.Runtime.Leader(t.ID, int32(n))))
			}
		}
		res.Topics = append(res.Topics, m)
	}
	return res, nil
}

// Offset tells a partition's bounds and finds an offset by log time.
func (h *Handlers) Offset(ctx context.Context, q wire.OffsetRequest) (wire.OffsetResponse, error) {
	t := h.Store.Current().Topic(q.Topic)
	if t == nil {
		return wire.OffsetResponse{}, noTopic(q.Topic)
	}
	if q.Partition < 0 || int(q.Partition) >= len(t.Partitions) {
		return wire.OffsetResponse{}, NoPartition(q.Topic, int64(q.Partition), len(t.Partitions))
	}
	return h.Runtime.Bounds(ctx, t.ID, q.Partition, q.TimeMS)
}

// NoPartition is the error for a partition that a topic doesn't have.
func NoPartition(topic string, number int64, have int) *wire.Error {
	return failf(404, wire.ReasonPartNotFound, "topic %s has no partition %d, it has 0 to %d", topic, number, have-1)
}
