package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// Redrive publishes dead letters back to where they came from. How far it got is the
// cursor of a group of its own on the dead-letter topic, so it goes on after whatever
// stopped it; each record goes back under a message id made of the letter's place,
// so what was published and not committed isn't there twice when it is repeated
// within the window of message ids. Two redrives at a time share the partitions
// as two members of any group do.

const (
	redriveTime  = 8 * time.Second // of one request, so that it is answered in time
	redriveLease = 3 * time.Second // for which another redrive's lease is waited for
	redriveTidy  = 2 * time.Second // for giving back what it has, also when its own time is over
	redriveBytes = 256 << 10
)

// redriveGroup is the group on the dead-letter topic that remembers how far a redrive got.
func redriveGroup(topic, group, letters string) string {
	if letters == deadLetterTopic(topic, group, "") {
		return "parley-redrive"
	}
	// A dead-letter topic that is shared: each group has its own letters in it.
	h := fnv.New64a()
	_, _ = h.Write([]byte(topic + "/" + group))
	return fmt.Sprintf("parley-redrive-%016x", h.Sum64())
}

// redrive is one request under way.
type redrive struct {
	b            *Broker
	topic, group string
	letters      *topic // the dead-letter topic
	name, member string // of the group on it, and of this redrive in it
	anchor       int32
	left         int
	res          wire.GroupRedriven
	deadline     time.Time
	options      wire.GroupOptions
	generation   uint64
	iterator     record.Iterator
}

// Redrive implements api.Groups.
func (r runtime) Redrive(ctx context.Context, q wire.GroupRedriveRequest) (wire.GroupRedriven, error) {
	b := r.b
	letters, err := r.lettersOf(ctx, q.Topic, q.Group)
	if err != nil || letters == nil {
		return wire.GroupRedriven{}, err
	}
	name := redriveGroup(q.Topic, q.Group, letters.name)
	d := redrive{
		b: b, topic: q.Topic, group: q.Group, letters: letters, name: name, left: q.Limit, deadline: time.Now().Add(redriveTime),
		member: "redrive-" + b.c.Name + "-" + strconv.FormatInt(b.c.Clock().UnixNano(), 36) + "-" + strconv.FormatUint(b.groups.hops.Add(1), 36),
		anchor: record.PartitionOf([]byte(name), letters.anchors),
	}
	err = d.run(ctx)
	if err != nil && d.res.Redriven > 0 {
		// What was done is worth telling, and the request is repeated anyway.
		b.c.Logger.Warn().Err(err).Str("topic", q.Topic).Str("group", q.Group).Msg("redrive stopped half way")
		d.res.More = true
		err = nil
	}
	if err != nil {
		return wire.GroupRedriven{}, groupError(err)
	}
	return d.res, nil
}

// lettersOf finds the dead-letter topic of a group; nil: it has none yet.
func (r runtime) lettersOf(ctx context.Context, topic, group string) (*topic, error) {
	b := r.b
	t := b.routes.Load().byName[topic]
	if t == nil {
		return nil, &wire.Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: fmt.Sprintf("there is no topic %q", topic)}
	}
	// The group says where its dead letters are. One that was deleted had the default.
	d, err := b.api.GroupDescribe(ctx, wire.GroupRequest{Topic: topic, Group: group})
	var w *wire.Error
	if err != nil && !(errors.As(err, &w) && w.Reason == wire.ReasonGroupNotFound) {
		return nil, err
	}
	letters := b.routes.Load().byName[deadLetterTopic(topic, group, d.Options.DeadLetter)]
	if letters == nil && err != nil {
		return nil, err
	}
	return letters, nil
}

func (d *redrive) subject(prefix string, number int32) string {
	return prefix + d.letters.name + "." + strconv.Itoa(int(number))
}

func (d *redrive) run(ctx context.Context) error {
	ctx, cancel := context.WithDeadline(ctx, d.deadline.Add(time.Second))
	defer cancel()
	var a wire.GroupAssignment
	err := d.b.loop.ask(ctx, d.subject(wire.GroupJoin, d.anchor), wire.GroupJoinRequest{
		Group: d.name, Member: d.member, Name: "redrive of " + d.topic + "/" + d.group, Host: d.b.c.Name, Version: Version,
		Options: wire.GroupOptions{Mode: wire.ModeExclusive},
	}, &a)
	if err != nil {
		return fmt.Errorf("join group %s of %s: %w", d.name, d.letters.name, err)
	}
	d.options, d.generation = a.Options, a.Generation
	defer d.leave(ctx)
	if len(a.Partitions) == 0 {
		return &wire.Error{Code: 409, Reason: wire.ReasonBusy, Retriable: true,
			Description: "another redrive of the group is under way: wait for it"}
	}
	for _, number := range a.Partitions {
		if err := d.partition(ctx, number); err != nil {
			return fmt.Errorf("dead letters in %s/%d: %w", d.letters.name, number, err)
		}
	}
	return nil
}

func (d *redrive) leave(ctx context.Context) {
	// Where it fails the member's session runs out, and no other redrive gets anything before.
	ctx, cancel := tidying(ctx)
	defer cancel()
	if err := d.b.loop.ask(ctx, d.subject(wire.GroupLeave, d.anchor), wire.GroupLeaveRequest{Group: d.name, Member: d.member}, nil); err != nil {
		d.b.c.Logger.Debug().Err(err).Str("group", d.name).Msg("redrive could not leave its group")
	}
}

// tidying is for what must be told whoever asked has gone meanwhile: leases and places that nobody gives back keep
// the next redrive waiting for a session.
func tidying(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), redriveTidy)
}

// partition redrives the letters of one partition.
func (d *redrive) partition(ctx context.Context, number int32) (failure error) {
	var l wire.GroupLeased
	err := d.b.loop.ask(ctx, d.subject(wire.GroupLease, number), wire.GroupLeaseRequest{
		Group: d.name, Member: d.member, Generation: d.generation, WaitMS: redriveLease.Milliseconds(), Options: d.options,
	}, &l)
	if err != nil {
		return err
	}
	at, committed := l.Next, l.Next
	defer func() {
		ctx, cancel := tidying(ctx)
		defer cancel()
		err := d.b.loop.ask(ctx, d.subject(wire.GroupCommit, number), wire.GroupCommitRequest{
			Group: d.name, Member: d.member, Token: l.Token, Offset: at, Release: true,
		}, nil)
		failure = errors.Join(failure, err)
	}()
	for {
		batches, next, err := d.fetch(ctx, number, &at)
		if err != nil {
			return err
		}
		for len(batches) > 0 {
			batch, rest, err := record.Split(batches)
			if err != nil {
				return err
			}
			batches = rest
			if err := d.iterator.Reset(batch, record.Limits{}); err != nil {
				return err
			}
			for d.iterator.Next() {
				r := d.iterator.Record()
				if r.Offset < at {
					continue
				}
				if d.left == 0 || !time.Now().Before(d.deadline) {
					d.res.More = true
					return nil
				}
				if err := d.record(ctx, number, r); err != nil {
					return err
				}
				at = r.Offset + 1
			}
			if err := d.iterator.Err(); err != nil {
				return err
			}
		}
		if at >= next {
			return nil
		}
		if at > committed { // renews the lease, too
			err := d.b.loop.ask(ctx, d.subject(wire.GroupCommit, number), wire.GroupCommitRequest{
				Group: d.name, Member: d.member, Token: l.Token, Offset: at,
			}, nil)
			if err != nil {
				return err
			}
			committed = at
		}
	}
}

// fetch reads letters from at on, which goes forward where retention has taken some.
func (d *redrive) fetch(ctx context.Context, number int32, at *int64) (batches []byte, next int64, err error) {
	for try := 0; ; try++ {
		body, err := json.Marshal(wire.FetchRequest{Offset: *at, MaxBytes: redriveBytes})
		if err != nil {
			return nil, 0, fmt.Errorf("encode fetch: %w", err)
		}
		a, err := d.b.loop.call(ctx, d.subject(wire.FetchPrefix, number), body)
		var w *wire.Error
		if errors.As(err, &w) && w.Reason == wire.ReasonOffsetOutOfRange && try == 0 {
			if start, ok := number64(headerValue(a.header, wire.HeaderStart)); ok && start > *at {
				*at = start
				continue
			}
		}
		if err != nil {
			return nil, 0, err
		}
		next, ok := number64(headerValue(a.header, wire.HeaderNext))
		if !ok {
			return nil, 0, errBadMessage
		}
		return a.payload, next, nil
	}
}

// record publishes one letter back.
func (d *redrive) record(ctx context.Context, number int32, r *record.Record) error {
	from, topic, group := -1, "", ""
	for i := range r.Headers {
		h := &r.Headers[i]
		switch {
		case foldEqual(h.Key, wire.HeaderTopic):
			topic = string(h.Value)
		case foldEqual(h.Key, wire.HeaderGroup):
			group = string(h.Value)
		case foldEqual(h.Key, wire.HeaderPart):
			if n, err := strconv.Atoi(string(h.Value)); err == nil {
				from = n
			}
		}
	}
	if topic != d.topic || group != d.group {
		return nil // another group's, or no dead letter at all
	}
	t := d.b.routes.Load().byName[d.topic]
	if t == nil {
		return &wire.Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: "topic " + d.topic + " was deleted"}
	}
	parts := int32(len(t.parts))
	to := int32(0)
	switch {
	case r.Key != nil:
		to = record.PartitionOf(r.Key, parts)
	case from >= 0 && from < int(parts):
		to = int32(from)
	}
	back := record.Record{Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
	id := fmt.Sprintf("redrive/%s/%d/%d", d.letters.name, number, r.Offset)
	back.Headers = append(back.Headers, record.Header{Key: []byte(wire.HeaderMsgID), Value: []byte(id)})
	letter := fmt.Appendf(nil, "%s/%s/%d/", d.group, d.topic, from)
	for _, h := range r.Headers {
		switch {
		case isLetterHeader(h.Key):
		case !foldEqual(h.Key, wire.HeaderMsgID):
			back.Headers = append(back.Headers, h)
		case !bytes.HasPrefix(h.Value, letter) && !hasHeader(r.Headers, wire.HeaderOriginalID):
			// A member of an exclusive group left the record's own id where it was.
			back.Headers = append(back.Headers, record.Header{Key: []byte(wire.HeaderOriginalID), Value: h.Value})
		}
	}
	if err := d.b.publishRecord(ctx, t.name, to, &back); err != nil {
		return fmt.Errorf("publish dead letter %d back to %s/%d: %w", r.Offset, t.name, to, err)
	}
	d.res.Redriven++
	d.left--
	return nil
}
