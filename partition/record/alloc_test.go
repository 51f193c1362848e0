package record

import (
	"fmt"
	"testing"
)

// typical are records like those of a busy topic: 128 bytes of JSON, a short key
// and one header.
func typical(n int) []Record {
	rs := make([]Record, n)
	for i := range rs {
		v := fmt.Appendf(nil, `{"id":%d,"user":"user-%d","action":"click","target":"/items/%d"`, i, i*7919%1000, i*104729%100000)
		for len(v) < 127 {
			v = append(v, " session=0"[len(v)%10])
		}
		rs[i] = Record{
			Key:       fmt.Appendf(nil, "user-%d", i*7919%1000),
			Value:     append(v, '}'),
			Headers:   []Header{{[]byte("Content-Type"), []byte("application/json")}},
			Timestamp: 1_700_000_000_000 + int64(i),
		}
	}
	return rs
}

func TestNothingIsAllocatedOnceWarm(t *testing.T) {
	if raceOn {
		t.Skip("the race detector allocates")
	}
	rs := typical(500)
	for _, c := range codecs {
		b := NewBuilder(c, Limits{})
		var out []byte
		build := func() {
			for i := range rs {
				if err := b.Append(&rs[i]); err != nil {
					t.Fatal(err)
				}
			}
			var err error
			if out, err = b.Finish(out[:0], NoProducer); err != nil {
				t.Fatal(err)
			}
		}
		build()
		batch := Batch(append([]byte(nil), out...))
		var ck Checker
		var it Iterator
		bytes := 0
		visit := func(i int, r *Record) error { bytes += r.Size(); return nil }
		for name, f := range map[string]func(){
			"build": build,
			"check": func() {
				if err := ck.CheckRecords(batch, DefaultLimits, visit); err != nil {
					t.Fatal(err)
				}
			},
			"iterate": func() {
				if err := it.Reset(batch, DefaultLimits); err != nil {
					t.Fatal(err)
				}
				for it.Next() {
					bytes += it.Record().Size()
				}
				if it.Err() != nil {
					t.Fatal(it.Err())
				}
			},
		} {
			f()
			// Below one per batch: a garbage collection in between may empty a pool.
			if n := testing.AllocsPerRun(50, f); n >= 1 {
				t.Errorf("%s %s: %.1f allocations for a batch of %d records", name, c, n, len(rs))
			}
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			rs := typical(1000)
			bd := NewBuilder(c, Limits{})
			var out []byte
			b.SetBytes(int64(rs[0].Size()))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := bd.Append(&rs[i%len(rs)]); err != nil {
					b.Fatal(err)
				}
				if bd.Count() == len(rs) {
					out, _ = bd.Finish(out[:0], NoProducer)
				}
			}
		})
	}
}

// BenchmarkCheck and BenchmarkIterator count records, in batches of 1000.
func BenchmarkCheck(b *testing.B) {
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			rs := typical(1000)
			batch := build(b, c, NoProducer, rs)
			var ck Checker
			var ids int
			visit := func(_ int, r *Record) error { ids += len(r.Headers); return nil }
			b.SetBytes(int64(rs[0].Size()))
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += len(rs) {
				if err := ck.CheckRecords(batch, DefaultLimits, visit); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(batch))/float64(len(rs)), "B/record")
		})
	}
}

func BenchmarkIterator(b *testing.B) {
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			rs := typical(1000)
			batch := build(b, c, NoProducer, rs)
			var it Iterator
			var size int
			b.SetBytes(int64(rs[0].Size()))
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += len(rs) {
				if err := it.Reset(batch, DefaultLimits); err != nil {
					b.Fatal(err)
				}
				for it.Next() {
					size += len(it.Record().Value)
				}
			}
		})
	}
}

func BenchmarkVerifyCRC(b *testing.B) {
	batch := build(b, None, NoProducer, typical(1000))
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		if err := batch.VerifyCRC(); err != nil {
			b.Fatal(err)
		}
	}
}
