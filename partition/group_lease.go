package partition

import (
	"context"
	"time"

	"github.com/parleymq/parley/partition/group"
)

// leaseTime is what the leader's clock knows of a lease that the log holds.
type leaseTime struct {
	token    uint64 // of which lease
	deadline int64
	wanted   uint64 // the newest generation that asks for it
}

// maxGeneration is beyond what counting ever reaches. A request that names a higher one would be the last that the partition, or
// the anchor, hears of: everybody else's generation would be old for good.
const maxGeneration = 1 << 62

func (p *Partition) checkGeneration(name string, generation uint64) *Error {
	if generation >= maxGeneration {
		return describe(ErrBadRequest, "%s: group %s: generation %d: less than %d is allowed", p.name, name, generation, uint64(maxGeneration))
	}
	return nil
}

// leaseOf returns the lease as the log has it, and how long it lasts. One that this leader doesn't know was granted just
// now, and its outcome is still to come: it begins. mu is held.
func (gl *groupLead) leaseOf(g *ledGroup, session int64) (l group.LeaseStatus, known bool) {
	gl.table.mu.RLock()
	l, known = gl.table.s.Lease(g.name)
	gl.table.mu.RUnlock()
	if known && g.lease.token == 0 {
		g.handledFrom = l.Floor
	}
	if known && g.lease.token != l.Token {
		g.lease.token, g.lease.deadline = l.Token, gl.p.now()+session
	}
	return l, known
}

// LeaseGroup grants or renews the lease of this partition, waiting for its former holder. The
// partition learns of the group from the request. Errors: not_leader, lease_held (Lease.HeldMS says
// for how long), stale_generation (Lease.Generation says which is newer: hand it to SyncGroup), lease_lost (the token
// is old), group_mismatch, bad_request, unavailable.
func (p *Partition) LeaseGroup(ctx context.Context, r group.LeaseRequest) (group.Lease, error) {
	l, err := p.leaseGroup(ctx, r)
	if err != nil {
		return l, err
	}
	return l, nil
}

func (p *Partition) leaseGroup(ctx context.Context, r group.LeaseRequest) (none group.Lease, _ *Error) {
	if err := p.checkGroup(r.Group, r.Member, &r.Options); err != nil {
		return none, err
	}
	if err := p.checkGeneration(r.Group, r.Generation); err != nil {
		return none, err
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return none, err
	}
	// Whatever is said below, only the leader may say.
	if err := p.sure(ctx); err != nil {
		return none, err
	}
	limit := time.NewTimer(waitOf(r.WaitMS, group.MaxWaitMS))
	defer limit.Stop()
	gl.mu.Lock()
	defer gl.mu.Unlock()
	o, err := gl.ensure(ctx, r.Group, &r.Options, group.Exclusive)
	if err != nil {
		return none, err
	}
	if o.Mode != group.Exclusive {
		return none, mismatch(p, r.Group, "mode "+o.Mode.String()+", and leases are for exclusive groups: pull from it")
	}
	for {
		if gl.over != nil {
			return none, p.notLeader()
		}
		g := gl.get(r.Group)
		l, known := gl.leaseOf(g, o.SessionMS)
		now := p.now()
		mine := l.Held && l.Member == r.Member
		switch {
		case !known:
			return none, describe(ErrGroupNotFound, "%s: group %s was deleted", p.name, r.Group)
		case r.Token != 0 && (!mine || l.Token != r.Token):
			return none, describe(ErrLeaseLost, "%s: group %s: token %d is old: another member has had the partition since, or the group was reset", p.name, r.Group, r.Token)
		case r.Token != 0:
			g.lease.deadline = now + o.SessionMS
			gl.told(g, l.Token, r.Member, r.Stuck)
			return group.Lease{Token: l.Token, Next: l.Floor, Wanted: g.lease.wanted > l.Generation, Generation: l.Generation}, nil
		case r.Generation < max(l.Generation, g.lease.wanted):
			newest := max(l.Generation, g.lease.wanted)
			return group.Lease{Generation: newest}, describe(ErrStaleGeneration, "%s: group %s: generation %d gives the partition to another, yours is %d: ask the group's anchor", p.name, r.Group, newest, r.Generation)
		}
		generation := group.Believable(max(l.Generation, g.lease.wanted), r.Generation)
		g.lease.wanted = generation
		// A holder that asks without its token begins anew, after it gave itself up for lost: what it did under the
		// old token may still be going on, so it gets a new one.
		if mine || !l.Held || now >= g.lease.deadline {
			code, token, err := gl.commitOp(ctx, func(e *group.Entry) { e.Grant(r.Group, l.Token, r.Member, generation) }, func(code group.Code, token uint64) {
				if code == group.OK {
					g.lease.token, g.lease.deadline = token, gl.p.now()+o.SessionMS
					gl.wakeChange(g)
				}
			})
			switch {
			case err != nil:
				return none, err
			case code == group.OK:
				l, _ := gl.leaseOf(g, o.SessionMS)
				return group.Lease{Token: token, Next: l.Floor, Wanted: g.lease.wanted > generation, Generation: r.Generation}, nil
			}
			continue // someone else was faster: what stands now is judged anew
		}
		if out, err := gl.waitForLease(ctx, g, limit.C, g.lease.deadline-now); err != nil {
			return none, err
		} else if out {
			l, _ := gl.leaseOf(g, o.SessionMS)
			held := max(g.lease.deadline-p.now(), 1)
			return group.Lease{HeldMS: held}, describe(ErrLeaseHeld, "%s: group %s: member %s holds the lease for up to %d ms more", p.name, r.Group, l.Member, held)
		}
	}
}

// waitForLease waits until the lease may be free. mu is held before and after.
func (gl *groupLead) waitForLease(ctx context.Context, g *ledGroup, limit <-chan time.Time, ms int64) (out bool, _ *Error) {
	change := g.waitChange()
	gl.mu.Unlock()
	defer gl.mu.Lock()
	expired := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer expired.Stop()
	select {
	case <-change:
		return false, nil
	case <-expired.C:
		// Whoever takes a lease for run out must lead for certain.
		return false, gl.p.sure(ctx)
	case <-limit:
		return true, nil
	case <-ctx.Done():
		return false, asError(gl.p, ctx.Err())
	case <-gl.l.ctx.Done():
		return false, gl.p.notLeader()
	}
}

// waitOf makes a request's wait a duration, at most so many ms.
func waitOf(ms, most int64) time.Duration {
	return time.Duration(min(max(ms, 0), most)) * time.Millisecond
}

// CommitGroup moves the cursor of an exclusive group; it returns once that is committed. What
// comes together becomes one log entry. Errors: not_leader, lease_lost, group_not_found,
// bad_request (beyond the log, or below what was committed), unavailable (outcome unknown: commit again).
func (p *Partition) CommitGroup(ctx context.Context, c group.Commit) (group.Committed, error) {
	done, err := p.commitGroup(ctx, c)
	if err != nil {
		return done, err
	}
	return done, nil
}

func (p *Partition) commitGroup(ctx context.Context, c group.Commit) (none group.Committed, _ *Error) {
	if err := p.checkGroup(c.Group, c.Member, nil); err != nil {
		return none, err
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return none, err
	}
	if err := p.sure(ctx); err != nil {
		return none, err
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.table.mu.RLock()
	o, known := gl.table.s.Options(c.Group)
	gl.table.mu.RUnlock()
	if !known {
		return none, describe(ErrGroupNotFound, "%s: group %s is not known", p.name, c.Group)
	}
	g := gl.get(c.Group)
	l, _ := gl.leaseOf(g, o.SessionMS)
	lost := func() *Error {
		return describe(ErrLeaseLost, "%s: group %s: token %d is old: another member has had the partition since, or the group was reset", p.name, c.Group, c.Token)
	}
	if o.Mode != group.Exclusive || !l.Held || l.Member != c.Member || l.Token != c.Token {
		return none, lost()
	}
	if _, next := p.Bounds(); c.Offset > next {
		return none, describe(ErrBadRequest, "%s: group %s: offset %d is beyond the log, which ends before %d", p.name, c.Group, c.Offset, next)
	}
	g.lease.deadline = p.now() + o.SessionMS
	gl.told(g, l.Token, c.Member, c.Stuck)
	wanted := func() bool { return g.lease.wanted > l.Generation }
	if !c.Release && (c.Offset < 0 || c.Offset == l.Floor) {
		return group.Committed{Offset: l.Floor, Wanted: wanted()}, nil
	}
	code, value, err := gl.commitOp(ctx, func(e *group.Entry) { e.Commit(c.Group, c.Token, max(c.Offset, -1), c.Release) }, func(code group.Code, _ uint64) {
		if code == group.OK && c.Release {
			gl.wakeChange(g)
		}
	})
	switch {
	case err != nil:
		return none, err
	case code == group.Absent:
		return none, describe(ErrGroupNotFound, "%s: group %s was deleted", p.name, c.Group)
	case code == group.Below:
		return none, describe(ErrBadRequest, "%s: group %s: offset %d is below %d, which is committed, or beyond the log: reset the group to go back", p.name, c.Group, c.Offset, value)
	case code != group.OK:
		return none, lost()
	}
	return group.Committed{Offset: int64(value), Wanted: wanted()}, nil
}

// checkGroup returns what is wrong with a request's names and options.
func (p *Partition) checkGroup(name, member string, o *group.Options) *Error {
	err := group.CheckName(name)
	if err == nil {
		err = group.CheckMember(&group.Member{ID: member})
	}
	if err == nil && o != nil {
		err = o.Check()
	}
	if err != nil {
		return describe(ErrBadRequest, "%s: %v", p.name, err)
	}
	return nil
}
