package client

import (
	"slices"
	"time"

	"github.com/parleymq/parley/partition/record"
)

// Header is one pair of a record's headers. Order and repeated keys are kept.
type Header = record.Header

// Text makes a Header of two strings.
func Text(key, value string) Header { return Header{Key: []byte(key), Value: []byte(value)} }

// Record is what a Producer publishes. Key, values and headers are copied before
// Send returns. Key, value and headers together take at most wire.MaxRecord
// (1 MiB), the key at most wire.MaxKey (64 KiB).
type Record struct {
	Key     []byte // nil: no key, the record goes to any partition
	Value   []byte
	Headers []Header

	// Timestamp is kept to the millisecond; zero means now.
	Timestamp time.Time

	// Partition is looked at by the ByRecord partitioner only.
	Partition int32
}

// Ack says where a record is.
type Ack struct {
	Topic     string
	Partition int32
	// Offset of the record, or -1 when it is in the log (Duplicate is true) at an
	// offset that the broker no longer remembers.
	Offset int64
	// Duplicate: an earlier try of the same record had stored it already.
	Duplicate bool
	// Epoch is the cluster configuration that the partition worked under.
	Epoch uint64
}

// Message is a record as a Reader delivers it.
//
// Key, Value and Headers belong to the Reader and are valid until its next call
// (for the callback and iterator forms: until the callback or loop body ends).
// They must not be written to. Clone keeps them.
type Message struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp time.Time // as the producer set it
	Key       []byte    // nil: none
	Value     []byte
	Headers   []Header
}

// Clone returns a copy that stays valid.
func (m *Message) Clone() Message {
	out := *m
	out.Key = slices.Clone(m.Key)
	out.Value = slices.Clone(m.Value)
	out.Headers = slices.Clone(m.Headers)
	for i := range out.Headers {
		out.Headers[i].Key = slices.Clone(out.Headers[i].Key)
		out.Headers[i].Value = slices.Clone(out.Headers[i].Value)
	}
	return out
}

// Header returns the value of the first header with this key, exact case, and
// whether there is one.
func (m *Message) Header(key string) ([]byte, bool) {
	for i := range m.Headers {
		if string(m.Headers[i].Key) == key {
			return m.Headers[i].Value, true
		}
	}
	return nil, false
}

// Codec is how batches are compressed.
type Codec = record.Codec

// Codecs that brokers and readers know.
const (
	None   = record.None
	Snappy = record.Snappy
	LZ4    = record.LZ4
	Zstd   = record.Zstd
)
