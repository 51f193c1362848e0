package broker_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/memory"
	"github.com/parleymq/parley/replication"
)

var errDisk = errors.New("input/output error")

// failing is an engine whose Sync fails once it is told to.
type failing struct {
	storage.Engine
	fail *atomic.Bool
}

func (f failing) Sync() error {
	if f.fail.Load() {
		return errDisk
	}
	return f.Engine.Sync()
}

// TestDiskFails: after a failed fsync the program is told, nothing is acked any
// more, and the broker stops by itself.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("failing-%p", t) // the test may run more than once
	var fail atomic.Bool
	storage.Register(name, func(storage.Options) (storage.Engine, error) {
		e, err := memory.NewDisk().Open()
		return failing{e, &fail}, err
	})
	told := make(chan error, 8)
	b, err := broker.Start(t.Context(), brokertest.Config(t.TempDir(), func(c *broker.Config) {
		c.Engine, c.CheckpointEvery, c.OnFatal = name, 5*time.Millisecond, func(err error) { told <- err }
	}))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(b.URL(), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := brokertest.Call(nc, wire.APITopicCreate, wire.TopicSpec{Name: "t"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil {
		t.Fatal(err)
	}
	fail.Store(true)
	// A checkpoint is written when something has changed.
	if err := nc.Publish("t", nil); err != nil {
		t.Fatal(err)
	}
	wait := time.NewTimer(brokertest.Wait)
	defer wait.Stop()
	select {
	case err := <-told:
		if !errors.Is(err, errDisk) {
			t.Errorf("told %v", err)
		}
	case <-wait.C:
		t.Fatal("nobody was told")
	}
	if m, err := nc.Request("t", nil, time.Second); err == nil {
		t.Errorf("acked after the disk failed: %s", m.Data)
	}
	select {
	case <-b.Done():
	case <-wait.C:
		t.Fatal("the broker did not stop")
	}
	if err := b.Wait(); !errors.Is(err, errDisk) {
		t.Errorf("Wait says %v", err)
	}
	if len(told) != 0 {
		t.Errorf("told again: %v", <-told)
	}
	_ = b.Close(context.Background()) // says the same as the first one
}

// idleHost runs no replicas.
type idleHost struct{ replication.Host }

func (idleHost) Close() error { return nil }

// TestDiskFailsDuringStart: a failure that is met while the broker starts ends the
// start, whoever meets it; nobody gets a broker that never acks and never stops.
func TestDiskFailsDuringStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := broker.Start(t.Context(), brokertest.Config(dir, func(c *broker.Config) {
		c.OpenHost = func(h broker.HostConfig) (replication.Host, error) {
			h.OnFatal(errDisk)
			return idleHost{}, nil
		}
	}))
	if !errors.Is(err, errDisk) {
		t.Fatalf("start: %v", err)
	}
	brokertest.StartIn(t, dir) // nothing is left behind
}

// TestRetention: what is trimmed is out of range, with the bounds, and a reader
// can go on from the start.
func TestRetention(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t, func(c *broker.Config) { c.RetentionEvery = 10 * time.Millisecond })
	b.CreateTopic(wire.TopicSpec{Name: "t", Config: map[string]string{"max_records": "1000"}})
	nc := b.Connect()
	for range 5000 {
		if err := nc.Publish("t", make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil {
		t.Fatal(err)
	}
	start := func() int64 {
		var q wire.OffsetResponse
		if err := brokertest.Call(nc, wire.APIOffset, wire.OffsetRequest{Topic: "t"}, &q); err != nil {
			t.Fatal(err)
		}
		return q.Start
	}
	brokertest.Eventually(t, "the log is trimmed", func() bool { return start() > 3000 })
	_, low, next, err := brokertest.Fetch(nc, "t", 0, wire.FetchRequest{Offset: 0})
	if reason(t, err) != wire.ReasonOffsetOutOfRange || low == 0 || next != 5001 {
		t.Errorf("fetch of what is gone: %v, %d to %d", err, low, next)
	}
	all, err := brokertest.ReadAll(nc, "t", 0)
	if err != nil || len(all) < 1000 || all[len(all)-1].Offset != 5000 {
		t.Errorf("%d records, %v", len(all), err)
	}
	// A changed limit counts at once.
	before := start()
	if err := brokertest.Call(nc, wire.APITopicAlter, wire.TopicAlter{Name: "t", Config: map[string]string{"max_records": "1"}}, nil); err != nil {
		t.Fatal(err)
	}
	brokertest.Eventually(t, "the log is trimmed further", func() bool { return start() > before })
}
