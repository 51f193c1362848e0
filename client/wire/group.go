package wire

// Consumer groups. Requests about a group go to $PARLEY.GROUP.<op>.<topic>.<partition>
// and from there to the partition's leader. Two kinds of leaders answer:
//
//   - of the group's anchor, partition GroupAnchor(group, partitions): JOIN, SYNC, LEAVE.
//     It keeps the members and says which partitions each of them has;
//   - of each partition: LEASE, COMMIT (exclusive groups), PULL, ACK (shared groups), STATE, SET.
//
// Who holds an assignment of a generation asks the partitions' leaders itself:
// an anchor never talks to other leaders. A newer generation wins.
const (
	GroupPrefix = "$PARLEY.GROUP."

	GroupJoin   = "$PARLEY.GROUP.JOIN."   // GroupJoinRequest -> GroupAssignment
	GroupSync   = "$PARLEY.GROUP.SYNC."   // GroupSyncRequest -> GroupAssignment; waits: it is the heartbeat too
	GroupLeave  = "$PARLEY.GROUP.LEAVE."  // GroupLeaveRequest -> GroupAssignment
	GroupLease  = "$PARLEY.GROUP.LEASE."  // GroupLeaseRequest -> GroupLeased; waits for the lease's former holder; renews
	GroupCommit = "$PARLEY.GROUP.COMMIT." // GroupCommitRequest -> GroupCommitted
	GroupPull   = "$PARLEY.GROUP.PULL."   // GroupPullRequest -> see GroupPulled
	GroupAck    = "$PARLEY.GROUP.ACK."    // GroupAckRequest -> GroupAcked
	GroupState  = "$PARLEY.GROUP.STATE."  // GroupStateRequest -> GroupStates: what one partition knows
	GroupSet    = "$PARLEY.GROUP.SET."    // GroupSetRequest -> GroupStates: reset or delete on one partition

	APIGroupList     = "$PARLEY.API.GROUP.LIST"     // GroupListRequest -> GroupList
	APIGroupDescribe = "$PARLEY.API.GROUP.DESCRIBE" // GroupRequest -> GroupDescription
	APIGroupReset    = "$PARLEY.API.GROUP.RESET"    // GroupResetRequest -> GroupChange
	APIGroupDelete   = "$PARLEY.API.GROUP.DELETE"   // GroupRequest -> GroupChange
	APIGroupRedrive  = "$PARLEY.API.GROUP.REDRIVE"  // GroupRedriveRequest -> GroupRedriven; call again while More

	// For any NATS client. A request to NextPrefix + topic + "." + group with an
	// empty body, or a NextRequest, is answered by one message a record: the
	// value, the record's headers, HeaderPart, HeaderKey and the Header constants below. Its reply
	// subject starts with AckPrefix; publish to it, or request to hear that it
	// was taken: +ACK or nothing, -NAK or -NAK {"delay_ms":1000}, +WPI (more time),
	// +TERM or +TERM reason. Nothing there: a message with "NATS/1.0 404 No Messages"
	// or, after the wait, "NATS/1.0 408 Request Timeout".
	NextPrefix = "$PARLEY.NEXT."
	AckPrefix  = "$PARLEY.ACK." // + topic.partition.group.offset.deliveries.token
)

// Headers of a delivery to a plain NATS client, and of a dead letter.
const (
	HeaderTopic      = "Parley-Topic"
	HeaderOffset     = "Parley-Offset"
	HeaderDeliveries = "Parley-Deliveries"
	HeaderToken      = "Parley-Token" // fencing token
	HeaderTime       = "Parley-Time"  // of the record, RFC 3339 with milliseconds
	HeaderGroup      = "Parley-Group"
	HeaderReason     = "Parley-Reason"          // why a record became a dead letter
	HeaderOriginalID = "Parley-Original-Msg-Id" // Nats-Msg-Id of a record before it became a dead letter
)

// Modes of a group.
const (
	ModeExclusive  = "exclusive"   // a partition has one member at a time, order kept
	ModeShared     = "shared"      // each record goes to one member and is acked by itself
	ModeKeyOrdered = "key-ordered" // shared, and records of one key go to one member at a time, in order
)

// Limits of groups.
const (
	MaxGroupName     = 64 // [A-Za-z0-9_-]+
	MaxMemberText    = 256
	MaxGroupMembers  = 4096
	MaxGroups        = 1024 // that one partition knows
	MaxBackoffSteps  = 16
	MaxPullMessages  = 4096
	MaxAckItems      = 4096
	MaxInFlight      = 1 << 16 // of a group, a partition
	MaxRedrive       = 1000    // dead letters in one request
	MaxNextBatch     = 256     // records in one NextRequest
	DefaultSessionMS = 10_000
	MinSessionMS     = 1_000
	MaxSessionMS     = 300_000
	DefaultAckWaitMS = 30_000
)

// GroupOptions are fixed by the member that makes the group; another that joins with
// different ones is told so (reason group_mismatch), but for the zero values,
// which take what the group has.
type GroupOptions struct {
	Mode      string `json:"mode,omitempty"`       // default exclusive
	From      string `json:"from,omitempty"`       // where the group begins: earliest (default), latest, an offset, RFC 3339 or -1h
	SessionMS int64  `json:"session_ms,omitempty"` // how long a silent member keeps its place and its leases

	// Shared groups.
	AckWaitMS         int64   `json:"ack_wait_ms,omitempty"`
	MaxDeliveries     int32   `json:"max_deliveries,omitempty"` // then the dead-letter topic; 0 no limit
	BackoffMS         []int64 `json:"backoff_ms,omitempty"`     // delays after the 1st, 2nd … failed delivery; the last one repeats
	MaxInFlight       int32   `json:"max_in_flight,omitempty"`  // delivered and not acked, of the group, a partition
	MaxInFlightMember int32   `json:"max_in_flight_member,omitempty"`
	DeadLetter        string  `json:"dead_letter,omitempty"` // topic; default dlq-<topic>-<group>; made when first needed

	// Partitions is how many the topic had when the group was made: the anchor's to say, members hand it on.
	// In a partition that came later the group begins at the earliest record, whatever From says.
	Partitions int32 `json:"partitions,omitempty"`
}

// GroupMember describes a member to people.
type GroupMember struct {
	ID         string  `json:"id"` // random, of the running subscription
	Name       string  `json:"name"`
	Host       string  `json:"host"`
	Version    string  `json:"version"`
	Partitions []int32 `json:"partitions"`
	JoinedMS   int64   `json:"joined_ms"` // log time, Unix ms
}

// GroupJoinRequest makes the group when it isn't there. A member that is known
// already gets its assignment again.
type GroupJoinRequest struct {
	Group   string       `json:"group"`
	Member  string       `json:"member"`
	Name    string       `json:"name,omitempty"`
	Host    string       `json:"host,omitempty"`
	Version string       `json:"version,omitempty"`
	Options GroupOptions `json:"options"`

	// Generation is the newest that the member has heard of, from an earlier anchor or a leader: the anchor goes beyond it.
	Generation uint64 `json:"generation,omitempty"`
}

// GroupSyncRequest says "I live and know Generation"; it is answered at once when there is a newer
// one, after WaitMS otherwise. unknown_member: join again.
type GroupSyncRequest struct {
	Group      string `json:"group"`
	Member     string `json:"member"`
	Generation uint64 `json:"generation"`
	WaitMS     int64  `json:"wait_ms,omitempty"` // at most a third of the session
}

type GroupLeaveRequest struct {
	Group  string `json:"group"`
	Member string `json:"member"`
}

// GroupAssignment is what a member has in a generation.
type GroupAssignment struct {
	Group      string       `json:"group"`
	Generation uint64       `json:"generation"`
	Partitions []int32      `json:"partitions"` // ascending
	Options    GroupOptions `json:"options"`    // as the group has them, defaults filled in
	Error      *Error       `json:"error,omitempty"`
}

// GroupLeaseRequest asks for, or renews (Token != 0), the lease of a partition. Options are as GroupAssignment
// gave them: the partition learns of the group from them.
type GroupLeaseRequest struct {
	Group      string       `json:"group"`
	Member     string       `json:"member"`
	Generation uint64       `json:"generation"`
	Token      uint64       `json:"token,omitempty"`
	WaitMS     int64        `json:"wait_ms,omitempty"`
	Options    GroupOptions `json:"options"`

	// Stuck, with a renewal, says what holds up the position; left out: nothing does.
	Stuck *GroupStuck `json:"stuck,omitempty"`
}

// GroupStuck is a dead letter that the member of an exclusive group can't write: the position stays before its record.
type GroupStuck struct {
	Offset  int64  `json:"offset"`
	ForMS   int64  `json:"for_ms"` // since the first try
	Topic   string `json:"topic"`  // that doesn't take it
	Reason  string `json:"reason"`
	Waiting int    `json:"waiting"` // dead letters that are not written, this one among them
}

// GroupLeased grants: read from Next on. Errors: lease_held (retriable: the former holder still has it, for
// at most HeldMS), stale_generation, lease_lost (the Token is old).
type GroupLeased struct {
	Token  uint64 `json:"token"`
	Next   int64  `json:"next_offset"` // first offset that is not handled
	HeldMS int64  `json:"held_ms,omitempty"`
	// Wanted says that a newer generation gives the partition to another: finish, commit, release.
	Wanted bool `json:"wanted,omitempty"`
	// Generation, with stale_generation: the newer one. Hand it to SYNC or JOIN, the anchor may not know it.
	Generation uint64 `json:"generation,omitempty"`
	Error      *Error `json:"error,omitempty"`
}

// GroupCommitRequest says that everything below Offset is handled. It renews the lease; Release gives it back.
// Errors: lease_lost, bad_request (an offset beyond the log, or below what was committed).
type GroupCommitRequest struct {
	Group   string `json:"group"`
	Member  string `json:"member"`
	Token   uint64 `json:"token"`
	Offset  int64  `json:"offset"` // -1: only Release
	Release bool   `json:"release,omitempty"`

	Stuck *GroupStuck `json:"stuck,omitempty"` // as in GroupLeaseRequest
}

type GroupCommitted struct {
	Committed int64  `json:"committed"`
	Wanted    bool   `json:"wanted,omitempty"`
	Error     *Error `json:"error,omitempty"`
}

// GroupPullRequest asks for records of a shared group, waiting up to WaitMS for the first.
type GroupPullRequest struct {
	Group       string       `json:"group"`
	Member      string       `json:"member"`
	Generation  uint64       `json:"generation,omitempty"`
	MaxMessages int          `json:"max_messages,omitempty"` // default 256
	MaxBytes    int          `json:"max_bytes,omitempty"`    // default and most MaxFetch
	WaitMS      int64        `json:"wait_ms,omitempty"`
	Options     GroupOptions `json:"options"`

	// Stop: the member takes no more. Its pull that waits is answered at once, and so is this one, with nothing.
	Stop bool `json:"stop,omitempty"`
}

// GroupPulled is the head of PULL's answer, which is no JSON: a four byte big endian length, this
// head as JSON, then whole record batches as they are stored, in order of offset. Only the records in
// Deliveries are the member's; the batches may hold others. An error is as with FETCH (HeaderError, JSON body).
type GroupPulled struct {
	Deliveries []GroupDelivery `json:"deliveries"`
}

// GroupDelivery hands out the records First..Last.
type GroupDelivery struct {
	First      int64  `json:"f"`
	Last       int64  `json:"l"`
	Deliveries int32  `json:"n"` // 1 the first time
	Token      uint64 `json:"t"` // fencing token: never smaller than any earlier delivery's of the same record or key
}

// Kinds of GroupAckItem.
const (
	AckDone     = "ack"
	AckNak      = "nak"      // again, after DelayMS or the group's back-off
	AckProgress = "progress" // not yet done: the ack wait starts anew
	AckTerm     = "term"     // never again: to the dead-letter topic, with Reason
	AckReturn   = "return"   // not begun: to anybody, at once; this delivery doesn't count
)

// GroupAckItem is about the records First..Last of one delivery.
type GroupAckItem struct {
	Kind    string `json:"k"`
	First   int64  `json:"f"`
	Last    int64  `json:"l"`
	Token   uint64 `json:"t"`
	DelayMS int64  `json:"d,omitempty"` // nak; -1 or left out: the back-off
	Reason  string `json:"r,omitempty"` // term; nak: told by the dead letter, should it be the last
}

type GroupAckRequest struct {
	Group  string         `json:"group"`
	Member string         `json:"member"`
	Items  []GroupAckItem `json:"items"`

	// Gather: nobody waits for the answer. The leader may wait some milliseconds for more before it commits plain acks.
	Gather bool `json:"gather,omitempty"`
}

// GroupAcked is sent when the acks are committed. Refused lists the items (by index) that were not taken:
// unknown or foreign delivery, or an older token.
type GroupAcked struct {
	Refused []GroupRefusal `json:"refused,omitempty"`
	Error   *Error         `json:"error,omitempty"`
}

type GroupRefusal struct {
	Item        int    `json:"i"`
	Reason      string `json:"reason"` // stale_token, not_delivered
	Description string `json:"description"`
}

// GroupStateRequest asks one partition; Group "" for all its groups.
type GroupStateRequest struct {
	Group string `json:"group,omitempty"`
}

type GroupStates struct {
	Groups []GroupPartitionState `json:"groups"`
	Error  *Error                `json:"error,omitempty"`
}

// GroupPartitionState is what one partition's leader knows of a group.
type GroupPartitionState struct {
	Group        string       `json:"group"`
	Mode         string       `json:"mode"`
	Partition    int32        `json:"partition"`
	Member       string       `json:"member"`       // holder of the lease, by id; "" none or shared
	Committed    int64        `json:"committed"`    // everything below is handled
	Next         int64        `json:"next_offset"`  // of the log
	Lag          int64        `json:"lag"`          // records not handled
	LagMS        int64        `json:"lag_ms"`       // age of the oldest record that isn't
	Pending      int64        `json:"pending"`      // delivered, not acked
	Redelivering int64        `json:"redelivering"` // delivered before, to be delivered again
	DeadPending  int64        `json:"dead_pending"` // dead, and not yet in the dead-letter topic
	Token        uint64       `json:"token"`
	Handled      uint64       `json:"handled"` // since the leader leads, like the next three
	Delivered    uint64       `json:"delivered"`
	Redelivered  uint64       `json:"redelivered"`
	DeadLetters  uint64       `json:"dead_letters"`
	Options      GroupOptions `json:"options"`

	// Problem says what keeps the group from going on, such as a dead-letter topic that can't be written.
	Problem string `json:"problem,omitempty"`

	// Untouched: the partition is the group's anchor only, nobody has read from it yet.
	Untouched bool `json:"untouched,omitempty"`

	// Of the anchor's partition only.
	Anchor     bool          `json:"anchor,omitempty"`
	Generation uint64        `json:"generation,omitempty"`
	Members    []GroupMember `json:"members,omitempty"`
}

// GroupSetRequest resets a group on one partition, or deletes it there. The new
// position gets a new token: deliveries and leases from before are void.
type GroupSetRequest struct {
	Group  string `json:"group"`
	To     string `json:"to,omitempty"` // as GroupOptions.From
	Delete bool   `json:"delete,omitempty"`
}

type GroupListRequest struct {
	Topic string `json:"topic,omitempty"` // "" all topics
}

// GroupSummary is a group in a list. -1 stands for what is not known, as partitions give no answer: Problem says which.
type GroupSummary struct {
	Topic   string `json:"topic"`
	Group   string `json:"group"`
	Mode    string `json:"mode"`
	Members int    `json:"members"`
	Lag     int64  `json:"lag"`    // records not handled
	LagMS   int64  `json:"lag_ms"` // age of the oldest of them
	Problem string `json:"problem,omitempty"`
}

type GroupList struct {
	Groups   []GroupSummary `json:"groups"`
	Problems []string       `json:"problems,omitempty"` // leaders that gave no answer: their partitions are missing from the sums
	Error    *Error         `json:"error,omitempty"`
}

type GroupRequest struct {
	Topic string `json:"topic"`
	Group string `json:"group"`
}

// GroupDescription describes a group whole.
type GroupDescription struct {
	Topic      string                      `json:"topic"`
	Group      string                      `json:"group"`
	Mode       string                      `json:"mode"`
	Generation uint64                      `json:"generation"`
	Members    []GroupMember               `json:"members"`
	Partitions []GroupPartitionDescription `json:"partitions"`
	Options    GroupOptions                `json:"options"`
	Lag        int64                       `json:"lag"`    // -1: partitions give no answer, their Problem says why
	LagMS      int64                       `json:"lag_ms"` // likewise
	Problem    string                      `json:"problem,omitempty"`
	Error      *Error                      `json:"error,omitempty"`
}

// GroupPartitionDescription: where the partition gives no answer, Problem says why and all numbers are -1.
type GroupPartitionDescription struct {
	Partition    int32  `json:"partition"`
	Member       string `json:"member"` // name of the one that has it
	Committed    int64  `json:"committed"`
	NextOffset   int64  `json:"next_offset"`
	Lag          int64  `json:"lag"`
	LagMS        int64  `json:"lag_ms"`
	Pending      int64  `json:"pending"`
	Redelivering int64  `json:"redelivering"`
	Token        uint64 `json:"token"`
	Redelivered  uint64 `json:"redelivered"`
	DeadLetters  uint64 `json:"dead_letters"`
	Problem      string `json:"problem,omitempty"`
}

type GroupResetRequest struct {
	Topic     string `json:"topic"`
	Group     string `json:"group"`
	To        string `json:"to"`
	Partition *int32 `json:"partition,omitempty"` // nil: all
}

type GroupChange struct {
	Topic  string `json:"topic"`
	Group  string `json:"group"`
	Change string `json:"change"` // reset, deleted
	Detail string `json:"detail,omitempty"`
	Error  *Error `json:"error,omitempty"`
}

// GroupRedriveRequest puts dead letters of the group back into the topic, under the key and headers that they had.
type GroupRedriveRequest struct {
	Topic string `json:"topic"`
	Group string `json:"group"`
	Limit int    `json:"limit,omitempty"` // default and most 1000 a call
}

type GroupRedriven struct {
	Redriven int    `json:"redriven"`
	More     bool   `json:"more"`
	Error    *Error `json:"error,omitempty"`
}

// NextRequest is the body of a plain client's pull. All fields may be left out.
type NextRequest struct {
	Batch     int          `json:"batch,omitempty"` // default 1
	MaxBytes  int          `json:"max_bytes,omitempty"`
	ExpiresMS int64        `json:"expires_ms,omitempty"` // how long to wait; default 0
	Member    string       `json:"member,omitempty"`     // default: one for each connection
	Options   GroupOptions `json:"options,omitzero"`     // mode default: shared
}

// Reasons of groups.
const (
	ReasonGroupNotFound   = "group_not_found"  // 404
	ReasonGroupMismatch   = "group_mismatch"   // 409: it has other options
	ReasonUnknownMember   = "unknown_member"   // 404: join again
	ReasonStaleGeneration = "stale_generation" // 409: a newer one gives the partition to another
	ReasonLeaseHeld       = "lease_held"       // 409, retriable
	ReasonLeaseLost       = "lease_lost"       // 409: the token is old
	ReasonStaleToken      = "stale_token"
	ReasonNotDelivered    = "not_delivered"
	ReasonAlreadyDone     = "already_done" // acked or dead by now: an ack that was repeated was taken
	ReasonTooMany         = "too_many"     // 429: of groups, members or what they remember
)
