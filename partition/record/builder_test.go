package record

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestBuilderLimits(t *testing.T) {
	t.Parallel()
	value := func(n int) *Record { return &Record{Value: make([]byte, n)} }

	t.Run("record", func(t *testing.T) {
		b := NewBuilder(None, Limits{MaxRecordBytes: 100})
		wantError(t, b.Append(value(101)), ErrRecordTooLarge, "101 bytes of key, value and headers, at most 100")
		wantError(t, b.Append(&Record{Key: make([]byte, 50), Headers: []Header{{make([]byte, 25), make([]byte, 26)}}}), ErrRecordTooLarge, "101")
		if err := b.Append(value(100)); err != nil {
			t.Error(err)
		}
	})
	t.Run("largest record with defaults", func(t *testing.T) {
		b := NewBuilder(Zstd, Limits{})
		if err := b.Append(value(1 << 20)); err != nil {
			t.Error(err)
		}
		wantError(t, b.Append(value(1<<20+AddedBytes+1)), ErrRecordTooLarge, "1052672")
		wantError(t, b.Append(value(1<<20+AddedBytes)), ErrBatchFull, "")
		if b.Count() != 1 {
			t.Errorf("count %d", b.Count())
		}
	})
	t.Run("records", func(t *testing.T) {
		b := NewBuilder(None, Limits{MaxRecords: 2})
		for range 2 {
			if err := b.Append(value(1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Append(value(1)); err != ErrBatchFull {
			t.Error(err)
		}
	})
	t.Run("headers", func(t *testing.T) {
		b := NewBuilder(None, Limits{})
		wantError(t, b.Append(&Record{Headers: make([]Header, 4097)}), ErrTooManyHeaders, "4097, at most 4096")
	})
	t.Run("batch", func(t *testing.T) {
		b := NewBuilder(None, Limits{MaxBatchBytes: 200})
		for b.Append(value(10)) == nil {
		}
		if b.Size() > 200 || b.Size() < 180 {
			t.Errorf("size %d", b.Size())
		}
		// A record that fits no batch must say so, or its caller would try for ever.
		wantError(t, b.Append(value(150)), ErrRecordTooLarge, "at most 200")
		n := b.Size()
		out, err := b.Finish(nil, NoProducer)
		if err != nil || len(out) != n {
			t.Errorf("%d bytes, %v", len(out), err)
		}
		if err := Batch(out).Check(Limits{MaxBatchBytes: 200}); err != nil {
			t.Error(err)
		}
	})
	t.Run("timestamps too far apart", func(t *testing.T) {
		b := NewBuilder(None, Limits{})
		for i, c := range []struct {
			at   int64
			want error
		}{{math.MinInt64, nil}, {1, ErrBatchFull}, {-1, nil}} {
			if err := b.Append(&Record{Timestamp: c.at}); err != c.want {
				t.Errorf("%d: %v", i, err)
			}
		}
	})
	t.Run("unsupported codec", func(t *testing.T) {
		b := NewBuilder(Gzip, Limits{})
		wantError(t, b.Append(value(1)), ErrUnsupportedCodec, "gzip")
	})
	t.Run("finish", func(t *testing.T) {
		b := NewBuilder(None, Limits{})
		prefix := []byte("prefix")
		out, err := b.Finish(prefix, NoProducer)
		if err != ErrEmpty || string(out) != "prefix" {
			t.Errorf("%q, %v", out, err)
		}
		if err := b.Append(value(1)); err != nil {
			t.Fatal(err)
		}
		out, err = b.Finish(prefix, Producer{ID: -5})
		wantError(t, err, ErrProducer, "id -5")
		if string(out) != "prefix" || b.Count() != 1 {
			t.Errorf("%q, %d records", out, b.Count())
		}
		out, err = b.Finish(prefix, NoProducer)
		if err != nil || b.Count() != 0 || b.Size() != HeaderSize {
			t.Errorf("%v; then %d records, %d bytes", err, b.Count(), b.Size())
		}
		if err := Batch(out[len(prefix):]).Check(Limits{}); err != nil || !bytes.HasPrefix(out, prefix) {
			t.Error(err)
		}
	})
}

func TestIncompressibleRecordsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	v := make([]byte, 200_000)
	for i := range v {
		v[i] = byte(rng.Uint32())
	}
	for _, c := range codecs {
		rs := []Record{{Value: v}}
		b := build(t, c, NoProducer, rs)
		if b.Codec() != None {
			t.Errorf("%s: codec %s for random bytes", c, b.Codec())
		}
		_, got := parseKafka(t, b)
		compareRecords(t, got, rs)
	}
}

// randomRecords makes records of every shape; all together fit one batch.
func randomRecords(rng *rand.Rand) []Record {
	random := func(most int) []byte {
		switch rng.IntN(8) {
		case 0:
			return nil
		case 1:
			return []byte{}
		}
		p := make([]byte, rng.IntN(most+1))
		mask := byte(0xff)
		if rng.IntN(2) == 0 {
			mask = 3 // compressible
		}
		for i := range p {
			p[i] = byte(rng.Uint32()) & mask
		}
		return p
	}
	sizes := []int{4, 64, 200, 5000}
	rs := make([]Record, 1+rng.IntN(60))
	for i := range rs {
		r := &rs[i]
		most := sizes[rng.IntN(len(sizes))]
		r.Key, r.Value = random(most/4), random(most)
		r.Timestamp = int64(rng.Uint64()) >> (1 + rng.IntN(62))
		for range rng.IntN(4) {
			key := random(20)
			if key == nil {
				key = []byte{}
			}
			r.Headers = append(r.Headers, Header{Key: key, Value: random(50)})
		}
	}
	return rs
}

func TestRandomRecordsComeBack(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	builders := map[Codec]*Builder{}
	for _, c := range codecs {
		builders[c] = NewBuilder(c, Limits{})
	}
	var it Iterator
	var ck Checker
	var stream []byte
	var want [][]Record
	flush := func() {
		rest := stream
		for i := 0; len(rest) > 0; i++ {
			var b Batch
			var err error
			if b, rest, err = Split(rest); err != nil {
				t.Fatalf("batch %d: %v", i, err)
			}
			if err := ck.Check(b, Limits{}); err != nil {
				t.Fatalf("batch %d: %v", i, err)
			}
			got, err := collect(&it, b, Limits{})
			if err != nil {
				t.Fatalf("batch %d: %v", i, err)
			}
			compareRecords(t, got, want[i])
			_, kafka := parseKafka(t, b)
			compareRecords(t, kafka, want[i])
		}
		stream, want = stream[:0], want[:0]
	}
	for round := range 150 {
		rs := randomRecords(rng)
		b := builders[codecs[rng.IntN(len(codecs))]]
		p := NoProducer
		if rng.IntN(2) == 0 {
			p = Producer{ID: int64(rng.Uint64() >> 1), Epoch: int16(rng.IntN(1 << 15)), Sequence: rng.Int32()}
		}
		var err error
		var fits []Record
		for i := range rs {
			if err = b.Append(&rs[i]); errors.Is(err, ErrBatchFull) {
				continue // timestamps more than 64 bits apart
			}
			if err != nil {
				t.Fatal(err)
			}
			fits = append(fits, rs[i])
		}
		if stream, err = b.Finish(stream, p); err != nil {
			t.Fatal(err)
		}
		want = append(want, fits)
		if round%10 == 9 {
			flush()
		}
	}
}
