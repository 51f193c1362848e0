package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// status of the cluster, as one of its brokers sees it.
func status(t *testing.T, b *brokertest.Member) wire.ClusterStatus {
	t.Helper()
	s, err := b.API().ClusterStatus(t.Context(), struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestJoinGrowsCouncil: brokers join a lone one, and the council grows with them.
func TestJoinGrowsCouncil(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 1)
	b1 := c.Brokers[0]
	b1.CreateTopic(wire.TopicSpec{Name: "before", Partitions: 2})
	load := brokertest.StartLoad(t, c.URLs(), "before", 1)
	for i := 2; i <= 5; i++ {
		m := c.Join(fmt.Sprintf("b%d", i))
		if got := len(status(t, m).Brokers); got != i {
			t.Errorf("%d brokers, %d are there", got, i)
		}
		want := map[int]int{2: 1, 3: 3, 4: 3, 5: 5}[i]
		brokertest.Eventually(t, fmt.Sprintf("a council of %d", want), func() bool { return len(status(t, b1).Council) == want })
	}
	createR3(t, c, "after", 3)
	load.More(20)
	load.Check(c.URLs())
	// A restart needs no list, and the address that it joined by means nothing any more.
	m := c.Member("b5")
	m.Stop()
	m.Start()
	c.InSync("after")
}

// TestJoinRefused: whom a cluster doesn't admit, and what it is told.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	// As a StatefulSet has it: the same settings for everybody.
	b4 := c.Join("b4", func(cfg *broker.Config) { cfg.InitialCluster = c.Initial() })
	t.Run("a name that is taken", func(t *testing.T) {
		m := c.Brokers[1]
		anyOf(t, startAll(t, b4.Config(func(c *broker.Config) { c.Name, c.DataDir, c.InitialCluster, c.OnListen = m.Name, t.TempDir(), "", nil })),
			"a broker named b2 is in the cluster and live", "give another name")
	})
	t.Run("an address that is taken", func(t *testing.T) {
		anyOf(t, startAll(t, b4.Config(func(c *broker.Config) { c.Name, c.DataDir, c.OnListen = "b5", t.TempDir(), nil })),
			"broker b4", "is live at the same address")
	})
	t.Run("another cluster's data", func(t *testing.T) {
		other := brokertest.Start(t)
		other.Stop()
		anyOf(t, startAll(t, b4.Config(func(c *broker.Config) {
			c.Name, c.DataDir, c.OnListen, c.AdvertisePeer, c.AdvertiseRaft = "b6", other.Dir(), nil, "", ""
		})), "can't join by", "belongs to cluster", "empty directory")
	})
	t.Run("an address that is none", func(t *testing.T) {
		errs := startAll(t, b4.Config(func(c *broker.Config) { c.Join = "b1" }))
		var bad *broker.ConfigError
		if !errors.As(errs[0], &bad) || bad.Key != "join" {
			t.Errorf("%v is no ConfigError about join", errs[0])
		}
	})
	if got := len(status(t, b4).Brokers); got != 4 {
		t.Errorf("%d brokers after all were refused, there were 4", got)
	}
}

// TestWipedBrokerJoinsAgain: it is a new incarnation under a fresh id, and the one before it
// stays, dead and under another name, as long as it holds replicas.
func TestWipedBrokerJoinsAgain(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	m := c.Member("b3")
	m.Stop()
	load.More(10)
	// With both settings it joins only because its disk is empty.
	m.Start(func(cfg *broker.Config) { cfg.DataDir, cfg.Join = t.TempDir(), "b3.peer:6222,b1.peer:6222" })
	names := map[string]string{}
	for _, b := range status(t, c.Brokers[0]).Brokers {
		names[b.Name] = b.ID
	}
	if names["b3"] != "4" {
		t.Errorf("brokers are %v; b3 should have id 4", names)
	}
	if _, still := names["b3~3"]; still && status(t, c.Brokers[0]).Epoch == 0 {
		t.Errorf("brokers are %v", names)
	}
	load.More(10)
	load.Check(c.URLs())
}

// TestRemovedBrokerStops: one that is up, and one that comes back later.
func TestRemovedBrokerStops(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	for _, name := range []string{"b4", "b5"} {
		c.Join(name)
	}
	away := c.Member("b5")
	away.Stop()
	for _, name := range []string{"b4", "b5"} {
		remove(t, c.Brokers[0], name)
	}
	up := c.Member("b4")
	brokertest.Eventually(t, "the removed broker stops", func() bool {
		select {
		case <-up.Done():
			return true
		default:
			return false
		}
	})
	var gone *broker.ExpelledError
	if err := up.Wait(); !errors.As(err, &gone) || !strings.Contains(err.Error(), "broker b4 (id 4) was removed") {
		t.Errorf("it stopped with %v", err)
	}
	up.Broker = nil
	for id, m := range map[uint64]*brokertest.Member{4: up, 5: away} {
		ctx, cancel := context.WithTimeout(t.Context(), brokertest.Wait)
		b, err := broker.Start(ctx, m.Config())
		cancel()
		if gone = nil; !errors.As(err, &gone) || gone.ID != id {
			t.Errorf("broker %d started after it was removed: %v", id, err)
			if err == nil {
				_ = b.Close(context.Background())
			}
		}
	}
}
