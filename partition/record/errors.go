package record

// kind is a sentinel that may belong to a family: errors.Is finds both.
type kind struct {
	text   string
	family error
}

func (k *kind) Error() string { return k.text }
func (k *kind) Unwrap() error { return k.family }

// Families. Every error about the bytes of a batch is one of the two, except
// ErrShort.
var (
	// ErrInvalid: the batch is damaged or says something Parley doesn't take. The
	// same bytes will never be accepted.
	ErrInvalid error = &kind{text: "invalid record batch"}

	// ErrTooLarge: the batch is well formed as far as it was read, but beyond a
	// limit.
	ErrTooLarge error = &kind{text: "record batch beyond a limit"}
)

// What is wrong with a batch. Errors wrap one of these and say what was found and
// what is allowed.
var (
	// ErrShort: the buffer ends before the batch does. With more bytes it may be
	// whole.
	ErrShort error = &kind{text: "record batch cut short"}

	ErrMalformed        error = &kind{"malformed record batch", ErrInvalid}
	ErrMagic            error = &kind{"unsupported record batch version", ErrInvalid}
	ErrCRC              error = &kind{"record batch checksum mismatch", ErrInvalid}
	ErrAttributes       error = &kind{"unsupported record batch attributes", ErrInvalid}
	ErrUnsupportedCodec error = &kind{"unsupported compression codec", ErrInvalid}
	ErrCompressed       error = &kind{"damaged compressed records", ErrInvalid}
	ErrProducer         error = &kind{"invalid producer", ErrInvalid}

	ErrBatchTooLarge        error = &kind{"record batch too large", ErrTooLarge}
	ErrRecordTooLarge       error = &kind{"record too large", ErrTooLarge}
	ErrTooManyRecords       error = &kind{"too many records in a batch", ErrTooLarge}
	ErrTooManyHeaders       error = &kind{"too many headers in a record", ErrTooLarge}
	ErrDecompressedTooLarge error = &kind{"records too large when decompressed", ErrTooLarge}
)

// What a Builder says.
var (
	// ErrBatchFull: the record fits a batch, but not this one. Finish it, then
	// append again.
	ErrBatchFull error = &kind{text: "record batch full"}

	// ErrEmpty: a batch has at least one record.
	ErrEmpty error = &kind{text: "record batch has no records"}
)
