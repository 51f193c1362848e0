package broker_test

import (
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
)

// copied counts what moves and catching up have come to in all brokers: moves that ended, and bytes fetched.
func copied(t *testing.T, c *brokertest.Cluster) (moves, bytes int64) {
	t.Helper()
	for _, m := range c.Running() {
		moves += figure(t, m, "parley_moves_total")
		bytes += figure(t, m, "parley_catchup_fetched_bytes_total")
	}
	return moves, bytes
}

// TestFlappingBroker: a broker comes and goes. As long as it is never away for dead-after nothing moves and nothing is copied. Where it is given up
// each time, its replicas are made anew once, and it gets none back before it has stayed.
func TestFlappingBroker(t *testing.T) {
	t.Parallel()
	flap := func(t *testing.T, deadAfter time.Duration) (*brokertest.Cluster, *brokertest.Member, func(down bool)) {
		c := brokertest.StartCluster(t, 4, quickTrash, quick(deadAfter), func(c *broker.Config) {
			c.CutBytes, c.CheckpointEvery = laggardCut, 100*time.Millisecond
		})
		createR3(t, c, "t", 4)
		fill(t, c.Brokers[0], "t", 96)
		settled(t, c.Brokers[0], "b4", 2, 4)
		c.InSync("t")
		b4 := c.Member("b4")
		return c, b4, func(down bool) {
			t.Helper()
			b4.Sever(down)
			brokertest.Eventually(t, "all see it come and go", func() bool {
				for _, m := range c.Brokers[:3] {
					if m.API().Runtime.Reach(c.Epoch().BrokerNamed("b4").ID).Up == down {
						return false
					}
				}
				return true
			})
		}
	}
	t.Run("shorter than dead-after", func(t *testing.T) {
		t.Parallel()
		const deadAfter = 10 * time.Second // all in all it is away for about as long
		c, _, set := flap(t, deadAfter)
		moves, bytes := copied(t, c)
		epoch := c.Epoch().Epoch
		load := brokertest.StartLoad(t, c.Brokers[0].URL(), "t", 1)
		for range 5 {
			set(true)
			load.More(20)
			set(false)
		}
		c.InSync("t")
		// A replica that lacks what its leader has cut meanwhile fetches that, and no more; nothing moves.
		m, b := copied(t, c)
		t.Logf("%d bytes were fetched", b-bytes)
		if m != moves || c.Epoch().Epoch != epoch {
			t.Errorf("%d partitions moved, by epochs %d to %d", m-moves, epoch, c.Epoch().Epoch)
		}
		load.Stop()
	})
	t.Run("around dead-after", func(t *testing.T) {
		if testing.Short() {
			t.Skip("it takes as long as it takes to die and to be believed again, several times")
		}
		t.Parallel()
		const deadAfter = time.Second // the least that is allowed
		c, _, set := flap(t, deadAfter)
		b1 := c.Brokers[0]
		had := int64(held(t, b1)["b4"])
		moves, bytes := copied(t, c)
		most, back := had, time.Time{}
		for range 2 {
			set(true)
			if !back.IsZero() && time.Since(back) > deadAfter { // on a busy machine it stayed for long enough to be given something
				most += 2 * had
			}
			brokertest.Eventually(t, "it is dead, and has nothing", func() bool { return stateOf(t, b1, "b4") == "dead" && held(t, b1)["b4"] == 0 })
			back = time.Now()
			set(false)
			brokertest.Eventually(t, "it is back", func() bool { return stateOf(t, b1, "b4") == "active" })
		}
		m, b := copied(t, c)
		if m-moves < had || m-moves > most {
			t.Errorf("%d partitions moved while it came and went, it had %d, and %d may move", m-moves, had, most)
		}
		all := int64(96 * laggardValue) // of the topic
		if b-bytes > all*5/4*most/had {
			t.Errorf("%d bytes were copied, the topic has %d", b-bytes, all)
		}
		settled(t, b1, "b4", 2, 4) // it stays
		c.InSync("t")
		m2, b2 := copied(t, c)
		t.Logf("%d replicas were made anew by %d moves and %d bytes; it got its share by %d and %d", had, m-moves, b-bytes, m2-m, b2-b)
		if b2 == bytes {
			t.Error("no log was cut, nothing was copied: this shows nothing")
		}
		if m2-m > 4 || b2-b > all*5/4 {
			t.Errorf("it got its share back by %d moves and %d bytes", m2-m, b2-b)
		}
	})
}
