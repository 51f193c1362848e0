package placement

import (
	"cmp"
	"slices"
)

// vnodesHeaviest is what the heaviest broker has at least, below twice as many;
// the others have theirs in proportion. Weights are shifted rather
// than divided to get there, so that a broker's points stay where they are or
// are joined by others when the heaviest one comes or goes. See docs/adr/0050.
const vnodesHeaviest = 128

// maxWeight bounds the weights that are reckoned with: heavier ones are
// scaled down together. With MaxBrokers and MaxReplicas it keeps every
// product of the bounds below 2^64.
const maxWeight = 1 << 14

// Seeds keep brokers' and partitions' points apart: small numbers are used
// for the ids of both.
const (
	seedBroker = 0x6272_6f6b_6572_2d31 // "broker-1"
	seedShard  = 0x7368_6172_642d_2d31 // "shard--1"
	golden     = 0x9e37_79b9_7f4a_7c15
)

// mix is the finalizer of splitmix64 (Steele, Lea and Flood, 2014; Stafford's
// variant 13): a bijection in which each bit of the input turns each of the
// output with a chance of one half. Its values are pinned: another hash moves
// every new partition elsewhere.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58_476d_1ce4_e5b9
	x ^= x >> 27
	x *= 0x94d0_49bb_1331_11eb
	x ^= x >> 31
	return x
}

func pointOfVnode(broker uint64, vnode int) uint64 {
	return mix(mix(broker^seedBroker) + uint64(vnode)*golden)
}

func pointOfShard(shard uint64) uint64 { return mix(mix(shard ^ seedShard)) }

// Ring is the circle of all 64-bit points, on which each broker that takes
// replicas has virtual nodes in proportion to its weight. It is read-only and safe for
// concurrent use.
type Ring struct {
	hosts  []Broker   // by id
	vnodes [][]uint64 // points of each host, ascending
}

// NewRing makes the ring of those brokers that take replicas.
func NewRing(brokers []Broker) *Ring {
	r := &Ring{}
	for i := range brokers {
		if brokers[i].host() {
			r.hosts = append(r.hosts, brokers[i])
		}
	}
	slices.SortFunc(r.hosts, func(a, b Broker) int { return cmp.Compare(a.ID, b.ID) })
	weights := scaled(r.hosts)
	heaviest := uint64(1)
	for _, w := range weights {
		heaviest = max(heaviest, w)
	}
	up, down := 0, 0
	for heaviest<<up < vnodesHeaviest {
		up++
	}
	for heaviest>>down >= 2*vnodesHeaviest {
		down++
	}
	r.vnodes = make([][]uint64, len(r.hosts))
	for i, w := range weights {
		points := make([]uint64, max(1, w<<up>>down))
		for v := range points {
			points[v] = pointOfVnode(r.hosts[i].ID, v)
		}
		slices.Sort(points)
		r.vnodes[i] = points
	}
	return r
}

// scaled returns the hosts' weights, brought below maxWeight.
func scaled(hosts []Broker) []uint64 {
	heaviest := uint64(0)
	for i := range hosts {
		heaviest = max(heaviest, uint64(hosts[i].Weight))
	}
	down := 0
	for heaviest>>down >= maxWeight {
		down++
	}
	weights := make([]uint64, len(hosts))
	for i := range hosts {
		weights[i] = max(1, uint64(hosts[i].Weight)>>down)
	}
	return weights
}

type stop struct {
	distance uint64 // clockwise from the partition's point
	host     int
}

// walk returns the hosts as a walk clockwise from the shard's point meets them first. Each
// host's nearest virtual node is searched for, which costs less than the walk
// when one host has few.
func (r *Ring) walk(shard uint64, stops []stop) []stop {
	from := pointOfShard(shard)
	stops = stops[:0]
	for h, points := range r.vnodes {
		i, _ := slices.BinarySearch(points, from)
		if i == len(points) {
			i = 0
		}
		stops = append(stops, stop{points[i] - from, h})
	}
	slices.SortFunc(stops, func(a, b stop) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.host, b.host))
	})
	return stops
}

// Order returns a shard's order of preference: the brokers as a walk clockwise
// meets them, each once, the first of each rack before the second of any. A
// partition alone in a cluster without bounds would live on the first ones.
func (r *Ring) Order(shard uint64) []uint64 {
	stops := r.walk(shard, nil)
	round := make([]int, len(r.hosts)) // how many of its rack the walk met before
	met := make(map[string]int)
	for _, s := range stops {
		rack := r.hosts[s.host].Rack
		round[s.host] = met[rack]
		met[rack]++
	}
	slices.SortStableFunc(stops, func(a, b stop) int { return cmp.Compare(round[a.host], round[b.host]) })
	order := make([]uint64, len(stops))
	for i, s := range stops {
		order[i] = r.hosts[s.host].ID
	}
	return order
}
