package config

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/parleymq/parley/replication/format"
)

// Hash of a value: SHA-256 of its canonical, uncompressed encoding.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ErrDecode: the bytes are no encoded value.
var ErrDecode = errors.New("not an encoded configuration")

// The form is described in docs/format/epochs.md: magic, version, the length of
// the canonical body, the body deflated. Two equal values have one body; the
// compressed bytes may differ between versions of the compressor, so the hash
// is over the body. The version follows from the feature level, which the body begins with:
// values of a cluster that older programs still take part in stay readable for them, and
// what was decided keeps its hash.
const (
	magic        = "PEV"
	versionPlain = 1 // no moves
	versionMoves = 2 // from LevelMoves on
	// From the level after LevelGroups on: the same form. Programs that know no more than LevelGroups didn't
	// look at the level, but they refuse this version.
	versionChecked = 3
	maxBody        = 16 << 20 // of an uncompressed body, against bombs
)

// Flags of a partition, from versionMoves on.
const (
	flagBusy      = 1 // target, abandoned and retired replicas follow
	flagMoved     = 2
	flagAdded     = 4 // from LevelAnchors on
	flagRecovered = 8 // from LevelRecovery on: origin and salvage follow, after the replicas
)

func (p *Partition) busy() bool { return p.Target != nil || p.Abandoned != nil || p.Retired != nil }

func (c *Config) version() byte {
	if c.FeatureLevel > LevelGroups {
		return versionChecked
	}
	if c.FeatureLevel >= LevelMoves {
		return versionMoves
	}
	return versionPlain
}

// compressors are kept, since each has most of a megabyte.
var compressors = sync.Pool{New: func() any {
	w, err := flate.NewWriter(nil, flate.DefaultCompression)
	if err != nil { // a level that exists
		panic(err)
	}
	return w
}}

// Encode returns the encoded value. It refuses a value above MaxEncoded.
func (c *Config) Encode() ([]byte, error) {
	if n := c.Replicas(); n > MaxReplicas {
		return nil, invalid("%d replicas, a cluster holds at most %d", n, MaxReplicas)
	}
	body := c.body()
	var b bytes.Buffer
	b.WriteString(magic)
	b.WriteByte(c.version())
	b.Write(binary.AppendUvarint(nil, uint64(len(body))))
	w := compressors.Get().(*flate.Writer)
	defer compressors.Put(w)
	w.Reset(&b)
	if _, err := w.Write(body); err != nil {
		return nil, fmt.Errorf("compress configuration: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress configuration: %w", err)
	}
	if b.Len() > MaxEncoded {
		return nil, invalid("%d bytes encoded, at most %d are allowed: fewer or larger topics are needed", b.Len(), MaxEncoded)
	}
	return b.Bytes(), nil
}

// Hash returns the value's hash.
func (c *Config) Hash() Hash { return sha256.Sum256(c.body()) }

func (c *Config) body() []byte {
	w := writer{b: make([]byte, 0, 256)}
	w.text(c.ClusterID)
	w.uint(c.Epoch)
	w.b = append(w.b, c.Previous[:]...)
	w.uint(uint64(c.FeatureLevel))
	w.ids(c.Council)
	w.uint(c.NextBroker)
	w.uint(c.NextTopic)
	w.uint(c.NextShard)
	w.uint(c.NextReplica)
	w.text(c.By)
	w.uint(uint64(c.At))
	w.text(c.Change)
	w.uint(uint64(len(c.Brokers)))
	for i := range c.Brokers {
		b := &c.Brokers[i]
		w.uint(b.ID)
		w.text(b.Name)
		w.text(b.Incarnation)
		w.text(b.Addresses.Client)
		w.text(b.Addresses.Peer)
		w.text(b.Addresses.Raft)
		w.text(b.Rack)
		w.uint(uint64(b.Weight))
		w.uint(uint64(b.State))
	}
	w.uint(uint64(len(c.Topics)))
	for i := range c.Topics {
		c.Topics[i].write(&w, c.version())
	}
	if c.version() >= versionMoves {
		w.uint(c.Uneven)
	}
	return w.b
}

func (t *Topic) write(w *writer, version byte) {
	w.uint(t.ID)
	w.text(t.Name)
	w.uint(uint64(len(t.Subjects)))
	for _, s := range t.Subjects {
		w.text(s)
	}
	w.uint(uint64(len(t.Config)))
	for _, k := range sortedKeys(t.Config) {
		w.text(k)
		w.text(t.Config[k])
	}
	w.uint(uint64(t.CreatedAt))
	w.uint(uint64(t.DeletedAt))
	if t.Purge {
		w.uint(1)
	} else {
		w.uint(0)
	}
	w.uint(uint64(len(t.Partitions)))
	for i := range t.Partitions {
		p := &t.Partitions[i]
		w.uint(p.Shard)
		w.replicas(p.Replicas)
		if version < versionMoves {
			continue
		}
		// Nearly all partitions do nothing: they say so in one byte.
		flags := uint64(0)
		if p.busy() {
			flags |= flagBusy
		}
		if p.Moved {
			flags |= flagMoved
		}
		if p.Added {
			flags |= flagAdded
		}
		recovered := p.Origin != (Origin{}) || p.Salvage != (Salvage{})
		if recovered {
			flags |= flagRecovered
		}
		w.uint(flags)
		if p.busy() {
			w.replicas(p.Target)
			w.replicas(p.Abandoned)
			w.replicas(p.Retired)
		}
		if recovered {
			w.origin(p.Origin)
			w.uint(p.Salvage.Shard)
			if p.Salvaging() {
				w.origin(p.Salvage.Origin)
				w.uint(uint64(p.Salvage.Factor))
			}
		}
	}
}

type writer struct{ b []byte }

func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }

func (w *writer) text(s string) {
	w.uint(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) origin(o Origin) {
	w.uint(uint64(o.Offset))
	w.uint(o.Index)
}

func (w *writer) replicas(list []Replica) {
	w.uint(uint64(len(list)))
	for _, r := range list {
		w.uint(r.ID)
		w.uint(r.Broker)
	}
}

func (w *writer) ids(v []uint64) {
	w.uint(uint64(len(v)))
	for _, id := range v {
		w.uint(id)
	}
}

// Decode reads what Encode wrote. It checks the form, not the rules: see
// Validate. Only the one canonical body of a value is accepted.
func Decode(b []byte) (*Config, error) {
	if len(b) > MaxEncoded {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrDecode, len(b), MaxEncoded)
	}
	if len(b) < len(magic)+2 || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrDecode)
	}
	v := b[len(magic)]
	switch {
	case v > versionChecked:
		return nil, format.Newer("a configuration", "version", uint64(v), versionChecked)
	case v < versionPlain:
		return nil, fmt.Errorf("%w: version %d", ErrDecode, v)
	}
	size, n := binary.Uvarint(b[len(magic)+1:])
	if n <= 0 || size > maxBody {
		return nil, fmt.Errorf("%w: a body of %d bytes", ErrDecode, size)
	}
	body, err := inflate(b[len(magic)+1+n:], int(size))
	if err != nil {
		return nil, err
	}
	r := reader{b: body}
	c := r.config()
	if c.FeatureLevel > Level && (r.err == nil || v > versionMoves) {
		// First of all: what else is in it may be anything. The level is what the body begins with.
		return nil, format.Newer("a configuration", "feature level", uint64(c.FeatureLevel), Level)
	}
	if r.err == nil && len(r.b) != 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	if r.err == nil && c.version() != v {
		r.fail("version %d at feature level %d", v, c.FeatureLevel)
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

func inflate(compressed []byte, size int) ([]byte, error) {
	src := bytes.NewReader(compressed)
	z := flate.NewReader(src)
	defer z.Close()
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(z, int64(size)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDecode, err)
	case n != int64(size):
		return nil, fmt.Errorf("%w: the body is not %d bytes long", ErrDecode, size)
	case src.Len() != 0:
		return nil, fmt.Errorf("%w: %d bytes after its end", ErrDecode, src.Len())
	}
	return out.Bytes(), nil
}

// reader takes a body apart. The first failure sticks.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrDecode}, args...)...)
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

func (r *reader) time() int64 {
	v := r.uint()
	if v > 1<<62 {
		r.fail("a time of %d", v)
		return 0
	}
	return int64(v)
}

func (r *reader) small(most uint64, what string) int {
	v := r.uint()
	if v > most {
		r.fail("%d %s, at most %d are allowed", v, what, most)
		return 0
	}
	return int(v)
}

func (r *reader) text() string {
	n := r.small(64<<10, "bytes of text")
	if n > len(r.b) {
		r.fail("a text of %d bytes with %d left", n, len(r.b))
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// count reads a number of things that take at least one byte each, so that no
// memory is taken for more than the bytes can hold.
func (r *reader) count(most int, what string) int {
	return r.small(uint64(min(most, len(r.b))), what)
}

func (r *reader) config() *Config {
	c := &Config{ClusterID: r.text(), Epoch: r.uint()}
	if len(r.b) < len(c.Previous) {
		r.fail("it ends within a hash")
		return c
	}
	copy(c.Previous[:], r.b)
	r.b = r.b[len(c.Previous):]
	c.FeatureLevel = uint32(r.small(1<<31, "feature levels"))
	if n := r.count(max(MaxCouncil, MaxInitial), "council members"); n > 0 {
		c.Council = make([]uint64, n)
		for i := range c.Council {
			c.Council[i] = r.uint()
		}
	}
	c.NextBroker, c.NextTopic, c.NextShard, c.NextReplica = r.uint(), r.uint(), r.uint(), r.uint()
	c.By, c.At, c.Change = r.text(), r.time(), r.text()
	if n := r.count(MaxBrokers, "brokers"); n > 0 {
		c.Brokers = make([]Broker, n)
		for i := range c.Brokers {
			c.Brokers[i] = r.broker()
		}
	}
	if n := r.count(MaxReplicas, "topics"); n > 0 {
		c.Topics = make([]Topic, 0, min(n, 1024))
		for i := 0; i < n && r.err == nil; i++ {
			c.Topics = append(c.Topics, r.topic(c.version()))
		}
	}
	if c.version() >= versionMoves && r.err == nil {
		c.Uneven = r.uint()
	}
	return c
}

func (r *reader) broker() Broker {
	return Broker{
		ID: r.uint(), Name: r.text(), Incarnation: r.text(),
		Addresses: Addresses{Client: r.text(), Peer: r.text(), Raft: r.text()},
		Rack:      r.text(), Weight: uint32(r.small(1<<31, "weight")), State: BrokerState(r.small(255, "state")),
	}
}

func (r *reader) topic(version byte) Topic {
	t := Topic{ID: r.uint(), Name: r.text()}
	for n := r.count(MaxSubjects, "subjects"); n > 0 && r.err == nil; n-- {
		t.Subjects = append(t.Subjects, r.text())
	}
	last := ""
	for n := r.count(64, "config keys"); n > 0 && r.err == nil; n-- {
		k, v := r.text(), r.text()
		if t.Config == nil {
			t.Config = map[string]string{}
		} else if k <= last {
			r.fail("config keys of topic %q are not in order", t.Name)
		}
		t.Config[k], last = v, k
	}
	t.CreatedAt, t.DeletedAt, t.Purge = r.time(), r.time(), r.small(1, "flags") == 1
	for n := r.count(MaxPartitions, "partitions"); n > 0 && r.err == nil; n-- {
		p := Partition{Shard: r.uint()}
		p.Replicas = r.replicas(MaxBrokers)
		if version >= versionMoves {
			flags := r.small(flagBusy|flagMoved|flagAdded|flagRecovered, "flags")
			p.Moved, p.Added = flags&flagMoved != 0, flags&flagAdded != 0
			if flags&flagBusy != 0 {
				p.Target, p.Abandoned, p.Retired = r.replicas(MaxBrokers), r.replicas(MaxBrokers), r.replicas(MaxReplicas)
				if !p.busy() {
					r.fail("a partition of topic %q that moves says nothing of it", t.Name)
				}
			}
			if flags&flagRecovered != 0 {
				p.Origin, p.Salvage.Shard = r.origin(), r.uint()
				if p.Salvaging() {
					p.Salvage.Origin, p.Salvage.Factor = r.origin(), r.small(MaxBrokers, "replicas")
				}
				if p.Origin == (Origin{}) && p.Salvage == (Salvage{}) {
					r.fail("a partition of topic %q that was recovered says nothing of it", t.Name)
				}
			}
		}
		t.Partitions = append(t.Partitions, p)
	}
	return t
}

func (r *reader) origin() Origin { return Origin{Offset: r.time(), Index: r.uint()} }

func (r *reader) replicas(most int) []Replica {
	var list []Replica
	for m := r.count(most, "replicas"); m > 0 && r.err == nil; m-- {
		list = append(list, Replica{ID: r.uint(), Broker: r.uint()})
	}
	return list
}
