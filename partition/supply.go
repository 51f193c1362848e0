package partition

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// Peers are the other replicas of a partition, for one that lacks what the replicated log
// no longer holds. Its methods are called from one goroutine of each partition that
// catches up.
type Peers interface {
	// Turn waits until this replica may fetch: few do so at once. Done ends the turn. While nobody
	// gives what lacks, it is left and taken again.
	Turn(ctx context.Context) (done func(), err error)

	// Others names the replicas that can be asked now, the likeliest first.
	Others() []uint64

	// Chunks asks a replica, and returns what its Partition.Chunks did. It
	// may wait, to keep to the broker's rate. ErrTrimmed must be told from other errors.
	Chunks(ctx context.Context, replica uint64, q ChunkRequest) ([]byte, error)

	// Snapshot asks a replica, and returns what its Partition.Snapshot did.
	Snapshot(ctx context.Context, replica uint64) ([]byte, error)
}

// ChunkRequest asks a replica for stored chunks, as a manifest lists them.
type ChunkRequest struct {
	From, To int64 // offsets of whole chunks, To excluded
	MaxBytes int   // one chunk is always returned, however large
	Replica  uint64
	// Hold is the lowest offset that the asking replica may still ask for: what lies above
	// it stays on disk for a while.
	Hold int64
}

// MaxSupply bounds ChunkRequest.MaxBytes.
const MaxSupply = 2 << 20

// ErrTrimmed: no replica that was asked has the chunks any more, as retention has trimmed
// them.
var ErrTrimmed = &Error{Code: 410, Reason: "trimmed", Description: "the chunks were trimmed"}

// Chunks returns chunks in frames, for a replica that lacks them. Whatever is damaged is
// refused by name. It serves followers too: what they have applied is committed.
func (p *Partition) Chunks(q ChunkRequest) ([]byte, error) {
	b, err := p.m.supply(q)
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, storage.ErrClosed):
		return nil, closedUnder(p.name)
	case errors.As(err, new(*Error)):
		return nil, err
	}
	return nil, describe(ErrDamaged, "%s: offsets from %d on, on this broker's disk: %v", p.name, q.From, err)
}

// Snapshot returns a snapshot of this replica as it is now.
func (p *Partition) Snapshot() ([]byte, error) {
	point, err := p.m.PrepareSnapshot()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := p.m.SaveSnapshot(point, &b, p.ctx.Done()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Hold keeps what lies above an offset on disk for a replica that asked for chunks and has to ask again. It
// reports whether there is anything to ask for: not while this replica is catching up itself.
func (p *Partition) Hold(replica uint64, from int64) bool { return p.m.hold(replica, from) }

func (m *machine) hold(replica uint64, from int64) bool {
	m.applying.Lock()
	defer m.applying.Unlock()
	if !m.restoring && m.store != nil {
		m.leases.take(replica, from, m.clock())
	}
	return !m.restoring
}

func (m *machine) supply(q ChunkRequest) ([]byte, error) {
	restoring := !m.hold(q.Replica, q.Hold)
	b := m.look()
	switch {
	case restoring:
		return nil, describe(ErrBusy, "the replica is catching up itself")
	case q.From < 0 || q.To <= q.From:
		return nil, fmt.Errorf("chunks from %d to %d were asked for", q.From, q.To)
	case q.To > b.next:
		return nil, describe(ErrBusy, "the replica has offsets up to %d, not yet up to %d", b.next-1, q.To-1)
	}
	c := m.condemned.Load()
	if e := c.refuse(m.id.String(), q.From); e != nil {
		return nil, e
	}
	q.To = c.limit(q.From, q.To)
	limit := min(max(q.MaxBytes, 0), MaxSupply)
	var out []byte
	var bad error
	want := q.From
	// Copied here and sent after the read has ended: the engine's writer may wait for it.
	err := m.store.Read(q.From, func(c storage.Chunk) bool {
		switch {
		case c.Base > want:
			bad = fmt.Errorf("%w: offsets %d to %d are missing", storage.ErrCorrupt, want, c.Base-1)
		case c.Base < want || c.Last >= q.To:
			bad = fmt.Errorf("%w: the chunk with offset %d is from %d to %d", storage.ErrCorrupt, want, c.Base, c.Last)
		case len(out) > 0 && len(out)+frameSize(&c) > limit:
			return false
		default:
			bad = verify(c.Data, everyBatch)
		}
		if bad != nil {
			return false
		}
		out = appendFrame(out, &c)
		want = c.Last + 1
		return want < q.To && len(out) < limit
	})
	switch {
	case len(out) > 0: // what comes after the damage is met by the next request
		return out, nil
	case q.From < m.look().start && (err != nil || bad != nil || want == q.From):
		return nil, describe(ErrTrimmed, "offset %d was trimmed, the log starts at %d", q.From, m.look().start)
	case err != nil || bad != nil:
		return nil, errors.Join(err, bad)
	}
	return nil, fmt.Errorf("%w: offsets from %d on are missing", storage.ErrCorrupt, q.From)
}

func everyBatch(record.Batch) bool { return true }

// A chunk on its way: length of meta and of data (4 each), base, last, index, log time (8
// each), meta, data, CRC-32C of all that (4).
const frameHead = 2*4 + 4*8

func frameSize(c *storage.Chunk) int { return frameHead + len(c.Meta) + len(c.Data) + 4 }

func appendFrame(b []byte, c *storage.Chunk) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Meta)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Data)))
	for _, v := range []uint64{uint64(c.Base), uint64(c.Last), c.Index, uint64(c.LogTime)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, c.Meta...)
	b = append(b, c.Data...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// nextChunk takes a frame off b. The chunk's slices point into it.
func nextChunk(b []byte) (c storage.Chunk, rest []byte, err error) {
	if len(b) < frameHead+4 {
		return c, nil, fmt.Errorf("%w: %d bytes of a chunk", storage.ErrCorrupt, len(b))
	}
	meta, data := uint64(binary.BigEndian.Uint32(b)), uint64(binary.BigEndian.Uint32(b[4:]))
	if meta+data > uint64(len(b)-frameHead-4) {
		return c, nil, fmt.Errorf("%w: %d bytes of a chunk with %d of meta and %d of data", storage.ErrCorrupt, len(b), meta, data)
	}
	end := frameHead + int(meta+data)
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return c, nil, fmt.Errorf("%w: checksum of a chunk", storage.ErrCorrupt)
	}
	d := decoder{b: b[8:frameHead]}
	c.Base, c.Last, c.Index, c.LogTime = int64(d.u64()), int64(d.u64()), d.u64(), int64(d.u64())
	c.Meta, c.Data = b[frameHead:frameHead+meta:frameHead+meta], b[frameHead+meta:end:end]
	return c, b[end+4:], nil
}
