package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// Reader reads a topic's records: each partition's in order, the partitions in
// turn, batch by batch. It fetches ahead of its caller, and on across lost
// connections and broker restarts without telling. Every batch's checksum is
// verified.
//
// A Reader belongs to one goroutine at a time, except Close. It holds no state in
// the cluster: Positions says where it is.
type Reader struct {
	c      *Client
	topic  string
	cfg    readerConfig
	view   *topicView
	routes *routes

	wake  chan struct{} // for the fetching goroutine; capacity 1
	ready chan struct{} // for the consumer; capacity 1
	stop  chan struct{}
	ended chan struct{} // the fetching goroutine is gone
	once  sync.Once

	mu       sync.Mutex
	tracks   []*track  // guarded by mu; only grows
	line     trackLine // guarded by mu; tracks with something for the consumer, by turns
	live     int       // guarded by mu; tracks that are not ended
	bytes    int       // guarded by mu; fetched and not yet taken
	arrivals []fetched // guarded by mu

	// Of the consumer.
	cur     *track // whose batch it reads, nil: none
	it      record.Iterator
	msg     Message
	msgs    []Message
	headers []Header

	// Of the fetching goroutine.
	swap  []fetched
	begin []fetching
	first int // whose turn it is to fetch
}

type fetched struct {
	t   *track
	tag uint64
	r   reply
}

type fetching struct {
	t       *track
	attempt uint64
	offset  int64
}

// startLookups bounds how many partitions are asked for their bounds at a time.
const startLookups = 16

// NewReader opens a Reader on a topic that exists; else it fails with
// ErrTopicNotFound. ctx bounds only finding out where to start. Close it.
func (c *Client) NewReader(ctx context.Context, topic string, opts ...ReaderOption) (*Reader, error) {
	r, err := c.newReader(ctx, topic, opts)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", topic, err)
	}
	return r, nil
}

func (c *Client) newReader(ctx context.Context, topic string, opts []ReaderOption) (*Reader, error) {
	cfg := readerConfig{prefetch: DefaultPrefetch}
	for _, o := range opts {
		if err := o.reader(&cfg); err != nil {
			return nil, err
		}
	}
	view, err := c.topics.use(ctx, topic)
	if err != nil {
		return nil, err
	}
	r := &Reader{
		c: c, topic: topic, cfg: cfg, view: view,
		wake: make(chan struct{}, 1), ready: make(chan struct{}, 1),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	if r.routes, err = c.fetchRoutes(ctx); err == nil {
		if err = r.locate(ctx); err == nil {
			err = c.join(r)
		}
	}
	if err != nil {
		c.topics.release(view)
		return nil, err
	}
	go r.run()
	return r, nil
}

// locate makes the tracks: where each partition starts and ends.
func (r *Reader) locate(ctx context.Context) error {
	n := r.view.partitions.Load()
	which := r.cfg.partitions
	if which == nil {
		for p := range n {
			which = append(which, p)
		}
	} else if last := which[len(which)-1]; last >= n {
		return partitionNotFound(r.topic, last, n)
	}
	r.tracks = make([]*track, len(which))
	errs := make([]error, len(which))
	slots := make(chan struct{}, startLookups)
	var wg sync.WaitGroup
	for i, p := range which {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r.tracks[i], errs[i] = r.place(ctx, p)
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("find the start of partition %d: %w", which[i], err)
		}
	}
	for _, t := range r.tracks {
		r.live++
		if t.err == nil && t.atEnd() {
			r.end(t)
		}
	}
	return nil
}

func (r *Reader) place(ctx context.Context, p int32) (*track, error) {
	start, end, first, next := int64(0), int64(-1), int64(0), int64(0)
	from := r.cfg.from
	if from == startOffset {
		start = r.cfg.offset
	} else if o, ok := r.cfg.offsets[p]; from == startOffsets && ok {
		start, from = o, startOffset
	}
	if from != startOffset || r.cfg.untilEnd {
		req := wire.OffsetRequest{Topic: r.topic, Partition: p}
		if from == startTime {
			ms := r.cfg.time.UnixMilli()
			req.TimeMS = &ms
		}
		o, err := r.c.offset(ctx, req)
		if err != nil {
			return nil, err
		}
		first, next = o.Start, o.Next
		switch from {
		case startEarliest, startOffsets:
			start = o.Start
		case startLatest:
			start = o.Next
		case startTime:
			start = o.Offset
		}
		if r.cfg.untilEnd {
			end = o.Next
		}
	}
	t := newTrack(r, p, start, end)
	t.next = next
	if end >= 0 && start > end { // no fetch will tell
		r.mu.Lock()
		t.outside(first, next)
		r.mu.Unlock()
	}
	return t, nil
}

func (r *Reader) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// enqueue puts a track in line for the consumer. r.mu is held.
func (r *Reader) enqueue(t *track) {
	if !t.inLine {
		t.inLine = true
		r.line.push(t)
	}
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// end marks a track as read to its end. r.mu is held.
func (r *Reader) end(t *track) {
	if !t.ended {
		t.ended = true
		r.live--
	}
}

// connected makes fetches that wait begin at once, and notices new partitions.
func (r *Reader) connected() {
	r.mu.Lock()
	for _, t := range r.tracks {
		t.retryAt = time.Time{}
	}
	r.mu.Unlock()
	r.nudge()
}

// Next returns the next record. It waits for one until ctx ends. With UntilEnd it
// returns io.EOF at the end. The error of one partition (an
// *OffsetOutOfRangeError, ErrDamaged, ErrTopicNotFound, …) comes after the
// records before it and again whenever that partition's turn comes, until Seek.
func (r *Reader) Next(ctx context.Context) (Message, error) {
	m, err := r.step(ctx)
	if err != nil {
		return Message{}, err
	}
	return *m, nil
}

// Messages iterates over the records, for range. The Message is the same one each
// time. It ends at the end (UntilEnd), or after an error, ctx's among them.
func (r *Reader) Messages(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			m, err := r.step(ctx)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				if err != io.EOF {
					yield(nil, err)
				}
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// Run calls handle with each record until the end (UntilEnd), when it returns nil,
// or until handle or the Reader fails or ctx ends, when it returns that error.
func (r *Reader) Run(ctx context.Context, handle func(*Message) error) error {
	for m, err := range r.Messages(ctx) {
		if err != nil {
			return err
		}
		if err := handle(m); err != nil {
			return err
		}
	}
	return nil
}

// NextBatch returns the next records as they were batched, at least one, all of one
// partition. The slice and what it refers to are valid until the next call.
func (r *Reader) NextBatch(ctx context.Context) ([]Message, error) {
	r.msgs, r.headers = r.msgs[:0], r.headers[:0]
	for {
		for r.cur != nil && r.read() {
			m := r.msg
			at := len(r.headers)
			r.headers = append(r.headers, m.Headers...)
			m.Headers = r.headers[at:len(r.headers):len(r.headers)]
			r.msgs = append(r.msgs, m)
		}
		if len(r.msgs) > 0 {
			return r.msgs, nil
		}
		if err := r.batch(ctx); err != nil {
			return nil, err
		}
	}
}

// Positions says, for each partition, which offset comes next. FromOffsets takes it.
func (r *Reader) Positions() map[int32]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[int32]int64, len(r.tracks))
	for _, t := range r.tracks {
		out[t.partition] = t.pos
	}
	return out
}

// Seek goes on at another offset of a partition.
func (r *Reader) Seek(partition int32, offset int64) error {
	if offset < 0 {
		return fmt.Errorf("seek %s/%d to %d: must be 0 or more", r.topic, partition, offset)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tracks {
		if t.partition == partition {
			t.seek(offset)
			if r.cur == t {
				r.cur = nil
			}
			r.enqueue(t) // may be at its end
			r.nudge()
			return nil
		}
	}
	return fmt.Errorf("seek %s/%d: this reader doesn't read it", r.topic, partition)
}

// Close ends the Reader. A Next that waits returns ErrClosed. It may be called from
// any goroutine, and again.
func (r *Reader) Close(context.Context) error {
	r.once.Do(func() {
		close(r.stop)
		<-r.ended
		r.mu.Lock()
		for _, t := range r.tracks {
			if t.attempt != 0 {
				t.forget()
			}
		}
		r.mu.Unlock()
		r.c.leave(r)
		r.c.topics.release(r.view)
	})
	return nil
}

// step moves to the next record.
func (r *Reader) step(ctx context.Context) (*Message, error) {
	for {
		if r.cur != nil && r.read() {
			return &r.msg, nil
		}
		if err := r.batch(ctx); err != nil {
			return nil, err
		}
	}
}

// read takes the next record of the current batch into r.msg, or leaves the batch.
func (r *Reader) read() bool {
	t := r.cur
	for r.it.Next() {
		rec := r.it.Record()
		if rec.Offset < t.pos {
			continue
		}
		if t.end >= 0 && rec.Offset >= t.end {
			t.rest = nil
			break
		}
		t.pos = rec.Offset + 1
		m := &r.msg
		m.Topic, m.Partition, m.Offset, m.Deliveries = r.topic, t.partition, rec.Offset, 1
		m.Timestamp = time.UnixMilli(rec.Timestamp)
		m.Key, m.Value, m.Headers = rec.Key, rec.Value, rec.Headers
		return true
	}
	r.leave(r.it.Err())
	return false
}

// leave ends the current batch: its track goes to the back of the line, or fetches
// again what was damaged.
func (r *Reader) leave(err error) {
	t := r.cur
	r.cur = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.damaged(t, err)
		return
	}
	t.bad = 0
	if len(t.rest) > 0 || len(t.queue) > 0 || t.err != nil || t.atEnd() {
		r.enqueue(t)
	}
}

// damaged fetches a batch again that didn't verify, a few times. r.mu is held.
func (r *Reader) damaged(t *track, err error) {
	t.seek(t.pos)
	t.bad++
	if t.bad >= damagedTries {
		t.bad = 0
		t.fail(&Error{Code: 500, Reason: wire.ReasonDamaged,
			Description: fmt.Sprintf("the batch of %s/%d that holds offset %d doesn't verify: %v", t.r.topic, t.partition, t.pos, err)})
		return
	}
	r.c.cfg.log("batch does not verify, fetching it again", "topic", r.topic, "partition", t.partition, "offset", t.pos, "error", err)
	r.nudge()
}

// batch makes the next batch in line the current one, waiting for it.
func (r *Reader) batch(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case <-r.stop:
			return ErrClosed
		default:
		}
		t, err := r.turn()
		if err != nil {
			return err
		}
		if t == nil {
			select {
			case <-r.ready:
			case <-ctx.Done():
				return ctx.Err()
			case <-r.stop:
				return ErrClosed
			}
			continue
		}
		b, rest, err := record.Split(t.rest)
		t.rest = rest
		if err == nil {
			if err = b.VerifyCRC(); err == nil {
				err = r.it.Reset(b, record.DefaultLimits)
			}
		}
		r.cur = t
		if err == nil {
			return nil
		}
		r.leave(err)
	}
}

// turn takes the first track in line that has a batch, which is then in t.rest. nil
// means that there is nothing yet.
func (r *Reader) turn() (*track, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		t := r.line.pop()
		if t == nil {
			if r.live == 0 {
				return nil, io.EOF
			}
			return nil, nil
		}
		t.inLine = false
		if len(t.rest) == 0 && len(t.queue) > 0 {
			t.rest, t.pos = t.queue[0].data, t.queue[0].from
			n := copy(t.queue, t.queue[1:])
			t.queue[n] = chunk{}
			t.queue = t.queue[:n]
			t.bytes -= len(t.rest)
			r.bytes -= len(t.rest)
			if t.attempt == 0 {
				r.nudge() // there is room to fetch
			}
		}
		if len(t.rest) > 0 {
			return t, nil
		}
		if t.err != nil {
			r.enqueue(t)
			return nil, t.err
		}
		if t.atEnd() {
			r.end(t)
		}
	}
}

// trackLine is a queue.
type trackLine struct {
	items []*track
	head  int
}

func (l *trackLine) push(t *track) { l.items = append(l.items, t) }

func (l *trackLine) pop() *track {
	if l.head == len(l.items) {
		return nil
	}
	t := l.items[l.head]
	l.items[l.head] = nil
	if l.head++; l.head == len(l.items) {
		l.items, l.head = l.items[:0], 0
	} else if l.head >= 1024 && l.head > len(l.items)/2 {
		n := copy(l.items, l.items[l.head:])
		clear(l.items[n:])
		l.items, l.head = l.items[:n], 0
	}
	return t
}
