package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// die has a group give up a topic's records.
func die(t testing.TB, nc *nats.Conn, topic, group string, n int, o wire.GroupOptions) {
	t.Helper()
	for range n {
		m := one(t, nc, topic, group, wire.NextRequest{ExpiresMS: 10_000, Options: o})
		mustSettle(t, nc, m, "+TERM bad number "+string(m.Data))
	}
}

// redrive is sent as a client sends it: again while there is more, until the limit is reached. It sums up what the answers tell.
func redrive(t testing.TB, nc *nats.Conn, topic, group string, limit int) (res wire.GroupRedriven) {
	t.Helper()
	// What is retriable is sent again, too: on a busy machine leaders move at any time, and then a partition of
	// either topic says not_leader. What it was is in the test's log.
	brokertest.Eventually(t, "a redrive", func() bool {
		q := wire.GroupRedriveRequest{Topic: topic, Group: group}
		if limit > 0 {
			q.Limit = limit - res.Redriven
		}
		var one wire.GroupRedriven
		err := brokertest.Call(nc, wire.APIGroupRedrive, q, &one)
		var e *wire.Error
		if err != nil && (!errors.As(err, &e) || !e.Retriable) {
			t.Fatalf("redrive: %v", err)
		}
		if err != nil {
			t.Logf("redrive, to be sent again: %v", err)
			return false
		}
		res.Redriven, res.More = res.Redriven+one.Redriven, one.More
		t.Logf("redrive of up to %d: %+v", q.Limit, one)
		return !res.More || limit > 0 && res.Redriven >= limit
	})
	return res
}

func inTopic(b *brokertest.Broker, topic string) int64 {
	d, err := b.API().TopicDescribe(context.Background(), wire.NameRequest{Name: topic})
	if err != nil {
		return -1
	}
	n := int64(0)
	for _, p := range d.Partitions {
		n += p.NextOffset
	}
	return n
}

// TestDeadLettersAndRedrive: records that a group gives up are in its dead-letter topic with
// their key and headers, and come back, each once.
func TestDeadLettersAndRedrive(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 3)
	nc := c.Brokers[1].Connect()
	const n = 12
	for i := range n {
		m := &nats.Msg{Subject: "jobs.x", Data: fmt.Append(nil, i), Header: nats.Header{
			wire.HeaderKey: {fmt.Sprintf("k%d", i)}, "Trace": {fmt.Sprintf("t%d", i)}, wire.HeaderMsgID: {fmt.Sprintf("id%d", i)},
		}}
		if _, err := brokertest.Publish(nc, m); err != nil {
			t.Fatal(err)
		}
	}
	var e *wire.Error
	if err := brokertest.Call(nc, wire.APIGroupRedrive, wire.GroupRedriveRequest{Topic: "jobs", Group: "g"}, nil); !errors.As(err, &e) || e.Reason != wire.ReasonGroupNotFound {
		t.Errorf("redrive of a group that isn't there: %v", err)
	}
	mustSettle(t, nc, one(t, nc, "jobs", "g", wire.NextRequest{}), `-NAK {"delay_ms":1}`)
	if res := redrive(t, nc, "jobs", "g", 0); res.Redriven != 0 || res.More {
		t.Errorf("redrive without dead letters: %+v", res)
	}
	die(t, nc, "jobs", "g", n, wire.GroupOptions{})
	const dlq = "dlq-jobs-g"
	brokertest.Eventually(t, "all are dead letters", func() bool {
		if d, err := c.Brokers[0].API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "g"}); err != nil {
			t.Log(err)
		} else {
			for _, p := range d.Partitions {
				if p.Problem != "" {
					t.Log(p.Problem)
				}
			}
		}
		return inTopic(c.Brokers[0].Broker, dlq) == n
	})
	d := c.Describe(dlq)
	if len(d.Partitions) != 1 || len(d.Partitions[0].Replicas) != 3 {
		t.Errorf("dead-letter topic %+v", d)
	}
	// Some now, the rest by another broker, then nothing is left.
	if res := redrive(t, nc, "jobs", "g", 5); res.Redriven != 5 || !res.More {
		t.Errorf("%+v", res)
	}
	if res := redrive(t, c.Brokers[2].Connect(), "jobs", "g", 0); res.Redriven != n-5 || res.More {
		t.Errorf("%+v", res)
	}
	if res := redrive(t, nc, "jobs", "g", 0); res.Redriven != 0 || res.More {
		t.Errorf("%+v", res)
	}
	if got := inTopic(c.Brokers[0].Broker, "jobs"); got != 2*n {
		t.Errorf("%d records in the topic, want %d", got, 2*n)
	}
	seen := map[string]bool{}
	for range n {
		m := one(t, nc, "jobs", "g", wire.NextRequest{ExpiresMS: 5000})
		i := string(m.Data)
		if seen[i] || m.Header.Get(wire.HeaderKey) != "k"+i || m.Header.Get("Trace") != "t"+i || m.Header.Get(wire.HeaderReason) != "" ||
			m.Header.Get(wire.HeaderTopic) != "jobs" || m.Header.Get(wire.HeaderOriginalID) != "id"+i || m.Header.Get(wire.HeaderSubject) != "jobs.x" {
			t.Errorf("came back %q %+v", m.Data, m.Header)
		}
		seen[i] = true
		mustSettle(t, nc, m, "")
	}
}

// TestRedriveRepeated: a redrive that published and could not say how far it got is repeated.
func TestRedriveRepeated(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "jobs"})
	nc := b.Connect()
	publishAll(t, nc, "jobs", 0, "a", "b", "c")
	die(t, nc, "jobs", "g", 3, wire.GroupOptions{})
	brokertest.Eventually(t, "all are dead letters", func() bool { return inTopic(b, "dlq-jobs-g") == 3 })
	for range 3 {
		if res := redrive(t, nc, "jobs", "g", 0); res.Redriven != 3 {
			t.Fatalf("%+v", res)
		}
		// As if the commit had been lost.
		if err := brokertest.Call(nc, wire.APIGroupReset, wire.GroupResetRequest{Topic: "dlq-jobs-g", Group: "parley-redrive", To: "earliest"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := inTopic(b, "jobs"); got != 6 {
		t.Errorf("%d records in the topic, want 6", got)
	}
}

// TestRedriveThatIsBrokenOff gives back what it has: the next one goes on at once, where it stopped.
func TestRedriveThatIsBrokenOff(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "jobs"})
	nc := b.Connect()
	const n = 300
	for range n {
		publishAll(t, nc, "jobs", 0, "x")
	}
	die(t, nc, "jobs", "g", n, wire.GroupOptions{})
	brokertest.Eventually(t, "all are dead letters", func() bool { return inTopic(b, "dlq-jobs-g") == n })
	ctx, cancel := context.WithCancel(t.Context())
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		_, _ = b.API().GroupRedrive(ctx, wire.GroupRedriveRequest{Topic: "jobs", Group: "g"}) // how far it got is seen below
	}()
	brokertest.Eventually(t, "it is under way", func() bool { return inTopic(b, "jobs") > n })
	cancel()
	<-broken
	got := inTopic(b, "jobs") - n
	res, err := b.API().GroupRedrive(t.Context(), wire.GroupRedriveRequest{Topic: "jobs", Group: "g"})
	if err != nil {
		t.Fatalf("the next one, after %d of %d letters: %v", got, n, err)
	}
	if all := inTopic(b, "jobs"); all != 2*n || res.More {
		t.Errorf("%d records in the topic, want %d; the second one %+v after %d", all, 2*n, res, got)
	}
	t.Logf("broken off after %d letters", got)
}

// TestDeadLettersThatCanNotBeWritten stay, and are told of, until they can be.
func TestDeadLettersThatCanNotBeWritten(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "jobs"})
	b.CreateTopic(wire.TopicSpec{Name: "dead", Config: map[string]string{"max_record": "64"}})
	nc := b.Connect()
	large := strings.Repeat("x", 64+record.AddedBytes+1) // headers of dead letters don't count
	publishAll(t, nc, "jobs", 0, large, large)
	for range 2 {
		mustSettle(t, nc, one(t, nc, "jobs", "g", wire.NextRequest{ExpiresMS: 10_000, Options: wire.GroupOptions{DeadLetter: "dead"}}), "+TERM too large")
	}
	publishAll(t, nc, "jobs", 0, "c")
	// The group goes on meanwhile.
	mustSettle(t, nc, one(t, nc, "jobs", "g", wire.NextRequest{ExpiresMS: 5000}), "")
	brokertest.Eventually(t, "the group says that its dead letters are stuck", func() bool {
		d, err := b.API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "g"})
		return err == nil && strings.Contains(d.Partitions[0].Problem, "dead") && strings.Contains(d.Partitions[0].Problem, fmt.Sprintf("at most %d", 64+record.AddedBytes)) && d.Lag == 2
	})
	if text := scrapeGroups(t, b); !strings.Contains(text, `parley_group_stuck{group="g",topic="jobs"} 1`) || !strings.Contains(text, `parley_group_dead_pending_records{group="g",topic="jobs"} 2`) {
		t.Errorf("metrics don't tell:\n%s", text)
	}
	if _, err := b.API().TopicAlter(t.Context(), wire.TopicAlter{Name: "dead", Config: map[string]string{"max_record": "1MiB"}}); err != nil {
		t.Fatal(err)
	}
	brokertest.Eventually(t, "the dead letters are written", func() bool { return inTopic(b, "dead") == 2 })
	brokertest.Eventually(t, "all is handled", func() bool {
		d, err := b.API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "g"})
		return err == nil && d.Lag == 0 && d.Partitions[0].Problem == ""
	})
	if text := scrapeGroups(t, b); !strings.Contains(text, `parley_group_dead_letters_total{group="g",topic="jobs"} 2`) || !strings.Contains(text, `parley_group_handled_records_total{group="g",topic="jobs"} 1`) {
		t.Errorf("metrics don't tell:\n%s", text)
	}
}

// TestLargestDeadLetter: a record as large as one may be can die, and come back.
func TestLargestDeadLetter(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "jobs"})
	nc := b.Connect()
	publishAll(t, nc, "jobs", 0, strings.Repeat("x", wire.MaxRecord))
	m := one(t, nc, "jobs", "g", wire.NextRequest{})
	mustSettle(t, nc, m, "+TERM "+strings.Repeat("because ", 1000))
	brokertest.Eventually(t, "it is a dead letter", func() bool { return inTopic(b, "dlq-jobs-g") == 1 })
	if all, err := brokertest.ReadAll(nc, "dlq-jobs-g", 0); err != nil || len(all) != 1 || len(all[0].Value) != wire.MaxRecord {
		t.Errorf("%d letters, %v", len(all), err)
	}
	if res := redrive(t, nc, "jobs", "g", 0); res.Redriven != 1 {
		t.Errorf("%+v", res)
	}
	if m := one(t, nc, "jobs", "g", wire.NextRequest{}); len(m.Data) != wire.MaxRecord {
		t.Errorf("%d bytes came back", len(m.Data))
	}
}

func scrapeGroups(t testing.TB, b *brokertest.Broker) string {
	t.Helper()
	res, err := http.Get("http://" + b.Addresses().HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var groups strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "parley_group") {
			groups.WriteString(line)
		}
	}
	return groups.String()
}

// TestGroupMetricsAreBounded: over the limit, groups are counted and not told of.
func TestGroupMetricsAreBounded(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.Limits.GroupMetrics = 3 })
	b.CreateTopic(wire.TopicSpec{Name: "jobs", Partitions: 2})
	nc := b.Connect()
	for i := range 5 {
		if _, _, err := next(nc, "jobs", fmt.Sprintf("g%d", i), wire.NextRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	text := scrapeGroups(t, b)
	if n := strings.Count(text, "parley_group_lag_records{"); n != 3 || !strings.Contains(text, "parley_groups_untold 2") {
		t.Errorf("%d groups told of", n)
	}
}
