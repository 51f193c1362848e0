package paxos

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var (
	// ErrEncoding: the bytes are no message or no record that this version knows.
	ErrEncoding = errors.New("not an encoding of paxos")
	// ErrVersion, beside ErrEncoding: they are of a newer version.
	ErrVersion = errors.New("a newer program wrote them")
)

// The form of messages and records: a version, a kind, then the fields in the order
// of their structs. Numbers are uvarints, strings and values carry their length, hashes
// are their 32 bytes. Bytes are whole, and their integrity is the carrier's affair.
const encodingVersion = 1

// AppendMessage appends the encoding of m.
func AppendMessage(b []byte, m Message) []byte {
	w := writer{append(b, encodingVersion, byte(m.Kind))}
	w.member(m.From)
	w.member(m.To)
	w.text(m.Cluster)
	w.uint(m.Epoch)
	w.hash(m.Previous)
	w.ballot(m.Ballot)
	w.ballot(m.Promised)
	w.ballot(m.Accepted.Ballot)
	w.bytes(m.Accepted.Value)
	w.bytes(m.Value)
	w.hash(m.Hash)
	w.uint(m.Boot)
	w.uint(m.Round)
	w.b = append(w.b, byte(m.Reason))
	w.entries(m.Entries)
	return w.b
}

// DecodeMessage reads a message. Its values are slices of b.
func DecodeMessage(b []byte) (Message, error) {
	r := reader{b: b}
	m := Message{Kind: Kind(r.head())}
	m.From, m.To, m.Cluster = r.member(), r.member(), r.text()
	m.Epoch, m.Previous = r.uint(), r.hash()
	m.Ballot, m.Promised = r.ballot(), r.ballot()
	m.Accepted = Accepted{r.ballot(), r.value()}
	m.Value, m.Hash = r.value(), r.hash()
	m.Boot, m.Round = r.uint(), r.uint()
	m.Reason = Reason(r.byte())
	m.Entries = r.entries()
	if err := r.end(); err != nil {
		return Message{}, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}

// AppendRecord appends the encoding of r.
func AppendRecord(b []byte, r Record) []byte {
	w := writer{append(b, encodingVersion, byte(r.Kind))}
	w.uint(r.Epoch)
	w.ballot(r.Ballot)
	w.bytes(r.Value)
	w.entries(r.Entries)
	return w.b
}

// DecodeRecord reads a record. Its values are slices of b.
func DecodeRecord(b []byte) (Record, error) {
	r := reader{b: b}
	rec := Record{Kind: RecordKind(r.head()), Epoch: r.uint(), Ballot: r.ballot(), Value: r.value(), Entries: r.entries()}
	if err := r.end(); err != nil {
		return Record{}, fmt.Errorf("decode record: %w", err)
	}
	return rec, nil
}

type writer struct{ b []byte }

func (w *writer) uint(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) hash(h Hash)   { w.b = append(w.b, h[:]...) }

func (w *writer) text(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) bytes(v []byte) {
	w.uint(uint64(len(v)))
	w.b = append(w.b, v...)
}

func (w *writer) member(m Member) {
	w.uint(m.ID)
	w.text(m.Incarnation)
}

func (w *writer) ballot(b Ballot) {
	w.uint(b.Round)
	w.text(b.Incarnation)
	w.uint(b.Boot)
}

func (w *writer) entries(entries []Entry) {
	w.uint(uint64(len(entries)))
	for _, e := range entries {
		w.uint(e.Epoch)
		w.hash(e.Hash)
		w.hash(e.Previous)
		w.bytes(e.Value)
		w.bytes(e.Summary)
	}
}

const (
	maxText    = 1024                  // bytes of a cluster id or an incarnation
	entryBytes = 1 + 2*len(Hash{}) + 2 // the least that an entry takes
)

// reader reads fields until one is wrong; then all are zero, and end tells.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrEncoding, what)
	}
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("it ends early")
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) head() byte {
	if v := r.byte(); v != encodingVersion && r.err == nil {
		r.fail(fmt.Sprintf("version %d, this program knows %d", v, encodingVersion))
		if v > encodingVersion {
			r.err = fmt.Errorf("%w: %w", r.err, ErrVersion)
		}
	}
	return r.byte()
}

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail("a number is missing or too large")
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail("it ends early")
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string {
	n := r.uint()
	if n > maxText {
		r.fail("a name is too long")
	}
	return string(r.take(n))
}

func (r *reader) value() []byte {
	n := r.uint()
	if n > MaxValue {
		r.fail("a value is too long")
	}
	if n == 0 {
		return nil // absent: no value is empty
	}
	return r.take(n)
}

func (r *reader) hash() (h Hash) {
	copy(h[:], r.take(uint64(len(h))))
	return h
}

func (r *reader) member() Member { return Member{r.uint(), r.text()} }
func (r *reader) ballot() Ballot { return Ballot{r.uint(), r.text(), r.uint()} }

func (r *reader) entries() []Entry {
	n := r.uint()
	if n > MaxEntries || n > uint64(len(r.b)/entryBytes) {
		r.fail("more entries than there can be")
		return nil
	}
	if n == 0 {
		return nil
	}
	entries := make([]Entry, n)
	for i := range entries {
		entries[i] = Entry{Epoch: r.uint(), Hash: r.hash(), Previous: r.hash(), Value: r.value(), Summary: r.value()}
	}
	return entries
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes are left over")
	}
	return r.err
}
