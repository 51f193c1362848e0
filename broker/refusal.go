package broker

import (
	"errors"
	"fmt"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

func badRequest(format string, args ...any) *wire.Error {
	return &wire.Error{Code: 400, Reason: wire.ReasonBadRequest, Description: fmt.Sprintf(format, args...)}
}

func noPartition(t *topic, got []byte) *wire.Error {
	return &wire.Error{Code: 404, Reason: wire.ReasonPartNotFound,
		Description: fmt.Sprintf("topic %s has no partition %q, it has 0 to %d", t.name, clip(got), len(t.parts)-1)}
}

func busy(format string, args ...any) *wire.Error {
	return &wire.Error{Code: 429, Reason: wire.ReasonBusy, Retriable: true, Description: fmt.Sprintf(format, args...)}
}

// batchError tells a producer what is wrong with its batch.
func batchError(err error) *wire.Error {
	if errors.Is(err, record.ErrTooLarge) {
		return &wire.Error{Code: 413, Reason: wire.ReasonTooLarge, Description: err.Error()}
	}
	return &wire.Error{Code: 400, Reason: wire.ReasonInvalidBatch, Description: err.Error()}
}

// clip bounds what an answer repeats of a request.
func clip(b []byte) string {
	const most = 64
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}

// notHere is the answer for a partition that this broker doesn't serve now.
func notHere(topic string, n int32, why string) *wire.Error {
	return &wire.Error{Code: 503, Reason: wire.ReasonNotLeader, Retriable: true,
		Description: fmt.Sprintf("partition %s/%d is not served: %s", topic, n, why)}
}
