package partition

import (
	"context"

	"github.com/parleymq/parley/partition/group"
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

// DeadLetterFunc publishes records to a group's dead-letter topic and returns nil once all of them
// are acked there: then the partition commits that they are done. After an error none is, and all are
// brought again with back-off, by this broker or by the partition's next leader: so each is published under
// a message id made of group, topic, partition and offset. The error's text is shown in the
// group's state. All are of one group, in order of offset. It is called by one goroutine
// of the partition, and ctx ends with the leadership.
type DeadLetterFunc func(ctx context.Context, letters []DeadLetter) error

// JoinGroup gives a member a place; the partition is the group's anchor. The answer
// comes once the new generation is committed. Errors: not_leader, group_mismatch,
// too_many, bad_request, unavailable.
func (p *Partition) JoinGroup(ctx context.Context, j group.Join) (group.Assignment, error) {
	return group.Assignment{}, p.noGroups()
}

// SyncGroup is a member's heartbeat at the anchor, and tells it of the next generation.
// It waits as group.Sync says. Errors: not_leader, unknown_member (join again), group_not_found (likewise).
func (p *Partition) SyncGroup(ctx context.Context, s group.Sync) (group.Assignment, error) {
	return group.Assignment{}, p.noGroups()
}

// LeaveGroup takes a member out; the others hear of it by their SyncGroup. Leaving twice is no error.
func (p *Partition) LeaveGroup(ctx context.Context, l group.Leave) (group.Assignment, error) {
	return group.Assignment{}, p.noGroups()
}

// LeaseGroup grants or renews the lease of this partition, waiting for its former holder. The
// partition learns of the group from the request. Errors: not_leader, lease_held (Lease.HeldMS says
// for how long), stale_generation (Lease.Generation says which is newer: hand it to SyncGroup), lease_lost (the token
// is old), group_mismatch, bad_request.
func (p *Partition) LeaseGroup(ctx context.Context, r group.LeaseRequest) (group.Lease, error) {
	return group.Lease{}, p.noGroups()
}

// CommitGroup moves the cursor of an exclusive group; it returns once that is committed. What
// comes together becomes one log entry. Errors: not_leader, lease_lost, group_not_found,
// bad_request (beyond the log, or below what was committed), unavailable (outcome unknown: commit again).
func (p *Partition) CommitGroup(ctx context.Context, c group.Commit) (group.Committed, error) {
	return group.Committed{}, p.noGroups()
}

// PullGroup hands records to a member, waiting for the first as the request says; then Deliveries
// may be empty. Whole batches that hold the records are appended to buf, in order of
// offset; only the records in Deliveries are the member's. Errors: not_leader, group_mismatch, bad_request,
// damaged, unavailable.
func (p *Partition) PullGroup(ctx context.Context, r group.Pull, buf []byte) (group.Pulled, []byte, error) {
	return group.Pulled{}, buf, p.noGroups()
}

// AckGroup returns once what was taken is committed; Progress needs no commit. Errors concern
// all items: not_leader, group_not_found, bad_request, unavailable (outcome unknown: ack again).
func (p *Partition) AckGroup(ctx context.Context, name, member string, items []group.AckItem) ([]group.Refusal, error) {
	return nil, p.noGroups()
}

// GroupStates returns what the leader knows of one group, or of all ("") by name. Errors: not_leader.
// A group that it doesn't know is no error: the list is empty.
func (p *Partition) GroupStates(name string) ([]group.Status, error) {
	return nil, p.noGroups()
}

// SetGroup resets or deletes a group on this partition. Leases and deliveries from before are void:
// their tokens are old. Errors: not_leader, group_not_found (a reset only), bad_request, unavailable.
func (p *Partition) SetGroup(ctx context.Context, s group.Set) error {
	return p.noGroups()
}

func (p *Partition) noGroups() *Error {
	return describe(ErrClosed, "%s: consumer groups are not served by this build", p.name)
}
