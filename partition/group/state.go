package group

import (
	"maps"
	"slices"
)

// State is what the replicas of one partition agree on about groups. It isn't safe for
// concurrent use.
type State struct {
	groups  map[string]*groupState
	anchors map[string]*anchorState
}

// groupState is one group on this partition.
type groupState struct {
	options Options
	// token is the index of the newest entry that made older tokens old: see the package comment.
	token uint64
	// void: whoever has a token below it has nothing any more (the group was made or reset after).
	void uint64
	// opened is the newest entry that opened the group, before the one before that.
	opened, before uint64

	floor int64 // everything below is handled

	lease leaseState // exclusive

	done runs[struct{}] // handled, above floor
	back runs[back]     // came back, above floor, not handled
}

// leaseState is the newest lease: its token is groupState.token.
type leaseState struct {
	member     string
	generation uint64
	held       bool // not released
}

// back is what is known of records that came back from a member.
type back struct {
	entry      uint64 // that says so: deliveries after it have tokens no smaller
	deliveries int32  // that the next one will be, or if dead that there were
	notBefore  int64  // log time
	dead       bool
	reason     string // of the dead
}

// anchorState is the members' side of a group, on its anchor's partition.
type anchorState struct {
	options    Options
	generation uint64
	changed    int64 // log time
	members    []MemberStatus
	partitions int32 // that were assigned
}

// NewState returns a state without groups.
func NewState() *State {
	return &State{groups: map[string]*groupState{}, anchors: map[string]*anchorState{}}
}

// Len is how many groups the partition knows, and whose anchor it is.
func (s *State) Len() (groups, anchors int) { return len(s.groups), len(s.anchors) }

// What parts of a state take at most when encoded, texts aside.
const (
	groupBytes  = 160
	runBytes    = 8
	backBytes   = 32
	memberBytes = 16
)

// Bytes is about what the state takes when it is encoded. It looks at everything: ask seldom.
func (s *State) Bytes() int {
	n := 0
	for name, g := range s.groups {
		n += groupBytes + len(name) + len(g.options.DeadLetter) + len(g.lease.member) + g.done.count*runBytes
		g.back.all(func(r runOf[back]) bool {
			n += backBytes + len(r.v.reason)
			return true
		})
	}
	for name, a := range s.anchors {
		n += groupBytes + len(name) + len(a.options.DeadLetter)
		for i := range a.members {
			m := &a.members[i]
			n += memberBytes + len(m.ID) + len(m.Name) + len(m.Host) + len(m.Version) + 2*len(m.Partitions)
		}
	}
	return n
}

// Names are those of all groups and anchors, in order.
func (s *State) Names() []string {
	names := slices.Collect(maps.Keys(s.groups))
	for n := range s.anchors {
		if s.groups[n] == nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// Options of a group as the partition has them.
func (s *State) Options(name string) (Options, bool) {
	if g := s.groups[name]; g != nil {
		return g.options, true
	}
	return Options{}, false
}

// AnchorOptions are the options of a group whose anchor the partition is.
func (s *State) AnchorOptions(name string) (Options, bool) {
	if a := s.anchors[name]; a != nil {
		return a.options, true
	}
	return Options{}, false
}

// Handled is the lowest offset that some group has not handled; ok is false when there is no group.
func (s *State) Handled() (offset int64, ok bool) {
	for _, g := range s.groups {
		if !ok || g.floor < offset {
			offset, ok = g.floor, true
		}
	}
	return offset, ok
}

// Lease is the newest lease of an exclusive group.
func (s *State) Lease(name string) (l LeaseStatus, ok bool) {
	g := s.groups[name]
	if g == nil {
		return l, false
	}
	return LeaseStatus{
		Token: g.token, Member: g.lease.member, Generation: g.lease.generation, Held: g.lease.held, Floor: g.floor,
	}, true
}

// LeaseStatus is a lease as the log has it: whether it has run out is for the leader's clock.
type LeaseStatus struct {
	Token      uint64
	Member     string
	Generation uint64
	Held       bool
	Floor      int64
}

// Trim makes every group begin at start at the earliest: what retention took counts as handled.
func (s *State) Trim(start int64) {
	for _, g := range s.groups {
		g.raise(start)
	}
}

// raise moves the cursor to at least offset.
func (g *groupState) raise(offset int64) {
	if offset <= g.floor {
		return
	}
	g.floor = offset
	if r, ok := g.done.next(offset); ok && r.first <= offset {
		g.floor = r.last + 1
	}
	g.done.clear(0, g.floor-1)
	g.back.clear(0, g.floor-1)
}

// finish marks records as handled.
func (g *groupState) finish(first, last int64) {
	if last < g.floor {
		return
	}
	first = max(first, g.floor)
	g.back.clear(first, last)
	if first > g.floor {
		g.done.set(first, last, struct{}{})
		return
	}
	g.raise(last + 1)
}

// isDone tells whether all of first..last is handled.
func (g *groupState) isDone(first, last int64) bool {
	if first = max(first, g.floor); first > last {
		return true
	}
	r, ok := g.done.next(first)
	return ok && r.first <= first && r.last >= last
}

func (s *State) status(name string, g *groupState, next int64) Status {
	st := Status{
		Group: name, Options: g.options, Committed: g.floor, Next: next, Token: g.token,
		Lag: max(0, next-g.floor-g.done.covered),
	}
	if g.options.Mode == Exclusive && g.lease.held {
		st.Holder = g.lease.member
	}
	return st
}

// Status returns what the log says of a group; next is the partition's next offset. ok is false when the
// partition neither knows the group nor is its anchor.
func (s *State) Status(name string, next int64) (st Status, ok bool) {
	g, a := s.groups[name], s.anchors[name]
	if g != nil {
		st = s.status(name, g, next)
	}
	if a != nil {
		if g == nil {
			st = Status{Group: name, Options: a.options, Committed: next, Next: next}
		}
		st.Anchor, st.Generation, st.Members = true, a.generation, a.copyMembers()
	}
	return st, g != nil || a != nil
}

func (a *anchorState) copyMembers() []MemberStatus {
	ms := slices.Clone(a.members)
	for i := range ms {
		ms[i].Partitions = a.partitionsOf(i)
	}
	return ms
}

// partitionsOf is what a member has: all, where members share partitions.
func (a *anchorState) partitionsOf(i int) []int32 {
	if a.options.Mode == Exclusive {
		return slices.Clone(a.members[i].Partitions)
	}
	all := make([]int32, a.partitions)
	for p := range all {
		all[p] = int32(p)
	}
	return all
}

func (a *anchorState) find(id string) int {
	return slices.IndexFunc(a.members, func(m MemberStatus) bool { return m.ID == id })
}
