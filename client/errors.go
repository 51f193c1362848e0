package client

import (
	"errors"
	"fmt"

	"github.com/parleymq/parley/client/wire"
)

// Error is how a broker reports a failure, and how this package reports its own
// failures to reach one. Use errors.As for its fields and errors.Is with the
// sentinels below for its reason.
//
// Outcome of a failed publish is OutcomeRejected when the record is not and
// never will be in the log, OutcomeUnknown when it may be.
type Error = wire.Error

// Outcomes of a failed publish.
const (
	OutcomeRejected = wire.OutcomeRejected
	OutcomeUnknown  = wire.OutcomeUnknown
)

// Sentinels for errors.Is; they compare by reason.
var (
	ErrBadRequest       error = &Error{Code: 400, Reason: wire.ReasonBadRequest, Description: "bad request"}
	ErrInvalidTopic     error = &Error{Code: 400, Reason: wire.ReasonInvalidTopic, Description: "invalid topic name"}
	ErrInvalidConfig    error = &Error{Code: 400, Reason: wire.ReasonInvalidConfig, Description: "invalid topic configuration"}
	ErrInvalidBatch     error = &Error{Code: 400, Reason: wire.ReasonInvalidBatch, Description: "invalid record batch"}
	ErrTooLarge         error = &Error{Code: 413, Reason: wire.ReasonTooLarge, Description: "too large"}
	ErrUnauthorized     error = &Error{Code: 401, Reason: wire.ReasonUnauthorized, Description: "not authorized"}
	ErrTopicNotFound    error = &Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: "topic not found"}
	ErrPartNotFound     error = &Error{Code: 404, Reason: wire.ReasonPartNotFound, Description: "partition not found"}
	ErrTopicExists      error = &Error{Code: 409, Reason: wire.ReasonTopicExists, Description: "topic exists"}
	ErrSubjectOverlap   error = &Error{Code: 409, Reason: wire.ReasonSubjectOverlap, Description: "subject overlaps another topic's"}
	ErrExpectMismatch   error = &Error{Code: 409, Reason: wire.ReasonExpectMismatch, Description: "next offset is not the expected one"}
	ErrOffsetOutOfRange error = &Error{Code: 416, Reason: wire.ReasonOffsetOutOfRange, Description: "offset out of range"}
	ErrBusy             error = &Error{Code: 429, Reason: wire.ReasonBusy, Description: "busy"}
	ErrNotLeader        error = &Error{Code: 503, Reason: wire.ReasonNotLeader, Description: "not the leader"}
	ErrUnavailable      error = &Error{Code: 503, Reason: wire.ReasonUnavailable, Description: "unavailable"}
	ErrTimeout          error = &Error{Code: 504, Reason: wire.ReasonTimeout, Description: "timed out"}
	ErrDiskFull         error = &Error{Code: 507, Reason: wire.ReasonDiskFull, Description: "disk full"}
	ErrDamaged          error = &Error{Code: 500, Reason: wire.ReasonDamaged, Description: "damaged"}
	ErrGroupNotFound    error = &Error{Code: 404, Reason: wire.ReasonGroupNotFound, Description: "group not found"}
	ErrGroupMismatch    error = &Error{Code: 409, Reason: wire.ReasonGroupMismatch, Description: "the group has other options"}
	ErrInternal         error = &Error{Code: 500, Reason: wire.ReasonInternal, Description: "internal error"}
)

// Errors of this package's own.
var (
	// ErrClosed: the Client, Producer or Reader was closed.
	ErrClosed = errors.New("closed")

	// ErrBufferFull: a Producer made with FailWhenFull has no room for the record.
	ErrBufferFull = errors.New("producer buffer full")
)

// OffsetOutOfRangeError says that a Reader asked for an offset that the partition
// doesn't hold: retention has removed it, or it was never written. errors.Is
// finds ErrOffsetOutOfRange.
type OffsetOutOfRangeError struct {
	Topic     string
	Partition int32
	Offset    int64 // what was asked for
	Start     int64 // first offset that can be read
	Next      int64 // offset that the next record will get
}

func (e *OffsetOutOfRangeError) Error() string {
	return fmt.Sprintf("offset %d of %s/%d is out of range: the partition holds %d up to, not including, %d",
		e.Offset, e.Topic, e.Partition, e.Start, e.Next)
}

// Is makes errors.Is(err, ErrOffsetOutOfRange) true.
func (e *OffsetOutOfRangeError) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Reason == wire.ReasonOffsetOutOfRange
}

// errNobody is the server's answer to a request that nobody listens to. It is
// compared by its address.
var errNobody = &Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Outcome: wire.OutcomeRejected,
	Description: "the server doesn't answer Parley requests"}

// notSent is a failure before a byte left: it is certain that nothing happened.
func notSent(cause error) *Error {
	return &Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Outcome: wire.OutcomeRejected,
		Description: "request not sent: " + cause.Error()}
}

// lost is a request whose answer will not come.
func lost(why string) *Error {
	return &Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Outcome: wire.OutcomeUnknown, Description: why}
}

// unanswered is a request whose answer did not come in time.
func unanswered(subject string, after fmt.Stringer) *Error {
	return &Error{Code: 504, Reason: wire.ReasonTimeout, Retriable: true, Outcome: wire.OutcomeUnknown,
		Description: fmt.Sprintf("no answer to %s within %s", subject, after)}
}

// rejected says whether err is certain to have left nothing in the log. Brokers
// that give no outcome mean what the reason implies.
func rejected(err *Error) bool {
	switch err.Outcome {
	case wire.OutcomeRejected:
		return true
	case wire.OutcomeUnknown:
		return false
	}
	switch err.Reason {
	case wire.ReasonTimeout, wire.ReasonUnavailable, wire.ReasonInternal, wire.ReasonDamaged, wire.ReasonNotLeader, "":
		return false
	}
	return true
}

// asError gives any failure the shape of an *Error, or nil when it has another.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
