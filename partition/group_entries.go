package partition

import (
	"context"

	"github.com/parleymq/parley/partition/group"
)

// flush is one commit of what a dispatcher or coordinator has gathered.
type flush struct {
	done chan struct{}
	err  *Error
	void bool // the group was reset or deleted meanwhile: nothing of it was taken
}

// groupEntry is one log entry about groups.
type groupEntry struct {
	group.Entry
	ops []func(code group.Code, value uint64, e *Error) // one an operation; with mu held
}

// op writes one operation into the next entry. done is called with mu held. mu is held.
func (gl *groupLead) op(write func(e *group.Entry), done func(code group.Code, value uint64, e *Error)) *Error {
	if gl.over != nil {
		return gl.over
	}
	if err := gl.p.groupsForbidden(); err != nil {
		return err
	}
	e := gl.gather()
	if len(e.ops) >= maxGroupOps || e.Size() >= groupEntryBytes {
		return describe(ErrBusy, "%s: too many changes of groups wait to be committed, at most %d are taken: try again", gl.p.name, maxGroupOps)
	}
	write(&e.Entry)
	e.ops = append(e.ops, done)
	gl.propose()
	return nil
}

// groupsForbidden is asked wherever a group can begin, by an operation or by a member's joining; nothing about
// groups is written where there are none.
func (p *Partition) groupsForbidden() *Error {
	if p.c.NoGroups != nil {
		if why := p.c.NoGroups(); why != "" {
			return describe(ErrNotYet, "%s: %s", p.name, why)
		}
	}
	return nil
}

func (gl *groupLead) gather() *groupEntry {
	if gl.open == nil {
		gl.open = &groupEntry{}
		gl.open.Reset(make([]byte, commandHeaderSize, commandHeaderSize+512))
	}
	return gl.open
}

// mark notes that the group's dispatcher or coordinator has something to commit, and returns what to wait for. mu is held.
func (gl *groupLead) mark(g *ledGroup) *flush { return gl.markBy(g, 0) }

// markBy is mark for what may wait so many ms for more. mu is held.
func (gl *groupLead) markBy(g *ledGroup, ms int64) *flush {
	if g.gathering == nil {
		g.gathering = &flush{done: make(chan struct{})}
	}
	f := g.gathering
	if gl.over != nil {
		g.gathering, f.err = nil, gl.p.notLeader()
		close(f.done)
		return f
	}
	due := gl.p.now() + ms
	if len(gl.dirty) == 0 || due < gl.dueAt {
		gl.dueAt = due
		if ms > 0 && gl.sent == nil {
			gl.wake()
		}
	}
	if !g.isDirty {
		g.isDirty = true
		gl.dirty = append(gl.dirty, g)
	}
	gl.propose()
	return f
}

// propose sends the next entry unless one is in flight, or all that it would hold may wait. mu is held.
func (gl *groupLead) propose() {
	if gl.sent != nil || gl.over != nil || gl.open == nil && (len(gl.dirty) == 0 || gl.dueAt > gl.p.now()) {
		return
	}
	e := gl.gather()
	gl.open = nil
	p := gl.p
	now, logNow := p.now(), p.logTimeNow(p.m.look())
	taken := 0
	for _, g := range gl.dirty {
		if e.Size() >= groupEntryBytes {
			break
		}
		taken++
		g.isDirty = false
		gl.write(e, g, now, logNow)
	}
	gl.dirty = gl.dirty[:copy(gl.dirty, gl.dirty[taken:])]
	if e.Len() == 0 {
		return
	}
	gl.sent = e
	if err := p.a.groupEntry(gl.l, e.Bytes(), func(results []byte, err *Error) { gl.settled(e, results, err) }); err != nil {
		gl.sent = nil
		gl.end(err)
		gl.answer(e, err)
	}
}

// write takes what a group has gathered into e.
func (gl *groupLead) write(e *groupEntry, g *ledGroup, now, logNow int64) {
	f, d, before := g.gathering, g.d, len(e.ops)
	if f == nil {
		f = &flush{done: make(chan struct{})} // forsaken: nobody waits
	}
	g.gathering, g.sent = nil, f
	if d != nil && d.Changed() {
		had := e.Len()
		d.Change(&e.Entry, g.name, now, logNow)
		for n := e.Len() - had; n > 0; n-- {
			last := n == 1
			e.ops = append(e.ops, func(code group.Code, value uint64, err *Error) {
				switch {
				case err != nil:
				case code != group.OK:
					f.void = true
				case last && g.d == d:
					d.Applied(value, gl.p.now())
					gl.touch(g)
					gl.serve(g)
				}
			})
		}
	}
	if g.c != nil {
		gl.table.mu.RLock()
		if g.c.Changed(gl.table.s) {
			g.c.Change(gl.table.s, &e.Entry)
			e.ops = append(e.ops, func(code group.Code, _ uint64, err *Error) {
				if err == nil && code == group.OK {
					gl.wakeChange(g)
				}
			})
		}
		gl.table.mu.RUnlock()
	}
	n := len(e.ops)
	if n == before { // it is in the log already
		g.sent = nil
		close(f.done)
		return
	}
	done := e.ops[n-1]
	e.ops[n-1] = func(code group.Code, value uint64, err *Error) {
		g.sent, f.err = nil, err
		close(f.done)
		done(code, value, err)
	}
}

// forsake tells those who wait for what the group's dispatcher has gathered that nothing comes of it: another one takes
// its place, or none. mu is held.
func (gl *groupLead) forsake(g *ledGroup) {
	if f := g.gathering; f != nil {
		g.gathering, f.void = nil, true
		close(f.done)
	}
}

// settled takes an entry's outcome. It runs on the partition's leader loop.
func (gl *groupLead) settled(e *groupEntry, results []byte, err *Error) {
	gl.mu.Lock()
	defer gl.mu.Unlock()
	if err == nil && len(results) < len(e.ops)*group.ResultSize {
		err = describe(ErrUnavailable, "%s: what became of the change is not known any more: it may be in the log", gl.p.name)
	}
	if err != nil {
		gl.sent = nil
		gl.end(err)
		gl.answer(e, err)
		return
	}
	for i, done := range e.ops {
		code, value, _ := group.Result(results, i)
		done(code, value, nil)
	}
	gl.sent = nil // only now: nothing may be written for a group whose last change was not told to it
	gl.propose()
	if gl.sent == nil && len(gl.dirty) > 0 {
		gl.wake() // the loop didn't set its timer by what came meanwhile and may wait
	}
}

func (gl *groupLead) answer(e *groupEntry, err *Error) {
	for _, done := range e.ops {
		done(0, 0, err)
	}
}

// end refuses everything from now on: the leadership is over. mu is held.
func (gl *groupLead) end(err *Error) {
	if gl.over != nil {
		return
	}
	gl.over = err
	if e := gl.open; e != nil {
		gl.open = nil
		gl.answer(e, gl.p.notLeader())
	}
	for _, g := range gl.all {
		if f := g.gathering; f != nil {
			g.gathering, f.err = nil, gl.p.notLeader()
			close(f.done)
		}
		gl.wakeChange(g)
	}
	gl.wake()
}

// commitOp writes one operation and waits for its outcome. mu is held before and after, but not meanwhile.
func (gl *groupLead) commitOp(ctx context.Context, write func(e *group.Entry), applied func(code group.Code, value uint64)) (group.Code, uint64, *Error) {
	type outcome struct {
		code  group.Code
		value uint64
		err   *Error
	}
	done := make(chan outcome, 1)
	if err := gl.op(write, func(code group.Code, value uint64, err *Error) {
		if err == nil && applied != nil {
			applied(code, value)
		}
		done <- outcome{code, value, err}
	}); err != nil {
		return 0, 0, err
	}
	gl.mu.Unlock()
	defer gl.mu.Lock()
	select {
	case o := <-done: // comes at the latest when the leadership ends
		return o.code, o.value, o.err
	case <-ctx.Done():
		return 0, 0, describe(ErrUnavailable, "%s: gave up before the change was committed: it may be in the log: %v", gl.p.name, ctx.Err())
	}
}
