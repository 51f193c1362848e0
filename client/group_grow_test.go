package client_test

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/partition/record"
)

// Partitions are added under a running group: the members keep what they have, under the same tokens and without a pause, and only
// what is new is assigned.
func TestGroupKeepsItsPartitionsWhenTheTopicGrows(t *testing.T) {
	t.Parallel()
	b := brokertest.StartCluster(t, 3).Brokers[0]
	c := connect(t, b.URL())
	ctx := deadline(t)
	createTopic(t, c, "jobs", 8)
	group := "g0" // one whose anchor would be another one of sixteen
	for i := 1; record.PartitionOf([]byte(group), 8) == record.PartitionOf([]byte(group), 16); i++ {
		group = fmt.Sprint("g", i)
	}
	var mu sync.Mutex
	revoked := map[int32]int{}
	last, most := map[int32]time.Time{}, map[int32]time.Duration{}
	var members []*client.Subscription
	for i := range 3 {
		s, err := c.Subscribe(ctx, "jobs", group, func(_ context.Context, m *client.Message) error {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			if at, ok := last[m.Partition]; ok {
				most[m.Partition] = max(most[m.Partition], now.Sub(at))
			}
			last[m.Partition] = now
			return nil
		}, client.MemberName(fmt.Sprint("m", i)), client.OnRevoked(func(_ context.Context, l client.Lease, _ bool) {
			mu.Lock()
			defer mu.Unlock()
			revoked[l.Partition]++
		}))
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, s)
	}
	leases := func() map[int32]client.Lease {
		all := map[int32]client.Lease{}
		for _, s := range members {
			for _, l := range s.Leases() {
				all[l.Partition] = l
			}
		}
		return all
	}
	settled := func(n int) bool {
		all := leases()
		d, err := c.DescribeGroup(ctx, "jobs", group)
		if err != nil || len(all) != n || len(d.Partitions) != n || len(d.Members) != 3 {
			return false
		}
		for _, m := range d.Members {
			if len(m.Partitions) < n/3 || len(m.Partitions) > n/3+1 {
				return false
			}
			for _, p := range m.Partitions {
				if d.Partitions[p].Member != m.Name {
					return false
				}
			}
		}
		return true
	}
	brokertest.Eventually(t, "eight partitions are shared", func() bool { return settled(8) })
	before := leases()
	generation := func() uint64 {
		d, err := c.DescribeGroup(ctx, "jobs", group)
		if err != nil {
			t.Fatal(err)
		}
		return d.Generation
	}
	was := generation()
	// A load on all partitions, as far as there are any.
	var stop atomic.Bool
	var parts atomic.Int32
	parts.Store(8)
	load := make(chan error, 1)
	go func() {
		load <- func() error {
			p, err := c.NewProducer(ctx, "jobs", client.PartitionBy(client.ByRecord))
			if err != nil {
				return err
			}
			defer func() { _ = p.Close(ctx) }()
			for i := int32(0); !stop.Load(); i++ {
				if _, err := p.Publish(ctx, client.Record{Partition: i % parts.Load()}); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	flowing := func(n int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return len(last) == n }
	}
	brokertest.Eventually(t, "all flow", flowing(8))
	mu.Lock()
	clear(revoked)
	mu.Unlock()
	if _, err := c.AlterTopic(ctx, client.TopicAlter{Name: "jobs", Partitions: 16}); err != nil {
		t.Fatal(err)
	}
	// All know of it at once, not when they happen to ask for metadata again.
	p, err := c.NewProducer(ctx, "jobs")
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Close(ctx)
	parts.Store(16)
	brokertest.Eventually(t, "sixteen partitions are shared", func() bool { return settled(16) })
	brokertest.Eventually(t, "all sixteen flow", flowing(16))
	after := leases()
	maps.DeleteFunc(after, func(p int32, _ client.Lease) bool { return p >= 8 })
	for p, l := range before {
		if after[p].Token != l.Token {
			t.Errorf("partition %d: token %d before, %d after", p, l.Token, after[p].Token)
		}
	}
	mu.Lock()
	if len(revoked) > 0 {
		t.Errorf("partitions were taken away: %v", revoked)
	}
	t.Logf("longest pauses %v", most)
	mu.Unlock()
	if now := generation(); now != was+1 {
		t.Errorf("generation %d after %d", now, was)
	}
	// Who comes now finds the same anchor.
	s, err := c.Subscribe(ctx, "jobs", group, func(context.Context, *client.Message) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if now := generation(); now != was+2 {
		t.Errorf("generation %d after a fourth member joined, want %d", now, was+2)
	}
	stop.Store(true)
	if err := <-load; err != nil {
		t.Errorf("load: %v", err)
	}
	for _, s := range append(members, s) {
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}
