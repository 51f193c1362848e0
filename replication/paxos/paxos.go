// Package paxos decides a numbered sequence of values, the epochs, each by one
// instance of single-decree Paxos (Lamport, "Paxos Made Simple", 2001). The
// value of epoch N names the council, the acceptors of epoch N+1, so the
// membership of the council is part of what is decided.
//
// The package is pure. A Machine is stepped with messages and calls, and each
// returns Effects: records to make durable, then messages to send, then what
// became known. It has no clock, no network, no file, no goroutine and no
// randomness. Whoever drives it brings those:
//
//	fx := m.Step(message)
//	append fx.Persist to the journal, in order, and fsync
//	send fx.Send; answer fx.Serve from the history; report the rest
//
// # Rules for the driver
//
//   - Nothing of a step's effects but Persist may be seen by anyone before all
//     records of this and of earlier steps are durable. Several steps' effects may be
//     joined and share an fsync. After a failed fsync the process stops.
//   - The boot counter is raised and fsynced before New.
//   - A message to the machine's own member is stepped like any other, after the
//     records. Others may be lost, repeated and delivered in any order.
//   - Retry is called from time to time while Waiting; after Effects.Preempted only
//     after a random while. Observe is called with what peers say their epoch is.
//     All of this serves liveness only.
//
// # What is not obvious
//
//   - A machine keeps the newest decided entry and the acceptor's state of the one
//     epoch after it. An older epoch is answered from the history, a later one
//     makes it fetch first.
//   - Epoch 0 is not decided, it is given to all: a lone broker's own, or a list of
//     brokers whose incarnations nobody knows yet (they are empty). Epoch 1 needs
//     every member of epoch 0's council in both phases, so that the disks of all but one
//     may be wiped in between without two values.
//   - Councils of adjoining epochs need not share a quorum: whoever reads or proposes
//     on N+1 asks the council that N names, and a majority of that has what was chosen.
//   - An entry in Accepted is not decided. An entry in Decided is, and is believed.
package paxos

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Limits.
const (
	MaxValue    = 1 << 20 // bytes of a value
	MaxEntries  = 1 << 16 // entries of one Decided
	MaxRound    = 1 << 48 // a ballot above it is garbage, and would end the supply
	MaxReads    = 256     // tickets that wait for a linearizable read
	MaxUndone   = 16      // chosen proposals that wait for their acknowledgements
	seatsATime  = 1       // of the council, that one epoch may give to others
	firstEpoch  = 1       // the first one that is decided rather than given
	anybodysOwn = ""      // incarnation of a member of epoch 0 that nobody knows yet
)

// Hash of a value, as Facts gives it.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:4]) }

// Member is a broker on one data directory: a wiped disk is another incarnation
// and so another member.
type Member struct {
	ID          uint64
	Incarnation string
}

func (m Member) String() string {
	if m.Incarnation == anybodysOwn {
		return fmt.Sprintf("%d/?", m.ID)
	}
	return fmt.Sprintf("%d/%s", m.ID, m.Incarnation)
}

// names reports whether a value that lists m means x.
func (m Member) names(x Member) bool {
	return m.ID == x.ID && (m.Incarnation == x.Incarnation || m.Incarnation == anybodysOwn)
}

// Ballot orders the attempts at one epoch. The boot counter keeps a restarted
// proposer from using a ballot of its former life.
type Ballot struct {
	Round       uint64
	Incarnation string
	Boot        uint64
}

// Compare orders ballots by round, incarnation, boot counter.
func (b Ballot) Compare(o Ballot) int {
	if c := cmp.Compare(b.Round, o.Round); c != 0 {
		return c
	}
	if c := strings.Compare(b.Incarnation, o.Incarnation); c != 0 {
		return c
	}
	return cmp.Compare(b.Boot, o.Boot)
}

// None reports whether b is the zero ballot, which comes before all others.
func (b Ballot) None() bool { return b == Ballot{} }

func (b Ballot) String() string {
	if b.None() {
		return "none"
	}
	return fmt.Sprintf("%d.%s.%d", b.Round, b.Incarnation, b.Boot)
}

// Accepted is what an acceptor voted for last; the zero value is nothing.
type Accepted struct {
	Ballot Ballot
	Value  []byte
}

// Facts are what the machine needs to know of a value.
type Facts struct {
	Cluster  string // empty in epoch 0
	Epoch    uint64
	Previous Hash     // of the value of Epoch-1
	Hash     Hash     // of this value
	Members  []Member // every broker it names: they may propose, and learn
	Council  []Member // those of them that vote on Epoch+1
}

func (f *Facts) names(m Member) bool {
	return slices.ContainsFunc(f.Members, func(x Member) bool { return x.names(m) })
}

// Decode reads the facts of a value. It must be a pure function.
type Decode func(value []byte) (Facts, error)

// Entry is a decided epoch. Of an old one the history may have kept no value but a
// summary, which means nothing to this package.
type Entry struct {
	Epoch    uint64
	Hash     Hash
	Previous Hash
	Value    []byte
	Summary  []byte
}

func (e Entry) String() string { return fmt.Sprintf("%d:%s", e.Epoch, e.Hash) }

// Fit returns as many of the entries, from the first on, as limit bytes hold and one
// Decided may carry, so that the last one has its value. It returns more than the limit
// when a value can't be reached within it, and nothing when there is no value.
func Fit(entries []Entry, limit int) []Entry {
	end, size := 0, 0
	for i, e := range entries[:min(len(entries), MaxEntries)] {
		size += len(e.Value) + len(e.Summary) + entryBytes
		if size > limit && end > 0 {
			break
		}
		if e.Value != nil {
			end = i + 1
		}
	}
	return entries[:end]
}
