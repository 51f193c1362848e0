package config

import (
	"errors"
	"slices"
)

// A partition moves in three epochs. The first is the intent: Target is set. The
// partition's leader carries it out in Raft, one step at a time. It then has the second one
// decided: Replicas = Target, and who is no member any more is Retired. When a retired
// replica's broker has deleted its data, a third one forgets it. A Target may be replaced
// while it is being carried out: what only the old one named is Abandoned, and the leader
// removes it from Raft before the move is done.
//
// A replica id is taken anew for each replica and never used again. That holds for one
// broker too: a damaged replica is replaced by one with a fresh id on the same broker. Of a
// partition's replicas on one broker the newest is the one that runs.

// ErrUnchanged: what was asked is so already.
var ErrUnchanged = errors.New("nothing to change")

// LevelMoves is the feature level from which on a value says what moves.
const LevelMoves = 1

// LevelGroups is the feature level from which on partitions' logs have entries about consumer
// groups: a replica of a program that doesn't know them could not apply them.
const LevelGroups = 2

// LevelAnchors is the feature level from which on a topic that grows says which partitions it was made
// with: groups' anchors stay among these.
const LevelAnchors = 3

// Level is the highest feature level that this program knows.
const Level = LevelRecovery

// levels says for people what each level brings.
var levels = [...]string{
	LevelMoves:    "partitions move: drain, balance, healing, other replicas",
	LevelGroups:   "consumer groups",
	LevelAnchors:  "groups keep their partitions when their topic grows",
	LevelRecovery: "a partition that has lost its majority can be recovered",
}

// LevelText says what a feature level brings.
func LevelText(level uint32) string {
	if level > 0 && int(level) < len(levels) {
		return levels[level]
	}
	return ""
}

// Moving says that the partition has a target to be carried out.
func (p *Partition) Moving() bool { return p.Target != nil }

// Adding lists the target's replicas that are not in the replica set yet.
func (p *Partition) Adding() []Replica { return without(p.Target, p.Replicas) }

// Removing lists the replicas that the target doesn't have; none while nothing moves.
func (p *Partition) Removing() []Replica {
	if p.Target == nil {
		return nil
	}
	return without(p.Replicas, p.Target)
}

// Running lists all that may be members: of the replica set, the target, and given up.
func (p *Partition) Running() []Replica {
	return slices.Concat(p.Replicas, p.Adding(), p.Abandoned)
}

// On returns the replica that a broker runs: the newest of those it has. A retired one
// isn't run.
func (p *Partition) On(broker uint64) (Replica, bool) {
	var on Replica
	for _, list := range [...][]Replica{p.Replicas, p.Target, p.Abandoned} {
		for _, r := range list {
			if r.Broker == broker && r.ID > on.ID {
				on = r
			}
		}
	}
	return on, on.ID != 0
}

// Wanted is the replica set that is to come: the target, or what there is.
func (p *Partition) Wanted() []Replica {
	if p.Target != nil {
		return p.Target
	}
	return p.Replicas
}

// Find returns the partition's replica of that id, unless it is retired.
func (p *Partition) Find(id uint64) (Replica, bool) {
	for _, list := range [...][]Replica{p.Replicas, p.Target, p.Abandoned} {
		for _, r := range list {
			if r.ID == id {
				return r, true
			}
		}
	}
	return Replica{}, false
}

// without returns those of a that are not in b.
func without(a, b []Replica) []Replica {
	var left []Replica
	for _, r := range a {
		if !slices.Contains(b, r) {
			left = append(left, r)
		}
	}
	return left
}

// partition returns a live topic's partition, to be altered.
func (c *Config) partition(topic uint64, n int) (*Topic, *Partition, error) {
	for i := range c.Topics {
		if t := &c.Topics[i]; t.ID == topic && t.Live() {
			if n < 0 || n >= len(t.Partitions) {
				return nil, nil, invalid("topic %s has no partition %d", t.Name, n)
			}
			return t, &t.Partitions[n], nil
		}
	}
	return nil, nil, invalid("there is no live topic of id %d", topic)
}

// SetTarget has a partition move to these brokers, the first one its preferred leader.
// A replica that a broker has already stays, others get fresh ids. When only the order is
// another, that is all that changes. To name the brokers that have it now cancels a move.
// ErrUnchanged: it is there, or on its way there, already.
func (c *Config) SetTarget(topic uint64, n int, brokers []uint64) error {
	t, p, err := c.partition(topic, n)
	if err != nil {
		return err
	}
	target := make([]Replica, 0, len(brokers))
	for _, id := range brokers {
		if c.Broker(id) == nil {
			return invalid("partition %s/%d can't move to broker %d, which is none", t.Name, n, id)
		}
		r, ok := p.On(id)
		if !ok {
			r = Replica{Broker: id} // its id is taken once it is sure that something moves
		}
		target = append(target, r)
	}
	if slices.Equal(target, p.Wanted()) {
		return ErrUnchanged
	}
	for i := range target {
		if target[i].ID == 0 {
			target[i].ID = c.TakeReplica()
		}
	}
	return c.aim(t, n, p, target)
}

// Replace has a damaged replica replaced by a fresh one on the same broker. ErrUnchanged:
// it is being replaced, or not wanted, already.
func (c *Config) Replace(topic uint64, n int, replica uint64) error {
	t, p, err := c.partition(topic, n)
	if err != nil {
		return err
	}
	target := slices.Clone(p.Wanted())
	i := slices.IndexFunc(target, func(r Replica) bool { return r.ID == replica })
	if i < 0 {
		return ErrUnchanged
	}
	target[i].ID = c.TakeReplica()
	return c.aim(t, n, p, target)
}

func (c *Config) aim(t *Topic, n int, p *Partition, target []Replica) error {
	if p.Salvaging() {
		return invalid("partition %s/%d is being recovered, and can't move before that is through", t.Name, n)
	}
	if len(target) == 0 {
		return invalid("partition %s/%d can't move to no broker", t.Name, n)
	}
	for i, r := range target {
		if slices.ContainsFunc(target[:i], func(o Replica) bool { return o.Broker == r.Broker }) {
			return invalid("partition %s/%d can't have two replicas on broker %d", t.Name, n, r.Broker)
		}
	}
	p.Abandoned = without(slices.Concat(p.Abandoned, p.Adding()), target)
	same := len(without(target, p.Replicas)) == 0 && len(without(p.Replicas, target)) == 0
	if same && len(p.Abandoned) == 0 {
		p.Replicas, p.Target = target, nil
		return nil
	}
	if c.FeatureLevel < LevelMoves {
		return invalid("partition %s/%d can't move while the cluster's feature level is %d: level %d is needed",
			t.Name, n, c.FeatureLevel, LevelMoves)
	}
	p.Target = target
	return nil
}

// FinishMove notes that a move is done: the target is the replica set, and all others are
// retired. target is what was carried out: ErrUnchanged when another one is wanted by now.
func (c *Config) FinishMove(topic uint64, n int, target []Replica) error {
	_, p, err := c.partition(topic, n)
	if err != nil {
		return err
	}
	if p.Target == nil || !slices.Equal(p.Target, target) {
		return ErrUnchanged
	}
	p.Retired = slices.Concat(p.Retired, p.Removing(), p.Abandoned)
	p.Replicas, p.Target, p.Abandoned, p.Moved = p.Target, nil, nil, true
	return nil
}

// ForgetRetired forgets retired replicas whose broker has confirmed that their data is gone, and
// returns how many there were. gone says which.
func (c *Config) ForgetRetired(gone func(t *Topic, n int, r Replica) bool) int {
	forgotten := 0
	for i := range c.Topics {
		t := &c.Topics[i]
		for n := range t.Partitions {
			p := &t.Partitions[n]
			before := len(p.Retired)
			if before == 0 {
				continue
			}
			p.Retired = slices.DeleteFunc(slices.Clone(p.Retired), func(r Replica) bool { return gone(t, n, r) })
			if forgotten += before - len(p.Retired); len(p.Retired) == 0 {
				p.Retired = nil
			}
		}
	}
	return forgotten
}

// ForgetRetiredOn forgets all retired replicas of a broker that leaves the cluster for good.
func (c *Config) ForgetRetiredOn(broker uint64) {
	c.ForgetRetired(func(_ *Topic, _ int, r Replica) bool { return r.Broker == broker })
}

// validateMove checks what a partition says beside its replica set. taken has the ids of all
// replicas so far.
func (c *Config) validateMove(name string, p *Partition, taken map[uint64]bool) error {
	if !p.busy() && !p.Moved {
		return nil
	}
	if c.FeatureLevel < LevelMoves {
		return invalid("partition %s moves at feature level %d, %d is needed", name, c.FeatureLevel, LevelMoves)
	}
	if p.Target != nil && len(p.Target) == 0 || p.Abandoned != nil && len(p.Abandoned) == 0 || p.Retired != nil && len(p.Retired) == 0 {
		return invalid("partition %s has an empty target, or lists nothing as abandoned or retired", name)
	}
	if p.Target == nil && p.Abandoned != nil {
		return invalid("partition %s has abandoned replicas, but no target", name)
	}
	check := func(list []Replica, own bool) error {
		for i, r := range list {
			switch {
			case !own && slices.Contains(p.Replicas, r):
			case r.ID == 0 || r.ID >= c.NextReplica || taken[r.ID]:
				return invalid("partition %s moves replica %d, which is taken or was never given out", name, r.ID)
			default:
				taken[r.ID] = true
			}
			if c.Broker(r.Broker) == nil {
				return invalid("replica %d of %s is on broker %d, which is none", r.ID, name, r.Broker)
			}
			if !own && slices.ContainsFunc(list[:i], func(o Replica) bool { return o.Broker == r.Broker }) {
				return invalid("partition %s is to have two replicas on broker %d", name, r.Broker)
			}
		}
		return nil
	}
	return errors.Join(check(p.Target, false), check(p.Abandoned, true), check(p.Retired, true))
}

// follows checks what may become of a partition's replicas: a new one comes by a target,
// and one that goes is named until its broker has confirmed that its data is gone.
func (p *Partition) follows(was *Partition, name string, nextReplica uint64) error {
	for _, r := range was.Running() {
		if now, ok := p.Find(r.ID); ok && now == r || slices.Contains(p.Retired, r) {
			continue
		}
		return invalid("replica %d of partition %s disappears without having been retired", r.ID, name)
	}
	for _, r := range p.Replicas {
		if !slices.Contains(was.Replicas, r) && !slices.Contains(was.Target, r) {
			return invalid("replica %d of partition %s was not a target's", r.ID, name)
		}
	}
	if p.Added != was.Added {
		return invalid("partition %s was there from the beginning, or was not: that doesn't change", name)
	}
	if p.Origin != was.Origin || p.Salvage != was.Salvage && p.Salvage != (Salvage{}) {
		return invalid("partition %s has another origin, and the same log", name)
	}
	if !p.Moved && (was.Moved || len(without(was.Replicas, p.Replicas)) > 0 || len(p.Replicas) != len(was.Replicas)) {
		return invalid("partition %s has other replicas than its first ones, and says it hasn't", name)
	}
	for _, r := range slices.Concat(p.Adding(), p.Abandoned) {
		if _, ok := was.Find(r.ID); !ok && r.ID < nextReplica {
			return invalid("partition %s takes the id %d of a replica that is gone", name, r.ID)
		}
	}
	for _, r := range p.Retired {
		if _, ok := was.Find(r.ID); !ok && !slices.Contains(was.Retired, r) {
			return invalid("replica %d of partition %s is retired, and was none", r.ID, name)
		}
	}
	return nil
}
