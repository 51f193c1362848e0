package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// moving has three brokers, and one partition on the first two of them, replicas 1 and 2.
func moving() *Config {
	c := sample()
	c.FeatureLevel = LevelMoves
	c.Brokers = append(c.Brokers, Broker{ID: 3, Name: "b3", Incarnation: "i3", Weight: 1}, Broker{ID: 4, Name: "b4", Incarnation: "i4", Weight: 1})
	c.NextBroker, c.NextReplica = 5, 6
	c.Topics = c.Topics[:1]
	c.Topics[0].Partitions = []Partition{{Shard: 1, Replicas: []Replica{{1, 1}, {2, 2}}}}
	return c
}

// step makes the next value, which must be valid and follow.
func step(t *testing.T, c *Config, change func(next *Config) error) *Config {
	t.Helper()
	n := next(c)
	if err := change(n); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Follows(c), n.Validate()); err != nil {
		t.Fatal(err)
	}
	b, err := n.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(b); err != nil || !reflect.DeepEqual(got, n) {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, n)
	}
	return n
}

func target(brokers ...uint64) func(*Config) error {
	return func(next *Config) error { return next.SetTarget(1, 0, brokers) }
}

func part(c *Config) *Partition { return &c.Topics[0].Partitions[0] }

func want(t *testing.T, c *Config, p Partition) {
	t.Helper()
	p.Shard = 1
	if got := *part(c); !reflect.DeepEqual(got, p) {
		t.Fatalf("got  %+v\nwant %+v", got, p)
	}
}

func TestMoveAndReplacedTarget(t *testing.T) {
	t.Parallel()
	c := step(t, moving(), target(3, 1))
	want(t, c, Partition{Replicas: []Replica{{1, 1}, {2, 2}}, Target: []Replica{{6, 3}, {1, 1}}})
	if err := target(3, 1)(next(c)); !errors.Is(err, ErrUnchanged) {
		t.Errorf("the same target again: %v", err)
	}
	first := part(c).Target
	c = step(t, c, target(4, 1))
	want(t, c, Partition{Replicas: []Replica{{1, 1}, {2, 2}}, Target: []Replica{{7, 4}, {1, 1}}, Abandoned: []Replica{{6, 3}}})
	if r, ok := part(c).On(3); !ok || r.ID != 6 {
		t.Error("an abandoned replica doesn't run: it may be a voter")
	}
	if err := next(c).FinishMove(1, 0, first); !errors.Is(err, ErrUnchanged) {
		t.Errorf("the target that was replaced is reported as carried out: %v", err)
	}
	c = step(t, c, func(n *Config) error { return n.FinishMove(1, 0, part(n).Target) })
	want(t, c, Partition{Moved: true, Replicas: []Replica{{7, 4}, {1, 1}}, Retired: []Replica{{2, 2}, {6, 3}}})
	if _, ok := part(c).On(2); ok {
		t.Error("a retired replica runs")
	}
	c = step(t, c, func(n *Config) error {
		n.ForgetRetired(func(_ *Topic, _ int, r Replica) bool { return r.ID == 6 })
		return nil
	})
	want(t, c, Partition{Moved: true, Replicas: []Replica{{7, 4}, {1, 1}}, Retired: []Replica{{2, 2}}})
	c = step(t, c, target(3, 1)) // fresh ids for a broker that had it once
	want(t, c, Partition{Moved: true, Replicas: []Replica{{7, 4}, {1, 1}}, Target: []Replica{{8, 3}, {1, 1}}, Retired: []Replica{{2, 2}}})
	c = step(t, c, target(1, 4)) // given up, with another order
	want(t, c, Partition{Moved: true, Replicas: []Replica{{7, 4}, {1, 1}}, Target: []Replica{{1, 1}, {7, 4}}, Abandoned: []Replica{{8, 3}}, Retired: []Replica{{2, 2}}})
	c = step(t, c, target(3, 1)) // and wanted again: the same replica
	want(t, c, Partition{Moved: true, Replicas: []Replica{{7, 4}, {1, 1}}, Target: []Replica{{8, 3}, {1, 1}}, Retired: []Replica{{2, 2}}})
}

func TestOrderAlone(t *testing.T) {
	t.Parallel()
	c := step(t, moving(), target(2, 1))
	want(t, c, Partition{Replicas: []Replica{{2, 2}, {1, 1}}})
	if c.NextReplica != 6 {
		t.Error("ids were taken")
	}
	old := sample()
	if err := old.SetTarget(1, 0, []uint64{1}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "feature level") {
		t.Errorf("a move before every broker knows them: %v", err)
	}
}

func TestReplaceDamaged(t *testing.T) {
	t.Parallel()
	c := step(t, moving(), func(n *Config) error { return n.Replace(1, 0, 2) })
	want(t, c, Partition{Replicas: []Replica{{1, 1}, {2, 2}}, Target: []Replica{{1, 1}, {6, 2}}})
	if r, _ := part(c).On(2); r.ID != 6 {
		t.Errorf("replica %d runs", r.ID)
	}
	if err := next(c).Replace(1, 0, 2); !errors.Is(err, ErrUnchanged) {
		t.Errorf("replaced twice: %v", err)
	}
	c = step(t, c, func(n *Config) error { return n.Replace(1, 0, 6) }) // that one is damaged as well
	want(t, c, Partition{Replicas: []Replica{{1, 1}, {2, 2}}, Target: []Replica{{1, 1}, {7, 2}}, Abandoned: []Replica{{6, 2}}})
	c = step(t, c, func(n *Config) error { return n.FinishMove(1, 0, part(n).Target) })
	want(t, c, Partition{Moved: true, Replicas: []Replica{{1, 1}, {7, 2}}, Retired: []Replica{{2, 2}, {6, 2}}})
}

func TestMovesThatAreRefused(t *testing.T) {
	t.Parallel()
	prev := step(t, step(t, moving(), target(3, 1)), target(4, 1))
	prev = step(t, prev, func(n *Config) error {
		n.Topics[0].Partitions[0].Retired = nil
		return nil
	})
	done := step(t, prev, func(n *Config) error { return n.FinishMove(1, 0, part(n).Target) })
	for name, x := range map[string]struct {
		prev  *Config
		spoil func(p *Partition, c *Config)
	}{
		"a removed replica isn't named": {prev, func(p *Partition, _ *Config) { p.Replicas = p.Replicas[:1] }},
		"an abandoned one neither":      {prev, func(p *Partition, _ *Config) { p.Abandoned = nil }},
		"a target's isn't":              {prev, func(p *Partition, c *Config) { p.Target = []Replica{{1, 1}} }},
		"a member without a target": {prev, func(p *Partition, c *Config) {
			p.Replicas = append(p.Replicas, Replica{c.TakeReplica(), 3})
		}},
		"a retired one is back": {done, func(p *Partition, _ *Config) {
			p.Replicas, p.Retired = append(p.Replicas, Replica{2, 2}), p.Retired[1:]
		}},
		"a retired one as target": {done, func(p *Partition, _ *Config) { p.Target, p.Retired = []Replica{{2, 2}}, p.Retired[1:] }},
		"retired, and never there": {done, func(p *Partition, c *Config) {
			p.Retired = append(p.Retired, Replica{c.TakeReplica(), 3})
		}},
		"not moved any more":     {done, func(p *Partition, _ *Config) { p.Moved = false }},
		"an empty target":        {done, func(p *Partition, _ *Config) { p.Target = []Replica{} }},
		"a target on a stranger": {done, func(p *Partition, c *Config) { p.Target = []Replica{{c.TakeReplica(), 9}} }},
		"a target of an id that was never given out": {done, func(p *Partition, c *Config) {
			p.Target = []Replica{{c.NextReplica, 3}}
		}},
		"two on one broker": {done, func(p *Partition, c *Config) {
			p.Target = []Replica{{c.TakeReplica(), 3}, {c.TakeReplica(), 3}}
		}},
		"abandoned without a target": {done, func(p *Partition, c *Config) { p.Abandoned = []Replica{{c.TakeReplica(), 3}} }},
		"retired and a member":       {done, func(p *Partition, c *Config) { p.Retired = append(p.Retired, p.Replicas[0]) }},
		"an unknown level":           {done, func(_ *Partition, c *Config) { c.FeatureLevel = Level + 1 }},
		"a lower level":              {done, func(_ *Partition, c *Config) { c.FeatureLevel = 0 }},
	} {
		n := next(x.prev)
		x.spoil(part(n), n)
		if err := errors.Join(n.Follows(x.prev), n.Validate()); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOlderValues: what older programs decided reads as it did, with its hash.
func TestOlderValues(t *testing.T) {
	t.Parallel()
	const hash = "a038ca2dcc86c87be704fdae310236c29972a77a2563f801c76feb3f6324648a"
	c := sample()
	b, err := c.Encode()
	if err != nil || b[len(magic)] != versionPlain {
		t.Fatalf("version %d, %v", b[len(magic)], err)
	}
	if got := c.Hash().String(); got != hash {
		t.Errorf("the hash of an old value is %s", got)
	}
	c.FeatureLevel = LevelMoves
	newer, err := c.Encode()
	if err != nil || newer[len(magic)] != versionMoves {
		t.Fatalf("version %d, %v", newer[len(magic)], err)
	}
	mixed := bytes.Clone(newer)
	mixed[len(magic)] = versionPlain
	if _, err := Decode(mixed); !errors.Is(err, ErrDecode) {
		t.Errorf("a version that doesn't fit the level: %v\n%s", err, hex.Dump(mixed[:8]))
	}
}

// Which partitions a topic was made with, and which were added, is told and never changes: groups' anchors go by it.
func TestAddedPartitions(t *testing.T) {
	t.Parallel()
	c := sample()
	c.FeatureLevel = LevelAnchors
	top := &c.Topics[0]
	made := int32(len(top.Partitions))
	if top.Anchors() != made {
		t.Fatalf("anchors are among %d of %d partitions", top.Anchors(), made)
	}
	grown := c.Clone()
	grown.Epoch, grown.Previous = c.Epoch+1, c.Hash()
	top = grown.Topic(top.Name)
	for range 2 {
		top.Partitions = append(top.Partitions, Partition{Shard: grown.TakeShard(), Replicas: []Replica{{ID: grown.TakeReplica(), Broker: grown.Brokers[0].ID}}, Added: true})
	}
	if err := errors.Join(grown.Validate(), grown.Follows(c)); err != nil {
		t.Fatal(err)
	}
	b, err := grown.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(b)
	if err != nil || !reflect.DeepEqual(back, grown) || back.Topic(top.Name).Anchors() != made {
		t.Fatalf("read back: %v, anchors among %d", err, back.Topic(top.Name).Anchors())
	}
	for name, spoil := range map[string]func(next *Config, t *Topic){
		"at a lower level":       func(next *Config, _ *Topic) { next.FeatureLevel = LevelGroups },
		"the first one":          func(_ *Config, t *Topic) { t.Partitions[0].Added = true },
		"before one that wasn't": func(_ *Config, t *Topic) { t.Partitions[made+1].Added = false },
	} {
		bad := grown.Clone()
		if spoil(bad, bad.Topic(top.Name)); bad.Validate() == nil {
			t.Errorf("%s: taken for valid", name)
		}
	}
	next := grown.Clone()
	next.Epoch, next.Previous = grown.Epoch+1, grown.Hash()
	next.Topic(top.Name).Partitions[made].Added = false
	next.Topic(top.Name).Partitions[made+1].Added = false
	if next.Follows(grown) == nil {
		t.Error("a partition that was added became one from the beginning")
	}
}
