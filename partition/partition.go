// Package partition is one partition of a topic on one broker: a replicated
// state machine that assigns offsets and recognises duplicates, an appender
// that turns what is published into log entries, and a reader.
//
//	Append ─▶ appender ─▶ proposal ─▶ replication.Log ─▶ machine.Apply ─▶ storage.Store
//	                        ▲                               │    │
//	                        └───── leader loop ◀── result ──┘    └─▶ tail ─▶ Fetch
//
// Consumer groups (package group) are part of the replicated state; group_lead.go is
// where their leader's side begins.
//
// Invariants that have cost others dearly:
//
//   - An entry carries the term of a committed Start and a counter; apply takes
//     neither an older term nor a counter out of turn. That, not Raft's own
//     leadership, is what keeps a deposed leader from writing.
//   - Replicas never read a clock. Log time comes with the entry.
//   - The message id window is a function of the log, the producer table and
//     all else of the state go into the checkpoint.
//   - Chunks below the start offset are deleted only after a checkpoint with
//     that start offset is durable: before, recovery would find a hole.
package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
)

// maxInFlight is how many proposals may be proposed and not yet applied.
const maxInFlight = 4

const (
	// recordOverhead is what one record takes beside its bytes, at most about.
	recordOverhead = 24
	// batchTarget is the size at which a batch of single records is closed: small
	// enough that a fetch can be cut finely, large enough to cost little.
	batchTarget = 256 << 10
)

// Limits of a partition. Zero values mean the defaults.
type Limits struct {
	MaxRecordBytes int           // key, value and headers of one record; default 1 MiB
	QueueBytes     int           // taken and not yet answered; default 16 MiB
	QueueRecords   int           // likewise; default 131,072
	GroupBytes     int           // about how large one log entry gets; default 1 MiB
	GroupState     int           // about what is kept of consumer groups; default group.MaxStateBytes
	PipelineBytes  int           // size at which a group goes out though others are in flight; default 256 KiB
	BusyWait       time.Duration // how long an append waits for room; default 1 s
	ProposeTimeout time.Duration // how long one attempt to commit may take; default 5 s
}

func (l *Limits) setDefaults() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.MaxRecordBytes, 1<<20)
	def(&l.QueueBytes, 16<<20)
	def(&l.QueueRecords, 131_072)
	def(&l.GroupBytes, 1<<20)
	def(&l.GroupState, group.MaxStateBytes)
	def(&l.PipelineBytes, 256<<10)
	if l.BusyWait <= 0 {
		l.BusyWait = time.Second
	}
	if l.ProposeTimeout <= 0 {
		l.ProposeTimeout = 5 * time.Second
	}
}

// Retention says how much of the log is kept; a zero field sets no limit.
type Retention struct {
	MaxAge     time.Duration // in log time
	MaxBytes   int64         // of stored batches
	MaxRecords int64
	// WorkQueue lets go of records that every group has handled. While the partition knows
	// no group it lets go of nothing.
	WorkQueue bool
}

// Config of a partition. Host, Engine, Checkpoints and the ids are required.
type Config struct {
	Topic       string
	Number      int32
	Log         storage.LogID
	Epoch       uint64 // that opens it: what acks name before the first barrier
	Shard       uint64
	Replica     uint64
	Initial     map[uint64]string
	Join        bool
	Again       bool // it was opened here before: see replication.Replica
	Origin      Origin
	Alone       bool // no other replica has what this one has: damage can't be repaired from others
	Host        replication.Host
	Engine      storage.Engine
	Checkpoints *storage.Checkpointer
	Peers       Peers            // nil: what a snapshot lists can't be fetched
	Clock       func() time.Time // default time.Now; must carry a monotonic reading
	Limits      Limits
	Retention   Retention
	// RetentionEvery is how often a leader looks for what may go; default 10 s.
	RetentionEvery time.Duration
	TailBudget     *TailBudget
	DiskFull       func() bool                  // nil: never
	DiskLow        func() bool                  // nothing is fetched that this replica lacks; nil: never
	OnLeader       func(replication.Leadership) // must not block
	DeadLetter     DeadLetterFunc               // nil: what is dead waits for a leader that has one
	// Form is the newest form of a state that all brokers of the cluster read; nil: FormGroups. It must not block.
	Form func() Form
	// NoGroups says why nothing about groups may be written to the log yet, "" when it may; nil: it may. It must not block.
	NoGroups func() string
	Logger   zerolog.Logger
}

// Partition is safe for concurrent use.
type Partition struct {
	c    Config
	name string // topic/number
	m    *machine
	a    *appender
	log  replication.Log

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	leaderMu sync.Mutex
	known    replication.Leadership
	current  *leadership
	leadDone chan struct{}
	closing  bool

	leading   atomic.Bool
	owing     atomic.Bool           // a term has begun here, and not everything that it took is answered
	refused   atomic.Pointer[Error] // why this replica must not lead
	retried   atomic.Uint64
	acked     atomic.Uint64
	retention atomic.Pointer[Retention]
	checkers  sync.Pool

	began   time.Time
	sureAt  atomic.Int64              // when this replica last was known to lead, see now
	groups  atomic.Pointer[groupLead] // while it leads
	feeders sync.Pool
}

// Open starts the partition's replica. It returns once the replica runs, which
// may be before it knows a leader. ctx bounds the start only.
func Open(ctx context.Context, c Config) (*Partition, error) {
	c.Limits.setDefaults()
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.RetentionEvery <= 0 {
		c.RetentionEvery = 10 * time.Second
	}
	p := &Partition{c: c, name: fmt.Sprintf("%s/%d", c.Topic, c.Number), m: newMachine(&c)}
	p.checkers.New = func() any { return new(batchCheck) }
	p.feeders.New = func() any { return new(feeder) }
	p.began = c.Clock()
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.retention.Store(&c.Retention)
	p.a = newAppender(p)
	ready := make(chan struct{})
	log, err := c.Host.Start(ctx, replication.Replica{
		Shard: c.Shard, Replica: c.Replica, Initial: c.Initial, Join: c.Join, Again: c.Again,
		OnLeader: func(l replication.Leadership) {
			select {
			case <-ready:
				p.onLeader(l)
			default:
				// The log is not in our hands yet: what it says now is asked for below.
			}
		},
	}, p.m)
	if err != nil {
		p.cancel()
		return nil, fmt.Errorf("open partition %s: %w", p.name, err)
	}
	p.log = log
	close(ready)
	p.catchUpLeadership()
	p.wg.Go(p.keepRetention)
	return p, nil
}

// catchUpLeadership tells the partition what the log said before Open had it.
// The log is asked under the lock: whatever changes afterwards comes afterwards.
func (p *Partition) catchUpLeadership() {
	p.leaderMu.Lock()
	defer p.leaderMu.Unlock()
	if p.known == (replication.Leadership{}) {
		p.learnLeader(p.log.Leadership())
	}
}

// Append takes one record and returns before it is committed; the outcome goes
// to the Receiver. An *Error means that it was refused and is not in the log.
// It waits up to Limits.BusyWait while the queue is full. What was taken is
// proposed at the next Flush at the latest.
func (p *Partition) Append(ctx context.Context, pub *Publication) error {
	if err := p.a.append(ctx, pub); err != nil {
		return err
	}
	return nil
}

// batchCheck is what AppendBatch needs for a moment.
type batchCheck struct {
	checker record.Checker
	ids     []idAt
	sorted  []idAt
}

// repeat finds two records of the batch with the same message id.
func (bc *batchCheck) repeat() (first, second idAt, found bool) {
	if len(bc.ids) < 2 {
		return
	}
	bc.sorted = append(bc.sorted[:0], bc.ids...)
	slices.SortFunc(bc.sorted, func(a, b idAt) int {
		if c := bytes.Compare(a.hash[:], b.hash[:]); c != 0 {
			return c
		}
		return int(a.delta - b.delta)
	})
	for i := range bc.sorted[1:] {
		if bc.sorted[i].hash == bc.sorted[i+1].hash {
			return bc.sorted[i], bc.sorted[i+1], true
		}
	}
	return
}

var messageIDHeader = []byte("Nats-Msg-Id")

// AppendBatch takes a whole record batch after checking it. The batch is the
// unit of what is accepted or refused; base offset and leader epoch are the broker's to
// set. expect is as in Publication. It waits and fails like Append.
func (p *Partition) AppendBatch(ctx context.Context, b record.Batch, expect int64, reply []byte, rcv Receiver) error {
	bc := p.checkers.Get().(*batchCheck)
	defer p.checkers.Put(bc)
	bc.ids = bc.ids[:0]
	lim := record.DefaultLimits
	lim.MaxRecordBytes = p.c.Limits.MaxRecordBytes
	err := bc.checker.CheckRecords(b, lim, func(i int, r *record.Record) error {
		for h := range r.Headers {
			// An empty id is none, or all records with one would be the same.
			if v := r.Headers[h].Value; len(v) > 0 && string(r.Headers[h].Key) == string(messageIDHeader) {
				bc.ids = append(bc.ids, idAt{delta: int32(i), hash: hashMessageID(v)})
				break
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, record.ErrTooLarge):
		return describe(ErrTooLarge, "%s: %v", p.name, err)
	case err != nil:
		return describe(ErrInvalidBatch, "%s: %v", p.name, err)
	}
	if one, two, found := bc.repeat(); found {
		return describe(ErrInvalidBatch, "%s: records %d and %d of the batch have the same message id", p.name, one.delta, two.delta)
	}
	if err := p.a.appendBatch(ctx, b, bc.ids, expect, reply, rcv); err != nil {
		return err
	}
	return nil
}

// Flush proposes what was taken, unless earlier proposals are in flight: then it
// follows them.
func (p *Partition) Flush() { p.a.flush() }

// Barrier commits a barrier entry: every command that a leader stamped with an
// older epoch is refused from here on.
func (p *Partition) Barrier(ctx context.Context, epoch uint64) error {
	return p.command(ctx, kindBarrier, epoch)
}

func (p *Partition) command(ctx context.Context, kind commandKind, value uint64) error {
	done := make(chan *Error, 1)
	if err := p.a.control(kind, value, done); err != nil {
		return err
	}
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s of partition %s: %w", kind, p.name, ctx.Err())
	}
}

func (p *Partition) outcome(offset int64) Outcome {
	epoch := p.m.look().barrier
	if epoch == 0 { // its first barrier is under way
		epoch = p.c.Epoch
	}
	return Outcome{Topic: p.c.Topic, Partition: p.c.Number, Offset: offset, Epoch: epoch}
}

func (p *Partition) notLeader() *Error {
	if e := p.refused.Load(); e != nil {
		return e
	}
	p.leaderMu.Lock()
	known, closing := p.known, p.closing
	p.leaderMu.Unlock()
	switch {
	case closing:
		return describe(ErrClosed, "%s: the partition is being closed on this broker: try again", p.name)
	case known.Self:
		return describe(ErrNotLeader, "%s: this broker is about to lead the partition: try again", p.name)
	case known.Leader == 0:
		return describe(ErrNotLeader, "%s: the partition has no leader at the moment: try again", p.name)
	}
	return describe(ErrNotLeader, "%s: replica %d leads the partition, not this broker", p.name, known.Leader)
}

// Owing says that this replica leads no more and has yet to answer what it had taken as a leader.
func (p *Partition) Owing() bool { return p.owing.Load() && !p.leading.Load() }

// Leading says whether this replica leads and has committed its Start.
func (p *Partition) Leading() bool { return p.leading.Load() }

// Status of a partition on this broker.
type Status struct {
	Leader    uint64 // replica id, 0 unknown
	Term      uint64
	Leading   bool
	Start     int64
	Next      int64
	Bytes     int64 // stored
	Barrier   uint64
	LogTime   int64 // Unix milliseconds
	Applied   uint64
	Reapplied uint64 // entries applied again after a restart
	Retried   uint64 // proposals made again
	Acked     uint64 // records acked by this broker since it started
	Queued    int    // bytes taken and not yet answered
	Producers int
	IDs       int
	Damage    string
	Restoring *Restoring // nil unless it fetches what its log lacks
}

// Status returns figures that are each true, not all of the same instant.
func (p *Partition) Status() Status {
	b := p.m.look()
	p.leaderMu.Lock()
	known := p.known
	p.leaderMu.Unlock()
	p.a.mu.Lock()
	queued := p.a.bytes
	p.a.mu.Unlock()
	s := Status{
		Leader: known.Leader, Term: known.Term, Leading: p.leading.Load(),
		Start: b.start, Next: b.next, Bytes: p.m.bytes(), Barrier: b.barrier, LogTime: b.logTime, Applied: b.index,
		Reapplied: p.m.reapplied.Load(), Retried: p.retried.Load(), Acked: p.acked.Load(), Queued: queued,
		Producers: b.producers, IDs: b.ids, Restoring: p.m.catching.Load(),
	}
	if d := p.m.damage.Load(); d != nil {
		s.Damage = d.Description
	}
	return s
}

// Shard is the id of that log in the cluster.
func (p *Partition) Shard() uint64 { return p.c.Shard }

// Log is the replicated log below the partition, for membership and leadership.
func (p *Partition) Log() replication.Log { return p.log }

// Close stops the replica; what is under way is answered first. Nothing is deleted.
func (p *Partition) Close() error {
	p.leaderMu.Lock()
	p.closing = true
	if p.current != nil {
		p.current.cancel()
		p.current = nil
	}
	p.leaderMu.Unlock()
	p.cancel()
	ended := make(chan struct{})
	go func() { // waited for below
		p.wg.Wait()
		close(ended)
	}()
	limit := time.NewTimer(closeWait)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C: // what has no majority ends with the log
	}
	err := p.log.Close()
	<-ended
	if err != nil {
		return fmt.Errorf("close partition %s: %w", p.name, err)
	}
	return nil
}

// closeWait is how long Close waits for what is under way to be committed.
const closeWait = time.Second

// Damage says what of this replica is missing or doesn't verify; "" as far as is known nothing.
func (p *Partition) Damage() string {
	if d := p.m.damage.Load(); d != nil {
		return d.Description
	}
	return ""
}
