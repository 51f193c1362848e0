package group

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/parleymq/parley/replication/format"
)

// An entry about groups is a version and operations, described in docs/format/groups.md. Each
// names its group and has a result of its own; one that doesn't apply any more
// changes nothing and says why.
const entryVersion = 1

type opKind byte

const (
	opMake opKind = iota + 1
	opLease
	opCommit
	opOpen
	opDone
	opBack
	opReset
	opDelete
	opAnchor
	opForget
)

// Entry builds the operations of one log entry.
type Entry struct {
	buf []byte
	ops int
}

// Reset begins a new entry in buf, whose content stays before it.
func (e *Entry) Reset(buf []byte) { e.buf, e.ops = append(buf, entryVersion), 0 }

// Len is how many operations there are.
func (e *Entry) Len() int { return e.ops }

// Size in bytes, with what was in the buffer before.
func (e *Entry) Size() int { return len(e.buf) }

// Bytes returns the buffer.
func (e *Entry) Bytes() []byte { return e.buf }

func (e *Entry) op(k opKind, name string) {
	e.ops++
	e.buf = appendString(append(e.buf, byte(k)), name)
}

// Make makes the group on this partition, with its cursor at offset, unless it is there.
func (e *Entry) Make(name string, o *Options, offset int64) {
	e.op(opMake, name)
	e.buf = appendInt(appendOptions(e.buf, o), offset)
}

// Grant gives the lease to a member, if the newest one is still that of the token replaces.
func (e *Entry) Grant(name string, replaces uint64, member string, generation uint64) {
	e.op(opLease, name)
	e.buf = appendUint(appendString(appendUint(e.buf, replaces), member), generation)
}

// Commit moves an exclusive group's cursor, unless offset is -1, and may release the lease.
func (e *Entry) Commit(name string, token uint64, offset int64, release bool) {
	e.op(opCommit, name)
	e.buf = appendFlag(appendInt(appendUint(e.buf, token), offset+1), release)
}

// Open comes before a leader's first deliveries.
func (e *Entry) Open(name string) { e.op(opOpen, name) }

// Move sets a group's cursor and makes all its tokens old.
func (e *Entry) Move(name string, offset int64) {
	e.op(opReset, name)
	e.buf = appendInt(e.buf, offset)
}

// Delete forgets a group, and its members where this is the anchor.
func (e *Entry) Delete(name string) { e.op(opDelete, name) }

// Forget drops an anchor without members.
func (e *Entry) Forget(name string) { e.op(opForget, name) }

// Code is an operation's outcome.
type Code byte

const (
	OK        Code = iota
	Absent         // no such group
	OtherMode      // the group is of another mode
	Lost           // the token is not the newest, or the group was reset meanwhile
	Below          // the offset is below what was committed, or beyond the log
	Full           // a limit is reached
	Outdated       // the generation is not the next one
)

// ResultSize is what one operation's result takes: code (1), value (8).
const ResultSize = 9

// Result of the i-th operation. Value is the entry's index for what gives a token, and the cursor after a commit.
func Result(data []byte, i int) (c Code, value uint64, ok bool) {
	if len(data) < (i+1)*ResultSize {
		return 0, 0, false
	}
	r := data[i*ResultSize:]
	return Code(r[0]), binary.BigEndian.Uint64(r[1:]), true
}

// Context is what an entry is applied in.
type Context struct {
	Index       uint64 // of the entry
	LogTime     int64
	Start, Next int64 // of the partition's log
}

// Apply applies one entry's body. An error means that the bytes are no entry: a bug, damage, or a newer
// version, so that replicas would part from here on.
func (s *State) Apply(c Context, body []byte) (results []byte, err error) {
	d := &decoder{b: body}
	if v := d.byte(); v > entryVersion {
		return nil, format.Newer("an entry about groups", "version", uint64(v), entryVersion)
	} else if d.err == nil && v != entryVersion {
		return nil, fmt.Errorf("%w: entry of version %d", ErrMalformed, v)
	}
	for len(d.b) > 0 && d.err == nil {
		kind, name := opKind(d.byte()), d.string()
		if d.err != nil {
			break
		}
		code, value := s.apply(c, kind, name, d)
		results = append(results, byte(code))
		results = binary.BigEndian.AppendUint64(results, value)
	}
	return results, d.err
}

func (s *State) apply(c Context, kind opKind, name string, d *decoder) (Code, uint64) {
	g := s.groups[name]
	switch kind {
	case opMake:
		o, offset := d.options(), d.int()
		return s.make(c, name, o, offset, d)
	case opLease:
		replaces, member, generation := d.uint(), d.string(), d.uint()
		switch {
		case g == nil:
			return Absent, 0
		case g.options.Mode != Exclusive:
			return OtherMode, 0
		case g.token != replaces:
			return Lost, g.token
		}
		g.token, g.lease = c.Index, leaseState{member: member, generation: generation, held: true}
		return OK, c.Index
	case opCommit:
		token, offset, release := d.uint(), d.int()-1, d.flag()
		return g.commit(c, token, offset, release)
	case opOpen:
		switch {
		case g == nil:
			return Absent, 0
		case g.options.Mode == Exclusive:
			return OtherMode, 0
		}
		g.token, g.opened, g.before = c.Index, c.Index, g.opened
		return OK, c.Index
	case opDone:
		return applyRuns(c, g, d, func(first, last int64) {
			g.finish(first, last)
		}, nil)
	case opBack:
		code, _ := applyRuns(c, g, d, nil, func(first, last int64, v back) {
			v.entry = c.Index
			g.bring(first, last, v)
		})
		if code != OK {
			return code, 0
		}
		g.token = c.Index
		return OK, c.Index
	case opReset:
		offset := d.int()
		if g == nil {
			return Absent, 0
		}
		g.floor = min(max(offset, c.Start), c.Next)
		g.done, g.back = runs[struct{}]{}, runs[back]{}
		g.lease.held = false
		g.token, g.void, g.opened, g.before = c.Index, c.Index, c.Index, c.Index
		return OK, c.Index
	case opDelete:
		a := s.anchors[name]
		delete(s.groups, name)
		delete(s.anchors, name)
		if g == nil && a == nil {
			return Absent, 0
		}
		return OK, c.Index
	case opAnchor:
		return s.assign(c, name, d)
	case opForget:
		if a := s.anchors[name]; a != nil && len(a.members) == 0 {
			delete(s.anchors, name)
			return OK, c.Index
		}
		return Absent, 0
	}
	d.fail("operation %d", kind)
	return Absent, 0
}

func (s *State) make(c Context, name string, o Options, offset int64, d *decoder) (Code, uint64) {
	switch err := CheckName(name); {
	case d.err != nil:
		return Absent, 0
	case err != nil:
		d.fail("%v", err)
		return Absent, 0
	case s.groups[name] != nil:
		return OK, 0
	case len(s.groups) >= MaxGroups:
		return Full, 0
	}
	s.groups[name] = &groupState{options: o, token: c.Index, void: c.Index, opened: c.Index, before: c.Index, floor: min(max(offset, c.Start), c.Next)}
	return OK, c.Index
}

func (g *groupState) commit(c Context, token uint64, offset int64, release bool) (Code, uint64) {
	switch {
	case g == nil:
		return Absent, 0
	case g.options.Mode != Exclusive:
		return OtherMode, 0
	case g.token != token || !g.lease.held:
		return Lost, g.token
	case offset > c.Next:
		return Below, uint64(g.floor)
	case offset >= 0 && offset < g.floor && g.floor > c.Start:
		// At the log's start it was retention that moved the cursor, and no mistake of the member's.
		return Below, uint64(g.floor)
	}
	g.raise(offset)
	if release {
		g.lease.held = false
	}
	return OK, uint64(g.floor)
}

// applyRuns reads runs of offsets and hands those within the log to one of the two.
func applyRuns(c Context, g *groupState, d *decoder, done func(first, last int64), bring func(first, last int64, v back)) (Code, uint64) {
	void, n := d.uint(), d.limited("runs", maxRuns)
	at := int64(0)
	code := OK
	switch {
	case g != nil && g.void != void: // the group was reset after they were delivered
		code = Lost
	case g == nil:
		code = Absent
	case g.options.Mode == Exclusive:
		code = OtherMode
	}
	for i := int64(0); i < n && d.err == nil; i++ {
		step, more := d.int(), d.int()
		first := at + step
		last := first + more
		if first < at || last < first {
			d.fail("run at %d%+d%+d", at, step, more)
			break
		}
		at = last
		var v back
		if bring != nil {
			v = d.back()
		}
		last = min(last, c.Next-1)
		if code != OK || d.err != nil || last < first {
			continue
		}
		if bring != nil {
			bring(first, last, v)
		} else {
			done(first, last)
		}
	}
	return code, c.Index
}

// bring notes that records came back, but for those that are handled.
func (g *groupState) bring(first, last int64, v back) {
	for first = max(first, g.floor); first <= last; {
		r, ok := g.done.next(first)
		switch {
		case !ok || r.first > last:
			g.back.set(first, last, v)
			return
		case r.first > first:
			g.back.set(first, r.first-1, v)
		}
		first = r.last + 1
	}
}

// assign applies an anchor's change.
func (s *State) assign(c Context, name string, d *decoder) (Code, uint64) {
	o, generation, partitions := d.options(), d.uint(), int32(d.limited("partitions", MaxPartitions))
	leaves := make([]string, 0, 1)
	for n := d.limited("leaves", MaxMembers); n > 0 && d.err == nil; n-- {
		leaves = append(leaves, d.string())
	}
	var joins []Member
	for n := d.limited("joins", MaxMembers); n > 0 && d.err == nil; n-- {
		joins = append(joins, d.member())
	}
	type move struct{ partition, member int32 }
	var moves []move
	for n := d.limited("moves", MaxPartitions); n > 0 && d.err == nil; n-- {
		moves = append(moves, move{int32(d.limited("partition", MaxPartitions)), int32(d.limited("member", MaxMembers))})
	}
	if err := CheckName(name); d.err == nil && err != nil {
		d.fail("%v", err)
	}
	if d.err != nil {
		return Absent, 0
	}
	a := s.anchors[name]
	switch {
	case a == nil && len(s.anchors) >= MaxGroups:
		return Full, 0
	case a == nil:
		a = &anchorState{options: o}
		s.anchors[name] = a
	case generation <= a.generation:
		return Outdated, a.generation
	}
	a.generation, a.partitions, a.changed = generation, partitions, c.LogTime
	a.members = slices.DeleteFunc(a.members, func(m MemberStatus) bool { return slices.Contains(leaves, m.ID) })
	for _, m := range joins {
		if len(a.members) < MaxMembers && a.find(m.ID) < 0 {
			a.members = append(a.members, MemberStatus{Member: m, JoinedMS: c.LogTime})
		}
	}
	owner := a.owners(partitions)
	for _, mv := range moves {
		if mv.partition < partitions && int(mv.member) < len(a.members) {
			owner[mv.partition] = mv.member
		}
	}
	for i := range a.members {
		a.members[i].Partitions = nil
	}
	for p, m := range owner {
		if m >= 0 {
			a.members[m].Partitions = append(a.members[m].Partitions, int32(p))
		}
	}
	return OK, generation
}

// owners lists per partition the member's index, -1 for none.
func (a *anchorState) owners(partitions int32) []int32 {
	owner := make([]int32, partitions)
	for p := range owner {
		owner[p] = -1
	}
	for i := range a.members {
		for _, p := range a.members[i].Partitions {
			if p < partitions {
				owner[p] = int32(i)
			}
		}
	}
	return owner
}
