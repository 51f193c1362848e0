package group

import (
	"math"
	"slices"
)

// Anchor writes a change of the members: who left, who joined, and which partitions have another
// member now, as assigned over those who stay (in their order) and those who join.
func (e *Entry) anchor(name string, o *Options, generation uint64, leaves []string, joins []Member, before, after []int32) {
	e.op(opAnchor, name)
	e.buf = appendUint(appendOptions(e.buf, o), generation)
	e.buf = appendInt(e.buf, int64(len(after)))
	e.buf = appendInt(e.buf, int64(len(leaves)))
	for _, id := range leaves {
		e.buf = appendString(e.buf, id)
	}
	e.buf = appendInt(e.buf, int64(len(joins)))
	for i := range joins {
		e.buf = appendMember(e.buf, &joins[i])
	}
	moved := 0
	for p := range after {
		if after[p] >= 0 && after[p] != before[p] {
			moved++
		}
	}
	e.buf = appendInt(e.buf, int64(moved))
	for p := range after {
		if after[p] >= 0 && after[p] != before[p] {
			e.buf = appendInt(appendInt(e.buf, int64(p)), int64(after[p]))
		}
	}
}

// Assign gives every partition to one of the members, even to within one partition, and moves as few as
// that allows. owner holds the member that has each partition now, -1 for none.
func Assign(owner []int32, members int) {
	if members == 0 {
		for p := range owner {
			owner[p] = -1
		}
		return
	}
	has := make([]int, members)
	for _, m := range owner {
		if m >= 0 {
			has[m]++
		}
	}
	// Who has most now gets the odd ones: nobody gives up more than needed.
	order := make([]int, members)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return has[b] - has[a] })
	share := make([]int, members)
	for i, m := range order {
		share[m] = len(owner) / members
		if i < len(owner)%members {
			share[m]++
		}
	}
	for p := len(owner) - 1; p >= 0; p-- {
		if m := owner[p]; m >= 0 && has[m] > share[m] {
			has[m]--
			owner[p] = -1
		}
	}
	next := 0
	for p := range owner {
		if owner[p] >= 0 {
			continue
		}
		for has[next] >= share[next] {
			next++
		}
		owner[p] = int32(next)
		has[next]++
	}
}

// Coordinator belongs to the leader of a group's anchor: it knows when each member was last heard of, and
// gathers what changes. It reads a State and writes entries; it isn't safe for concurrent use.
type Coordinator struct {
	name       string
	session    int64
	heard      map[string]int64 // member id: deadline
	joins      []Member
	leaves     []string
	options    Options // of the group that is being made
	partitions int32
	known      uint64 // a generation that someone has heard of
}

// generationLeap is how far beyond what is known a generation is taken for true: no counting gets that far unheard of.
const generationLeap = 1 << 32

// Believable is what is taken for a generation that somebody names: the one named, but for a leap. One request with an absurd
// number would else bring everybody to the end of the numbers, and the group would stand for ever. Whoever is
// right about a higher number names it again, and is believed step by step.
func Believable(known, named uint64) uint64 {
	if named > known && named-known > generationLeap {
		return known + generationLeap
	}
	return named
}

// NewCoordinator gives all members that the log knows a whole session from now on.
func NewCoordinator(s *State, name string, now int64) *Coordinator {
	c := &Coordinator{name: name, heard: map[string]int64{}, session: DefaultSessionMS}
	if a := s.anchors[name]; a != nil {
		c.session = a.options.SessionMS
		for i := range a.members {
			c.heard[a.members[i].ID] = now + c.session
		}
	}
	return c
}

// Join notes a member. settled means that the log knows it already and nothing needs to change.
// Options have their defaults and don't conflict. full means that there are too many members.
func (c *Coordinator) Join(s *State, j *Join, now int64) (settled, full bool) {
	a := s.anchors[j.Group]
	if a == nil && len(c.joins) == 0 {
		c.options, c.session = j.Options, j.Options.SessionMS
		c.options.Partitions = j.Partitions
	}
	c.note(a, j.Generation, j.Partitions)
	known := a != nil && a.find(j.Member.ID) >= 0 && !slices.Contains(c.leaves, j.Member.ID)
	joining := slices.ContainsFunc(c.joins, func(m Member) bool { return m.ID == j.Member.ID })
	if !known && !joining {
		n := len(c.joins)
		if a != nil {
			n += len(a.members)
		}
		if n >= MaxMembers {
			return false, true
		}
		c.joins = append(c.joins, j.Member)
	}
	c.heard[j.Member.ID] = now + c.session
	return known && !c.Changed(s), false
}

// note takes in what others know of the group and the topic.
func (c *Coordinator) note(a *anchorState, generation uint64, partitions int32) {
	if generation < math.MaxInt64 {
		known := c.known
		if a != nil {
			known = max(known, a.generation)
		}
		if b := Believable(known, generation); b > c.known {
			c.known = b
		}
	}
	c.partitions = max(c.partitions, partitions)
	if a != nil {
		c.partitions = max(c.partitions, a.partitions)
	}
}

// Sync is a member's heartbeat. It returns the generation that stands, and false where the member is not known.
func (c *Coordinator) Sync(s *State, y *Sync, now int64) (generation uint64, ok bool) {
	a := s.anchors[c.name]
	if a == nil || a.find(y.Member) < 0 || slices.Contains(c.leaves, y.Member) {
		return 0, false
	}
	c.note(a, y.Generation, y.Partitions)
	c.heard[y.Member] = max(c.heard[y.Member], now+c.session)
	return a.generation, true
}

// Leave takes a member out, and says whether it was in.
func (c *Coordinator) Leave(s *State, id string) bool {
	delete(c.heard, id)
	c.joins = slices.DeleteFunc(c.joins, func(m Member) bool { return m.ID == id })
	if a := s.anchors[c.name]; a == nil || a.find(id) < 0 {
		return false
	}
	if !slices.Contains(c.leaves, id) {
		c.leaves = append(c.leaves, id)
	}
	return true
}

// Expire takes out who has been silent for a session, and returns when to look again: 0 while there
// is nobody.
func (c *Coordinator) Expire(s *State, now int64) (next int64) {
	a := s.anchors[c.name]
	if a == nil {
		return 0
	}
	for i := range a.members {
		id := a.members[i].ID
		deadline, ok := c.heard[id]
		if !ok || deadline <= now {
			c.Leave(s, id)
			continue
		}
		if next == 0 || deadline < next {
			next = deadline
		}
	}
	return next
}

// Idle tells whether the anchor has had no members for as long as forgetAfter.
func (c *Coordinator) Idle(s *State, logNow, forgetAfter int64) bool {
	a := s.anchors[c.name]
	return a != nil && len(a.members) == 0 && len(c.joins) == 0 && logNow-a.changed >= forgetAfter
}

// Changed tells whether there is something to commit.
func (c *Coordinator) Changed(s *State) bool {
	if len(c.joins) > 0 || len(c.leaves) > 0 {
		return true
	}
	a := s.anchors[c.name]
	return a != nil && (c.partitions > a.partitions || c.known > a.generation)
}

// changeJoins bounds the members that join with one entry, and so its size; the next ones follow with the next.
const changeJoins = 512

// Change writes what has gathered, as the next generation. Nothing else may be written for the
// group until it is applied.
func (c *Coordinator) Change(s *State, e *Entry) {
	a := s.anchors[c.name]
	if a == nil {
		a = &anchorState{options: c.options}
	}
	next := anchorState{options: a.options, generation: max(a.generation, c.known) + 1, partitions: max(c.partitions, a.partitions)}
	for i := range a.members {
		if !slices.Contains(c.leaves, a.members[i].ID) {
			next.members = append(next.members, a.members[i])
		}
	}
	joins, rest := c.joins[:min(len(c.joins), changeJoins)], c.joins[min(len(c.joins), changeJoins):]
	for _, m := range joins {
		next.members = append(next.members, MemberStatus{Member: m})
	}
	before := next.owners(next.partitions)
	after := slices.Clone(before)
	if next.options.Mode == Exclusive {
		Assign(after, len(next.members))
	}
	e.anchor(c.name, &next.options, next.generation, c.leaves, joins, before, after)
	c.joins, c.leaves, c.known = rest, nil, 0
}

// Pending tells whether members wait to be taken in or out.
func (c *Coordinator) Pending() bool { return len(c.joins)+len(c.leaves) > 0 }

// Joining tells whether a member waits for a change.
func (c *Coordinator) Joining(id string) bool {
	return slices.ContainsFunc(c.joins, func(m Member) bool { return m.ID == id })
}

// Assignment is what a member has, if the log knows it.
func (s *State) Assignment(name, member string) (Assignment, bool) {
	a := s.anchors[name]
	if a == nil {
		return Assignment{}, false
	}
	i := a.find(member)
	if i < 0 {
		return Assignment{}, false
	}
	return Assignment{Generation: a.generation, Partitions: a.partitionsOf(i), Options: a.options}, true
}

// Making returns the options of a group whose first members are about to join.
func (c *Coordinator) Making() (Options, bool) {
	return c.options, len(c.joins) > 0
}
