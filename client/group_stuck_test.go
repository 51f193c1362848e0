package client_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// An exclusive group's dead letter that can't be written holds its partition up, and nothing else; the group, the cluster's health
// and the metrics say which partition, which offset, why, since when and what to do, until it is written.
func TestStuckDeadLetterOfAnExclusiveGroup(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	ctx := deadline(t)
	createTopic(t, c, "jobs", 2)
	if _, err := c.CreateTopic(ctx, client.TopicSpec{Name: "dead", Config: map[string]string{wire.ConfigMaxRecord: "64"}}); err != nil {
		t.Fatal(err)
	}
	p, err := c.NewProducer(ctx, "jobs", client.PartitionBy(client.ByRecord))
	if err != nil {
		t.Fatal(err)
	}
	for number := range int32(2) {
		for i := range 6 {
			r := client.Record{Partition: number, Value: fmt.Append(nil, i)}
			if number == 1 && i%2 == 1 { // 1, 3, 5
				r.Value = []byte(strings.Repeat("x", 64+record.AddedBytes+1))
			}
			if _, err := p.Publish(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := c.Subscribe(ctx, "jobs", "g", func(_ context.Context, m *client.Message) error {
		if len(m.Value) > 64 {
			return client.Terminate("too large")
		}
		return nil
	}, client.DeadLetter("dead")); err != nil {
		t.Fatal(err)
	}
	var d client.GroupDescription
	brokertest.Eventually(t, "the group says what holds it up", func() bool {
		d, err = c.DescribeGroup(ctx, "jobs", "g")
		if err != nil {
			t.Fatal(err)
		}
		return d.Partitions[0].Lag == 0 && strings.Contains(d.Partitions[1].Problem, "3 dead letters wait")
	})
	text := d.Partitions[1].Problem
	for _, want := range []string{"offset 1 can't be written to dead since 2", "too large", "parley group reset jobs g --to 2 --partition 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in: %s", want, text)
		}
	}
	if d.Partitions[0].Problem != "" || d.Partitions[1].Committed != 1 {
		t.Errorf("%+v", d.Partitions)
	}
	if h, err := c.Health(ctx); err != nil || !h.Healthy || !strings.Contains(strings.Join(h.Warnings, "\n"), "partition jobs/1, group g: "+text) {
		t.Errorf("health %+v, %v", h, err)
	}
	for _, want := range []string{`parley_group_stuck{group="g",topic="jobs"} 1`, `parley_group_dead_pending_records{group="g",topic="jobs"} 3`,
		`parley_group_stuck_offset{group="g",partition="1",topic="jobs"} 1`, `parley_group_stuck_seconds{group="g",partition="1",topic="jobs"}`} {
		if text := scrape(t, b.Addresses().HTTP); !strings.Contains(text, want) {
			t.Errorf("%s is missing in the metrics", want)
		}
	}
	if _, err := c.AlterTopic(ctx, client.TopicAlter{Name: "dead", Config: map[string]string{wire.ConfigMaxRecord: "1MiB"}}); err != nil {
		t.Fatal(err)
	}
	d = groupDone(t, c, "jobs", "g")
	brokertest.Eventually(t, "nothing is told any more", func() bool {
		d, err = c.DescribeGroup(ctx, "jobs", "g")
		h, healthErr := c.Health(ctx)
		return err == nil && healthErr == nil && d.Partitions[1].Problem == "" && len(h.Warnings) == 0
	})
	if text := scrape(t, b.Addresses().HTTP); strings.Contains(text, "parley_group_stuck_") || !strings.Contains(text, `parley_group_stuck{group="g",topic="jobs"} 0`) {
		t.Error("the metrics still tell of it")
	}
}

func scrape(t *testing.T, address string) string {
	t.Helper()
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
