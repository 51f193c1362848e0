package memlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/parleymq/parley/replication"
)

// forever is the deadline of what a context ends.
var forever = time.Unix(1<<40, 0)

var errRefused = errors.New("the log refused it: a replica that was removed or is a member already can't be added, " +
	"only a non-voting one can be promoted, and the last voter can't be removed")

// Host implements replication.Host. Closing it and starting its replicas again is a restart
// of the process.
type Host struct {
	c        *Cluster
	address  string
	replicas map[uint64]*replica // running, by shard
	closed   bool
}

// Address is what NewCluster's caller named it.
func (h *Host) Address() string { return h.address }

// replica implements replication.Log.
type replica struct {
	c        *Cluster
	host     *Host
	g        *group
	shard    uint64
	id       uint64
	onLeader func(replication.Leadership)

	// Used with Cluster.steps held.
	sm      replication.StateMachine
	stop    chan struct{}
	entries []replication.Entry

	// Guarded by Cluster.mu.
	closed   bool
	applied  uint64 // index up to which the log is done with, gaps included
	handed   uint64 // newest index that the state machine was given
	view     replication.Leadership
	inFlight map[*proposal]struct{}
	closeErr error
}

// Start implements replication.Host.
func (h *Host) Start(_ context.Context, r replication.Replica, sm replication.StateMachine) (replication.Log, error) {
	fail := func(err error) (replication.Log, error) {
		return nil, fmt.Errorf("start replica %d of log %d: %w", r.Replica, r.Shard, err)
	}
	c := h.c
	c.steps.Lock()
	defer c.steps.Unlock()
	c.mu.Lock()
	g := c.group(r.Shard)
	fresh := len(g.log) == 0
	err := h.startable(g, r)
	c.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	p := &replica{
		c: c, host: h, g: g, shard: r.Shard, id: r.Replica, onLeader: r.OnLeader,
		sm: sm, stop: make(chan struct{}), inFlight: make(map[*proposal]struct{}),
	}
	index, err := sm.Open(p.stop)
	if err != nil {
		return fail(fmt.Errorf("open state machine: %w", err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if index > g.last() {
		_ = sm.Close()
		return fail(fmt.Errorf("state machine is at index %d, but the log ends at %d: ask for a fresh replica id", index, g.last()))
	}
	p.applied, p.handed = index, index
	if fresh {
		// Like dragonboat: one entry for each first member.
		for range len(r.Initial) - 1 {
			g.append(entry{kind: noEntry})
		}
		g.commitChange(&proposal{c: c, r: p, change: &change{initial: r.Initial}})
	}
	g.replicas[r.Replica] = p
	h.replicas[r.Shard] = p
	c.nudge()
	return p, nil
}

func (h *Host) startable(g *group, r replication.Replica) error {
	_, removed := g.members.Removed[r.Replica]
	switch {
	case h.closed:
		return replication.ErrClosed
	case r.Shard == 0 || r.Replica == 0:
		return errors.New("ids are 1 or more")
	case h.replicas[r.Shard] != nil || g.replicas[r.Replica] != nil:
		return errors.New("it runs already: close it first")
	case removed:
		return errors.New("it was removed: its id can't be used again")
	case len(g.log) == 0 && (r.Join || len(r.Initial) == 0):
		return errors.New("nothing is known of the log: give Initial for one of its first replicas")
	}
	return nil
}

// Remove implements replication.Host. There is nothing to delete, but that an id can't return.
func (h *Host) Remove(_ context.Context, shard, id uint64) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if p := h.replicas[shard]; p != nil && p.id == id {
		return fmt.Errorf("remove replica %d of log %d: it runs: close it first", id, shard)
	}
	return nil
}

// Close implements replication.Host.
func (h *Host) Close() error {
	h.c.mu.Lock()
	h.closed = true
	running := slices.SortedFunc(maps.Values(h.replicas), func(a, b *replica) int { return int(a.shard) - int(b.shard) })
	h.c.mu.Unlock()
	var err error
	for _, p := range running {
		err = errors.Join(err, p.Close())
	}
	return err
}

// Propose implements replication.Log.
func (r *replica) Propose(data []byte, timeout time.Duration) (replication.Pending, error) {
	c := r.c
	if timeout <= 0 {
		return nil, fmt.Errorf("propose: timeout is %v: more than 0 is allowed", timeout)
	}
	if len(data) > c.options.MaxEntry {
		return nil, fmt.Errorf("propose: %w: it has %d bytes, up to %d are allowed",
			replication.ErrTooLarge, len(data), c.options.MaxEntry)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.closed:
		return nil, fmt.Errorf("propose: %w", replication.ErrClosed)
	case len(r.inFlight) >= c.options.MaxInFlight:
		return nil, fmt.Errorf("propose: %w", replication.ErrBusy)
	}
	return r.propose(&proposal{c: c, r: r, data: data, deadline: time.Now().Add(timeout)}), nil
}

// propose sends p on its way. mu is held.
func (r *replica) propose(p *proposal) *proposal {
	c, g := r.c, r.g
	r.inFlight[p] = struct{}{}
	switch {
	case r.view.Leader == 0, r.view.Self && g.transfer != 0:
		p.resolve(replication.Result{}, replication.ErrDropped)
	case c.cut[r.host]:
		// It goes nowhere, and the proposer waits for its timeout.
	case g.transfer != 0:
		// The leader drops what a follower forwarded, and can't tell it.
	default:
		p.fate = Commit
		if p.change == nil {
			p.fate = g.nextFate(c)
		}
		g.queue = append(g.queue, p)
		c.nudge()
	}
	return p
}

func (g *group) nextFate(c *Cluster) Fate {
	if len(g.fates) > 0 {
		f := g.fates[0]
		g.fates = g.fates[1:]
		return f
	}
	f := c.options.Faults
	if f == (Faults{}) {
		return Commit
	}
	chance := c.rng.Float64()
	for _, o := range []struct {
		p    float64
		fate Fate
	}{
		{f.Drop, Drop}, {f.Lose, Lose}, {f.CommitMutely, CommitMutely},
		{f.CommitLate, CommitLate}, {f.CommitTwice, CommitTwice}, {f.CommitBehind, CommitBehind},
	} {
		if chance < o.p {
			return o.fate
		}
		chance -= o.p
	}
	return Commit
}

// Leadership implements replication.Log.
func (r *replica) Leadership() replication.Leadership {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.view
}

// Barrier implements replication.Log.
func (r *replica) Barrier(ctx context.Context) error {
	r.c.mu.Lock()
	target := r.g.last()
	r.c.mu.Unlock()
	if err := r.wait(ctx, func() bool { return r.g.ready(r.c) && r.c.reachable(r) && r.applied >= target }); err != nil {
		return fmt.Errorf("wait for barrier of log %d: %w", r.shard, err)
	}
	return nil
}

// Members implements replication.Log.
func (r *replica) Members(ctx context.Context) (replication.Membership, error) {
	if err := r.Barrier(ctx); err != nil {
		return replication.Membership{}, fmt.Errorf("read members of log %d: %w", r.shard, err)
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	m := r.g.members
	m.Voters, m.NonVoting, m.Removed = maps.Clone(m.Voters), maps.Clone(m.NonVoting), maps.Clone(m.Removed)
	return m, nil
}

// Change implements replication.Log.
func (r *replica) Change(ctx context.Context, ch replication.Change, ifConfig uint64) error {
	fail := func(err error) error {
		return fmt.Errorf("change members of log %d (%s replica %d): %w", r.shard, ch.Kind, ch.Replica, err)
	}
	if ch.Kind < replication.AddNonVoting || ch.Kind > replication.Remove {
		return fail(fmt.Errorf("unknown kind of change %d", ch.Kind))
	}
	if err := r.wait(ctx, func() bool { return r.view.Leader != 0 }); err != nil {
		return fail(err)
	}
	r.c.mu.Lock()
	p := &proposal{c: r.c, r: r, change: &change{Change: ch, ifConfig: ifConfig}, deadline: forever}
	r.propose(p)
	r.c.mu.Unlock()
	if err := r.wait(ctx, func() bool { return p.resolved }); err != nil {
		if errors.Is(err, replication.ErrClosed) {
			return fail(err)
		}
		return fail(fmt.Errorf("%w (%w)", replication.ErrUnknown, err))
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if p.err != nil {
		return fail(p.err)
	}
	return nil
}

// Transfer implements replication.Log.
func (r *replica) Transfer(_ context.Context, to uint64) error {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	switch {
	case r.closed:
		return fmt.Errorf("transfer log %d to replica %d: %w", r.shard, to, replication.ErrClosed)
	case to == 0:
		return fmt.Errorf("transfer log %d to replica 0: ids are 1 or more", r.shard)
	}
	if r.g.leader != to {
		r.g.transfer = to
	}
	r.c.nudge()
	return nil
}

// Applied implements replication.Log.
func (r *replica) Applied() uint64 {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.handed
}

// Close implements replication.Log.
func (r *replica) Close() error {
	r.c.steps.Lock()
	defer r.c.steps.Unlock()
	r.c.halt(r)
	return r.closeErr
}

// halt closes r. The caller holds steps.
func (c *Cluster) halt(r *replica) {
	c.mu.Lock()
	if r.closed {
		c.mu.Unlock()
		return
	}
	r.closed = true
	r.view = replication.Leadership{}
	delete(r.g.replicas, r.id)
	delete(r.host.replicas, r.shard)
	if r.g.leader == r.id {
		r.g.leader = 0
	}
	for p := range r.inFlight {
		p.resolve(replication.Result{}, replication.ErrClosed)
	}
	c.mu.Unlock()
	close(r.stop)
	r.closeErr = r.sm.Close()
	c.mu.Lock()
	c.moved.Broadcast()
	c.mu.Unlock()
	c.nudge()
}

func (r *replica) isClosed() bool {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.closed
}

// wait until ready, or until ctx or the replica ends.
func (r *replica) wait(ctx context.Context, ready func() bool) error {
	unhook := context.AfterFunc(ctx, func() {
		r.c.mu.Lock()
		r.c.moved.Broadcast()
		r.c.mu.Unlock()
	})
	defer unhook()
	if r.c.waitFor(ready, func() bool { return r.closed || ctx.Err() != nil }) {
		return nil
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	switch {
	case r.closed:
		return replication.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return replication.ErrNoLeader
	}
}
