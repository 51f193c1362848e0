package config

import "slices"

// A partition whose replicas have lost their majority for good is recovered by force, while the rest of
// the cluster goes on. It gets a new Raft group, under a new shard id, so that nothing that the old one's
// replicas may still say is ever heard in it. Either the group goes on with the log of one replica that is
// left (GoOn), which that replica's broker carries out and confirms by another epoch (Salvaged); or it begins
// anew, empty (BeginAnew). The replicas of the old group are retired.

// LevelRecovery is the feature level from which on a value says of a partition that it was recovered.
const LevelRecovery = 4

// Origin is where the log of a partition begins that was recovered by force. It belongs to the Raft group:
// all its replicas begin there.
type Origin struct {
	// Offset is the first one of a log that has nothing yet: those below may have been given out by
	// the log that was lost.
	Offset int64
	// Index is added to the indexes of the group's entries wherever tokens are made of them: no token of
	// the lost log comes again.
	Index uint64
}

// Salvage says that the only replica's log is still to be made the new group's.
type Salvage struct {
	Shard  uint64 // of the old group; 0: nothing is to be done
	Origin Origin // of the old group
	Factor int    // replicas that the partition had, and is to have again
}

// Salvaging says that the partition's only replica has yet to go over to the new group. Nothing moves before.
func (p *Partition) Salvaging() bool { return p.Salvage.Shard != 0 }

const (
	// originRate is more than any partition has ever given out, in offsets a millisecond.
	originRate = 10_000
	// originStep is what an origin is a multiple of, so that people know one when they see it, and how far it is
	// above all that is known at least.
	originStep = 1_000_000_000
	maxOrigin  = 1 << 60
)

// Beyond is an origin above everything that partition n can have given out until now (Unix ms): above what is
// known, above an earlier origin, and above what the fastest publishers could have had since the topic was
// created.
func (t *Topic) Beyond(n int, nowMS, offset int64, index uint64) Origin {
	was := t.Partitions[n].Origin
	span := max(nowMS-t.CreatedAt, 0)
	above := func(floors ...int64) int64 {
		most := slices.Max(floors)
		return (most/originStep + 1) * originStep
	}
	byTime := min(span, maxOrigin/originRate/2) * originRate
	return Origin{
		Offset: above(was.Offset+byTime, offset),
		Index:  uint64(above(int64(was.Index)+byTime, int64(index))),
	}
}

// BeginAnew has a partition begin anew, empty, on these brokers, the first one its preferred leader.
func (c *Config) BeginAnew(topic uint64, n int, brokers []uint64, origin Origin) error {
	t, p, err := c.recovering(topic, n)
	if err != nil {
		return err
	}
	if len(brokers) == 0 {
		return invalid("partition %s/%d can't begin anew on no broker", t.Name, n)
	}
	fresh := Partition{Shard: c.TakeShard(), Added: p.Added, Origin: origin, Retired: slices.Concat(p.Retired, p.Running())}
	for i, id := range brokers {
		switch {
		case c.Broker(id) == nil:
			return invalid("partition %s/%d can't begin anew on broker %d, which is none", t.Name, n, id)
		case slices.Contains(brokers[:i], id):
			return invalid("partition %s/%d can't have two replicas on broker %d", t.Name, n, id)
		}
		fresh.Replicas = append(fresh.Replicas, Replica{ID: c.TakeReplica(), Broker: id})
	}
	*p = fresh
	return nil
}

// GoOn has a partition go on with the log of one of its replicas, alone at first.
func (c *Config) GoOn(topic uint64, n int, replica uint64, origin Origin) error {
	t, p, err := c.recovering(topic, n)
	if err != nil {
		return err
	}
	r, ok := p.Find(replica)
	switch {
	case !ok:
		return invalid("partition %s/%d has no replica %d", t.Name, n, replica)
	case p.Salvaging():
		return invalid("partition %s/%d is being recovered from broker %d already", t.Name, n, p.Replicas[0].Broker)
	}
	*p = Partition{
		Shard: c.TakeShard(), Added: p.Added, Replicas: []Replica{r}, Origin: origin, Salvage: Salvage{Shard: p.Shard, Origin: p.Origin, Factor: len(p.Wanted())},
		Retired: slices.Concat(p.Retired, without(p.Running(), []Replica{r})),
	}
	return nil
}

// Salvaged notes that the replica of a partition has gone over to its new group. ErrUnchanged: it was noted.
func (c *Config) Salvaged(topic uint64, n int, shard uint64) error {
	_, p, err := c.partition(topic, n)
	if err != nil {
		return err
	}
	if !p.Salvaging() || p.Shard != shard {
		return ErrUnchanged
	}
	p.Salvage = Salvage{}
	return nil
}

func (c *Config) recovering(topic uint64, n int) (*Topic, *Partition, error) {
	t, p, err := c.partition(topic, n)
	if err == nil && c.FeatureLevel < LevelRecovery {
		err = invalid("partition %s/%d can't be recovered at feature level %d: level %d is needed (parley cluster raise-level, once every broker runs a version that knows it)",
			t.Name, n, c.FeatureLevel, LevelRecovery)
	}
	return t, p, err
}

// validateOrigin checks what was recovered.
func (c *Config) validateOrigin(name string, p *Partition) error {
	switch {
	case p.Origin == (Origin{}) && p.Salvage == (Salvage{}):
		return nil
	case c.FeatureLevel < LevelRecovery:
		return invalid("partition %s was recovered at feature level %d, %d is needed", name, c.FeatureLevel, LevelRecovery)
	case p.Origin.Offset < 0 || p.Origin.Offset > maxOrigin || p.Origin.Index > maxOrigin:
		return invalid("partition %s begins at offset %d and index %d", name, p.Origin.Offset, p.Origin.Index)
	case p.Salvaging() && (len(p.Replicas) != 1 || p.Target != nil || p.Moved || p.Salvage.Shard >= p.Shard):
		return invalid("partition %s is being recovered from log %d, and moves or has %d replicas", name, p.Salvage.Shard, len(p.Replicas))
	}
	return nil
}

// succeeds checks what may become of a partition whose Raft group is another one than before: everything
// that the old one had is retired or goes on alone, and nothing that was given out is given out again.
func (p *Partition) succeeds(was *Partition, name string, nextShard, nextReplica uint64) error {
	switch {
	case p.Shard < nextShard:
		return invalid("partition %s takes the shard id %d of a log that is gone", name, p.Shard)
	case p.Added != was.Added:
		return invalid("partition %s was there from the beginning, or was not: that doesn't change", name)
	case p.Target != nil || p.Abandoned != nil || p.Moved:
		return invalid("partition %s has a new log, and moves", name)
	case p.Origin.Offset < was.Origin.Offset || p.Origin.Index < was.Origin.Index:
		return invalid("partition %s begins below where it began before", name)
	}
	for _, r := range p.Replicas {
		_, had := was.Find(r.ID)
		switch {
		case had && (p.Salvage != Salvage{was.Shard, was.Origin, len(was.Wanted())} || was.Salvaging()):
			return invalid("replica %d of partition %s has a new log, which doesn't go on from its old one", r.ID, name)
		case !had && (r.ID < nextReplica || p.Salvaging()):
			return invalid("replica %d of partition %s is not new, and was none", r.ID, name)
		}
	}
	for _, r := range slices.Concat(was.Running(), was.Retired) {
		if !slices.Contains(p.Retired, r) && !slices.Contains(p.Replicas, r) {
			return invalid("replica %d of partition %s disappears without having been retired", r.ID, name)
		}
	}
	for _, r := range p.Retired {
		if _, had := was.Find(r.ID); !had && !slices.Contains(was.Retired, r) {
			return invalid("replica %d of partition %s is retired, and was none", r.ID, name)
		}
	}
	return nil
}
