package placement

import "slices"

// level moves items between hosts until each is within its bounds, or until no
// more can be done. It serves replicas and preferred leaders alike.
//
// It ends. Let Φ be the sum over hosts of what each has above its upper bound
// and below its lower bound: a number that isn't negative. A step takes an item
// from a host above its upper bound to one below its upper bound, or from one
// above its lower bound to one below its lower bound; hosts in between keep
// their number. As lower ≤ upper, the giver's part of Φ does not grow, the
// taker's neither, and that of the one the step was made for falls by one. So
// there are at most Φ steps, and each is a search without repetition.
type level struct {
	load, lower, upper []int
	fuller             func(a, b int) int
	items              int

	// may says whether an item can go from one host to another; fresh, that it isn't
	// where it was before the plan, so that its going costs nothing; rank, how
	// much it prefers a host, 0 most.
	may   func(item, from, to int) bool
	fresh func(item, host int) bool
	rank  func(item, host int) int
	move  func(item, from, to int, why cause)
	what  string // what is counted

	freshOn []int // items by host
}

type hop struct{ item, from, to int }

func (l *level) run(host func(int) *Broker) {
	l.freshOn = make([]int, len(l.load))
	for h := range l.load {
		for i := range l.items {
			if l.fresh(i, h) {
				l.freshOn[h]++
			}
		}
	}
	order := make([]int, len(l.load)) // fullest first
	for h := range order {
		order[h] = h
	}
	for {
		slices.SortFunc(order, func(a, b int) int {
			if c := l.fuller(b, a); c != 0 {
				return c
			}
			return a - b
		})
		if !l.shed(order, host) && !l.raise(order, host) {
			return
		}
	}
}

// shed makes one step for the fullest host above its upper bound.
func (l *level) shed(order []int, host func(int) *Broker) bool {
	var over, room []int
	for _, h := range order {
		if l.load[h] > l.upper[h] {
			over = append(over, h)
		} else if l.load[h] < l.upper[h] {
			room = append(room, h)
		}
	}
	slices.Reverse(room)
	return l.step(over, room, func(from, _ int) cause {
		return l.cause(CodeOver, host(from), l.load[from], l.upper[from])
	})
}

// raise makes one step for the emptiest host below its lower bound.
func (l *level) raise(order []int, host func(int) *Broker) bool {
	var under, givers []int
	for _, h := range order {
		if l.load[h] < l.lower[h] {
			under = append(under, h)
		} else if l.load[h] > l.lower[h] {
			givers = append(givers, h)
		}
	}
	slices.Reverse(under)
	return l.step(givers, under, func(_, to int) cause {
		return l.cause(CodeUnder, host(to), l.load[to], l.lower[to])
	})
}

func (l *level) cause(code Code, b *Broker, have, want int) cause {
	return cause{code: code, id: b.ID, subject: b, have: have, want: want, what: l.what}
}

// step moves one item from one of the givers to one of the takers, the first
// named before the others: one that is on the move already, else any, else by
// a chain of several hosts.
func (l *level) step(givers, takers []int, why func(from, to int) cause) bool {
	if len(givers) == 0 || len(takers) == 0 {
		return false
	}
	for _, freshOnly := range []bool{true, false} {
		for _, to := range takers {
			for _, from := range givers {
				if freshOnly && l.freshOn[from] == 0 {
					continue
				}
				if item := l.best(from, to, freshOnly); item >= 0 {
					l.apply(hop{item, from, to}, why(from, to))
					return true
				}
			}
		}
	}
	return l.chain(givers, takers, why)
}

// best returns the item that may go, -1 when none may: rather one that costs nothing,
// rather the one that prefers the taker most and the giver least.
func (l *level) best(from, to int, freshOnly bool) int {
	best, bestCost, bestTo, bestFrom := -1, 0, 0, 0
	for i := range l.items {
		if !l.may(i, from, to) {
			continue
		}
		cost := 1
		if l.fresh(i, from) {
			cost = 0
		} else if freshOnly {
			continue
		}
		rankTo, rankFrom := l.rank(i, to), l.rank(i, from)
		if best < 0 || cost < bestCost || cost == bestCost &&
			(rankTo < bestTo || rankTo == bestTo && rankFrom > bestFrom) {
			best, bestCost, bestTo, bestFrom = i, cost, rankTo, rankFrom
		}
	}
	return best
}

// chain finds the shortest way from a giver to a taker over other hosts, each
// of which passes on another item than it gets. It is needed when the
// giver's items all have a replica on the takers already.
func (l *level) chain(givers, takers []int, why func(from, to int) cause) bool {
	via := make([]hop, len(l.load)) // how each host was reached
	reached := make([]bool, len(l.load))
	queue := slices.Clone(givers)
	for _, g := range givers {
		reached[g] = true
		via[g].item = -1
	}
	for at := 0; at < len(queue); at++ {
		from := queue[at]
		for to := range l.load {
			if reached[to] {
				continue
			}
			item := l.best(from, to, false)
			if item < 0 {
				continue
			}
			reached[to], via[to] = true, hop{item, from, to}
			if slices.Contains(takers, to) {
				return l.follow(via, to, why)
			}
			queue = append(queue, to)
		}
	}
	return false
}

// follow carries out a chain from its end, so that each host has room before it
// gets. A chain that moves one item twice is refused: racks may forbid the second once
// the first is done. Without racks and guards there is none, for then the first
// giver could have passed the item to the last taker, by a shorter chain.
func (l *level) follow(via []hop, end int, why func(from, to int) cause) bool {
	var hops []hop
	start := end
	for ; via[start].item >= 0; start = via[start].from {
		hops = append(hops, via[start])
	}
	for _, h := range hops {
		if slices.ContainsFunc(hops, func(o hop) bool { return o != h && o.item == h.item }) {
			return false
		}
	}
	c := why(start, end)
	for _, h := range hops {
		l.apply(h, c)
	}
	return true
}

func (l *level) apply(h hop, why cause) {
	if l.fresh(h.item, h.from) {
		l.freshOn[h.from]--
	}
	l.move(h.item, h.from, h.to, why)
	if l.fresh(h.item, h.to) {
		l.freshOn[h.to]++
	}
}
