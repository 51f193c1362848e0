package partition

import (
	"fmt"
)

// Error is a failure that a client is told about. Reason and Code are those of
// the wire; Unknown says that the record may be in the log all the same.
type Error struct {
	Code        int
	Reason      string
	Retriable   bool
	Unknown     bool
	Description string
	Start, Next int64 // the bounds, of an offset_out_of_range
}

func (e *Error) Error() string { return e.Description + " (" + e.Reason + ")" }

// Is compares by reason, so that errors.Is finds a sentinel in a described error.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Reason == e.Reason
}

// Sentinels. What is returned carries a description of the case at hand.
var (
	ErrNotLeader       = &Error{Code: 503, Reason: "not_leader", Retriable: true, Description: "this broker does not lead the partition"}
	ErrBusy            = &Error{Code: 429, Reason: "busy", Retriable: true, Description: "the partition's queue is full"}
	ErrDiskFull        = &Error{Code: 507, Reason: "disk_full", Retriable: true, Description: "free disk space is below the floor"}
	ErrUnavailable     = &Error{Code: 503, Reason: "unavailable", Retriable: true, Unknown: true, Description: "leadership was lost before the record was committed: it may be in the log"}
	ErrClosed          = &Error{Code: 503, Reason: "unavailable", Retriable: true, Description: "the partition is closed"}
	ErrNotYet          = &Error{Code: 503, Reason: "unavailable", Retriable: true, Description: "the cluster does not allow this yet"}
	ErrTooLarge        = &Error{Code: 413, Reason: "too_large", Description: "the record is too large"}
	ErrInvalidBatch    = &Error{Code: 400, Reason: "invalid_batch", Description: "the record batch is invalid"}
	ErrExpectMismatch  = &Error{Code: 409, Reason: "offset_mismatch", Description: "the partition's next offset is another"}
	ErrOutOfOrder      = &Error{Code: 409, Reason: "out_of_order_sequence", Description: "a batch before this one is missing"}
	ErrProducerFenced  = &Error{Code: 409, Reason: "producer_fenced", Description: "a newer epoch of this producer has written"}
	ErrUnknownProducer = &Error{Code: 409, Reason: "unknown_producer", Retriable: true, Description: "the partition does not know this producer: start anew with sequence 0"}
	ErrOutOfRange      = &Error{Code: 416, Reason: "offset_out_of_range", Description: "the offset is outside the log"}
	ErrDamaged         = &Error{Code: 500, Reason: "damaged", Description: "stored records are damaged"}
)

// describe returns e with a text of its own.
func describe(e *Error, format string, args ...any) *Error {
	d := *e
	d.Description = fmt.Sprintf(format, args...)
	return &d
}
