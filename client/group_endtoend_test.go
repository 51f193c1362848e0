package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// publishKeys publishes n records with so many keys; a record's value is its number.
func publishKeys(t testing.TB, c *client.Client, topic string, from, n, keys int) {
	t.Helper()
	ctx := deadline(t)
	p, err := c.NewProducer(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	for i := from; i < from+n; i++ {
		err := p.SendFunc(ctx, client.Record{Key: fmt.Appendf(nil, "k%d", i%keys), Value: fmt.Append(nil, i)}, func(_ client.Ack, err error) {
			if err != nil {
				t.Errorf("publish: %v", err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// tally counts what was handled, by value.
type tally struct {
	mu   sync.Mutex
	n    map[string]int
	last map[string]int64
	bad  []string
}

func newTally() *tally { return &tally{n: map[string]int{}, last: map[string]int64{}} }

// see counts m; order, when it isn't empty, names what is to come in order of offset.
func (c *tally) see(m *client.Message, order string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[string(m.Value)]++
	if order != "" {
		if at, ok := c.last[order]; ok && m.Offset <= at && m.Deliveries == 1 {
			c.bad = append(c.bad, fmt.Sprintf("%s: offset %d after %d", order, m.Offset, at))
		}
		c.last[order] = max(c.last[order], m.Offset)
	}
}

func (c *tally) seen() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.n)
}

// calls is how often a handler was called.
func (c *tally) calls() (all uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.n {
		all += uint64(n)
	}
	return all
}

func (c *tally) check(t *testing.T, n int, once bool) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.bad {
		t.Error(b)
	}
	again := 0
	for v, times := range c.n {
		if times > 1 {
			again++
			if once {
				t.Errorf("record %s was handled %d times", v, times)
			}
		}
	}
	if len(c.n) != n {
		t.Errorf("%d of %d records were handled", len(c.n), n)
	}
	t.Logf("%d records, %d handled more than once", len(c.n), again)
}

func groupDone(t *testing.T, c *client.Client, topic, group string) client.GroupDescription {
	t.Helper()
	var d client.GroupDescription
	brokertest.Eventually(t, "group "+group+" has handled everything", func() bool {
		var err error
		d, err = c.DescribeGroup(deadline(t), topic, group)
		if err != nil {
			t.Fatal(err)
		}
		pending := int64(0)
		for _, p := range d.Partitions {
			pending += p.Pending
		}
		return d.Lag == 0 && pending == 0
	})
	return d
}

var groupModes = []client.GroupMode{client.Exclusive, client.Shared, client.KeyOrdered}

// Two members, then three, then one, on one broker: everything is handled once.
func TestGroupEndToEnd(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	for _, mode := range groupModes {
		t.Run(string(mode), func(t *testing.T) {
			topic := "orders-" + string(mode)
			ctx := deadline(t)
			createTopic(t, c, topic, 4)
			publishKeys(t, c, topic, 0, 2000, 100)
			seen := newTally()
			handler := func(_ context.Context, m *client.Message) error {
				order := ""
				if mode != client.Shared {
					order = string(m.Key)
				}
				seen.see(m, order)
				if m.Token == 0 {
					t.Error("no token")
				}
				return nil
			}
			member := func(name string) *client.Subscription {
				s, err := c.Subscribe(ctx, topic, "g", handler, client.Mode(mode), client.MemberName(name), client.Concurrency(4))
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			one, two := member("one"), member("two")
			groupDone(t, c, topic, "g")
			three := member("three")
			publishKeys(t, c, topic, 2000, 2000, 100)
			d := groupDone(t, c, topic, "g")
			if len(d.Members) != 3 || d.Mode != string(mode) || d.Generation == 0 || len(d.Partitions) != 4 {
				t.Errorf("described as %+v", d)
			}
			if err := errors.Join(one.Close(ctx), three.Close(ctx)); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			publishKeys(t, c, topic, 4000, 100, 100)
			brokertest.Eventually(t, "the last member has all", func() bool { return seen.seen() == 4100 })
			t.Logf("after two of three left: %v", time.Since(start))
			// A lease that ran out on a slow machine brings records again: they count once for each time.
			brokertest.Eventually(t, "all are counted", func() bool {
				n := one.Stats().Handled + two.Stats().Handled + three.Stats().Handled
				return n >= 4100 && n <= seen.calls()
			})
			if two.Stats().Handled < 100 {
				t.Errorf("the last one handled %d", two.Stats().Handled)
			}
			if err := two.Close(ctx); err != nil {
				t.Fatal(err)
			}
			groupDone(t, c, topic, "g")
			seen.check(t, 4100, true)
			list, err := c.Groups(ctx, topic)
			if err != nil || len(list.Groups) != 1 || list.Groups[0].Lag != 0 || list.Groups[0].Members != 0 {
				t.Errorf("list %+v, %v", list, err)
			}
		})
	}
}

// A record as large as its topic takes, or with as many headers, can become a dead letter, and go back.
func TestLargestRecordsAsDeadLetters(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	many := make([]client.Header, record.MaxSentHeaders)
	for i := range many {
		many[i] = client.Text("h", "")
	}
	for _, mode := range groupModes {
		for size, limit := range map[int]string{wire.MaxRecord: "1MiB", 1 << 10: "1KiB"} {
			t.Run(string(mode)+limit, func(t *testing.T) {
				t.Parallel()
				topic, ctx := "large-"+string(mode)+limit, deadline(t)
				spec := client.TopicSpec{Name: topic, Partitions: 1, Config: map[string]string{wire.ConfigMaxRecord: limit}}
				if _, err := c.CreateTopic(ctx, spec); err != nil {
					t.Fatal(err)
				}
				p, err := c.NewProducer(ctx, topic)
				if err != nil {
					t.Fatal(err)
				}
				records := []client.Record{{Value: make([]byte, size)}}
				if size == wire.MaxRecord {
					records = append(records, client.Record{Headers: many})
					if _, err := p.Publish(ctx, client.Record{Headers: append(many, client.Text("h", ""))}); !errors.Is(err, client.ErrTooLarge) {
						t.Errorf("one header too many: %v", err)
					}
				}
				for _, r := range records {
					if _, err := p.Publish(ctx, r); err != nil {
						t.Fatal(err)
					}
				}
				var broken atomic.Bool
				var handled atomic.Int32
				broken.Store(true)
				if _, err := c.Subscribe(ctx, topic, "g", func(_ context.Context, m *client.Message) error {
					if broken.Load() {
						return client.Terminate(strings.Repeat("\xff", 200) + strings.Repeat("ü", 4000))
					}
					if len(m.Value) == size || len(m.Headers) >= len(many) {
						handled.Add(1)
					}
					return nil
				}, client.Mode(mode)); err != nil {
					t.Fatal(err)
				}
				groupDone(t, c, topic, "g")
				broken.Store(false)
				if n, err := c.RedriveGroup(ctx, topic, "g", 0); err != nil || n != len(records) {
					t.Errorf("redriven %d: %v", n, err)
				}
				brokertest.Eventually(t, "what went back is handled", func() bool { return int(handled.Load()) == len(records) })
			})
		}
	}
}

// A member that wrote dead letters and stopped before its position moved is followed by one that ends the same records:
// they have message ids made of where they are, so each is in the dead-letter topic once.
func TestDeadLettersOfAFollowerAreTheSame(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	ctx := deadline(t)
	createTopic(t, c, "jobs", 1)
	p, err := c.NewProducer(ctx, "jobs")
	if err != nil {
		t.Fatal(err)
	}
	const n = 20
	for i := range n {
		r := client.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, i), Headers: []client.Header{
			client.Text(wire.HeaderMsgID, fmt.Sprint("own-", i)), client.Text(wire.HeaderReason, "of an earlier life"), client.Text("Trace", "abc"),
		}}
		if _, err := p.Publish(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	member := func() *client.Subscription {
		s, err := c.Subscribe(ctx, "jobs", "g", func(context.Context, *client.Message) error { return client.Terminate("no good") }, client.ManualCommit())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	read := func() (all []client.Message) {
		r, err := c.NewReader(ctx, "dlq-jobs-g", client.UntilEnd())
		if err != nil {
			return nil // not made yet
		}
		for m, err := range r.Messages(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m.Clone())
		}
		_ = r.Close(ctx)
		return all
	}
	first := member()
	brokertest.Eventually(t, "all are dead letters", func() bool { return len(read()) == n })
	if err := first.Close(ctx); err != nil { // without a commit
		t.Fatal(err)
	}
	second := member()
	brokertest.Eventually(t, "the next member is past them", func() bool {
		if err := second.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		d, err := c.DescribeGroup(ctx, "jobs", "g")
		return err == nil && d.Lag == 0
	})
	if dead := second.Stats().Dead; dead != n {
		t.Errorf("the next member ended %d records, want all %d again", dead, n)
	}
	all := read()
	if len(all) != n {
		t.Errorf("%d letters of %d records", len(all), n)
	}
	for i := range all {
		m := &all[i]
		got := map[string][]string{}
		for _, h := range m.Headers {
			got[string(h.Key)] = append(got[string(h.Key)], string(h.Value))
		}
		for key, want := range map[string]string{
			wire.HeaderMsgID: fmt.Sprintf("g/jobs/0/%d", m.Offset), wire.HeaderOriginalID: fmt.Sprintf("own-%d", m.Offset), wire.HeaderReason: "no good", "Trace": "abc",
		} {
			if !slices.Equal(got[key], []string{want}) {
				t.Errorf("letter %d: header %s is %q, want %q", m.Offset, key, got[key], want)
			}
		}
	}
}

// Failures in a group: back-off, dead letters with their reason, redrive.
func TestGroupDeadLetters(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	for _, mode := range groupModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			topic := "jobs-" + string(mode)
			ctx := deadline(t)
			createTopic(t, c, topic, 2)
			publishKeys(t, c, topic, 0, 200, 10)
			var broken atomic.Bool
			broken.Store(true)
			seen := newTally()
			var most atomic.Int32
			s, err := c.Subscribe(ctx, topic, "workers", func(_ context.Context, m *client.Message) error {
				switch v := string(m.Value); {
				case v == "7" && broken.Load():
					most.Store(max(most.Load(), m.Deliveries))
					return errors.New("seven is broken")
				case v == "8" && broken.Load():
					return client.Terminate("eight is no good")
				case v == "9" && m.Deliveries == 1:
					return client.RetryAfter(20*time.Millisecond, nil)
				case v == "10" && m.Deliveries == 1:
					panic("ten")
				}
				seen.see(m, "")
				return nil
			}, client.Mode(mode), client.MaxDeliveries(3), client.Backoff(10*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			groupDone(t, c, topic, "workers")
			seen.check(t, 198, true)
			if most.Load() != 3 {
				t.Errorf("seven was delivered %d times", most.Load())
			}
			letters := "dlq-" + topic + "-workers"
			reasons := map[string]string{}
			brokertest.Eventually(t, "both are dead letters", func() bool {
				r, err := c.NewReader(ctx, letters, client.UntilEnd())
				if err != nil {
					return false
				}
				for m, err := range r.Messages(ctx) {
					if err != nil {
						t.Fatal(err)
					}
					reason, _ := m.Header("Parley-Reason")
					reasons[string(m.Value)] = string(reason)
				}
				_ = r.Close(ctx)
				return len(reasons) == 2
			})
			t.Logf("reasons %v", reasons)
			if reasons["8"] != "eight is no good" {
				t.Errorf("reason %q", reasons["8"])
			}
			broken.Store(false)
			n, err := c.RedriveGroup(ctx, topic, "workers", 0)
			if err != nil || n != 2 {
				t.Errorf("redriven %d: %v", n, err)
			}
			brokertest.Eventually(t, "the redriven ones are handled", func() bool { return seen.seen() == 200 })
			seen.check(t, 200, true)
			if err := s.Close(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// Resets while a member runs, deletes, other options than the group has.
func TestGroupAdministration(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	ctx := deadline(t)
	createTopic(t, c, "admin", 2)
	publishKeys(t, c, "admin", 0, 100, 100)
	for _, mode := range groupModes {
		group := string(mode)
		seen := newTally()
		s, err := c.Subscribe(ctx, "admin", group, func(_ context.Context, m *client.Message) error { seen.see(m, ""); return nil }, client.Mode(mode))
		if err != nil {
			t.Fatal(err)
		}
		groupDone(t, c, "admin", group)
		if _, err := c.ResetGroup(ctx, "admin", group, client.FromEarliest()); err != nil {
			t.Fatal(err)
		}
		brokertest.Eventually(t, "everything came again", func() bool {
			seen.mu.Lock()
			defer seen.mu.Unlock()
			for _, n := range seen.n {
				if n < 2 {
					return false
				}
			}
			return len(seen.n) == 100
		})
		groupDone(t, c, "admin", group)
		other := groupModes[(slices.Index(groupModes, mode)+1)%3]
		if _, err := c.Subscribe(ctx, "admin", group, func(context.Context, *client.Message) error { return nil }, client.Mode(other)); !errors.Is(err, client.ErrGroupMismatch) {
			t.Errorf("another mode: %v", err)
		}
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		if _, err := c.DeleteGroup(ctx, "admin", group); err != nil {
			t.Error(err)
		}
		if _, err := c.DescribeGroup(ctx, "admin", group); !errors.Is(err, client.ErrGroupNotFound) {
			t.Errorf("%s after its deletion: %v", group, err)
		}
	}
	if _, err := c.DescribeGroup(ctx, "nowhere", "g"); !errors.Is(err, client.ErrTopicNotFound) {
		t.Errorf("no topic: %v", err)
	}
	// A group on a topic that is deleted.
	createTopic(t, c, "doomed", 1)
	s, err := c.Subscribe(ctx, "doomed", "g", func(context.Context, *client.Message) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteTopic(ctx, "doomed"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
		if !errors.Is(s.Err(), client.ErrTopicNotFound) {
			t.Errorf("ended with %v", s.Err())
		}
	case <-ctx.Done():
		t.Error("the member of a deleted topic's group goes on")
	}
}

// Three brokers, one of them killed in the middle of it.
func TestGroupSurvivesFailover(t *testing.T) {
	t.Parallel()
	cluster := brokertest.StartCluster(t, 3)
	c := connect(t, cluster.Brokers[0].URL())
	ctx := deadline(t)
	const records = 3000
	counts := map[client.GroupMode]*tally{}
	topic := func(mode client.GroupMode) string { return "t-" + string(mode) }
	for _, mode := range groupModes {
		createTopic(t, c, topic(mode), 3)
		cluster.InSync(topic(mode))
		seen := newTally()
		counts[mode] = seen
		opts := []client.SubscribeOption{client.Mode(mode), client.Session(2 * time.Second)}
		if mode != client.Exclusive {
			opts = append(opts, client.AckWait(3*time.Second))
		}
		for range 2 {
			_, err := c.Subscribe(ctx, topic(mode), "g", func(_ context.Context, m *client.Message) error {
				order := ""
				if mode == client.Exclusive {
					order = fmt.Sprint(m.Partition, " ", m.Token)
				}
				seen.see(m, order)
				time.Sleep(200 * time.Microsecond)
				return nil
			}, opts...)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for part := range 3 {
		for _, mode := range groupModes {
			publishKeys(t, c, topic(mode), part*records/3, records/3, 50)
		}
		if part == 0 {
			victim := leaderOf(t, c, topic(client.Shared), 0)
			cluster.Member(victim).Kill()
			t.Logf("killed %s", victim)
		}
	}
	for _, mode := range groupModes {
		brokertest.Eventually(t, string(mode)+" has seen everything", func() bool { return counts[mode].seen() == records })
		groupDone(t, c, topic(mode), "g")
		counts[mode].check(t, records, false)
	}
}
