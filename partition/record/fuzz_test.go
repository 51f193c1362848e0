package record

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/pierrec/lz4/v4"
)

var fuzzLimits = Limits{MaxBatchBytes: 1 << 20, MaxRecordBytes: 1 << 18, MaxRecords: 1000, MaxDecompressedBytes: 1 << 19, MaxHeaders: 100}

// FuzzBatch feeds any bytes to Split, Check and Iterator. With mend, length and CRC
// are made right first, so that the fuzzer gets past them.
func FuzzBatch(f *testing.F) {
	for _, c := range codecs {
		f.Add([]byte(smallBatch(f, c)), false)
	}
	rs := edgeRecords()[:3]
	for _, e := range encodings {
		f.Add(kafkaBatch(rs, e.codec, NoProducer, e.encode(f, kafkaRecords(rs))), true)
	}
	for _, d := range damages {
		f.Add([]byte(d.spoil(smallBatch(f, None))), true)
	}
	f.Fuzz(func(t *testing.T, buf []byte, mend bool) {
		if mend && len(buf) >= HeaderSize {
			buf = bytes.Clone(buf)
			b := set32(Batch(buf), atLength, int32(len(buf)-lengthEnd))
			b.putCRC()
		}
		b, rest, err := Split(buf)
		if err != nil {
			return
		}
		if len(b)+len(rest) != len(buf) {
			t.Fatalf("%d and %d of %d bytes", len(b), len(rest), len(buf))
		}
		var ck Checker
		n := 0
		checked := ck.CheckRecords(b, fuzzLimits, func(int, *Record) error { n++; return nil })
		var it Iterator
		got, read := collect(&it, b, fuzzLimits)
		if checked != nil {
			return
		}
		if read != nil || n != b.Count() || len(got) != n || b.LastOffsetDelta() != int32(n-1) {
			t.Fatalf("check took %d records; iterator: %d of %d, %v", n, len(got), b.Count(), read)
		}
		// What was taken can be read by others and written again.
		bd := NewBuilder(None, Limits{MaxBatchBytes: 1 << 21})
		for i := range got {
			if got[i].Offset != b.BaseOffset()+int64(i) {
				t.Fatalf("record %d has offset %d", i, got[i].Offset)
			}
			if err := bd.Append(&got[i]); err != nil {
				t.Fatalf("append record %d: %v", i, err)
			}
		}
		out, err := bd.Finish(nil, b.Producer())
		if err != nil {
			t.Fatal(err)
		}
		_, again := parseKafka(t, out)
		compareRecords(t, again, got)
	})
}

// FuzzDecompress compares our reading of each codec with the libraries' own: what
// we take, they take, and it is the same. (They take more.)
func FuzzDecompress(f *testing.F) {
	text := bytes.Repeat([]byte("parley "), 100)
	for _, e := range encodings {
		for _, src := range [][]byte{nil, []byte("x"), text} {
			f.Add(byte(e.codec), e.encode(f, src))
		}
	}
	f.Add(byte(Zstd), zstdRuns(3))
	f.Add(byte(Zstd), zstdClaim(5, 5))
	f.Add(byte(LZ4), lz4Claim(f, 5))
	f.Fuzz(func(t *testing.T, codec byte, src []byte) {
		const limit = 1 << 18
		c := codecs[1+int(codec)%3]
		out, err := decompress(nil, c, src, limit)
		if err != nil {
			return
		}
		if len(out) > limit {
			t.Fatalf("%d bytes, at most %d", len(out), limit)
		}
		var want []byte
		switch c {
		case Snappy:
			if bytes.HasPrefix(src, []byte(xerialMagic)) && len(src) >= xerialHeader {
				want, err = xerial.Decode(src)
			} else {
				want, err = s2.Decode(nil, src)
			}
		case LZ4:
			var buf bytes.Buffer
			_, err = buf.ReadFrom(lz4.NewReader(bytes.NewReader(src)))
			want = buf.Bytes()
			if err != nil {
				return // the content checksum, which we leave to the batch's CRC
			}
		case Zstd:
			want, err = kafkaZstd().DecodeAll(src, nil)
		}
		if err != nil || !bytes.Equal(out, want) {
			t.Fatalf("%s: %d bytes, the library has %d, %v", c, len(out), len(want), err)
		}
	})
}

// FuzzBuilder builds a batch of what it is given and has kmsg and our own reader
// give it back.
func FuzzBuilder(f *testing.F) {
	f.Add(byte(0), []byte("key"), []byte("value"), []byte("Parley-Subject"), []byte("orders.eu"), int64(1_700_000_000_000), int64(-1), int16(0), byte(3))
	f.Add(byte(1), []byte(nil), []byte(nil), []byte{}, []byte(nil), int64(-1), int64(1), int16(1), byte(0))
	f.Add(byte(2), bytes.Repeat([]byte("k"), 100), bytes.Repeat([]byte("v"), 2000), []byte("a"), []byte("b"), int64(1)<<62, int64(7), int16(3), byte(40))
	f.Add(byte(3), []byte{}, bytes.Repeat([]byte("value "), 100), []byte("h"), []byte{}, int64(-1)<<62, int64(0), int16(0), byte(7))
	f.Fuzz(func(t *testing.T, codec byte, key, value, hk, hv []byte, at, id int64, epoch int16, n byte) {
		p := Producer{ID: id, Epoch: epoch, Sequence: int32(n)}
		if !p.valid() {
			p = NoProducer
		}
		b := NewBuilder(codecs[int(codec)%4], fuzzLimits)
		var want []Record
		for i := range int(n%32) + 1 {
			r := Record{Key: key, Value: value, Timestamp: at ^ int64(i)*(at>>3)}
			for range i % 3 {
				r.Headers = append(r.Headers, Header{Key: hk, Value: hv})
			}
			before := b.Size()
			if err := b.Append(&r); err != nil {
				if b.Size() != before || b.Count() != len(want) {
					t.Fatalf("%v changed the builder", err)
				}
				continue
			}
			want = append(want, r)
		}
		if len(want) == 0 {
			return
		}
		size := b.Size()
		out, err := b.Finish(nil, p)
		if err != nil || len(out) > size {
			t.Fatalf("%d bytes of %d, %v", len(out), size, err)
		}
		if err := Batch(out).Check(fuzzLimits); err != nil {
			t.Fatal(err)
		}
		kb, kafka := parseKafka(t, out)
		compareRecords(t, kafka, want)
		if kb.ProducerID != p.ID || kb.ProducerEpoch != p.Epoch || kb.FirstSequence != p.Sequence {
			t.Fatalf("producer %d %d %d, want %v", kb.ProducerID, kb.ProducerEpoch, kb.FirstSequence, p)
		}
		var it Iterator
		got, err := collect(&it, out, fuzzLimits)
		if err != nil {
			t.Fatal(err)
		}
		compareRecords(t, got, want)
	})
}
