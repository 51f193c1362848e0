package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Epoch is the newest configuration, as the first running broker knows it.
func (c *Cluster) Epoch() *config.Config {
	c.t.Helper()
	return c.Running()[0].API().Store.Current()
}

// Propose has a change decided by the first running broker.
func (c *Cluster) Propose(change func(next *config.Config) error) *config.Config {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	next, err := c.Running()[0].API().Store.Propose(ctx, change)
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		c.t.Fatalf("propose an epoch: %v", err)
	}
	return next
}

// Move has a partition move to brokers of these names, the preferred leader's first. It
// doesn't wait until that is carried out.
func (c *Cluster) Move(topic string, number int, to ...string) *config.Config {
	c.t.Helper()
	return c.Propose(func(next *config.Config) error {
		var brokers []uint64
		for _, name := range to {
			b := next.BrokerNamed(name)
			if b == nil {
				return fmt.Errorf("no broker %q", name)
			}
			brokers = append(brokers, b.ID)
		}
		next.Change = fmt.Sprintf("partition %s/%d moves to %v", topic, number, to)
		return next.SetTarget(next.Topic(topic).ID, number, brokers)
	})
}

// Partition is a partition as the newest epoch has it.
func (c *Cluster) Partition(topic string, number int) config.Partition {
	c.t.Helper()
	return c.Epoch().Topic(topic).Partitions[number]
}

// Moved waits until nothing of a topic moves and all its replicas are in sync.
func (c *Cluster) Moved(topic string) {
	c.t.Helper()
	Eventually(c.t, "no partition of "+topic+" moves any more", func() bool {
		for _, m := range c.Running() {
			t := m.API().Store.Current().Topic(topic)
			if t == nil || slices.ContainsFunc(t.Partitions, func(p config.Partition) bool { return p.Moving() }) {
				return false
			}
		}
		return true
	})
	c.InSync(topic)
}
