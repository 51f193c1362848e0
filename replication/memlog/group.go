package memlog

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/parleymq/parley/replication"
)

type entryKind uint8

const (
	dataEntry entryKind = iota
	noEntry             // an index that no state machine sees
	configEntry
)

type entry struct {
	index    uint64
	kind     entryKind
	data     []byte
	proposal *proposal // whom to answer, on the replica that proposed it
	change   *change
}

// change is a membership change on its way.
type change struct {
	replication.Change
	ifConfig uint64
	initial  map[uint64]string
	err      error
	done     bool
}

// proposal is a Pending.
type proposal struct {
	c        *Cluster
	r        *replica
	data     []byte
	change   *change
	fate     Fate
	deadline time.Time

	// Guarded by Cluster.mu.
	resolved bool
	result   replication.Result
	err      error
}

// group is one log: its committed entries, its members, and what is on its way.
type group struct {
	shard    uint64
	log      []entry // all of it, from index 1: every replica's own log holds what it needs
	cut      uint64  // a follower that needs entries below gets a snapshot from the leader
	members  replication.Membership
	term     uint64
	leader   uint64
	transfer uint64 // to whom the leader is handing over
	replicas map[uint64]*replica
	queue    []*proposal // arrived at a leader, or carried over from one
	late     []*proposal // to be committed after others
	fates    []Fate
}

func newGroup(shard uint64) *group {
	return &group{
		shard:    shard,
		replicas: make(map[uint64]*replica),
		members: replication.Membership{
			Voters: map[uint64]string{}, NonVoting: map[uint64]string{}, Removed: map[uint64]struct{}{},
		},
	}
}

func (g *group) last() uint64 { return uint64(len(g.log)) }

func (g *group) append(e entry) uint64 {
	e.index = g.last() + 1
	g.log = append(g.log, e)
	return e.index
}

// sorted lists the running replicas by id.
func (g *group) sorted() []*replica {
	ids := slices.Sorted(maps.Keys(g.replicas))
	out := make([]*replica, len(ids))
	for i, id := range ids {
		out[i] = g.replicas[id]
	}
	return out
}

// reachable: r runs and is not cut off.
func (c *Cluster) reachable(r *replica) bool { return r != nil && !r.closed && !c.cut[r.host] }

// electable: r is a voter that a majority can hear.
func (g *group) electable(c *Cluster, r *replica) bool {
	if _, ok := g.members.Voters[r.id]; !ok || !c.reachable(r) {
		return false
	}
	n := 0
	for id := range g.members.Voters {
		if c.reachable(g.replicas[id]) {
			n++
		}
	}
	return 2*n > len(g.members.Voters)
}

// ready tells whether the leader can commit.
func (g *group) ready(c *Cluster) bool {
	r := g.replicas[g.leader]
	return r != nil && g.electable(c, r)
}

// elect starts a term. What the old leader had in its log but not committed is
// committed by the new one, or lost.
func (g *group) elect(c *Cluster, r *replica) {
	if g.leader != r.id {
		kept := g.queue[:0]
		for _, p := range g.queue {
			if c.rng.IntN(2) == 0 {
				kept = append(kept, p)
				continue
			}
			p.resolveUnknown()
		}
		g.queue = kept
	}
	g.term++
	g.leader, g.transfer = r.id, 0
	g.append(entry{kind: noEntry}) // a new leader's own entry
}

// commit moves a proposal into the log.
func (g *group) commit(c *Cluster, p *proposal) {
	if p.change != nil {
		g.commitChange(p)
		return
	}
	switch p.fate {
	case Drop:
		p.resolve(replication.Result{}, replication.ErrDropped)
	case Lose:
		p.resolveUnknown()
	case CommitMutely:
		p.resolveUnknown()
		g.append(entry{data: p.data})
	case CommitLate:
		p.resolveUnknown()
		p.fate = CommitMutely
		g.late = append(g.late, p)
	case CommitTwice:
		g.append(entry{data: p.data, proposal: p})
		g.append(entry{data: p.data})
	default:
		g.append(entry{data: p.data, proposal: p})
	}
}

func (g *group) commitChange(p *proposal) {
	ch := p.change
	m := &g.members
	_, removed := m.Removed[ch.Replica]
	_, voter := m.Voters[ch.Replica]
	_, nonVoting := m.NonVoting[ch.Replica]
	var err error
	switch {
	case ch.initial != nil:
	case ch.ifConfig != m.ConfigID:
		err = replication.ErrConfigChanged
	case ch.Kind == replication.AddNonVoting && (removed || voter || nonVoting),
		ch.Kind == replication.Promote && !nonVoting,
		ch.Kind == replication.Remove && voter && len(m.Voters) == 1:
		err = errRefused
	}
	index := g.append(entry{kind: configEntry, proposal: p, change: ch})
	if err != nil {
		ch.err, ch.done = err, true
		p.resolve(replication.Result{}, err)
		return
	}
	m.ConfigID = index
	switch {
	case ch.initial != nil:
		maps.Copy(m.Voters, ch.initial)
	case ch.Kind == replication.AddNonVoting:
		m.NonVoting[ch.Replica] = ch.Address
	case ch.Kind == replication.Promote:
		m.Voters[ch.Replica] = m.NonVoting[ch.Replica]
		delete(m.NonVoting, ch.Replica)
	case ch.Kind == replication.Remove:
		delete(m.Voters, ch.Replica)
		delete(m.NonVoting, ch.Replica)
		m.Removed[ch.Replica] = struct{}{}
		if g.leader == ch.Replica {
			g.leader = 0
		}
	}
}

// view is what r would believe if it were told the truth now.
func (g *group) view(r *replica) replication.Leadership {
	return replication.Leadership{Leader: g.leader, Term: g.term, Self: g.leader == r.id}
}

func (p *proposal) resolveUnknown() { p.resolve(replication.Result{}, replication.ErrUnknown) }

// resolve answers the proposer, once.
func (p *proposal) resolve(result replication.Result, err error) {
	if p.resolved {
		return
	}
	p.resolved, p.result, p.err = true, result, err
	delete(p.r.inFlight, p)
	p.c.moved.Broadcast()
}

// Wait implements replication.Pending.
func (p *proposal) Wait() (replication.Result, error) {
	p.c.waitFor(func() bool { return p.resolved }, nil)
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.resolveUnknown() // nothing moves any more
	return p.result, p.err
}

// WaitContext implements replication.Pending.
func (p *proposal) WaitContext(ctx context.Context) (replication.Result, error) {
	defer context.AfterFunc(ctx, func() {
		p.c.mu.Lock()
		defer p.c.mu.Unlock()
		p.c.moved.Broadcast()
	})()
	given := !p.c.waitFor(func() bool { return p.resolved }, func() bool { return ctx.Err() != nil })
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if given && !p.resolved && ctx.Err() != nil {
		return replication.Result{}, ctx.Err()
	}
	p.resolveUnknown() // nothing moves any more
	return p.result, p.err
}

// Done tells whether Wait would return at once.
func (p *proposal) Done() bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.resolved
}
