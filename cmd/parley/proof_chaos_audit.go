package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client"
)

// chaosAudit holds what was sent, acked and seen against what is there in the end.
type chaosAudit struct {
	prefix string
	sdk    int // so many streams are SDK producers, the first ones
	say    func(format string, args ...any)
	lanes  [][]*lane // by stream and partition
	seed   maphash.Seed
	all    atomic.Int64 // acks
	read   atomic.Int64 // records that live readers saw

	mu     sync.Mutex
	seen   [][]uint64 // by partition and offset: the hash of the value, 0: nobody saw it
	pulses []pulse    // by partition: acks of any stream

	ends   []atomic.Int64  // by partition: one more than the highest offset that was acked or seen
	epochs []atomic.Uint64 // by partition: the newest epoch that an ack has named
	floors []atomic.Uint64 // by partition: an epoch that acks have named when all was well: no later record's names an older one

	phantom   atomic.Int64 // never sent, or changed
	twoValues atomic.Int64 // an offset that held two values
	vanished  atomic.Int64 // seen or acked at an offset that nothing has in the end
	holes     atomic.Int64
	staleEnd  atomic.Int64 // a partition's end was told that lay before what had been acked or seen
	stale     atomic.Int64 // an ack named an epoch older than the one that its partition went by
	failures  atomic.Int64 // errors that a client saw, and other events that must not be
	told      atomic.Int64
}

// pulse is how acks come.
type pulse struct {
	last time.Time
	gap  time.Duration
}

// toldLimit bounds the findings that are printed.
const toldLimit = 200

func newChaosAudit(prefix string, sdk, streams int, parts int32, say func(string, ...any)) *chaosAudit {
	a := &chaosAudit{prefix: prefix, sdk: sdk, say: say, seed: maphash.MakeSeed(), seen: make([][]uint64, parts), pulses: make([]pulse, parts),
		ends: make([]atomic.Int64, parts), epochs: make([]atomic.Uint64, parts), floors: make([]atomic.Uint64, parts)}
	now := time.Now()
	for i := range a.pulses {
		a.pulses[i].last = now
	}
	for range streams {
		var row []*lane
		for range parts {
			l := &lane{ledger: newLedger()}
			l.ack.Store(now.UnixNano())
			row = append(row, l)
		}
		a.lanes = append(a.lanes, row)
	}
	return a
}

func (a *chaosAudit) lane(stream int, part int32) *lane { return a.lanes[stream][part] }

// anomaly counts a finding and tells it.
func (a *chaosAudit) anomaly(kind *atomic.Int64, format string, args ...any) {
	kind.Add(1)
	if a.told.Add(1) <= toldLimit {
		a.say("✖ "+format, args...)
	}
}

// chaosValue is a record's value: who wrote it, its number, and a filling that
// follows from both, so that a changed byte shows.
func chaosValue(prefix string, stream int, part int32, n int64) []byte {
	v := fmt.Appendf(nil, "%s %d %d %d ", prefix, stream, part, n)
	x := uint64(stream)<<48 ^ uint64(part)<<40 ^ uint64(n)
	for range (x*0x9e3779b97f4a7c15>>56)*2 + 1 {
		x = x*6364136223846793005 + 1442695040888963407
		v = append(v, 'a'+byte(x>>59)%26)
	}
	return v
}

// number takes a value apart; ok is false for one that was never sent.
func (a *chaosAudit) number(value []byte, part int32) (stream int, n int64, ok bool) {
	fields := bytes.SplitN(value, []byte{' '}, 5)
	if len(fields) != 5 || string(fields[0]) != a.prefix || string(fields[2]) != strconv.Itoa(int(part)) {
		return 0, 0, false
	}
	stream, err := strconv.Atoi(string(fields[1]))
	if err != nil || stream < 0 || stream >= len(a.lanes) {
		return 0, 0, false
	}
	n, err = strconv.ParseInt(string(fields[3]), 10, 64)
	if err != nil || n < 0 || n >= a.lane(stream, part).sent.Load() {
		return 0, 0, false
	}
	return stream, n, bytes.Equal(value, chaosValue(a.prefix, stream, part, n))
}

// receipt is an ack as a client got it. floor is its partition's as the record was sent.
type receipt struct {
	part   int32
	offset int64 // -1 when the broker doesn't remember it
	epoch  uint64
	floor  uint64
}

// acked notes an ack.
func (a *chaosAudit) acked(stream int, part int32, n int64, r receipt, value []byte) {
	at, offset := r.part, r.offset
	if at != part {
		a.anomaly(&a.failures, "record %d of stream %d for partition %d was acked in partition %d", n, stream, part, at)
		return
	}
	l, now := a.lane(stream, part), time.Now()
	l.mu.Lock()
	l.ledger.acked.set(n)
	l.mu.Unlock()
	l.gap.Store(max(l.gap.Load(), now.UnixNano()-l.ack.Load()))
	l.ack.Store(now.UnixNano())
	a.all.Add(1)
	raise(&a.epochs[part], r.epoch)
	if r.epoch < r.floor {
		a.anomaly(&a.stale, "record %d of stream %d was acked in partition %d with epoch %d, sent when it went by epoch %d", n, stream, part, r.epoch, r.floor)
	}
	a.mu.Lock()
	p := &a.pulses[part]
	p.gap, p.last = max(p.gap, now.Sub(p.last)), now
	a.mu.Unlock()
	if offset >= 0 {
		a.observed(part, offset, value)
	}
}

// observed notes that an offset holds a value, which must be so for ever.
func (a *chaosAudit) observed(part int32, offset int64, value []byte) {
	h := maphash.Bytes(a.seed, value) | 1
	a.mu.Lock()
	seen := &a.seen[part]
	for int64(len(*seen)) <= offset {
		*seen = append(*seen, 0)
	}
	was := (*seen)[offset]
	(*seen)[offset] = h
	if a.ends[part].Load() <= offset {
		a.ends[part].Store(offset + 1)
	}
	a.mu.Unlock()
	if was != 0 && was != h {
		a.anomaly(&a.twoValues, "offset %d of partition %d has two values; the newer: %.60q", offset, part, value)
	}
}

// raise sets a to v unless it is higher.
func raise(a *atomic.Uint64, v uint64) {
	for {
		was := a.Load()
		if was >= v || a.CompareAndSwap(was, v) {
			return
		}
	}
}

// endTold takes what a broker says is a partition's end: end was true before it was asked.
func (a *chaosAudit) endTold(part int32, end, next int64, broker string) {
	if next < end {
		a.anomaly(&a.staleEnd, "%s says that partition %d ends at %d, %d was acked or seen before it was asked", broker, part, next, end-1)
	}
}

// begin starts the clocks of a fault.
func (a *chaosAudit) begin() {
	a.mu.Lock()
	for i := range a.pulses {
		a.pulses[i].gap = 0
	}
	a.mu.Unlock()
	for _, row := range a.lanes {
		for _, l := range row {
			l.gap.Store(0)
		}
	}
}

// gaps are the longest times without acks since begin: by partition, and of one SDK producer
// in one partition. Plain clients wait as long as they choose to.
func (a *chaosAudit) gaps() (parts []time.Duration, lane time.Duration) {
	now := time.Now()
	a.mu.Lock()
	for _, p := range a.pulses {
		parts = append(parts, max(p.gap, now.Sub(p.last)))
	}
	a.mu.Unlock()
	for _, row := range a.lanes[:a.sdk] {
		for _, l := range row {
			lane = max(lane, time.Duration(l.gap.Load()), now.Sub(time.Unix(0, l.ack.Load())))
		}
	}
	return parts, lane
}

// silent counts the lanes without an ack since t, and names one.
func (a *chaosAudit) silent(t time.Time) (n int, first string) {
	for stream, row := range a.lanes {
		for part, l := range row {
			if l.ack.Load() < t.UnixNano() {
				if n++; n == 1 {
					first = fmt.Sprintf("stream %d in partition %d", stream, part)
				}
			}
		}
	}
	return n, first
}

// finish reads everything back and compares.
func (a *chaosAudit) finish(ctx context.Context, c *client.Client) error {
	parts := int32(len(a.seen))
	r, err := c.NewReader(ctx, chaosTopic, client.FromEarliest(), client.UntilEnd())
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer r.Close(context.WithoutCancel(ctx)) //nolint:errcheck // everything was read
	final := make([]int64, parts)
	for {
		batch, err := r.NextBatch(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		for i := range batch {
			m := &batch[i]
			if m.Offset != final[m.Partition] {
				a.anomaly(&a.holes, "offset %d of partition %d came where %d was next", m.Offset, m.Partition, final[m.Partition])
			}
			final[m.Partition] = m.Offset + 1
			a.observed(m.Partition, m.Offset, m.Value)
			stream, n, ok := a.number(m.Value, m.Partition)
			if !ok {
				a.anomaly(&a.phantom, "offset %d of partition %d holds what was never sent: %.60q", m.Offset, m.Partition, m.Value)
				continue
			}
			g := a.lane(stream, m.Partition).ledger
			duplicated, reordered := g.duplicated, g.reordered
			if g.observe(n); g.duplicated > duplicated {
				a.tell("record %d of stream %d is in partition %d again, at offset %d", n, stream, m.Partition, m.Offset)
			} else if g.reordered > reordered {
				a.tell("record %d of stream %d is in partition %d after a later one, at offset %d", n, stream, m.Partition, m.Offset)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for p, seen := range a.seen {
		for o := final[p]; o < int64(len(seen)); o++ {
			if seen[o] != 0 {
				a.anomaly(&a.vanished, "offset %d of partition %d was seen or acked, and the partition ends at %d", o, p, final[p])
			}
		}
	}
	for stream, row := range a.lanes {
		for p, l := range row {
			for n := range l.sent.Load() {
				if l.ledger.acked.has(n) && !l.ledger.seen.has(n) {
					a.tell("record %d of stream %d was acked in partition %d and is lost", n, stream, p)
				}
			}
		}
	}
	return nil
}

func (a *chaosAudit) tell(format string, args ...any) {
	if a.told.Add(1) <= toldLimit {
		a.say("✖ "+format, args...)
	}
}

// verdict sums the lanes up.
func (a *chaosAudit) verdict() verdict {
	var v verdict
	v.Acked = a.all.Load()
	for _, row := range a.lanes {
		for _, l := range row {
			v.Lost += l.ledger.lost()
			v.Duplicated += l.ledger.duplicated
			v.Reordered += l.ledger.reordered
			v.Read += l.ledger.read
		}
	}
	return v
}
