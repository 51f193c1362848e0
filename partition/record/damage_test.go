package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
)

func wantError(t testing.TB, err, want error, text string) {
	t.Helper()
	switch {
	case !errors.Is(err, want):
		t.Errorf("error %v, want %v", err, want)
	case !strings.Contains(err.Error(), text):
		t.Errorf("error %q doesn't say %q", err, text)
	}
}

// damage is one way to spoil a batch. Unless keepCRC, the CRC is made right
// again, so that it can't be what finds the damage.
type damage struct {
	name    string
	spoil   func(b Batch) Batch
	keepCRC bool
	lim     Limits
	want    error
	text    string // what the message must say: what was found, what is allowed
}

func set16(b Batch, at int, v int16) Batch { binary.BigEndian.PutUint16(b[at:], uint16(v)); return b }
func set32(b Batch, at int, v int32) Batch { binary.BigEndian.PutUint32(b[at:], uint32(v)); return b }
func set64(b Batch, at int, v int64) Batch { binary.BigEndian.PutUint64(b[at:], uint64(v)); return b }

// withRecords replaces the records and makes the length right.
func withRecords(b Batch, records []byte) Batch {
	b = append(b[:HeaderSize:HeaderSize], records...)
	return set32(b, atLength, int32(len(b)-lengthEnd))
}

// body makes a record of a body, its length in front.
func body(p ...byte) []byte { return append(appendVarint(nil, int64(len(p))), p...) }

var giantVarint = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}

func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// whole is the second of two records, as the damaged ones need one before them.
var whole = body(0, 0, 2, 1, 1, 0)

var damages = []damage{
	{name: "empty", spoil: func(Batch) Batch { return nil }, want: ErrShort, keepCRC: true, text: "61"},
	{name: "header cut", spoil: func(b Batch) Batch { return b[:60] }, want: ErrShort, keepCRC: true, text: "60 bytes"},
	{name: "cut", spoil: func(b Batch) Batch { return b[:len(b)-1] }, want: ErrMalformed, text: "length"},
	{name: "byte after", spoil: func(b Batch) Batch { return append(b, 0) }, want: ErrMalformed, text: "length"},
	{name: "length negative", spoil: func(b Batch) Batch { return set32(b, atLength, -1) }, want: ErrMalformed, text: "-1"},
	{name: "length giant", spoil: func(b Batch) Batch { return set32(b, atLength, math.MaxInt32) }, want: ErrMalformed, text: "2147483647"},
	{name: "magic 0", spoil: func(b Batch) Batch { b[atMagic] = 0; return b }, want: ErrMagic, text: "magic 0, only 2"},
	{name: "magic 1", spoil: func(b Batch) Batch { b[atMagic] = 1; return b }, want: ErrMagic, text: "magic 1, only 2"},
	{name: "magic 255", spoil: func(b Batch) Batch { b[atMagic] = 255; return b }, want: ErrMagic, text: "magic -1"},
	{name: "crc", spoil: func(b Batch) Batch { b[atCRC] ^= 1; return b }, keepCRC: true, want: ErrCRC, text: "give"},
	{name: "flipped value", spoil: func(b Batch) Batch { b[len(b)-2] ^= 1; return b }, keepCRC: true, want: ErrCRC},
	{name: "flipped producer", spoil: func(b Batch) Batch { b[atProducerID] ^= 1; return b }, keepCRC: true, want: ErrCRC},

	{name: "transactional", spoil: func(b Batch) Batch { return set16(b, atAttributes, 0x10) }, want: ErrAttributes, text: "transactions"},
	{name: "control", spoil: func(b Batch) Batch { return set16(b, atAttributes, 0x20) }, want: ErrAttributes, text: "control"},
	{name: "log append time", spoil: func(b Batch) Batch { return set16(b, atAttributes, 0x08) }, want: ErrAttributes, text: "log append time"},
	{name: "delete horizon", spoil: func(b Batch) Batch { return set16(b, atAttributes, 0x40) }, want: ErrAttributes, text: "delete horizon"},
	{name: "unknown bit", spoil: func(b Batch) Batch { return set16(b, atAttributes, math.MinInt16) }, want: ErrAttributes, text: "0x8000"},
	{name: "gzip", spoil: func(b Batch) Batch { return set16(b, atAttributes, 1) }, want: ErrUnsupportedCodec, text: "gzip: use none, snappy, lz4 or zstd"},
	{name: "codec 5", spoil: func(b Batch) Batch { return set16(b, atAttributes, 5) }, want: ErrUnsupportedCodec, text: "codec(5)"},
	{name: "codec 7", spoil: func(b Batch) Batch { return set16(b, atAttributes, 7) }, want: ErrUnsupportedCodec, text: "codec(7)"},

	{name: "count 0", spoil: func(b Batch) Batch { return set32(set32(b, atCount, 0), atLastOffsetDelta, -1) }, want: ErrMalformed, text: "0 records, at least 1"},
	{name: "count negative", spoil: func(b Batch) Batch { return set32(b, atCount, -2) }, want: ErrMalformed, text: "-2"},
	{name: "count giant", spoil: func(b Batch) Batch {
		return set32(set32(b, atCount, math.MaxInt32), atLastOffsetDelta, math.MaxInt32-1)
	}, want: ErrTooManyRecords, text: "2147483647, at most 65536"},
	{name: "count above the delta", spoil: func(b Batch) Batch { return set32(b, atCount, 3) }, want: ErrMalformed, text: "delta 1 with 3 records, want 2"},
	{name: "delta above the count", spoil: func(b Batch) Batch { return set32(b, atLastOffsetDelta, 2) }, want: ErrMalformed, text: "delta 2 with 2 records, want 1"},
	{name: "fewer records than said", spoil: func(b Batch) Batch { return set32(set32(b, atCount, 3), atLastOffsetDelta, 2) }, want: ErrMalformed, text: "record 2 of 3"},
	{name: "more records than said", spoil: func(b Batch) Batch { return set32(set32(b, atCount, 1), atLastOffsetDelta, 0) }, want: ErrMalformed, text: "after the last of 1 records"},
	{name: "base offset negative", spoil: func(b Batch) Batch { return set64(b, atBaseOffset, -1) }, want: ErrMalformed, text: "base offset -1"},
	{name: "base offset at the end", spoil: func(b Batch) Batch { return set64(b, atBaseOffset, math.MaxInt64) }, want: ErrMalformed, text: "base offset"},

	{name: "producer id -2", spoil: func(b Batch) Batch { return set64(b, atProducerID, -2) }, want: ErrProducer, text: "id -2"},
	{name: "producer without epoch", spoil: func(b Batch) Batch { return set32(set64(b, atProducerID, 1), atBaseSequence, 0) }, want: ErrProducer, text: "epoch -1"},
	{name: "producer without sequence", spoil: func(b Batch) Batch { return set16(set64(b, atProducerID, 1), atProducerEpoch, 0) }, want: ErrProducer, text: "sequence -1"},

	{name: "no records", spoil: func(b Batch) Batch { return withRecords(b, nil) }, want: ErrMalformed, text: "record 0 of 2"},
	{name: "record length 0", spoil: func(b Batch) Batch { return withRecords(b, join([]byte{0}, whole)) }, want: ErrMalformed, text: "empty"},
	{name: "record length negative", spoil: func(b Batch) Batch { return withRecords(b, join([]byte{1}, whole)) }, want: ErrMalformed, text: "length -1"},
	{name: "record length beyond", spoil: func(b Batch) Batch { return withRecords(b, []byte{40, 0, 0, 0}) }, want: ErrMalformed, text: "length 20, 4 bytes are left"},
	{name: "record length MaxInt32", spoil: func(b Batch) Batch {
		return withRecords(b, join(appendVarint(nil, math.MaxInt32), whole))
	}, want: ErrMalformed, text: "length 2147483647"},
	{name: "record length of ten bytes", spoil: func(b Batch) Batch { return withRecords(b, join(giantVarint, whole)) }, want: ErrMalformed},
	{name: "record length of 33 bits", spoil: func(b Batch) Batch {
		return withRecords(b, join([]byte{0xff, 0xff, 0xff, 0xff, 0x1f}, whole))
	}, want: ErrMalformed},
	{name: "record attributes", spoil: func(b Batch) Batch { return withRecords(b, join(body(1, 0, 0, 1, 1, 0), whole)) }, want: ErrMalformed, text: "attributes 0x01"},
	{name: "timestamp delta of 11 bytes", spoil: func(b Batch) Batch {
		return withRecords(b, join(body(join([]byte{0}, giantVarint[:9], []byte{0xff, 0x01, 0, 1, 1, 0})...), whole))
	}, want: ErrMalformed, text: "timestamp"},
	{name: "timestamp overflows", spoil: func(b Batch) Batch {
		return withRecords(b, join(body(join([]byte{0}, appendVarint(nil, math.MaxInt64), []byte{0, 1, 1, 0})...), whole))
	}, want: ErrMalformed, text: "beyond 64 bits"},
	{name: "offset delta 1 first", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 2, 1, 1, 0), whole)) }, want: ErrMalformed, text: "offset delta 1, want 0"},
	{name: "offset delta twice", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 1, 0), body(0, 0, 0, 1, 1, 0))) }, want: ErrMalformed, text: "offset delta 0, want 1"},
	{name: "key length -2", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 3, 1, 0), whole)) }, want: ErrMalformed, text: "key"},
	{name: "key beyond", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 20, 1, 0), whole)) }, want: ErrMalformed, text: "key"},
	{name: "key of MaxInt32", spoil: func(b Batch) Batch {
		return withRecords(b, join(body(join([]byte{0, 0, 0}, appendVarint(nil, math.MaxInt32), []byte{1, 0})...), whole))
	}, want: ErrMalformed, text: "key"},
	{name: "value beyond", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 20, 0), whole)) }, want: ErrMalformed, text: "value"},
	{name: "value of ten byte length", spoil: func(b Batch) Batch {
		return withRecords(b, join(body(join([]byte{0, 0, 0, 1}, giantVarint, []byte{0})...), whole))
	}, want: ErrMalformed, text: "value"},
	{name: "headers missing", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 1), whole)) }, want: ErrMalformed, text: "headers"},
	{name: "headers negative", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 1, 1), whole)) }, want: ErrMalformed, text: "-1 headers"},
	{name: "headers giant", spoil: func(b Batch) Batch {
		return withRecords(b, join(body(join([]byte{0, 0, 0, 1, 1}, appendVarint(nil, math.MaxInt32))...), whole))
	}, want: ErrMalformed, text: "2147483647 headers in 0 bytes"},
	{name: "header key null", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 1, 2, 1, 1), whole)) }, want: ErrMalformed, text: "header key"},
	{name: "header value beyond", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 1, 2, 0, 8), whole)) }, want: ErrMalformed, text: "header value"},
	{name: "byte after the headers", spoil: func(b Batch) Batch { return withRecords(b, join(body(0, 0, 0, 1, 1, 0, 9), whole)) }, want: ErrMalformed, text: "1 bytes after its last header"},
	{name: "byte after the last record", spoil: func(b Batch) Batch { return withRecords(b, append(b[HeaderSize:len(b):len(b)], 0)) }, want: ErrMalformed, text: "1 bytes after the last of 2 records"},

	{name: "batch too large", spoil: func(b Batch) Batch { return b }, lim: Limits{MaxBatchBytes: 70}, want: ErrBatchTooLarge, text: "at most 70"},
	{name: "too many records", spoil: func(b Batch) Batch { return b }, lim: Limits{MaxRecords: 1}, want: ErrTooManyRecords, text: "2, at most 1"},
	{name: "record too large", spoil: func(b Batch) Batch { return b }, lim: Limits{MaxRecordBytes: 3}, want: ErrRecordTooLarge, text: "at most 3"},
	{name: "too many headers", spoil: func(b Batch) Batch { return b }, lim: Limits{MaxHeaders: 1}, want: ErrTooManyHeaders, text: "2, at most 1"},
}

func smallBatch(t testing.TB, c Codec) Batch {
	return build(t, c, NoProducer, []Record{
		{Key: []byte("key"), Value: []byte("value"), Timestamp: 1000, Headers: []Header{{[]byte("a"), []byte("b")}, {[]byte("a"), nil}}},
		{Value: []byte("another value"), Timestamp: 999},
	})
}

func TestDamage(t *testing.T) {
	t.Parallel()
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			b := d.spoil(smallBatch(t, None))
			if !d.keepCRC && len(b) >= HeaderSize {
				b.putCRC()
			}
			wantError(t, b.Check(d.lim), d.want, d.text)

			var it Iterator
			_, err := collect(&it, b, d.lim)
			switch {
			case errors.Is(d.want, ErrCRC):
				// the Iterator leaves the CRC to its caller
			case !errors.Is(err, d.want):
				t.Errorf("iterator says %v, want %v", err, d.want)
			case it.Next():
				t.Error("iterator goes on after an error")
			}
			// An error must not spoil what comes next.
			if rs, err := collect(&it, smallBatch(t, LZ4), Limits{}); err != nil || len(rs) != 2 {
				t.Errorf("after the error: %d records, %v", len(rs), err)
			}
			if d.want != ErrShort && !errors.Is(d.want, ErrInvalid) && !errors.Is(d.want, ErrTooLarge) {
				t.Errorf("%v has no family", d.want)
			}
		})
	}
}

func TestEveryBitIsCovered(t *testing.T) {
	t.Parallel()
	for _, c := range codecs {
		rs := []Record{{Value: []byte(strings.Repeat("covered ", 20)), Timestamp: 5}}
		b := build(t, c, NoProducer, rs)
		for bit := range 8 * len(b) {
			at := bit / 8
			if at < atLength || at >= atLeaderEpoch && at < atMagic {
				continue // what the leader stamps
			}
			b[at] ^= 1 << (bit % 8)
			if err := b.Check(Limits{}); err == nil {
				t.Errorf("%s: bit %d of byte %d flipped unnoticed", c, bit%8, at)
			}
			b[at] ^= 1 << (bit % 8)
		}
		if err := b.Check(Limits{}); err != nil {
			t.Error(err)
		}
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	one, two := smallBatch(t, None), smallBatch(t, Zstd)
	stream := join(one, two)
	two = bytes.Clone(two)
	for n := range stream {
		b, rest, err := Split(stream[:n])
		switch {
		case n < len(one):
			if !errors.Is(err, ErrShort) || b != nil || len(rest) != n {
				t.Fatalf("%d bytes: %v", n, err)
			}
		case err != nil || len(b) != len(one) || len(rest) != n-len(one):
			t.Fatalf("%d bytes: %d and %d, %v", n, len(b), len(rest), err)
		}
	}
	b, rest, _ := Split(stream)
	_ = append(b, "overrun"...)
	if !bytes.Equal(rest, two) {
		t.Error("appending to one batch reached the next")
	}

	for name, c := range map[string]struct {
		buf  []byte
		want error
	}{
		"length below the header": {set32(make(Batch, 100), atLength, 48), ErrMalformed},
		"length negative":         {set32(make(Batch, 100), atLength, math.MinInt32), ErrMalformed},
		"magic before the rest":   {set32(make(Batch, 17), atLength, 1<<20), ErrMagic},
		"length giant":            {set32(append(make(Batch, 16), 2), atLength, math.MaxInt32), ErrShort},
		"nothing":                 {nil, ErrShort},
	} {
		if _, rest, err := Split(c.buf); !errors.Is(err, c.want) || len(rest) != len(c.buf) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestVisitErrorEndsTheCheck(t *testing.T) {
	t.Parallel()
	mine := errors.New("mine")
	var c Checker
	n := 0
	err := c.CheckRecords(smallBatch(t, Snappy), Limits{}, func(int, *Record) error { n++; return mine })
	if err != mine || n != 1 {
		t.Errorf("%v after %d", err, n)
	}
}

func TestSetProducer(t *testing.T) {
	t.Parallel()
	b := smallBatch(t, None)
	p := Producer{ID: 9, Epoch: 2, Sequence: 40}
	if err := b.SetProducer(p); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(Limits{}); err != nil || b.Producer() != p {
		t.Errorf("%v, producer %v", err, b.Producer())
	}
	wantError(t, b.SetProducer(Producer{ID: 9, Epoch: -1}), ErrProducer, "epoch -1")
}
