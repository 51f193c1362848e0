package main

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets whose width grows with the value: 64
// per power of two, so that a percentile is off by at most 1.6 %. The layout is
// that of HdrHistogram; it needs no memory beyond its array and merges by
// addition. One goroutine at a time.
type histogram struct {
	counts [histogramBuckets]uint64
	total  uint64
	max    time.Duration
}

const (
	histogramSub     = 64 // buckets per power of two
	histogramSubBits = 6
	// 2^40 ns are 18 minutes; longer ones count in the last bucket.
	histogramPowers  = 40
	histogramBuckets = (histogramPowers - histogramSubBits + 1) * histogramSub
)

func (h *histogram) record(d time.Duration) {
	if d < 0 {
		d = 0
	}
	h.counts[histogramBucket(d)]++
	h.total++
	h.max = max(h.max, d)
}

func histogramBucket(d time.Duration) int {
	v := uint64(d)
	if v < histogramSub {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - histogramSubBits
	return min((shift+1)*histogramSub+int(v>>shift)-histogramSub, histogramBuckets-1)
}

// histogramTop is the largest duration of bucket i.
func histogramTop(i int) time.Duration {
	if i < histogramSub {
		return time.Duration(i)
	}
	shift := i/histogramSub - 1
	return time.Duration((uint64(i%histogramSub)+histogramSub+1)<<shift - 1)
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.max = max(h.max, o.max)
}

// percentile returns the duration that the share p (0..1) of all stays at or
// below; 0 when there are none.
func (h *histogram) percentile(p float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(p*float64(h.total) + 0.5)
	rank = min(max(rank, 1), h.total)
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			return min(histogramTop(i), h.max)
		}
	}
	return h.max
}
