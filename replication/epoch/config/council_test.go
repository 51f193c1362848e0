package config

import (
	"fmt"
	"slices"
	"testing"
)

// council makes n brokers of which the first hold the seats.
func council(n, seats int) *Config {
	c := &Config{NextBroker: 1, NextTopic: 1, NextShard: 1, NextReplica: 1}
	for range n {
		id := c.TakeBroker()
		c.Brokers = append(c.Brokers, Broker{ID: id, Name: fmt.Sprint("b", id), Weight: 1})
		if len(c.Council) < seats {
			c.Council = append(c.Council, id)
		}
	}
	return c
}

func TestCouncilSize(t *testing.T) {
	t.Parallel()
	for n, want := range []int{0, 1, 1, 3, 3, 5, 5, 5} {
		if got := CouncilSize(n); got != want {
			t.Errorf("%d brokers: %d, want %d", n, got, want)
		}
	}
}

func TestStepCouncil(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		c      *Config
		spoil  func(*Config)
		unfit  []uint64
		want   []uint64
		change bool
	}{
		{"alone", council(1, 1), nil, nil, []uint64{1}, false},
		{"two need no second seat", council(2, 1), nil, nil, []uint64{1}, false},
		{"one seat at a time", council(3, 1), nil, nil, []uint64{1, 2}, true},
		{"and the next", council(3, 2), nil, nil, []uint64{1, 2, 3}, true},
		{"who doesn't know the newest epoch gets none", council(3, 1), nil, []uint64{2}, []uint64{1, 3}, true},
		{"nobody is fit", council(3, 1), nil, []uint64{2, 3}, []uint64{1}, false},
		{"full", council(4, 3), nil, nil, []uint64{1, 2, 3}, false},
		{"unfit, but it keeps its seat", council(4, 3), nil, []uint64{2}, []uint64{1, 2, 3}, false},
		{"a dead one's seat is given on", council(4, 3), func(c *Config) { c.Brokers[0].State = Dead }, []uint64{1}, []uint64{2, 3, 4}, true},
		{"a draining one's too", council(4, 3), func(c *Config) { c.Brokers[1].State = Draining }, nil, []uint64{1, 3, 4}, true},
		{"to nobody who drains", council(4, 3), func(c *Config) { c.Brokers[1].State, c.Brokers[3].State = Dead, Draining }, nil, []uint64{1, 2, 3}, false},
		{"one too many: the dead one goes", council(5, 5), func(c *Config) { c.Brokers[1].State = Dead }, []uint64{2}, []uint64{1, 3, 4, 5}, true},
		{"one too many: who is not up goes", council(4, 4), nil, []uint64{1}, []uint64{2, 3, 4}, true},
	} {
		if c.spoil != nil {
			c.spoil(c.c)
		}
		before := slices.Clone(c.c.Council)
		shared := c.c.Council
		changed := c.c.StepCouncil(func(id uint64) bool { return !slices.Contains(c.unfit, id) })
		if changed != c.change || !slices.Equal(c.c.Council, c.want) {
			t.Errorf("%s: %v, changed %v, want %v", c.name, c.c.Council, changed, c.want)
		}
		if !slices.Equal(shared, before) {
			t.Errorf("%s: the council of the configuration it came from was altered", c.name)
		}
	}
}

// TestCouncilOverRacks: seats come to be in as many racks as there are, without end of changes.
func TestCouncilOverRacks(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		racks []string // of brokers 1, 2, …
		seats int
		want  []uint64
	}{
		{[]string{"a", "a", "a", "b", "c"}, 1, []uint64{1, 2, 3, 4, 5}},
		{[]string{"a", "a", "b", "c"}, 1, []uint64{1, 3, 4}},
		{[]string{"a", "a", "a", "b"}, 3, []uint64{1, 2, 4}},
		{[]string{"a", "b", "a", "b", "a", "b", "c"}, 5, []uint64{1, 2, 3, 4, 7}},
		{[]string{"", "", "", ""}, 3, []uint64{1, 2, 3}},
	} {
		c := council(len(x.racks), x.seats)
		for i, rack := range x.racks {
			c.Brokers[i].Rack = rack
		}
		for steps := 0; c.StepCouncil(func(uint64) bool { return true }); steps++ {
			if steps > 2*MaxCouncil {
				t.Fatalf("%v: it doesn't end", x.racks)
			}
		}
		if !slices.Equal(c.Council, x.want) {
			t.Errorf("%v: %v, want %v", x.racks, c.Council, x.want)
		}
	}
}

// TestCouncilSettles: from any council, step by step, to the right size, one seat an epoch.
func TestCouncilSettles(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 8; n++ {
		for seats := 1; seats <= min(n, MaxCouncil); seats++ {
			c := council(n, seats)
			for steps := 0; c.StepCouncil(func(uint64) bool { return true }); steps++ {
				if steps > MaxCouncil {
					t.Fatalf("%d brokers, %d seats: it doesn't end", n, seats)
				}
			}
			if len(c.Council) != CouncilSize(n) {
				t.Errorf("%d brokers, %d seats at first: council %v", n, seats, c.Council)
			}
		}
	}
}

func TestInitialCouncil(t *testing.T) {
	t.Parallel()
	c := council(MaxInitial, MaxInitial)
	b, err := c.Encode()
	if err != nil || c.Validate() != nil {
		t.Fatalf("%v, %v", err, c.Validate())
	}
	if d, err := Decode(b); err != nil || len(d.Council) != MaxInitial {
		t.Error(err)
	}
	c.Epoch, c.ClusterID, c.Previous[0] = 1, "c", 1
	for i := range c.Brokers {
		c.Brokers[i].Incarnation = fmt.Sprint(i)
	}
	if c.Validate() == nil {
		t.Errorf("a council of %d after epoch 0", MaxInitial)
	}
}
