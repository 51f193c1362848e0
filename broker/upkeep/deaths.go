package upkeep

import (
	"strings"

	"github.com/parleymq/parley/replication/epoch/config"
)

// Deaths says whose state is to change, because of what the council sees.
type Deaths struct {
	Dead     []uint64 // to be declared dead
	Returned []uint64 // dead ones that are back
	// Missing are all that look dead: that have been away for half of the time that it takes,
	// and those that were declared dead and still hold replicas. Half, because brokers that went
	// away together are not missed at the same moment. With more than Limit of them nothing is declared or healed: it is more likely
	// that the network is down than that so many machines are, and what is copied then
	// hurts those that are left.
	Missing []uint64
	Limit   int
}

// Paused says that too many look dead.
func (d *Deaths) Paused() bool { return len(d.Missing) > d.Limit }

// MissingLimit is how many of n brokers may look dead at a time: one, or a quarter.
func MissingLimit(n int) int { return max(1, n/4) }

// Judge says who is dead: whom a majority of the council has found unreachable for deadAfterMS.
func Judge(c *config.Config, sights map[uint64]Sight, deadAfterMS int64, superseded string) Deaths {
	var d Deaths
	counted := 0
	var dying []uint64
	for i := range c.Brokers {
		b := &c.Brokers[i]
		s := sights[b.ID]
		lost := s.Down && s.DownMS >= deadAfterMS
		if b.State == config.Dead {
			switch {
			case s.Up && !strings.Contains(b.Name, superseded):
				d.Returned = append(d.Returned, b.ID)
				counted++
			case c.Holds(b.ID) > 0:
				d.Missing = append(d.Missing, b.ID)
				counted++
			}
			continue // one that holds nothing any more is healed
		}
		counted++
		if b.State == config.Draining {
			continue // it is being emptied already
		}
		if lost {
			dying = append(dying, b.ID)
		}
		if s.Down && s.DownMS >= deadAfterMS/2 {
			d.Missing = append(d.Missing, b.ID)
		}
	}
	d.Limit = MissingLimit(counted)
	if !d.Paused() {
		d.Dead = dying
	}
	return d
}
