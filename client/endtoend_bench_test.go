package client_test

import (
	"math/rand/v2"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
)

// benchmarkBroker publishes b.N records through a real broker in this process, or
// reads them back: SDK, NATS protocol, Raft and store share the processors.
func benchmarkBroker(b *testing.B, size int, read bool) {
	s := brokertest.Start(b)
	c := connect(b, s.URL())
	ctx := b.Context()
	createTopic(b, c, "bench", 1)
	p, err := c.NewProducer(ctx, "bench")
	if err != nil {
		b.Fatal(err)
	}
	value := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	failed := 0
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := p.SendFunc(ctx, client.Record{Value: value}, func(_ client.Ack, err error) {
			if err != nil {
				failed++
			}
		}); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil || failed > 0 {
		b.Fatalf("%d failed, %v", failed, err)
	}
	if !read {
		return
	}
	r, err := c.NewReader(ctx, "bench", client.UntilEnd())
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	b.ResetTimer()
	if err := r.Run(ctx, func(*client.Message) error { n++; return nil }); err != nil || n != b.N {
		b.Fatalf("read %d of %d: %v", n, b.N, err)
	}
}

func BenchmarkBroker(b *testing.B) {
	b.Run("publish/1KiB", func(b *testing.B) { benchmarkBroker(b, 1024, false) })
	b.Run("publish/128B", func(b *testing.B) { benchmarkBroker(b, 128, false) })
	b.Run("read/128B", func(b *testing.B) { benchmarkBroker(b, 128, true) })
	b.Run("read/1KiB", func(b *testing.B) { benchmarkBroker(b, 1024, true) })
}
