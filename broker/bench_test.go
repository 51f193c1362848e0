package broker_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// counter is a subscriber that counts what it gets.
type counter struct {
	n    atomic.Int64
	done chan struct{}
	want int64
}

func (c *counter) Deliver(*interest.Subscription, *interest.Message) bool {
	if c.n.Add(1) == c.want {
		close(c.done)
	}
	return true
}

// attach opens a session and a subscription for the answers to it.
func attach(b *testing.B, broker *brokertest.Broker, answers int) (protocol.Session, *counter) {
	b.Helper()
	c := &counter{done: make(chan struct{}), want: int64(answers)}
	if err := broker.Router().Subscribe(&interest.Subscription{Subject: "_INBOX.bench.>", Sink: c}); err != nil {
		b.Fatal(err)
	}
	s := broker.Attach(protocol.Client{Protocol: "bench"})
	b.Cleanup(s.Close)
	return s, c
}

// BenchmarkPublish is the whole way of a plain publish on the broker, from the
// front end's call to the routed ack: session, appender, Raft with its fsync,
// apply and store. Flushed every 64 records, as reads of a socket are.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{128, 1024} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			broker := brokertest.Start(b)
			broker.CreateTopic(wire.TopicSpec{Name: "bench"})
			s, answers := attach(b, broker, b.N)
			m := interest.Message{
				Subject: []byte("bench"), Reply: []byte("_INBOX.bench.1"), Payload: make([]byte, size),
				Header: []byte("NATS/1.0\r\nTrace: 0123456789\r\n\r\n"),
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if s.Publish(&m) != protocol.Taken {
					b.Fatal("not taken")
				}
				if i%64 == 63 {
					s.Flush()
				}
			}
			s.Flush()
			<-answers.done
		})
	}
}

// BenchmarkPublishBatch is the same for an SDK's batches of 64 KiB.
func BenchmarkPublishBatch(b *testing.B) {
	broker := brokertest.Start(b)
	broker.CreateTopic(wire.TopicSpec{Name: "bench"})
	s, answers := attach(b, broker, b.N)
	values := make([]string, 64)
	for i := range values {
		values[i] = string(make([]byte, 1000))
	}
	batch, err := brokertest.Batch(record.None, record.NoProducer, values...)
	if err != nil {
		b.Fatal(err)
	}
	m := interest.Message{Subject: []byte("$PARLEY.PUB.bench.0"), Reply: []byte("_INBOX.bench.1"), Payload: batch}
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if s.Publish(&m) != protocol.Consumed {
			b.Fatal("not consumed")
		}
		s.Flush()
	}
	<-answers.done
}

// BenchmarkFetch reads 1 MiB at a time.
func BenchmarkFetch(b *testing.B) {
	broker := brokertest.Start(b)
	broker.CreateTopic(wire.TopicSpec{Name: "bench"})
	s, filled := attach(b, broker, 64)
	batch, err := brokertest.Batch(record.None, record.NoProducer, string(make([]byte, 64<<10)))
	if err != nil {
		b.Fatal(err)
	}
	for range 64 {
		s.Publish(&interest.Message{Subject: []byte("$PARLEY.PUB.bench.0"), Reply: []byte("_INBOX.bench.1"), Payload: batch})
		s.Flush()
	}
	<-filled.done
	got := make(chan int, 1)
	if err := broker.Router().Subscribe(&interest.Subscription{Subject: "fetched", Sink: sizes(got)}); err != nil {
		b.Fatal(err)
	}
	m := interest.Message{Subject: []byte("$PARLEY.FETCH.bench.0"), Reply: []byte("fetched"), Payload: []byte(`{"offset":0}`)}
	b.ReportAllocs()
	b.ResetTimer()
	total := 0
	for range b.N {
		s.Publish(&m)
		total += <-got
	}
	b.SetBytes(int64(total / b.N))
}

// sizes tells how large each message was.
type sizes chan int

func (s sizes) Deliver(_ *interest.Subscription, m *interest.Message) bool {
	s <- len(m.Payload)
	return true
}
