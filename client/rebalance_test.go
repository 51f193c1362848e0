package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
)

// gaps notes, for each partition, the longest time between two records.
type gaps struct {
	mu   sync.Mutex
	last map[int32]time.Time
	most map[int32]time.Duration
	by   map[int32]string // who had it last
}

func newGaps() *gaps {
	return &gaps{last: map[int32]time.Time{}, most: map[int32]time.Duration{}, by: map[int32]string{}}
}

func (g *gaps) handler(who string) func(context.Context, *Message) error {
	return func(_ context.Context, m *Message) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		now := time.Now()
		if at, ok := g.last[m.Partition]; ok {
			g.most[m.Partition] = max(g.most[m.Partition], now.Sub(at))
		}
		g.last[m.Partition], g.by[m.Partition] = now, who
		return nil
	}
}

// since forgets the gaps so far, and returns who has what.
func (g *gaps) since() map[int32]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	by := map[int32]string{}
	for p, who := range g.by {
		by[p] = who
	}
	clear(g.most)
	return by
}

// A member joins and leaves a group on 64 partitions, and one is cut off: partitions that stay go on without a gap, those that move
// within half a second, or the session and half a second.
func TestRebalanceLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	const partitions, every, session = 64, 30 * time.Millisecond, 2 * time.Second
	groupBubble(t, 1, faults{delay: 2 * time.Millisecond}, map[string]int{"t": partitions}, func(ctx context.Context, m *model, c *Client) {
		m.wakes = true
		load, stop := context.WithCancel(ctx)
		var loading sync.WaitGroup
		loading.Go(func() {
			for load.Err() == nil {
				for p := range partitions {
					m.fillKeys("t", p, 1, 1, None)
				}
				time.Sleep(every)
			}
		})
		g := newGaps()
		a := mustSubscribe(t, ctx, c, "g", g.handler("a"), Session(session))
		time.Sleep(time.Second)
		check := func(what string, before map[int32]string, limit time.Duration) {
			t.Helper()
			g.mu.Lock()
			defer g.mu.Unlock()
			moved := 0
			var worst, worstMoved time.Duration
			for p, gap := range g.most {
				if before[p] == g.by[p] {
					worst = max(worst, gap)
				} else {
					moved++
					worstMoved = max(worstMoved, gap)
				}
			}
			t.Logf("%s: %d partitions moved and paused for %v at most, the others for %v", what, moved, worstMoved, worst)
			if moved == 0 || moved > partitions*2/3 || worstMoved > limit || worst > 5*every {
				t.Errorf("%s: gaps of %v in %d that moved, %v in others", what, worstMoved, moved, worst)
			}
		}
		before := g.since()
		b := mustSubscribe(t, ctx, c, "g", g.handler("b"), Session(session))
		time.Sleep(2 * time.Second)
		check("join", before, 500*time.Millisecond)

		before = g.since()
		if err := b.Close(ctx); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		check("leave", before, 500*time.Millisecond)

		// A member that is cut off, as if it had crashed.
		other := m.client()
		m.onUp = c.connected
		dead := &unplugged{model: m}
		other.publishes.base = dead
		other.dialRead = func(context.Context) (exchange, error) { return dead, nil }
		x, err := other.Subscribe(ctx, "t", "g", g.handler("x"), Session(session))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		before = g.since()
		dead.pull()
		time.Sleep(2*session + 2*time.Second)
		check("crash", before, session+500*time.Millisecond)
		if n := len(a.Leases()); n != partitions {
			t.Errorf("the last member has %d partitions", n)
		}
		hurry, cancel := context.WithTimeout(ctx, time.Second)
		_ = x.Close(hurry)
		cancel()
		_ = other.Close(hurry)
		stop()
		loading.Wait()
	})
}

// unplugged is an exchange that can be cut off without a word.
type unplugged struct {
	*model
	mu  sync.Mutex
	out bool
}

func (u *unplugged) pull() {
	u.mu.Lock()
	u.out = true
	u.mu.Unlock()
}

func (u *unplugged) request(subject string, header map[string][]string, data []byte, to receiver, tag uint64) (uint64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.out {
		return 0, nil // it never comes back
	}
	return u.model.request(subject, header, data, &half{u, to}, tag)
}

type half struct {
	u  *unplugged
	to receiver
}

func (h *half) answered(tag uint64, r reply) {
	h.u.mu.Lock()
	out := h.u.out
	h.u.mu.Unlock()
	if !out {
		h.to.answered(tag, r)
	}
}

// Partitions are added under a running group: it gets them, wherever its anchor is then.
func TestGroupGrows(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Exclusive, Shared} {
		groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
			h := func(context.Context, *Message) error { return nil }
			mustSubscribe(t, ctx, c, "g", h, Mode(mode))
			mustSubscribe(t, ctx, c, "g", h, Mode(mode))
			m.fillKeys("t", 0, 50, 5, None)
			time.Sleep(5 * time.Second)
			m.mu.Lock()
			for range 5 {
				m.parts["t"] = append(m.parts["t"], &modelPartition{producers: map[int64]*modelProducer{}})
			}
			m.mu.Unlock()
			for p := range 7 {
				m.fillKeys("t", p, 50, 5, None)
			}
			eventually(t, ctx, "handled in all seven", func() (bool, string) { return m.handled("t", "g") })
		})
	}
}

// Hundreds of members: each costs what its partitions cost, and everything is handled.
func TestManyMembers(t *testing.T) { // alone: goroutines of other tests would be counted
	const members, partitions = 100, 64
	groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": partitions}, func(ctx context.Context, m *model, c *Client) {
		h := func(context.Context, *Message) error { return nil }
		before := runtime.NumGoroutine()
		var all []*Subscription
		for range members {
			all = append(all, mustSubscribe(t, ctx, c, "g", h, Session(30*time.Second)))
		}
		for p := range partitions {
			m.fillKeys("t", p, 20, 5, None)
		}
		eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
		// Three of each member (its anchor, its handler, the overseer), three of each partition, and requests under way.
		if n := runtime.NumGoroutine() - before; n > 3*members+8*partitions+500 {
			t.Errorf("%d goroutines", n)
		}
		held := 0
		for _, s := range all {
			held += len(s.Leases())
		}
		if held != partitions {
			t.Error(fmt.Sprint(held, " leases"))
		}
		var leaving sync.WaitGroup
		for _, s := range all[1:] {
			leaving.Go(func() {
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		leaving.Wait()
		eventually(t, ctx, "the last one has all", func() (bool, string) {
			return len(all[0].Leases()) == partitions, fmt.Sprint(all[0].Leases())
		})
	})
}

// A lease that is granted while the partition goes to another is given back, not left to run out.
func TestLeaseThatComesTooLate(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{delay: 100 * time.Millisecond}, map[string]int{"t": 16}, func(ctx context.Context, _ *model, c *Client) {
		h := func(context.Context, *Message) error { return nil }
		for range 4 {
			a := mustSubscribe(t, ctx, c, "g", h)
			b := mustSubscribe(t, ctx, c, "g", h)
			start := time.Now()
			eventually(t, ctx, "both have eight", func() (bool, string) {
				return len(a.Leases()) == 8 && len(b.Leases()) == 8, fmt.Sprint(a.Leases(), b.Leases())
			})
			if took := time.Since(start); took > 8*time.Second {
				t.Errorf("it took %v", took)
			}
			if err := errors.Join(a.Close(ctx), b.Close(ctx)); err != nil {
				t.Error(err)
			}
		}
	})
}

// One delivery of many is void: the acks of the others are taken all the same.
func TestOneOfManyIsRefused(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 40, 5, None)
		deliveries := map[int64]int32{}
		mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			if msg.Offset == 0 && msg.Deliveries == 1 {
				m.mu.Lock()
				delete(m.groupAt("t", 0, "g").out, 17)
				m.mu.Unlock()
			}
			deliveries[msg.Offset] = msg.Deliveries
			return nil
		}, Mode(Shared))
		eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
		for o, n := range deliveries {
			if want := map[bool]int32{true: 2, false: 1}[o == 17]; n != want {
				t.Errorf("offset %d was delivered %d times", o, n)
			}
		}
	})
}
