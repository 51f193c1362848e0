package main

import (
	"testing"
	"time"
)

// TestFewRecordsAreTimedFromTheFirst: with few of them all are under way before any is done, and a
// measurement that began with the first one's end would time nothing.
func TestFewRecordsAreTimedFromTheFirst(t *testing.T) {
	t.Parallel()
	f := &benchFlags{records: 10}
	m := newMeter(f)
	m.start(t.Context(), f)
	h := m.histogram()
	sent := time.Now()
	for m.claim() {
	}
	took := time.NewTimer(20 * time.Millisecond)
	<-took.C
	for range f.records {
		m.settle(h, sent, 100)
	}
	r := m.result()
	if r.Records != 10 || r.Bytes != 1000 || r.Seconds < 0.02 || r.Rate > 500 || r.P50 < 20_000 {
		t.Errorf("%+v", r)
	}
}
