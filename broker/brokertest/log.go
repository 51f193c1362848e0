package brokertest

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// Fetch asks for batches once, as the SDK does.
func Fetch(nc *nats.Conn, topic string, partition int32, q wire.FetchRequest) (batches []byte, start, next int64, err error) {
	body := fmt.Appendf(nil, `{"offset":%d,"max_bytes":%d,"max_wait_ms":%d}`, q.Offset, q.MaxBytes, q.MaxWaitMS)
	m, err := nc.Request(wire.PartitionSubject(wire.FetchPrefix, topic, partition), body, Wait)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("fetch: %w", err)
	}
	start, _ = strconv.ParseInt(m.Header.Get(wire.HeaderStart), 10, 64)
	next, _ = strconv.ParseInt(m.Header.Get(wire.HeaderNext), 10, 64)
	if reason := m.Header.Get(wire.HeaderError); reason != "" {
		return nil, start, next, Decode(m.Data, nil)
	}
	return m.Data, start, next, nil
}

// ReadAll reads a partition from its start to its end.
func ReadAll(nc *nats.Conn, topic string, partition int32) ([]record.Record, error) {
	var all []record.Record
	offset := int64(0)
	for {
		data, start, next, err := Fetch(nc, topic, partition, wire.FetchRequest{Offset: offset})
		var e *wire.Error
		if errors.As(err, &e) && e.Reason == wire.ReasonOffsetOutOfRange && offset < start {
			offset = start
			continue
		}
		if err != nil {
			return all, err
		}
		if offset >= next {
			return all, nil
		}
		if len(data) == 0 {
			return all, fmt.Errorf("fetch of %s/%d at %d is empty, the log ends at %d", topic, partition, offset, next)
		}
		for len(data) > 0 {
			var b record.Batch
			if b, data, err = record.Split(data); err != nil {
				return all, err
			}
			records, err := Records(b)
			if err != nil {
				return all, err
			}
			for _, r := range records {
				if r.Offset >= offset {
					all = append(all, r)
				}
			}
			offset = b.LastOffset() + 1
		}
	}
}

// Records decodes a batch, each record a copy.
func Records(b record.Batch) ([]record.Record, error) {
	if err := b.VerifyCRC(); err != nil {
		return nil, err
	}
	var it record.Iterator
	if err := it.Reset(b, record.DefaultLimits); err != nil {
		return nil, err
	}
	var all []record.Record
	for it.Next() {
		all = append(all, clone(it.Record()))
	}
	return all, it.Err()
}

func clone(r *record.Record) record.Record {
	c := *r
	c.Key, c.Value = copyOf(r.Key), copyOf(r.Value)
	c.Headers = nil
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, record.Header{Key: copyOf(h.Key), Value: copyOf(h.Value)})
	}
	return c
}

func copyOf(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

// Batch builds a batch of the given values.
func Batch(codec record.Codec, p record.Producer, values ...string) (record.Batch, error) {
	b := record.NewBuilder(codec, record.DefaultLimits)
	for _, v := range values {
		if err := b.Append(&record.Record{Value: []byte(v)}); err != nil {
			return nil, err
		}
	}
	out, err := b.Finish(nil, p)
	return record.Batch(out), err
}
