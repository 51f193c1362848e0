package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogramAgainstSorting(t *testing.T) {
	t.Parallel()
	const seed = 7
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, seed))
	var whole, left, right histogram
	var all []time.Duration
	for i := range 50_000 {
		d := time.Duration(1) << rng.IntN(36)
		d += time.Duration(rng.Int64N(int64(d)))
		all = append(all, d)
		whole.record(d)
		if i%2 == 0 {
			left.record(d)
		} else {
			right.record(d)
		}
	}
	left.merge(&right)
	if left != whole {
		t.Error("merged halves differ from the whole")
	}
	slices.Sort(all)
	for _, p := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[min(max(int(p*float64(len(all))+0.5), 1), len(all))-1]
		got := whole.percentile(p)
		if got < want || float64(got) > float64(want)*1.016+1 {
			t.Errorf("percentile %v: got %v, sorted says %v", p, got, want)
		}
	}
	if whole.max != all[len(all)-1] {
		t.Errorf("max %v, want %v", whole.max, all[len(all)-1])
	}
}

func TestHistogramEdges(t *testing.T) {
	t.Parallel()
	var h histogram
	if h.percentile(0.5) != 0 {
		t.Error("an empty histogram has a percentile")
	}
	h.record(-time.Second)
	h.record(0)
	h.record(100 * time.Hour)
	if got := h.percentile(1); got != histogramTop(histogramBuckets-1) && got != 100*time.Hour {
		t.Errorf("longest: %v", got)
	}
	for i := range histogramBuckets - 1 {
		if histogramBucket(histogramTop(i)) != i || histogramBucket(histogramTop(i)+1) != i+1 {
			t.Fatalf("bucket %d ends at %v, which is in %d, and the next in %d", i, histogramTop(i), histogramBucket(histogramTop(i)), histogramBucket(histogramTop(i)+1))
		}
	}
}

func BenchmarkHistogramRecord(b *testing.B) {
	b.ReportAllocs()
	var h histogram
	for i := 0; b.Loop(); i++ {
		h.record(time.Duration(i))
	}
}
