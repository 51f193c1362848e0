package partition

import (
	"context"

	"github.com/parleymq/parley/partition/record"
)

// Errors of groups; the reasons are the wire's.
var (
	ErrGroupNotFound   = &Error{Code: 404, Reason: "group_not_found", Description: "the partition does not know this group"}
	ErrGroupMismatch   = &Error{Code: 409, Reason: "group_mismatch", Description: "the group has other options"}
	ErrUnknownMember   = &Error{Code: 404, Reason: "unknown_member", Description: "the group does not know this member: join again"}
	ErrStaleGeneration = &Error{Code: 409, Reason: "stale_generation", Description: "a newer generation gives the partition to another member"}
	ErrLeaseHeld       = &Error{Code: 409, Reason: "lease_held", Retriable: true, Description: "another member holds the lease"}
	ErrLeaseLost       = &Error{Code: 409, Reason: "lease_lost", Description: "the lease's token is old"}
	ErrBadRequest      = &Error{Code: 400, Reason: "bad_request", Description: "the request is invalid"}
	ErrTooMany         = &Error{Code: 429, Reason: "too_many", Description: "a limit of groups is reached"}
)

// DeadLetter is a record that a group gave up. Record's slices are valid during the call only.
type DeadLetter struct {
	Topic      string
	Partition  int32
	Group      string
	Target     string // the group's dead-letter topic; "" the default
	Deliveries int32
	Reason     string
	Record     record.Record // with its Offset
}

// DeadLetterFunc publishes records to a group's dead-letter topic and returns once each of them is acked there, or
// has failed: nil when all are acked, else an error for each, in their order, nil for those that are acked. The
// partition commits that these are done. The others are brought again with back-off, by this broker or by the
// partition's next leader: so each is published under a message id made of group, topic, partition and offset. An error's
// text is shown in the group's state. All are of one group, in order of offset. It is called by one goroutine
// of the partition, and ctx ends with the leadership.
type DeadLetterFunc func(ctx context.Context, letters []DeadLetter) []error
