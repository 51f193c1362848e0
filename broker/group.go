package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
)

// groupOp is one kind of request to $PARLEY.GROUP.<op>.<topic>.<partition>.
type groupOp struct {
	prefix string
	// long: it may wait for something to happen, as long polls do, and counts as one.
	long  bool
	serve func(c *groupCall) error
}

// groupCall is a request that has arrived at the partition's leader.
type groupCall struct {
	b      *Broker
	ctx    context.Context
	topic  *topic
	number int32
	part   *partition.Partition
	body   []byte
	reply  []byte
}

var groupOps = [...]*groupOp{
	{prefix: wire.GroupPull, long: true, serve: (*groupCall).pull},
	{prefix: wire.GroupAck, serve: (*groupCall).ack},
	{prefix: wire.GroupCommit, serve: (*groupCall).commit},
	{prefix: wire.GroupSync, long: true, serve: (*groupCall).sync},
	{prefix: wire.GroupLease, long: true, serve: (*groupCall).lease},
	{prefix: wire.GroupJoin, serve: (*groupCall).join},
	{prefix: wire.GroupLeave, serve: (*groupCall).leave},
	{prefix: wire.GroupState, serve: (*groupCall).state},
	{prefix: wire.GroupSet, serve: (*groupCall).set},
}

func groupOpOf(subject []byte) *groupOp {
	for _, op := range groupOps {
		if hasPrefix(subject, op.prefix) {
			return op
		}
	}
	return nil
}

// group takes a request about a consumer group on one partition.
func (s *session) group(m *interest.Message) {
	if len(m.Reply) == 0 {
		return // a change that nobody can be told about is not made
	}
	op := groupOpOf(m.Subject)
	if op == nil {
		s.b.refuseGroup(kindOfRequest(m.Subject), m.Reply, badRequest("there is no request %q", clip(m.Subject)))
		return
	}
	t, number, werr := s.target(m.Subject[len(op.prefix):])
	if werr != nil {
		s.b.refuseGroup(kindOfRequest(m.Subject), m.Reply, werr)
		return
	}
	s.groupFrom(t, number, m)
}

// groupFrom serves the request, or hands it to the partition's leader. It is
// served from a goroutine of its own, since it commits to the log or waits.
func (s *session) groupFrom(t *topic, number int32, m *interest.Message) {
	op := groupOpOf(m.Subject)
	if op == nil { // of a broker that knows more
		s.b.refuseGroup(kindOfRequest(m.Subject), m.Reply, badRequest("there is no request %q; this broker's version is %s", clip(m.Subject), Version))
		return
	}
	p, to := s.b.leader(t.parts[number], s.hop)
	if to != 0 && s.b.forwards.send(to, t.name, number, m) == nil {
		return
	}
	leave, werr := s.admitGroup(op.long)
	if werr != nil {
		s.b.refuseGroup(kindOfRequest(m.Subject), m.Reply, werr)
		return
	}
	kept := interest.Message{Subject: bytes.Clone(m.Subject), Reply: bytes.Clone(m.Reply), Payload: bytes.Clone(m.Payload)}
	s.wg.Go(func() {
		defer leave()
		s.b.serveGroup(s.ctx, t, number, p, op, &kept, s.hop)
	})
}

// admitGroup counts a request in, and returns what counts it out.
func (s *session) admitGroup(long bool) (leave func(), _ *wire.Error) {
	if long {
		if werr := s.admitFetch(); werr != nil {
			return nil, werr
		}
		return s.leaveFetch, nil
	}
	lim := s.b.c.Limits.GroupRequests
	if n := s.b.groups.requests.Add(1); int(n) > lim {
		s.b.groups.requests.Add(-1)
		return nil, busy("the broker has %d requests of group members under way, at most %d are allowed", n-1, lim)
	}
	return func() { s.b.groups.requests.Add(-1) }, nil
}

func (b *Broker) serveGroup(ctx context.Context, t *topic, number int32, p *partition.Partition, op *groupOp, m *interest.Message, hop bool) {
	refuse := func(e *wire.Error) {
		if ctx.Err() == nil {
			b.refuseGroup(kindOfRequest(m.Subject), m.Reply, b.gone(t, e))
		}
	}
	for try := 1; ; try++ {
		if p == nil {
			// Nobody leads, or the leader can't be reached: that is waited for.
			var done bool
			var werr *wire.Error
			if p, done, werr = b.reach(ctx, t, number, m, passage{hop: hop}); werr != nil {
				refuse(werr)
			}
			if werr != nil || done {
				return
			}
		}
		c := groupCall{b: b, ctx: ctx, topic: t, number: number, part: p, body: m.Payload, reply: m.Reply}
		err := op.serve(&c)
		// Leadership may move while a request is on its way. One that has waited is its
		// sender's to repeat.
		if err == nil || op.long || try == appendTries || !errors.Is(err, partition.ErrNotLeader) {
			if err != nil {
				refuse(groupError(err))
			}
			return
		}
		p = nil
	}
}

// gone replaces what a member is told of a partition that isn't served by the
// reason for it, when that is that the topic was deleted: it need not try again.
func (b *Broker) gone(t *topic, e *wire.Error) *wire.Error {
	if r := b.routes.Load(); r.byID[t.id] != nil || e.Reason != wire.ReasonNotLeader && e.Reason != wire.ReasonUnavailable {
		return e
	}
	return &wire.Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: "topic " + t.name + " was deleted"}
}

// groupError is wireError for requests of groups: an outcome is told only where it
// isn't known.
func groupError(err error) *wire.Error {
	e := *wireError(err)
	if e.Outcome == wire.OutcomeRejected {
		e.Outcome = ""
	}
	return &e
}

// refuseGroup answers a request about a group that failed. The answer to a pull is no
// JSON else, so its header says that this one is.
func (b *Broker) refuseGroup(kind requestKind, reply []byte, e *wire.Error) {
	b.metrics.groupFailed(e.Reason)
	if len(reply) == 0 {
		return
	}
	m := interest.Message{Subject: reply, Payload: appendError(nil, e)}
	if kind == aPull {
		m.Header = errorHeader(e)
	}
	b.router.Route(&m, nil)
}

func errorHeader(e *wire.Error) []byte {
	return []byte("NATS/1.0\r\n" + wire.HeaderError + ": " + e.Reason + "\r\n\r\n")
}

// decode reads the request's body.
func (c *groupCall) decode(q any) error {
	if len(c.body) == 0 {
		return badRequest("the request has no body, wanted is a JSON object")
	}
	if err := json.Unmarshal(c.body, q); err != nil {
		return badRequest("the request is not the JSON object that is expected: %v", err)
	}
	return nil
}

// answer sends JSON.
func (c *groupCall) answer(res any) error {
	body, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.b.answer(c.reply, body)
	return nil
}
