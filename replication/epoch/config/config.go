// Package config holds the plain types of an epoch's value: which brokers
// there are, which topics, and which broker holds which replica. It knows how
// to check a value, to encode it and to tell two values apart, and nothing
// about how a value is decided.
package config

import (
	"maps"
	"slices"
)

// Limits of one value.
const (
	MaxReplicas   = 20_000  // replicas in a cluster
	MaxEncoded    = 1 << 20 // bytes of an encoded value
	MaxPartitions = 1024    // of one topic
	MaxTopicName  = 200     // bytes
	MaxSubjects   = 32      // bound to one topic
	MaxSubject    = 512     // bytes
	MaxBrokers    = 1000
	MaxCouncil    = 5
	MaxInitial    = 32   // brokers of an initial list: epoch 1 needs each of them
	MaxText       = 1024 // bytes of a name, an address, a rack or a description
)

// Config is the value of one epoch. A decided value is shared and must not be
// altered: Clone it.
type Config struct {
	ClusterID    string // random, recorded in epoch 1; empty in epoch 0
	Epoch        uint64
	Previous     Hash // of the value of Epoch-1; zero in epoch 0
	FeatureLevel uint32
	Council      []uint64 // ids of the brokers that decide the next epoch, ascending

	// Counters. An id below them was given out and is never given out again.
	NextBroker  uint64
	NextTopic   uint64
	NextShard   uint64
	NextReplica uint64

	Brokers []Broker // by id, ascending
	Topics  []Topic  // by id, ascending, deleted ones included

	// Uneven is the epoch since which brokers may hold more or less than their share, because
	// one joined or came back, or because somebody asked for balance. 0: it was evened out.
	Uneven uint64

	By     string // name of the broker that proposed the value
	At     int64  // when it proposed it by its own clock, Unix ms
	Change string // what was asked, for people
}

// BrokerState says what a broker is meant to hold.
type BrokerState uint8

const (
	Active BrokerState = iota
	Draining
	Dead
)

func (s BrokerState) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// Broker is one member of the cluster. The incarnation is random and belongs
// to its data directory: a wiped disk is a new incarnation.
type Broker struct {
	ID          uint64
	Name        string
	Incarnation string
	Addresses   Addresses
	Rack        string
	Weight      uint32
	State       BrokerState
}

// Addresses as others dial them, host:port.
type Addresses struct {
	Client string
	Peer   string
	Raft   string
}

// Topic is a named set of partitions. With DeletedAt set it is a tombstone: it
// serves nobody and can be restored. With Purge set as well its data is to be
// deleted for good, and it can't come back.
type Topic struct {
	ID         uint64
	Name       string
	Subjects   []string
	Config     map[string]string // by the keys of client/wire; see ParseTopicConfig
	Partitions []Partition       // index is the partition's number
	CreatedAt  int64             // Unix ms
	DeletedAt  int64             // Unix ms, 0 while it lives
	Purge      bool
}

// Live says that the topic is not deleted.
func (t *Topic) Live() bool { return t.DeletedAt == 0 }

// Anchors is how many partitions, from the first on, may be groups' anchors: those that the topic was made with.
func (t *Topic) Anchors() int32 {
	n := len(t.Partitions)
	for n > 0 && t.Partitions[n-1].Added {
		n--
	}
	return int32(n)
}

// Partition is one replicated log: its Raft shard and who holds it. The first
// replica is the preferred leader. move.go says what the other three are for.
type Partition struct {
	Shard    uint64
	Replicas []Replica
	// Target is the replica set that is wanted, in order; nil while nothing moves.
	Target []Replica
	// Abandoned replicas were named by an earlier Target and are not wanted any more.
	// Raft may have them as members.
	Abandoned []Replica
	// Retired replicas are no members any more. Their data is to be deleted; each stays named
	// until its broker has confirmed that.
	Retired []Replica
	// Moved: the replica set is not the first one any more. Who has nothing of the log yet must
	// join it: to begin with this set as initial members would make a second group.
	Moved bool
	// Added: the topic was made with fewer partitions, and this one came later. It is the anchor of no group, so
	// that anchors stay where they are when a topic grows. From LevelAnchors on.
	Added bool
	// Origin and Salvage are of a partition that was recovered by force: see anew.go.
	Origin  Origin
	Salvage Salvage
}

// Replica is one partition's log on one broker.
type Replica struct {
	ID     uint64
	Broker uint64
}

// Clone returns a deep copy.
func (c *Config) Clone() *Config {
	n := *c
	n.Council = slices.Clone(c.Council)
	n.Brokers = slices.Clone(c.Brokers)
	n.Topics = slices.Clone(c.Topics)
	for i := range n.Topics {
		t := &n.Topics[i]
		t.Subjects = slices.Clone(t.Subjects)
		t.Config = maps.Clone(t.Config)
		t.Partitions = slices.Clone(t.Partitions)
		for j := range t.Partitions {
			p := &t.Partitions[j]
			p.Replicas, p.Target = slices.Clone(p.Replicas), slices.Clone(p.Target)
			p.Abandoned, p.Retired = slices.Clone(p.Abandoned), slices.Clone(p.Retired)
		}
	}
	return &n
}

// Topic returns the live topic of that name, or nil.
func (c *Config) Topic(name string) *Topic {
	for i := range c.Topics {
		if c.Topics[i].Name == name && c.Topics[i].Live() {
			return &c.Topics[i]
		}
	}
	return nil
}

// Tombstone returns the newest deleted topic of that name that can still be
// restored, or nil.
func (c *Config) Tombstone(name string) *Topic {
	var found *Topic
	for i := range c.Topics {
		t := &c.Topics[i]
		if t.Name == name && !t.Live() && !t.Purge && (found == nil || t.DeletedAt >= found.DeletedAt) {
			found = t
		}
	}
	return found
}

// Broker returns the broker of that id, or nil.
func (c *Config) Broker(id uint64) *Broker {
	for i := range c.Brokers {
		if c.Brokers[i].ID == id {
			return &c.Brokers[i]
		}
	}
	return nil
}

// BrokerNamed returns the broker of that name, or nil.
func (c *Config) BrokerNamed(name string) *Broker {
	for i := range c.Brokers {
		if c.Brokers[i].Name == name {
			return &c.Brokers[i]
		}
	}
	return nil
}

// Replicas counts the replicas of all topics, deleted ones and those of moves included.
func (c *Config) Replicas() int {
	n := 0
	for i := range c.Topics {
		for j := range c.Topics[i].Partitions {
			p := &c.Topics[i].Partitions[j]
			n += len(p.Replicas) + len(p.Abandoned) + len(p.Adding())
		}
	}
	return n
}

// TakeTopic gives out a topic id.
func (c *Config) TakeTopic() uint64 { c.NextTopic++; return c.NextTopic - 1 }

// TakeShard gives out a shard id.
func (c *Config) TakeShard() uint64 { c.NextShard++; return c.NextShard - 1 }

// TakeReplica gives out a replica id.
func (c *Config) TakeReplica() uint64 { c.NextReplica++; return c.NextReplica - 1 }

// TakeBroker gives out a broker id.
func (c *Config) TakeBroker() uint64 { c.NextBroker++; return c.NextBroker - 1 }
