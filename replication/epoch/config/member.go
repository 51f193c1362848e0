package config

import "slices"

// Holds counts the replicas of live topics that a broker has, or is to have or to give up.
func (c *Config) Holds(broker uint64) int {
	n := 0
	for i := range c.Topics {
		if !c.Topics[i].Live() {
			continue
		}
		for j := range c.Topics[i].Partitions {
			for _, r := range c.Topics[i].Partitions[j].Running() {
				if r.Broker == broker {
					n++
				}
			}
		}
	}
	return n
}

// NeededOn lists the deleted topics that can still be restored, but not without a broker: it has the last
// replica of one of their partitions, one of the last two, or one of those that make a majority. Their Raft groups
// have the members still that they had when the topics were deleted, and one of two or three is no majority.
// has says which brokers have what they hold: replicas of others are no help, and a topic that has lost its
// majority already needs nobody.
func (c *Config) NeededOn(broker uint64, has func(uint64) bool) (topics []string) {
	for i := range c.Topics {
		t := &c.Topics[i]
		if t.Live() || t.Purge {
			continue
		}
		if slices.ContainsFunc(t.Partitions, func(p Partition) bool {
			others, there := 0, false
			for _, r := range p.Replicas {
				switch {
				case r.Broker == broker:
					there = true
				case has(r.Broker):
					others++
				}
			}
			majority := len(p.Replicas)/2 + 1
			return there && (len(p.Replicas) <= 2 || others+1 == majority)
		}) {
			topics = append(topics, t.Name)
		}
	}
	return topics
}

// RemoveBroker takes a broker that holds no replica of a live topic out of the configuration, for
// good. Its seat on the council stays empty until it is given to another one. Deleted topics lose
// the replicas that they had there; one that had a partition nowhere else can't come back.
func (c *Config) RemoveBroker(id uint64) {
	c.Brokers = slices.DeleteFunc(slices.Clone(c.Brokers), func(b Broker) bool { return b.ID == id })
	c.Council = slices.DeleteFunc(slices.Clone(c.Council), func(m uint64) bool { return m == id })
	c.ForgetRetiredOn(id)
	there := func(r Replica) bool { return r.Broker == id }
	var kept []Topic
	for i := range c.Topics {
		t := c.Topics[i]
		lost := 0
		for n := range t.Partitions {
			p := &t.Partitions[n]
			if t.Live() || !slices.ContainsFunc(p.Running(), there) {
				continue
			}
			p.Moved = c.FeatureLevel >= LevelMoves && !p.Salvaging()
			p.Replicas = slices.DeleteFunc(slices.Clone(p.Replicas), there)
			p.Target, p.Abandoned = trimmed(p.Target, there), trimmed(p.Abandoned, there)
			if p.Target == nil && p.Abandoned != nil {
				p.Target = slices.Clone(p.Replicas)
			}
			if len(p.Replicas) == 0 {
				p.Replicas, p.Salvage, lost = nil, Salvage{}, lost+1
			}
		}
		if lost > 0 {
			t.Purge = true
		}
		kept = append(kept, t)
	}
	c.Topics = kept
}

// onBrokersOf is the partition without the replicas of brokers that c doesn't name.
func (p *Partition) onBrokersOf(c *Config) *Partition {
	n := *p
	for _, list := range []*[]Replica{&n.Replicas, &n.Target, &n.Abandoned, &n.Retired} {
		*list = trimmed(*list, func(r Replica) bool { return c.Broker(r.Broker) == nil })
	}
	return &n
}

// trimmed is list without some, nil when nothing is left.
func trimmed(list []Replica, gone func(Replica) bool) []Replica {
	if list = slices.DeleteFunc(slices.Clone(list), gone); len(list) == 0 {
		return nil
	}
	return list
}

// EvenOut notes that replicas are to be evened out among the brokers. Before the feature level is
// there that nothing moves without, it does nothing.
func (c *Config) EvenOut() {
	if c.FeatureLevel >= LevelMoves {
		c.Uneven = c.Epoch
	}
}

// LastActive says that no other broker takes replicas.
func (c *Config) LastActive(id uint64) bool {
	for i := range c.Brokers {
		if b := &c.Brokers[i]; b.ID != id && b.State == Active {
			return false
		}
	}
	return true
}
