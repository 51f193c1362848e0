package broker

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/parleymq/parley/broker/api"
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

// runtime is what the API needs to know of this broker.
type runtime struct{ b *Broker }

var _ api.Runtime = runtime{}

func (r runtime) slot(topic uint64, number int32) *slot {
	t := r.b.routes.Load().byID[topic]
	if t == nil || int(number) >= len(t.parts) {
		return nil
	}
	return t.parts[number]
}

// Partition implements api.Runtime.
func (r runtime) Partition(topic uint64, number int32) api.PartitionStatus {
	s := r.slot(topic, number)
	if s == nil {
		return api.PartitionStatus{Problem: "this broker has not carried out the newest epoch yet"}
	}
	st := api.PartitionStatus{Problem: s.problemText()}
	p := s.partition.Load()
	if p == nil {
		return st
	}
	ps := p.Status()
	st.Term, st.Start, st.Next, st.Bytes, st.Problem = ps.Term, ps.Start, ps.Next, ps.Bytes, ps.Damage
	if ps.Leading {
		st.Leader = r.b.id.BrokerID
		st.InSync = []uint64{r.b.id.BrokerID}
	}
	return st
}

// OffsetAt implements api.Runtime.
func (r runtime) OffsetAt(_ context.Context, topic uint64, number int32, timeMS int64) (int64, error) {
	s := r.slot(topic, number)
	if s == nil {
		return 0, notHere("", number, "the epoch is being carried out")
	}
	p := s.partition.Load()
	if p == nil {
		return 0, s.refusal()
	}
	off, err := p.OffsetAt(timeMS)
	if err != nil {
		e := wireError(err)
		e.Outcome = ""
		return 0, e
	}
	return off, nil
}

// Carried implements api.Runtime: it waits until the partitions lead as well,
// so that a topic can be published to when its creation is reported.
func (r runtime) Carried(ctx context.Context, n uint64) {
	if !r.b.carrier.wait(ctx, n) {
		return
	}
	led := map[*slot]bool{}
	look := time.NewTicker(readyLook / 4)
	defer look.Stop()
	for r.b.notReady(led) != "" {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// Problems implements api.Runtime.
func (r runtime) Problems() []string {
	var out []string
	if r.b.space.Full() {
		out = append(out, "free disk space is below the floor: publishes are refused")
	}
	if why := r.b.NotReady(); why != "" {
		out = append(out, "broker "+r.b.c.Name+": "+why)
	}
	return out
}
