package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/replication/format"
)

// state is what a partition's replicas agree on, apart from the records. It is
// a pure function of the log: no clock, no randomness. One goroutine applies;
// machine guards it for the readers.
type state struct {
	index   uint64 // newest applied entry
	term    uint64 // of the newest Start
	counter uint64 // newest within term
	barrier uint64 // epoch of the newest barrier
	logTime int64
	start   int64 // first offset that readers may see
	next    int64

	// stored counts every byte ever appended to the log; index entries carry it, so that
	// retention by bytes finds its offset without reading records.
	stored   int64
	marked   int64  // stored at the newest index entry
	markedAt int64  // log time of the newest index entry
	chain    uint64 // digest of every chunk ever appended, see chain.go

	producers *producerTable
	groups    *groupTable
	ids       *idWindow // rebuilt from the log's tail, not encoded

	// ended are the terms before this one, for their leaders. Not encoded either.
	ended endedTerms

	// results of the newest commands of this term, for a leader that proposes
	// an entry again whose outcome it doesn't know. Not encoded: a leader after
	// a restart has another term.
	results [rememberedResults]remembered
}

// rememberedResults exceeds what a leader has in flight.
const rememberedResults = 4 * maxInFlight

type remembered struct {
	counter uint64
	data    []byte
}

func newState() *state {
	return &state{producers: newProducerTable(), groups: newGroupTable(), ids: newIDWindow()}
}

// admit decides whether a command may be applied and moves term and counter.
// A false answer comes with the result to return.
func (s *state) admit(h commandHeader) (ok bool, code uint64, data []byte) {
	if h.kind == kindStart {
		// Proposed again while nothing of its term was applied, it is the same.
		if h.term < s.term || h.term == s.term && s.counter > 0 {
			return false, resultStaleTerm, nil
		}
		if h.term > s.term {
			s.ended.note(s.term, s.counter)
		}
		s.term, s.counter = h.term, 0
		s.results = [rememberedResults]remembered{}
		return true, resultOK, nil
	}
	switch {
	case h.term != s.term:
		return false, resultStaleTerm, nil
	case h.counter <= s.counter:
		if r := s.results[h.counter%rememberedResults]; r.counter == h.counter {
			return false, resultOK, r.data
		}
		return false, resultForgotten, nil
	case h.counter > s.counter+1:
		return false, resultSkipped, nil
	case h.barrier < s.barrier && h.kind != kindBarrier:
		return false, resultStaleBarrier, nil
	}
	s.counter = h.counter
	return true, resultOK, nil
}

func (s *state) remember(data []byte) {
	s.results[s.counter%rememberedResults] = remembered{counter: s.counter, data: data}
}

// judge decides about one item of an append command at s.next. A repeat is known
// as one before its expected offset is looked at, which it has itself moved.
func (s *state) judge(it item) (itemCode, int64) {
	code, off := itemOK, int64(0)
	if pr := it.batch.Producer(); pr.ID >= 0 {
		code, off = s.producers.check(pr, it.batch.Count())
	}
	switch {
	case code == itemDuplicate:
		return code, off
	case it.expect >= 0 && it.expect != s.next:
		return itemExpectMismatch, s.next
	case code != itemOK:
		return code, off
	}
	for ids := it.ids; len(ids) >= idEntrySize; ids = ids[idEntrySize:] {
		if off, dup := s.ids.find(idHash(ids[4:idEntrySize]), s.logTime, s.start); dup {
			return itemDuplicateID, off
		}
	}
	return itemOK, s.next
}

// accept takes an item that judge let pass: it gets the next offsets.
func (s *state) accept(it item) {
	n := it.batch.Count()
	if pr := it.batch.Producer(); pr.ID >= 0 {
		s.producers.add(pr, n, s.next)
	}
	for ids := it.ids; len(ids) >= idEntrySize; ids = ids[idEntrySize:] {
		s.ids.add(idHash(ids[4:idEntrySize]), s.logTime, s.next+int64(binary.BigEndian.Uint32(ids)))
	}
	s.next += int64(n)
	s.stored += int64(len(it.batch))
}

func (s *state) trim(to int64) {
	s.start = max(s.start, min(to, s.next))
	s.groups.trim(s.start)
}

// A Form is the version of an encoded state, which checkpoints and snapshots hold. Brokers of a version that knows no
// more than an older one may get it: by a snapshot, or when they are put back in the place of a newer one.
type Form byte

const (
	// FormChain has no groups: where there are none, they aren't missed.
	FormChain Form = stateGroupless
	// FormGroups is what this version writes where nobody says otherwise.
	FormGroups Form = stateVersion
)

const (
	stateVersion = 3
	// stateGroupless had no groups.
	stateGroupless = 2
	// stateUnchained had no chain either: it begins at 0 there, and marks before have none. Replicas that came from such
	// states have other chains, and read what they compare.
	stateUnchained = 1
)

// encode is encodeAs in the newest form.
func (s *state) encode(b []byte) []byte { return s.encodeAs(b, stateVersion) }

// encodeAs writes what a checkpoint keeps; docs/format/partition.md describes it. Where the form has no room for what
// the state holds, it is a newer one: then the log holds it, too, and whoever reads that log knows the newer form.
func (s *state) encodeAs(b []byte, f Form) []byte {
	if f != FormChain || !s.groups.empty() {
		f = FormGroups
	}
	b = append(b, byte(f))
	for _, v := range []uint64{s.index, s.term, s.counter, s.barrier, uint64(s.logTime), uint64(s.start), uint64(s.next),
		uint64(s.stored), uint64(s.marked), uint64(s.markedAt), s.chain} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = s.producers.encode(b)
	if f < FormGroups {
		return b
	}
	return s.groups.encode(b)
}

func decodeState(b []byte) (*state, error) {
	d := &decoder{b: b}
	v := d.u8()
	switch {
	case v > stateVersion:
		return nil, format.Newer("the partition's state", "version", uint64(v), stateVersion)
	case d.err == nil && v < stateUnchained:
		return nil, fmt.Errorf("decode partition state: version %d", v)
	}
	s := newState()
	s.index, s.term, s.counter, s.barrier = d.u64(), d.u64(), d.u64(), d.u64()
	s.logTime, s.start, s.next = int64(d.u64()), int64(d.u64()), int64(d.u64())
	s.stored, s.marked, s.markedAt = int64(d.u64()), int64(d.u64()), int64(d.u64())
	if v != stateUnchained {
		s.chain = d.u64()
	}
	s.producers = decodeProducers(d)
	if v > stateGroupless {
		s.groups = decodeGroups(d)
	}
	switch {
	case d.err != nil:
	case len(d.b) != 0:
		d.fail("%d bytes too many", len(d.b))
	case s.start < 0 || s.next < s.start:
		d.fail("bounds %d to %d", s.start, s.next)
	}
	if d.err != nil {
		return nil, fmt.Errorf("decode partition state: %w", d.err)
	}
	return s, nil
}

// decoder reads big endian integers and remembers the first error.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.b = nil
}

func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.fail("cut short")
		return make([]byte, n)
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() byte    { return d.take(1)[0] }
func (d *decoder) u16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

// verify checks the CRC of every batch in data.
func verify(data []byte, visit func(record.Batch) bool) error {
	for len(data) > 0 {
		b, rest, err := record.Split(data)
		if err != nil {
			return err
		}
		if err := b.VerifyCRC(); err != nil {
			return fmt.Errorf("batch at offset %d: %w", b.BaseOffset(), err)
		}
		if !visit(b) {
			return nil
		}
		data = rest
	}
	return nil
}
