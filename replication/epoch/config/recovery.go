package config

// Survivor is what is left of one partition when a cluster is recovered from one broker.
type Survivor struct {
	Topic   string
	TopicID uint64
	Number  int
	Shard   uint64
	Replica uint64 // its own replica, 0: it has none, and the partition begins anew, empty
	Voter   bool   // that replica belonged to the replica set; else it was being copied
	Others  []uint64
	// Term and Index are of the last entry in the replica's own log, 0 where that isn't known.
	Term, Index uint64
}

// Survivors lists what a broker has of the partitions of live topics. Where it has two replicas of one, since one was to take the other's place, it
// is the one whose log ends higher by end, or else the newer one, which may never have caught up. end
// returns 0, 0 for a replica that has nothing, or not all of what it had; nil: nothing is known.
func (c *Config) Survivors(broker uint64, end func(t *Topic, n int, r Replica) (term, index uint64)) (all []Survivor) {
	for i := range c.Topics {
		t := &c.Topics[i]
		if !t.Live() {
			continue
		}
		for n := range t.Partitions {
			p := &t.Partitions[n]
			s := Survivor{Topic: t.Name, TopicID: t.ID, Number: n, Shard: p.Shard}
			if r, ok := p.On(broker); ok {
				s.Replica = r.ID
			}
			for _, r := range p.Running() {
				if r.Broker != broker || end == nil {
					continue
				}
				if term, index := end(t, n, r); term > s.Term || term == s.Term && index > s.Index {
					s.Replica, s.Term, s.Index = r.ID, term, index
				}
			}
			for _, r := range p.Replicas {
				if r.Broker == broker {
					s.Voter = s.Voter || r.ID == s.Replica
				} else {
					s.Others = append(s.Others, r.Broker)
				}
			}
			all = append(all, s)
		}
	}
	return all
}

// RecoverOn makes of the configuration a cluster of one broker, with what that has. Each partition
// begins a new Raft group, under a new shard id, so that nothing of the old one is ever heard
// in it; one that the broker has no replica of begins anew, empty. Deleted topics can't be
// restored any more. left says which replicas it goes on with. It breaks rules of Follows, which only a recovery may.
func (c *Config) RecoverOn(broker uint64, left []Survivor) {
	chosen := map[uint64]uint64{} // by shard
	for _, s := range left {
		chosen[s.Shard] = s.Replica
	}
	self := *c.Broker(broker)
	self.State = Active
	c.Brokers, c.Council, c.Uneven = []Broker{self}, []uint64{broker}, 0
	for i := range c.Topics {
		t := &c.Topics[i]
		for n := range t.Partitions {
			p := &t.Partitions[n]
			r, ok := p.On(broker)
			if id := chosen[p.Shard]; id != 0 {
				r, ok = p.Find(id)
			}
			var retired []Replica
			for _, list := range [][]Replica{p.Running(), p.Retired} {
				for _, o := range list {
					if o.Broker == broker && o.ID != r.ID {
						retired = append(retired, o)
					}
				}
			}
			origin := p.Origin
			if c.FeatureLevel >= LevelRecovery && t.Live() {
				origin = t.Beyond(n, c.At, 0, p.Origin.Index) // tokens never fall, and what begins anew gives out no offset again
			}
			if ok {
				origin.Offset = p.Origin.Offset
			}
			*p = Partition{Shard: p.Shard, Retired: retired, Added: p.Added, Origin: origin}
			switch {
			case ok:
				p.Replicas = []Replica{r}
			case t.Live():
				p.Replicas = []Replica{{ID: c.TakeReplica(), Broker: broker}}
			}
			if t.Live() {
				p.Shard = c.TakeShard()
			}
		}
		t.Purge = !t.Live()
	}
	if c.FeatureLevel < LevelMoves {
		for i := range c.Topics {
			for n := range c.Topics[i].Partitions {
				c.Topics[i].Partitions[n].Retired = nil
			}
		}
	}
}
