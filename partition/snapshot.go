package partition

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// A snapshot is the state and every chunk from the start offset on:
//
//	magic "PSNP", version (1), state length (4), state, CRC-32C of all that (4), then frames, then an end frame.
//	frame: 'c', base, last, index, log time (8 each), meta length (4), data length (4), meta, data, CRC-32C of all that (4)
//	end:   'e'
const (
	snapshotMagic   = "PSNP"
	snapshotVersion = 1
	// maxSnapshotFrame bounds what a damaged length can make a reader allocate.
	maxSnapshotFrame = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errStopped = errors.New("stopped")

type snapshotPoint struct {
	checkpoint storage.Checkpoint
}

// PrepareSnapshot implements replication.StateMachine. It pins nothing, as nobody
// promises that SaveSnapshot follows.
func (m *machine) PrepareSnapshot() (any, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.failed != nil {
		return nil, m.failed
	}
	return &snapshotPoint{checkpoint: m.capture()}, nil
}

// SaveSnapshot implements replication.StateMachine. Everything is verified before it is
// sent: what is damaged here must neither spread nor stop the receiver, for which
// a snapshot that doesn't hold together is the end.
func (m *machine) SaveSnapshot(point any, w io.Writer, stop <-chan struct{}) error {
	p := point.(*snapshotPoint).checkpoint
	m.applying.Lock()
	m.pins++
	m.applying.Unlock()
	defer func() {
		m.applying.Lock()
		m.pins--
		m.applying.Unlock()
	}()
	bw := bufio.NewWriterSize(w, 256<<10)
	head := append([]byte(snapshotMagic), snapshotVersion)
	head = binary.BigEndian.AppendUint32(head, uint32(len(p.State)))
	head = append(head, p.State...)
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	if _, err := bw.Write(head); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	var frame []byte
	var failed error
	next := p.Mark.Start
	err := m.store.Read(p.Mark.Start, func(c storage.Chunk) bool {
		if c.Base >= p.Mark.Next {
			return false
		}
		select {
		case <-stop:
			failed = errStopped
			return false
		default:
		}
		// The first chunk may begin below the start, but not above it.
		if c.Base > next || c.Base < next && next > p.Mark.Start {
			failed = fmt.Errorf("%w: a chunk from offset %d follows offset %d", storage.ErrCorrupt, c.Base, next-1)
			return false
		}
		if failed = verify(c.Data, everyBatch); failed != nil {
			return false
		}
		frame = appendFrame(frame[:0], c)
		_, failed = bw.Write(frame)
		next = c.Last + 1
		return failed == nil
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	if next < p.Mark.Next {
		if start := m.look().start; next < start {
			return fmt.Errorf("save snapshot: offset %d was trimmed meanwhile, the log starts at %d now: ask again", next, start)
		}
		return fmt.Errorf("save snapshot: %w: log ends at %d, want %d", storage.ErrCorrupt, next, p.Mark.Next)
	}
	if err := bw.WriteByte('e'); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	return nil
}

func everyBatch(record.Batch) bool { return true }

func appendFrame(b []byte, c storage.Chunk) []byte {
	b = append(b, 'c')
	for _, v := range []uint64{uint64(c.Base), uint64(c.Last), c.Index, uint64(c.LogTime)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Meta)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Data)))
	b = append(b, c.Meta...)
	b = append(b, c.Data...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// RecoverFromSnapshot implements replication.StateMachine. While it runs, and when it
// was cut short, the store holds neither the old records nor yet the new ones. The
// old checkpoint stays until the new one is durable: after a crash Open finds
// holes, opens at the old index all the same, and the replicated log hands in
// the same snapshot again.
func (m *machine) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	br := bufio.NewReaderSize(r, 256<<10)
	var head [9]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	if string(head[:4]) != snapshotMagic || head[4] != snapshotVersion {
		return fmt.Errorf("recover from snapshot: %w: magic %q version %d", storage.ErrCorrupt, head[:4], head[4])
	}
	n := binary.BigEndian.Uint32(head[5:])
	if n > maxSnapshotFrame {
		return fmt.Errorf("recover from snapshot: %w: state of %d bytes", storage.ErrCorrupt, n)
	}
	enc := make([]byte, n+4)
	if _, err := io.ReadFull(br, enc); err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	enc, sum := enc[:n], binary.BigEndian.Uint32(enc[n:])
	if sum != crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, enc) {
		return fmt.Errorf("recover from snapshot: %w: checksum of the state", storage.ErrCorrupt)
	}
	s, err := decodeState(enc)
	if err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	m.applying.Lock()
	m.restoring = true
	m.applying.Unlock()
	m.visible.Lock()
	m.tail.clear()
	m.visible.Unlock()
	if err := m.refill(s, br, stop); err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	if err := m.install(s); err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	if err := m.Sync(); err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	m.applying.Lock()
	durable := m.durable
	m.applying.Unlock()
	if durable < s.index {
		return fmt.Errorf("recover from snapshot: its checkpoint was not written: entry %d is durable, want %d", durable, s.index)
	}
	return nil
}

// Chunks are stored this many bytes, or this many, at a time.
const (
	refillBytes  = 1 << 20
	refillChunks = 256
)

// refill replaces what is stored by what comes. It is not called beside Apply, and doesn't
// hold up the checkpoints of other logs: there is none of this one meanwhile.
func (m *machine) refill(s *state, br *bufio.Reader, stop <-chan struct{}) error {
	// Bytes and marks are counted anew: they serve this replica's retention and
	// lookups and need not equal the others'.
	logTime := s.logTime
	s.stored, s.marked, s.markedAt = 0, 0, 0
	var chunks []storage.Chunk
	var marks []storage.IndexEntry
	bytes := 0
	flush := func() error {
		if len(chunks) == 0 {
			return nil
		}
		err := m.store.Append(chunks, marks)
		clear(chunks)
		chunks, marks, bytes = chunks[:0], marks[:0], 0
		return err
	}
	first := true
	next := s.start
	for {
		select {
		case <-stop:
			return errStopped
		default:
		}
		c, end, err := readFrame(br)
		if err != nil {
			return err
		}
		if end {
			break
		}
		if first {
			if c.Base > s.start {
				return fmt.Errorf("%w: snapshot begins at %d, want %d", storage.ErrCorrupt, c.Base, s.start)
			}
			if err := m.store.Reset(c.Base); err != nil {
				return err
			}
			first, next = false, c.Base
		}
		if c.Base != next {
			return fmt.Errorf("%w: chunk at %d, want %d", storage.ErrCorrupt, c.Base, next)
		}
		s.logTime = c.LogTime
		before := s.stored
		s.stored += int64(len(c.Data))
		if mk, due := s.mark(c.Base, before, len(c.Meta) > 0); due {
			marks = append(marks, mk)
		}
		chunks = append(chunks, c)
		bytes += len(c.Data) + len(c.Meta)
		next = c.Last + 1
		if bytes >= refillBytes || len(chunks) >= refillChunks {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if first {
		if err := m.store.Reset(s.next); err != nil {
			return err
		}
		next = s.next
	}
	if next != s.next {
		return fmt.Errorf("%w: snapshot ends at %d, want %d", storage.ErrCorrupt, next, s.next)
	}
	s.logTime = logTime
	return nil
}

// install makes the snapshot's state the partition's.
func (m *machine) install(s *state) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.state, m.reach = s, 0
	if err := m.rebuildWindow(); err != nil {
		return err
	}
	m.window.Store(s.ids)
	m.show(nil)
	m.restoring = false
	m.damage.Store(nil) // what was missing has come
	return nil
}

func readFrame(br *bufio.Reader) (c storage.Chunk, end bool, err error) {
	kind, err := br.ReadByte()
	if err != nil {
		return c, false, err
	}
	if kind == 'e' {
		return c, true, nil
	}
	var head [41]byte
	head[0] = kind
	if _, err := io.ReadFull(br, head[1:]); err != nil {
		return c, false, err
	}
	nm, nd := binary.BigEndian.Uint32(head[33:]), binary.BigEndian.Uint32(head[37:])
	if kind != 'c' || nm > maxSnapshotFrame || nd > maxSnapshotFrame {
		return c, false, fmt.Errorf("%w: frame kind %q, meta %d, data %d bytes", storage.ErrCorrupt, kind, nm, nd)
	}
	body := make([]byte, int(nm)+int(nd)+4)
	if _, err := io.ReadFull(br, body); err != nil {
		return c, false, err
	}
	sum := crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, body[:len(body)-4])
	if sum != binary.BigEndian.Uint32(body[len(body)-4:]) {
		return c, false, fmt.Errorf("%w: frame checksum", storage.ErrCorrupt)
	}
	return storage.Chunk{
		Base: int64(binary.BigEndian.Uint64(head[1:])), Last: int64(binary.BigEndian.Uint64(head[9:])),
		Index: binary.BigEndian.Uint64(head[17:]), LogTime: int64(binary.BigEndian.Uint64(head[25:])),
		Meta: body[:nm], Data: body[nm : nm+nd],
	}, false, nil
}
