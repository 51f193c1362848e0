package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client"
)

// partitionsUpTo names the first n partitions for a reader.
func partitionsUpTo(n int32) client.ReaderOption {
	which := make([]int32, n)
	for i := range which {
		which[i] = int32(i)
	}
	return client.Partitions(which...)
}

// benchSub reads from the earliest on, each client all of the partitions, and
// begins again at the end of the topic while there is more to measure.
func (a *app) benchSub(ctx context.Context, f *benchFlags, topic string) (benchResult, error) {
	partitions, err := a.benchTopic(ctx, f, topic)
	if err != nil {
		return benchResult{}, err
	}
	if f.group != "" {
		return a.groupLoad(ctx, f, topic)
	}
	// The warm-up reads by itself, so that the measurement counts what was asked
	// for, from the first record on.
	warm := *f
	if warm.records > 0 {
		warm.records = max(min(f.records/warmRecords, warmMost), 1)
	}
	warm.duration = warmTime
	if _, err := a.readLoad(ctx, &warm, topic, partitions); err != nil || ctx.Err() != nil {
		return benchResult{}, err
	}
	return a.readLoad(ctx, f, topic, partitions)
}

func (a *app) readLoad(ctx context.Context, f *benchFlags, topic string, partitions int32) (benchResult, error) {
	m := &meter{total: f.records * int64(f.clients), stop: make(chan struct{}), timed: make(chan struct{})}
	m.open()
	end := a.watch(f.progress, m.status)
	defer end()
	go m.clock(ctx, &benchFlags{duration: f.duration})
	err := m.eachClient(f.clients, func(int) error {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer closeClient(c)
		left := f.records
		if left == 0 {
			left = 1 << 62
		}
		for left > 0 {
			n, err := readOnce(ctx, m, c, topic, partitions, left)
			if err != nil {
				return err
			}
			select {
			case <-m.stop:
				return nil
			default:
			}
			if n == 0 {
				return fmt.Errorf("topic %s has no records to read: parley bench pub %s makes some", topic, topic)
			}
			left -= n
		}
		return nil
	})
	result := m.result()
	if ctx.Err() != nil {
		err = nil
	}
	return result, err
}

// readOnce reads from the earliest to the end, or up to limit records.
func readOnce(ctx context.Context, m *meter, c *client.Client, topic string, partitions int32, limit int64) (n int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-m.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	r, err := c.NewReader(ctx, topic, client.FromEarliest(), client.UntilEnd(), partitionsUpTo(partitions))
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return 0, nil
		}
		return 0, err
	}
	defer func() { _ = r.Close(context.Background()) }() // never fails
	m.cold()
	for n < limit {
		batch, err := r.NextBatch(ctx)
		if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if over := n + int64(len(batch)) - limit; over > 0 {
			batch = batch[:int64(len(batch))-over]
		}
		bytes := int64(0)
		for i := range batch {
			bytes += int64(len(batch[i].Value))
		}
		n += int64(len(batch))
		m.count(int64(len(batch)), bytes)
	}
	return n, nil
}

// stampBytes begin each value of an end-to-end measurement: the run, so that
// others' records are told apart, and the time at which it was due.
const stampBytes = 16

// e2eWait is how long what was acked may take to be read.
const e2eWait = 10 * time.Second

func (a *app) benchE2E(ctx context.Context, f *benchFlags, topic string) (benchResult, error) {
	if f.bytes < stampBytes {
		return benchResult{}, usagef("--size %s: an end-to-end record takes at least %dB", f.size, stampBytes)
	}
	partitions, err := a.benchTopic(ctx, f, topic)
	if err != nil {
		return benchResult{}, err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return benchResult{}, err
	}
	defer closeClient(c)
	e := &e2eRun{m: newMeter(f), id: rand.Uint64()}
	if f.group != "" {
		return a.benchE2EGroup(ctx, f, topic, partitions, e, c)
	}
	reader, err := c.NewReader(ctx, topic, client.FromLatest(), partitionsUpTo(partitions))
	if err != nil {
		return benchResult{}, err
	}
	reading, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var readErr error
	wg.Go(func() {
		if readErr = e.read(reading, reader); readErr != nil {
			e.m.halt()
		}
	})
	result, err := a.measure(ctx, e.m, f, func(index int) error { return e.publish(ctx, a, f, topic, partitions, index) })
	stop()
	wg.Wait()
	_ = reader.Close(context.Background()) // never fails
	return result, errors.Join(err, readErr)
}

type e2eRun struct {
	m     *meter
	id    uint64
	acked atomic.Int64
}

func (e *e2eRun) read(ctx context.Context, r *client.Reader) error {
	h := e.m.histogram()
	for {
		batch, err := r.NextBatch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch {
			e.see(h, batch[i].Value)
		}
	}
}

// see counts a record of this run.
func (e *e2eRun) see(h *histogram, v []byte) {
	if len(v) >= stampBytes && binary.LittleEndian.Uint64(v) == e.id {
		e.m.settle(h, time.Unix(0, int64(binary.LittleEndian.Uint64(v[8:]))), len(v))
	}
}

func (e *e2eRun) publish(ctx context.Context, a *app, f *benchFlags, topic string, partitions int32, index int) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	p, err := c.NewProducer(ctx, topic, client.PartitionBy(client.ByRecord), client.Buffer(client.DefaultBufferBytes, benchBuffer))
	if err != nil {
		return err
	}
	settle := func(_ client.Ack, err error) {
		if err != nil {
			e.m.lose(err)
		} else {
			e.acked.Add(1)
		}
	}
	values, pace, value := newPayloads(f.bytes, benchSeed+uint64(index)), newPacer(f.rate, f.clients, index), make([]byte, f.bytes)
	for n := index; e.m.claim(); n++ {
		copy(value, values.next())
		binary.LittleEndian.PutUint64(value, e.id)
		binary.LittleEndian.PutUint64(value[8:], uint64(pace.wait(e.m.stop).UnixNano()))
		if err := p.SendFunc(ctx, client.Record{Value: value, Partition: int32(n % int(partitions))}, settle); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	if err := p.Close(ctx); err != nil {
		return err
	}
	return e.caughtUp(ctx)
}

// caughtUp waits until everything acked was read.
func (e *e2eRun) caughtUp(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(e2eWait)
	for {
		missing := e.acked.Load() - e.m.done.Load()
		if missing <= 0 || ctx.Err() != nil {
			return nil
		}
		if time.Now().After(deadline) {
			e.m.errors.Add(missing)
			return fmt.Errorf("%d acked records were not read within %s", missing, e2eWait)
		}
		<-tick.C
	}
}
