package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// Messages is a member of a group whose messages are taken one by one: see Client.Messages.
type Messages struct {
	*Subscription
	last *Message // AutoAck
}

// Messages joins a group as Subscribe does; its messages are taken with Next and settled by their Ack, Nak or Term, in any order and by any
// goroutine. In an exclusive group the position that is committed is below the first message that isn't settled. Messages of one partition come in
// order, but nobody waits for one to be settled before the next is handed out.
func (c *Client) Messages(ctx context.Context, topic, group string, opts ...SubscribeOption) (*Messages, error) {
	s, err := c.subscribe(ctx, topic, group, opts, nil)
	if err != nil {
		return nil, err
	}
	return &Messages{Subscription: s}, nil
}

// Next returns the next message. It waits for one until ctx ends. After Close it fails with ErrClosed, after a failure with Err's
// error. It may be called by several goroutines, unless AutoAck is set.
func (m *Messages) Next(ctx context.Context) (*Message, error) {
	one, err := m.NextBatch(ctx, 1)
	if err != nil {
		return nil, err
	}
	return one[0], nil
}

// NextBatch returns the next messages of one partition, at least one and at most limit, without waiting for more than one.
func (m *Messages) NextBatch(ctx context.Context, limit int) ([]*Message, error) {
	if m.last != nil {
		_ = m.last.Ack() // or the caller has settled it
		m.last = nil
	}
	if limit < 1 {
		return nil, fmt.Errorf("next batch of %d messages: must be 1 or more", limit)
	}
	s := m.Subscription
	for {
		select {
		case <-s.closing:
			if err := s.Err(); err != nil {
				return nil, err
			}
			return nil, ErrClosed
		default:
		}
		t, _, run := s.crew.take(nil, limit)
		if t != nil {
			if !t.assured(ctx) {
				s.crew.putBack(t, nil, run)
				return nil, ctx.Err()
			}
			now := time.Now()
			run = slices.DeleteFunc(run, func(m *Message) bool { return !t.mayBegin(m, now) })
			if len(run) > 0 {
				if s.cfg.autoAck && len(run) == 1 {
					m.last = run[0]
				}
				return run, nil
			}
			continue
		}
		if err := s.crew.wait(ctx, s.closing); err != nil && !errors.Is(err, ErrClosed) {
			return nil, err
		}
	}
}

// All iterates over the messages, for range. It ends after an error, ctx's among them, and without one when the subscription was closed.
func (m *Messages) All(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			msg, err := m.Next(ctx)
			if errors.Is(err, ErrClosed) {
				return
			}
			if !yield(msg, err) || err != nil {
				return
			}
		}
	}
}
