// Package replication holds the seams between a partition and whatever keeps
// its replicas in step: Log proposes entries and reports leadership,
// StateMachine applies what was committed, Host starts replicas.
//
// Adapters live below it: raft (dragonboat, real disks and sockets) and memlog
// (in memory, with faults). Both pass the suite in replicationtest.
package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors of a proposal. ErrDropped is the only definite rejection: the entry
// was not and never will be committed. After ErrUnknown it may have been, or
// may yet be.
var (
	ErrDropped  = errors.New("proposal dropped")
	ErrUnknown  = errors.New("outcome of the proposal is unknown")
	ErrBusy     = errors.New("log is busy")
	ErrClosed   = errors.New("log is closed")
	ErrNoLeader = errors.New("no leader")
	ErrTooLarge = errors.New("entry is too large")
	// ErrConfigChanged: a membership change named a config-change id that is no
	// longer the newest.
	ErrConfigChanged = errors.New("membership was changed by someone else")
	// ErrLost: what a replica has stored has lost something that it once had. It must not take part
	// any more, as it may have voted for, or acked, what is missing: it is replaced by one with
	// a fresh id.
	ErrLost = errors.New("the replica has lost what it had")
)

// A Log is one replica's handle on one replicated log. All methods may be
// called concurrently.
type Log interface {
	// Propose hands data to the log and returns without waiting for a commit.
	// The log owns data from here on, whatever it returns. An error means that
	// the entry was refused (ErrBusy, ErrClosed, ErrNoLeader, ErrTooLarge): it never commits.
	// Proposals that are in flight together may be dropped one by one: the
	// commit order is not promised to be the order of the calls.
	Propose(data []byte, timeout time.Duration) (Pending, error)

	// Leadership tells who leads, as far as this replica knows.
	Leadership() Leadership

	// Barrier returns once everything that was committed anywhere before the
	// call has been applied here (a linearizable read).
	Barrier(ctx context.Context) error

	// Members returns the committed membership.
	Members(ctx context.Context) (Membership, error)

	// Change alters the membership by one step, if it is still the one that
	// ifConfig names (Membership.ConfigID).
	Change(ctx context.Context, c Change, ifConfig uint64) error

	// Transfer asks for the leadership to move to another replica. It returns
	// when the request was taken, not when it was carried out.
	Transfer(ctx context.Context, to uint64) error

	// Applied is the index of the newest entry handed to the state machine.
	Applied() uint64

	// Close stops the replica; its state machine is closed before Close
	// returns. Nothing is deleted. Pending proposals end with ErrClosed or
	// ErrUnknown.
	Close() error
}

// Pending is a proposal on its way. It has one outcome, which is asked for once, by
// Wait or by WaitContext, from any one goroutine.
type Pending interface {
	// Wait returns the state machine's result once the entry was applied here,
	// or ErrDropped, ErrUnknown, ErrClosed.
	Wait() (Result, error)

	// WaitContext is Wait that may be given up: it returns ctx's error when ctx ends
	// first. Then either is called again, or the proposal is left to itself.
	WaitContext(ctx context.Context) (Result, error)
}

// Leadership as one replica knows it. Leader is 0 while there is none.
type Leadership struct {
	Leader uint64 // replica id
	Term   uint64
	Self   bool // this replica leads
}

// Membership of a log as last committed: replica id to its peer address, which is where
// the replica is now as far as this one knows, and empty where it doesn't.
type Membership struct {
	ConfigID  uint64
	Voters    map[uint64]string
	NonVoting map[uint64]string
	Removed   map[uint64]struct{}
}

// ChangeKind is one step of a membership change.
type ChangeKind uint8

const (
	AddNonVoting ChangeKind = iota + 1
	Promote
	Remove
)

func (k ChangeKind) String() string {
	switch k {
	case AddNonVoting:
		return "add"
	case Promote:
		return "promote"
	case Remove:
		return "remove"
	default:
		return "change"
	}
}

// Change is one step: the replica and, unless it is removed, its address.
type Change struct {
	Kind    ChangeKind
	Replica uint64
	Address string
}

// Entry is a committed entry. Indexes rise; there are gaps where the log's own
// entries were. Data belongs to the log: a state machine copies what it keeps.
type Entry struct {
	Index  uint64
	Data   []byte
	Result Result // set by Apply
}

// Result is what a state machine answers to one entry.
type Result struct {
	Value uint64
	Data  []byte
}

// A StateMachine applies a log on one replica. Apply, Sync and the snapshot
// methods are called as the log sees fit: Apply never concurrently with itself,
// PrepareSnapshot or RecoverFromSnapshot; SaveSnapshot and Sync may run beside Apply.
type StateMachine interface {
	// Open returns the index up to which applied state is durable. Entries above
	// it are applied again. Called once, before anything else.
	Open(stop <-chan struct{}) (uint64, error)

	// Apply applies entries in order and sets each Result. Its effects need not
	// be durable, but must survive in order: never a later one without an
	// earlier one. An error is fatal to the process.
	Apply(entries []Entry) error

	// Sync makes everything that was applied before the call durable.
	Sync() error

	// PrepareSnapshot fixes a point in time for SaveSnapshot.
	PrepareSnapshot() (any, error)

	// SaveSnapshot writes the state as of the point that PrepareSnapshot fixed.
	SaveSnapshot(point any, w io.Writer, stop <-chan struct{}) error

	// RecoverFromSnapshot replaces all state by the snapshot's, durably.
	RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error

	// Close releases what Open took.
	Close() error
}

// A Reaching state machine knows more than Open tells: entries above the index that Open returned
// were applied once as well, up to Reach. A log that doesn't hold them any more has lost its
// end, and Start fails with ErrLost before the replica says a word. 0: that isn't known.
type Reaching interface {
	StateMachine
	Reach() uint64
}

// A Warned state machine is told why a snapshot of it could not be sent.
type Warned interface {
	StateMachine
	SnapshotFailed(err error)
}

// Replica says which replica of which log to start.
type Replica struct {
	Shard   uint64 // the log's id in the cluster, never reused
	Replica uint64 // this replica's id within it, never reused

	// Initial maps replica id to address when this is one of the log's first
	// replicas. It is empty for a replica that joins later, which the members
	// must have added first. After a restart it may be given again or left out.
	Initial map[uint64]string
	Join    bool

	// Again: the replica is a member and was started here before. When nothing is known of it, Start fails
	// with ErrLost: to join under its old id would make it forget what it voted for, and a first
	// replica that joins stays non-voting for ever.
	Again bool

	// OnLeader is called on each change of leadership, in order, one at a
	// time. It must not block.
	OnLeader func(Leadership)
}

// Cutting is a Log that can be told to forget its entries.
type Cutting interface {
	// Cut syncs the state machine and has the log begin after what it has applied, from the next
	// start of the replica on at the latest: whoever joins later gets a snapshot, and never
	// the entries. For a state that the entries alone don't lead to.
	Cut(ctx context.Context) error

	// Shorten does so too, at once, and keeps a few of the newest entries for followers that lag a little. It does
	// nothing where entries are missing already: whoever joins gets a snapshot then. It reports whether it cut.
	Shorten(ctx context.Context) (cut bool, err error)
}

// Holding is a Log that can say whether everything that it holds was applied.
type Holding interface {
	// Unapplied is the index of the last proposal in the replica's own log that its state machine
	// has not been given yet, known to be committed or not; 0 when there is none. A log that can't be told to
	// give what isn't known to be committed says an *UnprovenError when it has such proposals.
	Unapplied() (uint64, error)
}

// UnprovenError says how many proposals a log holds that it doesn't know to be committed, and will not apply.
type UnprovenError struct {
	Proposals int
	Last      uint64 // the last one's index
}

func (e *UnprovenError) Error() string {
	return fmt.Sprintf("%d entries up to %d are in the log and not known to be committed", e.Proposals, e.Last)
}

// LogOf names one replica's own log.
type LogOf struct{ Shard, Replica uint64 }

// LogEnd is where it ends: the term and the index of its last entry, known to be committed or not, and the index of
// its newest snapshot.
type LogEnd struct{ Term, Index, Snapshot uint64 }

// Keeping is a Host that knows what its replicas' own logs hold, whoever else has it: for logs whose majority
// is gone for good. Neither method needs, or reaches, another replica.
type Keeping interface {
	// End is the term and the index of the last entry in a replica's own log, known to be committed or not. Zero when
	// nothing is known of it. Of two replicas the one whose end is greater has everything of the other's that
	// may have been committed.
	End(shard, replica uint64) (term, index uint64, err error)

	// Replay opens the state machine of a replica that doesn't run and applies all of its own log to it, known to be
	// committed or not. The caller closes it; after an error it is closed.
	Replay(ctx context.Context, shard, replica uint64, sm StateMachine) error

	// Shards are the logs that something is kept of under a replica's id.
	Shards(replica uint64) []uint64
}

// A Host runs the replicas of one broker.
type Host interface {
	Start(ctx context.Context, r Replica, sm StateMachine) (Log, error)

	// Remove deletes what the host keeps of a stopped replica, for good.
	Remove(ctx context.Context, shard, replica uint64) error

	// Close stops what still runs.
	Close() error
}
