package upkeep

import (
	"fmt"
	"strings"

	"github.com/parleymq/parley/replication/epoch/config"
)

// Facts are what a decision is made of, beside the configuration.
type Facts struct {
	Reports     []Report
	DeadAfterMS int64
	// SettleMS is for how long a broker must have been up before it gets replicas; Settle has
	// what is different for some.
	SettleMS int64
	Settle   map[uint64]int64
	// Leaderless are partitions, by shard, that have had no leader for some time.
	Leaderless map[uint64]bool
	// Superseded is the mark in the names of brokers whose name another one took over.
	Superseded string
}

// Decision is what is to be changed about a configuration.
type Decision struct {
	Deaths
	Level   uint32 // the feature level, when it rises; else 0
	Removed uint64 // a superseded broker that holds nothing any more, or 0
	Moves   []Move // targets to be set
	Even    bool   // replicas are even now
}

// Decide says what a cluster needs next.
func Decide(c *config.Config, f Facts) (Decision, error) {
	sights := Agree(c, f.Reports)
	d := Decision{Deaths: Judge(c, sights, f.DeadAfterMS, f.Superseded)}
	if l := Level(c, f.Reports); l > c.FeatureLevel {
		d.Level = l
	}
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if d.Removed == 0 && b.State != config.Active && strings.Contains(b.Name, f.Superseded) && c.Holds(b.ID) == 0 && len(c.Council) > 1 {
			d.Removed = b.ID
		}
	}
	if c.FeatureLevel < config.LevelMoves {
		return d, nil
	}
	o := Options{Shy: map[uint64]bool{}, Down: map[uint64]bool{}, Leaderless: f.Leaderless, Paused: d.Paused()}
	for i := range c.Brokers {
		b := &c.Brokers[i]
		s := sights[b.ID]
		if s.Down {
			o.Down[b.ID] = true
		}
		settle, special := f.Settle[b.ID]
		if !special {
			settle = f.SettleMS
		}
		if b.State == config.Active && (!s.Up || s.UpMS < settle) {
			o.Shy[b.ID] = true
		}
	}
	moves, settled, err := Next(c, o)
	if err != nil {
		return d, err
	}
	d.Moves, d.Even = moves, settled && c.Uneven > 0
	return d, nil
}

// Any says that there is something to change.
func (d *Decision) Any() bool {
	return len(d.Dead) > 0 || len(d.Returned) > 0 || d.Level > 0 || d.Removed > 0 || len(d.Moves) > 0 || d.Even
}

// Apply makes the changes, and says in the configuration what they are. It was decided on the
// configuration that this one is a copy of.
func (d *Decision) Apply(c *config.Config) error {
	var texts []string
	moves := ""
	say := func(format string, args ...any) { texts = append(texts, fmt.Sprintf(format, args...)) }
	if d.Level > 0 {
		c.FeatureLevel = d.Level
		say("feature level %d", d.Level)
	}
	for _, id := range d.Dead {
		c.Broker(id).State = config.Dead
		say("broker %s is dead", c.Broker(id).Name)
	}
	for _, id := range d.Returned {
		c.Broker(id).State = config.Active
		c.EvenOut()
		say("broker %s is back", c.Broker(id).Name)
	}
	if d.Removed > 0 {
		say("broker %s, which another one replaced, is removed", c.Broker(d.Removed).Name)
		c.RemoveBroker(d.Removed)
	}
	for i, m := range d.Moves {
		if err := c.SetTarget(m.Topic, m.Number, m.Brokers); err != nil {
			return fmt.Errorf("move partition %s/%d: %w", m.Name, m.Number, err)
		}
		text := ""
		switch {
		case i == 0:
			text = fmt.Sprintf("%s: %s/%d to %s", m.Why, m.Name, m.Number, Names(c, m.Brokers))
		case i == len(d.Moves)-1:
			text = fmt.Sprintf(" and %d more", i)
		default:
			continue
		}
		moves += text
	}
	if moves != "" {
		say("%s", moves)
	}
	if d.Even {
		c.Uneven = 0
		say("replicas are even")
	}
	text := strings.Join(texts, "; ")
	c.Change = text[:min(len(text), config.MaxText)]
	return nil
}

// Names lists brokers as people know them.
func Names(c *config.Config, ids []uint64) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = fmt.Sprint(id)
		if b := c.Broker(id); b != nil {
			names[i] = b.Name
		}
	}
	return strings.Join(names, ",")
}
