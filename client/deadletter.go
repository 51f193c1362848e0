package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// In a shared group a partition's leader writes dead letters. In an exclusive one the member does, in the same form, and until
// a letter is written the position doesn't move past its record: nothing is dropped.

// bury writes what waits as dead letters. It is the goroutine of t.dead.
func (t *tenure) bury() {
	for tries := 0; ; {
		t.mu.Lock()
		if len(t.graves) == 0 {
			t.burying = false
			t.mu.Unlock()
			return
		}
		m := t.graves[0]
		reason := t.details[m].reason
		t.mu.Unlock()
		err := t.s.deadLetter(t.work, m, reason)
		if t.work.Err() != nil {
			return // burying stays true: nobody begins again
		}
		t.buriedOr(m, err)
		if err == nil {
			tries = 0
			t.mu.Lock()
			t.graves = t.graves[1:]
			delete(t.details, m)
			t.mu.Unlock()
			m.buried()
			continue
		}
		t.s.c.cfg.log("a dead letter can't be written, trying again", "topic", m.Topic, "partition", m.Partition, "offset", m.Offset,
			"group", t.s.group, "to", t.s.deadLetterTopic(), "error", err)
		tries++
		if t.s.c.pause(t.work, backoff(tries-1)) != nil && t.work.Err() == nil {
			return // the client was closed
		}
	}
}

// stuckLetter is a dead letter that can't be written.
type stuckLetter struct {
	of    *Message
	since time.Time
	err   error
}

// buriedOr notes whether the letter of m is written. The partition's leader is told at once when that changes, and with every
// renewal: else nobody who looks at the group could know why it stands still.
func (t *tenure) buriedOr(m *Message, err error) {
	t.mu.Lock()
	was := t.stuck
	switch {
	case err == nil:
		t.stuck = nil
	case was == nil || was.of != m:
		t.stuck = &stuckLetter{m, time.Now(), err}
	default:
		was.err = err
	}
	changed := (was == nil) != (t.stuck == nil)
	t.mu.Unlock()
	if changed {
		t.news.Store(true)
		nudge(t.wake)
	}
}

// stuckNow is what to tell the leader.
func (t *tenure) stuckNow() *wire.GroupStuck {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stuck
	if s == nil {
		return nil
	}
	return &wire.GroupStuck{Offset: s.of.Offset, ForMS: time.Since(s.since).Milliseconds(), Topic: t.s.deadLetterTopic(),
		Reason: brief(s.err.Error(), maxWhy), Waiting: len(t.graves)}
}

func (s *Subscription) deadLetterTopic() string {
	if name := s.options().DeadLetter; name != "" {
		return name
	}
	return "dlq-" + s.topic + "-" + s.group
}

// deadLetter writes one record to the dead-letter topic, which it makes when it isn't there. The letter is a batch of its
// own with a message id made of where the record is, as the brokers write letters too: one that is written again,
// after an answer that was lost or by the next member, is there once within the window of message ids. So no Producer
// sends it: its numbers would have gaps where a letter was there already.
func (s *Subscription) deadLetter(ctx context.Context, m *Message, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, letterTime)
	defer cancel()
	topic := s.deadLetterTopic()
	view, err := s.letterView(ctx, topic)
	if err != nil {
		return err
	}
	r := record.Record{Key: m.Key, Value: m.Value, Timestamp: m.Timestamp.UnixMilli(), Headers: s.letterHeaders(m, reason)}
	builder := record.NewBuilder(record.None, letterLimits)
	if err := builder.Append(&r); err != nil {
		return fmt.Errorf("make a dead letter: %w", err)
	}
	batch, err := builder.Finish(nil, record.NoProducer)
	if err != nil {
		return fmt.Errorf("make a dead letter: %w", err)
	}
	number := int32(0)
	if m.Key != nil {
		number = record.PartitionOf(m.Key, view.partitions.Load())
	}
	ack, err := tryOn(ctx, s.c.publishes.to(view, number), wire.PartitionSubject(wire.PubPrefix, topic, number), batch, s.c.cfg.requestTimeout,
		func(out *wire.PubAck) *Error { return out.Error })
	if e := asError(err); e != nil {
		s.c.topics.stale()
		if e.Reason == wire.ReasonTopicNotFound {
			s.forgetLetters(view) // the next try makes it anew
		}
	}
	if err == nil && ack.Duplicate {
		s.c.cfg.log("a dead letter was there already", "topic", m.Topic, "partition", m.Partition, "offset", m.Offset, "group", s.group)
	}
	return err
}

// letterHeaders are the dead letter's own, then the record's. The record's message id is kept under another
// name, and what it has of an earlier life as a dead letter is left out.
func (s *Subscription) letterHeaders(m *Message, reason string) []Header {
	h := make([]Header, 0, len(m.Headers)+8)
	h = append(h,
		Text(wire.HeaderMsgID, fmt.Sprintf("%s/%s/%d/%d", s.group, m.Topic, m.Partition, m.Offset)),
		Text(wire.HeaderTopic, m.Topic), Text(wire.HeaderPart, strconv.Itoa(int(m.Partition))),
		Text(wire.HeaderOffset, strconv.FormatInt(m.Offset, 10)), Text(wire.HeaderDeliveries, strconv.Itoa(int(m.Deliveries))),
		Text(wire.HeaderGroup, s.group), Text(wire.HeaderReason, brief(reason, maxReason)),
		Text(wire.HeaderTime, m.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z07:00")))
	kept := false
	for i := range m.Headers {
		kept = kept || strings.EqualFold(string(m.Headers[i].Key), wire.HeaderOriginalID)
	}
	for _, o := range m.Headers {
		switch name := string(o.Key); {
		case strings.EqualFold(name, wire.HeaderMsgID):
			if !kept {
				h = append(h, Header{Key: []byte(wire.HeaderOriginalID), Value: o.Value})
				kept = true
			}
		case slices.ContainsFunc(ownHeaders, func(own string) bool { return strings.EqualFold(name, own) }):
		default:
			h = append(h, o)
		}
	}
	return h
}

// ownHeaders make a record a dead letter.
var ownHeaders = []string{
	wire.HeaderTopic, wire.HeaderPart, wire.HeaderOffset, wire.HeaderDeliveries, wire.HeaderGroup, wire.HeaderReason, wire.HeaderTime,
}

// maxReason bounds the text in a dead letter. All of its headers have to fit into record.AddedBytes.
const maxReason = 2048

// letterTime is how long one try to write a dead letter takes at most; others follow.
const letterTime = 10 * time.Second

// letterView returns the dead-letter topic, which it makes when it isn't there.
func (s *Subscription) letterView(ctx context.Context, topic string) (*topicView, error) {
	s.mu.Lock()
	v := s.letters
	s.mu.Unlock()
	if v != nil {
		return v, nil
	}
	v, err := s.c.topics.use(ctx, topic)
	if errors.Is(err, ErrTopicNotFound) {
		if _, err = s.c.CreateTopic(ctx, TopicSpec{Name: topic, Partitions: 1}); err == nil || errors.Is(err, ErrTopicExists) {
			v, err = s.c.topics.use(ctx, topic)
		}
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	other := s.letters
	if other == nil {
		s.letters = v
	}
	s.mu.Unlock()
	if other != nil {
		s.c.topics.release(v)
		return other, nil
	}
	return v, nil
}

// forgetLetters lets go of the dead-letter topic; nil stands for whichever it is.
func (s *Subscription) forgetLetters(v *topicView) {
	s.mu.Lock()
	if v == nil {
		v = s.letters
	}
	same := v != nil && s.letters == v
	if same {
		s.letters = nil
	}
	s.mu.Unlock()
	if same {
		s.c.topics.release(v)
	}
}
