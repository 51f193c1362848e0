package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/parleymq/parley/client"
)

const (
	corruptionTopic = "ledger"
	corruptionGroup = "auditors"
)

// corruptionLedger knows every byte that was acked.
type corruptionLedger struct {
	c     *client.Client
	seed  uint64
	parts int32
	fail  func(string, ...any)
	hash  maphash.Seed
	next  int // value

	mu        sync.Mutex
	records   []map[int64]uint64 // by partition: offset to the value's hash
	placeless map[uint64]bool    // acked as duplicates whose offset is forgotten
	committed []int64            // of the group
	acked     int64
	read      int64
	wrong     int64
	lost      int64
}

func newCorruptionLedger(c *client.Client, seed uint64, parts int32, fail func(string, ...any)) *corruptionLedger {
	l := &corruptionLedger{c: c, seed: seed, parts: parts, fail: fail, hash: maphash.MakeSeed(), placeless: map[uint64]bool{}}
	for range parts {
		l.records = append(l.records, map[int64]uint64{})
	}
	l.committed = make([]int64, parts)
	return l
}

// publish publishes records of all sizes to all partitions and waits for their acks.
func (l *corruptionLedger) publish(ctx context.Context, rng *rand.Rand, n int) error {
	p, err := l.c.NewProducer(ctx, corruptionTopic, client.PartitionBy(client.ByRecord), client.BatchBytes(16<<10))
	if err != nil {
		return err
	}
	var failed error
	for range n {
		l.next++
		value := make([]byte, 50+rng.IntN(6000))
		for i := range value {
			value[i] = byte(rng.Uint32())
		}
		copy(value, fmt.Sprintf("%d/%d ", l.seed, l.next))
		sum := maphash.Bytes(l.hash, value)
		err := p.SendFunc(ctx, client.Record{Partition: int32(l.next) % l.parts, Value: value}, func(ack client.Ack, err error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			switch {
			case err != nil:
				failed = err
			case ack.Offset < 0:
				l.acked++
				l.placeless[sum] = true
			default:
				l.acked++
				l.records[ack.Partition][ack.Offset] = sum
			}
		})
		if err != nil {
			return errors.Join(err, p.Close(ctx))
		}
		if rng.IntN(3) == 0 { // many small entries rather than few large ones
			if err := p.Flush(ctx); err != nil {
				return errors.Join(err, p.Close(ctx))
			}
		}
	}
	err = p.Close(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(err, failed)
}

// handle has the group handle everything that is there.
func (l *corruptionLedger) handle(ctx context.Context) error {
	s, err := l.c.Messages(ctx, corruptionTopic, corruptionGroup, client.FromEarliest())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, corruptionHealing)
	defer cancel()
	for n := int64(0); n < l.acked; n++ {
		m, err := s.Next(ctx)
		if err != nil {
			return errors.Join(fmt.Errorf("handle record %d of %d: %w", n, l.acked, err), s.Close(ctx))
		}
		l.committed[m.Partition] = max(l.committed[m.Partition], m.Offset+1)
		if err := m.Ack(); err != nil {
			return errors.Join(err, s.Close(ctx))
		}
	}
	return s.Close(ctx)
}

// readAll reads everything and compares it with what was acked. The reader goes to whoever leads.
func (l *corruptionLedger) readAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, corruptionHealing)
	defer cancel()
	r, err := l.c.NewReader(ctx, corruptionTopic, client.FromEarliest(), client.UntilEnd())
	if err != nil {
		return err
	}
	seen := make([]int64, l.parts)
	for m, rerr := range r.Messages(ctx) {
		if rerr != nil {
			return errors.Join(fmt.Errorf("read everything: %w", rerr), r.Close(ctx))
		}
		l.read++
		sum := maphash.Bytes(l.hash, m.Value)
		want, known := l.records[m.Partition][m.Offset]
		switch {
		case !known && l.placeless[sum]:
			continue
		case !known:
			l.wrong++
			l.fail("%s/%d has a record at offset %d that was never acked there", corruptionTopic, m.Partition, m.Offset)
		case want != sum:
			l.wrong++
			l.fail("%s/%d: the record at offset %d is not what was acked", corruptionTopic, m.Partition, m.Offset)
		default:
			seen[m.Partition]++
		}
	}
	if err := r.Close(ctx); err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	for n := range l.parts {
		if missing := int64(len(l.records[n])) - seen[n]; missing != 0 {
			l.lost += missing
			l.fail("%s/%d: %d of %d acked records were not read", corruptionTopic, n, missing, len(l.records[n]))
		}
	}
	return nil
}

// checkGroup compares what the group has handled with what the leaders know.
func (l *corruptionLedger) checkGroup(ctx context.Context) error {
	var d client.GroupDescription
	err := retried(ctx, corruptionAnswer, func(ctx context.Context) (err error) {
		if d, err = l.c.DescribeGroup(ctx, corruptionTopic, corruptionGroup); err == nil && len(d.Partitions) != int(l.parts) {
			err = fmt.Errorf("%d of %d partitions are described", len(d.Partitions), l.parts)
		}
		for _, p := range d.Partitions {
			if p.Problem != "" {
				err = errors.Join(err, fmt.Errorf("%s/%d: %s", corruptionTopic, p.Partition, p.Problem))
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("describe group: %w", err)
	}
	for _, p := range d.Partitions {
		if want := l.committed[p.Partition]; p.Committed != want {
			l.wrong++
			l.fail("group %s has committed %d in %s/%d, it was %d", corruptionGroup, p.Committed, corruptionTopic, p.Partition, want)
		}
	}
	return nil
}

// retried does something until it succeeds.
func retried(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		one, done := context.WithTimeout(ctx, 5*time.Second)
		err := do(one)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
