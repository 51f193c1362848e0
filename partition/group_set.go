package partition

import (
	"context"
	"slices"

	"github.com/parleymq/parley/partition/group"
)

// SetGroup resets or deletes a group on this partition. Leases and deliveries from before are void:
// their tokens are old. A member that goes on after a deletion makes the group anew. Errors: not_leader,
// group_not_found (a reset only), bad_request, unavailable.
func (p *Partition) SetGroup(ctx context.Context, s group.Set) error {
	if err := p.setGroup(ctx, s); err != nil {
		return err
	}
	return nil
}

func (p *Partition) setGroup(ctx context.Context, s group.Set) *Error {
	o := group.Options{From: s.To}
	if err := group.CheckName(s.Group); err != nil {
		return describe(ErrBadRequest, "%s: %v", p.name, err)
	}
	if err := o.Check(); err != nil {
		return describe(ErrBadRequest, "%s: %v", p.name, err)
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return err
	}
	if s.Delete {
		return gl.delete(ctx, s.Group)
	}
	if start, next := p.Bounds(); s.To.Kind == group.AtOffset && (s.To.Value < start || s.To.Value > next) {
		return describe(ErrBadRequest, "%s: offset %d is outside the log, which holds %d to %d", p.name, s.To.Value, start, next)
	}
	offset, err := p.position(s.To, 0)
	if err != nil {
		return err
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	code, _, err := gl.commitOp(ctx, func(e *group.Entry) { e.Move(s.Group, offset) }, func(code group.Code, _ uint64) {
		if g := gl.led[s.Group]; g != nil && code == group.OK {
			if g.d != nil {
				gl.begin(g)
			}
			gl.wakeChange(g)
			gl.serve(g)
			gl.enlist(g)
			gl.wake()
		}
	})
	switch {
	case err != nil:
		return err
	case code == group.Absent:
		return describe(ErrGroupNotFound, "%s: group %s is not known", p.name, s.Group)
	case code != group.OK:
		return describe(ErrUnavailable, "%s: group %s could not be reset: code %d", p.name, s.Group, code)
	}
	return nil
}

// delete forgets a group. That it is not there is no error.
func (gl *groupLead) delete(ctx context.Context, name string) *Error {
	gl.mu.Lock()
	defer gl.mu.Unlock()
	_, _, err := gl.commitOp(ctx, func(e *group.Entry) { e.Delete(name) }, func(code group.Code, _ uint64) {
		g := gl.led[name]
		if g == nil || code != group.OK {
			return
		}
		gl.failWaiters(g, describe(ErrGroupNotFound, "%s: group %s was deleted", gl.p.name, name))
		gl.forsake(g)
		g.d, g.c, g.lease, g.stuck, g.held, g.damage = nil, nil, leaseTime{}, nil, held{}, ""
		gl.wakeChange(g)
		gl.drop(g)
	})
	return err
}

// dropAfterMS is how soon a group that is gone is looked at again, when somebody still had to do with it.
const dropAfterMS = 1000

// sizeEveryMS is how long the size of the groups' state is taken for what it was.
const sizeEveryMS = 500

// noRoom says that nothing more of groups is begun here, when what is kept of them takes too much. mu is held.
func (gl *groupLead) noRoom() *Error {
	if now := gl.p.now(); gl.sizeAt == 0 || now-gl.sizeAt >= sizeEveryMS {
		gl.table.mu.RLock()
		gl.size = gl.table.s.Bytes()
		gl.table.mu.RUnlock()
		gl.sizeAt = max(now, 1)
	}
	if most := gl.p.c.Limits.GroupState; gl.size >= most {
		return describe(ErrTooMany, "%s: what is kept here of consumer groups takes %d KiB, at most %d KiB are allowed: delete groups that nobody runs, or let members ack what they hold",
			gl.p.name, gl.size>>10, most>>10)
	}
	return nil
}

// drop forgets a group that the log knows no more; where something of it is under way, it is looked at again. mu is held.
func (gl *groupLead) drop(g *ledGroup) {
	gl.table.mu.RLock()
	_, known := gl.table.s.Options(g.name)
	_, anchored := gl.table.s.AnchorOptions(g.name)
	gl.table.mu.RUnlock()
	switch {
	case known || anchored || gl.led[g.name] != g:
	case g.d != nil || g.c != nil && g.c.Pending() || len(g.waiters) > 0 || g.gathering != nil || g.sent != nil || g.isDirty || g.isHungry:
		gl.lookAt(gl.p.now() + dropAfterMS)
	default:
		delete(gl.led, g.name)
		gl.all = slices.DeleteFunc(gl.all, func(o *ledGroup) bool { return o == g })
	}
}

// GroupStates returns what the leader knows of one group, or of all ("") by name. Errors: not_leader, unavailable.
// A group that it doesn't know is no error: the list is empty.
func (p *Partition) GroupStates(name string) ([]group.Status, error) {
	gl, err := p.leadingGroups()
	if err != nil {
		return nil, err
	}
	b := p.m.look()
	logNow := p.logTimeNow(b)
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.table.mu.RLock()
	names := []string{name}
	if name == "" {
		names = gl.table.s.Names()
	}
	var list []group.Status
	for _, n := range names {
		if st, ok := gl.table.s.Status(n, b.next); ok {
			list = append(list, st)
		}
	}
	gl.table.mu.RUnlock()
	now := p.now()
	for i := range list {
		st := &list[i]
		if st.Lag > 0 {
			if at, err := p.m.timeOf(st.Committed, b); err == nil {
				st.LagMS = max(0, logNow-at)
			}
		}
		g := gl.led[st.Group]
		if g == nil {
			continue
		}
		if st.Holder != "" && g.lease.token == st.Token && now >= g.lease.deadline {
			st.Holder = ""
		}
		if g.d != nil {
			var c group.Counters
			st.Pending, st.Redelivering, st.DeadPending, c = g.d.Figures()
			st.Handled, st.Delivered, st.Redelivered, st.DeadLetters = c.Handled, c.Delivered, c.Redelivered, c.DeadLetters
		} else {
			st.Handled = uint64(max(0, st.Committed-g.handledFrom))
		}
		if st.Stuck, st.Problem = gl.stuckNow(g, st.Token, st.Committed); st.Stuck != nil && g.d == nil {
			st.DeadPending = int64(st.Stuck.Waiting)
		}
		if g.damage != "" {
			st.Problem = g.damage
		}
	}
	return list, nil
}

// timeOf returns about when the record at offset was appended, in log time: no more than a second early.
func (m *machine) timeOf(offset int64, b bounds) (int64, error) {
	k, v, ok, err := m.store.SeekBack(markKey(offset))
	if err != nil || !ok {
		return b.logTime, err
	}
	mk, err := parseMark(k, v)
	return mk.logTime, err
}
