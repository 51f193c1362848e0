package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication/format"
)

// A snapshot is the state and a manifest: which chunks make up the log, as spans of offsets
// with their digests. It holds no records. A replica that gets it fetches the spans that it
// lacks from the others (restore.go) and so one that missed an hour of a large
// log gets that hour. docs/format/partition.md has the bytes.
const (
	snapshotMagic   = "PSNP"
	snapshotVersion = 2
	// maxSnapshotState bounds what a damaged length can make a reader allocate.
	maxSnapshotState = 64 << 20

	// A span has about spanBytes, or more where the log would have more than maxSpans.
	spanBytes = 4 << 20
	maxSpans  = 4096
	spanSize  = 5 * 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errStopped = errors.New("stopped")

// span is a run of chunks whose offsets are from up to, not including, to.
type span struct {
	from, to int64
	// Linking the chunks to seed gives digest.
	seed, digest uint64
	// stored is how many bytes had been stored in all before.
	stored int64
}

type manifest struct {
	state *state
	spans []span
	// rooted: the first span's seed is the chain there. It is not where the chunk that
	// holds the start offset has no mark of its own: its seed is 0 then.
	rooted bool
}

// after is how many bytes had been stored in all when span i ended.
func (f *manifest) after(i int) int64 {
	if i+1 < len(f.spans) {
		return f.spans[i+1].stored
	}
	return f.state.stored
}

type snapshotPoint struct {
	encoded      []byte
	start, next  int64
	stored       int64
	chain, index uint64
}

// PrepareSnapshot implements replication.StateMachine. It pins nothing, as nobody
// promises that SaveSnapshot follows.
func (m *machine) PrepareSnapshot() (any, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	switch {
	case m.failed != nil:
		return nil, m.failed
	case m.restoring:
		return nil, fmt.Errorf("prepare snapshot: %w: this replica is catching up itself", ErrBusy)
	}
	s := m.state
	return &snapshotPoint{
		encoded: s.encodeAs(nil, m.form()), start: s.start, next: s.next, stored: s.stored, chain: s.chain, index: s.index,
	}, nil
}

// SaveSnapshot implements replication.StateMachine. What the manifest lists stays on disk
// here until the lease runs out: whoever gets it takes up its own in time.
func (m *machine) SaveSnapshot(point any, w io.Writer, stop <-chan struct{}) error {
	p := point.(*snapshotPoint)
	m.applying.Lock()
	m.leases.take(anybody, p.start, m.clock())
	m.applying.Unlock()
	spans, rooted, err := m.spans(p, stop)
	if err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	if _, err := w.Write(appendManifest(nil, p.encoded, spans, rooted)); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return nil
}

// spans divides the log at its marks. Nothing is read but marks, and the first chunks where
// the chain isn't known.
func (m *machine) spans(p *snapshotPoint, stop <-chan struct{}) (spans []span, rooted bool, err error) {
	if p.start == p.next {
		return nil, true, nil
	}
	at := span{from: -1}
	err = m.store.Read(p.start, func(c storage.Chunk) bool {
		at.from = c.Base
		return false
	})
	switch {
	case err != nil:
		return nil, false, err
	case at.from < 0 || at.from > p.start:
		return nil, false, m.trimmedOr(p.start, fmt.Errorf("%w: no chunk holds the start offset %d", storage.ErrCorrupt, p.start))
	}
	k, v, ok, err := m.store.SeekBack(markKey(at.from))
	if err != nil {
		return nil, false, err
	}
	if ok {
		mk, err := parseMark(k, v)
		if err != nil {
			return nil, false, err
		}
		at.stored = mk.before // or a little less than it was, where the mark is of an earlier chunk
		if rooted = mk.chained && mk.offset == at.from; rooted {
			at.seed = mk.chain
		}
	}
	size := max(m.spanBytes, (p.stored-at.stored)/maxSpans+1)
	if !rooted {
		size = 0 // up to the next mark
	}
	for {
		select {
		case <-stop:
			return nil, false, errStopped
		default:
		}
		end, found, err := m.markFrom(at.from, at.stored+size, p.next)
		switch {
		case err != nil:
			return nil, false, err
		case found:
			at.to, at.digest = end.offset, end.chain
		default:
			at.to, at.digest = p.next, p.chain
		}
		if len(spans) == 0 && !rooted {
			if at.digest, err = m.digest(at.from, at.to); err != nil {
				return nil, false, m.trimmedOr(p.start, err)
			}
			size = max(m.spanBytes, (p.stored-at.stored)/maxSpans+1)
		}
		spans = append(spans, at)
		if !found {
			return spans, rooted, nil
		}
		at = span{from: end.offset, seed: end.chain, stored: end.before}
	}
}

// markFrom finds the first mark between the offsets, both excluded, before which at least
// stored bytes had been stored, and whose chain is known.
func (m *machine) markFrom(above, stored, below int64) (mk mark, found bool, err error) {
	last, some, err := lastMark(m.store, above+1, below, func(mk mark) bool { return mk.before < stored })
	if err != nil {
		return mk, false, err
	}
	if some {
		above = last.offset
	}
	for {
		k, v, ok, err := m.store.Seek(markKey(above+1), markKey(below))
		if err != nil || !ok {
			return mk, false, err
		}
		if mk, err = parseMark(k, v); err != nil || mk.chained {
			return mk, err == nil, err
		}
		above = mk.offset
	}
}

// digest links the chunks between the offsets, beginning with 0.
func (m *machine) digest(from, to int64) (h uint64, err error) {
	at := from
	var bad error
	err = m.store.Read(from, func(c storage.Chunk) bool {
		if c.Base != at || c.Base >= to {
			return false
		}
		h, bad = link(h, &c)
		at = c.Last + 1
		return bad == nil
	})
	if err = errors.Join(err, bad); err == nil && at != to {
		err = fmt.Errorf("%w: chunks from offset %d end at %d, want %d", storage.ErrCorrupt, from, at, to)
	}
	return h, err
}

// trimmedOr says that a snapshot's chunks were trimmed while it was made, or returns err.
func (m *machine) trimmedOr(start int64, err error) error {
	if now := m.look().start; now > start {
		return fmt.Errorf("offset %d was trimmed meanwhile, the log starts at %d now: ask again", start, now)
	}
	return err
}

func appendManifest(b, state []byte, spans []span, rooted bool) []byte {
	at := len(b)
	b = append(append(b, snapshotMagic...), snapshotVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(state)))
	b = append(b, state...)
	if rooted {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(spans)))
	for _, s := range spans {
		for _, v := range []uint64{uint64(s.from), uint64(s.to), s.seed, s.digest, uint64(s.stored)} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// maxManifest bounds a snapshot's bytes.
const maxManifest = 9 + maxSnapshotState + 5 + 2*maxSpans*spanSize + 4

func readManifest(r io.Reader) (*manifest, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	// First, as other versions' may be as large as the log.
	switch {
	case len(b) < 5 || string(b[:4]) != snapshotMagic:
		return nil, fmt.Errorf("%w: %d bytes that are no snapshot", storage.ErrCorrupt, len(b))
	case b[4] > snapshotVersion:
		return nil, format.Newer("the snapshot", "version", uint64(b[4]), snapshotVersion)
	case b[4] < snapshotVersion:
		return nil, fmt.Errorf("a snapshot of version %d, this program reads version %d: have its sender run this version too", b[4], snapshotVersion)
	}
	if len(b) < 9+5+4 || len(b) > maxManifest {
		return nil, fmt.Errorf("%w: a snapshot of %d bytes", storage.ErrCorrupt, len(b))
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: checksum of the snapshot", storage.ErrCorrupt)
	}
	d := &decoder{b: body[5:]}
	encoded := d.take(int(d.u32()))
	f := &manifest{rooted: d.u8() == 1}
	n := int(d.u32())
	if d.err == nil && n*spanSize != len(d.b) {
		d.fail("%d spans in %d bytes", n, len(d.b))
	}
	for range n {
		if d.err != nil {
			break
		}
		f.spans = append(f.spans, span{
			from: int64(d.u64()), to: int64(d.u64()), seed: d.u64(), digest: d.u64(), stored: int64(d.u64()),
		})
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w: snapshot: %w", storage.ErrCorrupt, d.err)
	}
	if f.state, err = decodeState(encoded); err != nil {
		return nil, err
	}
	return f, f.check()
}

func (f *manifest) check() error {
	s := f.state
	if len(f.spans) == 0 {
		if s.start != s.next {
			return fmt.Errorf("%w: a snapshot of offsets %d to %d lists no chunks", storage.ErrCorrupt, s.start, s.next)
		}
		return nil
	}
	if first := f.spans[0].from; first < 0 || first > s.start {
		return fmt.Errorf("%w: snapshot begins at %d, want %d", storage.ErrCorrupt, first, s.start)
	}
	want := f.spans[0].from
	for i, p := range f.spans {
		if p.from != want || p.to <= p.from || f.after(i) < p.stored {
			return fmt.Errorf("%w: span %d of the snapshot is from %d to %d, want one from %d", storage.ErrCorrupt, i, p.from, p.to, want)
		}
		want = p.to
	}
	if want != s.next {
		return fmt.Errorf("%w: snapshot ends at %d, want %d", storage.ErrCorrupt, want, s.next)
	}
	return nil
}

// Leases keep what a manifest lists on disk while others fetch it, though it is trimmed.
// Each has the lowest offset that its holder may still ask for. They are this broker's
// own affair: the log's start offset moves as ever.
type leases map[uint64]lease

type lease struct {
	from  int64
	until time.Time
}

const (
	// holdTime is for how long a lease holds that isn't renewed.
	holdTime = 2 * time.Minute
	// anybody holds the lease that begins with a snapshot, when nobody has asked yet.
	anybody = 0
	// maxLeases of one partition: more than it has replicas.
	maxLeases = 64
)

func (l leases) take(holder uint64, from int64, now time.Time) {
	l.expire(now)
	if _, has := l[holder]; has || len(l) < maxLeases {
		l[holder] = lease{from: from, until: now.Add(holdTime)}
	}
}

// low is the lowest offset that is held, or start.
func (l leases) low(start int64, now time.Time) int64 {
	l.expire(now)
	for _, one := range l {
		start = min(start, one.from)
	}
	return start
}

func (l leases) expire(now time.Time) {
	for holder, one := range l {
		if now.After(one.until) {
			delete(l, holder)
		}
	}
}
