package epoch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// Limits of what waits.
const (
	MaxInbox      = 1024     // messages from peers; more are dropped, as they may be
	MaxInboxBytes = 16 << 20 // of them, as encoded
	MaxProposals  = 256      // changes that wait to be planned; more wait in their callers
	maxShared     = 32       // changes of one epoch
	maxGather     = 256      // steps of one fsync
	maxAsked      = 32       // messages on their way by Ask
	maxRefusals   = 64       // kinds of refusal that are remembered
)

// A Transport carries messages between brokers. Send must not block; it may lose,
// repeat and reorder what it is given, and must prove to Deliver at the other end who
// sent it. It must not alter or keep msg after it was sent.
type Transport interface {
	Send(to uint64, msg []byte)
}

// Ask sends a request to whichever broker answers at an address, before brokers
// know one another by id.
type Ask func(ctx context.Context, address, subject string, req []byte) (reply []byte, err error)

// Options of a Cluster.
type Options struct {
	Dir string
	// Self is this broker: its incarnation always, and its id, unless epoch 0 of
	// Genesis names it. Bootstrap records the rest.
	Self config.Broker
	// Genesis makes epoch 0 when the journal is empty: see Lone and Initial. nil
	// where there must be a journal.
	Genesis func() *config.Config
	// Seeds are peer addresses that Bootstrap asks beside those of epoch 0.
	Seeds []string

	Transport Transport                // nil while nobody else is there
	Ask       Ask                      // nil: Bootstrap and Join can't be used
	Alive     func(broker uint64) bool // as far as this broker knows; nil: all are
	// Gone says for Admit that a broker can't be reached from anywhere; nil: that it isn't Alive.
	Gone func(ctx context.Context, broker uint64) bool
	// Level is the newest feature level that this broker knows.
	Level uint32

	Clock  func() time.Time    // for the time stamps in epochs; nil is time.Now
	Random func(n int64) int64 // below n, for back-off; nil is math/rand
	Times  Times

	// OnFatal is called once, when the journal could not be written: what is on
	// disk is no longer known, and the process has to stop. It must not wait for Close.
	OnFatal func(error)
	// OnCut is told how many bytes of an undecided entry were cut at the end of
	// the journal.
	OnCut func(bytes int64)
	// OnMended is told of damage beside the journal that cost nothing.
	OnMended func(what string)
	// OnRefused is told, at most every ten seconds for the same, of messages that were
	// refused here or by a peer for a reason that people should see.
	OnRefused func(paxos.Refusal)
	// OnWait is told whom Bootstrap waits for, when that changes.
	OnWait func(why string)

	dir directory // tests put their own in place of Dir
}

// Times of a Cluster; zero values are the defaults.
type Times struct {
	Retry   time.Duration // without an answer, at first; 100 ms
	Slowest time.Duration // between retries, as they grow; 1 s
	BackOff time.Duration // at most, after the first of several lost races; 30 ms
	Rank    time.Duration // that a proposal waits for each live broker of a lower id; 20 ms
	Beat    time.Duration // between telling another broker which epoch is known here; 250 ms
	Hello   time.Duration // between questions of Bootstrap; 250 ms
}

func (t Times) withDefaults() Times {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Retry, 100*time.Millisecond)
	set(&t.Slowest, time.Second)
	set(&t.BackOff, 30*time.Millisecond)
	set(&t.Rank, 20*time.Millisecond)
	set(&t.Beat, 250*time.Millisecond)
	set(&t.Hello, 250*time.Millisecond)
	return t
}

// Cluster is the Store of brokers that decide together.
type Cluster struct {
	o       Options
	self    paxos.Member
	initial *config.Config // epoch 0, while its value is kept
	boot    uint64

	current atomic.Pointer[config.Config]
	heard   atomic.Uint64 // the newest epoch that anybody was heard of

	inbox      chan received
	inboxBytes atomic.Int64
	orders     chan func(*owner)
	proposals  chan *proposal
	asking     chan struct{} // one for each message on its way by Ask
	seating    atomic.Bool   // a seat of the council is being changed
	stats      stats

	ctx      context.Context // ends with the store
	cancel   context.CancelFunc
	stopped  chan struct{} // the owner has ended
	closeErr error         // before stopped
	running  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	history  history
	watchers map[chan *config.Config]func() bool
	closed   bool
	failed   error
}

var _ Store = (*Cluster)(nil)

// Open opens the journal in o.Dir, verifies the chain of hashes, and makes epoch 0
// when there is none. It asks nobody.
func Open(o Options) (*Cluster, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Int64N
	}
	if o.Alive == nil {
		o.Alive = func(uint64) bool { return true }
	}
	if o.Gone == nil {
		o.Gone = func(_ context.Context, id uint64) bool { return !o.Alive(id) }
	}
	o.Times = o.Times.withDefaults()
	if o.Self.Incarnation == "" {
		return nil, errors.New("open epoch store: this broker has no incarnation")
	}
	if o.dir == nil {
		if err := os.MkdirAll(o.Dir, 0o750); err != nil {
			return nil, fmt.Errorf("make epoch directory: %w", err)
		}
		o.dir = diskDirectory(o.Dir)
	}
	j, entries, cut, err := openJournal(o.dir)
	if err != nil {
		return nil, err
	}
	if cut > 0 && o.OnCut != nil {
		o.OnCut(cut)
	}
	if j.mended != "" && o.OnMended != nil {
		o.OnMended(j.mended)
	}
	c := &Cluster{o: o, watchers: map[chan *config.Config]func() bool{}, stopped: make(chan struct{}),
		inbox: make(chan received, MaxInbox), orders: make(chan func(*owner)), proposals: make(chan *proposal, MaxProposals),
		asking: make(chan struct{}, maxAsked)}
	w := &owner{Cluster: c, journal: j, attempts: map[uint64]*attempt{}, reads: map[uint64]chan<- uint64{},
		told: map[uint64]uint64{}, refusals: map[paxos.Refusal]time.Time{}}
	if err := w.open(entries); err != nil {
		w.journal.close()
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.running.Go(w.run)
	c.running.Go(c.plan)
	return c, nil
}

// Current is the newest configuration this broker knows.
func (c *Cluster) Current() *config.Config { return c.current.Load() }

// Self is this broker's id, and its incarnation.
func (c *Cluster) Self() (id uint64, incarnation string) { return c.self.ID, c.self.Incarnation }

// Leader is the broker to send changes to: the lowest id that is live, as far as
// this broker knows. Nothing but speed depends on it: any broker may propose.
func (c *Cluster) Leader() uint64 {
	cur := c.Current()
	for i := range cur.Brokers {
		if id := cur.Brokers[i].ID; id == c.self.ID || cur.Brokers[i].State != config.Dead && c.o.Alive(id) {
			return id
		}
	}
	return c.self.ID
}

// Behind is how many epochs this broker has heard of and doesn't know yet.
func (c *Cluster) Behind() uint64 {
	return max(c.heard.Load(), c.Current().Epoch) - c.Current().Epoch
}

// Observe is told which epoch a peer knows, as every request between brokers
// says; a broker that is behind fetches from it. It never blocks for long.
func (c *Cluster) Observe(peer uint64, incarnation string, epoch uint64) {
	if epoch <= c.Current().Epoch || epoch <= c.heard.Load() && c.Behind() > 0 {
		return // known, or being fetched
	}
	c.hear(epoch)
	from := paxos.Member{ID: peer, Incarnation: incarnation}
	select {
	case c.inbox <- received{observed: epoch, message: paxos.Message{From: from}}:
	default:
	}
}

func (c *Cluster) hear(epoch uint64) {
	for {
		was := c.heard.Load()
		if epoch <= was || c.heard.CompareAndSwap(was, epoch) {
			return
		}
	}
}

// ErrForged: a message names a sender that the transport knows as another.
var ErrForged = errors.New("the message names another sender")

// Deliver takes a message of the broker from, which the transport proved to have the
// incarnation. from is 0 while it has no id, before epoch 1. A message that is no
// message is an error; one that comes when too many wait is dropped. msg is kept and must
// not be altered afterwards.
func (c *Cluster) Deliver(from uint64, incarnation string, msg []byte) error {
	m, err := decodeMessage(msg)
	if err != nil {
		return fmt.Errorf("message of broker %d: %w", from, err)
	}
	if m.From.Incarnation != incarnation || from != 0 && m.From.ID != from {
		return fmt.Errorf("message of broker %d, incarnation %s: %w: %v", from, incarnation, ErrForged, m.From)
	}
	if c.inboxBytes.Add(int64(len(msg))) > MaxInboxBytes {
		c.inboxBytes.Add(-int64(len(msg)))
		return nil
	}
	select {
	case c.inbox <- received{message: m, bytes: int64(len(msg))}:
	default:
		c.inboxBytes.Add(-int64(len(msg)))
	}
	return nil
}

// Read returns a configuration that is not older than the call.
func (c *Cluster) Read(ctx context.Context) (*config.Config, error) {
	done := make(chan uint64, 1)
	var ticket uint64
	var err error
	if !c.order(ctx, func(w *owner) { ticket, err = w.read(done) }) {
		return nil, c.gone(ctx, "read newest epoch")
	}
	if err != nil {
		return nil, err
	}
	select {
	case <-done:
		return c.Current(), nil
	case <-c.stopped:
		return nil, c.gone(ctx, "read newest epoch")
	case <-ctx.Done():
		c.order(context.Background(), func(w *owner) { w.abandon(ticket) })
		return nil, c.gone(ctx, "read newest epoch")
	}
}

// order has the owner do f, and waits until it is done.
func (c *Cluster) order(ctx context.Context, f func(*owner)) bool {
	done := make(chan struct{})
	select {
	case c.orders <- func(w *owner) { f(w); close(done) }:
	case <-c.stopped:
		return false
	case <-ctx.Done():
		return false
	}
	select {
	case <-done:
		return true
	case <-c.stopped:
		return false
	}
}

// gone says why something wasn't done: the store stopped, or ctx ended.
func (c *Cluster) gone(ctx context.Context, what string) error {
	select {
	case <-c.stopped:
		c.mu.Lock()
		defer c.mu.Unlock()
		return fmt.Errorf("%s: %w", what, errors.Join(ErrClosed, c.failed))
	default:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
}

// History returns headers, newest first, from the epoch from downwards.
func (c *Cluster) History(from uint64, limit int) []Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.history.page(from, limit)
}

// At returns an epoch's header and, while it is kept, its value.
func (c *Cluster) At(n uint64) (Header, *config.Config, error) {
	c.mu.Lock()
	newest := c.history.newest()
	if n > newest {
		c.mu.Unlock()
		return Header{}, nil, fmt.Errorf("%w %d, the newest is %d", ErrUnknownEpoch, n, newest)
	}
	h, value := c.history.headers[n], c.history.values[n]
	c.mu.Unlock()
	if value == nil {
		return h, nil, fmt.Errorf("epoch %d: %w", n, ErrForgotten)
	}
	if cur := c.Current(); cur.Epoch == n {
		return h, cur, nil
	}
	v, err := config.Decode(value)
	if err != nil {
		return h, nil, fmt.Errorf("epoch %d: %w", n, err)
	}
	return h, v, nil
}

// Watch delivers the current configuration and then the newest whenever it changes.
func (c *Cluster) Watch(ctx context.Context) <-chan *config.Config {
	ch := make(chan *config.Config, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		close(ch)
		return ch
	}
	ch <- c.Current()
	c.watchers[ch] = context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, ok := c.watchers[ch]; ok {
			delete(c.watchers, ch)
			close(ch)
		}
	})
	return ch
}

// Next waits for the epoch after n and returns it: to watch without gaps. Its value
// is nil when the epoch is so old that only its header is kept.
func (c *Cluster) Next(ctx context.Context, n uint64) (Header, *config.Config, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for cur := range c.Watch(ctx) {
		if cur.Epoch > n {
			h, v, err := c.At(n + 1)
			if errors.Is(err, ErrForgotten) {
				err = nil
			}
			return h, v, err
		}
	}
	return Header{}, nil, c.gone(ctx, fmt.Sprintf("wait for epoch %d", n+1))
}

// publish shows decided epochs. Only the owner calls it.
func (c *Cluster) publish(entries []paxos.Entry, headers []Header, newest *config.Config) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range entries {
		if err := c.history.add(&entries[i], headers[i]); err != nil {
			return err
		}
	}
	c.current.Store(newest)
	c.hear(newest.Epoch)
	for ch := range c.watchers {
		offer(ch, newest)
	}
	return nil
}

// offer replaces what a watcher hasn't taken yet. Offers are made one at a
// time, so the channel has room after the old value is out.
func offer(ch chan *config.Config, c *config.Config) {
	select {
	case <-ch:
	default:
	}
	ch <- c
}

// Close stops everything and closes the journal. What waits is told ErrClosed.
func (c *Cluster) Close() error {
	c.cancel()
	c.running.Wait()
	return c.closeErr
}

// shut ends the watchers once nothing more will be decided here.
func (c *Cluster) shut(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed, c.failed = true, err
	for ch, stop := range c.watchers {
		stop()
		close(ch)
	}
	clear(c.watchers)
}

// names reports whether a configuration knows this data directory as a broker.
func names(c *config.Config, m paxos.Member) bool {
	return slices.ContainsFunc(c.Brokers, func(b config.Broker) bool { return b.ID == m.ID && b.Incarnation == m.Incarnation })
}
