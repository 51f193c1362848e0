package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Whatever happens, what is committed is handled, and keys are in order under a token.
func TestHandOversAtRandom(t *testing.T) {
	t.Parallel()
	seeds := uint64(20)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		for _, order := range []Order{PerKey, Unordered, PerPartition} {
			t.Run(fmt.Sprint(seed, "/", order), func(t *testing.T) {
				t.Parallel()
				groupBubble(t, seed+1, faults{delay: 2 * time.Millisecond}, map[string]int{"t": 3}, func(ctx context.Context, m *model, c *Client) {
					const n = 400
					for p := range 3 {
						m.fillKeys("t", p, n, 7, None)
					}
					var mu sync.Mutex
					done := map[string]bool{}
					last := map[string]int64{}
					rng := m.rng
					dice := func(k int) int { m.mu.Lock(); defer m.mu.Unlock(); return rng.IntN(k) }
					one := func(ctx context.Context, msg *Message) error {
						k := fmt.Sprint(msg.Partition, "/", string(msg.Key), "/", msg.Token)
						mu.Lock()
						if at, ok := last[k]; ok && msg.Offset <= at && msg.Deliveries == 1 && order != Unordered {
							t.Errorf("%s: offset %d after %d", k, msg.Offset, at)
						}
						last[k] = msg.Offset
						mu.Unlock()
						time.Sleep(time.Duration(dice(6000)) * time.Microsecond)
						if ctx.Err() != nil {
							return ctx.Err()
						}
						if dice(400) == 0 {
							time.Sleep(120 * time.Millisecond)
						}
						switch dice(40) {
						case 0:
							return errors.New("no")
						case 1:
							_ = msg.Nak(time.Duration(dice(300)) * time.Millisecond)
							return nil
						case 2:
							return RetryAfter(time.Duration(dice(300))*time.Millisecond, errors.New("no"))
						}
						mu.Lock()
						done[fmt.Sprint(msg.Partition, "/", msg.Offset)] = true
						mu.Unlock()
						return nil
					}
					check := func() {
						m.mu.Lock()
						defer m.mu.Unlock()
						mu.Lock()
						defer mu.Unlock()
						for p := range 3 {
							if g := m.groupAt("t", p, "g"); g != nil {
								for o := range g.committed {
									if !done[fmt.Sprint(p, "/", o)] {
										t.Errorf("%d/%d is committed (%d) and not handled", p, o, g.committed)
									}
								}
							}
						}
					}
					opts := []SubscribeOption{Concurrency(1 + dice(5)), KeepOrder(order), HandlerTimeout(100 * time.Millisecond)}
					member := func() *Subscription {
						if seed%2 == 0 {
							return mustSubscribe(t, ctx, c, "g", one, opts...)
						}
						s, err := c.SubscribeBatch(ctx, "t", "g", func(ctx context.Context, ms []*Message) error {
							var errs error
							for _, msg := range ms {
								if err := one(ctx, msg); err != nil {
									errs = err
									if order != Unordered {
										return err
									}
								} else {
									_ = msg.Ack()
								}
								if order != Unordered && atomic.LoadUint32(&msg.state) == stateNak {
									return errors.New("stop here")
								}
							}
							return errs
						}, append([]SubscribeOption{BatchSize(1 + dice(9))}, opts...)...)
						if err != nil {
							t.Fatal(err)
						}
						return s
					}
					all := []*Subscription{member()}
					for range 12 {
						time.Sleep(time.Duration(dice(400)) * time.Millisecond)
						if len(all) > 1 && dice(2) == 0 || len(all) > 3 {
							i := dice(len(all))
							began := time.Now()
							to, cancel := ctx, context.CancelFunc(func() {})
							if dice(3) == 0 {
								to, cancel = context.WithTimeout(ctx, time.Duration(1+dice(100))*time.Millisecond)
							}
							if err := all[i].Close(to); err != nil && to == ctx {
								t.Error(err)
							}
							cancel()
							if took := time.Since(began); took > 10*time.Second {
								t.Errorf("Close took %v", took)
							}
							all = append(all[:i], all[i+1:]...)
						} else {
							all = append(all, member())
						}
						check()
					}
					began := time.Now()
					for {
						if ok, _ := m.handled("t", "g"); ok {
							break
						}
						if time.Since(began) > 2*time.Minute {
							_, why := m.handled("t", "g")
							t.Fatalf("not done: %s", why)
						}
						time.Sleep(50 * time.Millisecond)
						check()
					}
					for _, s := range all {
						if err := s.Close(ctx); err != nil {
							t.Error(err)
						}
					}
					check()
				})
			})
		}
	}
}

// A handler's result and a settlement by another goroutine meet.
func TestSettledFromTwoSides(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]func(*Message) error{
		"nak and nil": func(msg *Message) error { go func() { _ = msg.Nak(time.Millisecond) }(); return nil },
		"ack and error": func(msg *Message) error {
			go func() { _ = msg.Ack() }()
			return RetryAfter(time.Millisecond, errors.New("no"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				const n = 20000
				var handled atomic.Int64
				s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
					handled.Add(1)
					if msg.Deliveries == 1 {
						return how(msg)
					}
					return nil
				}, Concurrency(4), KeepOrder(Unordered))
				m.fillKeys("t", 0, n, 50, None)
				began := time.Now()
				for time.Since(began) < 5*time.Minute {
					if ok, _ := m.handled("t", "g"); ok {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				if ok, why := m.handled("t", "g"); !ok {
					t.Errorf("%s", why)
				}
				s.mu.Lock()
				for _, cl := range s.claims {
					if tn := cl.tenure.Load(); tn != nil {
						t.Log(fmt.Sprint("unsettled ", tn.unsettled.Load(), " waiting ", tn.waiting.Load(), " handled ", handled.Load()))
						if tn.unsettled.Load() != 0 {
							t.Errorf("unsettled %d", tn.unsettled.Load())
						}
					}
				}
				s.mu.Unlock()
				hurry, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				if err := s.Close(hurry); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		})
	}
}
