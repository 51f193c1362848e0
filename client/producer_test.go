package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"math/rand/v2"
)

// told is what a producer was told about one record.
type told struct {
	value     string
	sender    int
	partition int32
	ack       Ack
	err       error
}

// check compares what producers were told with what the model's partitions hold.
func checkLogs(t *testing.T, m *model, topic string, all []told) (acked, rejectedN, unknown int) {
	t.Helper()
	at := map[string][]string{} // value -> "partition/offset"
	for n := range m.parts[topic] {
		last := map[string]int{}
		for off, v := range m.values(topic, n) {
			at[v] = append(at[v], fmt.Sprintf("%d/%d", n, off))
			var sender, seq int
			if _, err := fmt.Sscanf(v, "%d-%d", &sender, &seq); err != nil {
				t.Fatalf("partition %d holds %q: %v", n, v, err)
			}
			key := strconv.Itoa(sender)
			if prev, ok := last[key]; ok && prev >= seq {
				t.Errorf("partition %d, offset %d: record %d of sender %d comes after %d", n, off, seq, sender, prev)
			}
			last[key] = seq
		}
	}
	for _, r := range all {
		where := at[r.value]
		if len(where) > 1 {
			t.Errorf("%s is stored %d times: %v", r.value, len(where), where)
		}
		var e *Error
		switch {
		case r.err == nil:
			acked++
			if len(where) != 1 {
				t.Errorf("%s is acked at %d/%d and stored at %v", r.value, r.ack.Partition, r.ack.Offset, where)
			} else if r.ack.Offset >= 0 && where[0] != fmt.Sprintf("%d/%d", r.ack.Partition, r.ack.Offset) {
				t.Errorf("%s is acked at %d/%d and stored at %s", r.value, r.ack.Partition, r.ack.Offset, where[0])
			}
		case errors.As(r.err, &e) && e.Outcome == OutcomeUnknown:
			unknown++
		case errors.As(r.err, &e) && e.Outcome == OutcomeRejected:
			rejectedN++
			if len(where) != 0 {
				t.Errorf("%s was rejected (%v) and is stored at %v", r.value, r.err, where)
			}
		default:
			t.Errorf("%s: unexpected error %v", r.value, r.err)
		}
	}
	return acked, rejectedN, unknown
}

func seeds(t *testing.T, short int) []uint64 {
	t.Helper()
	if s := os.Getenv("PARLEY_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{n}
	}
	n := short
	if s := os.Getenv("PARLEY_SEEDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(i + 1)
	}
	return out
}

// TestProducerOnABadDay runs producers against the model while requests and
// answers are dropped, delayed, reordered and doubled, refused and lost with
// restarts. Whatever happens: an acked record is stored once, where the ack says; a
// rejected one isn't; each sender's order is kept. PARLEY_SEEDS=5000 runs more;
// PARLEY_SEED=n one. (No zstd: its pooled encoders hold channels, which synctest ties to
// one bubble.)
func TestProducerOnABadDay(t *testing.T) {
	t.Parallel()
	for _, seed := range seeds(t, 150) {
		var counts map[string]int
		var acked, rejectedN, unknown int
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { counts, acked, rejectedN, unknown = badDay(t, seed) })
		})
		if !ok {
			t.Fatalf("seed %d: faults %v, acked %d, rejected %d, unknown %d", seed, counts, acked, rejectedN, unknown)
		}
	}
}

func badDay(t *testing.T, seed uint64) (counts map[string]int, acked, rejectedN, unknown int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	erng := rand.New(rand.NewPCG(seed, 3))
	some := func(p float64) float64 {
		if rng.IntN(2) == 0 {
			return 0
		}
		return rng.Float64() * p
	}
	f := faults{
		dropRequest: some(.1), dropAnswer: some(.1), twice: some(.2), refuse: some(.3), unsure: some(.2),
		delay: time.Duration(rng.IntN(20)) * time.Millisecond, stray: some(1), garbage: some(.1),
	}
	parts := 1 + rng.IntN(3)
	m := newModel(seed, f, map[string]int{"t": parts})
	c := m.client(WithRequestTimeout(time.Second))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	giveUp := DefaultGiveUp
	if rng.IntN(3) == 0 {
		giveUp = time.Duration(1+rng.IntN(6000)) * time.Millisecond // gives up often
	}
	opts := []ProducerOption{
		BatchBytes(1024 + rng.IntN(4000)), GiveUp(giveUp), Compression([]Codec{None, LZ4, Snappy}[rng.IntN(3)]),
		Linger(time.Duration(rng.IntN(2)*rng.IntN(10)) * time.Millisecond),
		PartitionBy(ByRecord),
	}
	p, err := c.NewProducer(ctx, "t", opts...)
	if err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	var all []told
	var wg sync.WaitGroup
	senders := 1 + rng.IntN(3)
	for s := range senders {
		part := int32(s % parts)
		srng := rand.New(rand.NewPCG(seed, uint64(100+s)))
		wg.Go(func() {
			for i := range 300 {
				value := fmt.Sprintf("%d-%d", s, i)
				size := srng.IntN(400)
				rec := Record{Key: make([]byte, size), Value: []byte(value), Partition: part}
				done := func(a Ack, err error) {
					mu.Lock()
					all = append(all, told{value, s, part, a, err})
					mu.Unlock()
				}
				var err error
				switch srng.IntN(20) {
				case 0:
					a, e := p.Publish(ctx, rec)
					done(a, e)
				default:
					err = p.SendFunc(ctx, rec, done)
				}
				if err != nil {
					t.Errorf("send: %v", err)
				}
				if srng.IntN(30) == 0 {
					time.Sleep(time.Duration(srng.IntN(200)) * time.Millisecond) // virtual: load comes in bursts
				}
			}
		})
	}
	evictions := 0
	if f.twice == 0 && f.stray == 0 && rng.IntN(2) == 0 {
		// Forgetting a producer while copies of its first batch are about would store it
		// twice: no protocol without memory can do better.
		evictions = 1 + rng.IntN(3)
	}
	wg.Go(func() {
		for range evictions {
			time.Sleep(time.Duration(erng.IntN(1000)) * time.Millisecond)
			m.evict("t")
		}
	})
	restarts := rng.IntN(4)
	rrng := rand.New(rand.NewPCG(seed, 2))
	wg.Go(func() {
		for range restarts {
			time.Sleep(time.Duration(rrng.IntN(2000)) * time.Millisecond)
			m.restart(time.Duration(rrng.IntN(3000)) * time.Millisecond)
		}
	})
	wg.Wait()
	// Once all is well again, so is the producer.
	if err := p.Flush(ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
	m.calm()
	time.Sleep(10 * time.Second) // virtual
	for part := range int32(parts) {
		r := Record{Value: fmt.Appendf(nil, "99-%d", part), Partition: part}
		if a, err := p.Publish(ctx, r); err != nil {
			t.Errorf("publish to partition %d after the faults: %v", part, err)
		} else if a.Offset < 0 {
			t.Errorf("publish to partition %d after the faults: ack without offset", part)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	if len(all) != 300*senders {
		t.Errorf("%d records sent, %d settled", 300*senders, len(all))
	}
	acked, rejectedN, unknown = checkLogs(t, m, "t", all)
	if giveUp == DefaultGiveUp && evictions == 0 && acked != len(all) {
		t.Errorf("%d of %d acked within %s of retries", acked, len(all), giveUp)
	}
	if err := c.Close(ctx); err != nil {
		t.Errorf("close client: %v", err)
	}
	time.Sleep(time.Minute) // virtual: stragglers arrive while the bubble lives
	return m.counts, acked, rejectedN, unknown
}
