package partition

import (
	"context"
	"time"

	"github.com/parleymq/parley/partition/group"
)

// anchorKeptMS is how long an anchor without members keeps its generation, in log time.
const anchorKeptMS = 3600 * 1000

// JoinGroup gives a member a place; the partition is the group's anchor. The answer
// comes once the new generation is committed. Errors: not_leader, group_mismatch,
// too_many, bad_request, unavailable.
func (p *Partition) JoinGroup(ctx context.Context, j group.Join) (group.Assignment, error) {
	a, err := p.joinGroup(ctx, j)
	if err != nil {
		return a, err
	}
	return a, nil
}

func (p *Partition) joinGroup(ctx context.Context, j group.Join) (none group.Assignment, _ *Error) {
	if err := p.checkGroup(j.Group, j.Member.ID, &j.Options); err != nil {
		return none, err
	}
	if err := p.checkGeneration(j.Group, j.Generation); err != nil {
		return none, err
	}
	if err := group.CheckMember(&j.Member); err != nil {
		return none, describe(ErrBadRequest, "%s: %v", p.name, err)
	}
	if j.Partitions < 1 || j.Partitions > group.MaxPartitions {
		return none, describe(ErrBadRequest, "%s: %d partitions: 1 to %d are allowed", p.name, j.Partitions, group.MaxPartitions)
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return none, err
	}
	if err := p.groupsForbidden(); err != nil {
		return none, err
	}
	if err := p.sure(ctx); err != nil {
		return none, err
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	if gl.table.full(j.Group) { // before anything is kept of it
		return none, describe(ErrTooMany, "%s: the partition is the anchor of %d groups already: delete some", p.name, group.MaxGroups)
	}
	if !gl.placed(&j) { // who has a place keeps it
		if err := gl.noRoom(); err != nil {
			return none, err
		}
	}
	g := gl.get(j.Group)
	f, err := gl.noteJoin(g, &j)
	if err != nil {
		return none, err
	}
	for f != nil {
		if err := gl.flushed(ctx, f); err != nil {
			return none, err
		}
		if f = nil; !gl.placed(&j) { // not all found room in one entry
			if f = g.sent; g.c != nil && g.c.Joining(j.Member.ID) {
				f = gl.mark(g)
			}
		}
	}
	gl.table.mu.RLock()
	a, ok := gl.table.s.Assignment(j.Group, j.Member.ID)
	_, groups := gl.table.s.Len()
	gl.table.mu.RUnlock()
	if !ok {
		return none, describe(ErrTooMany, "%s: member %s found no place in group %s, or left meanwhile: at most %d members a group and %d groups, here are %d: try again",
			p.name, j.Member.ID, j.Group, group.MaxMembers, group.MaxGroups, groups)
	}
	return a, nil
}

// placed tells whether the log knows the member.
func (gl *groupLead) placed(j *group.Join) bool {
	gl.table.mu.RLock()
	defer gl.table.mu.RUnlock()
	_, ok := gl.table.s.Assignment(j.Group, j.Member.ID)
	return ok
}

// noteJoin hands a join to the coordinator, and returns what to wait for. mu is held.
func (gl *groupLead) noteJoin(g *ledGroup, j *group.Join) (*flush, *Error) {
	gl.table.mu.RLock()
	defer gl.table.mu.RUnlock()
	s := gl.table.s
	o, ok := s.AnchorOptions(j.Group)
	if !ok {
		o, ok = s.Options(j.Group)
	}
	if !ok && g.c != nil {
		o, ok = g.c.Making()
	}
	if ok {
		if c := o.Conflict(&j.Options); c != "" {
			return nil, mismatch(gl.p, j.Group, c)
		}
		j.Options = o
	} else {
		j.Options = j.Options.WithDefaults(group.Exclusive)
	}
	now := gl.p.now()
	if g.c == nil {
		g.c = group.NewCoordinator(s, j.Group, now)
	}
	settled, full := g.c.Join(s, j, now)
	if full {
		return nil, describe(ErrTooMany, "%s: group %s has %d members, that is the most", gl.p.name, j.Group, group.MaxMembers)
	}
	gl.lookAt(now + j.Options.SessionMS)
	if settled {
		return nil, nil
	}
	return gl.markLocked(g), nil
}

// markLocked is mark for a caller that holds the table's lock for reading.
func (gl *groupLead) markLocked(g *ledGroup) *flush {
	gl.table.mu.RUnlock()
	defer gl.table.mu.RLock()
	return gl.mark(g)
}

// flushed waits for a commit. mu is held before and after, but not meanwhile.
func (gl *groupLead) flushed(ctx context.Context, f *flush) *Error {
	gl.mu.Unlock()
	defer gl.mu.Lock()
	select {
	case <-f.done: // comes at the latest when the leadership ends
		return f.err
	case <-ctx.Done():
		return describe(ErrUnavailable, "%s: gave up before the change was committed: it may be in the log: %v", gl.p.name, ctx.Err())
	}
}

// SyncGroup is a member's heartbeat at the anchor, and tells it of the next generation.
// It waits as group.Sync says. Errors: not_leader, unknown_member (join again), unavailable.
func (p *Partition) SyncGroup(ctx context.Context, s group.Sync) (group.Assignment, error) {
	a, err := p.syncGroup(ctx, s)
	if err != nil {
		return a, err
	}
	return a, nil
}

func (p *Partition) syncGroup(ctx context.Context, y group.Sync) (none group.Assignment, _ *Error) {
	if err := p.checkGroup(y.Group, y.Member, nil); err != nil {
		return none, err
	}
	if err := p.checkGeneration(y.Group, y.Generation); err != nil {
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
	var limit *time.Timer
	asked := p.now() // when the member was last heard of, however long it waits here
	for {
		if gl.over != nil {
			return none, p.notLeader()
		}
		g := gl.led[y.Group]
		var a group.Assignment
		known, changed := false, false
		if g != nil && g.c != nil {
			gl.table.mu.RLock()
			_, known = g.c.Sync(gl.table.s, &y, asked)
			changed = g.c.Changed(gl.table.s)
			a, _ = gl.table.s.Assignment(y.Group, y.Member)
			gl.table.mu.RUnlock()
		}
		if !known {
			return none, describe(ErrUnknownMember, "%s: group %s has no member %s: join again", p.name, y.Group, y.Member)
		}
		if changed {
			if err := gl.flushed(ctx, gl.mark(g)); err != nil {
				return none, err
			}
			y.Partitions, y.Generation = 0, 0 // it is in the log now, or as much of it as is believed at once
			continue
		}
		if a.Generation != y.Generation {
			return a, nil
		}
		if limit == nil {
			limit = time.NewTimer(waitOf(y.WaitMS, a.Options.SessionMS/3))
			defer limit.Stop()
		}
		change := g.waitChange()
		gl.mu.Unlock()
		timeout, err := gl.await(ctx, change, limit.C)
		if err == nil && timeout {
			err = p.sure(ctx)
		}
		gl.mu.Lock()
		if err != nil || timeout {
			return a, err
		}
	}
}

// LeaveGroup takes a member out; the others hear of it by their SyncGroup. Leaving twice is no error.
func (p *Partition) LeaveGroup(ctx context.Context, l group.Leave) (group.Assignment, error) {
	a, err := p.leaveGroup(ctx, l)
	if err != nil {
		return a, err
	}
	return a, nil
}

func (p *Partition) leaveGroup(ctx context.Context, l group.Leave) (none group.Assignment, _ *Error) {
	if err := p.checkGroup(l.Group, l.Member, nil); err != nil {
		return none, err
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return none, err
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	g := gl.led[l.Group]
	if g == nil || g.c == nil {
		return none, p.sureLocked(ctx, gl)
	}
	gl.table.mu.RLock()
	was := g.c.Leave(gl.table.s, l.Member)
	o, _ := gl.table.s.AnchorOptions(l.Group)
	gl.table.mu.RUnlock()
	if was {
		if err := gl.flushed(ctx, gl.mark(g)); err != nil {
			return none, err
		}
	} else if err := p.sureLocked(ctx, gl); err != nil {
		return none, err
	}
	return group.Assignment{Options: o}, nil
}

// sureLocked is sure without mu, which is held before and after.
func (p *Partition) sureLocked(ctx context.Context, gl *groupLead) *Error {
	gl.mu.Unlock()
	defer gl.mu.Lock()
	return p.sure(ctx)
}

// lookAfterMembers takes out who was silent for too long. mu is held.
func (gl *groupLead) lookAfterMembers(g *ledGroup, now, logNow int64) {
	gl.table.mu.RLock()
	next := g.c.Expire(gl.table.s, now)
	changed := g.c.Changed(gl.table.s)
	idle := g.c.Idle(gl.table.s, logNow, anchorKeptMS)
	_, anchored := gl.table.s.AnchorOptions(g.name)
	gl.table.mu.RUnlock()
	switch {
	case changed:
		gl.mark(g)
	case idle:
		name := g.name
		// Refused or lost, it is tried again at the next look.
		_ = gl.op(func(e *group.Entry) { e.Forget(name) }, func(code group.Code, _ uint64, err *Error) {
			if err == nil && code == group.OK {
				gl.wakeChange(g)
				gl.drop(g)
			}
		})
	}
	if next == 0 && anchored {
		next = now + anchorKeptMS/4
	}
	gl.lookAt(next)
}
