// Package upkeep decides what a cluster needs next: which brokers are dead or
// have come back, and which partitions are to move. It is pure: configurations and what
// brokers report in, decisions out; time comes in as milliseconds. The broker asks, and
// has the decisions made epochs.
//
//	upkeep.go  reports of the council and what a majority of it agrees on
//	deaths.go  who is dead, who has come back, and when that is too much to believe
//	moves.go   which partitions get another target
//	decide.go  all of that for one configuration
//	member.go  what stands in the way of a broker's leaving; topics of another size
//	plan.go    the whole plan, for people who ask for it
package upkeep

import (
	"cmp"
	"slices"

	"github.com/parleymq/parley/replication/epoch/config"
)

// Seen is how one broker sees another.
type Seen struct {
	Broker uint64 `json:"broker"`
	Up     bool   `json:"up"`
	ForMS  int64  `json:"for_ms"` // since when, of that
}

// Report is what one broker says of all others. A broker that gave no answer has none.
type Report struct {
	From  uint64 `json:"from"`
	Level uint32 `json:"level"` // the feature level that the cluster may have for its sake without anybody asking
	// Knows is the newest feature level that it knows. Brokers of earlier versions don't say: they know Level.
	Knows uint32 `json:"knows,omitempty"`
	Peers []Seen `json:"peers"`
}

// Sight of one broker by the council.
type Sight struct {
	// Down says that a majority of the council can't reach it, and DownMS for how long already:
	// the longest time that a majority agrees on. Likewise Up. With neither, the council
	// can't say.
	Down, Up     bool
	DownMS, UpMS int64
}

// Agree returns what a majority of the council agrees on, by broker.
func Agree(c *config.Config, reports []Report) map[uint64]Sight {
	majority := len(c.Council)/2 + 1
	down, up := map[uint64][]int64{}, map[uint64][]int64{}
	heard := map[uint64]bool{}
	for _, r := range reports {
		if !slices.Contains(c.Council, r.From) || heard[r.From] {
			continue
		}
		heard[r.From] = true
		up[r.From] = append(up[r.From], selfUp(r)) // it answered
		for _, s := range r.Peers {
			switch {
			case s.Broker == r.From:
			case s.Up:
				up[s.Broker] = append(up[s.Broker], s.ForMS)
			default:
				down[s.Broker] = append(down[s.Broker], s.ForMS)
			}
		}
	}
	out := make(map[uint64]Sight, len(c.Brokers))
	for i := range c.Brokers {
		id := c.Brokers[i].ID
		var s Sight
		s.DownMS, s.Down = agreed(down[id], majority)
		s.UpMS, s.Up = agreed(up[id], majority)
		out[id] = s
	}
	return out
}

// selfUp is for how long a broker says that it has been up itself.
func selfUp(r Report) int64 {
	for _, s := range r.Peers {
		if s.Broker == r.From {
			return s.ForMS
		}
	}
	return 0
}

// agreed is the longest time that at least majority of the spans reach.
func agreed(spans []int64, majority int) (int64, bool) {
	if len(spans) < majority {
		return 0, false
	}
	slices.SortFunc(spans, func(a, b int64) int { return cmp.Compare(b, a) })
	return spans[majority-1], true
}

// Known is what feature levels brokers know, by broker, of those that reported.
func Known(reports []Report) map[uint64]uint32 {
	known := make(map[uint64]uint32, len(reports))
	for _, r := range reports {
		known[r.From] = max(r.Level, r.Knows)
	}
	return known
}

// Level is the feature level that the cluster rises to by itself: the newest that every broker which is
// not dead has reported. It is the present one while some have not reported.
func Level(c *config.Config, reports []Report) uint32 {
	known := map[uint64]uint32{}
	for _, r := range reports {
		known[r.From] = r.Level
	}
	level, any := uint32(0), false
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if b.State == config.Dead {
			continue
		}
		l, ok := known[b.ID]
		if !ok {
			return c.FeatureLevel
		}
		if !any || l < level {
			level, any = l, true
		}
	}
	return max(level, c.FeatureLevel)
}
