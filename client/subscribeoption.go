package client

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// A SubscribeOption configures Subscribe, SubscribeBatch and Messages.
type SubscribeOption interface {
	subscription(*subscribeConfig) error
}

type subscribeOption func(*subscribeConfig) error

func (o subscribeOption) subscription(c *subscribeConfig) error { return o(c) }

type subscribeConfig struct {
	group wire.GroupOptions // what the group is to be

	concurrency     int
	order           Order
	batch           int
	prefetchBytes   int
	prefetchRecords int
	commitEvery     time.Duration
	manualCommit    bool
	autoAck         bool
	name            string
	retries         []time.Duration
	maxDeliveries   int
	stopOnFailure   bool
	handlerTimeout  time.Duration
	drainTimeout    time.Duration
	hooks           Hooks
	onAssigned      func(context.Context, Lease)
	onRevoked       func(context.Context, Lease, bool)
}

// Defaults and bounds of a subscription.
const (
	DefaultPrefetchRecords = 4096
	DefaultCommitEvery     = 100 * time.Millisecond
	DefaultDrainTimeout    = 30 * time.Second
	DefaultBatchSize       = 100

	maxConcurrency = 4096
	maxBatchSize   = 65536
	commitRecords  = 10_000 // handled since the last commit: the next one doesn't wait
	retryMin       = 100 * time.Millisecond
	retryMax       = 30 * time.Second
)

// retryDelays are the waits after a failed try where Backoff gives none.
var retryDelays = func() (d []time.Duration) {
	for w := retryMin; w < retryMax; w *= 2 {
		d = append(d, w)
	}
	return append(d, retryMax)
}()

func newSubscribeConfig(opts []SubscribeOption) (*subscribeConfig, error) {
	c := &subscribeConfig{
		concurrency: 1, batch: DefaultBatchSize,
		prefetchBytes: DefaultPrefetch, prefetchRecords: DefaultPrefetchRecords,
		commitEvery: DefaultCommitEvery, drainTimeout: DefaultDrainTimeout, retries: retryDelays,
	}
	c.group.Mode = wire.ModeExclusive
	for _, o := range opts {
		if err := o.subscription(c); err != nil {
			return nil, err
		}
	}
	if c.group.Mode == wire.ModeExclusive {
		// A partition's leader sees positions only: failures are the member's own affair.
		c.group.MaxDeliveries, c.group.BackoffMS = 0, nil
		if c.group.AckWaitMS != 0 || c.group.MaxInFlight != 0 || c.group.MaxInFlightMember != 0 {
			return nil, fmt.Errorf("AckWait, MaxInFlight and MaxInFlightPerMember are for shared groups: add Mode(Shared) or Mode(KeyOrdered)")
		}
	} else if c.manualCommit || c.stopOnFailure {
		return nil, fmt.Errorf("ManualCommit and StopOnFailure are for exclusive groups: in a %s one each record is acked by itself", c.group.Mode)
	}
	switch {
	case c.group.Mode == wire.ModeKeyOrdered:
		if c.order != OrderDefault && c.order != PerKey {
			return nil, fmt.Errorf("a key-ordered group keeps each key's order: leave Order out")
		}
		c.order = PerKey
	case c.group.Mode == wire.ModeShared && c.order == OrderDefault:
		c.order = Unordered
	case c.order == OrderDefault && c.concurrency > 1:
		c.order = PerKey
	case c.order == OrderDefault || c.order == PerKey && c.concurrency == 1 && c.group.Mode == wire.ModeExclusive:
		c.order = PerPartition // one at a time: all of it is in order
	}
	return c, nil
}

func positive[T int | time.Duration](what string, v T, set func(*subscribeConfig)) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if v <= 0 {
			return fmt.Errorf("%s %v: must be above zero", what, v)
		}
		set(c)
		return nil
	})
}

// A GroupMode says how the members of a group share the work.
type GroupMode string

// Modes of a group.
const (
	Exclusive  GroupMode = wire.ModeExclusive  // a partition has one member at a time, order kept; positions are committed
	Shared     GroupMode = wire.ModeShared     // each record goes to one member and is acked by itself
	KeyOrdered GroupMode = wire.ModeKeyOrdered // as Shared, and the records of one key go to one member at a time, in order
)

// Mode of the group. Default Exclusive. All members must give the same.
func Mode(m GroupMode) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		switch m {
		case Exclusive, Shared, KeyOrdered:
			c.group.Mode = string(m)
			return nil
		}
		return fmt.Errorf("mode %q: use Exclusive, Shared or KeyOrdered", string(m))
	})
}

// An Order is what is kept when a member handles several records at once.
type Order int

// Orders.
const (
	OrderDefault Order = iota // PerKey; in a shared group Unordered
	PerPartition              // the records of a partition one after the other, partitions side by side
	PerKey                    // the records of a key one after the other; those without a key at any time
	Unordered                 // any record at any time
)

// KeepOrder sets what order a member keeps. With a Concurrency of 1 and an exclusive group, each
// partition is handled in order anyway.
func KeepOrder(o Order) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if o < OrderDefault || o > Unordered {
			return fmt.Errorf("order %d: use one of the constants", o)
		}
		c.order = o
		return nil
	})
}

// Concurrency is how many handlers run at once in this member. Default 1.
func Concurrency(n int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if n < 1 || n > maxConcurrency {
			return fmt.Errorf("concurrency %d: must be 1 to %d", n, maxConcurrency)
		}
		c.concurrency = n
		return nil
	})
}

func (s Start) subscription(c *subscribeConfig) error {
	c.group.From = s.text()
	return s.check()
}

// text is a start as it goes over the wire.
func (s Start) text() string {
	switch s.at {
	case startLatest:
		return "latest"
	case startOffset:
		return strconv.FormatInt(s.offset, 10)
	case startTime:
		return s.time.UTC().Format(time.RFC3339Nano)
	}
	return "earliest"
}

func (p PrefetchBytes) subscription(c *subscribeConfig) error {
	c.prefetchBytes = int(p)
	return p.check()
}

// PrefetchRecords bounds how many records of one partition a member of a shared group may hold that it
// hasn't begun: 1 to 4096, default 4096. It takes fewer by itself where handlers are slow, so that others
// get their share.
func PrefetchRecords(n int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if n < 1 || n > wire.MaxPullMessages {
			return fmt.Errorf("prefetch of %d records: must be 1 to %d", n, wire.MaxPullMessages)
		}
		c.prefetchRecords = n
		return nil
	})
}

// Session is how long a silent member keeps its place and its partitions: 1 s to 5 min. It belongs to the
// group. Default 10 s. A member that crashed is replaced after that, one that closed at once.
func Session(d time.Duration) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if ms := d.Milliseconds(); ms < wire.MinSessionMS || ms > wire.MaxSessionMS {
			return fmt.Errorf("session %s: must be %ds to %ds", d, wire.MinSessionMS/1000, wire.MaxSessionMS/1000)
		}
		c.group.SessionMS = d.Milliseconds()
		return nil
	})
}

// AckWait is how long a delivery of a shared group may take before the record is handed out again. It belongs
// to the group. Default 30 s. While a member holds a record and lives, the SDK extends it: see HandlerTimeout.
func AckWait(d time.Duration) SubscribeOption {
	return positive("ack wait", d, func(c *subscribeConfig) { c.group.AckWaitMS = max(d.Milliseconds(), 1) })
}

// MaxDeliveries is how often a record is tried before it goes to the dead-letter topic. Default: without
// end. In shared groups it belongs to the group and the brokers count; in exclusive ones each member counts
// by itself, from one again after a hand-over.
func MaxDeliveries(n int) SubscribeOption {
	return positive("max deliveries", n, func(c *subscribeConfig) {
		c.maxDeliveries, c.group.MaxDeliveries = n, int32(min(n, 1<<31-1))
	})
}

// Backoff gives the delays after the first, second, … failed delivery; the last one repeats. Up to 16.
// Default in exclusive groups 100 ms, doubling up to 30 s; in shared ones what the brokers take.
func Backoff(delays ...time.Duration) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if len(delays) == 0 || len(delays) > wire.MaxBackoffSteps {
			return fmt.Errorf("back-off of %d delays: give 1 to %d", len(delays), wire.MaxBackoffSteps)
		}
		c.retries, c.group.BackoffMS = nil, nil
		for _, d := range delays {
			if d < 0 {
				return fmt.Errorf("back-off %s: must be 0 or more", d)
			}
			c.retries = append(c.retries, d)
			c.group.BackoffMS = append(c.group.BackoffMS, d.Milliseconds())
		}
		return nil
	})
}

// MaxInFlight bounds what all members of a shared group together hold of one partition. It belongs to the group.
func MaxInFlight(records int) SubscribeOption {
	return inFlight("max in flight", records, func(c *subscribeConfig) { c.group.MaxInFlight = int32(records) })
}

// MaxInFlightPerMember bounds what one member of a shared group holds of one partition. It belongs to the group.
func MaxInFlightPerMember(records int) SubscribeOption {
	return inFlight("max in flight per member", records, func(c *subscribeConfig) { c.group.MaxInFlightMember = int32(records) })
}

func inFlight(what string, n int, set func(*subscribeConfig)) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if n < 1 || n > wire.MaxInFlight {
			return fmt.Errorf("%s %d: must be 1 to %d", what, n, wire.MaxInFlight)
		}
		set(c)
		return nil
	})
}

// DeadLetter names the topic that takes what can't be handled. It belongs to the group. Default dlq-TOPIC-GROUP, made when
// it is first needed.
func DeadLetter(topic string) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.group.DeadLetter = topic; return nil })
}

// StopOnFailure ends a subscription of an exclusive group, rather than to try again for ever or to write a dead
// letter, when a record has failed MaxDeliveries times, or once without that option. Err then says why.
// The record stays unhandled: the next member begins with it.
func StopOnFailure() SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.stopOnFailure = true; return nil })
}

// HandlerTimeout bounds one call of a handler: its context ends then. In a shared group the delivery is
// no longer extended either, so that another member gets the record. To look at the clock
// for every record would cost more than it gives: it is looked at every 100 ms. Default: no bound.
func HandlerTimeout(d time.Duration) SubscribeOption {
	return positive("handler timeout", d, func(c *subscribeConfig) { c.handlerTimeout = d })
}

// DrainTimeout bounds how long a partition that goes to another member waits for handlers that
// are at work on its records; their contexts end then, which is no failure of theirs. Half of it, and 5 s at most, may go into
// records of an exclusive group that lie below one that was handled: the position can't pass them. Default 30 s.
func DrainTimeout(d time.Duration) SubscribeOption {
	return positive("drain timeout", d, func(c *subscribeConfig) { c.drainTimeout = d })
}

// CommitEvery is how often the position of an exclusive group is committed while it moves, unless 10,000
// records were handled sooner. Default 100 ms. A crash repeats what was handled since.
func CommitEvery(d time.Duration) SubscribeOption {
	return positive("commit interval", d, func(c *subscribeConfig) { c.commitEvery = d })
}

// ManualCommit leaves it to Subscription.Commit when the positions of an exclusive group are committed.
// What wasn't is handled again by the next owner, also after Close.
func ManualCommit() SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.manualCommit = true; return nil })
}

// AutoAck is for Messages: asking for the next message acks the one before.
func AutoAck() SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.autoAck = true; return nil })
}

// BatchSize is how many records SubscribeBatch hands over at most. Default 100.
func BatchSize(n int) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if n < 1 || n > maxBatchSize {
			return fmt.Errorf("batch of %d records: must be 1 to %d", n, maxBatchSize)
		}
		c.batch = n
		return nil
	})
}

// MemberName is how the member is shown to people. Default the connection's name, see WithName.
func MemberName(name string) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error {
		if name == "" || len(name) > wire.MaxMemberText {
			return fmt.Errorf("member name of %d bytes: must be 1 to %d", len(name), wire.MaxMemberText)
		}
		c.name = name
		return nil
	})
}

// A Lease is a member's right to a partition. Token is its fencing token, and Next the first offset that is not
// handled; both are 0 in a shared group, where each delivery has a token of its own.
type Lease struct {
	Topic     string
	Partition int32
	Token     uint64
	Next      int64
}

// OnAssigned is called before the first record of a partition that the member got is handed out. ctx
// ends when the partition is lost.
func OnAssigned(f func(ctx context.Context, l Lease)) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.onAssigned = f; return nil })
}

// OnRevoked is called when a partition goes: after its last handler has returned and before its position is
// committed, which Commit may still do, or with lost true after another member may have got it already.
func OnRevoked(f func(ctx context.Context, l Lease, lost bool)) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.onRevoked = f; return nil })
}

// Hooks are told what goes on, for metrics and logs. Each may be nil. They are called from several goroutines, must not
// block and cost what they cost: Delivered and Lag once a fetch, the others once a record or event.
type Hooks struct {
	Delivered func(partition int32, records int)
	Handled   func(m *Message)                     // acked
	Failed    func(m *Message, err error)          // and will be tried again
	Dead      func(m *Message, reason string)      // given up: goes to the dead-letter topic
	Refused   func(partition int32, err error)     // acks or a commit that came too late
	Lag       func(partition int32, records int64) // records that the member hasn't begun
	Rebalance func(generation uint64, partitions []int32)
}

// WithHooks sets the Hooks.
func WithHooks(h Hooks) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) error { c.hooks = h; return nil })
}
