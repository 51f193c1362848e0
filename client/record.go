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

// Message is a record as a Reader or a subscription delivers it. Key, Value and Headers
// must not be written to.
//
// A Reader's Message is valid until the Reader's next call (for the callback and iterator
// forms: until the callback or loop body ends); Clone keeps it. A subscription's has memory of its
// own and stays valid. It is settled once: by what the handler returns, or by Ack, Nak or Term.
type Message struct {
	Topic      string
	Partition  int32
	Deliveries int32 // how often it was handed out, this time included, as far as is known
	Offset     int64
	Timestamp  time.Time // as the producer set it
	Key        []byte    // nil: none
	Value      []byte
	Headers    []Header

	// Token is the fencing token of a subscription's delivery, 0 from a Reader. A later delivery of the same record,
	// and in exclusive and key-ordered groups of any record of the same partition or key, never has a smaller
	// one. A database that keeps the largest token that it has seen, and refuses smaller ones, is safe
	// from a member that was stopped in its tracks and goes on after another has taken over.
	Token uint64

	in    *parcel  // that it came with; nil from a Reader
	after *Message // in its strand; guarded by crew.mu
	state uint32   // see delivery.go; atomic
}

// Clone returns a copy that stays valid. The copy of a subscription's Message can't be settled.
func (m *Message) Clone() Message {
	out := Message{Topic: m.Topic, Partition: m.Partition, Deliveries: m.Deliveries, Offset: m.Offset, Timestamp: m.Timestamp, Token: m.Token}
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
