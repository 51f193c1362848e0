package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// groupEcho answers a member as a leader would that always has more: what is left is the SDK's own cost.
type groupEcho struct {
	echo
	mode string
	next atomic.Int64
}

func (e *groupEcho) request(subject string, header map[string][]string, data []byte, to receiver, tag uint64) (uint64, error) {
	op, _, _ := strings.Cut(strings.TrimPrefix(subject, wire.GroupPrefix), ".")
	answer := func(v any) (uint64, error) {
		go to.answered(tag, jsonReply(v))
		return 1, nil
	}
	switch {
	case strings.HasPrefix(subject, wire.FetchPrefix):
		return e.echo.request(subject, header, data, to, tag)
	case !strings.HasPrefix(subject, wire.GroupPrefix):
		return e.echo.request(subject, header, data, to, tag)
	case op == "JOIN" || op == "LEAVE":
		return answer(wire.GroupAssignment{Generation: 1, Partitions: []int32{0}, Options: wire.GroupOptions{Mode: e.mode, SessionMS: wire.MaxSessionMS}})
	case op == "LEASE":
		return answer(wire.GroupLeased{Token: 1})
	case op == "COMMIT":
		return answer(wire.GroupCommitted{})
	case op == "ACK":
		return answer(wire.GroupAcked{})
	case op == "PULL":
		var q wire.GroupPullRequest
		if err := json.Unmarshal(data, &q); err != nil {
			return 0, err
		}
		if q.Stop {
			return answer(wire.GroupPulled{})
		}
		first := e.next.Add(e.count) - e.count
		out := bytes.Clone(e.batches)
		for rest, at := out, first; len(rest) > 0; {
			var b record.Batch
			b, rest, _ = record.Split(rest)
			b.Stamp(at, 1)
			at += int64(b.Count())
		}
		last := first + min(e.count, int64(q.MaxMessages)) - 1
		go to.answered(tag, reply{data: packPull([]wire.GroupDelivery{{First: first, Last: last, Deliveries: 1, Token: 1}}, out),
			header: map[string][]string{wire.HeaderNext: {strconv.FormatInt(last, 10)}}})
	}
	return 1, nil // SYNC
}

func benchmarkSubscribe(b *testing.B, mode GroupMode, size, records int, opts ...SubscribeOption) {
	e := &groupEcho{echo: *newEcho(), mode: string(mode)}
	builder := record.NewBuilder(None, batchLimits)
	for e.count < int64(records) {
		for range min(500, records) {
			if err := builder.Append(&record.Record{Key: fmt.Appendf(nil, "key-%d", e.count), Value: make([]byte, size)}); err != nil {
				b.Fatal(err)
			}
			e.count++
		}
		var err error
		if e.batches, err = builder.Finish(e.batches, record.NoProducer); err != nil {
			b.Fatal(err)
		}
	}
	e.end = 1 << 50
	cfg, err := newConfig([]Option{WithRequestTimeout(time.Minute)})
	if err != nil {
		b.Fatal(err)
	}
	c := newClient(cfg)
	c.dialRead = func(context.Context) (exchange, error) { return e, nil }
	c.start(e)
	var n atomic.Int64
	done := make(chan struct{})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	s, err := c.Subscribe(context.Background(), "t", "g", func(context.Context, *Message) error {
		if n.Add(1) == int64(b.N) {
			close(done)
		}
		return nil
	}, append(opts, Mode(mode))...)
	if err != nil {
		b.Fatal(err)
	}
	<-done
	b.StopTimer()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.Close(ctx)
	c.topics.close()
}

func BenchmarkSubscribe(b *testing.B) {
	b.Run("exclusive/128B", func(b *testing.B) { benchmarkSubscribe(b, Exclusive, 128, 5000) })
	b.Run("exclusive/128B/8-by-key", func(b *testing.B) { benchmarkSubscribe(b, Exclusive, 128, 5000, Concurrency(8)) })
	b.Run("shared/128B", func(b *testing.B) { benchmarkSubscribe(b, Shared, 128, 4000) })
	b.Run("shared/128B/8", func(b *testing.B) { benchmarkSubscribe(b, Shared, 128, 4000, Concurrency(8)) })
	b.Run("key-ordered/128B", func(b *testing.B) { benchmarkSubscribe(b, KeyOrdered, 128, 4000) })
}
