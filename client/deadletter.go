package client

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/parleymq/parley/client/wire"
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

func (s *Subscription) deadLetterTopic() string {
	if name := s.options().DeadLetter; name != "" {
		return name
	}
	return "dlq-" + s.topic + "-" + s.group
}

// deadLetter writes one record to the dead-letter topic, which it makes when it isn't there.
func (s *Subscription) deadLetter(ctx context.Context, m *Message, reason string) error {
	p, err := s.letterWriter(ctx)
	if err != nil {
		return err
	}
	r := Record{Key: m.Key, Value: m.Value, Timestamp: m.Timestamp, Headers: make([]Header, 0, len(m.Headers)+7)}
	r.Headers = append(r.Headers, m.Headers...)
	r.Headers = append(r.Headers,
		Text(wire.HeaderTopic, m.Topic), Text(wire.HeaderPart, strconv.Itoa(int(m.Partition))),
		Text(wire.HeaderOffset, strconv.FormatInt(m.Offset, 10)), Text(wire.HeaderDeliveries, strconv.Itoa(int(m.Deliveries))),
		Text(wire.HeaderGroup, s.group), Text(wire.HeaderReason, brief(reason, maxReason)),
		Text(wire.HeaderTime, m.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z07:00")))
	_, err = p.Publish(ctx, r)
	return err
}

// maxReason bounds the text in a dead letter. All of its headers have to fit into record.AddedBytes.
const maxReason = 2048

// ofLetters makes a Producer of dead letters.
func ofLetters(c *producerConfig) error { c.limits = letterLimits; return nil }

// letterWriter returns the Producer for dead letters. Only one goroutine a tenure asks.
func (s *Subscription) letterWriter(ctx context.Context) (*Producer, error) {
	s.mu.Lock()
	p := s.letters
	s.mu.Unlock()
	if p != nil {
		return p, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	topic := s.deadLetterTopic()
	p, err := s.c.NewProducer(ctx, topic, GiveUp(letterGiveUp), Buffer(minBufferBytes, DefaultBufferRecords), ofLetters)
	if errors.Is(err, ErrTopicNotFound) {
		if _, err = s.c.CreateTopic(ctx, TopicSpec{Name: topic, Partitions: 1}); err == nil || errors.Is(err, ErrTopicExists) {
			p, err = s.c.NewProducer(ctx, topic, GiveUp(letterGiveUp), Buffer(minBufferBytes, DefaultBufferRecords), ofLetters)
		}
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	other := s.letters
	if other == nil {
		s.letters = p
	}
	s.mu.Unlock()
	if other != nil {
		return other, p.Close(ctx)
	}
	return p, nil
}

// letterGiveUp is how long one try to write a dead letter takes; others follow.
const letterGiveUp = 10 * time.Second
