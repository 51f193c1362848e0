// Package group is what a partition knows of consumer groups: pure machines
// without clock, network or goroutine. Time is handed in, as int64 milliseconds.
//
//   - State is replicated: cursors, leases, what is handled above the cursor,
//     how often a record came back, who the members are. It changes only by
//     Apply, with entries of the partition's log, and is the same on every replica.
//   - Dispatcher belongs to a leader and ends with it: which member has which
//     record of a shared group at the moment, until when, and whose turn is next.
//     What it forgets with a leader is delivered again.
//   - Assign says which member has which partition. The group's anchor calls it and
//     commits the result, so that a newer version of it moves nothing by itself.
//
// A token is always the index of the log entry that gave a right, so tokens
// rise over leaders, members and restarts, and a database that has seen one
// can refuse whoever comes with an older one:
//
//   - exclusive: the entry that granted the lease;
//   - shared, key-ordered: the newest of the group's entries that opened it (a leader does,
//     before its first delivery), reset it, or brought records back (nak, or a wait that ran
//     out). A record is delivered again only after the entry that brought it back: so its
//     second delivery has a larger token than the first, and so has whatever follows it.
package group

import (
	"fmt"
	"strconv"
)

// Mode of a group.
type Mode uint8

const (
	// Exclusive: a partition has one member at a time, order kept.
	Exclusive Mode = iota + 1
	// Shared: each record goes to one member and is acked by itself.
	Shared
	// KeyOrdered is Shared, and records of one key go to one member at a time, in order.
	KeyOrdered
)

var modes = [...]string{Exclusive: "exclusive", Shared: "shared", KeyOrdered: "key-ordered"}

func (m Mode) String() string {
	if m < Exclusive || m > KeyOrdered {
		return fmt.Sprintf("mode %d", uint8(m))
	}
	return modes[m]
}

// ParseMode returns 0 for "": what the group has, or the default.
func ParseMode(s string) (Mode, error) {
	if s == "" {
		return 0, nil
	}
	for m := Exclusive; m <= KeyOrdered; m++ {
		if modes[m] == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("group mode %q: allowed are exclusive, shared and key-ordered", s)
}

// PositionKind says how a Position is meant.
type PositionKind uint8

const (
	Earliest PositionKind = iota // Value means nothing
	Latest                       // likewise
	AtOffset                     // Value is an offset
	AtTime                       // Value is log time, Unix milliseconds
)

// Position is where a group begins in a partition. The zero value is the earliest record.
type Position struct {
	Kind  PositionKind
	Value int64
}

func (p Position) String() string {
	switch p.Kind {
	case Earliest:
		return "earliest"
	case Latest:
		return "latest"
	case AtTime:
		return "time " + strconv.FormatInt(p.Value, 10) + " ms"
	}
	return "offset " + strconv.FormatInt(p.Value, 10)
}

// Limits of groups, as client/wire has them, and some that only concern a partition.
const (
	MaxName          = 64 // [A-Za-z0-9_-]+
	MaxText          = 256
	MaxMembers       = 4096
	MaxGroups        = 1024 // that one partition knows
	MaxBackoffSteps  = 16
	MaxPullMessages  = 4096
	MaxAckItems      = 4096
	MaxInFlightLimit = 1 << 16
	MaxPartitions    = 1 << 16 // of a topic
	MinSessionMS     = 1_000
	MaxSessionMS     = 300_000
	MaxWaitMS        = 300_000
	MaxDelayMS       = 7 * 24 * 3600 * 1000 // of a nak, an ack wait, a back-off step

	DefaultSessionMS   = 10_000
	DefaultAckWaitMS   = 30_000
	DefaultInFlight    = 1 << 14
	DefaultPullRecords = 256

	// MaxHoles bounds what a group remembers above its cursor on one partition: runs of handled records,
	// and records that came back. Beyond it nothing new is delivered until the oldest is done.
	MaxHoles = 1 << 14

	// MaxStateBytes is about how much a partition keeps of all groups together, in its checkpoints and snapshots. Beyond
	// it no group begins and no member joins there; those that are there go on, each within its own bounds.
	MaxStateBytes = 32 << 20
)

// Options are fixed by the member that makes the group. Another that brings different
// ones is refused (group_mismatch), but for zero values, which take what the group has. From
// counts only when a group is made and is not compared.
type Options struct {
	Mode      Mode
	From      Position
	SessionMS int64

	AckWaitMS         int64
	MaxDeliveries     int32 // then the record is dead; 0 no limit
	BackoffMS         []int64
	MaxInFlight       int32 // of the group, a partition
	MaxInFlightMember int32 // 0: MaxInFlight
	DeadLetter        string

	// Partitions is how many the topic had when the group was made, set by its anchor. A partition
	// that came later begins at its earliest record, also with From Latest.
	Partitions int32
}

// Member describes a running subscription. ID is random and the member's own.
type Member struct {
	ID, Name, Host, Version string
}

// Join asks the group's anchor for a place. The group is made when it isn't there. A member that is
// known already gets its assignment again.
type Join struct {
	Group      string
	Member     Member
	Generation uint64 // newest that the member has heard of, anywhere; 0 none. The anchor's goes beyond it
	Partitions int32  // how many the topic has now; the broker's to say
	Options    Options
}

// Sync says "I live and know Generation". It is answered at once when there is another one, after
// WaitMS otherwise, which is cut to a third of the session. A Generation beyond the anchor's (it
// moved, or a partition has seen newer ones) makes the anchor go beyond that.
type Sync struct {
	Group      string
	Member     string
	Generation uint64
	Partitions int32 // how many the topic has now
	WaitMS     int64
}

// Leave gives a member's place up at once.
type Leave struct {
	Group  string
	Member string
}

// Assignment is what a member has in a generation.
type Assignment struct {
	Generation uint64
	Partitions []int32 // ascending
	Options    Options // with defaults
}

// LeaseRequest asks for a partition's lease, or renews it (Token != 0).
type LeaseRequest struct {
	Group      string
	Member     string
	Generation uint64
	Token      uint64
	WaitMS     int64
	Options    Options
	Stuck      *Stuck // as in Commit, with a renewal
}

// Lease of a partition. With the error lease_held only HeldMS means something, with
// stale_generation only Generation.
type Lease struct {
	Token      uint64
	Next       int64 // first offset that is not handled
	HeldMS     int64 // for how long the former holder still has it, at most
	Wanted     bool  // a newer generation gives the partition to another: finish, commit, release
	Generation uint64
}

// Commit says that everything below Offset is handled (-1: nothing new), and renews the lease.
type Commit struct {
	Group   string
	Member  string
	Token   uint64
	Offset  int64
	Release bool   // gives the lease back
	Stuck   *Stuck // what holds up the cursor, as the member knows
}

// Stuck is a dead letter that can't be written.
type Stuck struct {
	Offset  int64
	SinceMS int64  // the first try that failed, Unix time
	Topic   string // dead-letter topic; "" where Reason says it
	Reason  string // of the newest failure
	Waiting int    // dead letters that are not written, this one among them
}

// Committed is where the cursor stands.
type Committed struct {
	Offset int64
	Wanted bool
}

// Pull asks for records of a shared or key-ordered group.
type Pull struct {
	Group       string
	Member      string
	MaxMessages int   // default DefaultPullRecords
	MaxBytes    int   // default 1 MiB; one record's batch is always returned
	WaitMS      int64 // for the first record
	Options     Options
}

// Pulled lists what the member got, in order of offset.
type Pulled struct {
	Deliveries []Delivery
}

// Delivery hands out the records First..Last.
type Delivery struct {
	First, Last int64
	Deliveries  int32 // 1 the first time
	Token       uint64
}

// AckKind is what an AckItem says.
type AckKind uint8

const (
	Ack      AckKind = iota + 1 // done
	Nak                         // again, after DelayMS or the group's back-off
	Progress                    // not yet done: the ack wait starts anew
	Term                        // never again: to the dead-letter topic, with Reason
	Return                      // not begun: to anybody, at once; this delivery doesn't count. Needs no commit. Who gives a record back must not ack it afterwards
)

// AckItem is about the records First..Last of one delivery.
type AckItem struct {
	Kind        AckKind
	First, Last int64
	Token       uint64
	DelayMS     int64 // of a Nak; -1: the back-off
	Reason      string
}

// Refusal is an item that was not taken, by its index. Nothing of such an item was taken.
type Refusal struct {
	Item        int
	Reason      string
	Description string
}

// Reasons of a Refusal.
const (
	StaleToken   = "stale_token"   // the records were handed out again, or the group was reset
	NotDelivered = "not_delivered" // the member doesn't have them
	// AlreadyDone: they are acked or dead, and by whom is no longer known. Who repeats an ack
	// whose outcome was unknown may take it for taken.
	AlreadyDone = "already_done"
)

// Status is what a partition's leader knows of a group.
type Status struct {
	Group        string
	Options      Options
	Holder       string // member id; "" none, or a shared group
	Committed    int64  // everything below is handled
	Next         int64  // of the log
	Lag          int64  // records not handled
	LagMS        int64  // age of the oldest of them
	Pending      int64  // delivered, not acked
	Redelivering int64  // came back, and wait to be delivered again
	DeadPending  int64  // dead, and not yet in the dead-letter topic
	Problem      string // what keeps the group from going on; ""
	Stuck        *Stuck // the dead letter that can't be written, the oldest; nil: none. It belongs to nobody: don't change it
	Token        uint64

	// Since this broker leads the partition.
	Handled, Delivered, Redelivered, DeadLetters uint64

	// Of the anchor only.
	Anchor     bool
	Generation uint64
	Members    []MemberStatus
}

// MemberStatus is a member and what it has.
type MemberStatus struct {
	Member
	JoinedMS   int64 // log time
	Partitions []int32
}

// Set resets a group on one partition, or deletes it there.
type Set struct {
	Group  string
	To     Position
	Delete bool
}
