package record

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A Builder makes batches out of records. It is reusable and keeps its memory, at
// most MaxBatchBytes; it is not safe for concurrent use.
type Builder struct {
	codec Codec
	lim   Limits
	err   error // why this builder can't build

	buf     []byte // the batch without compression; its header is written by Finish
	count   int
	base    int64 // first timestamp
	maxTime int64
}

// NewBuilder returns a Builder for batches within lim. With a codec that isn't
// supported, Append returns ErrUnsupportedCodec.
func NewBuilder(codec Codec, lim Limits) *Builder {
	b := &Builder{codec: codec, lim: lim.withDefaults(), err: codec.check()}
	b.Reset()
	return b
}

// Reset drops the records that were appended.
func (b *Builder) Reset() {
	if cap(b.buf) < HeaderSize {
		b.buf = make([]byte, HeaderSize, 4096)
	}
	b.buf = b.buf[:HeaderSize]
	b.count = 0
}

// Count is the number of records appended since the last Reset or Finish.
func (b *Builder) Count() int { return b.count }

// Size is the size of the batch so far, without compression, header included.
func (b *Builder) Size() int { return len(b.buf) }

// room is how large the batch may get. Limits hold before compression, so that
// what was appended can always be finished, however badly it compresses.
func (b *Builder) room() int {
	return min(b.lim.MaxBatchBytes, b.lim.MaxDecompressedBytes+HeaderSize)
}

// Append adds a copy of r. It returns ErrBatchFull when r belongs into the next
// batch, and ErrRecordTooLarge or ErrTooManyHeaders when r fits no batch; the
// builder is then as it was.
func (b *Builder) Append(r *Record) error {
	if b.err != nil {
		return b.err
	}
	if n := r.Size(); n > b.lim.MaxRecordBytes {
		return fmt.Errorf("%w: %d bytes of key, value and headers, at most %d are allowed", ErrRecordTooLarge, n, b.lim.MaxRecordBytes)
	}
	if len(r.Headers) > b.lim.MaxHeaders {
		return fmt.Errorf("%w: %d, at most %d are allowed", ErrTooManyHeaders, len(r.Headers), b.lim.MaxHeaders)
	}
	if b.count == 0 {
		b.base, b.maxTime = r.Timestamp, r.Timestamp
	}
	delta := r.Timestamp - b.base
	if (delta < 0) != (r.Timestamp < b.base) {
		return ErrBatchFull // too far from the first one for 64 bits
	}
	body := bodyLen(r, delta, b.count)
	size := varintLen(int64(body)) + body
	if size > b.room()-len(b.buf) || b.count >= b.lim.MaxRecords {
		body = bodyLen(r, 0, 0)
		if alone := HeaderSize + varintLen(int64(body)) + body; alone > b.room() {
			return fmt.Errorf("%w: alone in a batch it takes %d bytes, at most %d are allowed", ErrRecordTooLarge, alone, b.room())
		}
		return ErrBatchFull
	}
	b.buf = appendRecord(b.buf, r, body, delta, b.count)
	b.count++
	b.maxTime = max(b.maxTime, r.Timestamp)
	return nil
}

// bodyLen is the size of a record after its length field. Each part was compared
// with a limit, so that the sum doesn't overflow.
func bodyLen(r *Record, timeDelta int64, index int) int {
	n := 1 + varintLen(timeDelta) + varintLen(int64(index)) + bytesLen(r.Key) + bytesLen(r.Value) + varintLen(int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		n += varintLen(int64(len(h.Key))) + len(h.Key) + bytesLen(h.Value)
	}
	return n
}

func bytesLen(p []byte) int {
	if p == nil {
		return 1
	}
	return varintLen(int64(len(p))) + len(p)
}

func appendRecord(dst []byte, r *Record, body int, timeDelta int64, index int) []byte {
	dst = appendVarint(dst, int64(body))
	dst = append(dst, 0) // attributes: none are defined
	dst = appendVarint(dst, timeDelta)
	dst = appendVarint(dst, int64(index))
	dst = appendBytes(dst, r.Key)
	dst = appendBytes(dst, r.Value)
	dst = appendVarint(dst, int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		dst = appendVarint(dst, int64(len(h.Key))) // a header's key is never null
		dst = append(dst, h.Key...)
		dst = appendBytes(dst, h.Value)
	}
	return dst
}

func appendBytes(dst, p []byte) []byte {
	if p == nil {
		return appendVarint(dst, -1)
	}
	dst = appendVarint(dst, int64(len(p)))
	return append(dst, p...)
}

// Finish appends the batch to dst and resets the builder: base offset 0, leader
// epoch -1, the CRC set. Records that compression would not make smaller are
// written as they are, with codec none. On an error (ErrEmpty, ErrProducer) it
// returns dst as it was and the builder keeps its records.
func (b *Builder) Finish(dst []byte, p Producer) ([]byte, error) {
	if b.err != nil {
		return dst, b.err
	}
	if b.count == 0 {
		return dst, ErrEmpty
	}
	if !p.valid() {
		return dst, badProducer(p)
	}
	start := len(dst)
	codec := b.codec
	out := dst
	if codec != None {
		var err error
		out = append(out, b.buf[:HeaderSize]...)
		if out, err = compress(out, codec, b.buf[HeaderSize:]); err != nil {
			return dst, fmt.Errorf("compress records with %s: %w", codec, err)
		}
		if len(out)-start >= len(b.buf) {
			codec, out = None, out[:start]
		}
	}
	if codec == None {
		out = append(out, b.buf...)
	}

	h := Batch(out[start:])
	if len(h) > math.MaxInt32 {
		return dst, fmt.Errorf("%w: %d bytes", ErrBatchTooLarge, len(h))
	}
	h.Stamp(0, -1)
	binary.BigEndian.PutUint32(h[atLength:], uint32(len(h)-lengthEnd))
	h[atMagic] = magicV2
	binary.BigEndian.PutUint16(h[atAttributes:], uint16(codec))
	binary.BigEndian.PutUint32(h[atLastOffsetDelta:], uint32(b.count-1))
	binary.BigEndian.PutUint64(h[atBaseTimestamp:], uint64(b.base))
	binary.BigEndian.PutUint64(h[atMaxTimestamp:], uint64(b.maxTime))
	h.putProducer(p)
	binary.BigEndian.PutUint32(h[atCount:], uint32(b.count))
	h.putCRC()
	b.Reset()
	return out, nil
}
