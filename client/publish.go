package client

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// A PublishOption says more about one Client.Publish.
type PublishOption func(*publication) error

type publication struct {
	header map[string][]string
	id     bool
}

// MessageID names the record, 1 to 256 bytes: within the broker's window (2 min of
// the log's time), a second record with this id is answered as a duplicate of the
// first. It also makes a publish safe to repeat, which Client.Publish then does.
func MessageID(id string) PublishOption {
	return func(p *publication) error {
		if id == "" || len(id) > wire.MaxMsgID {
			return fmt.Errorf("message id of %d bytes: must be 1 to %d", len(id), wire.MaxMsgID)
		}
		p.id = true
		return p.set(wire.HeaderMsgID, id)
	}
}

// ExpectOffset stores the record only if offset is the partition's next one, and
// fails with ErrExpectMismatch otherwise: compare and append.
func ExpectOffset(offset int64) PublishOption {
	return func(p *publication) error {
		if offset < 0 {
			return fmt.Errorf("expected offset %d: must be 0 or more", offset)
		}
		return p.set(wire.HeaderExpect, strconv.FormatInt(offset, 10))
	}
}

// OnPartition stores the record in this partition whatever its key says.
func OnPartition(partition int32) PublishOption {
	return func(p *publication) error {
		if partition < 0 {
			return fmt.Errorf("partition %d: must be 0 or more", partition)
		}
		return p.set(wire.HeaderPart, strconv.Itoa(int(partition)))
	}
}

func (p *publication) set(key, value string) error {
	if key == "" || strings.ContainsAny(key, ":\r\n") || strings.ContainsAny(value, "\r\n") || strings.TrimSpace(value) != value {
		return fmt.Errorf("header %q: a NATS header holds neither line breaks nor spaces at its ends", key)
	}
	p.header[key] = append(p.header[key], value)
	return nil
}

// Publish publishes one record to a subject that a topic binds, as any NATS client
// would. Use it for message ids, compare-and-append, and subjects; for anything
// else a Producer is faster and repeats a publish without storing it twice.
//
// With MessageID, it is tried until ctx ends, or for 30 s when ctx has no deadline.
// Without, only refusals that are certain are tried again; a lost connection is
// an error with OutcomeUnknown. A subject that no topic binds is ErrTopicNotFound
// after 3 s: brokers may not have heard of a new topic yet. Timestamp and Partition of the record are not used:
// the broker sets the time, OnPartition the partition. Key and headers must be
// text without line breaks.
func (c *Client) Publish(ctx context.Context, subject string, r Record, opts ...PublishOption) (Ack, error) {
	p := publication{header: map[string][]string{}}
	fail := func(err error) (Ack, error) { return Ack{}, fmt.Errorf("publish to %s: %w", subject, err) }
	for i := range r.Headers {
		if err := p.set(string(r.Headers[i].Key), string(r.Headers[i].Value)); err != nil {
			return fail(err)
		}
	}
	if r.Key != nil {
		if err := p.set(wire.HeaderKey, string(r.Key)); err != nil {
			return fail(err)
		}
	}
	for _, o := range opts {
		if err := o(&p); err != nil {
			return fail(err)
		}
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callPatience)
		defer cancel()
	}
	var nobody time.Time // since when no topic binds the subject
	for n := 0; ; n++ {
		ack, err := c.publishOnce(ctx, subject, p.header, r.Value)
		if err == nil {
			return Ack{Topic: ack.Topic, Partition: ack.Partition, Offset: ack.Offset, Duplicate: ack.Duplicate, Epoch: ack.Epoch}, nil
		}
		e := asError(err)
		if e == nil {
			return fail(err)
		}
		if e != errNobody {
			nobody = time.Time{}
		} else if nobody.IsZero() {
			nobody = time.Now()
		} else if time.Since(nobody) >= notFoundPatience {
			return Ack{}, &Error{Code: 404, Reason: wire.ReasonTopicNotFound, Outcome: OutcomeRejected,
				Description: fmt.Sprintf("no topic binds subject %q", subject)}
		}
		if !e.Retriable || !p.id && !rejected(e) {
			return Ack{}, e
		}
		if pause := c.pause(ctx, backoff(n)); pause != nil {
			return fail(fmt.Errorf("%w (last: %w)", pause, e))
		}
	}
}

func (c *Client) publishOnce(ctx context.Context, subject string, header map[string][]string, value []byte) (ack wire.PubAck, err error) {
	if len(header) == 0 {
		header = nil
	}
	r, err := ask(ctx, c.requests(), subject, header, value, c.cfg.requestTimeout)
	if err != nil {
		return ack, err
	}
	if err := json.Unmarshal(r.data, &ack); err != nil {
		return ack, &Error{Code: 500, Reason: wire.ReasonInternal, Outcome: OutcomeUnknown,
			Description: fmt.Sprintf("the answer to a publish to %s is no ack: %v", subject, err)}
	}
	if ack.Error != nil {
		return ack, ack.Error
	}
	return ack, nil
}
