// Package record reads, writes and checks record batches: the unit that
// Parley sends, replicates, stores and fetches. The bytes are record batch v2
// of the Kafka protocol (magic 2); docs/format/record-batch.md describes them
// and what Parley asks of a batch beyond the format.
//
// A Builder makes batches, Split finds them in a buffer, a Checker verifies one
// that came from outside, an Iterator reads the records of one that was
// verified. All three are made to be reused: once warm, none of them allocates
// per record or per batch.
//
// Nothing here trusts a length it has read: a size is compared with what is
// there and with a Limit before memory is taken for it, and all arithmetic on
// foreign sizes is safe where int has 32 bits.
package record

import "math"

// A Header is one pair of a record's headers. Order and repeated keys are kept.
type Header struct {
	Key   []byte
	Value []byte // nil is null, which is not the same as empty
}

// A Record is one message.
type Record struct {
	Key     []byte // nil is null
	Value   []byte // nil is null
	Headers []Header

	Timestamp int64 // Unix milliseconds, as the producer set it

	// Offset is the batch's base offset plus the record's place in the batch. It is
	// set when reading and ignored when building.
	Offset int64
}

// Size is what limits compare: the bytes of key, value, header keys and header
// values.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// A Producer identifies who made a batch and which one it is, so that a retry is
// recognised.
type Producer struct {
	ID       int64
	Epoch    int16
	Sequence int32 // of the batch's first record
}

// NoProducer marks a batch without duplicate detection.
var NoProducer = Producer{ID: -1, Epoch: -1, Sequence: -1}

func (p Producer) valid() bool {
	return p == NoProducer || p.ID >= 0 && p.Epoch >= 0 && p.Sequence >= 0
}

// Limits bound one batch. A field that is zero or negative means its default.
type Limits struct {
	MaxBatchBytes        int // one batch as it is sent and stored, header included
	MaxRecordBytes       int // Record.Size of one record
	MaxRecords           int // records in one batch
	MaxDecompressedBytes int // the records of one batch, uncompressed
	MaxHeaders           int // headers of one record
}

// AddedBytes is what headers that a broker adds may take beyond the largest record
// that a producer may send: a dead letter says where it comes from and why.
const AddedBytes = 4 << 10

// AddedHeaders is how many headers that may be, beyond what a producer may send.
const AddedHeaders = 16

// MaxSentHeaders is how many headers a record may have that a producer sends.
const MaxSentHeaders = maxHeaders - AddedHeaders

const maxHeaders = 4096

// DefaultLimits are what a broker accepts and every reader must be able to read.
//
// MaxHeaders is there because an empty header takes two bytes in a batch and 48
// in memory.
var DefaultLimits = Limits{
	MaxBatchBytes:        1<<20 + 64<<10,
	MaxRecordBytes:       1<<20 + AddedBytes,
	MaxRecords:           65536,
	MaxDecompressedBytes: 8 << 20,
	MaxHeaders:           maxHeaders,
}

func (l Limits) withDefaults() Limits {
	pick := func(v, def int) int {
		if v <= 0 {
			return def
		}
		return min(v, math.MaxInt32) // no length of the format is longer
	}
	return Limits{
		MaxBatchBytes:        pick(l.MaxBatchBytes, DefaultLimits.MaxBatchBytes),
		MaxRecordBytes:       pick(l.MaxRecordBytes, DefaultLimits.MaxRecordBytes),
		MaxRecords:           pick(l.MaxRecords, DefaultLimits.MaxRecords),
		MaxDecompressedBytes: pick(l.MaxDecompressedBytes, DefaultLimits.MaxDecompressedBytes),
		MaxHeaders:           pick(l.MaxHeaders, DefaultLimits.MaxHeaders),
	}
}
