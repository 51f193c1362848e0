package nats

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/interest"
)

// Outbound data is appended to chunks by whoever delivers: the goroutines that
// read other connections, and those that answer publishes. One goroutine a
// connection writes them, many at a time.
//
//	deliver: lock, check the limit, append, unlock; wake now or at the burst's end
//	write:   lock, take chunks, unlock; writev; lock, account, unlock
//
// So a producer never waits for a socket. It waits, for a bounded while, for a
// consumer that is far behind but moving (see congested).

// Sizes of chunks. A connection that gets little holds little.
const (
	smallChunk  = 512
	mediumChunk = 4 << 10
	largeChunk  = 64 << 10

	maxWriteChunks = 8 // in one writev: at most half a MiB, so that progress shows
)

var (
	smallChunks  = sync.Pool{New: func() any { return new([smallChunk]byte) }}
	mediumChunks = sync.Pool{New: func() any { return new([mediumChunk]byte) }}
	largeChunks  = sync.Pool{New: func() any { return new([largeChunk]byte) }}
)

func newChunk(size int64) []byte {
	switch {
	case size <= smallChunk:
		return smallChunks.Get().(*[smallChunk]byte)[:0]
	case size <= mediumChunk:
		return mediumChunks.Get().(*[mediumChunk]byte)[:0]
	}
	return largeChunks.Get().(*[largeChunk]byte)[:0]
}

func freeChunk(b []byte) {
	switch cap(b) {
	case smallChunk:
		smallChunks.Put((*[smallChunk]byte)(b[:smallChunk]))
	case mediumChunk:
		mediumChunks.Put((*[mediumChunk]byte)(b[:mediumChunk]))
	case largeChunk:
		largeChunks.Put((*[largeChunk]byte)(b[:largeChunk]))
	}
}

// outbound is the queue towards one client.
type outbound struct {
	mu      sync.Mutex
	chunks  [][]byte
	pending int64 // bytes queued or being written

	headers bool   // the client understands HMSG
	burst   uint64 // the last burst that promised to wake the writer
	line    []byte // scratch for control lines

	closing bool // nothing more is taken in
	finish  bool // the writer ends when all is written
	broken  bool // the writer has ended, or must not write any more

	room     chan struct{} // closed when a congested queue has drained
	progress time.Time     // of the writer

	msgs, bytes uint64 // delivered since the writer last reported them

	wake chan struct{}
}

// Deliver implements interest.Sink.
func (c *conn) Deliver(sub *interest.Subscription, m *interest.Message) bool {
	if c.restricted.Load() && !c.mayReceive(m.Subject) {
		return false
	}
	o := &c.out
	o.mu.Lock()
	delivered, limit := sub.Delivered.Load(), sub.Max.Load()
	// Looked at inside the lock: what is queued after the PONG that follows UNSUB
	// would reach a client that has drained and is gone. In a queue group another
	// member gets it instead.
	if o.closing || !sub.Live() || limit > 0 && delivered >= limit {
		o.mu.Unlock()
		return false
	}
	header := m.Header
	if !o.headers {
		header = nil
	}
	size := len(header) + len(m.Payload)
	o.line = appendMessageLine(o.line[:0], sub.SID, m, len(header), size)
	total := int64(len(o.line) + size + len(crlf))
	if o.pending+total > c.server.config.MaxPending {
		pending := o.pending
		o.mu.Unlock()
		c.cutSlow("pending bytes over the limit", pending)
		return false
	}
	o.append(o.line)
	o.append(header)
	o.append(m.Payload)
	o.append(crlf)
	o.msgs++
	o.bytes += uint64(size)
	delivered++
	sub.Delivered.Store(delivered)
	now := o.touch(c, m.Burst(), c.server.config.congestedAt)
	o.mu.Unlock()

	if now {
		c.Wake()
	}
	if limit > 0 && delivered >= limit {
		c.unsubscribe(sub)
	}
	return true
}

// touch arranges for the writer to be woken; true means by the caller, now.
// Called inside the lock.
func (o *outbound) touch(c *conn, b *interest.Burst, congestedAt int64) (now bool) {
	if b == nil {
		return true
	}
	if o.burst != b.ID() {
		o.burst = b.ID()
		b.Touch(c)
	}
	if o.pending > congestedAt && time.Since(o.progress) < stuckAfter {
		if o.room == nil {
			o.room = make(chan struct{})
		}
		b.Congested(o.room)
	}
	return false
}

func appendMessageLine(to, sid []byte, m *interest.Message, header, size int) []byte {
	if header > 0 {
		to = append(to, 'H')
	}
	to = append(to, "MSG "...)
	to = append(to, m.Subject...)
	to = append(to, ' ')
	to = append(to, sid...)
	to = append(to, ' ')
	if len(m.Reply) > 0 {
		to = append(to, m.Reply...)
		to = append(to, ' ')
	}
	if header > 0 {
		to = strconv.AppendUint(to, uint64(header), 10)
		to = append(to, ' ')
	}
	to = strconv.AppendUint(to, uint64(size), 10)
	return append(to, crlf...)
}

// append queues b, inside the lock.
func (o *outbound) append(b []byte) {
	o.pending += int64(len(b))
	if last := len(o.chunks) - 1; last >= 0 {
		tail := o.chunks[last]
		n := min(cap(tail)-len(tail), len(b))
		o.chunks[last] = append(tail, b[:n]...)
		b = b[n:]
	}
	for len(b) > 0 {
		chunk := newChunk(max(int64(len(b)), o.pending))
		n := min(cap(chunk), len(b))
		o.chunks = append(o.chunks, append(chunk, b[:n]...))
		b = b[n:]
	}
}

// enqueue queues protocol lines of our own and wakes the writer at the end of
// the burst b, or at once when there is none.
func (c *conn) enqueue(b *interest.Burst, lines ...[]byte) {
	o := &c.out
	o.mu.Lock()
	if o.closing {
		o.mu.Unlock()
		return
	}
	if o.pending > c.server.config.MaxPending {
		pending := o.pending
		o.mu.Unlock()
		c.cutSlow("pending bytes over the limit", pending)
		return
	}
	for _, l := range lines {
		o.append(l)
	}
	now := b == nil
	if !now && o.burst != b.ID() {
		o.burst = b.ID()
		b.Touch(c)
	}
	o.mu.Unlock()
	if now {
		c.Wake()
	}
}

// Wake implements interest.Waker.
func (c *conn) Wake() {
	select {
	case c.out.wake <- struct{}{}:
	default:
	}
}

// write is the connection's writer. It ends when everything is written after
// finish, or when the socket fails.
func (c *conn) write() {
	o := &c.out
	var taken, batch [][]byte
	for {
		o.mu.Lock()
		if len(o.chunks) == 0 || o.broken {
			finished := o.finish || o.broken
			o.report(c.server)
			o.mu.Unlock()
			if finished {
				break
			}
			<-o.wake
			continue
		}
		n := min(len(o.chunks), maxWriteChunks)
		taken = append(taken[:0], o.chunks[:n]...)
		rest := copy(o.chunks, o.chunks[n:])
		clear(o.chunks[rest:])
		o.chunks = o.chunks[:rest]
		if cap(o.chunks) > keptChunkSlots && rest == 0 {
			o.chunks = nil
		}
		c.setWriteDeadline(o.closing)
		o.mu.Unlock()

		batch = append(batch[:0], taken...)
		c.buffers = batch
		written, err := c.buffers.WriteTo(c.socket)
		for i, b := range taken {
			freeChunk(b)
			taken[i] = nil
		}
		clear(batch)

		o.mu.Lock()
		o.pending -= written
		o.progress = time.Now()
		if o.room != nil && o.pending <= c.server.config.congestedAt/2 {
			close(o.room)
			o.room = nil
		}
		pending := o.pending
		o.mu.Unlock()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.cutSlow("write deadline exceeded", pending)
			}
			c.abort()
		}
	}
	o.discard()
}

const keptChunkSlots = 64 // of a queue that has been emptied

// setWriteDeadline, inside the lock: a connection that is being closed has less
// time than one that is served.
func (c *conn) setWriteDeadline(closing bool) {
	d := c.server.config.WriteDeadline
	if closing {
		d = min(d, closeTimeout)
	}
	c.raw.SetWriteDeadline(time.Now().Add(d)) //nolint:errcheck // fails on closed sockets only; the write says so
}

// report adds what was delivered to the totals, inside the lock.
func (o *outbound) report(s *server) {
	if o.msgs > 0 {
		s.stats.outMsgs.Add(o.msgs)
		s.stats.outBytes.Add(o.bytes)
		o.msgs, o.bytes = 0, 0
	}
}

func (o *outbound) discard() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closing, o.broken = true, true
	for i, b := range o.chunks {
		freeChunk(b)
		o.chunks[i] = nil
	}
	o.chunks = nil
	o.pending = 0
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}
