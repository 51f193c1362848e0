package paxos

import (
	"fmt"
	"slices"
)

type phase uint8

const (
	confirming phase = iota // a majority of the council has to have the newest epoch first
	preparing
	accepting
)

// proposal is the attempt to have the epoch after the newest decided: for a value
// of one's own, or to finish what a read found half done.
type proposal struct {
	own    bool
	ticket uint64
	value  []byte
	facts  Facts

	phase     phase
	ballot    Ballot
	promises  []Member
	adopted   Accepted // the highest vote that the promises told of
	proposed  []byte   // in Accept
	council   []Member
	votes     []Member
	preempted bool
	round     uint64 // of the read that began it
}

// undone is a chosen value that majorities of both councils still have to acknowledge.
type undone struct {
	ticket    uint64
	epoch     uint64
	old, next []Member
}

// Propose starts to have value decided as the epoch after base, which must be the
// newest. The ticket comes back in Outcomes, if the machine lives; Abandon ends the
// wait. One proposal at a time: ErrStaleBase, ErrBusy, ErrNotNamed, ErrInvalidValue.
func (m *Machine) Propose(ticket, base uint64, value []byte) (Effects, error) {
	var fx Effects
	p := m.proposal
	switch {
	case !m.facts.names(m.self):
		return fx, fmt.Errorf("propose epoch %d: %w", base+1, ErrNotNamed)
	case p != nil && p.own || len(m.undone) >= MaxUndone:
		return fx, fmt.Errorf("propose epoch %d: %w", base+1, ErrBusy)
	}
	f, err := m.check(value)
	if !m.rules.based(base+1, m.newest.Hash, &m.newest) {
		return fx, fmt.Errorf("propose on epoch %d: %w: it is %d", base, ErrStaleBase, m.newest.Epoch)
	}
	if err != nil {
		return fx, fmt.Errorf("propose epoch %d: %w", base+1, err)
	}
	if p == nil {
		p = &proposal{}
		m.proposal = p
	}
	// A read may be finishing another value; this one then loses.
	p.own, p.ticket, p.value, p.facts = true, ticket, value, f
	if !m.confirm(&fx) && p.phase == confirming {
		m.teach(&fx)
	}
	return fx, nil
}

// confirm begins the first phase once a majority of the council has the newest
// epoch, and reports whether it did.
func (m *Machine) confirm(fx *Effects) bool {
	p := m.proposal
	if p == nil || p.phase != confirming ||
		m.newest.Epoch >= firstEpoch && !m.acknowledged(m.newest.Epoch, m.facts.Council) {
		return false
	}
	m.begin(fx)
	return true
}

func (m *Machine) acknowledged(epoch uint64, council []Member) bool {
	n := 0
	for _, x := range council {
		if m.acked[x] >= epoch {
			n++
		}
	}
	return n >= majority(len(council))
}

// teach sends the newest epoch to the council's members that haven't acknowledged it.
func (m *Machine) teach(fx *Effects) {
	for _, x := range m.facts.Council {
		if m.acked[x] < m.newest.Epoch {
			fx.Send = append(fx.Send, m.Decided(x, []Entry{m.newest}))
		}
	}
}

// begin starts the first phase with a new ballot.
func (m *Machine) begin(fx *Effects) {
	p := m.proposal
	if m.seen >= MaxRound {
		return // only garbage gets here
	}
	p.ballot = Ballot{m.rules.round(m.seen), m.self.Incarnation, m.boot}
	m.seen = p.ballot.Round
	p.phase, p.preempted, p.promises, p.votes, p.adopted, p.proposed = preparing, false, nil, nil, Accepted{}, nil
	p.council = m.rules.council(&m.facts, &p.facts)
	for _, x := range p.council {
		m.urge(fx, x)
	}
}

// urge sends a member what the proposal still wants of it.
func (m *Machine) urge(fx *Effects, to Member) {
	p := m.proposal
	if p == nil || !slices.Contains(p.council, to) {
		return
	}
	switch {
	case p.phase == preparing && !m.voted(p.promises, to):
		out := m.message(Prepare, to)
		out.Ballot = p.ballot
		fx.Send = append(fx.Send, out)
	case p.phase == accepting && !m.voted(p.votes, to):
		out := m.message(Accept, to)
		out.Ballot, out.Value = p.ballot, p.proposed
		fx.Send = append(fx.Send, out)
	}
}

func (m *Machine) voted(votes []Member, member Member) bool {
	return slices.ContainsFunc(votes, func(x Member) bool { return m.rules.same(member, x) })
}

// ours: is the answer for the attempt under way, and from the council?
func (m *Machine) ours(in *Message, ph phase) bool {
	p := m.proposal
	return p != nil && p.phase == ph && in.Ballot == p.ballot && in.Epoch == m.newest.Epoch+1 && in.Previous == m.newest.Hash &&
		slices.ContainsFunc(p.council, func(x Member) bool { return m.rules.same(x, in.From) })
}

// distinct adds a vote unless the voter, under whichever incarnation, has one.
func distinct(votes []Member, x Member) []Member {
	if slices.ContainsFunc(votes, func(y Member) bool { return y.ID == x.ID }) {
		return votes
	}
	return append(votes, x)
}

func (m *Machine) promise(fx *Effects, in *Message) {
	p := m.proposal
	if !m.ours(in, preparing) {
		return
	}
	if _, err := m.check(in.Accepted.Value); err != nil && !in.Accepted.Ballot.None() {
		m.refuse(fx, in, InvalidValue)
		return
	}
	p.promises = distinct(p.promises, in.From)
	if m.rules.adopt(in.Accepted, p.adopted) {
		p.adopted = in.Accepted
	}
	if len(p.promises) < m.rules.quorum(m.newest.Epoch, len(p.council)) {
		return
	}
	switch {
	case !p.adopted.Ballot.None():
		p.proposed = p.adopted.Value
	case p.own:
		p.proposed = p.value
	default:
		// A read found votes that a majority doesn't have and, having promised,
		// will not add to: nothing was decided before the read began.
		m.proposal = nil
		m.found(fx, p)
		return
	}
	p.phase = accepting
	for _, x := range p.council {
		m.urge(fx, x)
	}
}

func (m *Machine) vote(fx *Effects, in *Message) {
	p := m.proposal
	if !m.ours(in, accepting) {
		return
	}
	p.votes = distinct(p.votes, in.From)
	if len(p.votes) >= m.rules.quorum(m.newest.Epoch, len(p.council)) {
		m.choose(fx, p.proposed)
	}
}

// choose takes in a value that a majority voted for, and tells everyone.
func (m *Machine) choose(fx *Effects, value []byte) {
	f, err := m.decode(value)
	if err != nil {
		panic(fmt.Sprintf("paxos: a value was chosen that was checked and doesn't decode: %v", err))
	}
	all := slices.Clone(f.Members)
	for _, x := range bound(m.facts.Members) {
		if !slices.Contains(all, x) {
			all = append(all, x)
		}
	}
	e := Entry{Epoch: m.newest.Epoch + 1, Hash: f.Hash, Previous: m.newest.Hash, Value: value}
	m.learn(fx, []Entry{e}, f)
	for _, x := range all {
		if x != m.self {
			fx.Send = append(fx.Send, m.Decided(x, []Entry{e}))
		}
	}
	m.ask(fx)
}

func (m *Machine) nack(fx *Effects, in *Message) {
	if in.Reason != Preempted && in.Reason != Behind {
		fx.Refused = append(fx.Refused, Refusal{By: in.From, Sender: m.self, Epoch: in.Epoch, Reason: in.Reason})
	}
	if in.Epoch != m.newest.Epoch+1 || in.Previous != m.newest.Hash {
		return
	}
	m.seen = max(m.seen, in.Promised.Round)
	p := m.proposal
	switch {
	case in.Reason == Behind && m.newest.Epoch >= firstEpoch:
		fx.Send = append(fx.Send, m.Decided(in.From, []Entry{m.newest}))
	case in.Reason == Preempted && p != nil && p.phase != confirming && in.Ballot == p.ballot && in.Promised.Compare(p.ballot) > 0:
		p.preempted = true
		fx.Preempted = true
	}
}

// repropose goes on with a proposal that lacks answers.
func (m *Machine) repropose(fx *Effects) {
	p := m.proposal
	switch {
	case p == nil:
	case p.phase == confirming:
		if !m.confirm(fx) {
			m.teach(fx)
		}
	case p.preempted:
		m.begin(fx)
	default:
		for _, x := range p.council {
			m.urge(fx, x)
		}
	}
}

// chase asks again for the acknowledgements that chosen values lack.
func (m *Machine) chase(fx *Effects) {
	for _, u := range m.undone {
		for _, x := range append(slices.Clone(u.old), u.next...) {
			if s := (Serve{x, u.epoch}); m.acked[x] < u.epoch && !slices.Contains(fx.Serve, s) {
				fx.Serve = append(fx.Serve, s)
			}
		}
	}
}

// finish reports the chosen values that have all acknowledgements.
func (m *Machine) finish(fx *Effects) {
	m.undone = slices.DeleteFunc(m.undone, func(u undone) bool {
		done := (len(u.old) == 0 || m.acknowledged(u.epoch, u.old)) && m.acknowledged(u.epoch, u.next)
		if done {
			fx.Outcomes = append(fx.Outcomes, Outcome{Ticket: u.ticket, Epoch: u.epoch, Result: Done})
		}
		return done
	})
}
