package record

// An Iterator reads the records of a batch:
//
//	if err := it.Reset(b, record.DefaultLimits); err != nil { … }
//	for it.Next() {
//		use(it.Record())
//	}
//	if err := it.Err(); err != nil { … }
//
// It is reusable; it is not safe for concurrent use. The zero value is ready for
// Reset. It doesn't verify the CRC: call Batch.VerifyCRC first on what came
// from a disk or a network. On bytes of any kind it fails, it doesn't panic.
type Iterator struct {
	walk walker
	buf  []byte // decompressed records
	err  error
	done bool
}

// Reset begins a batch and decompresses it. With compression the iterator keeps
// memory of the decompressed size, at most lim.MaxDecompressedBytes. b must stay as
// it is while records are in use. An error leaves an iterator whose Next is false.
func (it *Iterator) Reset(b Batch, lim Limits) error {
	it.walk.release()
	it.walk.index, it.walk.count, it.done = 0, 0, true
	it.err = it.reset(b, lim.withDefaults())
	return it.err
}

func (it *Iterator) reset(b Batch, lim Limits) error {
	if err := b.checkHeader(lim); err != nil {
		return err
	}
	if err := b.checkMeaning(); err != nil {
		return err
	}
	records := []byte(b[HeaderSize:])
	if codec := b.Codec(); codec != None {
		if cap(it.buf) > scratchKept {
			it.buf = nil
		}
		out, err := decompress(it.buf, codec, records, lim.MaxDecompressedBytes)
		if err != nil {
			return err
		}
		it.buf, records = out, out
	}
	it.walk.start(b, records, lim)
	it.done = false
	return nil
}

// Next moves to the next record. It returns false after the last one and on an
// error, which Err tells apart.
func (it *Iterator) Next() bool {
	if it.done {
		return false
	}
	if it.walk.index == it.walk.count {
		it.done = true
		it.err = it.walk.end()
		return false
	}
	if err := it.walk.next(true); err != nil {
		it.done = true
		it.err = err
		return false
	}
	return true
}

// Record is the record that Next moved to. The struct and its Headers slice are
// reused by the following Next; keys and values are valid until the next Reset. None
// of them may be written to.
func (it *Iterator) Record() *Record { return &it.walk.rec }

// Err is what ended the iteration early, or nil.
func (it *Iterator) Err() error { return it.err }
