package partition

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// A scrub reads a run of the log back from disk, verifies all that can be verified without
// anybody else, and makes a digest of it that replicas are compared by. A chunk belongs to the
// run that holds its base: so it doesn't matter where a replica's log begins by now, or
// whether a chunk reaches beyond the run's end. What is below a replica's next offset is
// committed and never changes: replicas that have all of a run have the same, whenever they
// are asked.
//
// What is verified:
//
//   - each batch's CRC, the offsets of batches within their chunk and of chunks among themselves.
//     Where that fails the replica is damaged, as if a reader had met it;
//   - the marks: each begins a chunk, tells its log time, and every chunk with message ids has one; and
//     the chain, computed anew, is what the marks say that it was when the chunks were applied. Where
//     that fails the batches are sound in themselves, but not those that were stored: Scrubbed.Odd tells. A
//     replica isn't damaged by its own word alone: the others are asked whether they have the same.

// Digest of a run of chunks: the first half of the SHA-256 of all that they are. It is no matter of trust
// but of accidents; all the same a CRC would not do, as what it can't see it can't tell apart either.
type Digest [16]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText writes a digest as hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(d[:], b); err != nil || n != len(d) || len(b) != 2*len(d) {
		return fmt.Errorf("digest %q: wanted are %d hexadecimal digits", b, 2*len(d))
	}
	return nil
}

// FromBegin asks for a run from the log's first chunk on.
const FromBegin = -1

// ScrubRequest names a run of the log.
type ScrubRequest struct {
	From int64 // offset, or FromBegin
	To   int64 // excluded; 0: as far as MaxBytes goes
	// MaxBytes is the size at which a run without To ends. At least one chunk is read.
	MaxBytes int64
}

// Scrubbed is what a run of the log was found to be.
type Scrubbed struct {
	From   int64 // of the first chunk, when it was asked for from the beginning
	To     int64
	Bytes  int64 // of the chunks between
	Chunks int
	Digest Digest
	// Odd says which of this replica's own records of what it stored the run contradicts; "" none.
	Odd string
}

// Pace waits until so many bytes may be read.
type Pace func(ctx context.Context, bytes int) error

const (
	// scrubSlice is how much is read in one go, without a pause.
	scrubSlice = 256 << 10
	// scrubMarks is how many marks are looked at for one slice, at most.
	scrubMarks = 64
	// scrubChunk is what a chunk counts for at least: finding it costs as much as reading so many bytes.
	scrubChunk = 4 << 10
)

// Scrub reads a run of the log back from disk. Errors: busy while this replica doesn't have all of the
// run yet, or catches up; trimmed where retention has taken some of it; damaged, which
// the replica is from then on; closed; ctx's.
func (p *Partition) Scrub(ctx context.Context, q ScrubRequest, pace Pace) (Scrubbed, error) {
	res, err := p.m.scrub(ctx, q, pace)
	var e *Error
	switch {
	case err == nil:
		return res, nil
	case errors.Is(err, storage.ErrClosed):
		return res, closedUnder(p.name)
	case errors.As(err, &e):
		if errors.Is(e, ErrDamaged) {
			e = describe(ErrDamaged, "%s: %s", p.name, e.Description)
			p.m.damaged(e)
		}
		return res, e
	}
	return res, fmt.Errorf("scrub partition %s: %w", p.name, err)
}

// scrubRun is one run while it is being read.
type scrubRun struct {
	from  int64 // base of the first chunk that counts
	at    int64 // where the next chunk is to begin
	end   int64 // of the present slice
	begin bool  // the log's first chunk belongs to it, wherever that begins
	first bool  // nothing was read yet
	chain uint64
	known bool // chain is what it was before at
	marks []mark
	low   int64 // the newest mark's bytes stored before
	hash  hash.Hash
	head  [6 * 8]byte
	slice int // bytes read in this slice
	cost  int
	res   *Scrubbed
	gap   bool
	bad   error
}

// bearings of a log that takes no snapshot in.
type bearings struct {
	start, next int64
	chain       uint64
	restores    uint64
}

func (m *machine) bearings() (bearings, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	switch {
	case m.store == nil || m.closed:
		return bearings{}, storage.ErrClosed
	case m.failed != nil:
		return bearings{}, m.failed
	case m.restoring:
		return bearings{}, describe(ErrBusy, "the replica is catching up itself")
	}
	s := m.state
	return bearings{start: s.start, next: s.next, chain: s.chain, restores: m.restores}, nil
}

func (m *machine) scrub(ctx context.Context, q ScrubRequest, pace Pace) (res Scrubbed, err error) {
	b, err := m.bearings()
	if err != nil {
		return res, err
	}
	to := q.To
	switch {
	case to == 0:
		to = b.next
	case q.From < FromBegin || to <= q.From:
		return res, fmt.Errorf("offsets %d to %d were asked for", q.From, to)
	case to > b.next:
		return res, describe(ErrBusy, "the replica has offsets up to %d, not yet up to %d", b.next-1, to-1)
	}
	res = Scrubbed{From: q.From, To: to}
	if q.From == FromBegin {
		res.From = b.start
	}
	if res.From >= to {
		res.To = res.From
		return res, nil // nothing is there
	}
	r, err := m.scrubAll(ctx, q, b, &res, pace, true)
	if errors.Is(err, ErrTrimmed) && r.at < q.From && m.look().start <= q.From { // what led in was trimmed
		res = Scrubbed{From: q.From, To: to}
		r, err = m.scrubAll(ctx, q, b, &res, pace, false)
	}
	if err != nil {
		return res, err
	}
	switch now, err := m.bearings(); {
	case err != nil:
		return res, err
	case now.restores != b.restores:
		return res, describe(ErrBusy, "the replica was catching up meanwhile")
	}
	if err := m.scrubEnd(r, b); err != nil {
		return res, err
	}
	if q.To == 0 {
		res.To = r.at
	}
	copy(res.Digest[:], r.hash.Sum(nil))
	return res, nil
}

func (m *machine) scrubAll(ctx context.Context, q ScrubRequest, b bearings, res *Scrubbed, pace Pace, lead bool) (*scrubRun, error) {
	r := &scrubRun{from: res.From, at: res.From, begin: q.From == FromBegin, first: true, hash: sha256.New(), res: res}
	if lead && !r.begin {
		if err := r.leadIn(m, b.start); err != nil {
			return r, m.scrubFailed(r, b, err)
		}
	}
	for r.at < res.To && (q.To != 0 || res.Bytes < q.MaxBytes || res.Chunks == 0) {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if err := m.scrubSlice(r, res.To); err != nil {
			return r, m.scrubFailed(r, b, err)
		}
		if err := pace(ctx, r.cost); err != nil {
			return r, err
		}
	}
	return r, nil
}

// scrubEnd holds the chain at the run's end against what is known of it there.
func (m *machine) scrubEnd(r *scrubRun, b bearings) error {
	switch {
	case !r.known || r.at > b.next:
	case r.at == b.next:
		if r.chain != b.chain {
			r.odd("the records up to the log's end, offset %d, are not those that were applied", b.next-1)
		}
	default:
		at, err := m.marksFrom(r.at, r.at+1, 1, r.marks[:0])
		switch {
		case errors.Is(err, storage.ErrCorrupt): // it is met in its own run
		case err != nil:
			return m.scrubFailed(r, b, err)
		}
		if len(at) == 1 && at[0].chained && at[0].chain != r.chain {
			r.odd("the records before offset %d are not those that the index knows of", r.at)
		}
	}
	return nil
}

// leadIn begins at the mark at or before the run: what is between is linked, so that the chain
// is known when the run begins, and counts for nothing else.
func (r *scrubRun) leadIn(m *machine, start int64) error {
	k, v, ok, err := m.store.SeekBack(markKey(r.from))
	if err != nil || !ok {
		return err
	}
	mk, err := parseMark(k, v)
	if err == nil && mk.chained && mk.offset >= start { // else its chunk may be gone
		r.at = mk.offset
	}
	return nil // a mark that can't be read is met in its own run
}

// scrubSlice reads on for some of the run.
func (m *machine) scrubSlice(r *scrubRun, to int64) (err error) {
	r.end, r.slice, r.cost = to, 0, 0
	if r.marks, err = m.marksFrom(r.at, to, scrubMarks, r.marks[:0]); err != nil {
		if !errors.Is(err, storage.ErrCorrupt) {
			return err
		}
		r.odd("%v", err)
		r.marks = r.marks[:0]
	}
	if n := len(r.marks); n == scrubMarks { // those beyond the last one are not known
		r.end = r.marks[n-1].offset
		r.marks = r.marks[:n-1]
	}
	began := r.at
	err = m.store.Read(r.at, r.visit)
	if err == nil {
		err = r.bad
	}
	if err == nil && (r.gap || r.at == began) {
		err = fmt.Errorf("%w: offsets from %d on are missing", storage.ErrCorrupt, r.at)
	}
	if err == nil && len(r.marks) > 0 && r.marks[0].offset < r.at {
		r.odd("the index has a mark at offset %d, where no chunk begins", r.marks[0].offset)
	}
	return err
}

// scrubFailed says what an error of a read means.
func (m *machine) scrubFailed(r *scrubRun, b bearings, err error) error {
	now, lost := m.bearings()
	switch {
	case lost != nil:
		return lost
	case errors.Is(err, storage.ErrClosed):
		return err
	case now.restores != b.restores:
		return describe(ErrBusy, "the replica was catching up meanwhile")
	case now.start > r.at:
		return describe(ErrTrimmed, "offset %d was trimmed, the log starts at %d", r.at, now.start)
	}
	return describe(ErrDamaged, "reading the log back: offset %d on this broker's disk: %v", r.at, err)
}

func (r *scrubRun) odd(format string, args ...any) {
	if r.res.Odd == "" {
		r.res.Odd = fmt.Sprintf(format, args...)
	}
}

// visit takes one chunk.
func (r *scrubRun) visit(c storage.Chunk) bool {
	if c.Base >= r.end {
		return false
	}
	// The first one may begin before: it belongs to what comes before the run, unless nothing does.
	early := r.first && c.Base < r.at
	switch {
	case early && r.begin:
		r.from, r.res.From = c.Base, c.Base
	case !early && c.Base != r.at:
		r.gap = true
		return false
	}
	r.first = false
	if r.bad = sound(&c); r.bad != nil {
		return false
	}
	if !early { // else its mark wasn't looked for
		r.check(&c)
	}
	if r.known {
		if r.chain, r.bad = link(r.chain, &c); r.bad != nil {
			return false
		}
	}
	n := len(c.Meta) + len(c.Data)
	if c.Base >= r.from {
		for i, v := range [...]uint64{uint64(c.Base), uint64(c.Last), c.Index, uint64(c.LogTime), uint64(len(c.Meta)), uint64(len(c.Data))} {
			binary.BigEndian.PutUint64(r.head[i*8:], v)
		}
		r.hash.Write(r.head[:]) // never fails
		r.hash.Write(c.Meta)
		r.hash.Write(c.Data)
		r.res.Bytes += int64(n)
		r.res.Chunks++
	}
	r.at = c.Last + 1
	r.slice += n
	r.cost += max(n, scrubChunk)
	return r.at < r.end && r.slice < scrubSlice
}

// check holds a chunk against its mark.
func (r *scrubRun) check(c *storage.Chunk) {
	for len(r.marks) > 0 && r.marks[0].offset < c.Base {
		r.odd("the index has a mark at offset %d, where no chunk begins", r.marks[0].offset)
		r.marks = r.marks[1:]
	}
	if len(r.marks) == 0 || r.marks[0].offset != c.Base {
		if len(c.Meta) > 0 {
			r.odd("the index has no mark at offset %d, where a chunk with message ids begins", c.Base)
		}
		return
	}
	mk := r.marks[0]
	r.marks = r.marks[1:]
	switch {
	case mk.logTime != c.LogTime:
		r.odd("the index says that offset %d has log time %d, its chunk %d", c.Base, mk.logTime, c.LogTime)
	case mk.chained && !mk.ids && len(c.Meta) > 0:
		r.odd("the index does not know of the message ids at offset %d", c.Base)
	case mk.before < r.low:
		r.odd("the index says that %d bytes were stored before offset %d, and %d before an earlier one", mk.before, c.Base, r.low)
	}
	r.low = mk.before
	if !mk.chained {
		return
	}
	if r.known && r.chain != mk.chain {
		r.odd("the records before offset %d are not those that the index knows of", c.Base)
	}
	r.chain, r.known = mk.chain, true
}

// sound verifies a chunk in itself.
func sound(c *storage.Chunk) error {
	at := c.Base
	err := verify(c.Data, func(b record.Batch) bool {
		if b.BaseOffset() != at {
			return false
		}
		at = b.LastOffset() + 1
		return true
	})
	if err == nil && at != c.Last+1 {
		err = fmt.Errorf("%w: the chunk from %d to %d has batches up to %d that follow each other", storage.ErrCorrupt, c.Base, c.Last, at-1)
	}
	return err
}

// marksFrom appends the marks between two offsets, the second one excluded, at most limit.
func (m *machine) marksFrom(at, end int64, limit int, to []mark) ([]mark, error) {
	upTo := markKey(end)
	for len(to) < limit {
		k, v, ok, err := m.store.Seek(markKey(at), upTo)
		if err != nil || !ok {
			return to, err
		}
		mk, err := parseMark(k, v)
		if err != nil {
			return to, err
		}
		to = append(to, mk)
		at = mk.offset + 1
	}
	return to, nil
}
