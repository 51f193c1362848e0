package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The other side of these tests is franz-go's kmsg for the layout and the codecs'
// own stream writers and readers for the compression: nothing of this package.

var codecs = []Codec{None, Snappy, LZ4, Zstd}

// encoding is one way in which a Kafka client may compress records.
type encoding struct {
	name   string
	codec  Codec
	encode func(t testing.TB, src []byte) []byte
}

func lz4Stream(opts ...lz4.Option) func(testing.TB, []byte) []byte {
	return func(t testing.TB, src []byte) []byte {
		var buf bytes.Buffer
		w := lz4.NewWriter(&buf)
		if err := w.Apply(opts...); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(src); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
}

func zstdStream(opts ...zstd.EOption) func(testing.TB, []byte) []byte {
	return func(t testing.TB, src []byte) []byte {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, append(opts, zstd.WithEncoderConcurrency(1))...)
		if err != nil {
			t.Fatal(err)
		}
		// Two writes with a flush between them: no content size in the frame's header.
		half := len(src) / 2
		for _, p := range [][]byte{src[:half], src[half:]} {
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
}

var encodings = []encoding{
	{"none", None, func(_ testing.TB, src []byte) []byte { return src }},
	{"snappy block", Snappy, func(_ testing.TB, src []byte) []byte { return s2.EncodeSnappy(nil, src) }},
	{"snappy block, best", Snappy, func(_ testing.TB, src []byte) []byte { return s2.EncodeSnappyBest(nil, src) }},
	{"snappy xerial", Snappy, func(_ testing.TB, src []byte) []byte { return xerial.Encode(nil, src) }},
	{"lz4 defaults", LZ4, lz4Stream()},
	{"lz4 64 KiB blocks, block checksums", LZ4, lz4Stream(lz4.BlockSizeOption(lz4.Block64Kb), lz4.BlockChecksumOption(true))},
	{"lz4 without checksums", LZ4, lz4Stream(lz4.ChecksumOption(false))},
	{"lz4 level 9", LZ4, lz4Stream(lz4.CompressionLevelOption(lz4.Level9))},
	{"zstd one call", Zstd, func(t testing.TB, src []byte) []byte {
		w, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<10), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(src, nil)
	}},
	{"zstd stream", Zstd, zstdStream()},
	{"zstd stream, 8 MiB window", Zstd, zstdStream(zstd.WithWindowSize(8<<20), zstd.WithEncoderLevel(zstd.SpeedBestCompression))},
	{"zstd stream, checksum", Zstd, zstdStream(zstd.WithEncoderCRC(true))},
	{"zstd two frames and padding", Zstd, func(t testing.TB, src []byte) []byte {
		one := zstdStream(zstd.WithEncoderPadding(512))
		return append(one(t, src[:len(src)/3]), one(t, src[len(src)/3:])...)
	}},
}

// kafkaZstd decodes as a Kafka client would, with the library's own limits.
var kafkaZstd = sync.OnceValue(func() *zstd.Decoder {
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2))
	if err != nil {
		panic(err)
	}
	return r
})

// standardDecode undoes a codec with the libraries' own readers.
func standardDecode(t testing.TB, c Codec, src []byte) []byte {
	t.Helper()
	var out []byte
	var err error
	switch c {
	case None:
		return src
	case Snappy:
		out, err = s2.Decode(nil, src)
	case LZ4:
		var buf bytes.Buffer
		_, err = buf.ReadFrom(lz4.NewReader(bytes.NewReader(src)))
		out = buf.Bytes()
	case Zstd:
		out, err = kafkaZstd().DecodeAll(src, nil)
	}
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	return out
}

// kafkaRecords encodes records by kmsg.
func kafkaRecords(rs []Record) []byte {
	var out []byte
	for i := range rs {
		r := kmsg.Record{
			TimestampDelta64: rs[i].Timestamp - rs[0].Timestamp,
			OffsetDelta:      int32(i),
			Key:              rs[i].Key,
			Value:            rs[i].Value,
		}
		for _, h := range rs[i].Headers {
			r.Headers = append(r.Headers, kmsg.Header{Key: string(h.Key), Value: h.Value})
		}
		// The length counts what follows it; with length 0 its own field takes one byte.
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		out = r.AppendTo(out)
	}
	return out
}

// kafkaBatch encodes a batch by kmsg around records that are already encoded.
func kafkaBatch(rs []Record, c Codec, p Producer, payload []byte) []byte {
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1,
		Length:               int32(HeaderSize - 12 + len(payload)),
		Magic:                2,
		Attributes:           int16(c),
		LastOffsetDelta:      int32(len(rs) - 1),
		FirstTimestamp:       rs[0].Timestamp,
		ProducerID:           p.ID,
		ProducerEpoch:        p.Epoch,
		FirstSequence:        p.Sequence,
		NumRecords:           int32(len(rs)),
		Records:              payload,
	}
	b.MaxTimestamp = rs[0].Timestamp
	for i := range rs {
		b.MaxTimestamp = max(b.MaxTimestamp, rs[i].Timestamp)
	}
	b.CRC = int32(crc32.Checksum(b.AppendTo(nil)[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b.AppendTo(nil)
}

// parseKafka decodes a batch by kmsg.
func parseKafka(t testing.TB, b []byte) (kmsg.RecordBatch, []Record) {
	t.Helper()
	var kb kmsg.RecordBatch
	if err := kb.ReadFrom(b); err != nil {
		t.Fatalf("kmsg: %v", err)
	}
	if want := crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)); uint32(kb.CRC) != want {
		t.Fatalf("CRC %#x, want %#x", uint32(kb.CRC), want)
	}
	if int(kb.Length) != len(b)-12 {
		t.Fatalf("length %d, want %d", kb.Length, len(b)-12)
	}
	src := standardDecode(t, Codec(kb.Attributes&7), kb.Records)
	var rs []Record
	for len(src) > 0 {
		n, k := binary.Varint(src)
		if k <= 0 || n < 0 || int(n) > len(src)-k {
			t.Fatalf("record %d: length %d of %d", len(rs), n, len(src))
		}
		var kr kmsg.Record
		if err := kr.ReadFrom(src[:k+int(n)]); err != nil {
			t.Fatalf("kmsg: record %d: %v", len(rs), err)
		}
		if int(kr.OffsetDelta) != len(rs) || kr.Attributes != 0 {
			t.Fatalf("record %d: offset delta %d, attributes %d", len(rs), kr.OffsetDelta, kr.Attributes)
		}
		r := Record{Key: kr.Key, Value: kr.Value, Timestamp: kb.FirstTimestamp + kr.TimestampDelta64}
		for _, h := range kr.Headers {
			r.Headers = append(r.Headers, Header{Key: []byte(h.Key), Value: h.Value})
		}
		rs = append(rs, r)
		src = src[k+int(n):]
	}
	if len(rs) != int(kb.NumRecords) || len(rs) != int(kb.LastOffsetDelta)+1 {
		t.Fatalf("%d records, count %d, last offset delta %d", len(rs), kb.NumRecords, kb.LastOffsetDelta)
	}
	return kb, rs
}

func sameBytes(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func compareRecord(got, want *Record) error {
	switch {
	case !sameBytes(got.Key, want.Key):
		return fmt.Errorf("key %q, want %q", got.Key, want.Key)
	case !sameBytes(got.Value, want.Value):
		return fmt.Errorf("value of %d bytes differs from %d", len(got.Value), len(want.Value))
	case got.Timestamp != want.Timestamp:
		return fmt.Errorf("timestamp %d, want %d", got.Timestamp, want.Timestamp)
	case len(got.Headers) != len(want.Headers):
		return fmt.Errorf("%d headers, want %d", len(got.Headers), len(want.Headers))
	}
	for i := range got.Headers {
		g, w := got.Headers[i], want.Headers[i]
		if !bytes.Equal(g.Key, w.Key) || !sameBytes(g.Value, w.Value) {
			return fmt.Errorf("header %d is %q=%q, want %q=%q", i, g.Key, g.Value, w.Key, w.Value)
		}
	}
	return nil
}

// collect reads a batch by the Iterator, copying what it says is only lent.
func collect(it *Iterator, b Batch, lim Limits) ([]Record, error) {
	if err := it.Reset(b, lim); err != nil {
		return nil, err
	}
	var rs []Record
	for it.Next() {
		r := *it.Record()
		r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		hs := make([]Header, len(r.Headers))
		for i, h := range r.Headers {
			hs[i] = Header{bytes.Clone(h.Key), bytes.Clone(h.Value)}
		}
		r.Headers = hs
		rs = append(rs, r)
	}
	return rs, it.Err()
}

func compareRecords(t testing.TB, got, want []Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range got {
		if err := compareRecord(&got[i], &want[i]); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

// edgeRecords holds what is easily got wrong.
func edgeRecords() []Record {
	long := bytes.Repeat([]byte("parley "), 30_000)
	return []Record{
		{Value: []byte("plain"), Timestamp: 1_700_000_000_000},
		{Key: []byte{}, Value: []byte{}, Timestamp: 1_700_000_000_001},
		{Key: nil, Value: nil, Timestamp: 1_600_000_000_000},
		{Key: []byte("k"), Value: long, Timestamp: 1_700_000_000_000 + 1<<40},
		{Key: []byte("h"), Value: []byte("v"), Timestamp: -1, Headers: []Header{
			{Key: []byte("Nats-Msg-Id"), Value: []byte("1")},
			{Key: []byte("nats-msg-id"), Value: []byte("2")},
			{Key: []byte("Nats-Msg-Id"), Value: []byte("3")},
			{Key: []byte("null"), Value: nil},
			{Key: []byte{}, Value: []byte{}},
		}},
	}
}

func build(t testing.TB, c Codec, p Producer, rs []Record) Batch {
	t.Helper()
	b := NewBuilder(c, Limits{})
	for i := range rs {
		if err := b.Append(&rs[i]); err != nil {
			t.Fatalf("append record %d: %v", i, err)
		}
	}
	out, err := b.Finish(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestKafkaReadsWhatWeWrite(t *testing.T) {
	t.Parallel()
	p := Producer{ID: 1<<62 + 1, Epoch: 7, Sequence: 1<<31 - 1}
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			rs := edgeRecords()
			b := build(t, c, p, rs)
			if b.Codec() != c {
				t.Fatalf("codec %s, want %s", b.Codec(), c)
			}
			kb, got := parseKafka(t, b)
			compareRecords(t, got, rs)
			if kb.FirstOffset != 0 || kb.PartitionLeaderEpoch != -1 || kb.Magic != 2 || kb.Attributes != int16(c) {
				t.Errorf("header %+v", kb)
			}
			if kb.ProducerID != p.ID || kb.ProducerEpoch != p.Epoch || kb.FirstSequence != p.Sequence {
				t.Errorf("producer %d %d %d", kb.ProducerID, kb.ProducerEpoch, kb.FirstSequence)
			}
			if want := int64(1_700_000_000_000 + 1<<40); kb.MaxTimestamp != want || kb.FirstTimestamp != rs[0].Timestamp {
				t.Errorf("timestamps %d to %d, want %d to %d", kb.FirstTimestamp, kb.MaxTimestamp, rs[0].Timestamp, want)
			}
		})
	}
}

func TestUncompressedBytesAreKafkas(t *testing.T) {
	t.Parallel()
	rs := edgeRecords()
	want := kafkaBatch(rs, None, NoProducer, kafkaRecords(rs))
	if got := build(t, None, NoProducer, rs); !bytes.Equal(got, want) {
		t.Errorf("bytes differ:\n%x\n%x", got[:80], want[:80])
	}
}

func TestWeReadWhatKafkaWrites(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	sets := map[string][]Record{
		"edge":           edgeRecords(),
		"one":            {{Value: []byte("x"), Timestamp: 1}},
		"incompressible": {{Value: random, Timestamp: 1}, {Value: random[:70_000], Timestamp: 2}},
	}
	p := Producer{ID: 5, Epoch: 0, Sequence: 0}
	for _, e := range encodings {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			var it Iterator // reused, so that a batch can't lean on the one before
			var ck Checker
			for name, rs := range sets {
				raw := kafkaBatch(rs, e.codec, p, e.encode(t, kafkaRecords(rs)))
				b, rest, err := Split(append(raw[:len(raw):len(raw)], "next"...))
				if err != nil || string(rest) != "next" {
					t.Fatalf("%s: split: %v, rest %q", name, err, rest)
				}
				n := 0
				err = ck.CheckRecords(b, Limits{}, func(i int, r *Record) error {
					if i != n {
						t.Errorf("%s: visited %d, want %d", name, i, n)
					}
					n++
					return compareRecord(r, &rs[i])
				})
				if err != nil || n != len(rs) {
					t.Fatalf("%s: check: %v after %d of %d", name, err, n, len(rs))
				}
				if b.Codec() != e.codec || b.Producer() != p || b.Count() != len(rs) || b.LeaderEpoch() != -1 {
					t.Errorf("%s: %s %v %d %d", name, b.Codec(), b.Producer(), b.Count(), b.LeaderEpoch())
				}

				b.Stamp(1<<40, 12)
				if err := b.VerifyCRC(); err != nil {
					t.Fatalf("%s: stamping broke the checksum: %v", name, err)
				}
				if b.BaseOffset() != 1<<40 || b.LastOffset() != 1<<40+int64(len(rs))-1 || b.LeaderEpoch() != 12 {
					t.Errorf("%s: stamped %d to %d, epoch %d", name, b.BaseOffset(), b.LastOffset(), b.LeaderEpoch())
				}
				got, err := collect(&it, b, Limits{})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				compareRecords(t, got, rs)
				for i := range got {
					if got[i].Offset != 1<<40+int64(i) {
						t.Fatalf("%s: record %d has offset %d", name, i, got[i].Offset)
					}
				}
			}
		})
	}
}

// Clients that don't ask for duplicate detection leave a 0 where the format's
// example has -1.
func TestProducerWithoutIDMayHaveAnySequence(t *testing.T) {
	t.Parallel()
	rs := edgeRecords()
	b := Batch(kafkaBatch(rs, None, Producer{ID: -1, Epoch: 0, Sequence: 0}, kafkaRecords(rs)))
	if err := b.Check(Limits{}); err != nil {
		t.Fatal(err)
	}
	if b.Producer() != NoProducer {
		t.Errorf("producer %v", b.Producer())
	}
}
