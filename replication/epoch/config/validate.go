package config

import (
	"errors"
	"fmt"
	"slices"
)

// ErrInvalid: a value breaks a rule that every value keeps.
var ErrInvalid = errors.New("invalid configuration")

// OverlapError: two live topics would bind one subject.
type OverlapError struct {
	Topic, Subject   string // of the one
	Other, OtherSubj string // of the other
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("subject %q of topic %s overlaps with subject %q of topic %s", e.Subject, e.Topic, e.OtherSubj, e.Other)
}

func (e *OverlapError) Unwrap() error { return ErrInvalid }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// Validate checks everything that must hold within one value.
func (c *Config) Validate() error {
	if n := c.Replicas(); n > MaxReplicas {
		return invalid("%d replicas, a cluster holds at most %d", n, MaxReplicas)
	}
	if c.Epoch == 0 && c.Previous != (Hash{}) || c.Epoch > 0 && c.Previous == (Hash{}) {
		return invalid("epoch %d with previous hash %s", c.Epoch, c.Previous)
	}
	if c.Epoch > 0 && c.ClusterID == "" {
		return invalid("epoch %d names no cluster", c.Epoch)
	}
	if c.Uneven > c.Epoch || c.Uneven > 0 && c.FeatureLevel < LevelMoves {
		return invalid("replicas are uneven since epoch %d in epoch %d at feature level %d", c.Uneven, c.Epoch, c.FeatureLevel)
	}
	for _, s := range []string{c.ClusterID, c.By, c.Change} {
		if len(s) > MaxText {
			return invalid("a text of %d bytes, at most %d are allowed", len(s), MaxText)
		}
	}
	if err := c.validateBrokers(); err != nil {
		return err
	}
	return c.validateTopics()
}

func (c *Config) validateBrokers() error {
	if len(c.Brokers) == 0 || len(c.Brokers) > MaxBrokers {
		return invalid("%d brokers, allowed are 1 to %d", len(c.Brokers), MaxBrokers)
	}
	names := make(map[string]bool, len(c.Brokers))
	incarnations := make(map[string]bool, len(c.Brokers))
	for i, b := range c.Brokers {
		switch {
		case b.ID == 0 || b.ID >= c.NextBroker:
			return invalid("broker %q has id %d, the counter stands at %d", b.Name, b.ID, c.NextBroker)
		case i > 0 && b.ID <= c.Brokers[i-1].ID:
			return invalid("brokers are not in the order of their ids at id %d", b.ID)
		case b.Name == "" || len(b.Name) > MaxText || names[b.Name]:
			return invalid("broker name %q is empty, too long or taken", b.Name)
		case c.Epoch > 0 && (b.Incarnation == "" || incarnations[b.Incarnation]):
			return invalid("broker %s has the incarnation %q, which is empty or another's", b.Name, b.Incarnation)
		case b.Weight == 0:
			return invalid("broker %s has weight 0", b.Name)
		case b.State > Dead:
			return invalid("broker %s has state %d", b.Name, b.State)
		}
		for _, s := range []string{b.Incarnation, b.Rack, b.Addresses.Client, b.Addresses.Peer, b.Addresses.Raft} {
			if len(s) > MaxText {
				return invalid("a text of %d bytes in broker %s, at most %d are allowed", len(s), b.Name, MaxText)
			}
		}
		names[b.Name], incarnations[b.Incarnation] = true, true
	}
	most := MaxCouncil
	if c.Epoch == 0 { // all that the initial list names have to agree on epoch 1
		most = MaxInitial
	}
	if len(c.Council) == 0 || len(c.Council) > most {
		return invalid("a council of %d, allowed are 1 to %d", len(c.Council), most)
	}
	for i, id := range c.Council {
		if i > 0 && id <= c.Council[i-1] {
			return invalid("council is not in the order of ids at id %d", id)
		}
		if c.Broker(id) == nil {
			return invalid("council names broker %d, which is none", id)
		}
	}
	return nil
}

func (c *Config) validateTopics() error {
	known := make(map[uint64]bool, len(c.Brokers))
	for i := range c.Brokers {
		known[c.Brokers[i].ID] = true
	}
	shards, replicas, names := map[uint64]bool{}, map[uint64]bool{}, map[string]bool{}
	for i := range c.Topics {
		t := &c.Topics[i]
		switch {
		case t.ID == 0 || t.ID >= c.NextTopic:
			return invalid("topic %s has id %d, the counter stands at %d", t.Name, t.ID, c.NextTopic)
		case i > 0 && t.ID <= c.Topics[i-1].ID:
			return invalid("topics are not in the order of their ids at id %d", t.ID)
		case t.Live() && names[t.Name]:
			return invalid("two topics are named %s", t.Name)
		case t.Purge && t.Live():
			return invalid("topic %s is to be purged but not deleted", t.Name)
		}
		if t.Live() {
			names[t.Name] = true
		}
		if err := t.validate(); err != nil {
			return err
		}
		for n := range t.Partitions {
			p := &t.Partitions[n]
			if p.Shard == 0 || p.Shard >= c.NextShard || shards[p.Shard] {
				return invalid("partition %s/%d has shard %d, which is taken or was never given out", t.Name, n, p.Shard)
			}
			shards[p.Shard] = true
			if p.Added && (n == 0 || c.FeatureLevel < LevelAnchors) || n > 0 && t.Partitions[n-1].Added && !p.Added {
				return invalid("partition %s/%d: those that were added are a topic's last ones, and are told of from feature level %d on, this is %d", t.Name, n, LevelAnchors, c.FeatureLevel)
			}
			if len(p.Replicas) == 0 && !t.Purge {
				return invalid("partition %s/%d has no replica", t.Name, n)
			}
			for j, r := range p.Replicas {
				if r.ID == 0 || r.ID >= c.NextReplica || replicas[r.ID] {
					return invalid("partition %s/%d has replica %d, which is taken or was never given out", t.Name, n, r.ID)
				}
				replicas[r.ID] = true
				if !known[r.Broker] {
					return invalid("replica %d of %s/%d is on broker %d, which is none", r.ID, t.Name, n, r.Broker)
				}
				if slices.ContainsFunc(p.Replicas[:j], func(o Replica) bool { return o.Broker == r.Broker }) {
					return invalid("partition %s/%d has two replicas on broker %d", t.Name, n, r.Broker)
				}
			}
			if err := c.validateMove(fmt.Sprintf("%s/%d", t.Name, n), p, replicas); err != nil {
				return err
			}
			if err := c.validateOrigin(fmt.Sprintf("%s/%d", t.Name, n), p); err != nil {
				return err
			}
		}
	}
	return c.validateOverlaps()
}

func (t *Topic) validate() error {
	if err := CheckTopicName(t.Name); err != nil {
		return invalid("%w", err)
	}
	if n := len(t.Partitions); n < 1 || n > MaxPartitions {
		return invalid("topic %s has %d partitions, allowed are 1 to %d", t.Name, n, MaxPartitions)
	}
	if n := len(t.Subjects); n < 1 || n > MaxSubjects {
		return invalid("topic %s has %d subjects, allowed are 1 to %d", t.Name, n, MaxSubjects)
	}
	for _, s := range t.Subjects {
		if err := CheckSubject(s); err != nil {
			return invalid("topic %s: %w", t.Name, err)
		}
	}
	if _, err := ParseTopicConfig(t.Config); err != nil {
		return invalid("topic %s: %w", t.Name, err)
	}
	return nil
}

// validateOverlaps compares the subjects of live topics. Two patterns without a
// wildcard as first token overlap only when their first tokens are equal, which
// keeps the comparison short.
func (c *Config) validateOverlaps() error {
	type bound struct {
		topic   *Topic
		subject string
	}
	byFirst := map[string][]bound{}
	for i := range c.Topics {
		t := &c.Topics[i]
		if !t.Live() {
			continue
		}
		for _, s := range t.Subjects {
			first := firstToken(s)
			for _, o := range byFirst[first] {
				if o.topic != t && SubjectsOverlap(o.subject, s) {
					return &OverlapError{Topic: t.Name, Subject: s, Other: o.topic.Name, OtherSubj: o.subject}
				}
			}
			byFirst[first] = append(byFirst[first], bound{t, s})
		}
	}
	return nil
}

func firstToken(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] == '.' {
			return s[:i]
		}
	}
	return s
}

// Follows checks that c may be decided right after prev: the chain, the
// cluster, counters that never fall and ids that are never used again.
func (c *Config) Follows(prev *Config) error {
	switch {
	case c.Epoch != prev.Epoch+1:
		return invalid("epoch %d can't follow epoch %d", c.Epoch, prev.Epoch)
	case c.Previous != prev.Hash():
		return invalid("epoch %d names %s as the previous value, it is %s", c.Epoch, c.Previous, prev.Hash())
	case prev.ClusterID != "" && c.ClusterID != prev.ClusterID:
		return invalid("epoch %d is of cluster %q, the one before of %q", c.Epoch, c.ClusterID, prev.ClusterID)
	case c.NextBroker < prev.NextBroker || c.NextTopic < prev.NextTopic || c.NextShard < prev.NextShard || c.NextReplica < prev.NextReplica:
		return invalid("a counter of epoch %d falls", c.Epoch)
	case c.FeatureLevel < prev.FeatureLevel || c.FeatureLevel > Level:
		return invalid("the feature level goes from %d to %d: it never falls, and this program knows up to %d", prev.FeatureLevel, c.FeatureLevel, Level)
	}
	old := make(map[uint64]*Topic, len(prev.Topics))
	for i := range prev.Topics {
		old[prev.Topics[i].ID] = &prev.Topics[i]
	}
	for i := range c.Topics {
		t := &c.Topics[i]
		was := old[t.ID]
		delete(old, t.ID)
		switch {
		case was == nil && t.ID < prev.NextTopic:
			return invalid("topic %s takes the id %d of a topic that is gone", t.Name, t.ID)
		case was == nil:
			continue
		case was.Name != t.Name:
			return invalid("topic %s can't be renamed to %s", was.Name, t.Name)
		case was.Purge && !t.Purge:
			return invalid("topic %s is being purged and can't come back", t.Name)
		case len(t.Partitions) < len(was.Partitions):
			return invalid("topic %s can't shrink from %d to %d partitions", t.Name, len(was.Partitions), len(t.Partitions))
		}
		for n := range was.Partitions {
			before := &was.Partitions[n]
			if before.Shard != t.Partitions[n].Shard {
				if !t.Live() || !was.Live() || c.FeatureLevel < LevelRecovery {
					return invalid("partition %s/%d can't change its shard", t.Name, n)
				}
				if err := t.Partitions[n].succeeds(before, fmt.Sprintf("%s/%d", t.Name, n), prev.NextShard, prev.NextReplica); err != nil {
					return err
				}
				continue
			}
			if !t.Live() {
				before = before.onBrokersOf(c)
			}
			if err := t.Partitions[n].follows(before, fmt.Sprintf("%s/%d", t.Name, n), prev.NextReplica); err != nil {
				return err
			}
		}
	}
	for _, t := range old {
		if !t.Purge {
			return invalid("topic %s disappears without having been purged", t.Name)
		}
	}
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if prev.Broker(b.ID) == nil && b.ID < prev.NextBroker {
			return invalid("broker %s takes the id %d of a broker that is gone", b.Name, b.ID)
		}
	}
	return nil
}
