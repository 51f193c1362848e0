package placement

import (
	"cmp"
	"math/bits"
	"slices"
)

// A share is what a host should hold: the exact fraction num/den of replicas.
//
// It is the total by weight wherever that can be held. It can't when a heavy
// broker would need two replicas of one partition, or when a small rack must hold
// one replica of each: then the share is the nearest to it that can, and
// the others divide what is left by weight. Without this, bounds would
// ask for what racks and factors forbid, and all brokers would be measured wrongly.
type share struct{ num, den uint64 }

func (s share) floor() int { return int(s.num / s.den) }

func (s share) ceil() int { return int((s.num + s.den - 1) / s.den) }

// upper is max(ceil(share), floor(1.05·share)).
func (s share) upper() int { return max(s.ceil(), int(s.num*105/(s.den*100))) }

// lower is floor(0.95·share).
func (s share) lower() int { return int(s.num * 95 / (s.den * 100)) }

// fixed is the share in units of 2^-20, to compare by.
func (s share) fixed() uint64 {
	hi, lo := bits.Mul64(s.num, 1<<20)
	q, _ := bits.Div64(hi, lo, s.den)
	return max(1, q)
}

func (s share) float() float64 { return float64(s.num) / float64(s.den) }

// proportion divides a total by weight alone.
func proportion(total int, weights []uint64) []share {
	sum := uint64(0)
	for _, w := range weights {
		sum += w
	}
	shares := make([]share, len(weights))
	for i, w := range weights {
		shares[i] = share{uint64(total) * w, sum}
	}
	return shares
}

// levels returns the fewest and the most replicas of one partition that each
// rack holds when m are spread over racks of these sizes as evenly as can be.
func levels(m int, sizes []int) (least, most []int) {
	least, most = make([]int, len(sizes)), make([]int, len(sizes))
	level, held := 0, 0 // each rack holds min(size, level)
	for {
		next := 0
		for _, s := range sizes {
			next += min(s, level+1)
		}
		if next > m || next == held {
			break
		}
		level, held = level+1, next
	}
	for r, s := range sizes {
		least[r], most[r] = min(s, level), min(s, level)
		if held < m {
			most[r] = min(s, level+1)
		}
	}
	return least, most
}

// shares divides the replicas over the hosts. counts maps how many replicas a
// partition has on hosts to how many such partitions there are.
func shares(counts map[int]int, weights []uint64, rackOf []int, racks int) []share {
	out := make([]share, len(weights))
	sizes := make([]int, racks)
	rackWeight := make([]uint64, racks)
	for h, r := range rackOf {
		sizes[r]++
		rackWeight[r] += weights[h]
	}
	least, most := make([]uint64, racks), make([]uint64, racks)
	perRack := make(map[int][]int, len(counts)) // m -> most of one partition in each rack
	total := uint64(0)
	for m, n := range counts {
		lo, hi := levels(m, sizes)
		perRack[m] = hi
		total += uint64(m * n)
		for r := range racks {
			least[r] += uint64(lo[r] * n)
			most[r] += uint64(hi[r] * n)
		}
	}
	for r, x := range apportion(total, rackWeight, least, most) {
		var members []int
		for h := range rackOf {
			if rackOf[h] == r {
				members = append(members, h)
			}
		}
		slices.SortStableFunc(members, func(a, b int) int { return cmp.Compare(weights[b], weights[a]) })
		// cap[k] is the most that k members can hold together, times x.den.
		limit := make([]uint64, len(members)+1)
		for k := range limit {
			held := uint64(0)
			for m, n := range counts {
				held += uint64(min(perRack[m][r], k) * n)
			}
			limit[k] = min(x.num, held*x.den)
		}
		divide(limit, x.den, members, weights, out)
	}
	return out
}

// apportion divides the total over racks by weight, each between its least
// and most, exactly. Racks are fixed at a limit until no other breaks one:
// those that are too low first when they lack more than the others exceed, so
// that what was fixed stays right. At least one is fixed a round.
func apportion(total uint64, weights, least, most []uint64) []share {
	out := make([]share, len(weights))
	fixed := make([]bool, len(weights))
	for range len(weights) + 1 {
		sum := uint64(0)
		for r, w := range weights {
			if !fixed[r] {
				sum += w
			}
		}
		if sum == 0 {
			break
		}
		var lacking, exceeding uint64
		for r, w := range weights {
			if fixed[r] {
				continue
			}
			out[r] = share{total * w, sum}
			if floor := least[r] * sum; out[r].num < floor {
				lacking += floor - out[r].num
			} else if ceil := most[r] * sum; out[r].num > ceil {
				exceeding += out[r].num - ceil
			}
		}
		if lacking == 0 && exceeding == 0 {
			break
		}
		taken := uint64(0)
		for r := range weights {
			if fixed[r] {
				continue
			}
			at := out[r].num
			switch {
			case exceeding >= lacking && at > most[r]*sum:
				at = most[r]
			case exceeding < lacking && at < least[r]*sum:
				at = least[r]
			default:
				continue
			}
			out[r], fixed[r] = share{at, 1}, true
			taken += at
		}
		total -= min(total, taken)
	}
	return out
}

// divide gives each member of a rack its part by weight, where the k heaviest
// hold at most limit[k]/den together. The k that is limited most gets exactly
// that, by weight; the rest divide what is left in the same way (the lower
// convex hull of limit over weight: the lexicographically fairest base of a polymatroid,
// Fujishige 1980).
func divide(limit []uint64, den uint64, members []int, weights []uint64, out []share) {
	for start := 0; start < len(members); {
		best, sum := start, uint64(0)
		var bestLimit, bestSum uint64
		for k := start; k < len(members); k++ {
			sum += weights[members[k]]
			l := limit[k+1] - limit[start]
			if best == start || l*bestSum <= bestLimit*sum {
				best, bestLimit, bestSum = k+1, l, sum
			}
		}
		for _, h := range members[start:best] {
			out[h] = share{weights[h] * bestLimit, bestSum * den}
		}
		start = best
	}
}
