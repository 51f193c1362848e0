package paxos

import (
	"fmt"
	"slices"
)

// Options of a Machine.
type Options struct {
	Self   Member
	Boot   uint64 // raised and made durable before each New
	Decode Decode
	State  State // what the journal held; Newest is at least the given epoch 0
}

// Machine is one broker's acceptor, proposer, reader and learner. It is not safe
// for concurrent use.
type Machine struct {
	self   Member
	boot   uint64
	decode Decode
	rules  rules

	newest   Entry
	facts    Facts // of newest
	promised Ballot
	accepted Accepted

	seen     uint64            // highest round of a ballot for the epoch after newest
	proposal *proposal         // for the epoch after newest
	undone   []undone          // chosen here, to be acknowledged
	acked    map[Member]uint64 // newest epoch that a member has on disk, as far as it said
	rounds   uint64            // of reads
	reading  *reading
	queued   []uint64 // reads for the next round
	ahead    ahead
}

// ahead is a peer that knows of a later epoch.
type ahead struct {
	peer  Member
	epoch uint64
}

// New returns a machine in the given state, or ErrState.
func New(o Options) (*Machine, error) {
	f, err := o.Decode(o.State.Newest.Value)
	if err != nil {
		return nil, fmt.Errorf("%w: epoch %d: %w", ErrState, o.State.Newest.Epoch, err)
	}
	if n := o.State.Newest; f.Epoch != n.Epoch || f.Hash != n.Hash || f.Previous != n.Previous {
		return nil, fmt.Errorf("%w: entry %v holds the value of epoch %d with hash %v", ErrState, n, f.Epoch, f.Hash)
	}
	if o.Self.Incarnation == anybodysOwn {
		return nil, fmt.Errorf("%w: this broker has no incarnation", ErrState)
	}
	m := &Machine{self: o.Self, boot: o.Boot, decode: o.Decode, rules: paxosRules,
		newest: o.State.Newest, facts: f, promised: o.State.Promised, accepted: o.State.Accepted,
		seen: o.State.Promised.Round, acked: map[Member]uint64{o.Self: o.State.Newest.Epoch}}
	return m, nil
}

// Newest is the newest decided entry the machine knows: a cached read, which never
// goes back while the machine runs. It may not be durable yet: show it to
// others only when Effects.Learned has named it. It authorises no change: a
// change is proposed with its epoch as the base, and told when another came first.
func (m *Machine) Newest() Entry { return m.newest }

// Facts of the newest entry.
func (m *Machine) Facts() Facts { return m.facts }

// State is what a machine that takes over must be given: it is durable once all records are.
func (m *Machine) State() State {
	return State{Newest: m.newest, Promised: m.promised, Accepted: m.accepted}
}

// Waiting reports whether Retry would do something: a message may have been lost.
func (m *Machine) Waiting() bool {
	return m.proposal != nil || len(m.undone) > 0 || m.reading != nil || m.ahead.epoch > m.newest.Epoch
}

// Step takes a message. Whatever the message is, the machine stays right; who
// sent it is for the driver to prove.
func (m *Machine) Step(in Message) Effects {
	var fx Effects
	if reason := m.unfit(&in); reason != 0 {
		m.refuse(&fx, &in, reason)
		return fx
	}
	if in.Ballot.Round > m.seen && in.Epoch == m.newest.Epoch+1 {
		m.seen = in.Ballot.Round
	}
	switch in.Kind {
	case Prepare, Accept, Read:
		m.request(&fx, &in)
	case Promise:
		m.promise(&fx, &in)
	case Accepts:
		m.vote(&fx, &in)
	case Nack:
		m.nack(&fx, &in)
	case Decided:
		m.decided(&fx, &in)
	case LearnAck:
		m.learnAck(&fx, &in)
	case ReadState:
		m.readState(&fx, &in)
	case Fetch:
		m.fetch(&fx, &in)
	}
	return fx
}

// unfit says why a message is not for this machine at all.
func (m *Machine) unfit(in *Message) Reason {
	switch {
	case !m.rules.same(in.To, m.self):
		return Misdirected
	case in.Kind < Prepare || in.Kind > Fetch || in.From.Incarnation == anybodysOwn || in.Epoch == 0,
		in.Ballot.Round > MaxRound || in.Promised.Round > MaxRound || in.Accepted.Ballot.Round > MaxRound,
		len(in.Value) > MaxValue || len(in.Entries) > MaxEntries:
		return Malformed
	case in.Cluster != "" && m.facts.Cluster != "" && in.Cluster != m.facts.Cluster && in.Kind != Nack:
		return OtherCluster
	case in.Cluster == "" && m.facts.Cluster != "" && in.Epoch > firstEpoch:
		return Malformed
	}
	return 0
}

// request handles what is asked of the acceptor.
func (m *Machine) request(fx *Effects, in *Message) {
	if m.rules.follows(in, &m.newest) {
		switch in.Kind {
		case Prepare:
			m.prepare(fx, in)
		case Accept:
			m.accept(fx, in)
		case Read:
			m.read(fx, in)
		}
		return
	}
	switch {
	case in.Epoch <= m.newest.Epoch:
		if in.Cluster == "" && m.facts.Cluster != "" {
			m.refuse(fx, in, Established)
		}
		fx.Serve = append(fx.Serve, Serve{in.From, in.Epoch})
	case in.Epoch > m.newest.Epoch+1:
		m.refuse(fx, in, Behind)
		m.observe(fx, in.From, in.Epoch-1)
	default:
		m.refuse(fx, in, OtherHistory)
	}
}

// fetch answers a peer that wants to catch up.
func (m *Machine) fetch(fx *Effects, in *Message) {
	switch {
	case in.Epoch <= m.newest.Epoch:
		fx.Serve = append(fx.Serve, Serve{in.From, in.Epoch})
	case in.Epoch > m.newest.Epoch+1:
		m.observe(fx, in.From, in.Epoch-1)
	case in.Previous != m.newest.Hash:
		m.refuse(fx, in, OtherHistory)
	}
}

// Decided makes the answer to a Serve of entries that the history holds: adjoining,
// from Serve.From on, at least one, at most MaxEntries, the last one with its value: Fit cuts.
func (m *Machine) Decided(to Member, entries []Entry) Message {
	out := m.message(Decided, to)
	out.Epoch, out.Previous, out.Entries = entries[0].Epoch, entries[0].Previous, entries
	return out
}

// decided learns entries, all or none of them.
func (m *Machine) decided(fx *Effects, in *Message) {
	var fresh []Entry
	var facts Facts
	named, last := false, m.newest
	for i := range in.Entries {
		e := &in.Entries[i]
		switch {
		case e.Epoch == last.Epoch && e.Hash != last.Hash:
			m.refuse(fx, in, Contradiction)
			return
		case e.Epoch <= last.Epoch:
			continue
		case !m.rules.links(e, &last):
			if e.Epoch > last.Epoch+1 {
				m.observe(fx, in.From, e.Epoch)
			} else {
				m.refuse(fx, in, OtherHistory)
			}
			return
		}
		if e.Value != nil {
			f, err := m.decode(e.Value)
			if err != nil || f.Epoch != e.Epoch || f.Hash != e.Hash || f.Previous != e.Previous || f.Cluster == "" ||
				m.facts.Cluster != "" && m.facts.Cluster != f.Cluster {
				m.refuse(fx, in, Malformed)
				return
			}
			facts = f
			named = named || f.names(m.self)
		}
		fresh, last = append(fresh, *e), *e
	}
	if len(fresh) > 0 {
		switch {
		case last.Value == nil:
			m.refuse(fx, in, Malformed)
			return
		case m.newest.Epoch < firstEpoch && m.facts.names(m.self) && !named:
			m.refuse(fx, in, Wiped)
			return
		}
		m.learn(fx, fresh, facts)
	}
	m.acknowledge(fx, in.From)
	if len(fresh) > 0 {
		m.ask(fx)
	}
}

// learn takes in the next decided entries; facts are those of the last. ask has to
// follow, once everybody was told.
func (m *Machine) learn(fx *Effects, entries []Entry, facts Facts) {
	if p := m.proposal; p != nil {
		next := entries[0]
		if p.own {
			o := Outcome{Ticket: p.ticket, Epoch: next.Epoch, Result: Lost}
			if p.facts.Hash == next.Hash {
				o.Result = Chosen
				m.undone = append(m.undone, undone{ticket: p.ticket, epoch: next.Epoch, old: bound(m.facts.Council), next: p.facts.Council})
			}
			fx.Outcomes = append(fx.Outcomes, o)
		}
		m.proposal = nil
	}
	m.newest, m.facts = entries[len(entries)-1], facts
	m.promised, m.accepted, m.seen = Ballot{}, Accepted{}, 0
	fx.Persist = append(fx.Persist, Record{Kind: RecordDecided, Epoch: m.newest.Epoch, Entries: entries})
	fx.Learned = append(fx.Learned, entries...)
	for member := range m.acked {
		if !m.counts(member) {
			delete(m.acked, member)
		}
	}
	m.acknowledge(fx, m.self)
}

// counts: does anything wait for an acknowledgement of x?
func (m *Machine) counts(x Member) bool {
	return x == m.self || m.facts.names(x) || slices.ContainsFunc(m.undone, func(u undone) bool {
		return slices.Contains(u.old, x) || slices.Contains(u.next, x)
	})
}

// acknowledge tells a peer what is on disk here once this step's records are.
func (m *Machine) acknowledge(fx *Effects, to Member) {
	if m.newest.Epoch < firstEpoch {
		return
	}
	out := m.message(LearnAck, to)
	out.Epoch, out.Previous, out.Hash = m.newest.Epoch, m.newest.Previous, m.newest.Hash
	fx.Send = append(fx.Send, out)
}

func (m *Machine) learnAck(fx *Effects, in *Message) {
	if in.Epoch == m.newest.Epoch && in.Hash != m.newest.Hash {
		m.refuse(fx, in, Contradiction)
		return
	}
	m.observe(fx, in.From, in.Epoch)
	if !m.counts(in.From) || m.acked[in.From] >= in.Epoch {
		return
	}
	m.acked[in.From] = in.Epoch
	m.finish(fx)
	if !m.confirm(fx) && in.Epoch >= m.newest.Epoch {
		m.urge(fx, in.From) // it may have been too far behind to answer
		m.askMember(fx, in.From)
	}
}

// Observe is told which epoch a peer says it knows; a machine that is behind
// fetches.
func (m *Machine) Observe(peer Member, epoch uint64) Effects {
	var fx Effects
	m.observe(&fx, peer, epoch)
	return fx
}

func (m *Machine) observe(fx *Effects, peer Member, epoch uint64) {
	if epoch <= m.newest.Epoch || peer == m.self {
		return
	}
	m.ahead = ahead{peer, epoch}
	fx.Send = append(fx.Send, m.message(Fetch, peer))
}

// Retry sends again whatever has had no answer, and takes a higher ballot where
// one was preempted.
func (m *Machine) Retry() Effects {
	var fx Effects
	if m.ahead.epoch > m.newest.Epoch {
		m.observe(&fx, m.ahead.peer, m.ahead.epoch)
	}
	m.chase(&fx)
	m.repropose(&fx)
	m.askAgain(&fx)
	return fx
}

// Abandon forgets a proposal or a read. An abandoned proposal may still be chosen.
func (m *Machine) Abandon(ticket uint64) Effects {
	var fx Effects
	is := func(t uint64) bool { return t == ticket }
	m.queued = slices.DeleteFunc(m.queued, is)
	m.undone = slices.DeleteFunc(m.undone, func(u undone) bool { return u.ticket == ticket })
	if r := m.reading; r != nil {
		if r.tickets = slices.DeleteFunc(r.tickets, is); len(r.tickets) == 0 {
			m.nextRound(&fx)
		}
	}
	if p := m.proposal; p != nil && p.own && p.ticket == ticket {
		m.proposal = nil
		if m.reading != nil && m.reading.finishing {
			m.ask(&fx)
		}
	}
	return fx
}

// message about the epoch after the newest.
func (m *Machine) message(k Kind, to Member) Message {
	return Message{Kind: k, From: m.self, To: to, Cluster: m.facts.Cluster, Epoch: m.newest.Epoch + 1, Previous: m.newest.Hash}
}

// refuse reports a message and tells its sender, except of answers, which
// nobody waits to see refused.
func (m *Machine) refuse(fx *Effects, in *Message, why Reason) {
	if why != Preempted && why != Behind {
		fx.Refused = append(fx.Refused, Refusal{By: m.self, Sender: in.From, Kind: in.Kind, Epoch: in.Epoch, Reason: why})
	}
	switch in.Kind {
	case Prepare, Accept, Read, Fetch, Decided:
	default:
		return
	}
	if why == Malformed || why == Misdirected {
		return
	}
	out := m.message(Nack, in.From)
	out.Epoch, out.Previous, out.Ballot, out.Promised, out.Reason = in.Epoch, in.Previous, in.Ballot, m.promised, why
	out.Boot, out.Round = in.Boot, in.Round
	fx.Send = append(fx.Send, out)
}

// bound drops the members whose incarnation nobody knows.
func bound(members []Member) []Member {
	return slices.DeleteFunc(slices.Clone(members), func(x Member) bool { return x.Incarnation == anybodysOwn })
}
