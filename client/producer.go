package client

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// A ProducerOption configures NewProducer.
type ProducerOption func(*producerConfig) error

type producerConfig struct {
	batchBytes    int
	linger        time.Duration
	codec         Codec
	partitioner   Partitioner
	giveUp        time.Duration
	bufferBytes   int
	bufferRecords int
	failWhenFull  bool
}

// Defaults and bounds of a Producer.
const (
	DefaultBatchBytes    = 512 << 10
	DefaultGiveUp        = 2 * time.Minute
	DefaultBufferBytes   = 64 << 20
	DefaultBufferRecords = 1 << 20

	minBufferBytes = 2 * wire.MaxBatch
	minBatchBytes  = 1 << 10
	recordOverhead = 32 // what a record takes in a batch beyond its own bytes, at most, give or take

	// maxInFlight batches of a partition may be unsettled: as many as a partition
	// remembers of a producer.
	maxInFlight = 5

	// notFoundPatience is how long "there is no such topic" is not believed: a broker
	// may not have heard of a new one yet.
	notFoundPatience = 3 * time.Second
)

// BatchBytes is the size in bytes, before compression, at which a batch is full:
// 1 KiB up to 1 MiB, default 512 KiB. A larger record goes in a batch of its own.
func BatchBytes(n int) ProducerOption {
	return func(c *producerConfig) error {
		if n < minBatchBytes || n > wire.MaxRecord {
			return fmt.Errorf("batch bytes %d: must be %d to %d", n, minBatchBytes, wire.MaxRecord)
		}
		c.batchBytes = n
		return nil
	}
}

// Linger is how long a batch may wait for more records. With the default of 0 a
// batch leaves at once when nothing of its partition is under way, and otherwise
// gathers until the answer comes or it is well filled: it costs no time and still
// makes large batches under load.
func Linger(d time.Duration) ProducerOption {
	return func(c *producerConfig) error {
		if d < 0 || d > time.Minute {
			return fmt.Errorf("linger %s: must be 0 to 1m", d)
		}
		c.linger = d
		return nil
	}
}

// Compression of batches: None (default), Snappy, LZ4 or Zstd.
func Compression(codec Codec) ProducerOption {
	return func(c *producerConfig) error {
		if !codec.Supported() {
			return fmt.Errorf("compression %s: use none, snappy, lz4 or zstd", codec)
		}
		c.codec = codec
		return nil
	}
}

// PartitionBy sets the Partitioner. Default ByKey.
func PartitionBy(p Partitioner) ProducerOption {
	return func(c *producerConfig) error {
		if p == nil {
			return fmt.Errorf("partitioner: must not be nil")
		}
		c.partitioner = p
		return nil
	}
}

// GiveUp is how long a record is tried, counted from Send. Default 2 min. A batch
// that is under way when its time has passed is first waited for, for three request
// timeouts at most.
func GiveUp(d time.Duration) ProducerOption {
	return func(c *producerConfig) error {
		if d <= 0 {
			return fmt.Errorf("give-up time %s: must be positive", d)
		}
		c.giveUp = d
		return nil
	}
}

// Buffer bounds what waits for its ack: bytes of keys, values, headers and 32 a
// record (default 64 MiB, at least 2.125 MiB), and records (default 1,048,576).
func Buffer(bytes, records int) ProducerOption {
	return func(c *producerConfig) error {
		if bytes < minBufferBytes || records < 1 {
			return fmt.Errorf("buffer of %d bytes and %d records: at least %d bytes and 1 record", bytes, records, minBufferBytes)
		}
		c.bufferBytes, c.bufferRecords = bytes, records
		return nil
	}
}

// FailWhenFull makes Send return ErrBufferFull rather than wait for room.
func FailWhenFull() ProducerOption {
	return func(c *producerConfig) error { c.failWhenFull = true; return nil }
}

// Producer publishes records to one topic. It is safe for concurrent use; records
// that one goroutine sends to one partition are stored in that order, each once:
// every Producer has an id, and numbers its batches, so that a partition recognises
// a batch that it has already.
type Producer struct {
	c      *Client
	topic  string
	cfg    producerConfig
	view   *topicView
	routes *routes
	budget budget
	pool   sync.Pool // *batch

	lanes  atomic.Pointer[[]*lane] // by partition; nil where nothing was sent yet
	sticky atomic.Int32            // partition for records without one, -1: choose

	mu      sync.Mutex // to add a lane, to close
	closed  bool       // guarded by mu
	stop    chan struct{}
	workers sync.WaitGroup // one goroutine a lane
	ended   chan struct{}  // closed when Close is through
}

// NewProducer makes a Producer for a topic that exists; else it fails with
// ErrTopicNotFound. Close it to have everything sent.
func (c *Client) NewProducer(ctx context.Context, topic string, opts ...ProducerOption) (*Producer, error) {
	cfg := producerConfig{
		batchBytes:    DefaultBatchBytes,
		partitioner:   ByKey,
		giveUp:        DefaultGiveUp,
		bufferBytes:   DefaultBufferBytes,
		bufferRecords: DefaultBufferRecords,
	}
	for _, o := range opts {
		if err := o(&cfg); err != nil {
			return nil, fmt.Errorf("make producer for %s: %w", topic, err)
		}
	}
	view, err := c.topics.use(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("make producer for %s: %w", topic, err)
	}
	if most := c.publishes.base.maxPayload() - record.HeaderSize; most > minBatchBytes {
		cfg.batchBytes = min(cfg.batchBytes, most)
	}
	p := &Producer{
		c: c, topic: topic, cfg: cfg, view: view, routes: c.publishes,
		budget: budget{maxBytes: cfg.bufferBytes, maxRecords: cfg.bufferRecords, fail: cfg.failWhenFull},
		stop:   make(chan struct{}), ended: make(chan struct{}),
	}
	p.pool.New = func() any { return newBatch(cfg.codec) }
	p.sticky.Store(AnyPartition)
	p.lanes.Store(new([]*lane))
	if err := c.join(p); err != nil {
		c.topics.release(view)
		return nil, err
	}
	return p, nil
}

// Publish sends one record and waits for its ack. When ctx ends first, the record
// is still on its way and may yet be stored.
func (p *Producer) Publish(ctx context.Context, r Record) (Ack, error) {
	f, err := p.Send(ctx, r)
	if err != nil {
		return Ack{}, err
	}
	ack, err := f.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		return Ack{}, fmt.Errorf("publish to %s: %w", p.topic, err)
	}
	return ack, err
}

// Send takes a record and returns at once; the Future tells what became of it. It
// waits, as long as ctx allows, only while the buffer is full. An error means
// that the record was not taken.
func (p *Producer) Send(ctx context.Context, r Record) (Future, error) {
	return p.send(ctx, &r, nil)
}

// SendFunc is Send with a callback in place of a Future. Callbacks of a partition
// come one after the other, in the order of its records; those of several
// partitions at the same time. A callback must not block: it holds up its
// partition. It may Send, with FailWhenFull or a context that ends, but not Flush or
// Close.
func (p *Producer) SendFunc(ctx context.Context, r Record, fn func(Ack, error)) error {
	_, err := p.send(ctx, &r, fn)
	return err
}

func (p *Producer) send(ctx context.Context, r *Record, fn func(Ack, error)) (Future, error) {
	if len(r.Key) > wire.MaxKey {
		return Future{}, &Error{Code: 413, Reason: wire.ReasonTooLarge, Outcome: OutcomeRejected,
			Description: fmt.Sprintf("key of %d bytes, at most %d are allowed", len(r.Key), wire.MaxKey)}
	}
	rec := record.Record{Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp.UnixMilli()}
	now := time.Now()
	if r.Timestamp.IsZero() {
		rec.Timestamp = now.UnixMilli()
	}
	size := rec.Size()
	if most := batchLimits.MaxRecordBytes; size > most {
		return Future{}, tooLarge(fmt.Errorf("%w: %d bytes of key, value and headers, at most %d are allowed",
			record.ErrRecordTooLarge, size, most))
	}
	size += recordOverhead * (1 + len(r.Headers))

	n := p.view.partitions.Load()
	partition := p.cfg.partitioner(*r, n)
	if partition >= n || partition < AnyPartition {
		p.c.topics.stale()
		return Future{}, partitionNotFound(p.topic, partition, n)
	}
	if err := p.budget.take(ctx, size, p.stop); err != nil {
		return Future{}, fmt.Errorf("send to %s: %w", p.topic, err)
	}
	sticky := partition == AnyPartition
	if sticky {
		partition = p.stick(n)
	}
	l, err := p.lane(partition)
	if err == nil {
		var f Future
		if f, err = l.add(&rec, size, now, fn); err == nil {
			return f, nil
		}
	}
	p.budget.give(size, 1)
	return Future{}, err
}

func tooLarge(err error) *Error {
	return &Error{Code: 413, Reason: wire.ReasonTooLarge, Outcome: OutcomeRejected, Description: err.Error()}
}

// stick returns the partition whose turn it is. One that has trouble is passed over
// when a few throws of the dice find a better one.
func (p *Producer) stick(n int32) int32 {
	for {
		at := p.sticky.Load()
		if at >= 0 {
			return at
		}
		next := rand.Int32N(n)
		lanes := *p.lanes.Load()
		for range 4 {
			if int(next) >= len(lanes) || lanes[next] == nil || !lanes[next].troubled.Load() {
				break
			}
			next = rand.Int32N(n)
		}
		p.sticky.CompareAndSwap(at, next)
	}
}

// attemptTimeout bounds the wait for one answer. A publish may stand in a longer
// line than an administrative request.
func (p *Producer) attemptTimeout() time.Duration { return 3 * p.c.cfg.requestTimeout }

// unstick ends a partition's turn: its batch has been closed.
func (p *Producer) unstick(partition int32) { p.sticky.CompareAndSwap(partition, AnyPartition) }

func (p *Producer) lane(partition int32) (*lane, error) {
	if ls := *p.lanes.Load(); int(partition) < len(ls) && ls[partition] != nil {
		return ls[partition], nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	old := *p.lanes.Load()
	if int(partition) < len(old) && old[partition] != nil {
		return old[partition], nil
	}
	ls := make([]*lane, max(len(old), int(partition)+1))
	copy(ls, old)
	l := newLane(p, partition)
	ls[partition] = l
	p.workers.Go(l.run)
	p.lanes.Store(&ls)
	return l, nil
}

// Flush sends everything that was taken before it, without linger, and waits until
// it is settled or ctx ends. What became of each record its Future or callback
// tells.
func (p *Producer) Flush(ctx context.Context) error {
	for _, done := range p.flush() {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("flush %s: %w", p.topic, ctx.Err())
		}
	}
	return nil
}

func (p *Producer) flush() []<-chan struct{} {
	var last []<-chan struct{}
	for _, l := range *p.lanes.Load() {
		if l != nil {
			last = append(last, l.flush()...)
		}
	}
	return last
}

// Close takes no more records, flushes, and ends the Producer. When ctx ends first,
// what is left fails with ErrClosed and Close returns ctx's error. A second
// Close waits for the first.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		select {
		case <-p.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.closed = true
	p.mu.Unlock()

	// 1. Nothing more comes in, whoever waits for room gets ErrClosed.
	for _, l := range *p.lanes.Load() {
		if l != nil {
			l.shut()
		}
	}
	// 2. What is there goes out.
	err := p.Flush(ctx)
	// 3. The lanes end; what they still hold fails.
	close(p.stop)
	p.workers.Wait()
	p.c.leave(p)
	p.c.topics.release(p.view)
	close(p.ended)
	return err
}

// connected makes every lane try again now.
func (p *Producer) connected() {
	for _, l := range *p.lanes.Load() {
		if l != nil {
			l.retryNow()
		}
	}
}

// newProducerID is random: 63 bits, so that no two of all producers ever meet.
func newProducerID() int64 { return rand.Int64N(math.MaxInt64) }
