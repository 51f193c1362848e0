package broker_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// reason of a failed request, "" when it succeeded.
func reason(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var e *wire.Error
	if !errors.As(err, &e) {
		t.Fatalf("not an answer of the broker: %v", err)
	}
	if e.Description == "" || e.Code < 400 {
		t.Errorf("an error that says nothing: %+v", e)
	}
	return e.Reason
}

func TestTopics(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	nc := b.Connect()
	change := func(subject string, req any, want, wantReason string) wire.TopicChange {
		t.Helper()
		var res wire.TopicChange
		err := brokertest.Call(nc, subject, req, &res)
		if got := reason(t, err); got != wantReason || res.Change != want {
			t.Errorf("%s %+v: %q %q (%v), want %q %q", subject, req, res.Change, got, err, want, wantReason)
		}
		return res
	}
	spec := wire.TopicSpec{Name: "a", Partitions: 2, Config: map[string]string{"retention": "7d"}}
	first := change(wire.APITopicCreate, spec, "created", "")
	again := change(wire.APITopicCreate, spec, "unchanged", "")
	if again.Epoch != first.Epoch {
		t.Errorf("a repeated create made epoch %d", again.Epoch)
	}
	change(wire.APITopicCreate, wire.TopicSpec{Name: "a", Partitions: 3, Config: spec.Config}, "", wire.ReasonTopicExists)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "a", Partitions: 2}, "", wire.ReasonTopicExists)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "a.b"}, "", wire.ReasonSubjectOverlap)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Subjects: []string{"a.*"}}, "", wire.ReasonSubjectOverlap)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Subjects: []string{"x", "x"}}, "", wire.ReasonSubjectOverlap)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Subjects: []string{"$SYS.x"}}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Replicas: 2}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Partitions: 1025}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Partitions: -1}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Config: map[string]string{"retention": "soon"}}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicCreate, wire.TopicSpec{Name: "x", Config: map[string]string{"colour": "red"}}, "", wire.ReasonInvalidConfig)
	for _, name := range []string{"", "a..b", "a b", "a.*", ">", "_x", "$x", strings.Repeat("n", 300)} {
		change(wire.APITopicCreate, wire.TopicSpec{Name: name}, "", wire.ReasonInvalidTopic)
	}
	change(wire.APITopicAlter, wire.TopicAlter{Name: "nobody"}, "", wire.ReasonTopicNotFound)
	change(wire.APITopicAlter, wire.TopicAlter{Name: "a"}, "unchanged", "")
	change(wire.APITopicAlter, wire.TopicAlter{Name: "a", Partitions: 1}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicAlter, wire.TopicAlter{Name: "a", Replicas: 3}, "", wire.ReasonInvalidConfig)
	change(wire.APITopicAlter, wire.TopicAlter{Name: "a", Partitions: 4, Config: map[string]string{"retention": "1d"}}, "altered", "")
	if ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "a", Header: nats.Header{wire.HeaderPart: {"3"}}}); err != nil || ack.Partition != 3 {
		t.Errorf("publish to a new partition: %+v, %v", ack, err)
	}
	var d wire.TopicDescription
	if err := brokertest.Call(nc, wire.APITopicDescribe, wire.NameRequest{Name: "a"}, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Partitions) != 4 || d.Config["retention"] != "1d" || d.Partitions[3].NextOffset != 1 || d.Partitions[3].Leader != "b1" ||
		fmt.Sprint(d.Partitions[0].Replicas, d.Partitions[0].InSync, d.Subjects) != "[b1] [b1] [a a.>]" || d.Partitions[3].Bytes == 0 {
		t.Errorf("described as %+v", d)
	}

	// Deleted: nobody binds its subjects, its name is free, its data is not gone.
	change(wire.APITopicDelete, wire.NameRequest{Name: "a"}, "deleted", "")
	change(wire.APITopicDelete, wire.NameRequest{Name: "a"}, "", wire.ReasonTopicNotFound)
	if _, err := nc.Request("a", nil, brokertest.Wait); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("publish to a deleted topic: %v", err)
	}
	var deleted wire.TopicList
	if err := brokertest.Call(nc, wire.APITopicList, wire.ListRequest{Deleted: true}, &deleted); err != nil || len(deleted.Topics) != 1 || deleted.Topics[0].DeletedAt == 0 {
		t.Errorf("deleted topics %+v, %v", deleted, err)
	}
	change(wire.APITopicCreate, wire.TopicSpec{Name: "a"}, "created", "")
	if ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "a"}); err != nil || ack.Offset != 0 {
		t.Errorf("publish to the new topic of an old name: %+v, %v", ack, err)
	}
	change(wire.APITopicRestore, wire.NameRequest{Name: "a"}, "", wire.ReasonTopicExists)
	change(wire.APITopicDelete, wire.NameRequest{Name: "a"}, "deleted", "")
	change(wire.APITopicRestore, wire.NameRequest{Name: "a"}, "restored", "")
	change(wire.APITopicRestore, wire.NameRequest{Name: "nobody"}, "", wire.ReasonTopicNotFound)
	// The newest tombstone came back: the one with one partition.
	if ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "a"}); err != nil || ack.Offset != 1 {
		t.Errorf("publish to the restored topic: %+v, %v", ack, err)
	}
	change(wire.APITopicCreate, wire.TopicSpec{Name: "b", Subjects: []string{"b.in.*"}}, "created", "")
	if ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "b.in.7"}); err != nil || ack.Topic != "b" {
		t.Errorf("publish to a bound subject: %+v, %v", ack, err)
	}
	if _, err := nc.Request("b", nil, brokertest.Wait); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("publish to a name that is no subject of its topic: %v", err)
	}

	// Pages.
	for i := range 9 {
		change(wire.APITopicCreate, wire.TopicSpec{Name: fmt.Sprintf("page-%d", i)}, "created", "")
	}
	var names []string
	for after := ""; ; {
		var page wire.TopicList
		if err := brokertest.Call(nc, wire.APITopicList, wire.ListRequest{After: after, Limit: 4}, &page); err != nil || len(page.Topics) > 4 {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, s := range page.Topics {
			names = append(names, s.Name)
			after = s.Name
		}
		if !page.More {
			break
		}
	}
	if fmt.Sprint(names) != "[a b page-0 page-1 page-2 page-3 page-4 page-5 page-6 page-7 page-8]" {
		t.Errorf("listed %v", names)
	}
	var epochs wire.EpochList
	if err := brokertest.Call(nc, wire.APIEpochList, wire.ListRequest{Limit: 3}, &epochs); err != nil || len(epochs.Epochs) != 3 || !epochs.More || epochs.Epochs[0].Previous != epochs.Epochs[1].Hash {
		t.Errorf("epochs %+v, %v", epochs, err)
	}
	if !strings.HasPrefix(epochs.Epochs[0].Change, "topic page-8 created") {
		t.Errorf("newest change %q", epochs.Epochs[0].Change)
	}
	zero := uint64(0)
	var e wire.EpochDescription
	if err := brokertest.Call(nc, wire.APIEpochShow, wire.EpochRequest{Epoch: &zero}, &e); err != nil || e.Epoch != 0 || len(e.Brokers) != 1 {
		t.Errorf("epoch 0: %+v, %v", e, err)
	}
	future := uint64(1 << 40)
	if err := brokertest.Call(nc, wire.APIEpochShow, wire.EpochRequest{Epoch: &future}, &e); reason(t, err) != wire.ReasonBadRequest {
		t.Errorf("a future epoch: %v", err)
	}
	var health wire.ClusterHealth
	if err := brokertest.Call(nc, wire.APIClusterHealth, nil, &health); err != nil || !health.Healthy {
		t.Errorf("health %+v, %v", health, err)
	}
	var status wire.ClusterStatus
	if err := brokertest.Call(nc, wire.APIClusterStatus, nil, &status); err != nil || status.Topics != 11 || status.Leaderless != 0 || status.Brokers[0].Leaders != status.Partitions {
		t.Errorf("status %+v, %v", status, err)
	}
	var meta wire.Metadata
	if err := brokertest.Call(nc, wire.APIMetadata, wire.MetadataRequest{Topics: []string{"b", "nobody"}}, &meta); err != nil ||
		meta.Topics[0].Leaders[0] != "b1" || meta.Topics[1].Error == nil || "nats://"+meta.Brokers[0].Address != b.URL() {
		t.Errorf("metadata %+v, %v", meta, err)
	}
}

// TestPurge deletes a topic's data once its grace is over, and not before.
func TestPurge(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	b := brokertest.Start(t, func(c *broker.Config) {
		c.Clock, c.PurgeEvery = clock, 10*time.Millisecond
	})
	b.CreateTopic(wire.TopicSpec{Name: "gone", Partitions: 3})
	b.CreateTopic(wire.TopicSpec{Name: "kept"})
	nc := b.Connect()
	for _, subject := range []string{"gone.x", "kept.x"} {
		for range 20 {
			if _, err := brokertest.Publish(nc, &nats.Msg{Subject: subject, Data: []byte("v")}); err != nil {
				t.Fatal(err)
			}
		}
		name := strings.TrimSuffix(subject, ".x")
		if err := brokertest.Call(nc, wire.APITopicDelete, wire.NameRequest{Name: name}, nil); err != nil {
			t.Fatal(err)
		}
	}
	ahead.Store(int64(23 * time.Hour))
	if err := brokertest.Call(nc, wire.APITopicRestore, wire.NameRequest{Name: "kept"}, nil); err != nil {
		t.Fatal(err)
	}
	if all, err := brokertest.ReadAll(nc, "kept", 0); err != nil || len(all) != 20 {
		t.Fatalf("%d records of the restored topic, %v", len(all), err)
	}
	// The purge must cope with replicas that this process never started.
	b.Restart()
	nc = b.Connect()
	ahead.Store(int64(25 * time.Hour))
	brokertest.Eventually(t, "the deleted topic is purged", func() bool {
		var l wire.TopicList
		err := brokertest.Call(nc, wire.APITopicList, wire.ListRequest{Deleted: true}, &l)
		return err == nil && len(l.Topics) == 0 && strings.Contains(newestChange(t, nc), "purged")
	})
	if err := brokertest.Call(nc, wire.APITopicRestore, wire.NameRequest{Name: "gone"}, nil); reason(t, err) != wire.ReasonTopicNotFound {
		t.Errorf("restore of a purged topic: %v", err)
	}
	b.CreateTopic(wire.TopicSpec{Name: "gone", Partitions: 3})
	b.Restart()
	nc = b.Connect()
	if all, err := brokertest.ReadAll(nc, "gone", 0); err != nil || len(all) != 0 {
		t.Errorf("the new topic has %d records of the old one, %v", len(all), err)
	}
	if all, err := brokertest.ReadAll(nc, "kept", 0); err != nil || len(all) != 20 {
		t.Errorf("%d records of the kept topic, %v", len(all), err)
	}
}

func newestChange(t *testing.T, nc *nats.Conn) string {
	t.Helper()
	var e wire.EpochDescription
	if err := brokertest.Call(nc, wire.APIEpochShow, nil, &e); err != nil {
		t.Fatal(err)
	}
	return e.Change
}

func TestAutoCreate(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.AutoCreateTopics = true })
	nc := b.Connect()
	ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "made.up"})
	if err != nil || ack.Topic != "made.up" || ack.Offset != 0 {
		t.Errorf("%+v, %v", ack, err)
	}
	if _, err := nc.Subscribe("service.time", func(m *nats.Msg) { _ = m.Respond([]byte("now")) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := nc.Request("service.time", nil, brokertest.Wait); err != nil || string(m.Data) != "now" {
		t.Errorf("a service was shadowed: %v, %v", m, err)
	}
	// Under a bound subject nothing else can be made; over it, it overlaps.
	if _, err := nc.Request("made", nil, brokertest.Wait); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a topic that would overlap: %v", err)
	}
}

// TestPartitionChoice: a key always meets its partition, records without one
// are spread over all.
func TestPartitionChoice(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "keyed", Partitions: 5})
	b.CreateTopic(wire.TopicSpec{Name: "plain", Partitions: 5, Config: map[string]string{"key": "none"}})
	b.CreateTopic(wire.TopicSpec{Name: "token", Partitions: 5, Subjects: []string{"token.>"}, Config: map[string]string{"key": "token:3"}})
	nc := b.Connect()
	publish := func(m *nats.Msg) int32 {
		t.Helper()
		ack, err := brokertest.Publish(nc, m)
		if err != nil {
			t.Fatal(err)
		}
		return ack.Partition
	}
	spread := map[int32]bool{}
	for i := range 40 {
		subject := fmt.Sprintf("keyed.%d", i)
		if first := publish(nats.NewMsg(subject)); first != publish(nats.NewMsg(subject)) {
			t.Fatalf("%s moved", subject)
		} else {
			spread[first] = true
		}
	}
	if len(spread) != 5 {
		t.Errorf("keys reach %v", spread)
	}
	clear(spread)
	for range 40 {
		spread[publish(nats.NewMsg("plain.x"))] = true
	}
	if len(spread) != 5 {
		t.Errorf("records without a key reach %v", spread)
	}
	if a, c := publish(nats.NewMsg("token.a.k")), publish(nats.NewMsg("token.b.k.more")); a != c {
		t.Errorf("one token, two partitions: %d and %d", a, c)
	}
	for i := range 10 {
		id := nats.Header{wire.HeaderMsgID: {fmt.Sprint(i)}}
		first := publish(&nats.Msg{Subject: "plain", Header: id})
		ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "plain", Header: id})
		if err != nil || ack.Partition != first || !ack.Duplicate {
			t.Errorf("the repeat of a message id: %+v, %v", ack, err)
		}
	}
}
