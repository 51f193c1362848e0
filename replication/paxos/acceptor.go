package paxos

import (
	"fmt"
	"slices"
)

// barred says why the acceptor doesn't vote on a proposer's ballot at all.
func (m *Machine) barred(in *Message) Reason {
	switch {
	case !m.facts.names(in.From) || in.Ballot.Incarnation != in.From.Incarnation:
		return NotNamed
	case !m.votes():
		return NotCouncil
	}
	return 0
}

// votes: is this member on the council of the epoch after the newest?
func (m *Machine) votes() bool {
	return slices.ContainsFunc(m.rules.council(&m.facts, &m.facts), func(x Member) bool { return m.rules.same(x, m.self) })
}

// prepare promises to vote for nothing below the ballot, and tells the last vote.
func (m *Machine) prepare(fx *Effects, in *Message) {
	if why := m.barred(in); why != 0 {
		m.refuse(fx, in, why)
		return
	}
	if !m.rules.promise(in.Ballot, m.promised) {
		m.refuse(fx, in, Preempted)
		return
	}
	if in.Ballot != m.promised {
		m.promised = in.Ballot
		fx.Persist = append(fx.Persist, Record{Kind: RecordPromised, Epoch: in.Epoch, Ballot: in.Ballot})
	}
	out := m.message(Promise, in.From)
	out.Epoch, out.Previous = in.Epoch, in.Previous
	out.Ballot, out.Accepted = in.Ballot, m.rules.report(m.accepted)
	fx.Send = append(fx.Send, out)
}

// accept votes for a value.
func (m *Machine) accept(fx *Effects, in *Message) {
	if why := m.barred(in); why != 0 {
		m.refuse(fx, in, why)
		return
	}
	if !m.rules.accept(in.Ballot, m.promised) {
		m.refuse(fx, in, Preempted)
		return
	}
	if in.Ballot != m.accepted.Ballot {
		// At epoch 1 the value may name an incarnation of this broker that lost its
		// disk after it voted. Refusing would leave the epoch undecided for ever;
		// voting is safe, and once it is decided this broker is told (Wiped).
		if _, err := m.check(in.Value); err != nil {
			m.refuse(fx, in, InvalidValue)
			return
		}
		m.promised = in.Ballot
		m.accepted = Accepted{in.Ballot, in.Value}
		fx.Persist = append(fx.Persist, Record{Kind: RecordAccepted, Epoch: in.Epoch, Ballot: in.Ballot, Value: in.Value})
	}
	out := m.message(Accepts, in.From)
	out.Epoch, out.Previous, out.Ballot = in.Epoch, in.Previous, in.Ballot
	fx.Send = append(fx.Send, out)
}

// read tells a reader of the last vote.
func (m *Machine) read(fx *Effects, in *Message) {
	out := m.message(ReadState, in.From)
	out.Boot, out.Round, out.Promised, out.Accepted = in.Boot, in.Round, m.promised, m.accepted
	fx.Send = append(fx.Send, out)
}

// check says whether a value can follow the newest epoch. Proposers and acceptors
// both ask, so that no value that breaks the rule can be chosen.
func (m *Machine) check(value []byte) (Facts, error) {
	if len(value) == 0 || len(value) > MaxValue {
		return Facts{}, fmt.Errorf("%w: %d bytes, 1 to %d are allowed", ErrInvalidValue, len(value), MaxValue)
	}
	f, err := m.decode(value)
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrInvalidValue, err)
	}
	invalid := func(format string, args ...any) (Facts, error) {
		return f, fmt.Errorf("%w: %s", ErrInvalidValue, fmt.Sprintf(format, args...))
	}
	switch {
	case !m.rules.based(f.Epoch, f.Previous, &m.newest):
		return invalid("it is epoch %d after %v, the newest is %v", f.Epoch, f.Previous, m.newest)
	case f.Cluster == "":
		return invalid("it has no cluster id")
	case m.facts.Cluster != "" && f.Cluster != m.facts.Cluster:
		return invalid("it belongs to cluster %q, this is %q", f.Cluster, m.facts.Cluster)
	case len(f.Council) == 0:
		return invalid("its council is empty")
	}
	for i, x := range f.Members {
		if x.Incarnation == anybodysOwn {
			return invalid("broker %d has no incarnation", x.ID)
		}
		if slices.ContainsFunc(f.Members[:i], func(y Member) bool { return y.ID == x.ID || y.Incarnation == x.Incarnation }) {
			return invalid("broker %v is named twice", x)
		}
	}
	for i, x := range f.Council {
		if !slices.Contains(f.Members, x) {
			return invalid("%v is on the council and is no broker", x)
		}
		if slices.Contains(f.Council[:i], x) {
			return invalid("%v is on the council twice", x)
		}
	}
	if m.newest.Epoch < firstEpoch {
		for _, x := range m.facts.Council {
			if !slices.ContainsFunc(f.Members, x.names) {
				return invalid("broker %v of the initial list is missing", x)
			}
		}
		return f, nil
	}
	if in, out := missing(f.Council, m.facts.Council), missing(m.facts.Council, f.Council); in > seatsATime || out > seatsATime {
		return invalid("%d members join the council and %d leave it, at most %d may", in, out, seatsATime)
	}
	return f, nil
}

// missing counts the members of a that b lacks.
func missing(a, b []Member) int {
	n := 0
	for _, x := range a {
		if !slices.Contains(b, x) {
			n++
		}
	}
	return n
}
