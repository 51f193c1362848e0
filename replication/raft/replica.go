package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"

	"github.com/parleymq/parley/replication"
)

const (
	// defaultPatience bounds calls whose context has no deadline.
	defaultPatience = 30 * time.Second
	// onePatience bounds one request to dragonboat within such a call: what is
	// lost on the way to a leader, or with it, is asked again.
	onePatience = time.Second
	// retryPause lies between two such requests.
	retryPause = 10 * time.Millisecond
)

// replica is the Log of one replica.
type replica struct {
	replication.Replica
	h       *Host
	session *client.Session

	// Set by Host.Start. Whoever else looks for the machine sees launched first.
	machine  *machine
	launched bool // guarded by Host.mu

	cutting atomic.Bool // a cut was asked for and is not done

	mu         sync.Mutex
	leadership replication.Leadership
	closed     bool
	closeOnce  sync.Once
	closeErr   error
}

var _ replication.Log = (*replica)(nil)

func newReplica(h *Host, r replication.Replica) *replica {
	return &replica{Replica: r, h: h, session: h.nh.GetNoOPSession(r.Shard)}
}

// Propose implements replication.Log.
func (p *replica) Propose(data []byte, timeout time.Duration) (replication.Pending, error) {
	if timeout < p.h.config.Tick {
		return nil, fmt.Errorf("propose: timeout is %v: one tick (%v) or more is allowed", timeout, p.h.config.Tick)
	}
	if len(data) > p.h.config.MaxEntry {
		return nil, fmt.Errorf("propose: %w: it has %d bytes, up to %d are allowed",
			replication.ErrTooLarge, len(data), p.h.config.MaxEntry)
	}
	if p.isClosed() {
		return nil, fmt.Errorf("propose: %w", replication.ErrClosed)
	}
	request, err := p.h.nh.Propose(p.session, data, timeout)
	if err != nil {
		return nil, fmt.Errorf("propose: %w", sentinel(err))
	}
	return pending{p, request}, nil
}

// pending is a proposal on its way.
type pending struct {
	p       *replica
	request *dragonboat.RequestState
}

// Wait implements replication.Pending.
//
// Dropped is definite: dragonboat reports it to the replica where the proposal
// was made, when that replica knew no leader or was handing over its own leadership, and
// before the entry went into a log or a message. A leader that drops what a follower
// forwarded can't tell the follower, whose proposal times out instead.
func (w pending) Wait() (replication.Result, error) {
	return w.outcome(<-w.request.ResultC())
}

// WaitContext implements replication.Pending. A request that is left to itself goes to the collector,
// not to dragonboat's pool.
func (w pending) WaitContext(ctx context.Context) (replication.Result, error) {
	select {
	case result := <-w.request.ResultC():
		return w.outcome(result)
	case <-ctx.Done():
		return replication.Result{}, ctx.Err()
	}
}

func (w pending) outcome(result dragonboat.RequestResult) (replication.Result, error) {
	defer w.request.Release()
	switch {
	case result.Completed():
		r := result.GetResult()
		return replication.Result{Value: r.Value, Data: r.Data}, nil
	case result.Dropped():
		w.p.h.dropped.Add(1)
		return replication.Result{}, replication.ErrDropped
	case result.Terminated() && w.p.isClosed():
		return replication.Result{}, replication.ErrClosed
	default:
		w.p.h.unknown.Add(1)
		return replication.Result{}, replication.ErrUnknown
	}
}

// Leadership implements replication.Log.
func (p *replica) Leadership() replication.Leadership {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leadership
}

// lead takes a leadership event.
func (p *replica) lead(leader, term uint64) {
	now := replication.Leadership{Leader: leader, Term: term, Self: leader == p.Replica.Replica}
	p.mu.Lock()
	if p.closed || now == p.leadership {
		p.mu.Unlock()
		return
	}
	p.leadership = now
	p.mu.Unlock()
	if now.Self {
		p.h.changes.Add(1)
	}
	if p.OnLeader != nil {
		p.OnLeader(now)
	}
}

// Barrier implements replication.Log.
func (p *replica) Barrier(ctx context.Context) error {
	err := p.again(ctx, func(ctx context.Context) error {
		request, err := p.h.nh.ReadIndex(p.Shard, p.patience(ctx))
		if err != nil {
			return err
		}
		return await(ctx, request)
	})
	if err != nil {
		return fmt.Errorf("wait for barrier of log %d: %w", p.Shard, err)
	}
	return nil
}

// Members implements replication.Log. Addresses are where the replicas are now, as far as
// is known here.
func (p *replica) Members(ctx context.Context) (replication.Membership, error) {
	var raw *dragonboat.Membership
	err := p.again(ctx, func(ctx context.Context) (err error) {
		raw, err = p.h.nh.SyncGetShardMembership(ctx, p.Shard)
		return err
	})
	if err != nil {
		return replication.Membership{}, fmt.Errorf("read members of log %d: %w", p.Shard, err)
	}
	m := replication.Membership{
		ConfigID:  raw.ConfigChangeID,
		Voters:    make(map[uint64]string, len(raw.Nodes)),
		NonVoting: make(map[uint64]string, len(raw.NonVotings)),
		Removed:   raw.Removed,
	}
	for id := range raw.Nodes {
		m.Voters[id] = p.h.registry.address(p.Shard, id)
	}
	for id := range raw.NonVotings {
		m.NonVoting[id] = p.h.registry.address(p.Shard, id)
	}
	return m, nil
}

// Change implements replication.Log. It isn't tried again: a change whose outcome is unknown
// returns ErrUnknown, and the caller reads Members.
func (p *replica) Change(ctx context.Context, c replication.Change, ifConfig uint64) error {
	if err := p.change(ctx, c, ifConfig); err != nil {
		return fmt.Errorf("change members of log %d (%s replica %d): %w", p.Shard, c.Kind, c.Replica, err)
	}
	return nil
}

func (p *replica) change(ctx context.Context, c replication.Change, ifConfig uint64) error {
	ctx, cancel := withLimit(ctx)
	defer cancel()
	before, err := p.Members(ctx)
	if err != nil {
		return err
	}
	if before.ConfigID != ifConfig {
		return fmt.Errorf("%w: it is at %d, not at %d", replication.ErrConfigChanged, before.ConfigID, ifConfig)
	}
	nh, shard := p.h.nh, p.Shard
	p.h.registry.hint(shard, c.Replica, c.Address)
	var request *dragonboat.RequestState
	switch c.Kind {
	case replication.AddNonVoting:
		request, err = nh.RequestAddNonVoting(shard, c.Replica, target(shard, c.Replica), ifConfig, p.patience(ctx))
	case replication.Promote:
		if _, ok := before.NonVoting[c.Replica]; !ok {
			return errors.New("it is not a non-voting member: add it as one first")
		}
		request, err = nh.RequestAddReplica(shard, c.Replica, target(shard, c.Replica), ifConfig, p.patience(ctx))
	case replication.Remove:
		request, err = nh.RequestDeleteReplica(shard, c.Replica, ifConfig, p.patience(ctx))
	default:
		return fmt.Errorf("unknown kind of change %d", c.Kind)
	}
	if err != nil {
		return sentinel(err)
	}
	err = await(ctx, request)
	if errors.Is(err, errRejected) {
		after, readErr := p.Members(ctx)
		switch {
		case readErr != nil:
			return readErr
		case after.ConfigID != ifConfig:
			return fmt.Errorf("%w: it is at %d, not at %d", replication.ErrConfigChanged, after.ConfigID, ifConfig)
		default:
			return errors.New("the log refused it: a replica that was removed or is a member already can't be added, and the last voter can't be removed")
		}
	}
	return err
}

// Transfer implements replication.Log.
func (p *replica) Transfer(_ context.Context, to uint64) error {
	if err := p.h.nh.RequestLeaderTransfer(p.Shard, to); err != nil {
		return fmt.Errorf("transfer log %d to replica %d: %w", p.Shard, to, sentinel(err))
	}
	return nil
}

// Applied implements replication.Log.
func (p *replica) Applied() uint64 { return p.machine.applied.Load() }

// Close implements replication.Log.
func (p *replica) Close() error {
	p.closeOnce.Do(func() {
		p.mu.Lock()
		p.closed = true
		p.leadership = replication.Leadership{}
		p.mu.Unlock()
		err := p.h.nh.StopReplica(p.Shard, p.Replica.Replica)
		if err != nil && !errors.Is(err, dragonboat.ErrShardNotFound) {
			p.closeErr = fmt.Errorf("close replica %d of log %d: %w", p.Replica.Replica, p.Shard, sentinel(err))
			return
		}
		<-p.machine.closed
		p.h.release(p)
		p.h.cuts.gone(p)
		if p.machine.err != nil {
			p.closeErr = fmt.Errorf("close state machine of log %d: %w", p.Shard, p.machine.err)
		}
	})
	return p.closeErr
}

func (p *replica) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// again makes a request that changes nothing until it succeeds, or fails for good.
func (p *replica) again(ctx context.Context, request func(ctx context.Context) error) error {
	ctx, cancel := withLimit(ctx)
	defer cancel()
	for {
		one, cancelOne := context.WithTimeout(ctx, max(onePatience, 2*p.h.config.Tick))
		err := sentinel(request(one))
		cancelOne()
		switch {
		case err == nil:
			return nil
		case p.isClosed() || errors.Is(err, replication.ErrClosed):
			return replication.ErrClosed
		case !temporary(err):
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", ctx.Err(), err)
		case <-time.After(retryPause):
		}
	}
}

// patience is what is left of ctx, and never below dragonboat's minimum.
func (p *replica) patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return defaultPatience
	}
	return max(time.Until(deadline), p.h.config.Tick)
}

func withLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, defaultPatience)
}

var errRejected = errors.New("refused by the log")

// await waits for a request other than a proposal. A request that is given up is left to
// the collector, not to dragonboat's pool.
func await(ctx context.Context, request *dragonboat.RequestState) error {
	select {
	case result := <-request.ResultC():
		defer request.Release()
		switch {
		case result.Completed():
			return nil
		case result.Rejected():
			return errRejected
		case result.Dropped():
			return replication.ErrDropped
		case result.Terminated():
			return replication.ErrClosed
		default:
			return replication.ErrUnknown
		}
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", replication.ErrUnknown, ctx.Err())
	}
}

// sentinel turns dragonboat's errors into the seam's.
func sentinel(err error) error {
	for _, m := range []struct{ from, to error }{
		{dragonboat.ErrClosed, replication.ErrClosed},
		{dragonboat.ErrShardClosed, replication.ErrClosed},
		{dragonboat.ErrShardNotFound, replication.ErrClosed},
		{dragonboat.ErrSystemBusy, replication.ErrBusy},
		{dragonboat.ErrShardNotReady, replication.ErrNoLeader},
		{dragonboat.ErrShardNotInitialized, replication.ErrNoLeader},
		{dragonboat.ErrTimeout, replication.ErrUnknown},
		{dragonboat.ErrAborted, replication.ErrUnknown},
		{dragonboat.ErrPayloadTooBig, replication.ErrTooLarge},
	} {
		if errors.Is(err, m.from) {
			return m.to
		}
	}
	return err
}

func temporary(err error) bool {
	return errors.Is(err, replication.ErrBusy) || errors.Is(err, replication.ErrNoLeader) ||
		errors.Is(err, replication.ErrDropped) || errors.Is(err, replication.ErrUnknown) ||
		errors.Is(err, context.DeadlineExceeded)
}
