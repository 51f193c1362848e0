package paxos

import (
	"errors"
	"fmt"
)

// Effects of a step, in the order in which the driver carries them out: nobody
// may see anything of Send and what follows it before Persist is durable.
type Effects struct {
	Persist []Record
	Send    []Message
	Serve   []Serve

	Learned   []Entry   // decided epochs, adjoining, none left out
	Outcomes  []Outcome // of proposals
	Reads     []ReadResult
	Refused   []Refusal // for people; nothing has to be done about them
	Preempted bool      // a higher ballot is about: Retry after a random while
}

// RecordKind says what a Record makes durable.
type RecordKind uint8

const (
	RecordPromised RecordKind = iota + 1 // Ballot, for Epoch
	RecordAccepted                       // Ballot and Value, for Epoch
	RecordDecided                        // Entries
)

// Record is to be appended to the journal, whole or not at all: the entries of one
// RecordDecided adjoin and only the last need have its value, so that a part of
// them may be no state to start from. Records of an epoch are of no use once
// a RecordDecided of it or of a later one is durable, and may then be dropped.
type Record struct {
	Kind    RecordKind
	Epoch   uint64 // of RecordDecided: of the last entry
	Ballot  Ballot
	Value   []byte
	Entries []Entry
}

func (r Record) String() string {
	switch r.Kind {
	case RecordPromised:
		return fmt.Sprintf("promised %v for epoch %d", r.Ballot, r.Epoch)
	case RecordAccepted:
		return fmt.Sprintf("accepted %v %q for epoch %d", r.Ballot, short(r.Value), r.Epoch)
	case RecordDecided:
		return fmt.Sprintf("decided %v", r.Entries)
	}
	return fmt.Sprintf("record of unknown kind %d", r.Kind)
}

// Serve asks the driver to send To what its history holds from epoch From on:
// Machine.Decided makes the message.
type Serve struct {
	To   Member
	From uint64
}

// Result of a proposal.
type Result uint8

const (
	Chosen Result = iota + 1 // the value is decided, and durable here
	Done                     // majorities of the old and of the new council have it on disk
	Lost                     // another value was decided: plan again on the new base
)

func (r Result) String() string {
	return [...]string{"?", "chosen", "done", "lost"}[r]
}

// Outcome of the proposal with the Ticket. Chosen is followed by Done.
type Outcome struct {
	Ticket uint64
	Epoch  uint64
	Result Result
}

// ReadResult says that no epoch after Epoch had been decided when the read with the Ticket
// began. Peers are the council's members that answered: at epoch 0 all that were listed,
// all of them empty, with their incarnations.
type ReadResult struct {
	Ticket uint64
	Epoch  uint64
	Peers  []Member
}

// Refusal says that a message was refused, here or by a peer.
type Refusal struct {
	By     Member // who refused
	Sender Member // of the refused message
	Kind   Kind   // zero where the peer doesn't say
	Epoch  uint64
	Reason Reason
}

func (r Refusal) String() string {
	return fmt.Sprintf("%v refused a message of %v about epoch %d: %v", r.By, r.Sender, r.Epoch, r.Reason)
}

var (
	// ErrStaleBase: the proposal was planned on an epoch that is not the newest.
	ErrStaleBase = errors.New("planned on an epoch that is not the newest")
	// ErrBusy: a proposal is under way, or as many wait as may.
	ErrBusy = errors.New("too much is under way")
	// ErrNotNamed: the newest epoch doesn't name this member, which may not propose.
	ErrNotNamed = errors.New("the newest epoch does not name this broker's incarnation")
	// ErrInvalidValue: the value can't follow the newest epoch.
	ErrInvalidValue = errors.New("value cannot follow the newest epoch")
	// ErrState: the durable state handed to New is not one that a machine left.
	ErrState = errors.New("state of paxos is damaged")
)
