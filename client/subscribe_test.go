package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// fillKeys stores n records in a partition, in batches, with so many keys: the value is the offset.
func (m *model) fillKeys(topic string, part, n, keys int, codec Codec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parts[topic][part]
	b := record.NewBuilder(codec, batchLimits)
	for i := 0; i < n; {
		base := p.next()
		for range min(1+m.rng.IntN(20), n-i) {
			value, key := fmt.Sprint(p.next()), fmt.Sprintf("k%d", m.rng.IntN(keys))
			r := record.Record{Key: []byte(key), Value: []byte(value), Headers: []Header{Text("h", value)}, Timestamp: 1_700_000_000_000}
			if err := b.Append(&r); err != nil {
				panic(err)
			}
			p.log = append(p.log, modelRecord{value, key})
			i++
		}
		data, err := b.Finish(nil, record.NoProducer)
		if err != nil {
			panic(err)
		}
		record.Batch(data).Stamp(base, 1)
		p.batches = append(p.batches, modelBatch{base, data})
	}
}

// fencedDB is what a careful user has: it keeps the largest token of each partition or key and refuses smaller ones.
type fencedDB struct {
	mu      sync.Mutex
	tokens  map[string]uint64
	last    map[string]int64 // highest offset that was applied, by fence
	applied map[string]int   // by partition and offset
	refused int
	faults  []string
}

func newFencedDB() *fencedDB {
	return &fencedDB{tokens: map[string]uint64{}, last: map[string]int64{}, applied: map[string]int{}}
}

// apply takes a record under a fence. ordered: nothing of the fence may be skipped back over by another token.
func (db *fencedDB) apply(m *Message, fence string, ordered bool) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if m.Token == 0 || m.Deliveries < 1 {
		db.faults = append(db.faults, fmt.Sprintf("%s/%d: token %d, deliveries %d", fence, m.Offset, m.Token, m.Deliveries))
	}
	if m.Token < db.tokens[fence] {
		db.refused++
		return false
	}
	last, seen := db.last[fence]
	if ordered && seen && m.Token == db.tokens[fence] && m.Offset <= last && m.Deliveries == 1 {
		db.faults = append(db.faults, fmt.Sprintf("%s: offset %d after %d under one token", fence, m.Offset, last))
	}
	db.tokens[fence], db.last[fence] = m.Token, m.Offset
	db.applied[fmt.Sprintf("%d/%d", m.Partition, m.Offset)]++
	return true
}

func (db *fencedDB) check(t *testing.T, partitions, records int) {
	t.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, f := range db.faults {
		t.Error(f)
	}
	missing := 0
	for p := range partitions {
		for o := range records {
			if db.applied[fmt.Sprintf("%d/%d", p, o)] == 0 {
				missing++
				if missing < 5 {
					t.Errorf("%d/%d was never handled", p, o)
				}
			}
		}
	}
}

func eventually(t *testing.T, ctx context.Context, what string, done func() (bool, string)) {
	t.Helper()
	for {
		ok, why := done()
		if ok {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: not before the end: %s", what, why)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func groupBubble(t *testing.T, seed uint64, f faults, topics map[string]int, run func(ctx context.Context, m *model, c *Client)) {
	t.Helper()
	groupBubbleFor(t, 30*time.Minute, seed, f, topics, run)
}

func groupBubbleFor(t *testing.T, limit time.Duration, seed uint64, f faults, topics map[string]int, run func(ctx context.Context, m *model, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		m := newModel(seed, f, topics)
		c := m.client()
		run(ctx, m, c)
		m.calm()
		if err := c.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		time.Sleep(time.Hour) // whatever was late is over
	})
}

func mustSubscribe(t *testing.T, ctx context.Context, c *Client, group string, h func(context.Context, *Message) error, opts ...SubscribeOption) *Subscription {
	t.Helper()
	s, err := c.Subscribe(ctx, "t", group, h, opts...)
	if err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	return s
}

// Everything is handled once, in order, and committed; nothing is left to do after Close.
func TestSubscribeExclusive(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]SubscribeOption{
		"one at a time": nil,
		"by partition":  {Concurrency(4), KeepOrder(PerPartition)},
		"by key":        {Concurrency(4)},
		"any":           {Concurrency(4), KeepOrder(Unordered)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 3}, func(ctx context.Context, m *model, c *Client) {
				const n = 2000
				for p := range 3 {
					m.fillKeys("t", p, n, 40, []Codec{None, Snappy, LZ4}[p])
				}
				var mu sync.Mutex
				seen, last := map[string]int{}, map[string]int64{}
				s := mustSubscribe(t, ctx, c, "g", func(_ context.Context, msg *Message) error {
					mu.Lock()
					defer mu.Unlock()
					seen[fmt.Sprintf("%d/%d", msg.Partition, msg.Offset)]++
					order := fmt.Sprint(msg.Partition)
					switch name {
					case "by key":
						order += string(msg.Key)
					case "any":
						order += fmt.Sprint(msg.Offset)
					}
					if at, ok := last[order]; ok && msg.Offset <= at {
						t.Errorf("%s: %d after %d", order, msg.Offset, at)
					}
					last[order] = msg.Offset
					if h, _ := msg.Header("h"); string(msg.Value) != fmt.Sprint(msg.Offset) || string(h) != string(msg.Value) || msg.Topic != "t" {
						t.Errorf("%+v", msg)
					}
					return nil
				}, opts...)
				eventually(t, ctx, "all committed", func() (bool, string) { return m.handled("t", "g") })
				if len(seen) != 3*n {
					t.Errorf("%d records of %d", len(seen), 3*n)
				}
				for k, n := range seen {
					if n != 1 {
						t.Errorf("%s was handled %d times", k, n)
					}
				}
				if st := s.Stats(); st.Handled != 3*n || st.Delivered != 3*n || st.Failed+st.Dead+st.Refused != 0 {
					t.Errorf("stats %+v", st)
				}
				if len(s.Leases()) != 3 || s.Leases()[1].Token == 0 {
					t.Errorf("leases %+v", s.Leases())
				}
				// What comes later, too.
				m.fillKeys("t", 1, 10, 3, None)
				eventually(t, ctx, "the late ones", func() (bool, string) { return m.handled("t", "g") })
			})
		})
	}
}

func TestSubscribeShared(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Shared, KeyOrdered} {
		for _, workers := range []int{1, 8} {
			t.Run(fmt.Sprint(mode, workers), func(t *testing.T) {
				t.Parallel()
				groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
					const n = 600
					for p := range 2 {
						m.fillKeys("t", p, n, 20, None)
					}
					var mu sync.Mutex
					tries := map[string]int{}
					last := map[string]int64{}
					h := func(_ context.Context, msg *Message) error {
						mu.Lock()
						defer mu.Unlock()
						k := fmt.Sprintf("%d/%d", msg.Partition, msg.Offset)
						tries[k]++
						if int(msg.Deliveries) != tries[k] {
							t.Errorf("%s: delivery %d, says %d", k, tries[k], msg.Deliveries)
						}
						if msg.Offset%50 == 7 && tries[k] < 3 {
							return errors.New("not yet")
						}
						if msg.Offset%100 == 9 {
							return Terminate("never")
						}
						if mode == KeyOrdered {
							k := fmt.Sprintf("%d %s", msg.Partition, msg.Key)
							if at, ok := last[k]; ok && msg.Offset <= at {
								t.Errorf("%s: %d after %d", k, msg.Offset, at)
							}
							last[k] = msg.Offset
						}
						return nil
					}
					a := mustSubscribe(t, ctx, c, "g", h, Mode(mode), Concurrency(workers), Backoff(30*time.Millisecond))
					b := mustSubscribe(t, ctx, c, "g", h, Mode(mode), Concurrency(workers), Backoff(30*time.Millisecond))
					eventually(t, ctx, "all acked", func() (bool, string) { return m.handled("t", "g") })
					if err := errors.Join(a.Commit(ctx), b.Commit(ctx)); err != nil {
						t.Error(err)
					}
					for k, n := range tries {
						want := 1
						if _, o, _ := strings.Cut(k, "/"); strings.HasSuffix("0"+o, "07") || strings.HasSuffix(o, "57") {
							want = 3
						}
						if n != want {
							t.Errorf("%s was tried %d times, want %d", k, n, want)
						}
					}
					if sum := a.Stats().Handled + b.Stats().Handled; sum != 2*n-12 || a.Stats().Dead+b.Stats().Dead != 12 {
						t.Errorf("stats %+v %+v", a.Stats(), b.Stats())
					}
				})
			})
		}
	}
}

// TestSubscribeOnABadDay runs members against the model while requests are lost, brokers fail, handlers fail, hang and panic, and members
// come, go and are cut off. Whatever happens: everything is handled at least once, and for a database that looks at
// the fencing tokens in order. PARLEY_SEEDS=2000 runs more, PARLEY_SEED=n one.
func TestSubscribeOnABadDay(t *testing.T) {
	t.Parallel()
	for _, seed := range seeds(t, 18) {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { badDayOfConsuming(t, seed) })
		if !ok {
			break
		}
	}
}

func badDayOfConsuming(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	p := func(most float64) float64 { return rng.Float64() * most }
	f := faults{dropRequest: p(0.02), dropAnswer: p(0.02), twice: p(0.02), refuse: p(0.1), unsure: p(0.05), delay: 10 * time.Millisecond, stray: 0.1}
	if seed%3 == 0 {
		f = faults{delay: 5 * time.Millisecond}
	}
	mode := []GroupMode{Exclusive, Shared, KeyOrdered}[seed%3]
	groupBubble(t, seed, f, map[string]int{"t": 4}, func(ctx context.Context, m *model, c *Client) {
		const n = 150
		for part := range 4 {
			m.fillKeys("t", part, n, 12, None)
		}
		db := newFencedDB()
		opts := []SubscribeOption{Mode(mode), Session(5 * time.Second), Backoff(10*time.Millisecond, 200*time.Millisecond), DrainTimeout(2 * time.Second)}
		if mode != Exclusive {
			opts = append(opts, AckWait(3*time.Second))
		}
		workers := 1 + rng.IntN(6)
		if workers > 1 {
			opts = append(opts, Concurrency(workers))
		}
		var mu sync.Mutex
		dice := rand.New(rand.NewPCG(seed, 6))
		calm := false
		handler := func(hctx context.Context, msg *Message) error {
			mu.Lock()
			roll, wait := dice.IntN(400), time.Duration(dice.IntN(8000))*time.Millisecond
			if calm {
				roll = 399
			}
			mu.Unlock()
			switch {
			case roll < 5:
				return errors.New("fails")
			case roll < 8:
				return RetryAfter(wait/20, nil)
			case roll < 10:
				panic("at the disco")
			case roll < 12: // hangs, whatever its context says
				time.Sleep(wait)
			case roll < 14:
				select {
				case <-hctx.Done():
					return hctx.Err()
				case <-time.After(wait):
				}
			case roll < 60:
				time.Sleep(time.Duration(roll) * time.Millisecond)
			}
			fence := fmt.Sprint(msg.Partition)
			ordered := mode == Exclusive && workers == 1
			if mode == KeyOrdered || mode == Exclusive && workers > 1 {
				fence, ordered = fmt.Sprintf("%d %s", msg.Partition, msg.Key), true
			} else if mode == Shared {
				fence = fmt.Sprintf("%d/%d", msg.Partition, msg.Offset)
			}
			if !db.apply(msg, fence, ordered) && hctx.Err() == nil && mode == Exclusive {
				return nil // somebody else's by now
			}
			return nil
		}
		var members []*Subscription
		add := func() {
			jctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
			defer cancel()
			s, err := c.Subscribe(jctx, "t", "g", handler, opts...)
			if err != nil {
				t.Fatalf("subscribe: %v", err)
			}
			members = append(members, s)
		}
		add()
		add()
		for range 12 {
			time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
			switch rng.IntN(5) {
			case 0:
				if len(members) < 5 {
					add()
				}
			case 1:
				if len(members) > 1 {
					i := rng.IntN(len(members))
					cctx, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(6000))*time.Millisecond)
					_ = members[i].Close(cctx)
					cancel()
					members = slices.Delete(members, i, i+1)
				}
			case 2:
				m.failover("t")
			case 3:
				m.restart(time.Duration(rng.IntN(12000)) * time.Millisecond)
			case 4:
				m.fillKeys("t", rng.IntN(4), 1, 12, None)
			}
		}
		time.Sleep(15 * time.Second) // the last restart is over
		mu.Lock()
		calm = true
		mu.Unlock()
		m.calm()
		limit, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		eventually(t, limit, "everything handled", func() (bool, string) { return m.handled("t", "g") })
		db.check(t, 4, n)
		for _, s := range members {
			if err := s.Err(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A partition goes from one member to the next without a record handled twice, and without a pause for the others.
func TestHandOver(t *testing.T) {
	t.Parallel()
	groupBubble(t, 3, faults{delay: time.Millisecond}, map[string]int{"t": 4}, func(ctx context.Context, m *model, c *Client) {
		var mu sync.Mutex
		seen := map[string]int{}
		handler := func(_ context.Context, msg *Message) error {
			time.Sleep(2 * time.Millisecond)
			mu.Lock()
			seen[fmt.Sprintf("%d/%d", msg.Partition, msg.Offset)]++
			mu.Unlock()
			return nil
		}
		for p := range 4 {
			m.fillKeys("t", p, 500, 10, None)
		}
		var lost []int32
		revoked := OnRevoked(func(_ context.Context, l Lease, gone bool) {
			if gone {
				t.Errorf("partition %d was lost", l.Partition)
			}
			mu.Lock()
			lost = append(lost, l.Partition)
			mu.Unlock()
		})
		a := mustSubscribe(t, ctx, c, "g", handler, revoked)
		time.Sleep(300 * time.Millisecond)
		b := mustSubscribe(t, ctx, c, "g", handler)
		eventually(t, ctx, "both have two", func() (bool, string) {
			return len(a.Leases()) == 2 && len(b.Leases()) == 2, fmt.Sprint(a.Leases(), b.Leases())
		})
		time.Sleep(300 * time.Millisecond)
		if err := b.Close(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, ctx, "all handled", func() (bool, string) { return m.handled("t", "g") })
		for k, n := range seen {
			if n != 1 {
				t.Errorf("%s was handled %d times", k, n)
			}
		}
		if len(lost) != 2 || len(seen) != 2000 {
			t.Errorf("revoked %v, %d records", lost, len(seen))
		}
	})
}

// A member that was cut off for longer than its session: its handler's context ends, its commits are refused, and it joins again.
func TestCutOff(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Exclusive, KeyOrdered} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			groupBubble(t, 3, faults{delay: time.Millisecond}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				m.fillKeys("t", 0, 20, 1, None)
				entered := make(chan *Message, 1)
				ended := make(chan error, 1)
				first := true
				opts := []SubscribeOption{Mode(mode), Session(2 * time.Second)}
				if mode != Exclusive {
					opts = append(opts, AckWait(2*time.Second))
				}
				db := newFencedDB()
				s := mustSubscribe(t, ctx, c, "g", func(hctx context.Context, msg *Message) error {
					if first {
						first = false
						entered <- msg
						<-hctx.Done()
						ended <- context.Cause(hctx)
						if msg.Ack() == nil && mode == Exclusive { // else it is for the leader to say
							t.Error("the ack of a message that is somebody else's is taken")
						}
						return nil
					}
					db.apply(msg, "x", true)
					return nil
				}, opts...)
				zombie := <-entered
				m.restart(time.Minute) // for this member; the others' records are handled by hand
				if cause := <-ended; !errors.Is(cause, ErrLost) {
					t.Errorf("the context ended with %v", cause)
				}
				eventually(t, ctx, "joined again and handled all", func() (bool, string) { return m.handled("t", "g") })
				if mode == Exclusive && s.Leases()[0].Token < zombie.Token {
					t.Errorf("token %d after %d", s.Leases()[0].Token, zombie.Token)
				}
				db.check(t, 1, 20)
			})
		})
	}
}

// A handler that takes long keeps its record, in every mode, and with HandlerTimeout loses it.
func TestSlowHandler(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Exclusive, Shared, KeyOrdered} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			groupBubble(t, 3, faults{delay: time.Millisecond}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
				m.fillKeys("t", 0, 1, 1, None)
				calls := 0
				mustSubscribe(t, ctx, c, "g", func(hctx context.Context, msg *Message) error {
					calls++
					time.Sleep(5 * time.Minute)
					return hctx.Err()
				}, Mode(mode))
				eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
				if calls != 1 {
					t.Errorf("%d calls", calls)
				}
			})
		})
	}
	t.Run("bounded", func(t *testing.T) {
		t.Parallel()
		groupBubble(t, 3, faults{delay: time.Millisecond}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
			m.fillKeys("t", 0, 50, 1, None)
			var mu sync.Mutex
			var causes []error
			deliveries := map[int64]int32{}
			opts := []SubscribeOption{Mode(Shared), AckWait(3 * time.Second), HandlerTimeout(5 * time.Second), Concurrency(2)}
			h := func(hctx context.Context, msg *Message) error {
				mu.Lock()
				deliveries[msg.Offset] = msg.Deliveries
				first := msg.Offset == 0 && msg.Deliveries == 1
				mu.Unlock()
				if first {
					<-hctx.Done()
					mu.Lock()
					causes = append(causes, context.Cause(hctx))
					mu.Unlock()
					time.Sleep(time.Minute) // and goes on all the same
				}
				return nil
			}
			mustSubscribe(t, ctx, c, "g", h, opts...)
			eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
			if len(causes) != 1 || !errors.Is(causes[0], ErrHandlerTimeout) || deliveries[0] != 2 || deliveries[1] != 1 {
				t.Errorf("causes %v, deliveries %v", causes, deliveries)
			}
		})
	})
}

// Where a handler fails: what blocks, what goes on, dead letters, the end of the subscription.
func TestExclusiveFailures(t *testing.T) {
	t.Parallel()
	poison := func(_ context.Context, msg *Message) error {
		if msg.Partition == 0 && msg.Offset == 5 {
			return errors.New("poison")
		}
		return nil
	}
	t.Run("blocks its partition, and no other", func(t *testing.T) {
		t.Parallel()
		groupBubble(t, 1, faults{}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
			m.fillKeys("t", 0, 10, 1, None)
			m.fillKeys("t", 1, 5, 1, None)
			var most int32
			s := mustSubscribe(t, ctx, c, "g", func(ctx context.Context, msg *Message) error {
				if msg.Partition == 0 && msg.Offset > 5 {
					t.Error("a record overtook one that failed")
				}
				if msg.Partition == 0 {
					most = max(most, msg.Deliveries)
				}
				return poison(ctx, msg)
			})
			time.Sleep(time.Minute)
			m.fillKeys("t", 1, 1000, 1, None)
			time.Sleep(time.Minute)
			m.mu.Lock()
			a, b := m.groupAt("t", 0, "g").committed, m.groupAt("t", 1, "g").committed
			m.mu.Unlock()
			if a != 5 || b != 1005 || most < 8 {
				t.Errorf("committed %d and %d, most deliveries %d, stats %+v", a, b, most, s.Stats())
			}
		})
	})
	t.Run("dead letter", func(t *testing.T) {
		t.Parallel()
		groupBubble(t, 1, faults{}, map[string]int{"t": 1, "dlq-t-g": 1}, func(ctx context.Context, m *model, c *Client) {
			m.fillKeys("t", 0, 10, 1, None)
			m.poison = "5" // the dead-letter topic can't be written
			s := mustSubscribe(t, ctx, c, "g", poison, MaxDeliveries(3), Backoff(time.Millisecond))
			time.Sleep(time.Minute)
			m.mu.Lock()
			if at := m.groupAt("t", 0, "g").committed; at != 5 {
				t.Errorf("committed %d while the dead letter can't be written", at)
			}
			m.poison = ""
			m.mu.Unlock()
			eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
			if got := m.values("dlq-t-g", 0); len(got) != 1 || got[0] != "5" || s.Stats().Dead != 1 {
				t.Errorf("dead letters %v, %+v", got, s.Stats())
			}
			r, err := c.NewReader(ctx, "dlq-t-g")
			if err != nil {
				t.Fatal(err)
			}
			msg, err := r.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for k, want := range map[string]string{wire.HeaderTopic: "t", wire.HeaderPart: "0", wire.HeaderOffset: "5", wire.HeaderGroup: "g",
				wire.HeaderDeliveries: "3", wire.HeaderReason: "poison", "h": "5"} {
				if v, _ := msg.Header(k); string(v) != want {
					t.Errorf("header %s is %q, want %q", k, v, want)
				}
			}
		})
	})
	t.Run("stop", func(t *testing.T) {
		t.Parallel()
		groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
			m.fillKeys("t", 0, 10, 1, None)
			s := mustSubscribe(t, ctx, c, "g", poison, StopOnFailure())
			<-s.Done()
			if err := s.Err(); err == nil || !strings.Contains(err.Error(), "poison") {
				t.Errorf("err %v", err)
			}
			m.mu.Lock()
			if at := m.groupAt("t", 0, "g").committed; at != 5 {
				t.Errorf("committed %d", at)
			}
			m.mu.Unlock()
		})
	})
}

func TestMessages(t *testing.T) {
	t.Parallel()
	t.Run("by hand", func(t *testing.T) {
		t.Parallel()
		for _, mode := range []GroupMode{Exclusive, Shared, KeyOrdered} {
			groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
				m.fillKeys("t", 0, 10, 3, None)
				it, err := c.Messages(ctx, "t", "g", Mode(mode), Backoff(time.Second))
				if err != nil {
					t.Fatal(err)
				}
				var all []*Message
				for len(all) < 10 {
					ms, err := it.NextBatch(ctx, 4)
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, ms...)
				}
				for i, msg := range all {
					if i != 3 {
						if err := msg.Ack(); err != nil {
							t.Error(err)
						}
					}
				}
				if err := it.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if err := all[0].Ack(); !errors.Is(err, ErrSettled) {
					t.Errorf("acked again: %v", err)
				}
				m.mu.Lock()
				if g := m.groupAt("t", 0, "g"); mode == Exclusive && g.committed != 3 || mode != Exclusive && len(g.acked) != 9 {
					t.Errorf("%s: committed %d, acked %d", mode, g.committed, len(g.acked))
				}
				m.mu.Unlock()
				if err := all[3].Nak(-1); err != nil {
					t.Error(err)
				}
				start := time.Now()
				again, err := it.Next(ctx)
				if err != nil || again.Offset != 3 || again.Deliveries != 2 {
					t.Fatalf("%s: %+v, %v", mode, again, err)
				}
				if d := time.Since(start); d < 50*time.Millisecond || d > 2*time.Second {
					t.Errorf("again after %v", d)
				}
				if err := again.Ack(); err != nil {
					t.Error(err)
				}
				eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
				soon, cancel := context.WithTimeout(ctx, time.Second)
				if _, err := it.Next(soon); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("next: %v", err)
				}
				cancel()
				if err := it.Close(ctx); err != nil {
					t.Error(err)
				}
				if _, err := it.Next(ctx); !errors.Is(err, ErrClosed) {
					t.Errorf("next after close: %v", err)
				}
			})
		}
	})
	t.Run("range", func(t *testing.T) {
		t.Parallel()
		groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
			m.fillKeys("t", 0, 10, 3, None)
			it, err := c.Messages(ctx, "t", "g", AutoAck())
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for msg, err := range it.All(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				if n++; string(msg.Value) == "6" {
					break
				}
			}
			start := time.Now()
			if err := it.Close(ctx); err != nil || time.Since(start) > time.Second {
				t.Errorf("close: %v after %v", err, time.Since(start))
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			// The one at which the loop broke off may not have been handled.
			if at := m.groupAt("t", 0, "g").committed; at != 6 || n != 7 {
				t.Errorf("committed %d after %d", at, n)
			}
		})
	})
	var m Message
	if err := m.Ack(); err == nil {
		t.Error("a message of nobody is acked")
	}
}

func TestSubscribeBatch(t *testing.T) {
	t.Parallel()
	for _, mode := range []GroupMode{Exclusive, Shared, KeyOrdered} {
		for _, workers := range []int{1, 3} {
			groupBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 2}, func(ctx context.Context, m *model, c *Client) {
				for p := range 2 {
					m.fillKeys("t", p, 500, 10, None)
				}
				var mu sync.Mutex
				largest, failed, seen := 0, false, map[string]int{}
				_, err := c.SubscribeBatch(ctx, "t", "g", func(_ context.Context, batch []*Message) error {
					mu.Lock()
					defer mu.Unlock()
					largest = max(largest, len(batch))
					if len(batch) > 5 && !failed {
						failed = true
						_ = batch[0].Ack()
						seen[fmt.Sprintf("%d/%d", batch[0].Partition, batch[0].Offset)]++
						return errors.New("once")
					}
					for _, msg := range batch {
						if msg.Partition != batch[0].Partition {
							t.Error("a batch of two partitions")
						}
						seen[fmt.Sprintf("%d/%d", msg.Partition, msg.Offset)]++
					}
					return nil
				}, Mode(mode), Concurrency(workers), BatchSize(50), Backoff(50*time.Millisecond))
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, ctx, "handled", func() (bool, string) { return m.handled("t", "g") })
				for k, n := range seen {
					if n != 1 {
						t.Errorf("%s %s: %d times", mode, k, n)
					}
				}
				if largest < 6 || largest > 50 || len(seen) != 1000 || !failed {
					t.Errorf("%s/%d: batches up to %d, %d records, failed %v", mode, workers, largest, len(seen), failed)
				}
			})
		}
	}
}

func TestSubscribeRefusals(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		h := func(context.Context, *Message) error { return nil }
		for i, opts := range [][]SubscribeOption{
			{Mode("odd")}, {Concurrency(0)}, {AckWait(0)}, {AckWait(time.Second)}, {Session(time.Hour)}, {Backoff()}, {Backoff(-1)}, {MaxDeliveries(0)},
			{BatchSize(0)}, {MemberName("")}, {Mode(Shared), ManualCommit()}, {Mode(KeyOrdered), KeepOrder(Unordered)}, {FromOffset(-1)}, {Prefetch(1)},
			{PrefetchRecords(0)}, {Mode(Shared), MaxInFlight(0)}, {KeepOrder(7)},
		} {
			if _, err := c.Subscribe(ctx, "t", "g", h, opts...); err == nil {
				t.Errorf("options %d were taken", i)
			}
		}
		for _, name := range []string{"", "a b", "a.b", strings.Repeat("x", 65)} {
			if _, err := c.Subscribe(ctx, "t", name, h); !errors.Is(err, ErrBadRequest) {
				t.Errorf("group %q: %v", name, err)
			}
		}
		if _, err := c.Subscribe(ctx, "nowhere", "g", h); !errors.Is(err, ErrTopicNotFound) {
			t.Errorf("no topic: %v", err)
		}
		s := mustSubscribe(t, ctx, c, "g", h)
		if _, err := c.Subscribe(ctx, "t", "g", h, Mode(Shared)); !errors.Is(err, ErrGroupMismatch) {
			t.Errorf("another mode: %v", err)
		}
		// The topic goes away under a running member.
		m.mu.Lock()
		m.deleted = true
		m.mu.Unlock()
		select {
		case <-s.Done():
			if !errors.Is(s.Err(), ErrTopicNotFound) {
				t.Errorf("deleted topic: %v", s.Err())
			}
		case <-time.After(time.Minute):
			t.Error("a member of a deleted topic's group goes on")
		}
		m.mu.Lock()
		m.deleted = false
		m.mu.Unlock()
	})
}

// Where a group begins, and manual commits.
func TestSubscribeStart(t *testing.T) {
	t.Parallel()
	groupBubble(t, 1, faults{}, map[string]int{"t": 1}, func(ctx context.Context, m *model, c *Client) {
		m.fillKeys("t", 0, 10, 3, None)
		got := make(chan int64, 100)
		h := func(_ context.Context, msg *Message) error { got <- msg.Offset; return nil }
		s := mustSubscribe(t, ctx, c, "new", h, FromLatest(), ManualCommit())
		m.fillKeys("t", 0, 2, 1, None) // what is published after Subscribe has returned
		if a, b := <-got, <-got; a != 10 || b != 11 {
			t.Errorf("got %d and %d", a, b)
		}
		time.Sleep(time.Minute)
		at := func() int64 { m.mu.Lock(); defer m.mu.Unlock(); return m.groupAt("t", 0, "new").committed }
		if at() != 10 {
			t.Errorf("committed %d without being told to", at())
		}
		if err := s.Commit(ctx); err != nil || at() != 12 {
			t.Errorf("committed %d: %v", at(), err)
		}
		m.fillKeys("t", 0, 1, 1, None)
		<-got
		if err := s.Close(ctx); err != nil || at() != 12 {
			t.Errorf("committed %d at close: %v", at(), err)
		}
	})
	for s, want := range map[Start]string{FromEarliest(): "earliest", FromLatest(): "latest", FromOffset(7): "7",
		FromTime(time.UnixMilli(1500).UTC()): "1970-01-01T00:00:01.5Z"} {
		if s.text() != want {
			t.Errorf("%+v is %q", s, s.text())
		}
	}
}
