package epoch

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

var errForm = errors.New("not in the form of docs/format/epochs.md")

// writer puts numbers and texts together as docs/format/epochs.md says.
type writer struct{ b []byte }

func (w *writer) byte(v byte)   { w.b = append(w.b, v) }
func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }

func (w *writer) text(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) bytes(b []byte) {
	w.uint(uint64(len(b)))
	w.b = append(w.b, b...)
}

func (w *writer) hash(h [32]byte) { w.b = append(w.b, h[:]...) }

func (w *writer) ballot(b paxos.Ballot) {
	w.uint(b.Round)
	w.text(b.Incarnation)
	w.uint(b.Boot)
}

// reader takes them apart. The first failure sticks; what it returns shares b.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{errForm}, args...)...)
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("it ends early")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 { // a longer form of the same number
		r.fail("a bad number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(most int) []byte {
	n := r.uint()
	if n > uint64(most) || n > uint64(len(r.b)) {
		r.fail("%d bytes, at most %d are allowed and %d left", n, most, len(r.b))
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) text() string { return string(r.bytes(config.MaxText)) }

func (r *reader) hash() (h [32]byte) {
	if len(r.b) < len(h) {
		r.fail("it ends within a hash")
		return h
	}
	copy(h[:], r.b)
	r.b = r.b[len(h):]
	return h
}

func (r *reader) ballot() paxos.Ballot {
	return paxos.Ballot{Round: r.uint(), Incarnation: r.text(), Boot: r.uint()}
}

// count reads a number of things of at least one byte each.
func (r *reader) count(most int) int {
	n := r.uint()
	if n > uint64(most) || n > uint64(len(r.b)) {
		r.fail("%d items, at most %d are allowed and %d bytes left", n, most, len(r.b))
		return 0
	}
	return int(n)
}

// end fails when something is left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}

// What an entry carries.
const (
	carriesValue   = 1
	carriesSummary = 2
)

// entries writes decided epochs: the first number and previous hash, then of each
// its hash and its value or its header. The rest follows, as they adjoin.
func (w *writer) entries(entries []paxos.Entry) {
	w.uint(uint64(len(entries)))
	for i := range entries {
		e := &entries[i]
		if i == 0 {
			w.uint(e.Epoch)
			w.hash(e.Previous)
		}
		w.hash(e.Hash)
		if e.Value != nil {
			w.byte(carriesValue)
			w.bytes(e.Value)
		} else {
			w.byte(carriesSummary)
			w.bytes(e.Summary)
		}
	}
}

func (r *reader) entries() []paxos.Entry {
	n := r.count(paxos.MaxEntries)
	if n == 0 {
		return nil
	}
	entries := make([]paxos.Entry, 0, min(n, len(r.b)/33))
	next := r.uint()
	previous := r.hash()
	for ; n > 0 && r.err == nil; n-- {
		e := paxos.Entry{Epoch: next, Previous: previous, Hash: r.hash()}
		switch what := r.byte(); what {
		case carriesValue:
			if e.Value = r.bytes(paxos.MaxValue); len(e.Value) == 0 {
				r.fail("an empty value")
			}
		case carriesSummary:
			e.Summary = r.bytes(maxHeader)
			if h, err := decodeHeader(e.Summary); err != nil {
				r.fail("epoch %d: %w", e.Epoch, err)
			} else if h.Epoch != e.Epoch || paxos.Hash(h.Hash) != e.Hash || paxos.Hash(h.Previous) != e.Previous {
				r.fail("the header of epoch %d is another's", e.Epoch)
			}
		default:
			r.fail("an epoch carries %d", what)
		}
		entries = append(entries, e)
		next, previous = next+1, e.Hash
		if next == 0 {
			r.fail("epochs beyond all numbers")
		}
	}
	return entries
}
