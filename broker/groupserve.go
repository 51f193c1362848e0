package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"sync"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/group"
)

func (c *groupCall) join() error {
	var q wire.GroupJoinRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	o, err := c.options(q.Group, &q.Options)
	if err != nil {
		return err
	}
	if err := checkMember(q.Member); err != nil {
		return err
	}
	for _, text := range []string{q.Name, q.Host, q.Version} {
		if len(text) > wire.MaxMemberText {
			return badRequest("a member's name, host or version has %d bytes, at most %d are allowed", len(text), wire.MaxMemberText)
		}
	}
	a, err := c.part.JoinGroup(c.ctx, group.Join{
		Group: q.Group, Member: group.Member{ID: q.Member, Name: q.Name, Host: q.Host, Version: q.Version},
		Generation: q.Generation, Partitions: int32(len(c.topic.parts)), Options: o,
	})
	if err != nil {
		return err
	}
	return c.answer(c.assignment(q.Group, &a))
}

func (c *groupCall) sync() error {
	var q wire.GroupSyncRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if err := errors.Join(api.CheckGroupName(q.Group), nilable(checkMember(q.Member))); err != nil {
		return err
	}
	a, err := c.part.SyncGroup(c.ctx, group.Sync{
		Group: q.Group, Member: q.Member, Generation: q.Generation, Partitions: int32(len(c.topic.parts)), WaitMS: max(q.WaitMS, 0),
	})
	if err != nil {
		return err
	}
	return c.answer(c.assignment(q.Group, &a))
}

// nilable keeps a nil *wire.Error from becoming an error that isn't nil.
func nilable(e *wire.Error) error {
	if e == nil {
		return nil
	}
	return e
}

func (c *groupCall) leave() error {
	var q wire.GroupLeaveRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if err := errors.Join(api.CheckGroupName(q.Group), nilable(checkMember(q.Member))); err != nil {
		return err
	}
	a, err := c.part.LeaveGroup(c.ctx, group.Leave{Group: q.Group, Member: q.Member})
	if err != nil {
		return err
	}
	return c.answer(c.assignment(q.Group, &a))
}

func (c *groupCall) lease() error {
	var q wire.GroupLeaseRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	o, err := c.options(q.Group, &q.Options)
	if err != nil {
		return err
	}
	if err := checkMember(q.Member); err != nil {
		return err
	}
	l, err := c.part.LeaseGroup(c.ctx, group.LeaseRequest{
		Group: q.Group, Member: q.Member, Generation: q.Generation, Token: q.Token,
		WaitMS: min(max(q.WaitMS, 0), wire.MaxFetchWaitMS), Options: o, Stuck: stuckOf(q.Stuck),
	})
	res := wire.GroupLeased{Token: l.Token, Next: l.Next, HeldMS: l.HeldMS, Wanted: l.Wanted, Generation: l.Generation}
	if err != nil {
		// Beside an error there may be something to know: how long the lease is held,
		// which generation is newer.
		if l == (group.Lease{}) {
			return err
		}
		res.Error = groupError(err)
		c.b.metrics.groupFailed(res.Error.Reason)
	}
	return c.answer(res)
}

func (c *groupCall) commit() error {
	var q wire.GroupCommitRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if err := errors.Join(api.CheckGroupName(q.Group), nilable(checkMember(q.Member))); err != nil {
		return err
	}
	if q.Offset < -1 {
		return badRequest("offset %d: allowed are 0 and more, or -1 for none", q.Offset)
	}
	done, err := c.part.CommitGroup(c.ctx, group.Commit{Group: q.Group, Member: q.Member, Token: q.Token, Offset: q.Offset, Release: q.Release, Stuck: stuckOf(q.Stuck)})
	if err != nil {
		return err
	}
	return c.answer(wire.GroupCommitted{Committed: done.Offset, Wanted: done.Wanted})
}

func (c *groupCall) ack() error {
	var q wire.GroupAckRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if err := errors.Join(api.CheckGroupName(q.Group), nilable(checkMember(q.Member))); err != nil {
		return err
	}
	if len(q.Items) > wire.MaxAckItems {
		return badRequest("%d items, at most %d are allowed", len(q.Items), wire.MaxAckItems)
	}
	items := make([]group.AckItem, len(q.Items))
	for i := range q.Items {
		w := &q.Items[i]
		kind, ok := ackKinds[w.Kind]
		if !ok {
			return badRequest("item %d is %q, allowed are ack, nak, progress, term and return", i, clip([]byte(w.Kind)))
		}
		items[i] = group.AckItem{Kind: kind, First: w.First, Last: w.Last, Token: w.Token, DelayMS: w.DelayMS, Reason: w.Reason}
		if w.Kind == wire.AckNak && w.DelayMS == 0 {
			items[i].DelayMS = -1
		}
	}
	take := c.part.AckGroup
	if q.Gather {
		take = c.part.AckGroupSoon
	}
	refused, err := take(c.ctx, q.Group, q.Member, items)
	if err != nil {
		return err
	}
	var res wire.GroupAcked
	for _, r := range refused {
		res.Refused = append(res.Refused, wire.GroupRefusal{Item: r.Item, Reason: r.Reason, Description: r.Description})
	}
	return c.answer(res)
}

func (c *groupCall) state() error {
	var q wire.GroupStateRequest
	if len(c.body) > 0 {
		if err := c.decode(&q); err != nil {
			return err
		}
	}
	states, err := c.part.GroupStates(q.Group)
	if err != nil {
		return err
	}
	return c.answer(wire.GroupStates{Groups: wireStates(c.topic.name, c.number, states)})
}

func wireStates(topic string, number int32, states []group.Status) []wire.GroupPartitionState {
	out := make([]wire.GroupPartitionState, len(states))
	for i := range states {
		out[i] = wireStatus(topic, number, &states[i])
	}
	return out
}

func (c *groupCall) set() error {
	var q wire.GroupSetRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	states, err := c.b.setGroup(c.ctx, c.topic.name, c.number, c.part, &q)
	if err != nil {
		return err
	}
	return c.answer(wire.GroupStates{Groups: states})
}

// Pull's answer is put together in one buffer: room for the head, then batches.
const (
	pullHead = 16 << 10
	pullSize = pullHead + fetchSize
)

type pullBuffer struct {
	b []byte
	m interest.Message
}

var pullBuffers = sync.Pool{New: func() any { return &pullBuffer{b: make([]byte, 0, pullSize)} }}

func (f *pullBuffer) put() {
	f.m = interest.Message{}
	pullBuffers.Put(f)
}

func (c *groupCall) pull() error {
	var q wire.GroupPullRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	o, err := c.options(q.Group, &q.Options)
	if err != nil {
		return err
	}
	if err := checkMember(q.Member); err != nil {
		return err
	}
	if q.MaxMessages < 0 || q.MaxMessages > wire.MaxPullMessages {
		return badRequest("max_messages %d: allowed are 1 to %d", q.MaxMessages, wire.MaxPullMessages)
	}
	if q.MaxBytes <= 0 || q.MaxBytes > wire.MaxFetch {
		q.MaxBytes = wire.MaxFetch
	}
	who := puller{c.part, q.Group, q.Member}
	if q.Stop {
		c.b.groups.waits.stop(who)
		return c.answerPull(nil)
	}
	// Whoever waits holds no buffer, and counts only while what came is read and sent.
	ctx, done := c.ctx, func() {}
	if q.WaitMS = min(q.WaitMS, wire.MaxFetchWaitMS); q.WaitMS > 0 {
		ctx, done = c.b.groups.waits.begin(c.ctx, who)
	}
	defer done()
	var f *pullBuffer
	defer func() {
		if f != nil {
			f.put()
			<-c.b.fetchRoom
		}
	}()
	r := group.Pull{Group: q.Group, Member: q.Member, MaxMessages: q.MaxMessages, MaxBytes: q.MaxBytes, WaitMS: q.WaitMS, Options: o}
	p, b, err := c.part.PullGroupInto(ctx, r, func(ctx context.Context) ([]byte, error) {
		select {
		case c.b.fetchRoom <- struct{}{}:
			f = pullBuffers.Get().(*pullBuffer)
			return f.b[:pullHead], nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	if err != nil && (ctx.Err() == nil || c.ctx.Err() != nil) {
		return err
	}
	if err != nil || len(p.Deliveries) == 0 {
		return c.answerPull(nil) // the member takes no more, or there is nothing
	}
	f.m.Subject, f.m.Payload = c.reply, framePulled(b, p.Deliveries)
	c.b.router.Route(&f.m, nil)
	c.b.metrics.pulled(p.Deliveries, len(b)-pullHead)
	return nil
}

// answerPull answers without records.
func (c *groupCall) answerPull(d []group.Delivery) error {
	head := appendPulled(make([]byte, 4, 4+64), d)
	binary.BigEndian.PutUint32(head, uint32(len(head)-4))
	c.b.router.Route(&interest.Message{Subject: c.reply, Payload: head}, nil)
	c.b.metrics.pulled(d, 0)
	return nil
}

// framePulled puts the head right before the batches, which begin at b[pullHead].
func framePulled(b []byte, d []group.Delivery) []byte {
	const most = 96 // of one delivery, and more than the head has else
	if most*(len(d)+1) <= pullHead {
		head := appendPulled(b[:0], d) // its room is larger than it: moved to the end of it
		at := pullHead - len(head)
		copy(b[at:pullHead], head)
		binary.BigEndian.PutUint32(b[at-4:], uint32(len(head)))
		return b[at-4:]
	}
	out := make([]byte, 4, 4+most*(len(d)+1)+len(b)-pullHead)
	out = appendPulled(out, d)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return append(out, b[pullHead:]...)
}

// appendPulled writes a wire.GroupPulled.
func appendPulled(b []byte, d []group.Delivery) []byte {
	b = append(b, `{"deliveries":[`...)
	for i := range d {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"f":`...), d[i].First, 10)
		b = strconv.AppendInt(append(b, `,"l":`...), d[i].Last, 10)
		b = strconv.AppendInt(append(b, `,"n":`...), int64(d[i].Deliveries), 10)
		b = strconv.AppendUint(append(b, `,"t":`...), d[i].Token, 10)
		b = append(b, '}')
	}
	return append(b, `]}`...)
}

// setGroup resets or deletes a group on a partition that this broker leads.
func (b *Broker) setGroup(ctx context.Context, topic string, number int32, p *partition.Partition, q *wire.GroupSetRequest) ([]wire.GroupPartitionState, error) {
	if err := api.CheckGroupName(q.Group); err != nil {
		return nil, err
	}
	set := group.Set{Group: q.Group, Delete: q.Delete}
	if !q.Delete {
		if q.To == "" {
			return nil, badRequest("a reset needs a position: earliest, latest, an offset, a time or -1h")
		}
		to, werr := parsePosition(q.To, b.c.Clock())
		if werr != nil {
			return nil, werr
		}
		set.To = to
	}
	if err := p.SetGroup(ctx, set); err != nil {
		return nil, err
	}
	states, err := p.GroupStates(q.Group)
	if err != nil {
		return nil, err
	}
	return wireStates(topic, number, states), nil
}
