package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/partition/record"
)

// fill stores n records in a partition, in batches of 1 to most.
func (m *model) fill(topic string, part, n, most int, codec Codec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parts[topic][part]
	b := record.NewBuilder(codec, batchLimits)
	for i := 0; i < n; {
		base := p.next()
		for range min(1+m.rng.IntN(most), n-i) {
			value := fmt.Sprintf("%d/%d", part, p.next())
			r := record.Record{Key: []byte("k"), Value: []byte(value), Headers: []Header{Text("h", value)}, Timestamp: 1_700_000_000_000 + p.next()}
			if err := b.Append(&r); err != nil {
				panic(err)
			}
			p.log = append(p.log, modelRecord{value, "k"})
			i++
		}
		data, err := b.Finish(nil, record.NoProducer)
		if err != nil {
			panic(err)
		}
		record.Batch(data).Stamp(base, 1)
		p.batches = append(p.batches, modelBatch{base, data})
	}
}

// drain reads to the end and returns the offsets by partition; each record is
// checked against what fill wrote.
func drain(t *testing.T, ctx context.Context, r *Reader, form int) map[int32][]int64 {
	t.Helper()
	out := map[int32][]int64{}
	see := func(m *Message) {
		want := fmt.Sprintf("%d/%d", m.Partition, m.Offset)
		h, ok := m.Header("h")
		if string(m.Value) != want || string(m.Key) != "k" || !ok || string(h) != want || m.Topic != "t" ||
			m.Timestamp.UnixMilli() != 1_700_000_000_000+m.Offset {
			t.Errorf("%s: %+v", want, m)
		}
		out[m.Partition] = append(out[m.Partition], m.Offset)
	}
	switch form {
	case 0:
		for {
			m, err := r.Next(ctx)
			if err == io.EOF {
				return out
			}
			if err != nil {
				t.Fatalf("next: %v", err)
			}
			see(&m)
		}
	case 1:
		for m, err := range r.Messages(ctx) {
			if err != nil {
				t.Fatalf("messages: %v", err)
			}
			see(m)
		}
	case 2:
		if err := r.Run(ctx, func(m *Message) error { see(m); return nil }); err != nil {
			t.Fatalf("run: %v", err)
		}
	default:
		for {
			ms, err := r.NextBatch(ctx)
			if err == io.EOF {
				return out
			}
			if err != nil {
				t.Fatalf("next batch: %v", err)
			}
			if len(ms) == 0 {
				t.Fatal("empty batch")
			}
			for i := range ms {
				see(&ms[i])
			}
		}
	}
	return out
}

func wantRange(t *testing.T, got []int64, from, to int64) {
	t.Helper()
	if int64(len(got)) != to-from {
		t.Errorf("%d records, want %d from %d", len(got), to-from, from)
		return
	}
	for i, o := range got {
		if o != from+int64(i) {
			t.Errorf("record %d has offset %d, want %d", i, o, from+int64(i))
			return
		}
	}
}

// TestReaderOnABadDay reads everything in order, each record once, while requests,
// answers and connections are lost, fetches refused and batches damaged on the way.
func TestReaderOnABadDay(t *testing.T) {
	t.Parallel()
	for _, seed := range seeds(t, 100) {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { badDayOfReading(t, seed) })
		})
		if !ok {
			t.Fatalf("seed %d", seed)
		}
	}
}

func badDayOfReading(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	some := func(p float64) float64 { return float64(rng.IntN(2)) * rng.Float64() * p }
	f := faults{
		dropRequest: some(.1), dropAnswer: some(.1), twice: some(.2), refuse: some(.3), unsure: some(.2),
		delay: time.Duration(rng.IntN(20)) * time.Millisecond, stray: some(1),
		garbage: some(.1),
	}
	parts := 1 + rng.IntN(4)
	m := newModel(seed, f, map[string]int{"t": parts})
	n := make([]int, parts)
	for p := range parts {
		n[p] = rng.IntN(3000)
		m.fill("t", p, n[p], 1+rng.IntN(200), []Codec{None, LZ4, Snappy}[rng.IntN(3)])
	}
	c := m.client(WithRequestTimeout(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	rrng := rand.New(rand.NewPCG(seed, 2))
	go func() {
		for range rrng.IntN(4) {
			time.Sleep(time.Duration(rrng.IntN(2000)) * time.Millisecond)
			m.restart(time.Duration(rrng.IntN(3000)) * time.Millisecond)
		}
	}()
	r, err := c.NewReader(ctx, "t", UntilEnd(), Prefetch(minFetch+rng.IntN(200_000)))
	if err != nil {
		t.Fatal(err)
	}
	got := drain(t, ctx, r, rng.IntN(4))
	for p := range parts {
		wantRange(t, got[int32(p)], 0, int64(n[p]))
		if pos := r.Positions()[int32(p)]; pos != int64(n[p]) {
			t.Errorf("position of partition %d is %d, want %d", p, pos, n[p])
		}
	}
	if r.bytes != 0 {
		t.Errorf("%d bytes are still booked", r.bytes)
	}
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Minute) // virtual
}

func reader(t *testing.T, ctx context.Context, c *Client, opts ...ReaderOption) *Reader {
	t.Helper()
	r, err := c.NewReader(ctx, "t", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReaderStarts(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, map[string]int{"t": 2}, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.fill("t", 0, 500, 7, None)
		m.fill("t", 1, 300, 7, None)
		m.trim("t", 0, 33)
		for name, tc := range map[string]struct {
			opts   []ReaderOption
			p0, p1 int64
		}{
			"default":         {nil, 33, 0},
			"earliest":        {[]ReaderOption{FromEarliest()}, 33, 0},
			"offset in batch": {[]ReaderOption{FromOffset(101)}, 101, 101},
			"offsets":         {[]ReaderOption{FromOffsets(map[int32]int64{0: 499})}, 499, 0},
			"latest":          {[]ReaderOption{FromLatest()}, 500, 300},
			"the end":         {[]ReaderOption{FromOffsets(map[int32]int64{0: 500, 1: 300})}, 500, 300},
		} {
			r := reader(t, ctx, c, append(tc.opts, UntilEnd())...)
			got := drain(t, ctx, r, 0)
			wantRange(t, got[0], tc.p0, 500)
			wantRange(t, got[1], tc.p1, 300)
			if t.Failed() {
				t.Fatal(name)
			}
		}
		r := reader(t, ctx, c, Partitions(1), UntilEnd())
		got := drain(t, ctx, r, 0)
		wantRange(t, got[1], 0, 300)
		if len(got) != 1 {
			t.Errorf("read partitions %v", got)
		}
		if _, err := c.NewReader(ctx, "t", Partitions(2)); !errors.Is(err, ErrPartNotFound) {
			t.Errorf("partition 2: %v", err)
		}
		if _, err := c.NewReader(ctx, "none"); !errors.Is(err, ErrTopicNotFound) {
			t.Errorf("no such topic: %v", err)
		}
		if m.counts["refused"] != 0 || len(c.members) != 8-1 {
			t.Errorf("%d readers are open", len(c.members))
		}
	})
}

func TestReaderBeyondTheEndUntilEnd(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		for i := range 5 {
			publish(t, ctx, producer(t, ctx, c), fmt.Sprint(i))
		}
		for offset, want := range map[int64]error{4: nil, 5: io.EOF, 6: ErrOffsetOutOfRange, 1 << 40: ErrOffsetOutOfRange} {
			r := reader(t, ctx, c, FromOffset(offset), UntilEnd())
			if _, err := r.Next(ctx); !errors.Is(err, want) {
				t.Errorf("from %d of 5: error %v, want %v", offset, err, want)
			}
		}
	})
}

func TestReaderOutOfRange(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.fill("t", 0, 100, 1, None)
		m.trim("t", 0, 40)
		r := reader(t, ctx, c, FromOffset(10))
		for range 2 { // it stays so until Seek
			_, err := r.Next(ctx)
			var e *OffsetOutOfRangeError
			if !errors.As(err, &e) || !errors.Is(err, ErrOffsetOutOfRange) {
				t.Fatalf("error %v", err)
			}
			if want := (OffsetOutOfRangeError{"t", 0, 10, 40, 100}); *e != want {
				t.Errorf("error %+v, want %+v", *e, want)
			}
		}
		if err := r.Seek(0, 98); err != nil {
			t.Fatal(err)
		}
		for want := int64(98); want < 100; want++ {
			if m, err := r.Next(ctx); err != nil || m.Offset != want {
				t.Errorf("offset %d, %v; want %d", m.Offset, err, want)
			}
		}
		for _, tc := range []struct {
			policy OutOfRangePolicy
			start  int64
			latest bool
		}{
			{OutOfRangeEarliest, 10, false},
			{OutOfRangeEarliest, 1000, false},
			{OutOfRangeLatest, 10, true},
			{OutOfRangeLatest, 1000, true},
		} {
			r := reader(t, ctx, c, FromOffset(tc.start), OnOutOfRange(tc.policy))
			want := int64(40)
			if tc.latest {
				want = m.parts["t"][0].next()
				time.Sleep(time.Second) // virtual: it finds the end before there is more
				m.fill("t", 0, 1, 1, None)
			}
			if got, err := r.Next(ctx); err != nil || got.Offset != want {
				t.Errorf("policy %d from %d: offset %d, %v; want %d", tc.policy, tc.start, got.Offset, err, want)
			}
		}
	})
}

func TestReaderFollows(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.fill("t", 0, 10, 3, None)
		r := reader(t, ctx, c, FromLatest())
		short, cancel := context.WithTimeout(ctx, time.Minute)
		if _, err := r.Next(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the end: %v", err)
		}
		cancel()
		m.fill("t", 0, 1, 1, None)
		m.restart(time.Second)
		if got, err := r.Next(ctx); err != nil || got.Offset != 10 {
			t.Errorf("offset %d, %v", got.Offset, err)
		}
		// A partition that is added is read from its start.
		m.mu.Lock()
		m.parts["t"] = append(m.parts["t"], &modelPartition{producers: map[int64]*modelProducer{}})
		m.mu.Unlock()
		m.fill("t", 1, 5, 2, None)
		for i := range int64(5) {
			if got, err := r.Next(ctx); err != nil || got.Offset != i || got.Partition != 1 {
				t.Errorf("added partition: %d/%d, %v", got.Partition, got.Offset, err)
			}
		}
		go func() {
			time.Sleep(time.Second)
			_ = r.Close(ctx)
		}()
		if _, err := r.Next(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

func TestReaderDamaged(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.fill("t", 0, 10, 1, None)
		p := m.parts["t"][0]
		bad := p.batches[4].bytes
		bad[len(bad)-1] ^= 1
		r := reader(t, ctx, c)
		for i := range int64(4) {
			if got, err := r.Next(ctx); err != nil || got.Offset != i {
				t.Errorf("offset %d, %v", got.Offset, err)
			}
		}
		if _, err := r.Next(ctx); !errors.Is(err, ErrDamaged) {
			t.Errorf("error %v", err)
		}
		if err := r.Seek(0, 5); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Next(ctx); err != nil || got.Offset != 5 {
			t.Errorf("behind it: offset %d, %v", got.Offset, err)
		}
	})
}

// TestReaderIsFair: no partition waits while another has a lot.
func TestReaderIsFair(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, map[string]int{"t": 3}, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.fill("t", 0, 3000, 1, None)
		m.fill("t", 1, 300, 1, None)
		m.fill("t", 2, 300, 1, None)
		r := reader(t, ctx, c, UntilEnd())
		synctest.Wait()
		seen := map[int32]int{}
		for range 900 {
			msg, err := r.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			seen[msg.Partition]++
		}
		if seen[1] < 295 || seen[2] < 295 {
			t.Errorf("after 900 records: %v", seen)
		}
	})
}

func TestReaderOfManyPartitions(t *testing.T) {
	t.Parallel()
	const parts = 200 // more than may fetch at a time
	bubble(t, faults{delay: time.Millisecond}, map[string]int{"t": parts}, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		for p := range parts {
			m.fill("t", p, 200, 40, None)
		}
		r := reader(t, ctx, c, UntilEnd(), Prefetch(minFetch))
		time.Sleep(time.Minute) // virtual
		m.mu.Lock()
		asked := len(m.waiting)
		m.mu.Unlock()
		if asked > maxFetches {
			t.Errorf("%d fetches at a time", asked)
		}
		got := drain(t, ctx, r, 3)
		for p := range int32(parts) {
			wantRange(t, got[p], 0, 200)
		}
	})
}

func TestReaderStopsFetchingWhenFull(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		m.fill("t", 0, 100_000, 500, None) // about 5 MB
		r := reader(t, ctx, c, Prefetch(256<<10), UntilEnd())
		time.Sleep(time.Hour / 2) // virtual
		r.mu.Lock()
		held := r.bytes
		r.mu.Unlock()
		if held < 128<<10 || held > 512<<10 {
			t.Errorf("holds %d bytes ahead", held)
		}
		wantRange(t, drain(t, ctx, r, 3)[0], 0, 100_000)
	})
}

func TestReaderKeepsHeadersApart(t *testing.T) {
	t.Parallel()
	bubble(t, faults{}, oneTopic, func(t *testing.T, ctx context.Context, m *model, c *Client) {
		p := producer(t, ctx, c, Linger(time.Millisecond))
		for i := range 50 {
			r := Record{Value: fmt.Appendf(nil, "%d", i), Timestamp: time.UnixMilli(int64(1000 + i))}
			for h := range i % 4 {
				r.Headers = append(r.Headers, Text("h", fmt.Sprintf("%d-%d", i, h)))
			}
			if err := p.SendFunc(ctx, r, func(Ack, error) {}); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		ms, err := reader(t, ctx, c).NextBatch(ctx)
		if err != nil || len(ms) != 50 {
			t.Fatalf("%d messages, %v", len(ms), err)
		}
		for i, m := range ms {
			if len(m.Headers) != i%4 || m.Timestamp.UnixMilli() != int64(1000+i) {
				t.Errorf("message %d: %+v", i, m)
			}
			for h := range m.Headers {
				if string(m.Headers[h].Value) != fmt.Sprintf("%d-%d", i, h) {
					t.Errorf("message %d: header %d is %q", i, h, m.Headers[h].Value)
				}
			}
			c := m.Clone()
			if string(c.Value) != string(m.Value) || len(c.Headers) != len(m.Headers) {
				t.Errorf("clone of message %d: %+v", i, c)
			}
		}
	})
}
