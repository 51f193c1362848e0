package placement

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHashIsPinned holds the points: another hash would place every new partition
// elsewhere, and brokers of two versions would disagree.
func TestHashIsPinned(t *testing.T) {
	t.Parallel()
	// The second output of splitmix64 from seed 0 is mix(2·golden), the first mix(golden): published values.
	two := uint64(golden)
	two += golden
	for in, want := range map[uint64]uint64{golden: 0xe220a8397b1dcdaf, two: 0x6e789e6aa1b965f4} {
		if got := mix(in); got != want {
			t.Errorf("mix(%#x) = %#x, want %#x", in, got, want)
		}
	}
	got := []uint64{pointOfShard(1), pointOfShard(2), pointOfVnode(1, 0), pointOfVnode(1, 1), pointOfVnode(2, 0)}
	want := []uint64{0xc4acc4dd2350de4c, 0x3ffea88a0f507f5a, 0x39120602411eb79a, 0xe1197b4d2a400f21, 0x141d6c2e8c78db7c}
	if !slices.Equal(got, want) {
		t.Errorf("points are %#x, want %#x", got, want)
	}
	order := NewRing(equalBrokers(10)).Order(1)
	if want := []uint64{6, 2, 5, 4, 7, 8, 1, 3, 9, 10}; !slices.Equal(order, want) {
		t.Errorf("order of shard 1 is %v, want %v", order, want)
	}
}

// TestPropertyOrder compares with a walk over all virtual nodes.
func TestPropertyOrder(t *testing.T) {
	eachSeed(t, func(t *testing.T, r *rand.Rand) {
		s := randomShape(r)
		brokers := s.input(r).Brokers
		ring := NewRing(brokers)
		vnodes := map[uint64]int{}
		for i, h := range ring.hosts {
			vnodes[h.ID] = len(ring.vnodes[i])
		}
		shard := r.Uint64()
		want := spreadOrder(brokers, walkAll(brokers, vnodes, shard))
		r.Shuffle(len(brokers), func(i, j int) { brokers[i], brokers[j] = brokers[j], brokers[i] })
		if got := NewRing(brokers).Order(shard); !slices.Equal(got, want) {
			t.Errorf("shard %d on %+v: %v, want %v", shard, brokers, got, want)
		}
	})
}

func TestVirtualNodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		weights []uint32
		want    []int
	}{
		{[]uint32{100}, []int{200}},
		{[]uint32{1, 1}, []int{128, 128}},
		{[]uint32{100, 50, 200}, []int{100, 50, 200}},
		{[]uint32{100, 300}, []int{50, 150}},
		{[]uint32{1, 1000}, []int{1, 250}},
		{[]uint32{1 << 31, 1 << 30, 1}, []int{128, 64, 1}},
	} {
		var brokers []Broker
		for i, w := range c.weights {
			brokers = append(brokers, Broker{ID: uint64(i + 1), Weight: w})
		}
		var got []int
		for _, v := range NewRing(brokers).vnodes {
			got = append(got, len(v))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("weights %v: %v virtual nodes, want %v", c.weights, got, c.want)
		}
	}
	brokers := equalBrokers(3)
	brokers[0].State, brokers[1].Weight = Draining, 0
	if got := NewRing(brokers).Order(7); !slices.Equal(got, []uint64{3}) {
		t.Errorf("order %v holds brokers that take no replicas", got)
	}
}

// TestRingAlone shows what the ring does without bounds, for the choice of the number of
// virtual nodes (docs/adr/0050), and that a join takes from others and moves nothing
// between them.
func TestRingAlone(t *testing.T) {
	t.Parallel()
	for _, n := range []int{5, 10, 100} {
		ring, joined := NewRing(equalBrokers(n)), NewRing(equalBrokers(n+1))
		load := map[uint64]int{}
		taken := 0
		for shard := range uint64(figureP) {
			before, after := ring.Order(shard)[:figureR], joined.Order(shard)[:figureR]
			for _, id := range before {
				load[id]++
			}
			newcomers := 0
			for _, id := range after {
				if !slices.Contains(before, id) {
					newcomers++
					if id != uint64(n+1) {
						t.Errorf("shard %d moved from %v to %v, which the newcomer is no reason for", shard, before, after)
					}
				}
			}
			taken += newcomers
		}
		most := 0
		for _, l := range load {
			most = max(most, l)
		}
		mean := float64(figureP*figureR) / float64(n)
		optimum := float64(figureP*figureR) / float64(n+1)
		t.Logf("%3d brokers: fullest %.3f of the mean, a join takes %.3f of the optimum", n, float64(most)/mean, float64(taken)/optimum)
		if float64(most) > 1.6*mean || math.Abs(float64(taken)-optimum) > 0.5*optimum {
			t.Errorf("%d brokers: fullest %d of mean %.1f, a join takes %d of %.1f", n, most, mean, taken, optimum)
		}
	}
}
