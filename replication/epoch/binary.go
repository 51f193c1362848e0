package epoch

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parleymq/parley/replication/epoch/config"
)

var errForm = errors.New("not in the form of docs/format/epochs.md")

// writer puts numbers and texts together as docs/format/epochs.md says.
type writer struct{ b []byte }

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
