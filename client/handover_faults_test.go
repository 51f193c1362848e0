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

// unpluggable is another client, whose line can be pulled.
func unpluggable(m *model, c *Client) (*Client, *unplugged) {
	other := m.client()
	m.onUp = c.connected
	dead := &unplugged{model: m}
	other.publishes.base = dead
	other.dialRead = func(context.Context) (exchange, error) { return dead, nil }
	return other, dead
}

// A lease is lost while a handler works that returns nil after.
func TestLostWhileHandling(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.wakes = true
		m.fillKeys("t", 0, 1, 1, None)
		var handled atomic.Int32
		started := make(chan struct{}, 10)
		mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			started <- struct{}{}
			time.Sleep(3 * time.Second)
			handled.Add(1)
			return nil
		}, Session(time.Second))
		<-started
		m.mu.Lock()
		g := m.groupAt("t", 0, "g")
		m.index++
		g.holder, g.token, g.until = "another", m.index, time.Now().Add(time.Second)
		m.mu.Unlock()
		began := time.Now()
		eventually(t, ctx, "handled", func() (bool, string) { return handled.Load() >= 2, "" })
		t.Logf("again after %v", time.Since(began))
		if time.Since(began) > 15*time.Second {
			t.Errorf("it took %v", time.Since(began))
		}
	})
}

// Cut off in the middle of filling gaps: nothing is begun once the session is over.
func TestHandOverIsCutOff(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		const session = 2 * time.Second
		m.wakes = true
		m.fillKeys("t", 0, 400, 10, None)
		other, dead := unpluggable(m, c)
		var cut atomic.Int64
		var mu sync.Mutex
		late := 0
		var latest time.Duration
		h := func(_ context.Context, msg *Message) error {
			if at := cut.Load(); at != 0 {
				mu.Lock()
				if d := time.Duration(time.Now().UnixNano() - at); d > session+time.Second {
					late++
					latest = max(latest, d)
				}
				mu.Unlock()
			}
			if string(msg.Key) == "k0" {
				time.Sleep(500 * time.Millisecond)
			}
			time.Sleep(time.Millisecond)
			return nil
		}
		s, err := other.Subscribe(ctx, "t", "g", h, Concurrency(3), Session(session))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		closed := make(chan struct{})
		go func() { _ = s.Close(ctx); close(closed) }()
		time.Sleep(time.Second)
		dead.pull()
		cut.Store(time.Now().UnixNano())
		var token uint64
		mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			if token == 0 {
				t.Logf("the other one begins %v after the cut", time.Duration(time.Now().UnixNano()-cut.Load()))
			}
			token = msg.Token
			return nil
		}, Session(session))
		<-closed
		t.Logf("closed after %v", time.Duration(time.Now().UnixNano()-cut.Load()))
		mu.Lock()
		defer mu.Unlock()
		if late > 0 {
			t.Errorf("%d records were begun after the lease was over, the last one %v after the cut", late, latest)
		}
		hurry, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = other.Close(hurry)
	})
}

// What lies beyond a record that waits isn't begun, whatever was in the workers' hands.
func TestHandOverBeyondAFailure(t *testing.T) {
	t.Parallel()
	for _, order := range []Order{PerKey, Unordered} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				m.fillKeys("t", 0, 5000, 5, None)
				var slow, closing atomic.Bool
				var after atomic.Int32
				s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
					if closing.Load() && msg.Offset > 2000 {
						after.Add(1)
					}
					if msg.Offset == 2000 {
						slow.Store(true)
						return RetryAfter(time.Hour, errors.New("not now"))
					}
					if slow.Load() {
						time.Sleep(20 * time.Millisecond)
					}
					return nil
				}, Concurrency(3), KeepOrder(order))
				for !slow.Load() {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(5 * time.Millisecond)
				began := time.Now()
				closing.Store(true)
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
				t.Logf("took %v, %d were begun beyond the failure", time.Since(began), after.Load())
				if after.Load() > 3 {
					t.Errorf("%d were begun beyond the failure", after.Load())
				}
			})
		})
	}
}

// A failure while finishing.
func TestFailureInAHandOver(t *testing.T) {
	t.Parallel()
	for _, order := range []Order{PerKey, Unordered} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				m.fillKeys("t", 0, 5000, 5, None)
				var slow, closing atomic.Bool
				var failed atomic.Int64
				failed.Store(-1)
				var after atomic.Int32
				s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
					if msg.Offset == 2000 {
						slow.Store(true)
					}
					if f := failed.Load(); f >= 0 && msg.Offset > f {
						after.Add(1)
					}
					if slow.Load() {
						time.Sleep(20 * time.Millisecond)
					}
					if closing.Load() && failed.CompareAndSwap(-1, msg.Offset) {
						return errors.New("no")
					}
					return nil
				}, Concurrency(3), KeepOrder(order))
				for !slow.Load() {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(5 * time.Millisecond)
				began := time.Now()
				closing.Store(true)
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
				t.Logf("took %v, failed %d, %d were begun beyond the failure, committed %d", time.Since(began), failed.Load(), after.Load(), m.groupAt("t", 0, "g").committed)
				if after.Load() > 3 {
					t.Errorf("%d were begun beyond the failure", after.Load())
				}
			})
		})
	}
}

// Close's length.
func TestCloseFillsGapsForAMoment(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]SubscribeOption{"each": nil, "leave": {DrainTimeout(time.Second)}} {
		t.Run(name, func(t *testing.T) {
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				m.fillKeys("t", 0, 5000, 10, None)
				s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
					if string(msg.Key) == "k0" {
						time.Sleep(500 * time.Millisecond)
					}
					time.Sleep(time.Millisecond)
					return nil
				}, append(opts, Concurrency(3))...)
				time.Sleep(10 * time.Second)
				began := time.Now()
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > 31*time.Second {
					t.Errorf("Close took %v", took)
				}
			})
		})
	}
}

// A hand-over interrupts no handler that takes a moment, and makes no dead letter of its record.
func TestHandOverInterruptsNobody(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]SubscribeOption{"dead letters": {MaxDeliveries(1)}, "stop": {StopOnFailure()}} {
		t.Run(name, func(t *testing.T) {
			groupBubble(t, 1, faults{}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
				for p := range 2 {
					m.fillKeys("t", p, 2000, 10, None)
				}
				var interrupted atomic.Int32
				h := func(ctx context.Context, msg *Message) error {
					d := time.Millisecond
					if string(msg.Key) == "k0" {
						d = 400 * time.Millisecond
					}
					select {
					case <-time.After(d):
						return nil
					case <-ctx.Done():
						interrupted.Add(1)
						return ctx.Err()
					}
				}
				opts := append(opts, Concurrency(4))
				a := mustSubscribe(t, ctx, c, "g", h, opts...)
				time.Sleep(5 * time.Second)
				b := mustSubscribe(t, ctx, c, "g", h, opts...)
				began := time.Now()
				eventually(t, ctx, "b has one", func() (bool, string) { return len(b.Leases()) == 1 || a.Err() != nil, "" })
				t.Logf("b has its partition after %v", time.Since(began))
				time.Sleep(10 * time.Second)
				if n := interrupted.Load(); n > 0 {
					t.Errorf("%d handlers were interrupted", n)
				}
				if err := a.Err(); err != nil {
					t.Errorf("a ended: %v", err)
				}
				if d := a.Stats().Dead; d > 0 {
					t.Errorf("%d dead letters", d)
				}
				_, _ = a.Close(ctx), b.Close(ctx)
			})
		})
	}
}

// Close after the loss, handler returns nil.
func TestCloseAfterLoss(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 1, 1, None)
		started := make(chan struct{}, 10)
		s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			started <- struct{}{}
			time.Sleep(3 * time.Second)
			return nil
		}, Session(time.Second))
		<-started
		m.mu.Lock()
		g := m.groupAt("t", 0, "g")
		m.index++
		g.holder, g.token, g.until = "another", m.index, time.Now().Add(time.Hour)
		m.mu.Unlock()
		time.Sleep(time.Second)
		began := time.Now()
		_ = s.Close(ctx)
		if time.Since(began) > 10*time.Second {
			t.Errorf("Close took %v", time.Since(began))
		}
	})
}

// The same for callers of Next.
func TestLostWhileNextHas(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.wakes = true
		m.fillKeys("t", 0, 1, 1, None)
		s, err := c.Messages(ctx, "t", "g", Session(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		one, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		g := m.groupAt("t", 0, "g")
		m.index++
		g.holder, g.token, g.until = "another", m.index, time.Now().Add(time.Second)
		m.mu.Unlock()
		time.Sleep(2 * time.Second)
		if err := one.Ack(); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		began := time.Now()
		if _, err := s.Next(ctx); err != nil {
			t.Error(err)
		}
		if time.Since(began) > 10*time.Second {
			t.Errorf("Next took %v", time.Since(began))
		}
		_ = s.Close(ctx)
	})
}

// Next keeps to its ctx while the lease is in doubt.
func TestNextWhileInDoubt(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 100, 1, None)
		other, dead := unpluggable(m, c)
		s, err := other.Messages(ctx, "t", "g", Session(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(ctx); err != nil {
			t.Fatal(err)
		}
		dead.pull()
		time.Sleep(1500 * time.Millisecond)
		began := time.Now()
		brief, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err = s.Next(brief)
		if time.Since(began) > time.Second {
			t.Errorf("Next took %v: %v", time.Since(began), err)
		}
		hurry, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = s.Close(hurry)
		_ = other.Close(hurry)
	})
}

// A handler that takes longer than DrainTimeout and heeds its context has not failed.
func TestInterruptedIsNoFailure(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
		for p := range 2 {
			m.fillKeys("t", p, 1, 1, None)
		}
		var slow atomic.Bool
		slow.Store(true)
		h := func(ctx context.Context, msg *Message) error {
			if !slow.Load() {
				return nil
			}
			select {
			case <-ctx.Done():
			case <-time.After(8 * time.Second):
			}
			return ctx.Err()
		}
		a := mustSubscribe(t, ctx, c, "g", h, MaxDeliveries(1), DrainTimeout(time.Second), Concurrency(2))
		time.Sleep(time.Second)
		b := mustSubscribe(t, ctx, c, "g", h, MaxDeliveries(1), DrainTimeout(time.Second), Concurrency(2))
		time.Sleep(500 * time.Millisecond)
		slow.Store(false)
		time.Sleep(10 * time.Second)
		if d := a.Stats().Dead; d > 0 {
			t.Errorf("%d dead letters", d)
		}
		_, _ = a.Close(ctx), b.Close(ctx)
	})
}

// A failure in finishing leaves no gap below it.
func TestGapBelowAFailure(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 310, 1, None)
		closed := make(chan struct{})
		var s *Subscription
		ready := make(chan struct{})
		var trace []int64
		s = mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			<-ready
			trace = append(trace, msg.Offset)
			switch {
			case msg.Offset == 10 && msg.Deliveries == 1:
				return RetryAfter(5*time.Millisecond, errors.New("not now"))
			case msg.Offset == 305:
				time.Sleep(12 * time.Millisecond)
			case msg.Offset == 306:
				go func() { _ = s.Close(ctx); close(closed) }()
				time.Sleep(time.Millisecond)
				return errors.New("no")
			}
			return nil
		}, KeepOrder(Unordered))
		close(ready)
		<-closed
		m.mu.Lock()
		defer m.mu.Unlock()
		if at := m.groupAt("t", 0, "g").committed; at != 306 {
			t.Errorf("committed %d, trace ends %v", at, trace[len(trace)-6:])
		}
	})
}

// An ack of what went to another member fails.
func TestLateAck(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Exclusive} {
		t.Run(string(mode), func(t *testing.T) {
			groupBubble(t, 1, faults{}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
				m.wakes = true
				a, err := c.Messages(ctx, "t", "g", DrainTimeout(time.Second), Mode(mode))
				if err != nil {
					t.Fatal(err)
				}
				var held []*Message
				for p := range 2 {
					m.fillKeys("t", p, 1, 1, None)
					one, err := a.Next(ctx)
					if err != nil {
						t.Fatal(err)
					}
					held = append(held, one)
				}
				var moved *Message
				if mode == Exclusive {
					b, err := c.Messages(ctx, "t", "g", DrainTimeout(time.Second))
					if err != nil {
						t.Fatal(err)
					}
					one, err := b.Next(ctx)
					if err != nil {
						t.Fatal(err)
					}
					moved = held[one.Partition]
					defer b.Close(ctx)
				} else {
					moved = held[0]
					_ = a.Close(ctx)
				}
				if err := moved.Ack(); !errors.Is(err, ErrLost) {
					t.Errorf("the ack of what went to another: %v", err)
				}
				_ = a.Close(ctx)
			})
		})
	}
}

// Close waits for dead letters that can't be written; once the lease is lost they never will be, and Close ends.
func TestCloseEndsWhenLostWithADeadLetter(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 3, 1, None)
		other, dead := unpluggable(m, c)
		var handled atomic.Int32
		s, err := other.Subscribe(ctx, "t", "g", func(context.Context, *Message) error {
			handled.Add(1)
			return Terminate("no") // there is no dead-letter topic, and the model makes none
		}, Session(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		began := time.Now()
		closed := make(chan struct{})
		go func() { _ = s.Close(ctx); close(closed) }()
		time.Sleep(time.Second)
		dead.pull()
		select {
		case <-closed:
			t.Logf("closed after %v, %d handled", time.Since(began), handled.Load())
		case <-time.After(3 * time.Minute):
			t.Errorf("Close has not ended after %v; %d handled", time.Since(began), handled.Load())
			for _, cl := range s.claims {
				if tn := cl.tenure.Load(); tn != nil {
					t.Logf("lost %v, unsettled %d, idle %v", tn.lost.Load(), tn.unsettled.Load(), s.crew.idle(tn))
				}
			}
			s.end()
			<-closed
		}
		hurry, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = other.Close(hurry)
	})
}
