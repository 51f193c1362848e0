package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
)

// fetchBuffer holds one fetch's answer while it is put together. At most
// Limits.FetchReplies are in use; a fetch that only waits holds none.
type fetchBuffer struct {
	b    []byte
	head []byte
	m    interest.Message
}

// A pooled buffer holds the largest answer: MaxFetch bytes, or one batch.
const fetchSize = max(wire.MaxFetch, wire.MaxBatch)

var fetchBuffers = sync.Pool{New: func() any { return &fetchBuffer{b: make([]byte, 0, fetchSize), head: make([]byte, 0, 256)} }}

// fetch takes a request to $PARLEY.FETCH.<topic>.<partition>. It is answered
// from a goroutine of its own, since it may read the disk or wait.
func (s *session) fetch(m *interest.Message, rest []byte) {
	if len(m.Reply) == 0 {
		return // nobody to answer
	}
	t, number, werr := s.target(rest)
	if werr != nil {
		s.b.refuseFetch(m.Reply, werr)
		return
	}
	s.fetchFrom(t, number, m)
}

// fetchFrom takes a fetch from a partition, or hands it to the partition's leader.
func (s *session) fetchFrom(t *topic, number int32, m *interest.Message) {
	var q wire.FetchRequest
	if len(m.Payload) > 0 {
		if err := json.Unmarshal(m.Payload, &q); err != nil {
			s.b.refuseFetch(m.Reply, badRequest("the request is not the JSON object that is expected: %v", err))
			return
		}
	}
	clampFetch(&q)
	if q.Offset < 0 {
		s.b.refuseFetch(m.Reply, badRequest("offset %d: allowed are 0 and more", q.Offset))
		return
	}
	p, to := s.b.leader(t.parts[number], s.hop)
	if to != 0 && s.b.forwards.send(to, t.name, number, m) == nil {
		return
	}
	if werr := s.admitFetch(); werr != nil {
		s.b.refuseFetch(m.Reply, werr)
		return
	}
	if p != nil {
		reply := bytes.Clone(m.Reply)
		s.wg.Go(func() {
			defer s.leaveFetch()
			s.b.answerFetch(s.ctx, p, q, reply)
		})
		return
	}
	// Nobody leads, or the leader can't be reached: that is waited for aside.
	own := interest.Message{Subject: bytes.Clone(m.Subject), Reply: bytes.Clone(m.Reply), Payload: bytes.Clone(m.Payload)}
	s.wg.Go(func() {
		defer s.leaveFetch()
		p, done, werr := s.b.reach(s.ctx, t, number, &own, passage{hop: s.hop})
		switch {
		case werr != nil:
			if s.ctx.Err() == nil {
				s.b.refuseFetch(own.Reply, werr)
			}
		case !done:
			s.b.answerFetch(s.ctx, p, q, own.Reply)
		}
	})
}

func clampFetch(q *wire.FetchRequest) {
	if q.MaxBytes <= 0 || q.MaxBytes > wire.MaxFetch {
		q.MaxBytes = wire.MaxFetch
	}
	q.MaxWaitMS = min(max(q.MaxWaitMS, 0), wire.MaxFetchWaitMS)
}

func (s *session) admitFetch() *wire.Error {
	lim := &s.b.c.Limits
	if n := s.fetches.Add(1); int(n) > lim.FetchesPerSession && !s.hop {
		s.fetches.Add(-1)
		return busy("this connection has %d fetches under way, at most %d are allowed", n-1, lim.FetchesPerSession)
	}
	if n := s.b.fetches.Add(1); int(n) > lim.Fetches {
		s.leaveFetch()
		return busy("the broker has %d fetches under way, at most %d are allowed", n-1, lim.Fetches)
	}
	return nil
}

func (s *session) leaveFetch() {
	s.fetches.Add(-1)
	s.b.fetches.Add(-1)
}

// answerFetch waits for records without a buffer, then reads them into one.
func (b *Broker) answerFetch(ctx context.Context, p *partition.Partition, q wire.FetchRequest, reply []byte) {
	wait := time.Duration(q.MaxWaitMS) * time.Millisecond
	if err := p.Await(ctx, q.Offset, wait); err != nil {
		if ctx.Err() == nil {
			b.refuseFetch(reply, wireError(err))
		}
		return
	}
	select {
	case b.fetchRoom <- struct{}{}:
		defer func() { <-b.fetchRoom }()
	case <-ctx.Done():
		return
	}
	start := time.Now()
	f := fetchBuffers.Get().(*fetchBuffer)
	defer f.put()
	res, err := p.Fetch(ctx, partition.FetchRequest{Offset: q.Offset, MaxBytes: q.MaxBytes}, f.b[:0])
	if err != nil {
		b.refuseFetch(reply, b.readError(b.slotOf(p.Shard()), err), err)
		return
	}
	h := append(f.head[:0], "NATS/1.0\r\n"...)
	h = appendHeader(h, wire.HeaderStart, res.Start)
	h = appendHeader(h, wire.HeaderNext, res.Next)
	f.head = append(h, "\r\n"...)
	f.m.Subject, f.m.Header, f.m.Payload = reply, f.head, res.Batches
	b.router.Route(&f.m, nil)
	b.metrics.fetched(len(res.Batches), time.Since(start))
}

func (f *fetchBuffer) put() {
	f.m = interest.Message{}
	fetchBuffers.Put(f)
}

// refuseFetch answers a fetch that failed: the reason as a header, the error as
// JSON. An offset out of range comes with the bounds.
func (b *Broker) refuseFetch(subject []byte, e *wire.Error, cause ...error) {
	b.metrics.fetchFailed(e.Reason)
	h := append([]byte(nil), "NATS/1.0\r\n"+wire.HeaderError+": "...)
	h = append(append(h, e.Reason...), "\r\n"...)
	var p *partition.Error
	if len(cause) > 0 && errors.As(cause[0], &p) && p.Reason == wire.ReasonOffsetOutOfRange {
		h = appendHeader(h, wire.HeaderStart, p.Start)
		h = appendHeader(h, wire.HeaderNext, p.Next)
	}
	h = append(h, "\r\n"...)
	e.Outcome = ""
	b.router.Route(&interest.Message{Subject: subject, Header: h, Payload: appendError(nil, e)}, nil)
}

func appendHeader(h []byte, name string, v int64) []byte {
	h = append(append(h, name...), ": "...)
	return append(strconv.AppendInt(h, v, 10), "\r\n"...)
}
