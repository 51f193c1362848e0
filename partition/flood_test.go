package partition

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/record"
)

// TestRepeatsOfAnIDFillTheQueue: publishes that wait for the outcome of another
// with their message id take room in the queue, and so do long reply subjects.
func TestRepeatsOfAnIDFillTheQueue(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		id    string
		reply int
	}{
		"repeated ids": {"same", 10},
		"long replies": {"", 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 13)
			r.limits = Limits{QueueBytes: 4000, BusyWait: 10 * time.Millisecond}
			r.open()
			r.host.gate.Lock() // nothing commits
			a := newAnswers()
			var err error
			taken := 0
			for range 1000 {
				pub := Publication{Record: record.Record{Value: []byte("v")}, Expect: -1, Reply: fmt.Appendf(nil, "%0*d", c.reply, taken), Receiver: a}
				if c.id != "" {
					pub.MsgID = []byte(c.id)
				}
				if err = r.p.Append(context.Background(), &pub); err != nil {
					break
				}
				taken++
			}
			r.host.gate.Unlock()
			if !errors.Is(err, ErrBusy) || taken > 4000/c.reply {
				t.Errorf("after %d records: %v", taken, err)
			}
			r.p.Flush()
			r.until("answered", func() bool { return a.count() == taken })
			r.until("empty again", func() bool { s := r.p.Status(); return s.Queued == 0 })
			r.p.a.mu.Lock()
			defer r.p.a.mu.Unlock()
			if r.p.a.count != 0 {
				t.Errorf("%d records are still counted", r.p.a.count)
			}
		})
	}
}

// batchOfIDs has n records with message ids of which some are the same.
func batchOfIDs(t testing.TB, n, distinct int) record.Batch {
	t.Helper()
	b := record.NewBuilder(record.None, record.DefaultLimits)
	for i := range n {
		err := b.Append(&record.Record{Headers: []record.Header{{Key: messageIDHeader, Value: fmt.Append(nil, i%distinct)}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	buf, err := b.Finish(nil, record.NoProducer)
	if err != nil {
		t.Fatal(err)
	}
	return buf
}

func TestBatchFullOfIDs(t *testing.T) {
	t.Parallel()
	r := newRig(t, 14)
	r.open()
	a := newAnswers()
	const n = 36_000
	if err := r.p.AppendBatch(context.Background(), batchOfIDs(t, n, n), -1, []byte("full"), a); err != nil {
		t.Fatal(err)
	}
	r.p.Flush()
	r.until("answered", func() bool { return a.count() == 1 })
	if o := a.get("full"); o.Err != nil || o.Duplicate {
		t.Fatalf("%+v", o)
	}
	err := r.p.AppendBatch(context.Background(), batchOfIDs(t, n, n-7), -1, nil, a)
	if !errors.Is(err, ErrInvalidBatch) || !strings.Contains(err.Error(), "have the same message id") {
		t.Fatalf("an id twice in one batch: %v", err)
	}
}

// BenchmarkRepeatedIDs: looking for repeats takes 10 ms for the fullest of batches,
// outside the appender's lock. To compare each with each takes two seconds.
func BenchmarkRepeatedIDs(b *testing.B) {
	bc := batchCheck{}
	for i := range 36_000 {
		bc.ids = append(bc.ids, idAt{delta: int32(i), hash: hashMessageID(fmt.Append(nil, i))})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, found := bc.repeat(); found {
			b.Fatal("a repeat where there is none")
		}
	}
}

// TestEmptyMessageIDIsNone: a batch's record with an empty id is no repeat of
// another such record.
func TestEmptyMessageIDIsNone(t *testing.T) {
	t.Parallel()
	r := newRig(t, 15)
	r.open()
	b := record.NewBuilder(record.None, record.DefaultLimits)
	a := newAnswers()
	for n := range 3 {
		for range 2 {
			if err := b.Append(&record.Record{Headers: []record.Header{{Key: messageIDHeader, Value: []byte{}}}}); err != nil {
				t.Fatal(err)
			}
		}
		buf, err := b.Finish(nil, record.NoProducer)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.p.AppendBatch(context.Background(), buf, -1, fmt.Append(nil, n), a); err != nil {
			t.Fatal(err)
		}
	}
	r.p.Flush()
	r.until("answered", func() bool { return a.count() == 3 })
	if _, next := r.p.Bounds(); next != 6 {
		t.Errorf("%d records are in the log, 6 were published", next)
	}
}
