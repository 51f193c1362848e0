package record

import (
	"encoding/binary"
	"fmt"
)

// A Cutter copies stretches of an uncompressed batch's records into batches of their own, for a reader to whom
// the others are of no use. It goes through the batch once and allocates nothing.
//
//	c := record.Cut(b)
//	buf, err = c.Append(buf, 3, 5) // offsets
//	buf, err = c.Append(buf, 9, 9) // ascending
type Cutter struct {
	b     Batch
	at    int   // of the next record
	index int64 // its place in the batch
	err   error
}

// Cut begins with a batch that was checked before: the copies get CRCs of their own.
func Cut(b Batch) Cutter {
	c := Cutter{b: b, at: HeaderSize}
	if b.Codec() != None {
		c.err = fmt.Errorf("cut a batch with codec %s: only records as they are can be cut", b.Codec())
	}
	return c
}

// Append appends a batch with the records from first to last, which lie in the batch and after those of the call before. Producer and
// leader epoch are none. After an error dst is as it was, and the cutter of no more use.
func (c *Cutter) Append(dst []byte, first, last int64) ([]byte, error) {
	base := c.b.BaseOffset()
	if c.err == nil && (first < base+c.index || last < first || last > c.b.LastOffset()) {
		c.err = fmt.Errorf("cut offsets %d to %d from a batch that has %d to %d left", first, last, base+c.index, c.b.LastOffset())
	}
	for c.err == nil && base+c.index < first {
		c.skip()
	}
	if c.err != nil {
		return dst, c.err
	}
	start := len(dst)
	out := append(dst, c.b[:HeaderSize]...)
	latest := c.b.BaseTimestamp()
	for place := int64(0); place <= last-first; place++ {
		if out = c.copy(out, place, &latest); c.err != nil {
			return dst, c.err
		}
	}
	h := Batch(out[start:])
	h.Stamp(first, -1)
	binary.BigEndian.PutUint32(h[atLength:], uint32(len(h)-lengthEnd))
	binary.BigEndian.PutUint32(h[atLastOffsetDelta:], uint32(last-first))
	binary.BigEndian.PutUint64(h[atMaxTimestamp:], uint64(latest))
	binary.BigEndian.PutUint32(h[atCount:], uint32(last-first+1))
	h.putProducer(NoProducer)
	h.putCRC()
	return out, nil
}

// record returns the next record's bytes behind its length.
func (c *Cutter) record() []byte {
	n, at := varint32(c.b, c.at)
	if at == 0 || n < 1 || int(n) > len(c.b)-at {
		c.err = fmt.Errorf("%w: record %d: length %d, %d bytes are left", ErrMalformed, c.index, n, len(c.b)-c.at)
		return nil
	}
	c.at = at + int(n)
	c.index++
	return c.b[at:c.at]
}

func (c *Cutter) skip() { c.record() }

// copy appends the next record with another place in its batch.
func (c *Cutter) copy(dst []byte, place int64, latest *int64) []byte {
	r := c.record()
	if c.err != nil {
		return dst
	}
	delta, i := varint64(r, 1)
	j := 0
	if i != 0 {
		_, j = varint32(r, i)
	}
	if j == 0 {
		c.err = fmt.Errorf("%w: record %d: its timestamp or place is no integer", ErrMalformed, c.index-1)
		return dst
	}
	*latest = max(*latest, c.b.BaseTimestamp()+delta)
	dst = appendVarint(dst, int64(i+varintLen(place)+len(r)-j))
	dst = append(dst, r[:i]...)
	dst = appendVarint(dst, place)
	return append(dst, r[j:]...)
}
