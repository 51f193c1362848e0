package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

func benchGroupFlags(cmd *cobra.Command, f *benchFlags) {
	flags := cmd.Flags()
	flags.StringVar(&f.group, "group", "", "as members of this group, which should be a new one: `name`; a record counts when it is handled, and the last commit or ack with it")
	flags.BoolVar(&f.shared, "shared", false, "with --group: a shared group, each record acked")
	flags.BoolVar(&f.keyOrdered, "key-ordered", false, "with --shared: the records of a key in order")
}

func (f *benchFlags) groupMode() client.SubscribeOption {
	switch {
	case f.keyOrdered:
		return client.Mode(client.KeyOrdered)
	case f.shared:
		return client.Mode(client.Shared)
	}
	return client.Mode(client.Exclusive)
}

// groupIdle is how long a measurement waits for more records.
const groupIdle = 5 * time.Second

// groupLoad measures how fast a group handles what is in a topic: --records of all members together. The
// time begins with the first record and ends when everything is committed or acked.
func (a *app) groupLoad(ctx context.Context, f *benchFlags, topic string) (benchResult, error) {
	m := &meter{total: f.records, stop: make(chan struct{}), timed: make(chan struct{})}
	end := a.watch(f.progress, m.status)
	defer end()
	go m.clock(ctx, &benchFlags{duration: f.duration})
	err := m.eachClient(f.clients, func(int) error {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer closeClient(c)
		s, err := c.Subscribe(ctx, topic, f.group, func(_ context.Context, msg *client.Message) error {
			if !m.measure.Load() {
				m.begun()
			}
			m.count(1, int64(len(msg.Value)))
			if m.total > 0 && m.done.Load() >= m.total {
				m.halt()
			}
			return nil
		}, f.groupMode())
		if err != nil {
			return err
		}
		if err := m.awaitGroup(ctx, s, topic); err != nil || ctx.Err() != nil {
			return err
		}
		return s.Commit(ctx)
	})
	result := m.result()
	if ctx.Err() != nil {
		err = nil
	}
	return result, err
}

// begun begins the measurement with the first record.
func (m *meter) begun() {
	m.mu.Lock()
	if m.begin.IsZero() {
		m.begin, m.first = time.Now(), m.tally()
		m.measure.Store(true)
	}
	m.mu.Unlock()
}

// awaitGroup waits until the measurement is over. Nothing for groupIdle is an end too: the topic has no more.
func (m *meter) awaitGroup(ctx context.Context, s *client.Subscription, topic string) error {
	tick := time.NewTicker(groupIdle)
	defer tick.Stop()
	before := int64(-1)
	for {
		select {
		case <-m.stop:
			return nil
		case <-ctx.Done():
			return nil
		case <-s.Done():
			return s.Err()
		case <-tick.C:
		}
		now := m.done.Load()
		if now == before {
			m.halt()
			if now == 0 {
				return fmt.Errorf("topic %s has no records for the group: parley bench pub %s makes some, and a group has what it was given only once", topic, topic)
			}
			if m.total > 0 {
				return fmt.Errorf("only %d of %d records came within %s", now, m.total, groupIdle)
			}
			return nil
		}
		before = now
	}
}

// benchE2EGroup is benchE2E with a member of a group for a reader.
func (a *app) benchE2EGroup(ctx context.Context, f *benchFlags, topic string, partitions int32, e *e2eRun, c *client.Client) (benchResult, error) {
	h := e.m.histogram()
	s, err := c.Subscribe(ctx, topic, f.group, func(_ context.Context, msg *client.Message) error {
		e.see(h, msg.Value)
		return nil
	}, f.groupMode(), client.FromLatest())
	if err != nil {
		return benchResult{}, err
	}
	result, err := a.measure(ctx, e.m, f, func(index int) error { return e.publish(ctx, a, f, topic, partitions, index) })
	if ctx.Err() != nil {
		return result, err
	}
	return result, errors.Join(err, s.Close(ctx))
}
