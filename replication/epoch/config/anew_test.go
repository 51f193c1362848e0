package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

// lostPartition is a cluster of three with one partition that moves.
func lostPartition(t *testing.T) *Config {
	t.Helper()
	c := &Config{ClusterID: "c", Epoch: 7, Previous: Hash{1}, FeatureLevel: Level, NextBroker: 4, NextTopic: 2, NextShard: 9, NextReplica: 30, Council: []uint64{1, 2, 3}}
	for id := uint64(1); id <= 3; id++ {
		c.Brokers = append(c.Brokers, Broker{ID: id, Name: fmt.Sprint("b", id), Incarnation: fmt.Sprint("i", id), Weight: 1})
	}
	c.Topics = []Topic{{ID: 1, Name: "t", Subjects: []string{"t"}, CreatedAt: 1_000, Partitions: []Partition{
		{Shard: 4, Replicas: []Replica{{11, 1}, {12, 2}}, Target: []Replica{{11, 1}, {13, 3}}, Retired: []Replica{{9, 3}}, Moved: true},
	}}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// succeeding makes the epoch after c by change, and checks it.
func succeeding(c *Config, change func(*Config) error) (*Config, error) {
	n := c.Clone()
	n.Epoch++
	n.Previous = c.Hash()
	if err := change(n); err != nil {
		return nil, err
	}
	if err := errors.Join(n.Follows(c), n.Validate()); err != nil {
		return nil, err
	}
	b, err := n.Encode()
	if err != nil {
		return nil, err
	}
	if again, err := Decode(b); err != nil || !reflect.DeepEqual(again, n) {
		return nil, fmt.Errorf("decoded it is %+v, %w", again, err)
	}
	return n, nil
}

// TestRecoverOnePartition: both ways, what they retire, and what follows.
func TestRecoverOnePartition(t *testing.T) {
	t.Parallel()
	c := lostPartition(t)
	origin := Origin{Offset: 5_000, Index: 700}
	anew, err := succeeding(c, func(n *Config) error { return n.BeginAnew(1, 0, []uint64{3, 1}, origin) })
	if err != nil {
		t.Fatal(err)
	}
	p := anew.Topics[0].Partitions[0]
	if want := (Partition{Shard: 9, Replicas: []Replica{{30, 3}, {31, 1}}, Retired: []Replica{{9, 3}, {11, 1}, {12, 2}, {13, 3}}, Origin: origin}); !reflect.DeepEqual(p, want) {
		t.Errorf("anew: %+v, want %+v", p, want)
	}
	goes, err := succeeding(c, func(n *Config) error { return n.GoOn(1, 0, 12, origin) })
	if err != nil {
		t.Fatal(err)
	}
	p = goes.Topics[0].Partitions[0]
	if want := (Partition{Shard: 9, Replicas: []Replica{{12, 2}}, Retired: []Replica{{9, 3}, {11, 1}, {13, 3}}, Origin: origin, Salvage: Salvage{Shard: 4, Factor: 2}}); !reflect.DeepEqual(p, want) {
		t.Errorf("goes on: %+v, want %+v", p, want)
	}
	if _, err := succeeding(goes, func(n *Config) error { return n.SetTarget(1, 0, []uint64{1, 2}) }); err == nil {
		t.Error("it moves before the old log was made the new group's")
	}
	if _, err := succeeding(goes, func(n *Config) error { return n.GoOn(1, 0, 12, origin) }); err == nil {
		t.Error("it is recovered from the same replica again")
	}
	// The broker that was to go on may be lost as well.
	if _, err := succeeding(goes, func(n *Config) error { return n.BeginAnew(1, 0, []uint64{1}, Origin{Offset: 6_000, Index: 800}) }); err != nil {
		t.Error(err)
	}
	if _, err := succeeding(goes, func(n *Config) error { return n.BeginAnew(1, 0, []uint64{1}, Origin{Offset: 4_999, Index: 800}) }); err == nil {
		t.Error("offsets are given out again")
	}
	done, err := succeeding(goes, func(n *Config) error { return n.Salvaged(1, 0, 9) })
	if err != nil {
		t.Fatal(err)
	}
	if err := done.Clone().Salvaged(1, 0, 9); !errors.Is(err, ErrUnchanged) {
		t.Error(err)
	}
	grown, err := succeeding(done, func(n *Config) error { return n.SetTarget(1, 0, []uint64{2, 1}) })
	if err != nil || grown.Topics[0].Partitions[0].Origin != origin {
		t.Fatal(grown, err)
	}
	old := lostPartition(t)
	old.FeatureLevel = LevelRecovery - 1
	if _, err := succeeding(old, func(n *Config) error { return n.BeginAnew(1, 0, []uint64{3}, origin) }); err == nil {
		t.Error("an older broker in the cluster could not read it")
	}
}

// TestRecoveriesThatMayNotBe: what Follows refuses of a partition with another log than before.
func TestRecoveriesThatMayNotBe(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(p *Partition){
		"an old shard": func(p *Partition) { p.Shard = 5 },
		"a replica that vanishes": func(p *Partition) {
			p.Retired = slices.DeleteFunc(p.Retired, func(r Replica) bool { return r.ID == 12 })
		},
		"an old id":                  func(p *Partition) { p.Replicas[0].ID = 20 },
		"an old replica without log": func(p *Partition) { p.Replicas = []Replica{{12, 2}} },
		"it moves":                   func(p *Partition) { p.Moved = true },
		"a retired one of nowhere":   func(p *Partition) { p.Retired = append(p.Retired, Replica{21, 1}) },
		"a foreign log":              func(p *Partition) { p.Replicas, p.Salvage = []Replica{{12, 2}}, Salvage{Shard: 3} },
		"an origin out of bounds":    func(p *Partition) { p.Origin.Offset = maxOrigin + 1 },
	} {
		if _, err := succeeding(lostPartition(t), func(n *Config) error {
			if err := n.BeginAnew(1, 0, []uint64{3}, Origin{Offset: 1}); err != nil {
				return err
			}
			spoil(&n.Topics[0].Partitions[0])
			return nil
		}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := succeeding(lostPartition(t), func(n *Config) error { n.Topics[0].Partitions[0].Origin.Offset = 9; return nil }); !errors.Is(err, ErrInvalid) {
		t.Errorf("the same log with another origin: %v", err)
	}
}

// TestBeyond: an origin is above all that was known, and above what the fastest publishers can have had since
// the topic, or since the last recovery, began.
func TestBeyond(t *testing.T) {
	t.Parallel()
	created := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	topic := Topic{CreatedAt: created, Partitions: make([]Partition, 1)}
	year := created + 365*24*time.Hour.Milliseconds()
	o := topic.Beyond(0, year, 5, 6)
	if fast := int64(365*24*3600) * 5_000_000; o.Offset < fast || o.Index < uint64(fast) {
		t.Errorf("after a year of 5 million records a second: %+v", o)
	}
	if o.Offset > 1<<53 {
		t.Errorf("%d is above what JSON's numbers are exact for", o.Offset)
	}
	if o := topic.Beyond(0, created-5, 1<<50, 1<<40); o.Offset <= 1<<50 || o.Index <= 1<<40 {
		t.Errorf("with a clock that went back: %+v", o)
	}
	topic.Partitions[0].Origin = o
	if again := topic.Beyond(0, created, 0, 0); again.Offset <= o.Offset || again.Index <= o.Index {
		t.Errorf("a second time: %+v after %+v", again, o)
	}
}
