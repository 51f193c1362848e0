package client_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
)

// events collects what a client logs.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) log(event string, fields ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event+" "+fmt.Sprint(fields...))
}

func (e *events) count(part string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.all {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

func leaderOf(t *testing.T, c *client.Client, topic string, partition int) string {
	t.Helper()
	md, err := c.Metadata(deadline(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	if len(md.Topics) != 1 || partition >= len(md.Topics[0].Leaders) {
		t.Fatalf("metadata %+v", md)
	}
	return md.Topics[0].Leaders[partition]
}

// A client of a cluster dials the leaders; when one is killed in the middle of things,
// everything is there, once and in order.
func TestClusterLeaderIsKilled(t *testing.T) {
	t.Parallel()
	cluster := brokertest.StartCluster(t, 3)
	var e events
	c := connect(t, cluster.Brokers[0].URL(), client.WithLog(e.log))
	ctx := deadline(t)
	const partitions = 3
	createTopic(t, c, "orders", partitions)
	cluster.InSync("orders")
	p, err := c.NewProducer(ctx, "orders")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	send := func() time.Duration {
		start := time.Now()
		for i := range int32(partitions) {
			if _, err := p.Publish(ctx, client.Record{Key: fmt.Append(nil, i), Value: fmt.Appendf(nil, "%06d", n)}); err != nil {
				t.Fatal(err)
			}
			n++
		}
		return time.Since(start)
	}
	brokertest.Eventually(t, "connected to the leaders", func() bool {
		send()
		return e.count("connected to a partition's leader") >= 1
	})
	for range 20 {
		send()
	}
	victim := ""
	for i := range partitions {
		if name := leaderOf(t, c, "orders", i); name != "b1" && name != "" {
			victim = name
		}
	}
	if victim == "" {
		t.Fatal("b1 leads everything")
	}
	cluster.Member(victim).Kill()
	t.Logf("%s was killed: the next acks of all partitions came after %v", victim, send())
	for range 20 {
		send()
	}
	// Then the broker that the client began with.
	cluster.Member(victim).Start()
	cluster.InSync("orders")
	cluster.Member("b1").Kill()
	t.Logf("b1 was killed: the next acks of all partitions came after %v", send())
	for range 20 {
		send()
	}
	r, err := c.NewReader(ctx, "orders", client.UntilEnd())
	if err != nil {
		t.Fatal(err)
	}
	last, got := map[int32]string{}, 0
	for m, err := range r.Messages(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if v := string(m.Value); v <= last[m.Partition] && last[m.Partition] != "" {
			t.Errorf("partition %d: %s after %s", m.Partition, v, last[m.Partition])
		}
		last[m.Partition] = string(m.Value)
		got++
	}
	if got != n {
		t.Errorf("read %d of %d records", got, n)
	}
}

// A client that reaches one broker only, whoever leads.
func TestClusterOneBrokerInReach(t *testing.T) {
	t.Parallel()
	cluster := brokertest.StartCluster(t, 3)
	only := strings.TrimPrefix(cluster.Brokers[1].URL(), "nats://")
	var e events
	c := connect(t, cluster.Brokers[1].URL(), client.WithLog(e.log), client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
		if address != only {
			return nil, fmt.Errorf("no way to %s", address)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}))
	ctx := deadline(t)
	createTopic(t, c, "orders", 6)
	p, err := c.NewProducer(ctx, "orders")
	if err != nil {
		t.Fatal(err)
	}
	const records = 300
	for i := range records {
		if _, err := p.Publish(ctx, client.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := c.NewReader(ctx, "orders", client.UntilEnd())
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for _, err := range r.Messages(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		got++
	}
	if got != records {
		t.Errorf("read %d of %d records", got, records)
	}
	if e.count("can't be reached directly") == 0 {
		t.Error("no leader was out of reach: the test proves nothing")
	}
}
