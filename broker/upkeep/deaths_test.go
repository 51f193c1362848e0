package upkeep_test

import (
	"slices"
	"testing"

	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/replication/epoch/config"
)

func report(from uint64, seen ...upkeep.Seen) upkeep.Report {
	return upkeep.Report{From: from, Level: 1, Peers: seen}
}

func gone(id uint64, ms int64) upkeep.Seen { return upkeep.Seen{Broker: id, ForMS: ms} }
func here(id uint64, ms int64) upkeep.Seen { return upkeep.Seen{Broker: id, Up: true, ForMS: ms} }

func TestJudge(t *testing.T) {
	t.Parallel()
	dead := func(ids ...uint64) func(*config.Config) {
		return func(c *config.Config) {
			for _, id := range ids {
				c.Broker(id).State = config.Dead
			}
		}
	}
	for _, x := range []struct {
		name           string
		brokers        int
		spoil          func(*config.Config)
		reports        []upkeep.Report
		dead, returned []uint64
		paused         bool
	}{
		{"all are there", 3, nil, []upkeep.Report{report(1, here(2, 9), here(3, 9)), report(2, here(1, 9), here(3, 9))}, nil, nil, false},
		{"two of three miss the third", 3, nil, []upkeep.Report{report(1, here(2, 9), gone(3, 500)), report(2, here(1, 9), gone(3, 700))}, []uint64{3}, nil, false},
		{"not for long enough", 3, nil, []upkeep.Report{report(1, gone(3, 500)), report(2, gone(3, 100))}, nil, nil, false},
		{"one alone misses it", 3, nil, []upkeep.Report{report(1, gone(3, 500)), report(2, here(3, 500))}, nil, nil, false},
		{"one alone answers", 3, nil, []upkeep.Report{report(1, gone(2, 500), gone(3, 500))}, nil, nil, false},
		{"one says it twice", 3, nil, []upkeep.Report{report(1, gone(3, 500)), report(1, gone(3, 500))}, nil, nil, false},
		{"who isn't of the council doesn't count", 4, nil, []upkeep.Report{report(1, gone(3, 500)), report(4, gone(3, 500))}, nil, nil, false},
		{"two of four are too many", 4, nil, []upkeep.Report{report(1, gone(3, 500), gone(4, 500)), report(2, gone(3, 500), gone(4, 500))}, nil, nil, true},
		{"nor if the second is missed later", 4, nil, []upkeep.Report{report(1, gone(3, 500), gone(4, 300)), report(2, gone(3, 500), gone(4, 300))}, nil, nil, true},
		{"but long after that, yes", 4, nil, []upkeep.Report{report(1, gone(3, 500), gone(4, 100)), report(2, gone(3, 500), gone(4, 100))}, []uint64{3}, nil, false},
		{"two of eight are not", 8, nil, []upkeep.Report{report(1, gone(7, 500), gone(8, 500)), report(2, gone(7, 500), gone(8, 500)), report(3, gone(7, 500), gone(8, 500))}, []uint64{7, 8}, nil, false},
		{"one died before, and is not healed", 4, dead(3), []upkeep.Report{report(1, gone(3, 900), gone(4, 500)), report(2, gone(3, 900), gone(4, 500))}, nil, nil, true},
		{"a dead one is back", 3, dead(3), []upkeep.Report{report(1, here(3, 5)), report(2, here(3, 5))}, nil, []uint64{3}, false},
		{"one alone sees it back", 3, dead(3), []upkeep.Report{report(1, here(3, 5)), report(2, gone(3, 900))}, nil, nil, false},
		{"one that another took the name of", 3, func(c *config.Config) { dead(3)(c); c.Broker(3).Name = "b3~3" },
			[]upkeep.Report{report(1, here(3, 5)), report(2, here(3, 5))}, nil, nil, false},
	} {
		c := cluster(t, x.brokers, 8, 3)
		if x.spoil != nil {
			x.spoil(c)
		}
		d := upkeep.Judge(c, upkeep.Agree(c, x.reports), 400, "~")
		if !slices.Equal(d.Dead, x.dead) || !slices.Equal(d.Returned, x.returned) || d.Paused() != x.paused {
			t.Errorf("%s: %+v, paused %v", x.name, d, d.Paused())
		}
	}
}

func TestLevel(t *testing.T) {
	t.Parallel()
	c := cluster(t, 3, 1, 1)
	c.FeatureLevel = 0
	at := func(levels ...uint32) (all []upkeep.Report) {
		for i, l := range levels {
			all = append(all, upkeep.Report{From: uint64(i + 1), Level: l})
		}
		return all
	}
	if got := upkeep.Level(c, at(2, 1, 3)); got != 1 {
		t.Errorf("%d, the lowest is 1", got)
	}
	if got := upkeep.Level(c, at(2, 1)); got != 0 {
		t.Errorf("%d, though one said nothing", got)
	}
	c.Broker(3).State = config.Dead
	if got := upkeep.Level(c, at(2, 1)); got != 1 {
		t.Errorf("%d, though only a dead one said nothing", got)
	}
	c.FeatureLevel = 2
	if got := upkeep.Level(c, at(1, 1)); got != 2 {
		t.Errorf("%d: it fell", got)
	}
}
