package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// The partitions' leaders change in the middle of a bad day of a group, again and again: everything is handled all the same, or
// is a dead letter.
func TestFailoverInABadDay(t *testing.T) {
	t.Parallel()
	days := map[string]func(msg *Message) error{
		"panics":  func(msg *Message) error { panic("at the disco") },
		"refuses": func(msg *Message) error { return errors.New("not now") },
		"later":   func(msg *Message) error { return RetryAfter(300*time.Millisecond, nil) },
		"slow":    func(msg *Message) error { time.Sleep(4 * time.Second); return nil },
		"poison":  func(msg *Message) error { return Terminate("poison") },
	}
	for _, mode := range []GroupMode{Exclusive, Shared, KeyOrdered} {
		for name, bad := range days {
			t.Run(fmt.Sprint(mode, " ", name), func(t *testing.T) {
				t.Parallel()
				groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 2, "dlq-t-g": 1}, func(ctx context.Context, m *model, c *Client) {
					const n = 60
					for p := range 2 {
						m.fillKeys("t", p, n, 10, None)
					}
					db := newFencedDB()
					opts := []SubscribeOption{Mode(mode), Session(3 * time.Second), Backoff(100 * time.Millisecond)}
					if mode != Exclusive {
						opts = append(opts, AckWait(3*time.Second))
					}
					h := func(hctx context.Context, msg *Message) error {
						time.Sleep(20 * time.Millisecond)
						if name == "poison" && msg.Offset%20 == 7 {
							db.apply(msg, fmt.Sprint(msg.Partition, "/", msg.Offset), false)
							return bad(msg)
						}
						if msg.Offset%20 == 7 && msg.Deliveries == 1 {
							if err := bad(msg); err != nil {
								return err
							}
						}
						db.apply(msg, fmt.Sprint(msg.Partition, "/", msg.Offset), false)
						return nil
					}
					mustSubscribe(t, ctx, c, "g", h, opts...)
					leaves := mustSubscribe(t, ctx, c, "g", h, opts...)
					for i := range 4 {
						time.Sleep(300 * time.Millisecond)
						m.failover("t")
						if i == 1 {
							if err := leaves.Close(ctx); err != nil {
								t.Error(err)
							}
						}
					}
					eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
					db.check(t, 2, n)
				})
			})
		}
	}
}
