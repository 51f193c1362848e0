package epoch

import "sync/atomic"

// stats count what the owner does.
type stats struct {
	rounds, nacks, chosen, lost atomic.Uint64
}

// Figures reports counts by name. A change that meets nobody's takes one round; more are begun when proposers
// are in each other's way, or when the council doesn't answer.
func (c *Cluster) Figures() map[string]float64 {
	return map[string]float64{
		"rounds_total":           float64(c.stats.rounds.Load()),
		"nacks_total":            float64(c.stats.nacks.Load()),
		"proposals_chosen_total": float64(c.stats.chosen.Load()),
		"proposals_lost_total":   float64(c.stats.lost.Load()),
	}
}
