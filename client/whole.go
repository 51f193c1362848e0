package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/parleymq/parley/client/wire"
)

// Whole batches, as they are stored: for copying a topic's records without taking them apart.

// Batches are record batches v2, one after the other, as a partition has them.
type Batches struct {
	Data   []byte // may begin with a batch that begins before the offset that was asked for
	Bounds Bounds // of the partition, as it answered
}

// FetchBatches returns whole batches from the one that holds offset on, about as many as fit
// wire.MaxFetch bytes; none at the end of the log. ErrOffsetOutOfRange: retention has deleted it, or
// it is beyond the end. Retriable errors are tried again until ctx ends.
func (c *Client) FetchBatches(ctx context.Context, topic string, partition int32, offset int64) (Batches, error) {
	subject := wire.PartitionSubject(wire.FetchPrefix, topic, partition)
	req, err := json.Marshal(wire.FetchRequest{Offset: offset})
	if err != nil {
		return Batches{}, fmt.Errorf("encode request for %s: %w", subject, err)
	}
	for n := 0; ; n++ {
		r, err := ask(ctx, c.requests(), subject, nil, req, c.cfg.requestTimeout)
		if err == nil && r.headerValue(wire.HeaderError) != "" {
			var failure struct{ Error *Error }
			if err = json.Unmarshal(r.data, &failure); err == nil {
				err = failure.Error
			}
		}
		if err == nil {
			b := Batches{Data: r.data}
			b.Bounds.Start, err = strconv.ParseInt(r.headerValue(wire.HeaderStart), 10, 64)
			if err == nil {
				b.Bounds.Next, err = strconv.ParseInt(r.headerValue(wire.HeaderNext), 10, 64)
			}
			if err != nil {
				return Batches{}, fmt.Errorf("fetch batches of %s/%d: the answer has no bounds: %w", topic, partition, err)
			}
			return b, nil
		}
		e := asError(err)
		if e == nil || !e.Retriable {
			return Batches{}, fmt.Errorf("fetch batches of %s/%d: %w", topic, partition, err)
		}
		if pause := c.pause(ctx, backoff(n)); pause != nil {
			return Batches{}, fmt.Errorf("fetch batches of %s/%d: %w (last: %w)", topic, partition, pause, e)
		}
	}
}

// AppendBatch appends one whole batch of count records, of no producer, where the partition's
// next offset is expect, and nowhere else: so that it may be tried again, as it is until ctx ends, and lands
// once. ErrExpectMismatch: somebody else has appended.
func (c *Client) AppendBatch(ctx context.Context, topic string, partition int32, batch []byte, count int, expect int64) error {
	subject := wire.PartitionSubject(wire.PubPrefix, topic, partition)
	header := map[string][]string{wire.HeaderExpect: {strconv.FormatInt(expect, 10)}}
	fail := func(err error) error {
		return fmt.Errorf("append batch to %s/%d at %d: %w", topic, partition, expect, err)
	}
	unsure := false
	for n := 0; ; n++ {
		ack, err := c.publishOnce(ctx, subject, header, batch)
		if err == nil {
			if ack.Offset != expect {
				return fail(fmt.Errorf("it landed at offset %d", ack.Offset))
			}
			return nil
		}
		e := asError(err)
		if e == nil {
			return fail(err)
		}
		if unsure && errors.Is(e, ErrExpectMismatch) {
			// The try before this one may be what moved it.
			b, berr := c.Bounds(ctx, topic, partition)
			if berr != nil {
				return fail(berr)
			}
			if b.Next == expect+int64(count) {
				return nil
			}
		}
		if unsure = unsure || !rejected(e); !e.Retriable && rejected(e) {
			return fail(e)
		}
		if pause := c.pause(ctx, backoff(n)); pause != nil {
			return fail(fmt.Errorf("%w (last: %w)", pause, e))
		}
	}
}
