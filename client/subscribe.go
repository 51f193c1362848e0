package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// Subscription is a running member of a consumer group. It lives until Close, or until it can't go on: then Done is
// closed and Err says why.
//
// Everything else it gets over by itself: lost connections, brokers that fail, members that come and go. After it was
// cut off or paused for longer than its session, its partitions may be others': the contexts of its handlers end with
// ErrLost as cause, their acks are refused, and it joins again. Records are delivered at least once; what
// must not happen twice is for the fencing token, or an idempotent handler, to see to.
type Subscription struct {
	c      *Client
	topic  string
	group  string
	id     string // of the member
	cfg    *subscribeConfig
	view   *topicView
	fetchs *routes
	start  time.Time // of its clock
	crew   *crew

	handle      func(context.Context, *Message) error
	handleBatch func(context.Context, []*Message) error
	hands       []*worker
	workers     sync.WaitGroup
	rest        chan struct{} // closed when the workers may go
	overseeing  sync.WaitGroup

	life     context.Context // ends when Close has no more time, and at last
	end      context.CancelFunc
	handling context.Context // of handlers; ends with life
	joined   context.Context // ends when Close begins
	part     context.CancelFunc
	follows  sync.WaitGroup
	kick     chan struct{} // capacity 1; the anchor is to be asked soon
	closing  chan struct{}
	closer   sync.Once
	done     chan struct{}
	stopped  atomic.Bool // a record failed that nothing may follow

	count counts

	mu         sync.Mutex
	claims     map[int32]*claim                  // guarded by mu; at most one a partition
	assignment *wire.GroupAssignment             // guarded by mu
	held       atomic.Int32                      // claims
	heard      atomic.Uint64                     // newest generation that anybody named
	agreed     atomic.Pointer[wire.GroupOptions] // of the group, as the anchor has them
	err        error                             // guarded by mu; why it ended
	closed     error                             // guarded by mu; what Close returned
	letters    *topicView                        // guarded by mu; the dead-letter topic, nil before the first one
}

type counts struct {
	delivered, handled, failed, redelivered, dead, refused atomic.Uint64
}

// Stats counts records since the subscription began.
type Stats struct {
	Delivered   uint64 // came from the brokers
	Handled     uint64 // acked
	Failed      uint64 // tries that failed
	Redelivered uint64 // of Delivered, those that were handed out before
	Dead        uint64 // went to the dead-letter topic
	Refused     uint64 // acks and commits that came too late
}

// Subscribe joins a group, which is made when it isn't there, and calls handler with each record of the topic that this member
// gets. ctx bounds the joining, 30 s when it has no deadline; handlers get its values.
//
// A handler that returns nil has handled the record. An error, or a panic, is a failure: the record is delivered
// again after the back-off, see Backoff and MaxDeliveries, or RetryAfter and Terminate for other wishes. Handlers run one at a
// time unless Concurrency says otherwise. The context that they get ends when the record is no longer this
// member's, at HandlerTimeout, and when Close has no more time.
func (c *Client) Subscribe(ctx context.Context, topic, group string, handler func(ctx context.Context, m *Message) error, opts ...SubscribeOption) (*Subscription, error) {
	if handler == nil {
		return nil, fmt.Errorf("subscribe to %s: the handler is nil", topic)
	}
	return c.subscribe(ctx, topic, group, opts, func(s *Subscription) { s.handle = handler })
}

// SubscribeBatch is Subscribe with up to BatchSize records of one partition a call. What the handler doesn't settle by Ack, Nak or
// Term fares as the error it returns says: an error is a failure of all of them.
func (c *Client) SubscribeBatch(ctx context.Context, topic, group string, handler func(ctx context.Context, batch []*Message) error, opts ...SubscribeOption) (*Subscription, error) {
	if handler == nil {
		return nil, fmt.Errorf("subscribe to %s: the handler is nil", topic)
	}
	return c.subscribe(ctx, topic, group, opts, func(s *Subscription) { s.handleBatch = handler })
}

func (c *Client) subscribe(ctx context.Context, topic, group string, opts []SubscribeOption, with func(*Subscription)) (*Subscription, error) {
	s, err := c.newSubscription(ctx, topic, group, opts, with)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s as %s: %w", topic, group, err)
	}
	return s, nil
}

func (c *Client) newSubscription(ctx context.Context, topic, group string, opts []SubscribeOption, with func(*Subscription)) (*Subscription, error) {
	cfg, err := newSubscribeConfig(opts)
	if err != nil {
		return nil, err
	}
	if cfg.name == "" {
		cfg.name = c.cfg.name
	}
	if err := checkGroupName(group); err != nil {
		return nil, err
	}
	values := context.WithoutCancel(ctx)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callPatience)
		defer cancel()
	}
	s := &Subscription{
		c: c, topic: topic, group: group, id: rand.Text(), cfg: cfg, start: time.Now(),
		rest: make(chan struct{}), kick: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
		claims: make(map[int32]*claim),
	}
	s.crew = newCrew(s)
	s.life, s.end = context.WithCancel(values)
	s.handling = s.life
	s.joined, s.part = context.WithCancel(s.life)
	if with != nil {
		with(s)
	}
	s.agreed.Store(&cfg.group)
	if s.view, err = c.topics.use(ctx, topic); err != nil {
		return nil, err
	}
	if s.fetchs, err = c.fetchRoutes(ctx); err != nil {
		c.topics.release(s.view)
		return nil, err
	}
	a, err := s.join(ctx)
	if err == nil {
		err = c.join(s)
	}
	if err != nil {
		c.topics.release(s.view)
		return nil, err
	}
	if s.worked() {
		for range cfg.concurrency {
			w := &worker{s: s}
			s.hands = append(s.hands, w)
			s.workers.Add(1)
		}
		for _, w := range s.hands {
			go w.run()
		}
		s.overseeing.Go(s.oversee)
	}
	s.apply(a)
	s.follows.Go(s.follow)
	if cfg.group.From == (Start{at: startLatest}).text() {
		if err := s.begun(ctx); err != nil {
			_ = s.Close(ctx) // nothing was handled yet
			return nil, err
		}
	}
	return s, nil
}

// begun waits until the leaders of the first partitions know of the group.
func (s *Subscription) begun(ctx context.Context) error {
	s.mu.Lock()
	claims := make([]*claim, 0, len(s.claims))
	for _, c := range s.claims {
		claims = append(claims, c)
	}
	s.mu.Unlock()
	for _, c := range claims {
		select {
		case <-c.began:
		case <-s.done:
			return s.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func checkGroupName(group string) error {
	ok := group != "" && len(group) <= wire.MaxGroupName
	for _, r := range group {
		ok = ok && (r == '_' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
	}
	if !ok {
		return &Error{Code: 400, Reason: wire.ReasonBadRequest,
			Description: fmt.Sprintf("group %q: want 1 to %d of A-Z a-z 0-9 _ -", group, wire.MaxGroupName)}
	}
	return nil
}

func (s *Subscription) shared() bool { return s.cfg.group.Mode != wire.ModeExclusive }

// worked: handlers are called, rather than Next.
func (s *Subscription) worked() bool { return s.handle != nil || s.handleBatch != nil }

// holds is the number of partitions that the member has, at least 1.
func (s *Subscription) holds() int { return max(int(s.held.Load()), 1) }

func (s *Subscription) options() wire.GroupOptions { return *s.agreed.Load() }

func (s *Subscription) session() time.Duration {
	if ms := s.agreed.Load().SessionMS; ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return wire.DefaultSessionMS * time.Millisecond
}

func (s *Subscription) ackWait() time.Duration {
	if ms := s.agreed.Load().AckWaitMS; ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return wire.DefaultAckWaitMS * time.Millisecond
}

func (s *Subscription) refused(partition int32, err error) {
	s.count.refused.Add(1)
	if h := s.cfg.hooks.Refused; h != nil {
		h(partition, err)
	}
}

// interrupt ends the contexts of handlers that have one of a tenure's messages.
func (s *Subscription) interrupt(t *tenure, which func(*Message) bool, cause error) {
	for _, w := range s.hands {
		w.interrupt(t, which, cause)
	}
}

// Topic is the topic's name.
func (s *Subscription) Topic() string { return s.topic }

// Group is the group's name.
func (s *Subscription) Group() string { return s.group }

// Member is the member's id, as `parley group describe` shows it.
func (s *Subscription) Member() string { return s.id }

// Stats returns what was counted so far.
func (s *Subscription) Stats() Stats {
	n := &s.count
	return Stats{n.delivered.Load(), n.handled.Load(), n.failed.Load(), n.redelivered.Load(), n.dead.Load(), n.refused.Load()}
}

// Leases are the partitions that the member works on at present, ascending.
func (s *Subscription) Leases() []Lease {
	var all []Lease
	s.mu.Lock()
	for _, c := range s.claims {
		if t := c.tenure.Load(); t != nil && !t.lost.Load() {
			all = append(all, t.lease)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b Lease) int { return int(a.Partition - b.Partition) })
	return all
}

// Done is closed when the subscription has ended.
func (s *Subscription) Done() <-chan struct{} { return s.done }

// Err is why the subscription ended by itself: the topic was deleted, the group is another's kind, a handler
// failed with StopOnFailure. It is nil before that and after Close.
func (s *Subscription) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Commit commits what is handled so far, or sends the acks that wait, and waits until that is done. It fails with
// what was refused.
func (s *Subscription) Commit(ctx context.Context) error {
	var waits []chan error
	s.mu.Lock()
	for _, c := range s.claims {
		if t := c.tenure.Load(); t != nil {
			f := make(chan error, 1)
			t.mu.Lock()
			if t.kept {
				t.mu.Unlock()
				continue
			}
			t.flushes = append(t.flushes, f)
			t.mu.Unlock()
			waits = append(waits, f)
			nudge(t.wake)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, f := range waits {
		select {
		case err := <-f:
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

// Close leaves the group: nothing more is begun but what fills gaps below what was handled, for 5 s at most; handlers at work are waited for, what was handled is committed,
// partitions are given back so that others have them at once. When ctx ends first, the handlers' contexts end and Close returns
// ctx's error; what they had in hand is delivered again. It must not be called by a handler. It is safe to
// call again.
func (s *Subscription) Close(ctx context.Context) error {
	s.closer.Do(func() { go s.shut(ctx) })
	select {
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.closed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shut is the end of the subscription.
func (s *Subscription) shut(ctx context.Context) {
	defer close(s.done)
	// 1. The claims give back what they have.
	close(s.closing)
	s.part()
	s.follows.Wait()
	s.mu.Lock()
	claims := make([]*claim, 0, len(s.claims))
	for _, c := range s.claims {
		claims = append(claims, c)
		c.revoke()
	}
	s.mu.Unlock()
	var err error
	wait := func(done <-chan struct{}) {
		select {
		case <-done:
		case <-ctx.Done():
			err = ctx.Err()
			s.end()
			<-done // claims wait for nothing any more that has no limit
		}
	}
	for _, c := range claims {
		wait(c.ended)
	}
	// 2. The workers, unless a handler doesn't come back.
	close(s.rest)
	idle := make(chan struct{})
	go func() { s.workers.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.overseeing.Wait()
	// 3. The group.
	s.goodbye(ctx)
	s.end()
	s.forgetLetters(nil)
	s.c.leave(s)
	s.c.topics.release(s.view)
	s.mu.Lock()
	s.closed = err
	s.mu.Unlock()
}

// fail ends the subscription: it can't go on.
func (s *Subscription) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		select {
		case <-s.closing:
		default:
			s.err = fmt.Errorf("consume %s as %s: %w", s.topic, s.group, err)
		}
	}
	s.mu.Unlock()
	s.closer.Do(func() {
		s.c.cfg.log("subscription ends", "topic", s.topic, "group", s.group, "error", err)
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), s.cfg.drainTimeout)
			defer cancel()
			s.shut(ctx)
		}()
	})
}

// connected is told by the Client. Who waits to try again is woken by Client.pause.
func (s *Subscription) connected() { nudge(s.kick) }

// overseeEvery is how often handlers are looked after.
const overseeEvery = 100 * time.Millisecond

// oversee finds handlers that take long.
func (s *Subscription) oversee() {
	ticker := time.NewTicker(overseeEvery)
	defer ticker.Stop()
	seen := make([]struct {
		calls uint64
		since time.Time
		told  bool
	}, len(s.hands))
	for {
		select {
		case <-ticker.C:
		case <-s.rest:
			return
		}
		now := time.Now()
		for i, w := range s.hands {
			calls, t, rest := w.look(now)
			at := &seen[i]
			if calls != at.calls || t == nil {
				at.calls, at.since, at.told = calls, now, false
				continue
			}
			s.crew.putBack(t, nil, rest)
			if s.cfg.handlerTimeout > 0 && now.Sub(at.since) >= s.cfg.handlerTimeout && !at.told {
				at.told = true
				w.lapse(t, calls)
			}
		}
	}
}
