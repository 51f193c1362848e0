package client

import (
	"context"
	"encoding/json"
	"io"
	"strconv"
	"testing"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// echo answers every publish with an ack and every fetch with the same batches,
// numbered anew: what is left is the SDK's own cost.
type echo struct {
	jobs    chan job
	batches []byte // template
	count   int64
	end     int64
}

type job struct {
	subject string
	data    []byte
	to      receiver
	tag     uint64
}

func newEcho() *echo {
	e := &echo{jobs: make(chan job, 64)}
	go func() {
		var next int64
		for j := range e.jobs {
			if j.data == nil {
				j.to.answered(j.tag, jsonReply(wire.PubAck{Topic: "t", Offset: next}))
				next++
				continue
			}
			h := map[string][]string{wire.HeaderStart: {"0"}, wire.HeaderNext: {strconv.FormatInt(e.end, 10)}}
			j.to.answered(j.tag, reply{data: j.data, header: h})
		}
	}()
	return e
}

func (e *echo) request(subject string, _ map[string][]string, data []byte, to receiver, tag uint64) (uint64, error) {
	switch {
	case subject == wire.APIMetadata:
		to.answered(tag, jsonReply(wire.Metadata{Topics: []wire.TopicMetadata{{Name: "t", Leaders: []string{""}}}}))
	case subject == wire.APIOffset:
		to.answered(tag, jsonReply(wire.OffsetResponse{Next: e.end}))
	case len(subject) > len(wire.FetchPrefix) && subject[:len(wire.FetchPrefix)] == wire.FetchPrefix:
		var q wire.FetchRequest
		if err := json.Unmarshal(data, &q); err != nil {
			return 0, err
		}
		out := append([]byte(nil), e.batches...)
		for rest := out; len(rest) > 0; {
			var b record.Batch
			b, rest, _ = record.Split(rest)
			b.Stamp(q.Offset, 1)
			q.Offset += int64(b.Count())
		}
		e.jobs <- job{data: out, to: to, tag: tag}
	default:
		e.jobs <- job{subject: subject, to: to, tag: tag}
	}
	return 1, nil
}

func (e *echo) forget(uint64)   {}
func (e *echo) broker() string  { return "" }
func (e *echo) up() bool        { return true }
func (e *echo) maxPayload() int { return wire.MaxPayload }
func (e *echo) close()          { close(e.jobs) }

func (e *echo) client(b *testing.B) *Client {
	cfg, err := newConfig(nil)
	if err != nil {
		b.Fatal(err)
	}
	c := newClient(cfg)
	c.dialRead = func(context.Context) (exchange, error) { return e, nil }
	c.start(e)
	return c
}

func benchmarkSend(b *testing.B, size int, codec Codec, callback bool) {
	ctx := context.Background()
	e := newEcho()
	c := e.client(b)
	p, err := c.NewProducer(ctx, "t", Compression(codec))
	if err != nil {
		b.Fatal(err)
	}
	r := Record{Key: []byte("key"), Value: make([]byte, size)}
	failed := 0
	done := func(_ Ack, err error) {
		if err != nil {
			failed++
		}
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if callback {
			err = p.SendFunc(ctx, r, done)
		} else {
			_, err = p.Send(ctx, r)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	_ = p.Close(ctx)
	c.topics.close()
	e.close()
	if failed > 0 {
		b.Errorf("%d records failed", failed)
	}
}

func BenchmarkSend(b *testing.B) {
	b.Run("future/1KiB", func(b *testing.B) { benchmarkSend(b, 1024, None, false) })
	b.Run("callback/1KiB", func(b *testing.B) { benchmarkSend(b, 1024, None, true) })
	b.Run("future/128B", func(b *testing.B) { benchmarkSend(b, 128, None, false) })
	b.Run("future/128B/lz4", func(b *testing.B) { benchmarkSend(b, 128, LZ4, false) })
}

func benchmarkRead(b *testing.B, size, perBatch int, codec Codec, form int) {
	ctx := context.Background()
	e := newEcho()
	builder := record.NewBuilder(codec, batchLimits)
	for len(e.batches) < 900<<10 && e.count < 65536 {
		for range perBatch {
			if err := builder.Append(&record.Record{Key: []byte("key"), Value: make([]byte, size)}); err != nil {
				b.Fatal(err)
			}
			e.count++
		}
		var err error
		if e.batches, err = builder.Finish(e.batches, record.NoProducer); err != nil {
			b.Fatal(err)
		}
	}
	e.end = int64(b.N) + 1<<50
	c := e.client(b)
	r, err := c.NewReader(ctx, "t")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	n := 0
	switch form {
	case 0:
		for range b.N {
			if _, err := r.Next(ctx); err != nil {
				b.Fatal(err)
			}
		}
	case 1:
		err := r.Run(ctx, func(*Message) error {
			if n++; n >= b.N {
				return io.EOF
			}
			return nil
		})
		if err != io.EOF {
			b.Fatal(err)
		}
	default:
		for n < b.N {
			ms, err := r.NextBatch(ctx)
			if err != nil {
				b.Fatal(err)
			}
			n += len(ms)
		}
	}
	b.StopTimer()
	_ = r.Close(ctx)
	c.topics.close()
	e.close()
}

func BenchmarkRead(b *testing.B) {
	b.Run("next/128B", func(b *testing.B) { benchmarkRead(b, 128, 500, None, 0) })
	b.Run("run/128B", func(b *testing.B) { benchmarkRead(b, 128, 500, None, 1) })
	b.Run("batch/128B", func(b *testing.B) { benchmarkRead(b, 128, 500, None, 2) })
	b.Run("run/128B/one-a-batch", func(b *testing.B) { benchmarkRead(b, 128, 1, None, 1) })
	b.Run("run/128B/lz4", func(b *testing.B) { benchmarkRead(b, 128, 500, LZ4, 1) })
	b.Run("run/1KiB", func(b *testing.B) { benchmarkRead(b, 1024, 500, None, 1) })
}
