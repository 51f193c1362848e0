package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/partition/record"
)

// bubble runs f with a Client on a model, in virtual time.
func bubble(t *testing.T, fl faults, topics map[string]int, f func(t *testing.T, ctx context.Context, m *model, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		m := newModel(1, fl, topics)
		c := m.client(WithRequestTimeout(time.Second))
		defer func() {
			if err := c.Close(ctx); err != nil {
				t.Errorf("close: %v", err)
			}
			time.Sleep(2 * time.Minute) // virtual: stragglers arrive while the bubble lives
		}()
		f(t, ctx, m, c)
	})
}

func producer(t *testing.T, ctx context.Context, c *Client, opts ...ProducerOption) *Producer {
	t.Helper()
	p, err := c.NewProducer(ctx, "t", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func publish(t *testing.T, ctx context.Context, p *Producer, value string) Ack {
	t.Helper()
	a, err := p.Publish(ctx, Record{Value: []byte(value)})
	if err != nil {
		t.Fatalf("publish %s: %v", value, err)
	}
	return a
}

func wantLog(t *testing.T, m *model, want ...string) {
	t.Helper()
	if got := m.values("t", 0); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the log holds %v, want %v", got, want)
	}
}

var oneTopic = map[string]int{"t": 1}

func TestProducerForgottenByPartition(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c)
		var want []string
		for i := range 20 {
			if i%7 == 6 {
				m.evict("t")
			}
			want = append(want, fmt.Sprint(i))
			if a := publish(t, ctx, p, want[i]); a.Offset != int64(i) || a.Duplicate {
				t.Errorf("record %d: ack %+v", i, a)
			}
		}
		wantLog(t, m, want...)
		if m.counts["evicted"] == 0 {
			t.Error("nothing was evicted")
		}
	})
}

func TestProducerGoesOnWhenABrokerLostAckedRecords(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c)
		publish(t, ctx, p, "a")
		publish(t, ctx, p, "b")
		m.lose("t", 0)
		if a := publish(t, ctx, p, "c"); a.Offset != 1 {
			t.Errorf("ack %+v", a)
		}
		publish(t, ctx, p, "d")
		wantLog(t, m, "a", "c", "d")
	})
}

func TestProducerBatchRefusedForGood(t *testing.T) {
	t.Parallel()
	bubble(t, faults{delay: 5 * time.Millisecond}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.poison = "poison"
		p := producer(t, ctx, c, BatchBytes(1024))
		pad := make([]byte, 600) // one record a batch
		var futures []Future
		for i := range 12 {
			value := fmt.Sprint(i)
			if i == 3 || i == 7 {
				value = "poison"
			}
			f, err := p.Send(ctx, Record{Key: pad, Value: []byte(value)})
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		for i, f := range futures {
			_, err := f.Wait(ctx)
			if bad := i == 3 || i == 7; bad != errors.Is(err, ErrTooLarge) || !bad && err != nil {
				t.Errorf("record %d: %v", i, err)
			} else if bad && asError(err).Outcome != OutcomeRejected {
				t.Errorf("record %d: outcome %s", i, asError(err).Outcome)
			}
		}
		wantLog(t, m, "0", "1", "2", "4", "5", "6", "8", "9", "10", "11")
	})
}

func TestProducerSequenceEnds(t *testing.T) {
	t.Parallel()
	bubble(t, faults{dropAnswer: .1}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c)
		var want []string
		for i := range 5 {
			want = append(want, fmt.Sprint(i))
			publish(t, ctx, p, want[i])
		}
		// The partition and the lane agree that much was published in between.
		l := (*p.lanes.Load())[0]
		synctest.Wait()
		l.next = record.Producer{ID: l.next.ID + 1, Epoch: math.MaxInt16, Sequence: math.MaxInt32 - 70000}
		m.mu.Lock()
		m.parts["t"][0].producers[l.next.ID] = &modelProducer{epoch: math.MaxInt16, recent: []modelEntry{{l.next.Sequence - 1, 1, 4}}}
		m.mu.Unlock()
		id := l.next.ID
		for round := range 3 {
			for i := range 4000 {
				want = append(want, fmt.Sprintf("%d/%d", round, i))
				if err := p.SendFunc(ctx, Record{Value: []byte(want[len(want)-1])}, func(_ Ack, err error) {
					if err != nil {
						t.Error(err)
					}
				}); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if l.next.ID == id || l.next.Epoch != 0 {
			t.Errorf("after the last sequence of the last epoch: %+v", l.next)
		}
		wantLog(t, m, want...)
	})
}

func TestProducerTopicDeleted(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c)
		publish(t, ctx, p, "a")
		m.mu.Lock()
		m.deleted = true
		m.mu.Unlock()
		start := time.Now()
		if _, err := p.Publish(ctx, Record{Value: []byte("b")}); !errors.Is(err, ErrTopicNotFound) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d < notFoundPatience || d > 2*notFoundPatience {
			t.Errorf("gave up after %s", d)
		}
		if _, err := c.NewProducer(ctx, "t"); !errors.Is(err, ErrTopicNotFound) {
			t.Errorf("new producer: %v", err)
		}
		m.mu.Lock()
		m.deleted = false
		m.mu.Unlock()
		publish(t, ctx, p, "c")
		wantLog(t, m, "a", "c")
	})
}

func TestProducerGivesUp(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c, GiveUp(10*time.Second), BatchBytes(1024))
		publish(t, ctx, p, "a")
		m.restart(time.Minute)
		start := time.Now()
		var futures []Future
		for range 20 {
			f, err := p.Send(ctx, Record{Value: make([]byte, 600)})
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		for i, f := range futures {
			_, err := f.Wait(ctx)
			if !errors.Is(err, ErrTimeout) || asError(err).Outcome != OutcomeRejected || !strings.Contains(err.Error(), "no connection") {
				t.Errorf("record %d: %v", i, err)
			}
			if d := time.Since(start); d < 10*time.Second || d > 12*time.Second {
				t.Errorf("record %d: gave up after %s", i, d)
			}
		}
		// Within the give-up time nobody notices.
		time.Sleep(44 * time.Second) // virtual
		if a := publish(t, ctx, p, "b"); a.Offset != 1 {
			t.Errorf("ack %+v", a)
		}
		if d := time.Since(start); d > time.Minute+100*time.Millisecond {
			t.Errorf("took %s after the connection was back", d-time.Minute)
		}
	})
}

func TestProducerBufferFull(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		full := producer(t, ctx, c, Buffer(minBufferBytes, 3), FailWhenFull())
		waits := producer(t, ctx, c, Buffer(minBufferBytes, 3))
		m.restart(time.Minute)
		for range 3 {
			if _, err := full.Send(ctx, Record{Value: []byte("f")}); err != nil {
				t.Fatal(err)
			}
			if _, err := waits.Send(ctx, Record{Value: []byte("w")}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := full.Send(ctx, Record{Value: []byte("f")}); !errors.Is(err, ErrBufferFull) {
			t.Errorf("error %v", err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		if _, err := waits.Send(short, Record{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		cancel()
		start := time.Now()
		f, err := waits.Send(ctx, Record{Value: []byte("w")})
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 50*time.Second {
			t.Errorf("room after %s", d)
		}
		if _, err := f.Wait(ctx); err != nil {
			t.Error(err)
		}
		if err := full.Flush(ctx); err != nil {
			t.Error(err)
		}
		if got := len(m.values("t", 0)); got != 7 {
			t.Errorf("%d records stored, want 7", got)
		}
	})
}

func TestProducerClose(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c, Linger(time.Minute))
		f, err := p.Send(ctx, Record{Value: []byte("a")})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(ctx); err != nil { // flushes, doesn't linger
			t.Errorf("close: %v", err)
		}
		if a, err := f.Wait(ctx); err != nil || a.Offset != 0 {
			t.Errorf("ack %+v, %v", a, err)
		}
		if _, err := p.Send(ctx, Record{}); !errors.Is(err, ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
		if err := p.Close(ctx); err != nil {
			t.Errorf("second close: %v", err)
		}

		q := producer(t, ctx, c)
		m.restart(time.Hour / 2)
		f, err = q.Send(ctx, Record{Value: []byte("b")})
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := q.Close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close without a broker: %v", err)
		}
		if _, err := f.Wait(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("record left at close: %v", err)
		}
		wantLog(t, m, "a")
	})
}

func TestProducerLimits(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c, PartitionBy(ByRecord))
		for name, r := range map[string]struct {
			r    Record
			want error
		}{
			"key":          {Record{Key: make([]byte, 64<<10+1)}, ErrTooLarge},
			"record":       {Record{Value: make([]byte, 1<<20+1)}, ErrTooLarge},
			"partition 1":  {Record{Partition: 1}, ErrPartNotFound},
			"partition -2": {Record{Partition: -2}, ErrPartNotFound},
		} {
			if _, err := p.Publish(ctx, r.r); !errors.Is(err, r.want) {
				t.Errorf("%s: %v, want %v", name, err, r.want)
			}
		}
		if a, err := p.Publish(ctx, Record{Value: make([]byte, 1<<20)}); err != nil || a.Offset != 0 {
			t.Errorf("record of 1 MiB: %+v, %v", a, err)
		}
		if b, r := p.budget.bytes, p.budget.records; b != 0 || r != 0 {
			t.Errorf("%d bytes and %d records are still booked", b, r)
		}
	})
}

func TestPartitioners(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, map[string]int{"t": 8}, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c)
		// What Kafka's clients answer for 8 partitions.
		for key, want := range map[string]int32{"foobar": record.PartitionOf([]byte("foobar"), 8), "": record.PartitionOf([]byte{}, 8)} {
			for range 3 {
				if a, err := p.Publish(ctx, Record{Key: []byte(key)}); err != nil || a.Partition != want {
					t.Errorf("key %q: %+v, %v; want partition %d", key, a, err, want)
				}
			}
		}
		seen := map[int32]bool{}
		for range 200 {
			a, err := p.Publish(ctx, Record{})
			if err != nil {
				t.Fatal(err)
			}
			seen[a.Partition] = true
		}
		if len(seen) != 8 {
			t.Errorf("records without a key went to %d of 8 partitions", len(seen))
		}
		// Those of one batch stay together.
		var futures []Future
		lingers := producer(t, ctx, c, Linger(10*time.Millisecond))
		for range 100 {
			f, err := lingers.Send(ctx, Record{})
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		first, err := futures[0].Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range futures {
			if a, err := f.Wait(ctx); err != nil || a.Partition != first.Partition || a.Offset != first.Offset+int64(i) {
				t.Errorf("record %d of a batch: %+v, %v", i, a, err)
			}
		}
	})
}
