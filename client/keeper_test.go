package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// TestAcksUnderWay: one request with acks is under way at a time, or a key's could come in another order; what is settled
// meanwhile gathers. Those of a shared group may gather at the leader as well, until Commit waits for them: its acks say so, and it
// returns when all of them are answered.
func TestAcksUnderWay(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Shared, KeyOrdered} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				const n, slow = 100, 300 * time.Millisecond
				m.slowAcks = slow
				m.fillKeys("t", 0, n, n, None)
				var handled atomic.Int32
				s := mustSubscribe(t, ctx, c, "g", func(context.Context, *Message) error {
					time.Sleep(10 * time.Millisecond)
					handled.Add(1)
					return nil
				}, Mode(mode))
				eventually(t, ctx, "half", func() (bool, string) { return handled.Load() >= n/2, "" })
				if err := s.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				m.mu.Lock()
				acking, most, unhurried := m.acking, m.mostAcking, m.unhurried
				m.mu.Unlock()
				if most != 1 || (unhurried > 0) != (mode == Shared) {
					t.Errorf("%d requests at a time, want 1; %d may gather", most, unhurried)
				}
				if acking > 1 {
					t.Errorf("%d requests without an answer after Commit", acking)
				}
				eventually(t, ctx, "all acked", func() (bool, string) { return m.handled("t", "g") })
				m.mu.Lock()
				unhurried = m.unhurried
				m.mu.Unlock()
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
				if m.unhurried != unhurried {
					t.Error("acks of a member that leaves may gather")
				}
			})
		})
	}
}

// TestRunIsAckedAtOnce: a member of a key-ordered group doesn't send the first ack of what it has in hand by itself, and all others a
// round later: it waits for a moment, while there is more, and no longer than that where handlers are slow.
func TestRunIsAckedAtOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		each        time.Duration
		least, most int
	}{{"fast", 10 * time.Microsecond, 1, 1}, {"slow", 50 * time.Millisecond, 20, 40}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, cl *Client) {
				const n = 40
				m.slowAcks = 5 * time.Millisecond
				m.fillKeys("t", 0, n, n, None)
				s := mustSubscribe(t, ctx, cl, "g", func(context.Context, *Message) error {
					time.Sleep(c.each)
					return nil
				}, Mode(KeyOrdered))
				eventually(t, ctx, "all acked", func() (bool, string) { return m.handled("t", "g") })
				m.mu.Lock()
				requests := m.ackings
				m.mu.Unlock()
				if requests < c.least || requests > c.most {
					t.Errorf("%d requests with acks of %d records, want %d to %d", requests, n, c.least, c.most)
				}
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestWokenMemberDoubtsItself: who was stopped for longer than its session begins nothing that it has in hand before its keeper
// has found out that the lease is over.
func TestWokenMemberDoubtsItself(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 5, 5, None)
		m.wakes = true
		var token atomic.Uint64
		handled := map[uint64]int{} // by token
		s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
			token.Store(msg.Token)
			handled[msg.Token]++
			return nil
		}, Session(time.Second))
		eventually(t, ctx, "committed", func() (bool, string) { return m.handled("t", "g") })
		s.mu.Lock()
		old := s.claims[0].tenure.Load()
		s.mu.Unlock()
		before := handled[old.lease.Token]
		// As if the process woke up: the last renewal is long ago, another has the lease, and records come before the keeper runs.
		g := m.groupAt("t", 0, "g")
		m.mu.Lock()
		m.index++
		g.holder, g.token, g.until = "another", m.index, time.Now().Add(time.Second)
		m.mu.Unlock()
		old.renewedAt.Store(old.renewedAt.Load() - int64(time.Hour))
		m.fillKeys("t", 0, 5, 5, None)
		eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
		if n := handled[old.lease.Token] - before; n != 0 || token.Load() == old.lease.Token {
			t.Errorf("%d records were begun under a lease that was over", n)
		}
	})
}
