package broker_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// quick makes the times of upkeep short.
func quick(deadAfter time.Duration) brokertest.Option {
	return func(c *broker.Config) {
		c.DeadAfter, c.BalanceAfter, c.UpkeepEvery = deadAfter, 200*time.Millisecond, 100*time.Millisecond
	}
}

// held is how many replicas each broker has by the newest epoch.
func held(t *testing.T, b *brokertest.Member) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, d := range status(t, b).Brokers {
		n[d.Name] = d.Replicas
	}
	return n
}

func stateOf(t *testing.T, b *brokertest.Member, name string) string {
	t.Helper()
	for _, d := range status(t, b).Brokers {
		if d.Name == name {
			return d.State
		}
	}
	return "gone"
}

// settled waits until nothing moves, replicas are even, and a broker has as many as it is to have: that they are uneven
// is only seen some time after it came.
func settled(t *testing.T, b *brokertest.Member, name string, least, most int) {
	t.Helper()
	var got map[string]int
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("replicas were last %v", got)
		}
	})
	brokertest.Eventually(t, fmt.Sprintf("%s has %d to %d replicas, they are even and nothing moves", name, least, most), func() bool {
		s := status(t, b)
		got = held(t, b)
		return s.Moving == 0 && !s.Uneven && least <= got[name] && got[name] <= most
	})
}

func drain(t *testing.T, b *brokertest.Member, name string) (wire.BrokerChange, error) {
	t.Helper()
	return b.API().BrokerDrain(t.Context(), wire.NameRequest{Name: name})
}

// remove removes a broker, as soon as it may be.
func remove(t *testing.T, b *brokertest.Member, name string) {
	t.Helper()
	brokertest.Eventually(t, "broker "+name+" is removed", func() bool {
		r, err := b.API().BrokerRemove(t.Context(), wire.NameRequest{Name: name})
		var e *wire.Error
		if err != nil && errors.As(err, &e) && !e.Retriable {
			t.Fatalf("remove broker %s: %v", name, err)
		}
		return err == nil && r.Change == "removed"
	})
}

// TestJoinedBrokerGetsItsShare: by itself, under load, and after that the one that it was made
// room by can leave.
func TestJoinedBrokerGetsItsShare(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, quick(time.Minute))
	createR3(t, c, "t", 8)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	b1 := c.Brokers[0]
	c.Join("b4")
	settled(t, b1, "b4", 6, 6) // of 24 on four brokers
	c.InSync("t")
	load.More(20)

	if r, err := drain(t, b1, "b2"); err != nil || r.Change != "draining" {
		t.Fatalf("%+v, %v", r, err)
	}
	remove(t, b1, "b2")
	if got := held(t, b1); got["b1"] != 8 || got["b3"] != 8 || got["b4"] != 8 || len(got) != 3 {
		t.Errorf("%v", got)
	}
	c.Forget("b2")
	c.InSync("t")
	load.More(20)
	load.Check(c.URLs())
}

// TestDrainRefused: what nobody could take over stays where it is.
func TestDrainRefused(t *testing.T) {
	t.Parallel()
	t.Run("the last one", func(t *testing.T) {
		t.Parallel()
		b := brokertest.Start(t)
		for name, call := range map[string]func() (wire.BrokerChange, error){
			"drained": func() (wire.BrokerChange, error) {
				return b.API().BrokerDrain(t.Context(), wire.NameRequest{Name: "b1"})
			},
			"only one": func() (wire.BrokerChange, error) {
				return b.API().BrokerRemove(t.Context(), wire.NameRequest{Name: "b1"})
			},
			"there is no broker \"b9\"": func() (wire.BrokerChange, error) {
				return b.API().BrokerRemove(t.Context(), wire.NameRequest{Name: "b9"})
			},
		} {
			if r, err := call(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%+v, %v; want %q", r, err, name)
			}
		}
	})
	t.Run("the only live copy", func(t *testing.T) {
		t.Parallel()
		c := brokertest.StartCluster(t, 3, quick(time.Minute))
		b1 := c.Brokers[0]
		b1.CreateTopic(wire.TopicSpec{Name: "two", Partitions: 3, Replicas: 2})
		c.InSync("two")
		c.Brokers[2].Stop()
		alone := []string{}
		for _, p := range c.Describe("two").Partitions {
			if slices.Contains(p.Replicas, "b2") && slices.Contains(p.Replicas, "b3") {
				alone = append(alone, "two/"+string(rune('0'+p.Partition)))
			}
		}
		if len(alone) == 0 {
			t.Fatal("no partition is on b2 and b3")
		}
		brokertest.Eventually(t, "b3 is missed", func() bool {
			_, err := drain(t, b1, "b2")
			return err != nil && strings.Contains(err.Error(), "only live copy") && strings.Contains(err.Error(), alone[0])
		})
		if r, err := b1.API().BrokerRemove(t.Context(), wire.NameRequest{Name: "b2"}); err == nil || !strings.Contains(err.Error(), "drain it first") {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestDeadBrokerIsHealed: its replicas are whole again elsewhere, and when it comes back
// it gets its share and none of what it had is taken for good.
func TestDeadBrokerIsHealed(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 4, quick(time.Second))
	createR3(t, c, "t", 8)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	b1, b4 := c.Brokers[0], c.Brokers[3]
	before := held(t, b1)["b4"]
	if before == 0 {
		t.Fatal("b4 has nothing")
	}
	stopped := time.Now()
	b4.Stop()
	brokertest.Eventually(t, "b4 is dead and has nothing", func() bool {
		return stateOf(t, b1, "b4") == "dead" && held(t, b1)["b4"] == 0
	})
	if took := time.Since(stopped); took < time.Second {
		t.Errorf("given up after %v, dead-after is a second", took)
	}
	load.More(20)
	b4.Start()
	brokertest.Eventually(t, "b4 is active", func() bool { return stateOf(t, b1, "b4") == "active" })
	settled(t, b1, "b4", 5, 7)
	c.InSync("t")
	load.More(20)
	load.Check(c.URLs())
}

// TestTooManyDead: nothing is healed, and health says why.
func TestTooManyDead(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 5, quick(10*time.Second))
	createR3(t, c, "t", 5)
	b1 := c.Brokers[0]
	brokertest.Eventually(t, "a council of five", func() bool { return len(status(t, b1).Council) == 5 })
	settled(t, b1, "b1", 3, 3) // of 15 on five
	before := held(t, b1)
	// To be killed takes each its time: all at once they are silent by being cut off. One may still be noticed at once, as its
	// connections break, and the other after the mesh's three to four seconds of silence: less than half of the time that makes them dead.
	for _, m := range c.Brokers[3:] {
		m.Isolate(true)
	}
	var stopping sync.WaitGroup
	for _, m := range c.Brokers[3:] {
		stopping.Go(m.Kill)
	}
	stopping.Wait()
	brokertest.Eventually(t, "the alarm", func() bool {
		for _, m := range c.Running() { // whoever is asked
			h, err := m.API().ClusterHealth(t.Context(), struct{}{})
			if err != nil || !slices.ContainsFunc(h.Problems, func(p string) bool { return strings.Contains(p, "2 brokers look dead (b4,b5)") }) {
				return false
			}
		}
		return true
	})
	if now := held(t, b1); !maps.Equal(now, before) || stateOf(t, b1, "b4") != "active" || stateOf(t, b1, "b5") != "active" {
		t.Errorf("replicas %v, before %v; b4 is %s, b5 %s", now, before, stateOf(t, b1, "b4"), stateOf(t, b1, "b5"))
	}
	c.Brokers[3].Isolate(false)
	c.Brokers[3].Start()
	brokertest.Eventually(t, "the one that is left is healed", func() bool {
		return stateOf(t, b1, "b5") == "dead" && held(t, b1)["b5"] == 0
	})
}

// TestFeatureLevelRises: when every broker knows the newer level, and not before. Until then what
// needs it is refused, and nothing else is any different.
func TestFeatureLevelRises(t *testing.T) {
	t.Parallel()
	old := func(c *broker.Config) { c.FeatureLevel, c.AutoLevel = -1, true }
	c := brokertest.StartCluster(t, 3, quick(time.Minute), old)
	createR3(t, c, "t", 2)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	for i, m := range c.Brokers {
		if s := status(t, c.Brokers[0]); s.FeatureLevel != 0 {
			t.Fatalf("feature level %d with %d of 3 brokers upgraded", s.FeatureLevel, i)
		}
		if _, err := drain(t, c.Brokers[0], "b3"); err == nil || !strings.Contains(err.Error(), "feature level 0") {
			t.Errorf("drain: %v", err)
		}
		load.More(5)
		m.Stop()
		m.Start(func(c *broker.Config) { c.FeatureLevel = 0 })
		c.InSync("t")
	}
	brokertest.Eventually(t, "the newest feature level", func() bool { return status(t, c.Brokers[0]).FeatureLevel == config.Level })
	load.More(5)
	load.Check(c.URLs())
	// One that knows less is not let in any more.
	late := c.Add("b4", old)
	anyOf(t, startAll(t, late.Config()), fmt.Sprint("feature level ", config.Level), "use a newer version")
}

// TestFeatureLevelWaits: without AutoLevel it stays where it is though all know more, until somebody says so; and that is
// refused while one doesn't know it, or can't be asked.
func TestFeatureLevelWaits(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3, quick(time.Minute), func(c *broker.Config) { c.FeatureLevel = -1 })
	b1 := c.Brokers[0]
	raise := func(dry bool) (wire.LevelChange, error) {
		return b1.API().ClusterLevel(t.Context(), wire.LevelRequest{To: config.Level, DryRun: dry})
	}
	for _, m := range c.Brokers[:2] {
		m.Stop()
		m.Start(func(c *broker.Config) { c.FeatureLevel = 0 })
	}
	for name, dry := range map[string]bool{"a dry run": true, "a raise": false} {
		brokertest.Eventually(t, name+" names the broker that is too old", func() bool {
			res, err := raise(dry)
			text := res.Blocked
			if err != nil {
				text = err.Error()
			}
			return strings.Contains(text, "b3 knows up to 0")
		})
	}
	c.Brokers[2].Stop()
	if _, err := raise(false); err == nil || !strings.Contains(err.Error(), "did not say") {
		t.Errorf("with b3 away: %v", err)
	}
	c.Brokers[2].Start(func(c *broker.Config) { c.FeatureLevel = 0 })
	// Each broker has led the keeping by now, or could have: what matters is that rounds pass with all of them knowing more.
	brokertest.Eventually(t, "health reminds of it", func() bool {
		h, err := b1.API().ClusterHealth(t.Context(), struct{}{})
		return err == nil && len(h.Warnings) > 0 && strings.Contains(strings.Join(h.Warnings, "; "), "parley cluster raise-level")
	})
	if res, err := raise(true); err != nil || res.Change != "planned" || len(res.Brings) != config.Level || status(t, b1).FeatureLevel != 0 {
		t.Errorf("dry run: %+v %v, level %d", res, err, status(t, b1).FeatureLevel)
	}
	if res, err := raise(false); err != nil || res.Change != "raised" || status(t, b1).FeatureLevel != config.Level {
		t.Errorf("raised: %+v %v, level %d", res, err, status(t, b1).FeatureLevel)
	}
	if res, err := raise(false); err != nil || res.Change != "unchanged" {
		t.Errorf("raised again: %+v %v", res, err)
	}
}

// TestMetricsOfUpkeep: what an alarm can be made of.
func TestMetricsOfUpkeep(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, quick(time.Minute))
	for name, want := range map[string]uint64{`parley_brokers{state="active"}`: 1, `parley_brokers{state="dead"}`: 0, "parley_brokers_missing": 0, "parley_healing_paused": 0,
		"parley_partitions_moving": 0, "parley_feature_level": config.Level, "parley_replicas_uneven": 0, "parley_council_members": 1} {
		if got := metric(t, b.Addresses().HTTP, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}
