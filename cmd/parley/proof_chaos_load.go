package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// Figures of the load.
const (
	chaosTopic   = "chaos"
	chaosTick    = 10 * time.Millisecond
	chaosBurst   = 8                // records of one partition in turn, at most
	chaosGiveUp  = 15 * time.Minute // nothing is given up: whatever fails is a finding
	chaosRenew   = 20 * time.Second // a producer is replaced that often: a new id, a new first sequence
	plainTry     = 2 * time.Second
	plainGiveUp  = 100 * time.Second // within the window of message ids
	plainLate    = 40                // one of so many records comes again, long after its ack
	lateAfter    = 5 * time.Second
	readerJump   = 3 * time.Second // one reader begins anew that often, somewhere
	readerBack   = 2000            // that far back, in offsets of a partition
	readerAgain  = 200 * time.Millisecond
	chaosReaders = 2
)

// chaosLoad writes and reads while brokers fail. Streams are the writers: SDK producers first, then
// plain NATS clients. Each numbers its records from 0 in every partition.
type chaosLoad struct {
	c      *client.Client
	urls   []string
	audit  *chaosAudit
	parts  int32
	sdk    int
	plain  int
	prefix string

	cancel  context.CancelFunc // of readers
	halt    chan struct{}      // closed: writers end
	writers sync.WaitGroup
	readers sync.WaitGroup
}

func (l *chaosLoad) start(ctx context.Context, seed uint64) {
	l.halt = make(chan struct{})
	for i := range l.sdk {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1000))
		l.writers.Go(func() { l.produce(ctx, i, rng) })
	}
	for i := range l.plain {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+3000))
		l.writers.Go(func() { l.publishPlain(ctx, l.sdk+i, rng) })
	}
	// A context of their own: the writers' closures hold on to ctx.
	reading, cancel := context.WithCancel(ctx)
	l.cancel = cancel
	l.readers.Go(func() { l.askEnds(reading) })
	for i := range chaosReaders {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+2000))
		l.readers.Go(func() { l.read(reading, rng, i > 0) })
	}
}

// stop waits until all that was sent is settled.
func (l *chaosLoad) stop() {
	close(l.halt)
	l.writers.Wait()
	l.cancel()
	l.readers.Wait()
}

// produce is one SDK producer after the other.
func (l *chaosLoad) produce(ctx context.Context, stream int, rng *rand.Rand) {
	tick := time.NewTicker(chaosTick)
	defer tick.Stop()
	part := int32(rng.IntN(int(l.parts)))
	for {
		p, err := l.c.NewProducer(ctx, chaosTopic, client.PartitionBy(client.ByRecord), client.GiveUp(chaosGiveUp))
		if err != nil {
			if ctx.Err() == nil {
				l.audit.anomaly(&l.audit.failures, "make producer of stream %d: %v", stream, err)
			}
			select { // it may be a bad moment, which a later one is not
			case <-tick.C:
				continue
			case <-l.halt:
				return
			case <-ctx.Done():
				return
			}
		}
		renew := time.NewTimer(chaosRenew + time.Duration(rng.Int64N(int64(chaosRenew))))
		more := true
		for more {
			select {
			case <-tick.C:
				part = (part + 1) % l.parts
				for range 1 + rng.IntN(chaosBurst) {
					l.send(ctx, p, stream, part)
				}
			case <-renew.C:
				more = false
			case <-l.halt:
				more = false
			case <-ctx.Done():
				more = false
			}
		}
		renew.Stop()
		// Records are in order across producers when the older one has settled all of its own.
		if err := p.Close(ctx); err != nil && ctx.Err() == nil {
			l.audit.anomaly(&l.audit.failures, "close producer of stream %d: %v", stream, err)
		}
		select {
		case <-l.halt:
			return
		case <-ctx.Done():
			return
		default:
		}
	}
}

func (l *chaosLoad) send(ctx context.Context, p *client.Producer, stream int, part int32) {
	s := l.audit.lane(stream, part)
	n := s.sent.Load()
	value := chaosValue(l.prefix, stream, part, n)
	s.sent.Add(1)
	floor := l.audit.floors[part].Load()
	err := p.SendFunc(ctx, client.Record{Key: []byte(strconv.Itoa(stream)), Value: value, Partition: part}, func(ack client.Ack, err error) {
		if err != nil {
			if ctx.Err() == nil {
				l.audit.anomaly(&l.audit.failures, "publish record %d of stream %d to partition %d: %v", n, stream, part, err)
			}
			return
		}
		l.audit.acked(stream, part, n, receipt{ack.Partition, ack.Offset, ack.Epoch, floor}, value)
	})
	if err != nil && ctx.Err() == nil {
		l.audit.anomaly(&l.audit.failures, "send record %d of stream %d to partition %d: %v", n, stream, part, err)
	}
}

// publishPlain is what any NATS client does: one record at a time, under a message id, tried
// again over another broker until it is acked.
func (l *chaosLoad) publishPlain(ctx context.Context, stream int, rng *rand.Rand) {
	var conns []*nats.Conn
	for _, url := range l.urls {
		nc, err := plainConnect(url)
		if err != nil {
			l.audit.anomaly(&l.audit.failures, "connect plain client to %s: %v", url, err)
			return
		}
		defer nc.Close()
		conns = append(conns, nc)
	}
	tick := time.NewTicker(chaosTick)
	defer tick.Stop()
	at, part := stream, int32(0)
	var late []lateCopy
	for {
		select {
		case <-tick.C:
		case <-l.halt:
			return
		case <-ctx.Done():
			return
		}
		if len(late) > 0 && time.Since(late[0].acked) > lateAfter {
			at++
			l.repeat(ctx, conns[at%len(conns)], stream, late[0])
			late = late[1:]
		}
		part = (part + 1) % l.parts
		s := l.audit.lane(stream, part)
		n := s.sent.Load()
		s.sent.Add(1)
		value := chaosValue(l.prefix, stream, part, n)
		m := nats.NewMsg(chaosTopic)
		m.Data = value
		m.Header.Set(wire.HeaderMsgID, fmt.Sprintf("%s-%d-%d-%d", l.prefix, stream, part, n))
		m.Header.Set(wire.HeaderPart, strconv.Itoa(int(part)))
		begin, floor := time.Now(), l.audit.floors[part].Load()
		for tries := 0; ; tries++ {
			var ack wire.PubAck
			err := plainAck(ctx, conns[at%len(conns)], m, &ack)
			if err == nil {
				// The client's own broker may have sent it again. Then it is known where the first one is, and that is audited.
				if ack.Duplicate && tries == 0 && ack.Offset < 0 {
					l.audit.anomaly(&l.audit.failures, "record %d of stream %d in partition %d was sent once and acked as a duplicate of nothing", n, stream, part)
				}
				l.audit.acked(stream, part, n, receipt{ack.Partition, ack.Offset, ack.Epoch, floor}, value)
				if ack.Offset >= 0 && rng.IntN(plainLate) == 0 {
					late = append(late, lateCopy{m, ack.Offset, n, time.Now()})
				}
				break
			}
			if ctx.Err() != nil {
				return
			}
			if time.Since(begin) > plainGiveUp {
				l.audit.anomaly(&l.audit.failures, "plain publish of record %d of stream %d to partition %d, %d tries: %v", n, stream, part, tries+1, err)
				break
			}
			var e *client.Error
			if errors.As(err, &e) && !e.Retriable {
				l.audit.anomaly(&l.audit.failures, "plain publish of record %d of stream %d to partition %d: %v (not retriable)", n, stream, part, err)
			}
			at++
			select {
			case <-tick.C: // not in circles
			case <-ctx.Done():
				return
			}
		}
	}
}

// lateCopy is a record that was acked and is sent again, as a network may do that held a copy back.
type lateCopy struct {
	m      *nats.Msg
	offset int64
	n      int64
	acked  time.Time
}

// repeat sends a copy. Where it is answered, the answer is that of a duplicate.
func (l *chaosLoad) repeat(ctx context.Context, nc *nats.Conn, stream int, c lateCopy) {
	var ack wire.PubAck
	if plainAck(ctx, nc, c.m, &ack) != nil || time.Since(c.acked) > plainGiveUp {
		return
	}
	if !ack.Duplicate || ack.Offset != c.offset {
		l.audit.anomaly(&l.audit.failures, "record %d of stream %d, acked at offset %d, was sent again and acked at %d, duplicate %v", c.n, stream, c.offset, ack.Offset, ack.Duplicate)
	}
}

// askEnds asks one broker after the other where the partitions end: never before what was
// acked or seen already.
func (l *chaosLoad) askEnds(ctx context.Context) {
	var conns []*nats.Conn
	for _, url := range l.urls {
		nc, err := plainConnect(url)
		if err != nil {
			l.audit.anomaly(&l.audit.failures, "connect to %s: %v", url, err)
			return
		}
		defer nc.Close()
		conns = append(conns, nc)
	}
	var wg sync.WaitGroup
	for _, nc := range conns {
		wg.Go(func() {
			tick := time.NewTicker(chaosTick)
			defer tick.Stop()
			for n := int32(0); ; n++ {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				part := n % l.parts
				end := l.audit.ends[part].Load()
				var res wire.OffsetResponse
				if plainCall(ctx, nc, wire.APIOffset, wire.OffsetRequest{Topic: chaosTopic, Partition: part}, &res) == nil {
					l.audit.endTold(part, end, res.Next, nc.ConnectedUrl())
				}
			}
		})
	}
	wg.Wait()
}

// plainConnect connects to one broker alone, whatever that says of the others.
func plainConnect(url string) (*nats.Conn, error) {
	return nats.Connect(url, nats.Name("chaos"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(-1), nats.IgnoreDiscoveredServers(), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
}

func plainCall(ctx context.Context, nc *nats.Conn, subject string, req, res any) error {
	ctx, cancel := context.WithTimeout(ctx, plainTry)
	defer cancel()
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	answer, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return err
	}
	return decodeAck(answer.Data, res)
}

func plainAck(ctx context.Context, nc *nats.Conn, m *nats.Msg, ack *wire.PubAck) error {
	ctx, cancel := context.WithTimeout(ctx, plainTry)
	defer cancel()
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return err
	}
	return decodeAck(answer.Data, ack)
}

// read notes what a reader sees. One that jumps begins anew now and then.
func (l *chaosLoad) read(ctx context.Context, rng *rand.Rand, jumps bool) {
	next := make(map[int32]int64, l.parts)
	for p := range l.parts {
		next[p] = 0
	}
	again := time.NewTimer(0)
	defer again.Stop()
	for ctx.Err() == nil {
		from := map[int32]int64{}
		for p, n := range next {
			if from[p] = n; jumps && n > 0 {
				from[p] = max(n-readerBack, 0) + rng.Int64N(min(n, readerBack)+1)
			}
		}
		r, err := l.c.NewReader(ctx, chaosTopic, client.FromOffsets(from))
		if err != nil {
			if ctx.Err() == nil {
				l.audit.anomaly(&l.audit.failures, "open reader: %v", err)
			}
			continue
		}
		until, cancel := ctx, context.CancelFunc(func() {})
		if jumps {
			until, cancel = context.WithTimeout(ctx, readerJump)
		}
		for {
			batch, err := r.NextBatch(until)
			if err != nil {
				if until.Err() == nil {
					l.audit.anomaly(&l.audit.failures, "live reader: %v", err)
					again.Reset(readerAgain)
					select { // not in circles
					case <-again.C:
					case <-until.Done():
					}
				}
				break
			}
			for i := range batch {
				m := &batch[i]
				if want := from[m.Partition]; m.Offset != want {
					l.audit.anomaly(&l.audit.failures, "live reader: offset %d of partition %d came where %d was next", m.Offset, m.Partition, want)
				}
				from[m.Partition] = m.Offset + 1
				next[m.Partition] = max(next[m.Partition], m.Offset+1)
				l.audit.observed(m.Partition, m.Offset, m.Value)
				l.audit.read.Add(1)
			}
		}
		cancel()
		if err := r.Close(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, client.ErrClosed) {
			l.audit.anomaly(&l.audit.failures, "close reader: %v", err)
		}
	}
}

// lane is what one stream does in one partition.
type lane struct {
	ledger *ledger // its acked side belongs to the acks, the rest to the final read
	sent   atomic.Int64
	ack    atomic.Int64 // when the last ack came, Unix nanoseconds
	gap    atomic.Int64 // longest time between acks since the fault began
	mu     sync.Mutex
}
