package record

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Where the fields of a batch are. All integers are big-endian.
const (
	atBaseOffset      = 0  // int64, stamped by the leader
	atLength          = 8  // int32, bytes that follow this field
	atLeaderEpoch     = 12 // int32, stamped by the leader
	atMagic           = 16 // int8
	atCRC             = 17 // uint32, CRC-32C of everything from atAttributes on
	atAttributes      = 21 // int16
	atLastOffsetDelta = 23 // int32
	atBaseTimestamp   = 27 // int64
	atMaxTimestamp    = 35 // int64
	atProducerID      = 43 // int64
	atProducerEpoch   = 51 // int16
	atBaseSequence    = 53 // int32
	atCount           = 57 // int32

	// HeaderSize is the size of a batch before its records.
	HeaderSize = 61

	lengthEnd = atLength + 4 // the length counts from here
	magicV2   = 2
)

// Bits of the attributes. Parley takes the codec and nothing else.
const (
	codecMask        = 0x07
	attrLogTime      = 0x08
	attrTransaction  = 0x10
	attrControl      = 0x20
	attrDeleteMarker = 0x40
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Batch is the bytes of one whole batch, nothing before and nothing after. Its
// methods other than Check don't look whether that is so: call them on what Split
// returned or Check accepted.
type Batch []byte

// Split takes the first batch off buf, by its framing alone: length and magic. b is
// a part of buf that appending to doesn't reach beyond. It returns ErrShort when
// buf holds the beginning of a batch, ErrMalformed or ErrMagic when it can't be
// one.
func Split(buf []byte) (b Batch, rest []byte, err error) {
	if len(buf) < lengthEnd {
		return nil, buf, fmt.Errorf("%w: %d bytes, a length takes %d", ErrShort, len(buf), lengthEnd)
	}
	n := int32(binary.BigEndian.Uint32(buf[atLength:]))
	if n < HeaderSize-lengthEnd {
		return nil, buf, fmt.Errorf("%w: length %d, at least %d", ErrMalformed, n, HeaderSize-lengthEnd)
	}
	if len(buf) > atMagic && buf[atMagic] != magicV2 {
		return nil, buf, badMagic(buf[atMagic])
	}
	if int64(n) > int64(len(buf))-lengthEnd {
		return nil, buf, fmt.Errorf("%w: %d bytes of %d", ErrShort, len(buf), int64(n)+lengthEnd)
	}
	end := lengthEnd + int(n)
	return Batch(buf[:end:end]), buf[end:], nil
}

// Length is how many bytes the batch has whose first HeaderSize bytes are head, by its framing
// alone: ErrShort, ErrMalformed or ErrMagic when it can't be one.
func Length(head []byte) (int, error) {
	if len(head) < HeaderSize {
		return 0, fmt.Errorf("%w: %d bytes, a header takes %d", ErrShort, len(head), HeaderSize)
	}
	n := int32(binary.BigEndian.Uint32(head[atLength:]))
	switch {
	case n < HeaderSize-lengthEnd:
		return 0, fmt.Errorf("%w: length %d, at least %d", ErrMalformed, n, HeaderSize-lengthEnd)
	case head[atMagic] != magicV2:
		return 0, badMagic(head[atMagic])
	}
	return lengthEnd + int(n), nil
}

func badMagic(m byte) error {
	return fmt.Errorf("%w: magic %d, only %d is supported", ErrMagic, int8(m), magicV2)
}

// BaseOffset is the offset of the first record.
func (b Batch) BaseOffset() int64 { return b.int64(atBaseOffset) }

// LastOffset is the offset of the last record.
func (b Batch) LastOffset() int64 { return b.BaseOffset() + int64(b.LastOffsetDelta()) }

// LastOffsetDelta is LastOffset less BaseOffset.
func (b Batch) LastOffsetDelta() int32 { return b.int32(atLastOffsetDelta) }

// Count is the number of records.
func (b Batch) Count() int { return int(b.int32(atCount)) }

// CRC is the checksum that the batch carries, which VerifyCRC compares to its content.
func (b Batch) CRC() uint32 { return binary.BigEndian.Uint32(b[atCRC:]) }

// LeaderEpoch is what the leader stamped, -1 before.
func (b Batch) LeaderEpoch() int32 { return b.int32(atLeaderEpoch) }

// Attributes are the batch's flag bits, the codec among them.
func (b Batch) Attributes() int16 { return int16(binary.BigEndian.Uint16(b[atAttributes:])) }

// Codec says how the records are compressed.
func (b Batch) Codec() Codec { return Codec(b.Attributes() & codecMask) }

// BaseTimestamp is the first record's timestamp, Unix milliseconds.
func (b Batch) BaseTimestamp() int64 { return b.int64(atBaseTimestamp) }

// MaxTimestamp is the largest timestamp, Unix milliseconds, as the producer wrote
// it: Check doesn't compare it with the records, as some clients leave it unset.
func (b Batch) MaxTimestamp() int64 { return b.int64(atMaxTimestamp) }

// Producer says who made the batch, or NoProducer.
func (b Batch) Producer() Producer {
	p := Producer{
		ID:       b.int64(atProducerID),
		Epoch:    int16(binary.BigEndian.Uint16(b[atProducerEpoch:])),
		Sequence: b.int32(atBaseSequence),
	}
	if p.ID == NoProducer.ID {
		return NoProducer // some clients leave a 0 in the fields that then mean nothing
	}
	return p
}

// Stamp writes what the leader decides. Both fields are outside the CRC.
func (b Batch) Stamp(baseOffset int64, leaderEpoch int32) {
	binary.BigEndian.PutUint64(b[atBaseOffset:], uint64(baseOffset))
	binary.BigEndian.PutUint32(b[atLeaderEpoch:], uint32(leaderEpoch))
}

// SetProducer gives the batch another producer and a new CRC: a client that gave
// up an earlier batch sends those after it under a new epoch.
func (b Batch) SetProducer(p Producer) error {
	if !p.valid() {
		return badProducer(p)
	}
	b.putProducer(p)
	b.putCRC()
	return nil
}

func (b Batch) putProducer(p Producer) {
	binary.BigEndian.PutUint64(b[atProducerID:], uint64(p.ID))
	binary.BigEndian.PutUint16(b[atProducerEpoch:], uint16(p.Epoch))
	binary.BigEndian.PutUint32(b[atBaseSequence:], uint32(p.Sequence))
}

func (b Batch) putCRC() {
	binary.BigEndian.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
}

func badProducer(p Producer) error {
	return fmt.Errorf("%w: id %d, epoch %d, sequence %d: all 0 or more, or all -1 for none", ErrProducer, p.ID, p.Epoch, p.Sequence)
}

// VerifyCRC returns ErrCRC when the bytes are not those that the checksum was
// made of. Base offset and leader epoch are not covered.
func (b Batch) VerifyCRC() error {
	got := binary.BigEndian.Uint32(b[atCRC:])
	if want := crc32.Checksum(b[atAttributes:], castagnoli); got != want {
		return fmt.Errorf("%w: batch says %#08x, its bytes give %#08x", ErrCRC, got, want)
	}
	return nil
}

// Check verifies everything that Checker.Check does.
func (b Batch) Check(lim Limits) error {
	var c Checker
	return c.Check(b, lim)
}

// checkHeader verifies all that can be said without looking at the records, except
// the CRC. lim has its defaults filled in.
func (b Batch) checkHeader(lim Limits) error {
	if len(b) < HeaderSize {
		return fmt.Errorf("%w: %d bytes, the header takes %d", ErrShort, len(b), HeaderSize)
	}
	if n := int64(b.int32(atLength)); n != int64(len(b))-lengthEnd {
		return fmt.Errorf("%w: length %d in a batch whose length is %d", ErrMalformed, n, len(b)-lengthEnd)
	}
	if b[atMagic] != magicV2 {
		return badMagic(b[atMagic])
	}
	if len(b) > lim.MaxBatchBytes {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrBatchTooLarge, len(b), lim.MaxBatchBytes)
	}
	count, delta := b.int32(atCount), b.LastOffsetDelta()
	if count < 1 {
		return fmt.Errorf("%w: %d records, at least 1", ErrMalformed, count)
	}
	if int64(count) > int64(lim.MaxRecords) {
		return fmt.Errorf("%w: %d, at most %d are allowed", ErrTooManyRecords, count, lim.MaxRecords)
	}
	if int64(delta) != int64(count)-1 {
		return fmt.Errorf("%w: last offset delta %d with %d records, want %d", ErrMalformed, delta, count, count-1)
	}
	if base := b.BaseOffset(); base < 0 || base > math.MaxInt64-int64(delta) {
		return fmt.Errorf("%w: base offset %d with %d records", ErrMalformed, base, count)
	}
	return nil
}

// checkMeaning verifies attributes and producer. It comes after the CRC, so that a
// flipped bit is called what it is.
func (b Batch) checkMeaning() error {
	a := uint16(b.Attributes())
	if a&^codecMask != 0 {
		what := "unknown bits"
		switch {
		case a&attrTransaction != 0:
			what = "transactions"
		case a&attrControl != 0:
			what = "control batches"
		case a&attrLogTime != 0:
			what = "log append time"
		case a&attrDeleteMarker != 0:
			what = "delete horizons"
		}
		return fmt.Errorf("%w: %#04x: %s are not supported, only the codec's bits %#02x may be set", ErrAttributes, a, what, codecMask)
	}
	if err := b.Codec().check(); err != nil {
		return err
	}
	if p := b.Producer(); !p.valid() {
		return badProducer(p)
	}
	return nil
}

func (b Batch) int64(at int) int64 { return int64(binary.BigEndian.Uint64(b[at:])) }
func (b Batch) int32(at int) int32 { return int32(binary.BigEndian.Uint32(b[at:])) }
