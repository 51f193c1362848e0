package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// carryWait bounds how long a change waits for this broker to carry it out
// before it is reported; the change itself is decided by then.
const carryWait = 3 * time.Second

// change proposes an epoch and reports it. edit returns what it did and a
// detail for people, or epoch.ErrUnchanged.
func (h *Handlers) change(ctx context.Context, name string, edit func(*config.Config) (change, detail string, err error)) (wire.TopicChange, error) {
	res := wire.TopicChange{Name: name}
	c, err := h.Store.Propose(ctx, func(next *config.Config) error {
		var err error
		if res.Change, res.Detail, err = edit(next); err != nil {
			return err
		}
		text := fmt.Sprintf("topic %s %s", name, res.Change)
		if res.Detail != "" {
			text += ": " + res.Detail
		}
		next.Change = text[:min(len(text), config.MaxText)]
		return nil
	})
	if errors.Is(err, epoch.ErrUnchanged) {
		res.Change, res.Epoch = "unchanged", c.Epoch
		return res, nil
	}
	if err != nil {
		return wire.TopicChange{}, h.undecided(err)
	}
	res.Epoch = c.Epoch
	h.carried(ctx, c.Epoch)
	return res, nil
}

// carried waits until the brokers that can be reached have carried out an epoch, but not for ever:
// so that whoever asks another one next finds what was changed.
func (h *Handlers) carried(ctx context.Context, epoch uint64) {
	wait, cancel := context.WithTimeout(ctx, carryWait)
	defer cancel()
	h.Runtime.Carried(wait, epoch)
}

// TopicCreate creates a topic. A topic that stands as it is asked for is left
// alone, so that the request can be repeated.
func (h *Handlers) TopicCreate(ctx context.Context, q wire.TopicSpec) (wire.TopicChange, error) {
	if err := config.CheckTopicName(q.Name); err != nil {
		return wire.TopicChange{}, failf(400, wire.ReasonInvalidTopic, "%v", err)
	}
	if err := h.checkConfig(q.Config); err != nil {
		return wire.TopicChange{}, err
	}
	return h.change(ctx, q.Name, func(next *config.Config) (string, string, error) {
		active := activeBrokers(next)
		partitions, replicas, err := counts(q.Partitions, q.Replicas, len(active))
		if err != nil {
			return "", "", err
		}
		if down := h.down(next, active); int(replicas) > len(active)-len(down) && next.Topic(q.Name) == nil {
			return "", "", retriable(503, wire.ReasonUnavailable, "%s can't be placed now: of %s only %d can be reached, not %s",
				plural(int(replicas), "replica"), plural(len(active), "broker"), len(active)-len(down), strings.Join(down, ", "))
		}
		subjects, err := checkSubjects(q.Subjects)
		if err != nil {
			return "", "", err
		}
		if len(subjects) == 0 {
			subjects = config.DefaultSubjects(q.Name)
		}
		if t := next.Topic(q.Name); t != nil {
			if d := difference(t, partitions, replicas, subjects, q); d != "" {
				return "", "", failf(409, wire.ReasonTopicExists, "topic %s exists with %s: alter it instead", q.Name, d)
			}
			return "", "", epoch.ErrUnchanged
		}
		t := config.Topic{
			ID: next.TakeTopic(), Name: q.Name, Subjects: subjects,
			Config: emptyAsNil(q.Config), CreatedAt: next.At,
		}
		if err := grow(next, &t, partitions, replicas); err != nil {
			return "", "", err
		}
		next.Topics = append(next.Topics, t)
		return "created", fmt.Sprintf("%s, %s", plural(int(partitions), "partition"), plural(int(replicas), "replica")), nil
	})
}

// factors are the least and the most replicas that a partition of the topic is to have: all have the same, unless some were
// given up or lost.
func factors(t *config.Topic) (least, most int32) {
	for n := range t.Partitions {
		have := int32(len(t.Partitions[n].Wanted()))
		if most = max(most, have); n == 0 || have < least {
			least = have
		}
	}
	return least, most
}

// difference says in which way a topic is not what a request for it asks for.
func difference(t *config.Topic, partitions, replicas int32, subjects []string, q wire.TopicSpec) string {
	switch have := int32(len(t.Partitions)); {
	case have != partitions:
		return fmt.Sprintf("%s, not %d", plural(int(have), "partition"), partitions)
	case q.Replicas != 0 && int32(len(t.Partitions[0].Replicas)) != replicas:
		return fmt.Sprintf("%s, not %d", plural(len(t.Partitions[0].Replicas), "replica"), replicas)
	case !slices.Equal(sorted(t.Subjects), sorted(subjects)):
		return "the subjects " + strings.Join(t.Subjects, ", ")
	}
	if !maps.Equal(t.Config, q.Config) {
		return fmt.Sprintf("the config %v", t.Config)
	}
	return ""
}

// TopicAlter changes what the request names.
func (h *Handlers) TopicAlter(ctx context.Context, q wire.TopicAlter) (wire.TopicChange, error) {
	if err := h.checkConfig(q.Config); err != nil {
		return wire.TopicChange{}, err
	}
	return h.change(ctx, q.Name, func(next *config.Config) (string, string, error) {
		t := next.Topic(q.Name)
		if t == nil {
			return "", "", noTopic(q.Name)
		}
		var done []string
		active := activeBrokers(next)
		least, replicas := factors(t)
		if q.Replicas != 0 && (q.Replicas != replicas || q.Replicas != least) {
			if _, _, err := counts(1, q.Replicas, len(active)); err != nil {
				return "", "", err
			}
			if err := movable(next); err != nil {
				return "", "", err
			}
			moves, err := upkeep.Resize(next, t.ID, int(q.Replicas), h.present(next))
			if err != nil {
				return "", "", err
			}
			for _, m := range moves {
				if err := next.SetTarget(m.Topic, m.Number, m.Brokers); err != nil {
					return "", "", err
				}
			}
			had := fmt.Sprint(replicas)
			if least != replicas { // some were given up, or lost
				had = fmt.Sprintf("%d to %d", least, replicas)
			}
			done = append(done, fmt.Sprintf("replicas %s -> %d, in the background", had, q.Replicas))
			replicas = q.Replicas
		}
		switch have := int32(len(t.Partitions)); {
		case q.Partitions < 0 || q.Partitions > config.MaxPartitions:
			return "", "", badPartitions(q.Partitions)
		case q.Partitions > have:
			if int(replicas) > len(active) {
				return "", "", tooMany(replicas, len(active))
			}
			if err := grow(next, t, q.Partitions-have, replicas); err != nil {
				return "", "", err
			}
			done = append(done, fmt.Sprintf("partitions %d -> %d, keys now map anew", have, q.Partitions))
		case q.Partitions != 0 && q.Partitions < have:
			return "", "", failf(400, wire.ReasonInvalidConfig, "topic %s has %d partitions: it can grow, it can't shrink to %d", q.Name, have, q.Partitions)
		}
		if len(q.Subjects) > 0 {
			subjects, err := checkSubjects(q.Subjects)
			if err != nil {
				return "", "", err
			}
			if !slices.Equal(sorted(subjects), sorted(t.Subjects)) {
				t.Subjects = subjects
				done = append(done, "subjects "+strings.Join(subjects, ", "))
			}
		}
		for _, k := range sortedKeys(q.Config) {
			v := q.Config[k]
			if old, had := t.Config[k]; had && old == v {
				continue
			}
			if t.Config == nil {
				t.Config = map[string]string{}
			}
			t.Config[k] = v
			done = append(done, k+"="+v)
		}
		if len(done) == 0 {
			return "", "", epoch.ErrUnchanged
		}
		return "altered", strings.Join(done, "; "), nil
	})
}

// TopicDelete makes a topic a tombstone. Its data stays for the grace period.
func (h *Handlers) TopicDelete(ctx context.Context, q wire.NameRequest) (wire.TopicChange, error) {
	return h.change(ctx, q.Name, func(next *config.Config) (string, string, error) {
		t := next.Topic(q.Name)
		if t == nil {
			return "", "", noTopic(q.Name)
		}
		t.DeletedAt = max(next.At, 1)
		return "deleted", "", nil
	})
}

// TopicRestore brings the newest deleted topic of a name back.
func (h *Handlers) TopicRestore(ctx context.Context, q wire.NameRequest) (wire.TopicChange, error) {
	return h.change(ctx, q.Name, func(next *config.Config) (string, string, error) {
		t := next.Tombstone(q.Name)
		if next.Topic(q.Name) != nil {
			if t == nil {
				return "", "", epoch.ErrUnchanged
			}
			return "", "", failf(409, wire.ReasonTopicExists, "a new topic %s exists: delete it before the old one is restored", q.Name)
		}
		if t == nil {
			return "", "", failf(404, wire.ReasonTopicNotFound, "there is no deleted topic %q whose data is still kept", q.Name)
		}
		t.DeletedAt = 0
		return "restored", "", nil
	})
}

func (h *Handlers) checkConfig(m map[string]string) error {
	c, err := config.ParseTopicConfig(m)
	if err != nil {
		return failf(400, wire.ReasonInvalidConfig, "%v", err)
	}
	if _, set := m[wire.ConfigMaxRecord]; set && h.MaxRecord > 0 && int64(c.MaxRecord) > h.MaxRecord {
		return failf(400, wire.ReasonInvalidConfig, "config %s=%s: this broker takes records of at most %d bytes", wire.ConfigMaxRecord, m[wire.ConfigMaxRecord], h.MaxRecord)
	}
	return nil
}

func checkSubjects(subjects []string) ([]string, error) {
	if len(subjects) > config.MaxSubjects {
		return nil, failf(400, wire.ReasonInvalidConfig, "%d subjects: a topic binds at most %d", len(subjects), config.MaxSubjects)
	}
	for i, s := range subjects {
		if err := config.CheckSubject(s); err != nil {
			return nil, failf(400, wire.ReasonInvalidConfig, "%v", err)
		}
		for _, o := range subjects[:i] {
			if config.SubjectsOverlap(o, s) {
				return nil, failf(409, wire.ReasonSubjectOverlap, "the subjects %q and %q overlap", o, s)
			}
		}
	}
	return slices.Clone(subjects), nil
}

func counts(partitions, replicas int32, brokers int) (int32, int32, error) {
	if partitions == 0 {
		partitions = 1
	}
	if partitions < 1 || partitions > config.MaxPartitions {
		return 0, 0, badPartitions(partitions)
	}
	if replicas == 0 {
		if replicas = 1; brokers >= 3 {
			replicas = 3
		}
	}
	if replicas < 1 || int(replicas) > brokers {
		return 0, 0, tooMany(replicas, brokers)
	}
	return partitions, replicas, nil
}

func tooMany(replicas int32, brokers int) error {
	return failf(400, wire.ReasonInvalidConfig, "%s can't be placed on %s: each replica needs a broker of its own",
		plural(int(replicas), "replica"), plural(brokers, "active broker"))
}

func badPartitions(n int32) error {
	return failf(400, wire.ReasonInvalidConfig, "%d partitions: allowed are 1 to %d", n, config.MaxPartitions)
}

func activeBrokers(c *config.Config) []uint64 {
	var ids []uint64
	for i := range c.Brokers {
		if c.Brokers[i].State == config.Active {
			ids = append(ids, c.Brokers[i].ID)
		}
	}
	return ids
}

// down names the brokers that this one can't reach.
func (h *Handlers) down(c *config.Config, ids []uint64) (names []string) {
	for _, id := range ids {
		if !h.Runtime.Reach(id).Up {
			names = append(names, brokerName(c, id))
		}
	}
	return names
}

func emptyAsNil(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
