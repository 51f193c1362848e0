package broker_test

import (
	"bytes"
	"encoding/binary"
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
	"github.com/parleymq/parley/partition/record"
)

func TestBadPublishes(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "t", Partitions: 2})
	b.CreateTopic(wire.TopicSpec{Name: "small", Config: map[string]string{"max_record": "1KiB"}})
	nc := b.Connect()
	batch, err := brokertest.Batch(record.None, record.NoProducer, "value")
	if err != nil {
		t.Fatal(err)
	}
	large, err := brokertest.Batch(record.Zstd, record.NoProducer, strings.Repeat("x", 2000))
	if err != nil {
		t.Fatal(err)
	}
	changed := func(at int, v byte) []byte {
		c := bytes.Clone(batch)
		c[at] = v
		return c
	}
	long := bytes.Clone(batch)
	binary.BigEndian.PutUint32(long[8:], 1<<30)
	for _, c := range []struct {
		name, subject string
		header        nats.Header
		data          []byte
		want          string
	}{
		{"no such topic", "$PARLEY.PUB.nobody.0", nil, batch, wire.ReasonTopicNotFound},
		{"partition beyond", "$PARLEY.PUB.t.9999", nil, batch, wire.ReasonPartNotFound},
		{"partition -1", "$PARLEY.PUB.t.-1", nil, batch, wire.ReasonPartNotFound},
		{"partition huge", "$PARLEY.PUB.t.99999999999999999999", nil, batch, wire.ReasonPartNotFound},
		{"no partition", "$PARLEY.PUB.t", nil, batch, wire.ReasonBadRequest},
		{"unknown request", "$PARLEY.NOPE.t.0", nil, batch, wire.ReasonBadRequest},
		{"unknown API", "$PARLEY.API.NOPE", nil, nil, wire.ReasonBadRequest},
		{"API without JSON", wire.APITopicCreate, nil, []byte("{"), wire.ReasonBadRequest},
		{"API of wrong types", wire.APITopicCreate, nil, []byte(`{"name":7}`), wire.ReasonBadRequest},
		{"API request too large", wire.APITopicCreate, nil, bytes.Repeat([]byte(" "), 300<<10), wire.ReasonTooLarge},
		{"empty batch", "$PARLEY.PUB.t.0", nil, nil, wire.ReasonInvalidBatch},
		{"garbage", "$PARLEY.PUB.t.0", nil, []byte(strings.Repeat("garbage", 30)), wire.ReasonInvalidBatch},
		{"cut batch", "$PARLEY.PUB.t.0", nil, batch[:len(batch)-1], wire.ReasonInvalidBatch},
		{"longer than it is", "$PARLEY.PUB.t.0", nil, long, wire.ReasonInvalidBatch},
		{"two batches", "$PARLEY.PUB.t.0", nil, append(bytes.Clone(batch), batch...), wire.ReasonInvalidBatch},
		{"wrong CRC", "$PARLEY.PUB.t.0", nil, changed(len(batch)-2, 'X'), wire.ReasonInvalidBatch},
		{"wrong magic", "$PARLEY.PUB.t.0", nil, changed(16, 1), wire.ReasonInvalidBatch},
		{"record over the topic's limit", "$PARLEY.PUB.small.0", nil, large, wire.ReasonTooLarge},
		{"expect of a batch", "$PARLEY.PUB.t.0", nats.Header{wire.HeaderExpect: {"x"}}, batch, wire.ReasonBadRequest},
		{"expect fails", "$PARLEY.PUB.t.0", nats.Header{wire.HeaderExpect: {"7"}}, batch, wire.ReasonExpectMismatch},
		{"plain expect fails", "t.x", nats.Header{wire.HeaderExpect: {"7"}}, nil, wire.ReasonExpectMismatch},
		{"plain over the topic's limit", "small", nil, bytes.Repeat([]byte("x"), 2000), wire.ReasonTooLarge},
		{"partition header beyond", "t", nats.Header{wire.HeaderPart: {"2"}}, nil, wire.ReasonPartNotFound},
		{"partition header of letters", "t", nats.Header{wire.HeaderPart: {"x"}}, nil, wire.ReasonPartNotFound},
		{"message id too long", "t", nats.Header{wire.HeaderMsgID: {strings.Repeat("i", 257)}}, nil, wire.ReasonBadRequest},
		{"key too long", "t", nats.Header{wire.HeaderKey: {strings.Repeat("k", 70_000)}}, nil, wire.ReasonBadRequest},
		{"unsupported condition", "t", nats.Header{"Nats-Rollup": {"all"}}, nil, wire.ReasonBadRequest},
		{"unsupported expiry", "t", nats.Header{"Nats-TTL": {"1s"}}, nil, wire.ReasonBadRequest},
	} {
		_, err := brokertest.Publish(nc, &nats.Msg{Subject: c.subject, Header: c.header, Data: c.data})
		if got := reason(t, err); got != c.want {
			t.Errorf("%s: %q (%v), want %q", c.name, got, err, c.want)
		}
	}
	for n := range int32(2) {
		if all, err := brokertest.ReadAll(nc, "t", n); err != nil || len(all) != 0 {
			t.Errorf("%d records of refused publishes, %v", len(all), err)
		}
	}
	// After all that the connection and the topic still work.
	if ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "$PARLEY.PUB.t.0", Data: batch}); err != nil || ack.Offset != 0 {
		t.Errorf("%+v, %v", ack, err)
	}
}

func TestBadFetches(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.Limits.FetchesPerSession = 2 })
	b.CreateTopic(wire.TopicSpec{Name: "t"})
	nc := b.Connect()
	for range 3 {
		if _, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil {
			t.Fatal(err)
		}
	}
	fetch := func(subject, body string) (*nats.Msg, string) {
		t.Helper()
		m, err := nc.Request(subject, []byte(body), brokertest.Wait)
		if err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		if m.Header.Get(wire.HeaderError) == "" {
			return m, ""
		}
		if got := reason(t, brokertest.Decode(m.Data, nil)); got != m.Header.Get(wire.HeaderError) {
			t.Errorf("header %q, body %q", m.Header.Get(wire.HeaderError), got)
		}
		return m, m.Header.Get(wire.HeaderError)
	}
	for _, c := range []struct{ subject, body, want string }{
		{"$PARLEY.FETCH.t.0", `{"offset":4}`, wire.ReasonOffsetOutOfRange},
		{"$PARLEY.FETCH.t.0", `{"offset":4,"max_wait_ms":20000}`, wire.ReasonOffsetOutOfRange},
		{"$PARLEY.FETCH.t.0", `{"offset":-1}`, wire.ReasonBadRequest},
		{"$PARLEY.FETCH.t.0", `nonsense`, wire.ReasonBadRequest},
		{"$PARLEY.FETCH.t.1", `{}`, wire.ReasonPartNotFound},
		{"$PARLEY.FETCH.nobody.0", `{}`, wire.ReasonTopicNotFound},
		{"$PARLEY.FETCH.t", `{}`, wire.ReasonBadRequest},
		{"$PARLEY.FETCH.t.0", `{"offset":3,"max_wait_ms":10}`, ""},
		{"$PARLEY.FETCH.t.0", ``, ""},
		{"$PARLEY.FETCH.t.0", `{"offset":0,"max_bytes":-5}`, ""},
	} {
		m, got := fetch(c.subject, c.body)
		if got != c.want {
			t.Errorf("%s %s: %q, want %q", c.subject, c.body, got, c.want)
		}
		if (got == "" || got == wire.ReasonOffsetOutOfRange) && (m.Header.Get(wire.HeaderStart) != "0" || m.Header.Get(wire.HeaderNext) != "3") {
			t.Errorf("%s %s: bounds %v", c.subject, c.body, m.Header)
		}
	}
	// One connection's long polls are bounded, and go when it does.
	poll := b.Connect()
	for range 2 {
		if err := poll.PublishRequest("$PARLEY.FETCH.t.0", poll.NewRespInbox(), []byte(`{"offset":3,"max_wait_ms":30000}`)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := poll.Request("$PARLEY.FETCH.t.0", []byte(`{"offset":3}`), brokertest.Wait)
	if err != nil || m.Header.Get(wire.HeaderError) != wire.ReasonBusy {
		t.Errorf("a third poll: %v, %v", m, err)
	}
	poll.Close()
	var q wire.OffsetResponse
	if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: "t"}, &q); err != nil || q.Next != 3 || q.Start != 0 {
		t.Errorf("bounds %+v, %v", q, err)
	}
	ago, soon := time.Now().Add(-time.Hour).UnixMilli(), time.Now().Add(time.Hour).UnixMilli()
	if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: "t", TimeMS: &ago}, &q); err != nil || q.Offset != 0 {
		t.Errorf("an hour ago: %+v, %v", q, err)
	}
	if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: "t", TimeMS: &soon}, &q); err != nil || q.Offset != 3 {
		t.Errorf("in an hour: %+v, %v", q, err)
	}
	if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: "t", Partition: 7}, &q); reason(t, err) != wire.ReasonPartNotFound {
		t.Errorf("offset of no partition: %v", err)
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	free.Store(10 << 30)
	b := brokertest.Start(t, func(c *broker.Config) {
		c.FreeSpaceFloor = 1 << 30
		c.FreeSpace = func(string) (uint64, uint64, error) { return free.Load(), 100 << 30, nil }
	})
	b.CreateTopic(wire.TopicSpec{Name: "t"})
	nc := b.Connect()
	if _, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		_, err := brokertest.Publish(nc, nats.NewMsg("t"))
		return reason(t, err)
	}
	free.Store(1 << 29)
	brokertest.Eventually(t, "publishes are refused", func() bool { return state() == wire.ReasonDiskFull })
	if all, err := brokertest.ReadAll(nc, "t", 0); err != nil || len(all) == 0 {
		t.Errorf("reading with a full disk: %d, %v", len(all), err)
	}
	var health wire.ClusterHealth
	if err := brokertest.Call(nc, wire.APIClusterHealth, nil, &health); err != nil || health.Healthy {
		t.Errorf("health %+v, %v", health, err)
	}
	free.Store(10 << 30)
	brokertest.Eventually(t, "publishes are taken again", func() bool { return state() == "" })
}

// TestClockBack: a clock that goes back, or far ahead, costs nothing but log
// time that stands still for a while.
func TestClockBack(t *testing.T) {
	t.Parallel()
	var shift atomic.Int64
	b := brokertest.Start(t, func(c *broker.Config) {
		c.Clock = func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
	})
	b.CreateTopic(wire.TopicSpec{Name: "t"})
	nc := b.Connect()
	for i, d := range []time.Duration{0, time.Hour, -time.Hour, 0} {
		shift.Store(int64(d))
		if ack, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil || ack.Offset != int64(i) {
			t.Fatalf("clock shifted by %s: %+v, %v", d, ack, err)
		}
	}
	shift.Store(int64(-24 * time.Hour))
	b.Restart()
	nc = b.Connect()
	if ack, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil || ack.Offset != 4 {
		t.Fatalf("after a restart a day back: %+v, %v", ack, err)
	}
	if err := brokertest.Call(nc, wire.APITopicDelete, wire.NameRequest{Name: "t"}, nil); err != nil {
		t.Error(err)
	}
	if err := brokertest.Call(nc, wire.APITopicRestore, wire.NameRequest{Name: "t"}, nil); err != nil {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.User, c.Password = "ann", "secret" })
	if _, err := nats.Connect(b.URL()); err == nil {
		t.Error("nobody was let in")
	}
	if _, err := nats.Connect(b.URL(), nats.UserInfo("ann", "wrong")); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a wrong password: %v", err)
	}
	nc := b.Connect(nats.UserInfo("ann", "secret"))
	var l wire.BrokerList
	if err := brokertest.Call(nc, wire.APIBrokerList, nil, &l); err != nil || fmt.Sprint(len(l.Brokers)) != "1" {
		t.Errorf("%+v, %v", l, err)
	}
}
