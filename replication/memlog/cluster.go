// Package memlog keeps replicated logs in memory, for simulations. It does everything that
// a real log may do to its users, and more often: proposals are dropped, lose their
// outcome, commit late, twice or out of order; leaders change at any point; indexes have
// gaps; replicas fall behind, start over at a lower index and need snapshots.
//
// A Cluster is driven in one of two ways. By hand, everything happens inside Step and in the
// order that the seed gives, so that a run can be repeated; a call that has to wait (Wait,
// Barrier, Members, Change) steps the cluster itself until it is answered, so one goroutine is enough, and
// there is no clock: what can't make progress any more counts as timed out.
// After Run, a goroutine steps it, calls wait, and timeouts are real.
//
// The committed log of a group is kept once. What is simulated is what the replicas
// see of it: when it grows, what happens to a proposal on its way there, how far each
// replica has applied, and whom it believes to lead.
package memlog

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"time"

	"github.com/parleymq/parley/replication"
)

// Defaults of Options.
const (
	DefaultMaxInFlight = 1024
	DefaultMaxEntry    = 8 << 20
	DefaultApplyBatch  = 8
)

// Fate is what becomes of one proposal.
type Fate uint8

const (
	Commit       Fate = iota + 1 // it commits, and the proposer learns it
	Drop                         // it doesn't, and the proposer learns it
	Lose                         // it doesn't, and the proposer gets ErrUnknown
	CommitMutely                 // it commits, and the proposer gets ErrUnknown
	CommitLate                   // ErrUnknown comes first, and it commits after later proposals
	CommitTwice                  // the entry is in the log twice; the first one's result counts
	CommitBehind                 // it commits after the proposal that follows it, if there is one
)

func (f Fate) String() string {
	names := [...]string{"", "commit", "drop", "lose", "commit mutely", "commit late", "commit twice", "commit behind"}
	if int(f) < len(names) {
		return names[f]
	}
	return fmt.Sprintf("fate %d", f)
}

// Faults are probabilities from 0 to 1. The first six are of each proposal, the others of
// each step.
type Faults struct {
	Drop, Lose, CommitMutely, CommitLate, CommitTwice, CommitBehind float64

	Elect   float64 // the leadership moves, or is won again in a new term
	Gap     float64 // the log takes an index for itself
	Reopen  float64 // a replica crashes (its state machine must be a Crasher)
	Sync    float64 // a replica's state machine is synced
	Compact float64 // the log is cut behind the leader, so that laggards need snapshots
}

// Options of a Cluster.
type Options struct {
	Seed        uint64
	Faults      Faults
	MaxInFlight int // proposals of one replica; more get ErrBusy
	MaxEntry    int
	ApplyBatch  int // entries that one step applies at most
}

// Cluster is a set of hosts and the logs that they replicate.
type Cluster struct {
	options Options

	// steps is held while a step runs, callbacks included. mu guards the state
	// and is never held in a callback. Order: steps, then mu.
	steps  sync.Mutex
	mu     sync.Mutex
	rng    *rand.Rand
	groups map[uint64]*group
	order  []uint64 // of groups' ids, sorted: map order would spoil the seed
	cut    map[*Host]bool
	moved  *sync.Cond // on mu: something was resolved or applied

	running bool
	stop    chan struct{}
	kick    chan struct{}
	done    chan struct{}
}

// NewCluster makes a cluster without hosts.
func NewCluster(o Options) *Cluster {
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.MaxEntry == 0 {
		o.MaxEntry = DefaultMaxEntry
	}
	if o.ApplyBatch == 0 {
		o.ApplyBatch = DefaultApplyBatch
	}
	c := &Cluster{
		options: o,
		rng:     rand.New(rand.NewPCG(o.Seed, 0x9e3779b97f4a7c15)),
		groups:  make(map[uint64]*group),
		cut:     make(map[*Host]bool),
		kick:    make(chan struct{}, 1),
	}
	c.moved = sync.NewCond(&c.mu)
	return c
}

// Host adds a host. The address only has to be unique.
func (c *Cluster) Host(address string) *Host {
	return &Host{c: c, address: address, replicas: make(map[uint64]*replica)}
}

// Run lets a goroutine step the cluster until Stop.
func (c *Cluster) Run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running {
		return
	}
	c.running = true
	c.stop, c.done = make(chan struct{}), make(chan struct{})
	go c.drive(c.stop, c.done)
}

// Stop ends Run.
func (c *Cluster) Stop() {
	c.mu.Lock()
	if !c.running {
		c.mu.Unlock()
		return
	}
	c.running = false
	stop, done := c.stop, c.done
	c.moved.Broadcast()
	c.mu.Unlock()
	close(stop)
	<-done
}

func (c *Cluster) drive(stop, done chan struct{}) {
	defer close(done)
	expiry := time.NewTicker(time.Millisecond)
	defer expiry.Stop()
	for {
		for c.Step() {
			select {
			case <-stop:
				return
			default:
			}
		}
		select {
		case <-stop:
			return
		case <-c.kick:
		case now := <-expiry.C:
			c.expire(now)
		}
	}
}

func (c *Cluster) nudge() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Settle steps until nothing is left to do.
func (c *Cluster) Settle() {
	for c.Step() {
	}
}

// Fate decides what becomes of the next proposals of a log, one each, before chance does.
func (c *Cluster) Fate(shard uint64, fates ...Fate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.group(shard)
	g.fates = append(g.fates, fates...)
}

// SetFaults replaces the probabilities: zero ones let a simulation come to rest.
func (c *Cluster) SetFaults(f Faults) {
	c.mu.Lock()
	c.options.Faults = f
	c.mu.Unlock()
}

// Elect makes a replica the leader of a new term, if a majority of the voters runs
// and can be reached. It tells whether it did.
func (c *Cluster) Elect(shard, id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.nudge()
	g := c.group(shard)
	r := g.replicas[id]
	if r == nil || !g.electable(c, r) {
		return false
	}
	g.elect(c, r)
	return true
}

// Gap takes n indexes of a log, as configuration changes and a new leader's own entries do.
func (c *Cluster) Gap(shard uint64, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.group(shard)
	for range n {
		g.append(entry{kind: noEntry})
	}
	c.nudge()
}

// Compact forgets all but the newest keep of the entries that the leader has applied, after
// the leader's Sync: followers that lag behind them get a snapshot.
func (c *Cluster) Compact(shard uint64, keep int) error {
	c.steps.Lock()
	defer c.steps.Unlock()
	c.mu.Lock()
	g := c.group(shard)
	c.mu.Unlock()
	return c.compact(g, keep)
}

// Isolate cuts a host off from the others until Heal. Its replicas go on believing
// what they believed; what they propose is lost without a word.
func (c *Cluster) Isolate(h *Host) { c.setCut(h, true) }

// Heal ends Isolate.
func (c *Cluster) Heal(h *Host) { c.setCut(h, false) }

func (c *Cluster) setCut(h *Host, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cut {
		c.cut[h] = true
	} else {
		delete(c.cut, h)
	}
	c.nudge()
}

// Crasher is a state machine that can lose what it hasn't synced. Crash returns
// the state machine that the next process would find, not opened yet; the old one isn't used again.
type Crasher interface {
	Crash() replication.StateMachine
}

// Reopen crashes a replica and starts it again: everything above the index that Open
// returns is applied once more.
func (c *Cluster) Reopen(shard, id uint64) error {
	c.steps.Lock()
	defer c.steps.Unlock()
	c.mu.Lock()
	r := c.group(shard).replicas[id]
	c.mu.Unlock()
	if r == nil {
		return fmt.Errorf("reopen replica %d of log %d: it doesn't run", id, shard)
	}
	defer c.nudge()
	return c.reopen(r)
}

// Committed is the newest index of a log.
func (c *Cluster) Committed(shard uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.group(shard).last()
}

func (c *Cluster) group(shard uint64) *group {
	g := c.groups[shard]
	if g == nil {
		g = newGroup(shard)
		c.groups[shard] = g
		c.order = append(c.order, shard)
		sort.Slice(c.order, func(i, j int) bool { return c.order[i] < c.order[j] })
	}
	return g
}

// expire ends what has waited for too long. It may still commit.
func (c *Cluster) expire(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, shard := range c.order {
		g := c.groups[shard]
		for _, r := range g.sorted() {
			for p := range r.inFlight {
				if now.After(p.deadline) {
					p.resolve(replication.Result{}, replication.ErrUnknown)
				}
			}
		}
	}
}

// waitFor blocks until ready says so, with mu held. By hand it steps the cluster, and
// reports false when nothing moves any more. After Run it waits until stop says so.
func (c *Cluster) waitFor(ready func() bool, stop func() bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !ready() {
		if stop != nil && stop() {
			return false
		}
		if c.running {
			c.nudge()
			c.moved.Wait()
			continue
		}
		c.mu.Unlock()
		moved := c.Step()
		c.mu.Lock()
		if !moved && !c.running {
			return ready()
		}
	}
	return true
}
