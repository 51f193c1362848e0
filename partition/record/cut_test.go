package record

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// cutRecords makes a batch with records of all shapes, and returns what an iterator finds in it.
func cutRecords(tb testing.TB, n int, base int64, codec Codec) (Batch, []Record) {
	tb.Helper()
	rng := rand.New(rand.NewPCG(uint64(n), 5))
	b := NewBuilder(codec, DefaultLimits)
	for i := range n {
		r := Record{Timestamp: 1_700_000_000_000 + rng.Int64N(1000) - 500, Value: make([]byte, rng.IntN(200))}
		if i%3 > 0 {
			r.Key = fmt.Append(nil, "key-", i)
		}
		for range rng.IntN(3) {
			r.Headers = append(r.Headers, Header{Key: []byte("h"), Value: fmt.Append(nil, i)})
		}
		if err := b.Append(&r); err != nil {
			tb.Fatal(err)
		}
	}
	data, err := b.Finish(nil, Producer{ID: 7, Epoch: 1, Sequence: 3})
	if err != nil {
		tb.Fatal(err)
	}
	Batch(data).Stamp(base, 4)
	return data, readAll(tb, data)
}

func readAll(tb testing.TB, b Batch) (all []Record) {
	tb.Helper()
	if err := b.Check(DefaultLimits); err != nil {
		tb.Fatal(err)
	}
	var it Iterator
	if err := it.Reset(b, DefaultLimits); err != nil {
		tb.Fatal(err)
	}
	for it.Next() {
		r := *it.Record()
		r.Headers = append([]Header(nil), r.Headers...)
		all = append(all, r)
	}
	if err := it.Err(); err != nil {
		tb.Fatal(err)
	}
	return all
}

// Whatever stretches are cut out, the same records come out of them as of the whole batch.
func TestCut(t *testing.T) {
	t.Parallel()
	const n, base = 300, 1 << 40
	b, all := cutRecords(t, n, base, None)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		c := Cut(b)
		var out []byte
		var want, got []Record
		for at := 0; at < n; {
			first := at + rng.IntN(40)
			last := first + rng.IntN(1+rng.IntN(100))
			if last >= n {
				break
			}
			var err error
			if out, err = c.Append(out, base+int64(first), base+int64(last)); err != nil {
				t.Fatal(err)
			}
			want = append(want, all[first:last+1]...)
			at = last + 1
		}
		for rest := out; len(rest) > 0; {
			var part Batch
			var err error
			if part, rest, err = Split(rest); err != nil {
				t.Fatal(err)
			}
			some := readAll(t, part)
			latest := part.BaseTimestamp()
			for _, r := range some {
				latest = max(latest, r.Timestamp)
			}
			if part.MaxTimestamp() != latest || part.Producer() != NoProducer {
				t.Fatalf("latest %d, want %d; producer %+v", part.MaxTimestamp(), latest, part.Producer())
			}
			got = append(got, some...)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%d records, want %d, or others", len(got), len(want))
		}
	}
}

// What can't be cut is an error, and what was there before stays.
func TestCutRefuses(t *testing.T) {
	t.Parallel()
	b, _ := cutRecords(t, 20, 100, None)
	packed, _ := cutRecords(t, 20, 100, Zstd)
	if packed.Codec() != Zstd {
		t.Fatal("not compressed")
	}
	short := slices.Clone(b[:len(b)-50])
	for name, try := range map[string]struct {
		b           Batch
		first, last int64
	}{
		"before": {b, 99, 101}, "beyond": {b, 119, 120}, "backwards": {b, 105, 104}, "compressed": {packed, 100, 101}, "damaged": {short, 100, 119},
	} {
		c := Cut(try.b)
		out, err := c.Append([]byte("kept"), try.first, try.last)
		if err == nil || string(out) != "kept" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		if _, again := c.Append(nil, 110, 110); again == nil {
			t.Errorf("%s: goes on after an error", name)
		}
	}
	c := Cut(b)
	if _, err := c.Append(nil, 105, 106); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(nil, 106, 107); err == nil {
		t.Error("the same record twice")
	}
}

// Bytes of any kind are cut or refused, without a panic.
func FuzzCut(f *testing.F) {
	b, _ := cutRecords(f, 20, 100, None)
	f.Add([]byte(b), int64(103), int64(110))
	f.Fuzz(func(_ *testing.T, data []byte, first, last int64) {
		b, _, err := Split(data)
		if err != nil || b.Count() > 1000 || b.LastOffset()-b.BaseOffset() > 1000 {
			return
		}
		c := Cut(b)
		_, _ = c.Append(nil, first, last)
	})
}

// One operation is one record that is copied; as many are passed over.
func BenchmarkCut(b *testing.B) {
	data, _ := cutRecords(b, 1000, 0, None)
	out := make([]byte, 0, 2*len(data))
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += 500 {
		c := Cut(data)
		out = out[:0]
		for first := int64(0); first < 1000; first += 200 {
			var err error
			if out, err = c.Append(out, first, first+99); err != nil {
				b.Fatal(err)
			}
		}
	}
}
