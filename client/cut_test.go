package client_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
)

// Links between brokers are cut, the client's stand: what a broker that is cut off says of
// the leaders is old, and whoever believes it waits as long as the cut lasts.
func TestClusterLinksAreCut(t *testing.T) {
	t.Parallel()
	const (
		partitions = 6
		most       = 5 * time.Second  // without acks
		patience   = 12 * time.Second // that the cut lasts when acks don't come back
	)
	cluster := brokertest.StartCluster(t, 3)
	for _, how := range []struct {
		name, leader string // b1 is the client's own broker
		cut          func(bool)
	}{
		{"own broker is cut off", "b1", func(cut bool) { cluster.Member("b1").Isolate(cut) }},
		{"another is cut off", "b2", func(cut bool) { cluster.Member("b2").Isolate(cut) }},
		{"own broker and leader are cut from each other", "b3", func(cut bool) {
			if cut {
				cluster.Network.Cut("b1", "b3")
			} else {
				cluster.Network.Heal("b1", "b3")
			}
		}},
	} {
		t.Run(how.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var e events
			c := connect(t, cluster.Brokers[0].URL(), client.WithLog(e.log))
			topic := "cut-" + how.leader
			createTopic(t, c, topic, partitions)
			cluster.InSync(topic)
			part := int32(-1)
			brokertest.Eventually(t, how.leader+" leads a partition", func() bool {
				for i := range partitions {
					if leaderOf(t, c, topic, i) == how.leader {
						part = int32(i)
						return true
					}
				}
				return false
			})
			p, err := c.NewProducer(ctx, topic, client.PartitionBy(client.ByRecord))
			if err != nil {
				t.Fatal(err)
			}
			l := &pacedLoad{p: p, part: part}
			l.start(ctx, t)
			before := l.await(t, 50, brokertest.Wait)

			how.cut(true)
			at := time.Now()
			l.await(t, before+500, patience) // at least that many ticks of the load later
			gap := l.longest(at)
			how.cut(false)
			if gap > most {
				t.Errorf("no acks for %v, want less than %v", gap, most)
			}
			t.Logf("longest time without acks: %v", gap)
			sent := l.stop(ctx, t)

			r, err := c.NewReader(ctx, topic, client.UntilEnd())
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for m, err := range r.Messages(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("%06d", n); string(m.Value) != want || m.Partition != part {
					t.Fatalf("offset %d of partition %d holds %s, want %s in %d: lost, stored twice or out of order", m.Offset, m.Partition, m.Value, want, part)
				}
				n++
			}
			if n != sent {
				t.Errorf("read %d of %d records", n, sent)
			}
			cluster.InSync(topic)
			if t.Failed() {
				e.mu.Lock()
				t.Logf("the client's log:\n%s", strings.Join(slices.Clone(e.all), "\n"))
				e.mu.Unlock()
			}
		})
	}
}

// pacedLoad sends numbered records to one partition, one every 5 ms, whether or not the
// last ones are acked.
type pacedLoad struct {
	p    *client.Producer
	part int32
	halt chan struct{}
	done sync.WaitGroup
	sent int

	mu   sync.Mutex
	acks []time.Time // guarded by mu
}

func (l *pacedLoad) start(ctx context.Context, t *testing.T) {
	l.halt = make(chan struct{})
	l.done.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ; ; l.sent++ {
			select {
			case <-tick.C:
			case <-l.halt:
				return
			}
			value := fmt.Appendf(nil, "%06d", l.sent)
			err := l.p.SendFunc(ctx, client.Record{Value: value, Partition: l.part}, func(ack client.Ack, err error) {
				if err != nil {
					t.Errorf("publish %s: %v", value, err)
					return
				}
				l.mu.Lock()
				l.acks = append(l.acks, time.Now())
				l.mu.Unlock()
			})
			if err != nil {
				t.Errorf("send %s: %v", value, err)
				return
			}
		}
	})
}

// await waits for that many acks in all, and returns how many there are.
func (l *pacedLoad) await(t *testing.T, acks int, within time.Duration) (n int) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		n = len(l.acks)
		l.mu.Unlock()
		if n >= acks {
			break
		}
	}
	return n
}

// longest is the longest time without an ack since then.
func (l *pacedLoad) longest(since time.Time) (gap time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := since
	for _, at := range l.acks {
		if at.After(last) {
			gap, last = max(gap, at.Sub(last)), at
		}
	}
	return max(gap, time.Since(last))
}

// stop ends the load when everything is acked, and returns how much was sent.
func (l *pacedLoad) stop(ctx context.Context, t *testing.T) int {
	t.Helper()
	close(l.halt)
	l.done.Wait()
	if err := l.p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	return l.sent
}
