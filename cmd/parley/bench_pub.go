package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// eachClient runs one goroutine a client and waits for all; the first error
// ends the measurement.
func (m *meter) eachClient(n int, run func(index int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if errs[i] = run(i); errs[i] != nil {
				m.halt()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (a *app) benchPub(ctx context.Context, f *benchFlags, topic string) (benchResult, error) {
	codec, err := codec(f.compression)
	if err != nil {
		return benchResult{}, err
	}
	batch, err := wire.ParseSize(f.batch)
	if err != nil {
		return benchResult{}, usagef("--batch: %v", err)
	}
	partitions, err := a.benchTopic(ctx, f, topic)
	if err != nil {
		return benchResult{}, err
	}
	m := newMeter(f)
	run := func(index int) error {
		return a.publishLoad(ctx, m, f, topic, partitions, index, client.Compression(codec), client.BatchBytes(int(batch)))
	}
	if f.plain {
		subject := ""
		err := a.request(ctx, func(ctx context.Context, c *client.Client) error {
			d, err := c.DescribeTopic(ctx, topic)
			if err == nil {
				subject, err = plainSubject(d)
			}
			return err
		})
		if err != nil {
			return benchResult{}, err
		}
		run = func(index int) error { return a.plainLoad(ctx, m, f, subject, index) }
	}
	return a.measure(ctx, m, f, run)
}

// measure runs the clients of a measurement under its clock.
func (a *app) measure(ctx context.Context, m *meter, f *benchFlags, run func(index int) error) (benchResult, error) {
	end := a.watch(f.progress, m.status)
	defer end()
	m.start(ctx, f)
	err := m.eachClient(f.clients, run)
	result := m.result()
	if first := m.failure.Load(); first != nil {
		fmt.Fprintf(a.stderr, "parley: first failure: %v\n", *first)
	}
	if ctx.Err() != nil {
		err = nil // interrupted: what was measured so far counts
	}
	return result, err
}

// sendTimes remembers when records were sent that wait for their ack: a ring
// with one writer, the sender, and one reader, the partition's callbacks, which
// come in the order of its records.
type sendTimes struct {
	at         [benchBuffer]time.Time
	head, tail atomic.Uint64
}

func (s *sendTimes) push(t time.Time) {
	h := s.head.Load()
	s.at[h%benchBuffer] = t
	s.head.Store(h + 1)
}

// unpush takes back a push whose record wasn't sent.
func (s *sendTimes) unpush() { s.head.Store(s.head.Load() - 1) }

func (s *sendTimes) pop() time.Time {
	t := s.tail.Load()
	at := s.at[t%benchBuffer]
	s.tail.Store(t + 1)
	return at
}

// publishLoad is one client that publishes with the SDK as fast as the acks
// allow.
func (a *app) publishLoad(ctx context.Context, m *meter, f *benchFlags, topic string, partitions int32, index int, opts ...client.ProducerOption) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	// The load chooses partitions by itself, a batch's worth on one and then on
	// to the next, so that it knows whose ack comes next.
	// What waits is bounded to what keeps each partition busy: more of it adds
	// to every latency and nothing to the throughput.
	buffer := min(benchQueue*int(partitions), client.DefaultBufferBytes)
	opts = append(opts, client.PartitionBy(client.ByRecord), client.Buffer(buffer, benchBuffer-1))
	p, err := c.NewProducer(ctx, topic, opts...)
	if err != nil {
		return err
	}
	times := make([]sendTimes, partitions)
	settle := make([]func(client.Ack, error), partitions)
	for i := range settle {
		h, t := m.histogram(), &times[i]
		settle[i] = func(_ client.Ack, err error) {
			if since := t.pop(); err != nil {
				m.lose(err)
			} else {
				m.settle(h, since, f.bytes)
			}
		}
	}
	turn := max(client.DefaultBatchBytes/f.bytes, 1)
	keys := make([][]byte, f.keys)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%d", i)
	}
	values, pace := newPayloads(f.bytes, benchSeed+uint64(index)), newPacer(f.rate, f.clients, index)
	for n := index * turn; m.claim(); n++ {
		partition := int32(n / turn % int(partitions))
		r := client.Record{Value: values.next(), Partition: partition}
		if f.keys > 0 {
			r.Key = keys[n%f.keys]
			partition = client.ByKey(r, partitions)
			r.Partition = partition
		}
		times[partition].push(pace.wait(m.stop))
		err := p.SendFunc(ctx, r, settle[partition])
		if err != nil {
			times[partition].unpush()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	return p.Close(ctx)
}

func (a *app) benchLatency(ctx context.Context, f *benchFlags, topic string) (benchResult, error) {
	partitions, err := a.benchTopic(ctx, f, topic)
	if err != nil {
		return benchResult{}, err
	}
	m := newMeter(f)
	return a.measure(ctx, m, f, func(index int) error {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer closeClient(c)
		p, err := c.NewProducer(ctx, topic, client.PartitionBy(client.ByRecord))
		if err != nil {
			return err
		}
		h, values, pace := m.histogram(), newPayloads(f.bytes, benchSeed+uint64(index)), newPacer(f.rate, f.clients, index)
		for n := index; m.claim(); n++ {
			due := pace.wait(m.stop)
			_, err := p.Publish(ctx, client.Record{Value: values.next(), Partition: int32(n % int(partitions))})
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				m.lose(err)
			default:
				m.settle(h, due, f.bytes)
			}
		}
		return nil
	})
}

// plainWait is how long a plain publish may stay unanswered.
const plainWait = 10 * time.Second

// plainLoad is one plain NATS client with so many publishes outstanding: each has
// its own reply subject, as JetStream's asynchronous publish does it.
func (a *app) plainLoad(ctx context.Context, m *meter, f *benchFlags, subject string, index int) error {
	settings, err := a.connection()
	if err != nil {
		return err
	}
	nc, err := dialPlain(settings, a.timeout)
	if err != nil {
		return err
	}
	defer nc.Close()

	free := make(chan int, f.outstanding)
	since := make([]time.Time, f.outstanding)
	replies := make([]string, f.outstanding)
	inbox := nc.NewInbox()
	for i := range f.outstanding {
		free <- i
		replies[i] = inbox + "." + strconv.Itoa(i)
	}
	h := m.histogram()
	sub, err := nc.Subscribe(inbox+".*", func(reply *nats.Msg) {
		slot, err := strconv.Atoi(reply.Subject[len(inbox)+1:])
		if err != nil || slot >= f.outstanding {
			return
		}
		if failed := plainFailure(reply); failed != nil {
			m.errors.Add(1)
			m.failure.CompareAndSwap(nil, &failed)
		} else {
			m.settle(h, since[slot], f.bytes)
		}
		free <- slot // never blocks: there are as many slots as room
	})
	if err != nil {
		return fmt.Errorf("subscribe to acks: %w", err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil { // bounded by outstanding
		return fmt.Errorf("subscribe to acks: %w", err)
	}

	// take waits for a slot whose publish was answered.
	timeout := time.NewTimer(plainWait)
	defer timeout.Stop()
	take := func() (int, error) {
		select {
		case slot := <-free:
			return slot, nil
		default:
		}
		timeout.Reset(plainWait)
		select {
		case slot := <-free:
			return slot, nil
		case <-timeout.C:
			return 0, fmt.Errorf("%d publishes to %s were not answered within %s", f.outstanding-len(free), subject, plainWait)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	values, pace := newPayloads(f.bytes, benchSeed+uint64(index)), newPacer(f.rate, f.clients, index)
	for m.claim() {
		slot, err := take()
		if err != nil {
			return err
		}
		since[slot] = pace.wait(m.stop)
		if err := nc.PublishRequest(subject, replies[slot], values.next()); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	for range f.outstanding {
		if _, err := take(); err != nil {
			return err
		}
	}
	return nil
}

// plainFailure looks into an ack only where it may hold an error: parsing each
// would measure the tool.
func plainFailure(reply *nats.Msg) error {
	if reply.Header.Get("Status") == "503" {
		return nats.ErrNoResponders
	}
	if !bytes.Contains(reply.Data, []byte(`"error"`)) {
		return nil
	}
	var ack wire.PubAck
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return fmt.Errorf("the answer is no ack: %w", err)
	}
	if ack.Error != nil {
		return ack.Error
	}
	return nil
}
