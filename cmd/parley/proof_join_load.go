package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client"
)

// What proof join writes, copies and counts.

const (
	joinRecord  = 16 << 10
	joinSmall   = 1 << 10
	joinWriters = 4

	metricJournal = "parley_raft_journal_written_bytes"
)

// fill publishes so many bytes, spread evenly. They don't compress.
func (r *joinRun) fill(ctx context.Context, bytes int64) error {
	p, err := r.c.NewProducer(ctx, joinTopic, client.PartitionBy(client.ByRecord))
	if err != nil {
		return err
	}
	rng := rand.NewChaCha8([32]byte{'j'})
	var failed atomic.Pointer[error]
	for n := range bytes / joinRecord {
		value := make([]byte, joinRecord)
		_, _ = rng.Read(value) // it never fails
		err := p.SendFunc(ctx, client.Record{Value: value, Partition: int32(n % int64(r.f.partitions))}, func(_ client.Ack, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
		if err != nil {
			return fmt.Errorf("publish record %d: %w", n, err)
		}
	}
	err = p.Close(ctx)
	if first := failed.Load(); first != nil {
		err = errors.Join(err, *first)
	}
	if err != nil {
		return fmt.Errorf("fill the topic: %w", err)
	}
	return r.await(ctx, "all is well after filling", r.healthy)
}

// stored sums up one replica of each partition.
func (r *joinRun) stored(ctx context.Context) (sum int64, err error) {
	for p, err := range r.c.Partitions(ctx, joinTopic) {
		if err != nil {
			return 0, err
		}
		sum += p.Bytes
	}
	return sum, nil
}

// plainCopy copies so many bytes of a broker's value logs to a file and fsyncs it, and returns its MB/s.
func (r *joinRun) plainCopy(bytes int64) (speed float64, err error) {
	logs, err := filepath.Glob(filepath.Join(r.brokers[0].dir, "log", "store", "db", "*.vlog"))
	if err != nil || len(logs) == 0 {
		return 0, errors.Join(err, errors.New("the first broker has no value logs to copy"))
	}
	to := filepath.Join(r.dir, "copy")
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close(), os.Remove(to)) }()
	begin := time.Now()
	left := bytes
	for i := 0; left > 0; i = (i + 1) % len(logs) {
		n, err := copyPart(out, logs[i], left)
		if err != nil {
			return 0, err
		}
		if n == 0 && i == len(logs)-1 && left == bytes {
			return 0, errors.New("the first broker's value logs are empty")
		}
		left -= n
	}
	if err := out.Sync(); err != nil {
		return 0, err
	}
	return float64(bytes) / 1e6 / time.Since(begin).Seconds(), nil
}

// copyPart copies through memory: what shares blocks of the file system is no copy.
func copyPart(out io.Writer, path string, most int64) (int64, error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	return io.CopyBuffer(struct{ io.Writer }{out}, io.LimitReader(in, min(most, info.Size())), make([]byte, 1<<20))
}

// movement is what one measurement of moving replicas found.
type movement struct {
	bytes  int64
	took   time.Duration // from the first byte until all was in its place
	copied time.Duration // from the first byte to the last
}

// measureMove measures what moves from begin's end, or from the first byte before that, until why says nothing more.
func (r *joinRun) measureMove(ctx context.Context, begin func() error, why func(context.Context) string) (m movement, err error) {
	brokers := len(r.brokers)
	was, err := r.received(ctx)
	if err != nil {
		return m, err
	}
	if err := begin(); err != nil {
		return m, err
	}
	if len(r.brokers) > brokers && brokers > 3 { // another one's journal counts now
		n, err := r.brokers[brokers-1].metric(ctx, metricJournal, "")
		if err != nil {
			return m, err
		}
		was -= n
	}
	var first, last time.Time
	progress := func(now int64) {
		if now > m.bytes {
			if last = time.Now(); first.IsZero() {
				first = last
			}
			m.bytes = now
		}
	}
	told := time.Now()
	err = r.await(ctx, "replicas are in their places", func(ctx context.Context) string {
		if now, err := r.received(ctx); err == nil {
			progress(now - was)
		}
		text := why(ctx)
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			r.say("%d MB were copied; %s", m.bytes/1e6, text)
		}
		return text
	})
	if err != nil {
		return m, err
	}
	if m.took, m.copied = time.Since(first), last.Sub(first); first.IsZero() {
		return m, errors.New("nothing was copied")
	}
	return m, nil
}

// received sums up what brokers got for replicas that lacked it, as copies. What comes to the newest broker as entries of the Raft log
// counts as well: it is in its journal.
func (r *joinRun) received(ctx context.Context) (sum int64, err error) {
	for _, b := range r.brokers {
		n, err := b.metric(ctx, "parley_catchup_fetched_bytes_total", "")
		if err != nil {
			return 0, fmt.Errorf("%s: %w", b.name, err)
		}
		sum += n
	}
	if len(r.brokers) > 3 {
		b := r.brokers[len(r.brokers)-1]
		n, err := b.metric(ctx, metricJournal, "")
		if err != nil {
			return 0, fmt.Errorf("%s: %w", b.name, err)
		}
		sum += n
	}
	return sum, nil
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

// joinLoad publishes at a steady rate and times each ack.
type joinLoad struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	acked  atomic.Int64
	failed atomic.Pointer[error]

	mu   sync.Mutex
	took *histogram // since the last next
}

// next returns the latencies since it was called before.
func (l *joinLoad) next() *histogram {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.took
	l.took = &histogram{}
	return h
}

func (l *joinLoad) stop() {
	l.cancel()
	l.wg.Wait()
}

// finish stops it; an error when a record was not acked.
func (l *joinLoad) finish() (acked int64, err error) {
	l.stop()
	if first := l.failed.Load(); first != nil {
		err = fmt.Errorf("a record was not acked: %w", *first)
	}
	return l.acked.Load(), err
}

func (r *joinRun) startLoad(ctx context.Context) (*joinLoad, error) {
	l := &joinLoad{took: &histogram{}}
	running, cancel := context.WithCancel(ctx)
	l.cancel = cancel
	for i := range joinWriters {
		p, err := r.c.NewProducer(ctx, joinTopic, client.PartitionBy(client.ByRecord))
		if err != nil {
			l.stop()
			return nil, err
		}
		l.wg.Go(func() {
			l.publish(ctx, running, p, rand.New(rand.NewPCG(1, uint64(i))), r.f.partitions, float64(r.f.rate)/joinWriters)
			if err := p.Close(ctx); err != nil {
				l.failed.CompareAndSwap(nil, &err)
			}
		})
	}
	return l, nil
}

// publish keeps to the rate whatever the acks do: who waits for a late ack would measure only those that come in time.
func (l *joinLoad) publish(ctx, running context.Context, p *client.Producer, rng *rand.Rand, partitions int32, rate float64) {
	value := make([]byte, joinSmall)
	begin, sent := time.Now(), 0
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-running.Done():
			return
		}
		for due := int(time.Since(begin).Seconds() * rate); sent < due; sent++ {
			for i := 0; i < len(value); i += 8 {
				for j, x := 0, rng.Uint64(); j < 8; j++ {
					value[i+j] = byte(x >> (8 * j))
				}
			}
			at := begin.Add(time.Duration(float64(sent) / rate * float64(time.Second)))
			err := p.SendFunc(ctx, client.Record{Value: append([]byte(nil), value...), Partition: rng.Int32N(partitions)}, func(_ client.Ack, err error) {
				if err != nil {
					l.failed.CompareAndSwap(nil, &err)
					return
				}
				l.acked.Add(1)
				l.mu.Lock()
				l.took.record(time.Since(at))
				l.mu.Unlock()
			})
			if err != nil {
				l.failed.CompareAndSwap(nil, &err)
				return
			}
		}
	}
}
