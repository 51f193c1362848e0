package paxos

import (
	"fmt"
	"strings"
)

// Kind of a message.
type Kind uint8

const (
	Prepare   Kind = iota + 1 // will you vote for nothing below Ballot?
	Promise                   // yes; this is what I voted for last
	Accept                    // vote for Value at Ballot
	Accepts                   // I did
	Nack                      // no: Reason, and what I promised
	Decided                   // these epochs are decided
	LearnAck                  // I have every epoch up to Epoch on disk
	Read                      // what do you know of Epoch?
	ReadState                 // this is what I voted for last
	Fetch                     // send me what is decided from Epoch on
)

var kindNames = [...]string{"?", "Prepare", "Promise", "Accept", "Accepted", "Nack", "Decided", "LearnAck", "Read", "ReadState", "Fetch"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Reason of a Nack or a Refusal.
type Reason uint8

const (
	Preempted     Reason = iota + 1 // a higher ballot was promised
	Behind                          // the epoch before is not known yet; it is being fetched
	OtherCluster                    // the message belongs to another cluster
	OtherHistory                    // the epoch before has another hash: at epoch 1 another list of brokers
	NotNamed                        // the epoch before doesn't name the sender's incarnation
	NotCouncil                      // the epoch before doesn't have the receiver on its council
	Wiped                           // epoch 1 names another incarnation of this broker: its disk was wiped
	InvalidValue                    // the value doesn't follow from the epoch before
	Established                     // epochs were decided already; they are being sent
	Misdirected                     // meant for another member
	Malformed                       // no message that a machine sends
	Contradiction                   // two values were decided for one epoch
)

var reasonNames = [...]string{"?", "a higher ballot was promised", "the epoch before is not known here yet", "another cluster",
	"the epoch before has another hash", "the sender's incarnation is not named by the epoch before", "the receiver is not on the council",
	"epoch 1 names another incarnation of this broker", "the value doesn't follow from the epoch before", "the cluster has decided epochs already",
	"meant for another member", "malformed", "another value was decided for this epoch"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Message travels between machines. Slices are shared and never altered.
type Message struct {
	Kind     Kind
	From, To Member // To's incarnation may be unknown at epoch 1
	Cluster  string
	Epoch    uint64 // which it is about: the first of Decided, the newest known for LearnAck
	Previous Hash   // of the value of Epoch-1
	Ballot   Ballot // Prepare, Promise, Accept, Accepts and Nack of these
	Promised Ballot // Nack, ReadState
	Accepted Accepted
	Value    []byte
	Hash     Hash    // LearnAck: of the value of Epoch
	Entries  []Entry // Decided: adjoining, the last one with its value
	Boot     uint64  // Read, ReadState: of the reader
	Round    uint64  // Read, ReadState: which of the reader's rounds
	Reason   Reason
}

func (m Message) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v -> %v epoch %d", m.Kind, m.From, m.To, m.Epoch)
	switch m.Kind {
	case Prepare, Accepts:
		fmt.Fprintf(&b, " ballot %v", m.Ballot)
	case Promise:
		fmt.Fprintf(&b, " ballot %v accepted %v %q", m.Ballot, m.Accepted.Ballot, short(m.Accepted.Value))
	case Accept:
		fmt.Fprintf(&b, " ballot %v value %q", m.Ballot, short(m.Value))
	case Nack:
		fmt.Fprintf(&b, " ballot %v promised %v: %v", m.Ballot, m.Promised, m.Reason)
	case Decided:
		for _, e := range m.Entries {
			fmt.Fprintf(&b, " %v=%q", e, short(e.Value))
		}
	case LearnAck:
		fmt.Fprintf(&b, " hash %v", m.Hash)
	case Read:
		fmt.Fprintf(&b, " round %d.%d", m.Boot, m.Round)
	case ReadState:
		fmt.Fprintf(&b, " round %d.%d accepted %v %q", m.Boot, m.Round, m.Accepted.Ballot, short(m.Accepted.Value))
	}
	return b.String()
}

func short(v []byte) []byte {
	const most = 24
	if len(v) > most {
		return v[:most]
	}
	return v
}
