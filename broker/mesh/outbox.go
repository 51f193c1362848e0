package mesh

import (
	"sync"
	"time"
)

// outbox holds the frames that wait to go out on one connection. Whoever sends
// appends to its chunks; the link's sender takes them whole. What was appended
// and is not consumed by the other side is bounded: memory is, and a peer that
// stands still costs its senders nothing but a refusal.
type outbox struct {
	window int64
	wake   chan struct{} // 1; for the sender

	mu       sync.Mutex
	chunks   [][]byte
	appended uint64 // bytes, ever
	consumed uint64 // bytes that the other side has dealt with
	burst    uint64 // the last one that promised to wake the sender
	closed   bool
	room     chan struct{} // closed when there is room again
	progress time.Time     // when consumed last grew
}

// class of what is sent: how much of the window it may fill. Replies have the
// last quarter to themselves, so that answers come through when requests don't.
type class uint8

const (
	classMessage  class = iota // three quarters
	classReply                 // all
	classInterest              // half a window more: it can't be left out
	classPing                  // without limit; one a second
)

func (c class) limit(window int64) int64 {
	switch c {
	case classMessage:
		return window - window/4
	case classReply:
		return window
	case classInterest:
		return window + window/2
	}
	return 1 << 62
}

// Sizes of chunks: each goes out as the payload of one NATS message.
const (
	chunkSize  = 64 << 10
	largeChunk = 1<<20 + 256<<10 // holds a record batch of the largest size
)

var (
	chunks      = sync.Pool{New: func() any { return new([chunkSize]byte) }}
	largeChunks = sync.Pool{New: func() any { return new([largeChunk]byte) }}
)

func newChunk(size int) []byte {
	switch {
	case size <= chunkSize:
		return chunks.Get().(*[chunkSize]byte)[:0]
	case size <= largeChunk:
		return largeChunks.Get().(*[largeChunk]byte)[:0]
	}
	return make([]byte, 0, size)
}

func freeChunk(b []byte) {
	switch cap(b) {
	case chunkSize:
		chunks.Put((*[chunkSize]byte)(b[:chunkSize]))
	case largeChunk:
		largeChunks.Put((*[largeChunk]byte)(b[:largeChunk]))
	}
}

// verdict of reserve.
type verdict uint8

const (
	granted verdict = iota
	full            // and the other side has moved within the last second
	stuck           // full, and it hasn't
	closed
)

// stuckAfter without progress a full outbox is not waited for.
const stuckAfter = time.Second

// reserve gives room for a frame of at most size bytes. When it is granted the
// outbox is locked: the caller appends the frame to b and calls commit. A frame
// larger than the window goes through when nothing else is under way.
func (o *outbox) reserve(size int, c class) (b []byte, v verdict) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil, closed
	}
	under := int64(o.appended - o.consumed)
	if under > 0 && under+int64(size) > c.limit(o.window) {
		v = full
		if time.Since(o.progress) > stuckAfter {
			v = stuck
		}
		o.mu.Unlock()
		return nil, v
	}
	if last := len(o.chunks) - 1; last >= 0 && cap(o.chunks[last])-len(o.chunks[last]) >= size {
		return o.chunks[last], granted
	}
	o.chunks = append(o.chunks, newChunk(size))
	return o.chunks[len(o.chunks)-1], granted
}

// commit ends what reserve began. The sender is to be woken afterwards.
func (o *outbox) commit(b []byte) {
	last := len(o.chunks) - 1
	if o.appended == o.consumed {
		o.progress = time.Now() // an idle link has not been standing still
	}
	o.appended += uint64(len(b) - len(o.chunks[last]))
	o.chunks[last] = b
	o.mu.Unlock()
}

// Wake has the sender look. It implements interest.Waker.
func (o *outbox) Wake() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take moves everything that waits to the caller.
func (o *outbox) take(to [][]byte) [][]byte {
	o.mu.Lock()
	to = append(to, o.chunks...)
	clear(o.chunks)
	o.chunks = o.chunks[:0]
	if cap(o.chunks) > 64 {
		o.chunks = nil
	}
	o.mu.Unlock()
	return to
}

// credit notes how much the other side has consumed in all. False: more than was
// ever sent.
func (o *outbox) credit(consumed uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if consumed > o.appended {
		return false
	}
	if consumed > o.consumed {
		o.consumed, o.progress = consumed, time.Now()
	}
	if o.room != nil && int64(o.appended-o.consumed) <= o.window/4 {
		close(o.room)
		o.room = nil
	}
	return true
}

// awaitRoom returns a channel that is closed once less than a quarter of the
// window is under way, or the link is gone. Nil: that is so now.
func (o *outbox) awaitRoom() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.roomLocked(o.window / 4)
}

// congested is awaitRoom for a burst: nil unless half of the window is under way
// on a link that moves.
func (o *outbox) congestedLocked() <-chan struct{} {
	if int64(o.appended-o.consumed) <= o.window/2 || time.Since(o.progress) > stuckAfter {
		return nil
	}
	return o.roomLocked(o.window / 2)
}

func (o *outbox) roomLocked(above int64) <-chan struct{} {
	if o.closed || int64(o.appended-o.consumed) <= above {
		return nil
	}
	if o.room == nil {
		o.room = make(chan struct{})
	}
	return o.room
}

// pending bytes: not consumed yet.
func (o *outbox) pending() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return int64(o.appended - o.consumed)
}

// close drops what waits.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for i, b := range o.chunks {
		freeChunk(b)
		o.chunks[i] = nil
	}
	o.chunks = nil
	o.consumed = o.appended
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// sent is credit for links whose other side gives none: what nats.go has taken
// is not under way any more.
func (o *outbox) sent(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.consumed = min(o.consumed+uint64(n), o.appended)
	o.progress = time.Now()
}
