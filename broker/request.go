package broker

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// requestTime bounds one API request.
const requestTime = 10 * time.Second

// request takes what is sent to $PARLEY.
func (s *session) request(m *interest.Message) {
	subject := m.Subject
	switch {
	case hasPrefix(subject, wire.PubPrefix):
		if err := s.publishBatch(m, subject[len(wire.PubPrefix):]); err != nil {
			s.b.acks.refuse(m.Reply, err)
		}
	case hasPrefix(subject, wire.FetchPrefix):
		s.fetch(m, subject[len(wire.FetchPrefix):])
	case hasPrefix(subject, wire.GroupPrefix):
		s.group(m)
	case hasPrefix(subject, wire.AckPrefix):
		s.ack(m)
	case hasPrefix(subject, wire.NextPrefix):
		s.next(m, subject[len(wire.NextPrefix):])
	case len(m.Reply) == 0:
		// A change that nobody can be told about is not made.
	case hasPrefix(subject, wire.APIPrefix):
		s.b.serveRequest(m)
	default:
		s.b.answer(m.Reply, appendError(nil, badRequest("there is no request %q", clip(subject))))
	}
}

func hasPrefix(b []byte, prefix string) bool {
	return len(b) > len(prefix) && string(b[:len(prefix)]) == prefix
}

// serveRequest answers from a goroutine of its own: a change waits for an fsync
// and for what follows it. The connection may end meanwhile, the change goes on.
func (b *Broker) serveRequest(m *interest.Message) {
	select {
	case b.requestRoom <- struct{}{}:
	default:
		b.answer(m.Reply, appendError(nil, busy("the broker has %d requests under way, try again", cap(b.requestRoom))))
		return
	}
	subject, reply, payload := string(m.Subject), bytes.Clone(m.Reply), bytes.Clone(m.Payload)
	b.wg.Go(func() {
		defer func() { <-b.requestRoom }()
		ctx, cancel := context.WithTimeout(b.ctx, requestTime)
		defer cancel()
		start := time.Now()
		b.answer(reply, b.api.Handle(ctx, subject, payload))
		b.metrics.requestLatency.Observe(time.Since(start).Seconds())
	})
}

func (b *Broker) answer(subject, body []byte) {
	b.router.Route(&interest.Message{Subject: subject, Payload: body}, nil)
}

// autoCreate makes a topic for a publish that nothing binds, where the broker
// is told to: the whole subject becomes the topic's name. Only a publish that
// asks for an answer counts, and only while nobody is subscribed to its
// subject: other messages are between live clients and none of a topic's
// business.
func (s *session) autoCreate(m *interest.Message) *topic {
	b := s.b
	if !b.c.AutoCreateTopics || len(m.Reply) == 0 || b.router.HasInterest(m.Subject) {
		return nil
	}
	name := string(m.Subject)
	if config.CheckTopicName(name) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, requestTime)
	defer cancel()
	if _, err := b.api.TopicCreate(ctx, wire.TopicSpec{Name: name}); err != nil {
		if !errors.Is(err, epoch.ErrUnchanged) {
			b.c.Logger.Warn().Err(err).Str("topic", name).Msg("topic could not be created for a publish")
		}
		return nil
	}
	return s.lookup(m.Subject)
}
