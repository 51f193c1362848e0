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
// when its holder is dead or drains, or sits in a rack with others while a rack has
// nobody, and somebody is fit to take it. Seats are spread over racks as far as that goes.
func (c *Config) StepCouncil(fit func(id uint64) bool) bool {
	seats := map[string]int{} // by rack
	for _, id := range c.Council {
		if b := c.Broker(id); b != nil {
			seats[b.Rack]++
		}
	}
	alive := 0
	var taker *Broker // of the rack with the fewest seats, the lowest id
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if b.State != Dead {
			alive++
		}
		if b.State == Active && !slices.Contains(c.Council, b.ID) && fit(b.ID) && (taker == nil || seats[b.Rack] < seats[taker.Rack]) {
			taker = b
		}
	}
	want := CouncilSize(alive)
	leaver := -1 // the seat that is best given up: dead, draining, not fit, in a crowded rack, highest id
	rank := func(id uint64) (rank, crowd int) {
		b := c.Broker(id)
		switch {
		case b == nil:
			return 3, 0
		case b.State == Dead:
			return 3, seats[b.Rack]
		case b.State == Draining:
			return 2, seats[b.Rack]
		case !fit(id):
			return 1, seats[b.Rack]
		}
		return 0, seats[b.Rack]
	}
	worst, crowd := 0, 0
	for i, id := range c.Council {
		if r, n := rank(id); leaver < 0 || r > worst || r == worst && n >= crowd {
			leaver, worst, crowd = i, r, n
		}
	}
	swap := func() {
		c.Council = append(slices.Delete(slices.Clone(c.Council), leaver, leaver+1), taker.ID)
	}
	switch {
	case want == 0:
		return false
	case len(c.Council) > want:
		c.Council = slices.Delete(slices.Clone(c.Council), leaver, leaver+1)
	case taker == nil:
		return false
	case len(c.Council) < want:
		c.Council = append(slices.Clone(c.Council), taker.ID)
	case worst >= 2, worst == 0 && crowd > 1 && seats[taker.Rack] == 0:
		swap()
	default:
		return false
	}
	slices.Sort(c.Council)
	return true
}
