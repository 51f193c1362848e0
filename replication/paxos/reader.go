package paxos

import (
	"fmt"
	"slices"
)

// reading is a round of asking a majority of the council about the epoch after
// the newest. A read joins the next round that begins after it, never one under way.
type reading struct {
	number    uint64
	tickets   []uint64
	answers   []answer
	finishing bool // votes were found: a proposal finishes them
}

type answer struct {
	from     Member
	accepted Accepted
}

// Read starts a linearizable read: the ticket comes back in Reads with an epoch
// that was the newest at some moment after the call. A new epoch that is found
// decided, or half done and then finished, is learned on the way. ErrBusy above
// MaxReads.
func (m *Machine) Read(ticket uint64) (Effects, error) {
	var fx Effects
	waiting := len(m.queued)
	if m.reading != nil {
		waiting += len(m.reading.tickets)
	}
	if waiting >= MaxReads {
		return fx, fmt.Errorf("read newest epoch: %w: %d reads wait", ErrBusy, waiting)
	}
	m.queued = append(m.queued, ticket)
	if m.reading == nil {
		m.nextRound(&fx)
	}
	return fx, nil
}

func (m *Machine) nextRound(fx *Effects) {
	m.reading = nil
	if len(m.queued) == 0 {
		return
	}
	m.reading = &reading{tickets: m.queued}
	m.queued = nil
	m.ask(fx)
}

// ask starts the round under way anew, about the epoch after the newest.
func (m *Machine) ask(fx *Effects) {
	r := m.reading
	if r == nil {
		return
	}
	m.rounds++
	r.number, r.answers, r.finishing = m.rounds, nil, false
	m.askAgain(fx)
}

// askAgain asks those who haven't answered.
func (m *Machine) askAgain(fx *Effects) {
	r := m.reading
	if r == nil {
		return
	}
	if r.finishing {
		if m.proposal == nil {
			m.ask(fx)
		}
		return
	}
	for _, x := range m.facts.Council {
		m.askMember(fx, x)
	}
}

// askMember asks one member of the council, unless it has answered.
func (m *Machine) askMember(fx *Effects, x Member) {
	r := m.reading
	if r == nil || r.finishing || !slices.Contains(m.facts.Council, x) ||
		slices.ContainsFunc(r.answers, func(a answer) bool { return x.names(a.from) }) {
		return
	}
	out := m.message(Read, x)
	out.Boot, out.Round = m.boot, r.number
	fx.Send = append(fx.Send, out)
}

func (m *Machine) readState(fx *Effects, in *Message) {
	r := m.reading
	if r == nil || r.finishing || in.Boot != m.boot || in.Round != r.number || in.Epoch != m.newest.Epoch+1 || in.Previous != m.newest.Hash {
		return
	}
	if !slices.ContainsFunc(m.facts.Council, func(x Member) bool { return m.rules.same(x, in.From) }) ||
		slices.ContainsFunc(r.answers, func(a answer) bool { return a.from.ID == in.From.ID }) {
		return
	}
	if _, err := m.check(in.Accepted.Value); err != nil && !in.Accepted.Ballot.None() {
		m.refuse(fx, in, InvalidValue)
		return
	}
	r.answers = append(r.answers, answer{in.From, in.Accepted})
	n := len(m.facts.Council)
	if len(r.answers) < m.rules.readQuorum(m.newest.Epoch, n) {
		return
	}
	var top Accepted
	for _, a := range r.answers {
		if a.accepted.Ballot.Compare(top.Ballot) > 0 {
			top = a.accepted
		}
	}
	if !m.rules.open(!top.Ballot.None()) {
		m.answerReads(fx)
		return
	}
	same := 0
	for _, a := range r.answers {
		if a.accepted.Ballot == top.Ballot {
			same++
		}
	}
	switch {
	case same >= m.rules.quorum(m.newest.Epoch, n):
		m.choose(fx, top.Value) // learning it starts the round anew
	default:
		r.finishing = true
		if m.proposal == nil && m.facts.names(m.self) {
			m.proposal = &proposal{round: r.number}
			if !m.confirm(fx) {
				m.teach(fx)
			}
		}
	}
}

// found ends the round whose proposal found nothing to finish.
func (m *Machine) found(fx *Effects, p *proposal) {
	r := m.reading
	switch {
	case r == nil || !r.finishing:
	case p.round == r.number:
		r.answers = nil
		for _, x := range p.promises {
			r.answers = append(r.answers, answer{from: x})
		}
		m.answerReads(fx)
	default: // the promises may be older than the reads
		m.ask(fx)
	}
}

func (m *Machine) answerReads(fx *Effects) {
	r := m.reading
	for _, t := range r.tickets {
		res := ReadResult{Ticket: t, Epoch: m.newest.Epoch}
		for _, a := range r.answers {
			res.Peers = append(res.Peers, a.from)
		}
		fx.Reads = append(fx.Reads, res)
	}
	m.nextRound(fx)
}
