package record

import "sync"

// scratch holds memory for decompressed records between batches.
type scratch struct{ b []byte }

// scratchKept bounds what a pool or an Iterator holds on to: one unusual batch
// shouldn't cost its size for ever.
const scratchKept = 2 << 20

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// A Checker verifies batches that come from outside. It is reusable; it is not
// safe for concurrent use. The zero value is ready. While it works on a compressed
// batch it holds up to MaxDecompressedBytes.
type Checker struct {
	walk walker
}

// Check verifies everything a broker must know before it takes a batch: the length
// is exact, the version is 2, the CRC is right, no attributes but a supported codec
// are set, the producer makes sense, the batch and each record are within lim, the
// records are as many as the batch says, numbered 0,1,2,…, and nothing follows
// them. The decompressed size is known or bounded before memory is taken for
// it. The error is one of the package's and says what was found and what is
// allowed.
func (c *Checker) Check(b Batch, lim Limits) error { return c.check(b, lim, nil) }

// CheckRecords is Check with a look at each record in the same pass. The record
// and its slices are valid during the call only. A later record may turn out
// bad: what visit has gathered counts only when CheckRecords returns nil. An error
// of visit ends the check and is returned as it is.
func (c *Checker) CheckRecords(b Batch, lim Limits, visit func(i int, r *Record) error) error {
	return c.check(b, lim, visit)
}

func (c *Checker) check(b Batch, lim Limits, visit func(i int, r *Record) error) error {
	lim = lim.withDefaults()
	if err := b.checkHeader(lim); err != nil {
		return err
	}
	if err := b.VerifyCRC(); err != nil {
		return err
	}
	if err := b.checkMeaning(); err != nil {
		return err
	}
	records := []byte(b[HeaderSize:])
	if codec := b.Codec(); codec != None {
		s := scratches.Get().(*scratch)
		defer func() {
			if cap(s.b) > scratchKept {
				s.b = nil
			}
			scratches.Put(s)
		}()
		out, err := decompress(s.b, codec, records, lim.MaxDecompressedBytes)
		if err != nil {
			return err
		}
		s.b, records = out, out
	}
	w := &c.walk
	w.start(b, records, lim)
	defer w.release()
	for w.index < w.count {
		if err := w.next(visit != nil); err != nil {
			return err
		}
		if visit != nil {
			if err := visit(int(w.index)-1, &w.rec); err != nil {
				return err
			}
		}
	}
	return w.end()
}
