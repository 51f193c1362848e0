// Package brokertest runs brokers with all their real parts inside a test:
// Raft on a socket, the store on a disk, NATS clients over TCP.
package brokertest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/client/wire"
)

// Wait is how long anything in a test may take before it has failed: nothing takes nearly so long but where much else runs.
const Wait = time.Minute

// Broker is a running broker in a directory of the test.
type Broker struct {
	*broker.Broker
	t      testing.TB
	config broker.Config
}

// Option changes the config of a test's broker.
type Option func(*broker.Config)

// Config returns what a test's broker runs with: the directory, ports from the
// kernel, no floor of free space, no time for clients to leave.
func Config(dir string, options ...Option) broker.Config {
	c := broker.Config{
		Name: "b1", DataDir: dir,
		Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", RaftListen: "127.0.0.1:0", PeerListen: "127.0.0.1:0",
		FreeSpaceFloor: -1, DrainTime: time.Millisecond, Logger: zerolog.Nop(),
	}
	if level, err := zerolog.ParseLevel(os.Getenv("PARLEY_TEST_LOG")); err == nil && level != zerolog.NoLevel {
		zerolog.TimeFieldFormat = time.RFC3339Nano
		c.Logger = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true, TimeFormat: "05.000"}).Level(level).With().Timestamp().Logger()
	}
	for _, o := range options {
		o(&c)
	}
	return c
}

// Start starts a broker in a fresh directory, waits until it serves, and stops
// it when the test ends.
func Start(t testing.TB, options ...Option) *Broker {
	t.Helper()
	return StartIn(t, t.TempDir(), options...)
}

// StartIn is Start in a given directory.
func StartIn(t testing.TB, dir string, options ...Option) *Broker {
	t.Helper()
	b := &Broker{t: t, config: Config(dir, options...)}
	b.start()
	t.Cleanup(b.Stop)
	return b
}

func (b *Broker) start() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	var err error
	if b.Broker, err = broker.Start(ctx, b.config); err != nil {
		b.t.Fatalf("start broker: %v", err)
	}
	if err := b.Ready(ctx); err != nil {
		b.t.Fatal(err)
	}
}

// Stop stops the broker. Stopping it again does nothing.
func (b *Broker) Stop() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	if err := b.Close(ctx); err != nil {
		b.t.Errorf("stop broker: %v", err)
	}
}

// Restart stops the broker and starts it again in the same directory. Ports
// change.
func (b *Broker) Restart(options ...Option) {
	b.t.Helper()
	b.Stop()
	for _, o := range options {
		o(&b.config)
	}
	b.start()
}

// Dir is the data directory.
func (b *Broker) Dir() string { return b.config.DataDir }

// Connect opens a connection of the official client, closed with the test.
func (b *Broker) Connect(options ...nats.Option) *nats.Conn {
	b.t.Helper()
	nc, err := nats.Connect(b.URL(), append([]nats.Option{nats.Timeout(Wait), nats.MaxReconnects(0)}, options...)...)
	if err != nil {
		b.t.Fatalf("connect: %v", err)
	}
	b.t.Cleanup(nc.Close)
	return nc
}

// CreateTopic creates a topic over the API.
func (b *Broker) CreateTopic(spec wire.TopicSpec) wire.TopicChange {
	b.t.Helper()
	nc := b.Connect()
	defer nc.Close()
	var res wire.TopicChange
	if err := Call(nc, wire.APITopicCreate, spec, &res); err != nil {
		b.t.Fatalf("create topic %s: %v", spec.Name, err)
	}
	return res
}

// Call sends an API request and decodes the answer: a *wire.Error when the
// broker says that it failed.
func Call(nc *nats.Conn, subject string, req, res any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	m, err := nc.Request(subject, body, Wait)
	if err != nil {
		return fmt.Errorf("request %s: %w", subject, err)
	}
	return Decode(m.Data, res)
}

// Decode decodes an answer, or the error in it.
func Decode(data []byte, res any) error {
	var failure struct{ Error *wire.Error }
	if err := json.Unmarshal(data, &failure); err != nil {
		return fmt.Errorf("answer %q: %w", data, err)
	}
	if failure.Error != nil {
		return failure.Error
	}
	if res == nil {
		return nil
	}
	return json.Unmarshal(data, res)
}

// Publish publishes one record with a plain client and waits for its ack.
func Publish(nc *nats.Conn, m *nats.Msg) (wire.PubAck, error) {
	var ack wire.PubAck
	answer, err := nc.RequestMsg(m, Wait)
	if err != nil {
		return ack, fmt.Errorf("publish to %s: %w", m.Subject, err)
	}
	return ack, Decode(answer.Data, &ack)
}

// Eventually polls until ok is true.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(Wait)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", Wait, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
