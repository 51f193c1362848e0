package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/record"
)

// Limits of what a session remembers.
const (
	maxRemembered = 1024 // subjects and the topics they lead to
	maxTouched    = 64   // partitions appended to since the last Flush
)

// session is the broker's side of one connection. Its fields belong to the one
// goroutine that reads the connection, except where said.
type session struct {
	b      *Broker
	client protocol.Client
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	wg     sync.WaitGroup // fetches and requests of this session

	routes *routes
	topics map[string]*topic // by subject; nil: not bound. Valid for routes

	pub     partition.Publication
	headers []record.Header
	tag     []byte
	checker record.Checker
	touched []*partition.Partition
	turn    uint32 // moves records without a key on, batch by batch

	// of the burst that is being read; zero until its first publish
	burstMS, burstTick int64

	awaited bool  // the broker's start was waited for
	hop     bool  // another broker forwards what comes here: it isn't forwarded again
	own     bool  // the broker itself asks
	resent  *kept // what is being sent again; nil once another broker has it

	acks     []*gathered // of plain clients, since the last Flush
	ackCount int
	hopWaits sync.Map // id -> context.CancelFunc: waits that another broker may end

	fetches atomic.Int32 // under way; any goroutine
}

// Attach implements protocol.Broker.
func (b *Broker) Attach(c protocol.Client) protocol.Session {
	ctx, cancel := context.WithCancel(b.ctx)
	b.metrics.sessions.Inc()
	s := &session{b: b, client: c, ctx: ctx, cancel: cancel, turn: b.turns.Add(1)}
	s.pub.Stalled = c.Stalled
	return s
}

// Publish implements protocol.Session.
func (s *session) Publish(m *interest.Message) protocol.Disposition {
	if len(m.Subject) > len(wire.Prefix) && m.Subject[0] == '$' && string(m.Subject[:len(wire.Prefix)]) == wire.Prefix {
		s.request(m)
		return protocol.Consumed
	}
	t := s.lookup(m.Subject)
	if t == nil {
		if t = s.autoCreate(m); t == nil {
			return protocol.NotTaken
		}
	}
	if err := s.publish(t, -1, m); err != nil {
		s.b.acks.refuse(m.Reply, err)
	}
	return protocol.Taken
}

// lookup finds the topic that binds a subject.
func (s *session) lookup(subject []byte) *topic {
	if r := s.b.routes.Load(); r != s.routes {
		s.routes = r
		clear(s.topics)
	}
	if t, ok := s.topics[string(subject)]; ok {
		return t
	}
	t, _ := s.routes.bindings.Lookup(subject)
	if len(subject) > 256 {
		return t
	}
	if s.topics == nil || len(s.topics) >= maxRemembered {
		s.topics = make(map[string]*topic)
	}
	s.topics[string(subject)] = t
	return t
}

// publish takes one record for a partition, or, when that is -1, for the one that
// headers, key or turn choose.
func (s *session) publish(t *topic, to int32, m *interest.Message) *wire.Error {
	if s.burstTick == 0 {
		s.burstMS, s.burstTick = s.b.c.Clock().UnixMilli(), s.b.acks.now()
	}
	p := &s.pub
	p.MsgID, p.Expect = nil, -1
	p.Record = record.Record{Value: m.Payload, Timestamp: s.burstMS}
	number := int32(-1)
	if err := s.readHeaders(t, m, &number); err != nil {
		return err
	}
	if p.Record.Key == nil {
		p.Record.Key = t.keyOf(m.Subject)
	}
	if string(m.Subject) != t.name {
		s.headers = append(s.headers, record.Header{Key: subjectHeader, Value: m.Subject})
	}
	p.Record.Headers = s.headers
	if err := s.checkSize(t); err != nil {
		return err
	}
	if to >= 0 {
		number = to
	}
	if number < 0 {
		number = s.choose(t)
	}
	s.tag = appendTag(s.tag[:0], s.burstTick, m.Reply)
	if p.Reply, p.Receiver = s.tag, s.b.acks; s.hop {
		p.Receiver = forwardedAcks{s.b.acks}
	}
	done, err := s.append(t, number, m, !s.hop, func(part *partition.Partition) error { return part.Append(s.ctx, p) })
	if err != nil || done {
		return err
	}
	s.b.metrics.recordIn(len(m.Payload))
	return nil
}

// appendTries bounds how often a record looks for its partition's leader anew,
// since leadership may move while it is on its way.
const appendTries = 3

// append hands a record or a batch to the partition, or m to the partition's
// leader: then done is set. ordered: it goes with the flow of plain clients' records.
func (s *session) append(t *topic, number int32, m *interest.Message, ordered bool, take func(*partition.Partition) error) (done bool, werr *wire.Error) {
	for try := 1; ; try++ {
		part, done, werr := s.reach(t, number, m, ordered)
		if werr != nil || done {
			return done, werr
		}
		s.touch(part)
		err := take(part)
		if err == nil {
			return false, nil
		}
		if try == appendTries || !errors.Is(err, partition.ErrNotLeader) {
			return false, wireError(err)
		}
	}
}

var subjectHeader = []byte(wire.HeaderSubject)

// readHeaders makes record headers of the message's and obeys those that are
// meant for the broker. A header that only tells the broker what to do is not
// stored; what an application may want to see again is.
func (s *session) readHeaders(t *topic, m *interest.Message, number *int32) *wire.Error {
	s.headers = s.headers[:0]
	block := headerLines(m.Header)
	for {
		h, rest, ok := nextHeader(block)
		if !ok {
			return nil
		}
		block = rest
		switch kindOf(h.name) {
		case headerKey:
			if len(h.value) > wire.MaxKey {
				return badRequest("%s has %d bytes, at most %d are allowed", wire.HeaderKey, len(h.value), wire.MaxKey)
			}
			s.pub.Record.Key = h.value
			continue
		case headerPartition:
			n, ok := number64(h.value)
			if !ok || n >= int64(len(t.parts)) {
				return noPartition(t, h.value)
			}
			*number = int32(n)
			continue
		case headerExpect:
			n, ok := number64(h.value)
			if !ok {
				return badRequest("%s is %q, allowed is an offset", wire.HeaderExpect, clip(h.value))
			}
			s.pub.Expect = n
			continue
		case headerSubject:
			continue
		case headerMsgID:
			if len(h.value) == 0 || len(h.value) > wire.MaxMsgID {
				return badRequest("%s has %d bytes, allowed are 1 to %d", wire.HeaderMsgID, len(h.value), wire.MaxMsgID)
			}
			s.pub.MsgID = h.value
		case headerLastSeq:
			n, ok := number64(h.value)
			if !ok {
				return badRequest("%s is %q, allowed is a sequence", natsLastSeq, clip(h.value))
			}
			s.pub.Expect = n // sequences count from 1: the last one is the next offset
		case headerStream:
			if string(h.value) != t.name {
				return badRequest("the subject belongs to topic %s, not to the expected stream %q", t.name, clip(h.value))
			}
		case headerUnsupported:
			return badRequest("the header %s asks for something that topics don't offer", clip(h.name))
		}
		s.headers = append(s.headers, record.Header{Key: h.name, Value: h.value})
	}
}

func (s *session) checkSize(t *topic) *wire.Error {
	most := min(int(s.b.c.MaxRecord), t.config.MaxRecord)
	if n := s.pub.Record.Size(); n > most {
		return &wire.Error{Code: 413, Reason: wire.ReasonTooLarge,
			Description: fmt.Sprintf("the record has %d bytes with key and headers, topic %s takes at most %d", n, t.name, most)}
	}
	if n := len(s.pub.Record.Headers); n > record.MaxSentHeaders {
		return &wire.Error{Code: 413, Reason: wire.ReasonTooLarge,
			Description: fmt.Sprintf("the record has %d headers, at most %d are allowed", n, record.MaxSentHeaders)}
	}
	return nil
}

// choose picks the partition of a record that names none: by key, else by
// message id, so that a retry meets its twin, else the one whose turn it is.
func (s *session) choose(t *topic) int32 {
	n := int32(len(t.parts))
	switch {
	case n == 1:
		return 0
	case s.pub.Record.Key != nil:
		return record.PartitionOf(s.pub.Record.Key, n)
	case s.pub.MsgID != nil:
		return record.PartitionOf(s.pub.MsgID, n)
	}
	return int32(s.turn % uint32(n))
}

// startWait is how long a session's first publish to a partition that isn't
// open yet waits for a broker that has just started.
const startWait = 2 * time.Second

// awaitStart spares clients that come back to a restarted broker at once an
// error for each publish of its first moments. It waits once a session.
func (s *session) awaitStart() {
	if s.awaited || s.b.ready.ready.Load() {
		return
	}
	s.awaited = true
	t := time.NewTimer(startWait)
	defer t.Stop()
	select {
	case <-s.b.ready.done:
	case <-t.C:
	case <-s.ctx.Done():
	}
}

func (s *session) touch(p *partition.Partition) {
	for i := len(s.touched) - 1; i >= 0; i-- {
		if s.touched[i] == p {
			return
		}
	}
	if len(s.touched) == maxTouched {
		s.flush()
	}
	s.touched = append(s.touched, p)
}

func (s *session) flush() {
	for i, p := range s.touched {
		p.Flush()
		s.touched[i] = nil
	}
	s.touched = s.touched[:0]
	if len(s.acks) > 0 {
		s.flushAcks()
	}
}

// Flush implements protocol.Session.
func (s *session) Flush() {
	if s.burstTick == 0 && len(s.touched) == 0 && len(s.acks) == 0 {
		return
	}
	s.flush()
	s.burstMS, s.burstTick = 0, 0
	s.turn++
}

// Close implements protocol.Session.
func (s *session) Close() {
	s.flush()
	s.cancel()
	s.wg.Wait()
	s.b.metrics.sessions.Dec()
}

// publishBatch takes a batch that an SDK built, sent to
// $PARLEY.PUB.<topic>.<partition>.
func (s *session) publishBatch(m *interest.Message, rest []byte) *wire.Error {
	t, number, err := s.target(rest)
	if err != nil {
		return err
	}
	return s.batch(t, number, m)
}

func (s *session) batch(t *topic, number int32, m *interest.Message) *wire.Error {
	if s.burstTick == 0 {
		s.burstMS, s.burstTick = s.b.c.Clock().UnixMilli(), s.b.acks.now()
	}
	expect := int64(-1)
	for block := headerLines(m.Header); ; {
		h, rest, ok := nextHeader(block)
		if !ok {
			break
		}
		if block = rest; kindOf(h.name) == headerExpect {
			if expect, ok = number64(h.value); !ok {
				return badRequest("%s is %q, allowed is an offset", wire.HeaderExpect, clip(h.value))
			}
		}
	}
	// The partition checks every batch against the broker's limits. Only a
	// topic with a tighter one of its own costs a second look. There, too, headers that
	// a broker adds don't count: those of a dead letter, the id of one that goes back.
	batch := record.Batch(m.Payload)
	if most := t.config.MaxRecord; most < int(s.b.c.MaxRecord) {
		if s.own || s.hop { // another broker has looked at what comes from a client
			most += letterRoom
		}
		if err := s.checker.Check(batch, record.Limits{MaxRecordBytes: most}); err != nil {
			return batchError(err)
		}
	}
	s.tag = appendTag(s.tag[:0], s.burstTick, m.Reply)
	done, err := s.append(t, number, m, false, func(part *partition.Partition) error {
		return part.AppendBatch(s.ctx, batch, expect, s.tag, s.b.acks)
	})
	if err != nil || done {
		return err
	}
	s.b.metrics.batchIn(batch.Count(), len(m.Payload))
	return nil
}

// target finds the partition that the end of a subject names: topic.partition.
func (s *session) target(rest []byte) (*topic, int32, *wire.Error) {
	dot := bytes.LastIndexByte(rest, '.')
	if dot <= 0 {
		return nil, 0, badRequest("the subject ends with %q, wanted is TOPIC.PARTITION", clip(rest))
	}
	t := s.b.routes.Load().byName[string(rest[:dot])]
	if t == nil {
		return nil, 0, &wire.Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: fmt.Sprintf("there is no topic %q", clip(rest[:dot]))}
	}
	n, ok := number64(rest[dot+1:])
	if !ok || n >= int64(len(t.parts)) {
		return nil, 0, noPartition(t, rest[dot+1:])
	}
	return t, int32(n), nil
}
