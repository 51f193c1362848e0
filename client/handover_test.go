package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// A second member joins and the first one leaves while some keys are far behind others: a position is handed over, and yet
// nothing is handled twice, because gaps below it are filled before.
func TestHandOverRepeatsNothing(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]SubscribeOption{
		"by key":       {Concurrency(4)},
		"by key, few":  {Concurrency(2)},
		"any":          {Concurrency(4), KeepOrder(Unordered)},
		"by partition": {Concurrency(4), KeepOrder(PerPartition)},
	} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", batches ", batches), func(t *testing.T) {
				t.Parallel()
				groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 4}, func(ctx context.Context, m *model, c *Client) {
					const n = 600
					var mu sync.Mutex
					handled := map[string]int{}
					last := map[string]int64{}
					see := func(msg *Message) time.Duration {
						mu.Lock()
						defer mu.Unlock()
						handled[fmt.Sprint(msg.Partition, "/", msg.Offset)]++
						key := fmt.Sprint(msg.Partition, string(msg.Key))
						if at, ok := last[key]; ok && msg.Offset <= at && name != "any" {
							t.Errorf("%s: offset %d after %d", key, msg.Offset, at)
						}
						last[key] = msg.Offset
						if string(msg.Key) == "k0" {
							return 50 * time.Millisecond
						}
						return time.Millisecond
					}
					each := func(_ context.Context, msg *Message) error { time.Sleep(see(msg)); return nil }
					many := func(_ context.Context, ms []*Message) error {
						for _, msg := range ms {
							time.Sleep(see(msg))
						}
						return nil
					}
					member := func() *Subscription {
						if !batches {
							return mustSubscribe(t, ctx, c, "g", each, opts...)
						}
						s, err := c.SubscribeBatch(ctx, "t", "g", many, append([]SubscribeOption{BatchSize(7)}, opts...)...)
						if err != nil {
							t.Fatal(err)
						}
						return s
					}
					for p := range 4 {
						m.fillKeys("t", p, n, 10, None)
					}
					one := member()
					time.Sleep(300 * time.Millisecond)
					two := member()
					time.Sleep(500 * time.Millisecond)
					if err := one.Close(ctx); err != nil {
						t.Error(err)
					}
					all := func() int {
						mu.Lock()
						defer mu.Unlock()
						return len(handled)
					}
					for end := time.Now().Add(5 * time.Minute); all() < 4*n && time.Now().Before(end); {
						time.Sleep(100 * time.Millisecond)
					}
					if err := two.Close(ctx); err != nil {
						t.Error(err)
					}
					if one, two := one.Stats().Handled, two.Stats().Handled; one == 0 || two == 0 {
						t.Errorf("handled %d and %d", one, two)
					}
					mu.Lock()
					defer mu.Unlock()
					for r, times := range handled {
						if times > 1 {
							t.Errorf("%s was handled %d times", r, times)
						}
					}
					if len(handled) != 4*n {
						t.Errorf("%d of %d were handled", len(handled), 4*n)
					}
				})
			})
		}
	}
}

// A hand-over doesn't wait for a record that is tried again later.
func TestHandOverWithAFailure(t *testing.T) {
	t.Parallel()
	for _, order := range []Order{PerKey, Unordered} {
		groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
			m.fillKeys("t", 0, 200, 10, None)
			s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
				if msg.Offset == 100 {
					return RetryAfter(time.Hour, errors.New("not now"))
				}
				time.Sleep(10 * time.Millisecond)
				return nil
			}, Concurrency(3), KeepOrder(order))
			time.Sleep(550 * time.Millisecond) // some 150 are handled
			began := time.Now()
			if err := s.Close(ctx); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if at := m.groupAt("t", 0, "g").committed; at != 100 {
				t.Errorf("order %v: committed %d", order, at)
			}
		})
	}
}

// Nothing follows a record that ends its subscription, of its run neither.
func TestNothingFollowsTheFailureThatStops(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 1000, 1, None)
		var highest int64
		s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			if highest = msg.Offset; highest == 500 {
				return errors.New("poison")
			}
			return nil
		}, StopOnFailure(), MaxDeliveries(1))
		<-s.Done()
		if highest != 500 {
			t.Errorf("%d was handled", highest)
		}
	})
}
