package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parleymq/parley/client"
)

// groupFlags are those of sub that are about a consumer group.
type groupFlags struct {
	name          string
	shared        bool
	keyOrdered    bool
	ack           string
	member        string
	ackWait       time.Duration
	maxDeliveries int
}

const (
	ackAuto = "auto"
	ackNone = "none"
)

func (g *groupFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&g.name, "group", "", "be a member of this consumer group: `name`")
	flags.BoolVar(&g.shared, "shared", false, "each record goes to one member, and is acked by itself")
	flags.BoolVar(&g.keyOrdered, "key-ordered", false, "with --shared: the records of a key go to one member at a time, in order")
	flags.StringVar(&g.ack, "ack", ackAuto, "`auto|none`: ack what was written, or nothing, so that it comes again")
	flags.StringVar(&g.member, "member", "", "the member's `name`, as group describe shows it (default parley)")
	flags.DurationVar(&g.ackWait, "ack-wait", 0, "with --shared: how `long` a record may be held before others get it (default 30s)")
	flags.IntVar(&g.maxDeliveries, "max-deliveries", 0, "with --shared: `times` that a record is delivered before it is a dead letter (default: no limit)")
}

// groupFlagNames are of no use without --group.
var groupFlagNames = []string{"shared", "key-ordered", "ack", "member", "ack-wait", "max-deliveries"}

func (g *groupFlags) withoutGroup(cmd *cobra.Command) error {
	for _, name := range groupFlagNames {
		if cmd.Flags().Changed(name) {
			return usagef("--%s is about a group: give --group", name)
		}
	}
	if cmd.Flags().Changed("group") {
		return usagef("--group is empty: want a name")
	}
	return nil
}

// groupOptions turns the flags into a subscription's options.
func (f *subFlags) groupOptions(cmd *cobra.Command, now time.Time) ([]client.SubscribeOption, error) {
	g, changed := &f.group, cmd.Flags().Changed
	switch {
	case changed("partition"):
		return nil, usagef("--partition and --group exclude each other: the group says which partitions a member has")
	case g.keyOrdered && !g.shared:
		return nil, usagef("--key-ordered is a kind of --shared: give both")
	case g.ack != ackAuto && g.ack != ackNone:
		return nil, usagef("--ack %q: want auto or none", g.ack)
	case g.ack == ackNone && f.untilEnd:
		return nil, usagef("--until-end and --ack none exclude each other: without acks a group never gets to the end")
	case changed("ack-wait") && (!g.shared || g.ackWait <= 0):
		return nil, usagef("--ack-wait %s: want a span above zero, and --shared", g.ackWait)
	case changed("max-deliveries") && (!g.shared || g.maxDeliveries < 1):
		return nil, usagef("--max-deliveries %d: want 1 or more, and --shared", g.maxDeliveries)
	}
	mode := client.Exclusive
	if g.keyOrdered {
		mode = client.KeyOrdered
	} else if g.shared {
		mode = client.Shared
	}
	opts := []client.SubscribeOption{client.Mode(mode)}
	if changed("from") {
		from, err := start("from", f.from, now)
		if err != nil {
			return nil, err
		}
		opts = append(opts, from)
	}
	if g.ackWait > 0 {
		opts = append(opts, client.AckWait(g.ackWait))
	}
	if g.maxDeliveries > 0 {
		opts = append(opts, client.MaxDeliveries(g.maxDeliveries))
	}
	if g.member != "" {
		opts = append(opts, client.MemberName(g.member))
	}
	if g.ack == ackNone && !g.shared {
		opts = append(opts, client.ManualCommit())
	}
	if f.count > 0 && g.shared {
		// Whoever wants a few shouldn't hold more.
		opts = append(opts, client.PrefetchRecords(int(min(f.count, client.DefaultPrefetchRecords))))
	}
	return opts, nil
}

// unackedHeld is how many records a member that acks nothing holds, so that others get them at once when it
// ends. Older ones are delivered again when their ack wait is over.
const unackedHeld = 1024

// groupBatch is how many records are written and acked together.
const groupBatch = 256

func (a *app) subGroup(ctx context.Context, topic string, f *subFlags, opts []client.SubscribeOption) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	joined, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var ends map[int32]int64
	if f.untilEnd {
		if ends, err = topicEnds(joined, c, topic); err != nil {
			return err
		}
	}
	m, err := c.Messages(joined, topic, f.group.name, opts...)
	if err != nil {
		return err
	}
	out := &recordWriter{out: bufio.NewWriterSize(a.stdout, 256<<10), json: a.json()}
	if !isTerminal(a.stdout) && f.untilEnd {
		defer a.watch(false, out.status)()
	}
	err = a.consume(ctx, c, m, f, out, ends)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
		if f.count > 0 || f.untilEnd {
			err = errInterrupted
		}
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
	defer cancel()
	if left := m.Close(leaving); err == nil && left != nil {
		err = fmt.Errorf("leave group %s: %w", f.group.name, left)
	}
	return err
}

// topicEnds says where the partitions end now.
func topicEnds(ctx context.Context, c *client.Client, topic string) (map[int32]int64, error) {
	d, err := c.DescribeTopic(ctx, topic)
	if err != nil {
		return nil, err
	}
	ends := make(map[int32]int64, len(d.Partitions))
	for _, p := range d.Partitions {
		b, err := c.Bounds(ctx, topic, p.Partition)
		if err != nil {
			return nil, err
		}
		ends[p.Partition] = b.Next
	}
	return ends, nil
}

// groupLook is how often a member that has nothing to do looks whether its group is at the end.
const groupLook = 250 * time.Millisecond

func (a *app) consume(ctx context.Context, c *client.Client, m *client.Messages, f *subFlags, out *recordWriter, ends map[int32]int64) error {
	var held []*client.Message // without acks in a shared group
	for {
		limit := groupBatch
		if f.count > 0 {
			if limit = int(min(int64(limit), f.count-out.records.Load())); limit == 0 {
				if f.group.ack == ackNone {
					return nil
				}
				return m.Commit(ctx)
			}
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if ends != nil {
			wait, cancel = context.WithTimeout(ctx, groupLook)
		}
		batch, err := m.NextBatch(wait, limit)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			if err := m.Commit(ctx); err != nil {
				return err
			}
			done, err := a.groupAtEnd(ctx, c, f, m, ends)
			if err != nil || done {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, msg := range batch {
			if err := out.write(msg); err != nil {
				return err
			}
		}
		// What isn't out isn't handled.
		if err := out.out.Flush(); err != nil {
			return err
		}
		if f.group.ack == ackAuto || !f.group.shared {
			for _, msg := range batch {
				_ = msg.Ack() // refused when the partition was lost: then others get it again
			}
			continue
		}
		held = append(held, batch...)
		for ; len(held) > unackedHeld; held = held[1:] {
			_ = held[0].Forget() // or its partition was lost
		}
	}
}

// groupAtEnd says whether the group, all its members together, has handled everything up to the ends.
func (a *app) groupAtEnd(ctx context.Context, c *client.Client, f *subFlags, m *client.Messages, ends map[int32]int64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	d, err := c.DescribeGroup(ctx, m.Topic(), f.group.name)
	if err != nil {
		return false, err
	}
	for _, p := range d.Partitions {
		if p.Committed < ends[p.Partition] && (ends[p.Partition] > 0 || p.Lag > 0) {
			return false, nil
		}
	}
	return true, nil
}
