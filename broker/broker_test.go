package broker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

func TestPlainPublish(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "orders"})
	nc := b.Connect()
	live, err := nc.SubscribeSync("orders.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	m := nats.NewMsg("orders.eu.7")
	m.Data = []byte("first")
	m.Header.Add("b", "2")
	m.Header.Add("a", "1")
	m.Header.Add("a", "3")
	ack, err := brokertest.Publish(nc, m)
	if err != nil {
		t.Fatal(err)
	}
	if ack.Topic != "orders" || ack.Stream != "orders" || ack.Partition != 0 || ack.Offset != 0 || ack.Seq != 1 || ack.Duplicate || ack.Epoch != 2 {
		t.Errorf("ack %+v", ack)
	}
	if got, err := live.NextMsg(brokertest.Wait); err != nil || string(got.Data) != "first" {
		t.Errorf("live subscriber got %v, %v", got, err)
	}
	for i := range 100 {
		if err := nc.Publish("orders", fmt.Appendf(nil, "r%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if ack, err = brokertest.Publish(nc, &nats.Msg{Subject: "orders", Data: []byte("last"), Header: nats.Header{"Parley-Key": {"k"}}}); err != nil || ack.Offset != 101 {
		t.Fatalf("ack %+v, %v", ack, err)
	}
	records, err := brokertest.ReadAll(nc, "orders", 0)
	if err != nil || len(records) != 102 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	r := records[0]
	if string(r.Key) != "orders.eu.7" || string(r.Value) != "first" || string(headerOf(r, wire.HeaderSubject)) != "orders.eu.7" {
		t.Errorf("first record %q = %q %q", r.Key, r.Value, r.Headers)
	}
	if a := headersOf(r, "a"); len(a) != 2 || a[0] != "1" || a[1] != "3" {
		t.Errorf("headers a: %q", a)
	}
	if r.Timestamp < time.Now().Add(-time.Minute).UnixMilli() {
		t.Errorf("timestamp %d", r.Timestamp)
	}
	if r := records[101]; string(r.Key) != "k" || len(r.Headers) != 0 {
		t.Errorf("last record %q %q", r.Key, r.Headers)
	}
	for i, r := range records {
		if r.Offset != int64(i) {
			t.Fatalf("record %d has offset %d", i, r.Offset)
		}
	}
}

func headerOf(r record.Record, name string) []byte {
	for _, h := range r.Headers {
		if string(h.Key) == name {
			return h.Value
		}
	}
	return nil
}

func headersOf(r record.Record, name string) []string {
	var all []string
	for _, h := range r.Headers {
		if string(h.Key) == name {
			all = append(all, string(h.Value))
		}
	}
	return all
}

func TestJetStreamPublish(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "events"})
	nc := b.Connect()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		ack, err := js.Publish(t.Context(), "events.x", fmt.Appendf(nil, "%d", i))
		if err != nil || ack.Stream != "events" || ack.Sequence != uint64(i+1) {
			t.Fatalf("ack %+v, %v", ack, err)
		}
	}
	ack, err := js.Publish(t.Context(), "events.x", []byte("once"), jetstream.WithMsgID("id-1"))
	if err != nil || ack.Sequence != 4 || ack.Duplicate {
		t.Fatalf("ack %+v, %v", ack, err)
	}
	ack, err = js.Publish(t.Context(), "events.x", []byte("once"), jetstream.WithMsgID("id-1"))
	if err != nil || ack.Sequence != 4 || !ack.Duplicate {
		t.Fatalf("ack of the repeat %+v, %v", ack, err)
	}
	if _, err = js.Publish(t.Context(), "events.x", nil, jetstream.WithExpectLastSequence(99)); err == nil {
		t.Error("a publish that expects another sequence was taken")
	}
	if ack, err = js.Publish(t.Context(), "events.x", nil, jetstream.WithExpectLastSequence(4), jetstream.WithExpectStream("events")); err != nil || ack.Sequence != 5 {
		t.Errorf("ack %+v, %v", ack, err)
	}
	if _, err = js.Publish(t.Context(), "events.x", nil, jetstream.WithExpectStream("other")); err == nil {
		t.Error("a publish that expects another stream was taken")
	}
	future, err := js.PublishAsync("events.y", []byte("async"))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case ack := <-future.Ok():
		if ack.Sequence != 6 {
			t.Errorf("async ack %+v", ack)
		}
	case err := <-future.Err():
		t.Error(err)
	case <-time.After(brokertest.Wait):
		t.Error("no async ack")
	}
	old, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if ack, err := old.Publish("events", []byte("old API")); err != nil || ack.Sequence != 7 {
		t.Errorf("old API's ack %+v, %v", ack, err)
	}
}

func TestBatchPublishAndRestart(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "log.a", Partitions: 3})
	nc := b.Connect()
	subject := wire.PartitionSubject(wire.PubPrefix, "log.a", 2)
	next := int64(0)
	for seq, codec := range []record.Codec{record.None, record.Snappy, record.LZ4, record.Zstd} {
		batch, err := brokertest.Batch(codec, record.Producer{ID: 7, Epoch: 0, Sequence: int32(2 * seq)}, "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time it is a duplicate
			ack, err := brokertest.Publish(nc, &nats.Msg{Subject: subject, Data: batch})
			if err != nil || ack.Partition != 2 || ack.Offset != next {
				t.Fatalf("%s: ack %+v, %v", codec, ack, err)
			}
		}
		next += 2
	}
	before, err := brokertest.ReadAll(nc, "log.a", 2)
	if err != nil || len(before) != 8 {
		t.Fatalf("%d records, %v", len(before), err)
	}
	b.Restart()
	nc = b.Connect()
	after, err := brokertest.ReadAll(nc, "log.a", 2)
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Fatalf("after the restart: %v %v, before %v", after, err, before)
	}
	// The producer table is there again too.
	batch, err := brokertest.Batch(record.None, record.Producer{ID: 7, Epoch: 0, Sequence: 6}, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	ack, err := brokertest.Publish(nc, &nats.Msg{Subject: subject, Data: batch})
	if err != nil || ack.Offset != 6 || !ack.Duplicate {
		t.Errorf("ack after the restart %+v, %v", ack, err)
	}
	// A long poll is answered by the next publish.
	got := make(chan error, 1)
	go func() {
		data, _, _, err := brokertest.Fetch(nc, "log.a", 2, wire.FetchRequest{Offset: 8, MaxWaitMS: 15_000})
		if err == nil && len(data) == 0 {
			err = fmt.Errorf("the poll ended empty")
		}
		got <- err
	}()
	batch, err = brokertest.Batch(record.None, record.NoProducer, "c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := brokertest.Publish(nc, &nats.Msg{Subject: subject, Data: batch}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}
