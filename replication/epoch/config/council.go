package config

import "slices"

// CouncilSize is how many of n brokers decide: one of fewer than three, then
// three, then five, so that it is odd and small.
func CouncilSize(n int) int {
	switch {
	case n < 3:
		return min(n, 1)
	case n < MaxCouncil:
		return 3
	}
	return MaxCouncil
}

// StepCouncil changes at most one seat of the council towards CouncilSize of the
// brokers that are not dead, and reports whether it changed one. fit says of a
// broker that it is up and knows the newest epoch: only such a one is given a
// seat, and one that is not is the first to lose it. A seat is given away only
// when its holder is dead or drains, and somebody is fit to take it.
func (c *Config) StepCouncil(fit func(id uint64) bool) bool {
	alive := 0
	taker := uint64(0)
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if b.State != Dead {
			alive++
		}
		if b.State == Active && taker == 0 && !slices.Contains(c.Council, b.ID) && fit(b.ID) {
			taker = b.ID
		}
	}
	want := CouncilSize(alive)
	leaver := -1 // the seat that is best given up: dead, draining, not fit, highest id
	rank := func(id uint64) int {
		b := c.Broker(id)
		switch {
		case b == nil || b.State == Dead:
			return 3
		case b.State == Draining:
			return 2
		case !fit(id):
			return 1
		}
		return 0
	}
	for i, id := range c.Council {
		if leaver < 0 || rank(id) >= rank(c.Council[leaver]) {
			leaver = i
		}
	}
	switch {
	case want == 0:
		return false
	case len(c.Council) > want:
		c.Council = slices.Delete(slices.Clone(c.Council), leaver, leaver+1)
	case taker == 0:
		return false
	case len(c.Council) < want:
		c.Council = append(slices.Clone(c.Council), taker)
	case rank(c.Council[leaver]) >= 2:
		c.Council = append(slices.Delete(slices.Clone(c.Council), leaver, leaver+1), taker)
	default:
		return false
	}
	slices.Sort(c.Council)
	return true
}
