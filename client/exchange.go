package client

import (
	"context"
	"strconv"
	"time"
)

// An exchange carries requests to brokers and brings the answers back. It is the
// seam between what the SDK decides and the connection; tests put a scripted one
// in its place. Safe for concurrent use.
type exchange interface {
	// request sends data, with header unless that is nil, and keeps neither. The answer, or the news that there
	// will be none, comes to to.answered(tag, …) at most once, on a goroutine of
	// the exchange, and never after forget(token). An exchange has no timeouts: who
	// asks keeps the time and calls forget. An error means that no answer will
	// come; it is an *Error whose Outcome says whether the request may have left.
	request(subject string, header map[string][]string, data []byte, to receiver, tag uint64) (token uint64, err error)

	// forget drops a request. Unknown tokens are ignored.
	forget(token uint64)

	// maxPayload is the largest data in bytes that the broker takes.
	maxPayload() int

	// broker is the name of the broker at the other end, as last known.
	broker() string

	// up says whether the connection stands.
	up() bool

	// close fails what waits and ends the connection.
	close()
}

// A receiver takes answers. answered must not block.
type receiver interface {
	answered(tag uint64, r reply)
}

// reply is a broker's answer; it owns its memory. err is set when there is none.
type reply struct {
	data   []byte
	header map[string][]string
	err    *Error
}

func (r *reply) headerValue(key string) string {
	if v := r.header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// headerInt is a header's number, -1 when there is none.
func (r *reply) headerInt(key string) int64 {
	n, err := strconv.ParseInt(r.headerValue(key), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// inquiry is a receiver for one caller that waits.
type inquiry chan reply

func (q inquiry) answered(_ uint64, r reply) { q <- r } // capacity 1, one answer

// ask sends one request and waits for its answer, at most for timeout.
func ask(ctx context.Context, x exchange, subject string, header map[string][]string, data []byte, timeout time.Duration) (reply, error) {
	q := make(inquiry, 1)
	token, err := x.request(subject, header, data, q, 0)
	if err != nil {
		return reply{}, err
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case r := <-q:
		if r.err != nil {
			return reply{}, r.err
		}
		return r, nil
	case <-ctx.Done():
		x.forget(token)
		return reply{}, ctx.Err()
	case <-t.C:
		x.forget(token)
		return reply{}, unanswered(subject, timeout)
	}
}
