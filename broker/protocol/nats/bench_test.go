package nats

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/interest"
)

// benchmarkFanOut publishes 128 B to n connections, through real sockets.
func benchmarkFanOut(b *testing.B, n int) {
	s := serve(b, Config{})
	line := len("MSG s 1 128\r\n") + 128 + 2
	var readers sync.WaitGroup
	clients := make([]*rawClient, n)
	for i := range clients {
		clients[i] = connectRaw(b, s, "")
		clients[i].send(b, "SUB s 1\r\nPING\r\n")
		clients[i].expect(b, "PONG")
	}
	producer := connectRaw(b, s, "")
	const batch = 256
	one := strings.Repeat("PUB s 128\r\n"+strings.Repeat("x", 128)+"\r\n", batch)
	b.SetBytes(int64(128 * n))
	b.ReportAllocs()
	b.ResetTimer()
	rounds := b.N/batch + 1
	for _, c := range clients {
		readers.Go(func() {
			c.conn.SetReadDeadline(time.Time{})
			if _, err := io.CopyN(io.Discard, c.in, int64(rounds*batch*line)); err != nil {
				b.Error(err)
			}
		})
	}
	for range rounds {
		producer.send(b, one)
	}
	readers.Wait()
	b.StopTimer()
	b.ReportMetric(float64(rounds*batch*n)/b.Elapsed().Seconds(), "deliveries/s")
}

func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchmarkFanOut(b, n) })
	}
}

// BenchmarkDeliver is the producer's share of a delivery, without sockets.
func BenchmarkDeliver(b *testing.B) {
	f := New(Config{})
	c := &conn{server: &server{config: &f.config, stats: &f.stats}}
	c.out.wake = make(chan struct{}, 1)
	sub := &interest.Subscription{Subject: "s", SID: []byte("1"), Sink: c}
	m := &interest.Message{Subject: []byte("orders.eu.new"), Payload: make([]byte, 128)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if !c.Deliver(sub, m) {
			b.Fatal("not taken")
		}
		if i%256 == 255 { // what the writer would do
			c.out.mu.Lock()
			for j, chunk := range c.out.chunks {
				freeChunk(chunk)
				c.out.chunks[j] = nil
			}
			c.out.chunks, c.out.pending = c.out.chunks[:0], 0
			c.out.mu.Unlock()
		}
	}
}
