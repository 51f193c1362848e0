package placement

import "math"

// spreadRacks moves replicas out of crowded racks where partitions stand
// uneven: racks came, went or were renamed.
//
// It ends: each move takes one replica from a rack with at least two more than
// the one it goes to, so the sum of the squares of the racks' counts falls.
func (p *planner) spreadRacks() {
	if len(p.rackSize) < 2 {
		return
	}
	for i := range p.parts {
		for p.spreadOnce(i) {
		}
	}
}

func (p *planner) spreadOnce(i int) bool {
	t := &p.parts[i]
	fewest := math.MaxInt
	for r, size := range p.rackSize {
		if n := p.inRack(i, r); n < size {
			fewest = min(fewest, n)
		}
	}
	if t.frozen || fewest == math.MaxInt {
		return false
	}
	from := -1
	crowded := -1 // a slot that should leave and may not
	for _, s := range t.slots {
		if s.host < 0 || p.inRack(i, p.rackOf[s.host]) < fewest+2 {
			continue
		}
		if !p.guard(t, s.broker) {
			crowded = s.host
			continue
		}
		if from < 0 || p.crowds(i, s.host, from) {
			from = s.host
		}
	}
	if from < 0 {
		if crowded >= 0 {
			b := &p.hosts[crowded]
			p.hold(t, cause{code: CodeDeferred, id: b.ID, subject: b})
		}
		return false
	}
	b := &p.hosts[from]
	p.move(i, from, p.pick(i), cause{code: CodeRack, id: b.ID, subject: b, have: p.inRack(i, p.rackOf[from]), want: fewest})
	return true
}

// crowds says that the replica on host a leaves rather than that on b: from the rack
// that holds more, then a replica that moves anyway, then the fuller broker.
func (p *planner) crowds(i, a, b int) bool {
	if x, y := p.inRack(i, p.rackOf[a]), p.inRack(i, p.rackOf[b]); x != y {
		return x > y
	}
	if x, y := p.stood(i, a), p.stood(i, b); x != y {
		return !x
	}
	if c := p.fuller(a, b); c != 0 {
		return c > 0
	}
	return p.rankOf(i, a) > p.rankOf(i, b)
}

// balance brings every host within its bounds, as far as racks and guards let it.
func (p *planner) balance() {
	l := level{
		load: p.load, lower: p.lower, upper: p.upper, fuller: p.fuller, items: len(p.parts), what: "replicas",
		may: func(i, from, to int) bool {
			return p.holds(i, from) && !p.holds(i, to) && p.rackAllows(i, from, to) && p.guard(&p.parts[i], p.hosts[from].ID)
		},
		fresh: func(i, h int) bool { return p.holds(i, h) && !p.stood(i, h) },
		rank:  p.rankOf,
		move:  p.move,
	}
	l.run(func(h int) *Broker { return &p.hosts[h] })
}

// rackAllows says that a move leaves a partition's racks as even as they are. If
// they are even and the giver's rack holds one more than the taker's, the two only change
// roles; if it holds fewer than that, they end two apart with room in the emptier.
func (p *planner) rackAllows(i, from, to int) bool {
	a, b := p.rackOf[from], p.rackOf[to]
	return a == b || p.inRack(i, a) > p.inRack(i, b)
}
