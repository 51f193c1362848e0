package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// A handler that takes an hour keeps its record: the member renews its lease, or extends the delivery, all the while; nobody
// else gets the record, other records go on, and after the hour it is acked. With HandlerTimeout the member waits no longer than that: the context ends and the record is tried again.
func TestHandlerThatTakesAnHour(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Exclusive, Shared, KeyOrdered} {
		for _, limit := range []time.Duration{0, 10 * time.Minute} {
			t.Run(fmt.Sprintf("%s, limit %v", mode, limit), func(t *testing.T) {
				t.Parallel()
				groupBubbleFor(t, 3*time.Hour, 1, faults{delay: time.Millisecond}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
					m.wakes, m.looks = true, time.Second // what waits for an hour needn't look often
					var mu sync.Mutex
					tries := map[int64]int{}
					members := map[string]int{}
					var cause error
					opts := []SubscribeOption{Mode(mode), Concurrency(2)}
					if limit > 0 {
						opts = append(opts, HandlerTimeout(limit))
					}
					var began, ended time.Time
					member := func(name string) *Subscription {
						return mustSubscribe(t, ctx, c, "g", func(hctx context.Context, msg *Message) error {
							mu.Lock()
							tries[msg.Offset]++
							first := msg.Offset == 0 && tries[0] == 1
							if msg.Offset == 0 {
								members[name]++
							}
							mu.Unlock()
							if !first {
								return nil
							}
							began = time.Now()
							select {
							case <-time.After(time.Hour):
							case <-hctx.Done():
								cause = context.Cause(hctx)
							}
							ended = time.Now()
							return hctx.Err()
						}, opts...)
					}
					one, two := member("one"), member("two")
					time.Sleep(time.Minute) // who has the partition is settled
					m.fillKeys("t", 0, 20, 20, None)
					want := time.Hour
					if limit > 0 {
						want = limit
					}
					time.Sleep(want - time.Minute) // to look every 20 ms for an hour takes long
					eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
					mu.Lock()
					defer mu.Unlock()
					took := ended.Sub(began)
					if took < want || took > want+time.Second || time.Since(ended) > time.Minute {
						t.Errorf("the handler took %v, the group's end came %v later", took, time.Since(ended))
					}
					for off, n := range tries {
						again := off == 0 && limit > 0
						if n != 1 && !again || again && n != 2 {
							t.Errorf("offset %d was tried %d times", off, n)
						}
					}
					if limit == 0 && (cause != nil || len(members) != 1) || limit > 0 && !errors.Is(cause, ErrHandlerTimeout) {
						t.Errorf("ended by %v; %d members had it", cause, len(members))
					}
					if n := one.Stats().Refused + two.Stats().Refused; n != 0 {
						t.Errorf("%d acks or renewals were refused", n)
					}
					if g := m.groupAt("t", 0, "g"); len(tries) != 20 || limit == 0 && mode != Exclusive && g.tries[0] != 1 {
						t.Errorf("%d of 20 handled, the slow one delivered %d times", len(tries), g.tries[0])
					}
				})
			})
		}
	}
}
