package epoch

import (
	"github.com/parleymq/parley/replication/paxos"
)

const (
	// MaxMessage bounds an encoded message between brokers.
	MaxMessage = 4 << 20

	messageVersion = 1
)

// Which fields a message has, beside those that all have.
type fields uint8

const (
	hasBallot   fields = 1 << iota
	hasPromised        // and the reason
	hasAccepted
	hasValue
	hasHash
	hasEntries
	hasRound // boot and round
)

var fieldsOf = [...]fields{
	paxos.Prepare:   hasBallot,
	paxos.Promise:   hasBallot | hasAccepted,
	paxos.Accept:    hasBallot | hasValue,
	paxos.Accepts:   hasBallot,
	paxos.Nack:      hasBallot | hasPromised | hasRound,
	paxos.Decided:   hasEntries,
	paxos.LearnAck:  hasHash,
	paxos.Read:      hasRound,
	paxos.ReadState: hasRound | hasPromised | hasAccepted,
	paxos.Fetch:     0,
}

// encodeMessage writes a message in the form of docs/format/epochs.md.
func encodeMessage(m *paxos.Message) []byte {
	w := writer{b: make([]byte, 0, 256+len(m.Value)+len(m.Accepted.Value))}
	w.byte(messageVersion)
	w.byte(byte(m.Kind))
	w.member(m.From)
	w.member(m.To)
	w.text(m.Cluster)
	w.uint(m.Epoch)
	w.hash(m.Previous)
	has := fieldsOf[m.Kind]
	if has&hasBallot != 0 {
		w.ballot(m.Ballot)
	}
	if has&hasPromised != 0 {
		w.ballot(m.Promised)
		w.byte(byte(m.Reason))
	}
	if has&hasAccepted != 0 {
		w.ballot(m.Accepted.Ballot)
		w.bytes(m.Accepted.Value)
	}
	if has&hasValue != 0 {
		w.bytes(m.Value)
	}
	if has&hasHash != 0 {
		w.hash(m.Hash)
	}
	if has&hasEntries != 0 {
		w.entries(m.Entries)
	}
	if has&hasRound != 0 {
		w.uint(m.Boot)
		w.uint(m.Round)
	}
	return w.b
}

// decodeMessage reads what encodeMessage wrote. The message shares b.
func decodeMessage(b []byte) (paxos.Message, error) {
	var m paxos.Message
	r := reader{b: b}
	if len(b) > MaxMessage {
		r.fail("a message of %d bytes, at most %d are allowed", len(b), MaxMessage)
	}
	if v := r.byte(); r.err == nil && v != messageVersion {
		r.fail("a message of version %d, this program knows %d", v, messageVersion)
	}
	if m.Kind = paxos.Kind(r.byte()); r.err == nil && (int(m.Kind) >= len(fieldsOf) || m.Kind == 0) {
		r.fail("a message of kind %d", m.Kind)
	}
	if r.err != nil {
		return m, r.err
	}
	m.From, m.To, m.Cluster, m.Epoch, m.Previous = r.member(), r.member(), r.text(), r.uint(), r.hash()
	has := fieldsOf[m.Kind]
	if has&hasBallot != 0 {
		m.Ballot = r.ballot()
	}
	if has&hasPromised != 0 {
		m.Promised, m.Reason = r.ballot(), paxos.Reason(r.byte())
	}
	if has&hasAccepted != 0 {
		m.Accepted = paxos.Accepted{Ballot: r.ballot(), Value: r.bytes(paxos.MaxValue)}
		if len(m.Accepted.Value) == 0 {
			m.Accepted.Value = nil
		}
		if m.Accepted.Ballot.None() != (m.Accepted.Value == nil) {
			r.fail("a vote at ballot %v for %d bytes", m.Accepted.Ballot, len(m.Accepted.Value))
		}
	}
	if has&hasValue != 0 {
		m.Value = r.bytes(paxos.MaxValue)
	}
	if has&hasHash != 0 {
		m.Hash = r.hash()
	}
	if has&hasEntries != 0 {
		m.Entries = r.entries()
		if len(m.Entries) > 0 && (m.Entries[0].Epoch != m.Epoch || m.Entries[0].Previous != m.Previous) {
			r.fail("epochs from %d on in a message about epoch %d", m.Entries[0].Epoch, m.Epoch)
		}
	}
	if has&hasRound != 0 {
		m.Boot, m.Round = r.uint(), r.uint()
	}
	return m, r.end()
}

func (w *writer) member(m paxos.Member) {
	w.uint(m.ID)
	w.text(m.Incarnation)
}

func (r *reader) member() paxos.Member { return paxos.Member{ID: r.uint(), Incarnation: r.text()} }
