package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// next asks for records as a plain client does: one request, answers until the last
// one, whose status is returned ("" when all that were asked for came).
func next(nc *nats.Conn, topic, group string, q wire.NextRequest) (got []*nats.Msg, status string, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, "", err
	}
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(wire.NextPrefix+topic+"."+group, inbox, body); err != nil {
		return nil, "", err
	}
	for len(got) < max(q.Batch, 1) {
		m, err := sub.NextMsg(brokertest.Wait)
		if err != nil {
			return got, "", err
		}
		if m.Header.Get(wire.HeaderError) != "" {
			return got, m.Header.Get("Status"), brokertest.Decode(m.Data, nil)
		}
		if s := m.Header.Get("Status"); s != "" {
			return got, s, nil
		}
		got = append(got, m)
	}
	return got, "", nil
}

// one asks for a record that must be there.
func one(t testing.TB, nc *nats.Conn, topic, group string, q wire.NextRequest) *nats.Msg {
	t.Helper()
	got, status, err := next(nc, topic, group, q)
	var e *wire.Error
	for limit := time.Now().Add(brokertest.Wait); errors.As(err, &e) && e.Retriable && time.Now().Before(limit); {
		got, status, err = next(nc, topic, group, q)
	}
	if err != nil || len(got) != 1 {
		t.Fatalf("next of %s/%s: %d records, status %q, %v", topic, group, len(got), status, err)
	}
	return got[0]
}

// settle acks a record, or says something else of it, and waits to hear that it was taken.
func settle(nc *nats.Conn, m *nats.Msg, what string) error {
	for limit := time.Now().Add(brokertest.Wait); ; {
		answer, err := nc.Request(m.Reply, []byte(what), brokertest.Wait)
		if err != nil {
			return err
		}
		err = brokertest.Decode(answer.Data, nil)
		var e *wire.Error
		if !errors.As(err, &e) || !e.Retriable || time.Now().After(limit) {
			return err
		}
	}
}

func mustSettle(t testing.TB, nc *nats.Conn, m *nats.Msg, what string) {
	t.Helper()
	if err := settle(nc, m, what); err != nil {
		t.Fatalf("%s of %s: %v", what, m.Reply, err)
	}
}

func publishAll(t testing.TB, nc *nats.Conn, topic string, partition int32, values ...string) {
	t.Helper()
	for _, v := range values {
		m := &nats.Msg{Subject: topic, Data: []byte(v), Header: nats.Header{wire.HeaderPart: {strconv.Itoa(int(partition))}}}
		for limit := time.Now().Add(brokertest.Wait); ; {
			_, err := brokertest.Publish(nc, m)
			var e *wire.Error
			if err == nil {
				break
			}
			// Leadership may be on its way to where it belongs.
			if !errors.As(err, &e) || !e.Retriable || e.Outcome != wire.OutcomeRejected || time.Now().After(limit) {
				t.Fatal(err)
			}
		}
	}
}

func deliveries(m *nats.Msg) string { return m.Header.Get(wire.HeaderDeliveries) }

func token(t testing.TB, m *nats.Msg) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(m.Header.Get(wire.HeaderToken), 10, 64)
	if err != nil {
		t.Fatalf("token: %v", err)
	}
	return n
}

// calm waits until partitions are led by whom they are meant to be, and returns what
// tells whether that is still so: on a machine that has too much to do leadership
// moves, and records that were delivered come again.
func calm(t testing.TB, c *brokertest.Cluster, topic string) (still func() bool) {
	t.Helper()
	var terms []uint64
	look := func() (now []uint64, home bool) {
		home = true
		for _, p := range c.Describe(topic).Partitions {
			now = append(now, p.Term)
			home = home && p.Leader == p.Replicas[0]
		}
		return now, home
	}
	brokertest.Eventually(t, "leaders are where they belong", func() (home bool) {
		terms, home = look()
		return home
	})
	return func() bool {
		now, home := look()
		return home && slices.Equal(now, terms)
	}
}

// TestPlainConsumer: a client that knows nothing but NATS takes records one by one,
// acks them, sends them back, ends them.
func TestPlainConsumer(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "jobs"})
	nc := b.Connect()
	if got, status, err := next(nc, "jobs", "workers", wire.NextRequest{}); err != nil || status != "404" {
		t.Fatalf("an empty topic: %d records, status %q, %v", len(got), status, err)
	}
	m := nats.NewMsg("jobs.eu")
	m.Data, m.Header["X"] = []byte("one"), []string{"1", "2"}
	m.Header.Set(wire.HeaderKey, "k1")
	if _, err := brokertest.Publish(nc, m); err != nil {
		t.Fatal(err)
	}
	publishAll(t, nc, "jobs", 0, "two")

	first := one(t, nc, "jobs", "workers", wire.NextRequest{})
	if string(first.Data) != "one" || first.Header.Get(wire.HeaderKey) != "k1" || !slices.Equal(first.Header["X"], []string{"1", "2"}) ||
		first.Header.Get(wire.HeaderSubject) != "jobs.eu" || first.Header.Get(wire.HeaderOffset) != "0" || first.Header.Get(wire.HeaderTopic) != "jobs" ||
		first.Header.Get(wire.HeaderGroup) != "workers" || deliveries(first) != "1" {
		t.Errorf("%q %+v", first.Data, first.Header)
	}
	if at, err := time.Parse(time.RFC3339, first.Header.Get(wire.HeaderTime)); err != nil || time.Since(at) > brokertest.Wait {
		t.Errorf("time %v, %v", at, err)
	}
	mustSettle(t, nc, first, "")
	mustSettle(t, nc, first, "+ACK") // again: its answer may have been lost

	second := one(t, nc, "jobs", "workers", wire.NextRequest{})
	mustSettle(t, nc, second, "+WPI")
	mustSettle(t, nc, second, `-NAK {"delay_ms":1}`)
	back := one(t, nc, "jobs", "workers", wire.NextRequest{ExpiresMS: 5000})
	if string(back.Data) != "two" || deliveries(back) != "2" || token(t, back) <= token(t, second) {
		t.Errorf("delivery %s, token %d after %d", deliveries(back), token(t, back), token(t, second))
	}
	// The zombie: its delivery is over.
	var e *wire.Error
	if err := settle(nc, second, "+ACK"); !errors.As(err, &e) || e.Reason != wire.ReasonStaleToken {
		t.Errorf("ack of a delivery that is over: %v", err)
	}
	mustSettle(t, nc, back, "+TERM no such customer")
	var letter *nats.Msg
	brokertest.Eventually(t, "the record is in the dead-letter topic", func() bool {
		got, _, err := next(nc, "dlq-jobs-workers", "ops", wire.NextRequest{})
		if err != nil || len(got) == 0 {
			return false
		}
		letter = got[0]
		return true
	})
	if string(letter.Data) != "two" || letter.Header.Get(wire.HeaderReason) != "no such customer" || letter.Header.Get(wire.HeaderOffset) != "1" ||
		letter.Header.Get(wire.HeaderTopic) != "jobs" || deliveries(letter) != "2" {
		t.Errorf("dead letter %q %+v", letter.Data, letter.Header)
	}
	publishAll(t, nc, "jobs", 0, "three")
	third := one(t, nc, "jobs", "workers", wire.NextRequest{ExpiresMS: 1000})
	if string(third.Data) != "three" {
		t.Errorf("third is %q", third.Data)
	}
	if err := nc.Publish(third.Reply, nil); err != nil { // without a word back
		t.Fatal(err)
	}
	brokertest.Eventually(t, "all is handled", func() bool {
		d, err := b.API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "workers"})
		return err == nil && d.Lag == 0 && d.Partitions[0].Pending == 0 && d.Mode == wire.ModeShared
	})
	start := time.Now()
	if got, status, err := next(nc, "jobs", "workers", wire.NextRequest{ExpiresMS: 60}); err != nil || status != "408" || time.Since(start) < 60*time.Millisecond {
		t.Errorf("a wait for nothing: %d records, status %q, %v, after %v", len(got), status, err, time.Since(start))
	}
}

// TestPlainConsumersOfACluster: whichever broker a client is connected to, it gets
// records of all partitions, each record goes to one client, and whoever waits is
// woken by a record anywhere.
func TestPlainConsumersOfACluster(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 6)
	still := calm(t, c, "jobs")
	pub := c.Brokers[0].Connect()
	// Somebody waits, on each broker, for a record of each partition in turn.
	for i, m := range c.Brokers {
		nc := m.Connect()
		for n := range int32(6) {
			value := fmt.Sprintf("%d/%d", i, n)
			woken := make(chan error, 1)
			go func() {
				got, status, err := next(nc, "jobs", "g", wire.NextRequest{ExpiresMS: 10_000})
				var e *wire.Error
				for errors.As(err, &e) && e.Retriable {
					got, status, err = next(nc, "jobs", "g", wire.NextRequest{ExpiresMS: 10_000})
				}
				switch {
				case err != nil:
				case len(got) != 1 || string(got[0].Data) != value:
					err = fmt.Errorf("%d records, status %q", len(got), status)
				default:
					err = settle(nc, got[0], "")
				}
				woken <- err
			}()
			publishAll(t, pub, "jobs", n, value)
			if err := <-woken; err != nil {
				t.Fatalf("%s is woken for %s: %v", m.Name, value, err)
			}
		}
	}
	// Many at once.
	const each = 50
	var wg sync.WaitGroup
	for n := range int32(6) {
		wg.Go(func() {
			for i := range each {
				publishAll(t, pub, "jobs", n, fmt.Sprintf("%d-%d", n, i))
			}
		})
	}
	var mu sync.Mutex
	var again []string
	seen := map[string]int{}
	for i := range 9 {
		nc := c.Brokers[i%3].Connect()
		wg.Go(func() {
			for {
				mu.Lock()
				done := len(seen) == 6*each
				mu.Unlock()
				if done {
					return
				}
				got, _, err := next(nc, "jobs", "g", wire.NextRequest{Batch: 1 + i%3*5, ExpiresMS: 200})
				var e *wire.Error
				if err != nil && !(errors.As(err, &e) && e.Retriable) {
					t.Errorf("next: %v", err)
					return
				}
				for _, m := range got {
					err := settle(nc, m, "")
					mu.Lock()
					if deliveries(m) != "1" {
						again = append(again, fmt.Sprintf("%q: delivery %s", m.Data, deliveries(m)))
					}
					if err != nil {
						again = append(again, fmt.Sprintf("ack of %q: %v", m.Data, err))
					}
					seen[string(m.Data)]++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	for v, n := range seen {
		if n != 1 {
			again = append(again, fmt.Sprintf("%q came %d times", v, n))
		}
	}
	switch {
	case len(again) > 0 && still():
		t.Errorf("what was delivered once came again: %q", again)
	case len(again) > 0:
		t.Logf("leadership moved, %d came again", len(again))
	}
	brokertest.Eventually(t, "all is handled", func() bool {
		d, err := c.Brokers[1].API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "g"})
		return err == nil && d.Lag == 0
	})
}

// TestSurplusGoesBack: one client waits for one record, and all partitions get one at the
// same time. What it doesn't get, others do at once, as if nobody had had it.
func TestSurplusGoesBack(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 6)
	still := calm(t, c, "jobs")
	nc, pub := c.Brokers[0].Connect(), c.Brokers[1].Connect()
	const rounds = 10
	for round := range rounds {
		got := make(chan string, 1)
		go func() {
			all, status, err := next(nc, "jobs", "g", wire.NextRequest{ExpiresMS: 10_000, Options: wire.GroupOptions{AckWaitMS: 600_000}})
			if err != nil || len(all) != 1 {
				got <- fmt.Sprintf("%d records, status %q, %v", len(all), status, err)
				return
			}
			if err := settle(nc, all[0], ""); err != nil {
				got <- err.Error()
				return
			}
			got <- ""
		}()
		var wg sync.WaitGroup
		for n := range int32(6) {
			wg.Go(func() { publishAll(t, pub, "jobs", n, fmt.Sprint(round)) })
		}
		wg.Wait()
		if s := <-got; s != "" {
			t.Fatal(s)
		}
		for i := range 5 {
			m := one(t, pub, "jobs", "g", wire.NextRequest{ExpiresMS: 5000, Options: wire.GroupOptions{AckWaitMS: 600_000}})
			if deliveries(m) != "1" && still() {
				t.Errorf("round %d, record %d: delivery %s", round, i, deliveries(m))
			}
			mustSettle(t, pub, m, "")
		}
	}
}

// TestClientThatLeaves: a client goes away while it waits. What comes then isn't
// handed to it.
func TestClientThatLeaves(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 6)
	still := calm(t, c, "jobs")
	pub := c.Brokers[0].Connect()
	for _, m := range c.Brokers {
		gone := m.Connect()
		inbox := gone.NewInbox()
		if _, err := gone.SubscribeSync(inbox); err != nil {
			t.Fatal(err)
		}
		if err := gone.PublishRequest(wire.NextPrefix+"jobs.g", inbox, []byte(`{"expires_ms":20000,"options":{"ack_wait_ms":600000}}`)); err != nil {
			t.Fatal(err)
		}
		if err := gone.Flush(); err != nil {
			t.Fatal(err)
		}
		gone.Close()
	}
	for n := range int32(6) {
		publishAll(t, pub, "jobs", n, "v")
	}
	for range 6 {
		m := one(t, pub, "jobs", "g", wire.NextRequest{ExpiresMS: 5000, Options: wire.GroupOptions{AckWaitMS: 600_000}})
		if deliveries(m) != "1" && still() {
			t.Errorf("delivery %s", deliveries(m))
		}
		mustSettle(t, pub, m, "")
	}
}

func TestBadNextRequests(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.Limits.FetchesPerSession = 2 })
	b.CreateTopic(wire.TopicSpec{Name: "t"})
	nc := b.Connect()
	for _, c := range []struct{ subject, body, want string }{
		{"nobody.g", "", wire.ReasonTopicNotFound},
		{"t", "", wire.ReasonBadRequest},
		{"t." + strings.Repeat("g", 65), "", wire.ReasonBadRequest},
		{"t.g", "{", wire.ReasonBadRequest},
		{"t.g", `{"batch":-1}`, wire.ReasonBadRequest},
		{"t.g", `{"batch":257}`, wire.ReasonBadRequest},
		{"t.g", `{"expires_ms":30001}`, wire.ReasonBadRequest},
		{"t.g", `{"options":{"mode":"exclusive"}}`, wire.ReasonBadRequest},
		{"t.g", `{"options":{"mode":"fair"}}`, wire.ReasonBadRequest},
		{"t.g", `{"options":{"from":"yesterday"}}`, wire.ReasonBadRequest},
		{"t.g", `{"options":{"ack_wait_ms":-1}}`, wire.ReasonBadRequest},
		{"t.g", `{"options":{"dead_letter":"a b"}}`, wire.ReasonBadRequest},
		{"t.g", `{"options":{"backoff_ms":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}}`, wire.ReasonBadRequest},
		{"t.g", `{"member":"` + strings.Repeat("m", 257) + `"}`, wire.ReasonBadRequest},
	} {
		m, err := nc.Request(wire.NextPrefix+c.subject, []byte(c.body), brokertest.Wait)
		if err != nil {
			t.Errorf("%s %s: %v", c.subject, c.body, err)
			continue
		}
		if got := reason(t, brokertest.Decode(m.Data, nil)); got != c.want || m.Header.Get(wire.HeaderError) != c.want || m.Header.Get("Status") == "" {
			t.Errorf("%s %s: %q, headers %v", c.subject, c.body, got, m.Header)
		}
	}
	for _, c := range []struct{ subject, body, want string }{
		{"$PARLEY.ACK.t.0.g.0.1.1", "", wire.ReasonGroupNotFound},
		{"$PARLEY.ACK.nobody.0.g.0.1.1", "", wire.ReasonTopicNotFound},
		{"$PARLEY.ACK.t.7.g.0.1.1", "", wire.ReasonPartNotFound},
		{"$PARLEY.ACK.t.0.g.0.1", "", wire.ReasonBadRequest},
		{"$PARLEY.ACK.t.0.g.0.1.1", "yes", wire.ReasonBadRequest},
		{"$PARLEY.ACK.t.0.g.0.1.1", "-RETURN", wire.ReasonBadRequest},
		{"$PARLEY.GROUP.NOPE.t.0", "{}", wire.ReasonBadRequest},
		{"$PARLEY.GROUP.JOIN.t.7", "{}", wire.ReasonPartNotFound},
		{"$PARLEY.GROUP.JOIN.t.0", "", wire.ReasonBadRequest},
		{"$PARLEY.GROUP.JOIN.t.0", `{"group":"g"}`, wire.ReasonBadRequest},
		{"$PARLEY.GROUP.JOIN.t.0", `{"group":"a.b","member":"m"}`, wire.ReasonBadRequest},
		{"$PARLEY.GROUP.SYNC.t.0", `{"group":"g","member":"m"}`, wire.ReasonUnknownMember},
		{"$PARLEY.GROUP.COMMIT.t.0", `{"group":"g","member":"m","offset":-2}`, wire.ReasonBadRequest},
		{"$PARLEY.GROUP.ACK.t.0", `{"group":"g","member":"m","items":[{"k":"maybe"}]}`, wire.ReasonBadRequest},
		{"$PARLEY.GROUP.PULL.t.0", `{"group":"g","member":"m","max_messages":5000}`, wire.ReasonBadRequest},
		{"$PARLEY.GROUP.SET.t.0", `{"group":"g"}`, wire.ReasonBadRequest},
		{"$PARLEY.GROUP.SET.t.0", `{"group":"g","to":"latest"}`, wire.ReasonGroupNotFound},
	} {
		m, err := nc.Request(c.subject, []byte(c.body), brokertest.Wait)
		if err != nil {
			t.Errorf("%s %s: %v", c.subject, c.body, err)
			continue
		}
		if got := reason(t, brokertest.Decode(m.Data, nil)); got != c.want {
			t.Errorf("%s %s: %q (%s), want %q", c.subject, c.body, got, m.Data, c.want)
		}
	}
	// As many waits as one connection may have, and one more.
	for range 2 {
		if err := nc.PublishRequest(wire.NextPrefix+"t.g", nc.NewInbox(), []byte(`{"expires_ms":20000}`)); err != nil {
			t.Fatal(err)
		}
	}
	brokertest.Eventually(t, "a third wait is refused", func() bool {
		m, err := nc.Request(wire.NextPrefix+"t.g", nil, brokertest.Wait)
		return err == nil && m.Header.Get(wire.HeaderError) == wire.ReasonBusy
	})
}
