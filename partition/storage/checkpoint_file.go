package storage

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"github.com/parleymq/parley/replication/format"
)

// The checkpoint file is a log of rounds; docs/format/storage.md describes its
// bytes. A round is written with one call and fsynced before the next one may
// begin. So only the newest round can be torn, and whatever is wrong below the
// commit marker of a later round is damage, not a power cut.
const (
	checkpointFileName = "checkpoints"
	checkpointVersion  = 1

	headerBytes     = 8 + 4 + 8 + 4  // magic, version, salt, CRC
	frameHeadBytes  = 4 + 1          // length of the payload, kind
	frameTailBytes  = 4              // CRC
	stateHeadBytes  = 24 + 8 + 8 + 8 // log, index, start, next
	commitBytes     = 8 + 8 + 8      // magic, round, where the round began
	commitFrame     = frameHeadBytes + commitBytes + frameTailBytes
	maxPayloadBytes = 256 << 20
)

const (
	frameCheckpoint byte = iota + 1
	frameForget
	frameCommit
)

// compactFloorBytes: a checkpoint file below this size is not rewritten.
const compactFloorBytes = 4 << 20

var (
	checkpointMagic = [8]byte{'P', 'L', 'Y', 'C', 'H', 'K', 'P', 'T'}
	commitMagic     = [8]byte{'P', 'L', 'Y', 'c', 'o', 'm', 'i', 't'}
	castagnoli      = crc32.MakeTable(crc32.Castagnoli)
)

// ErrCheckpointDamaged: the checkpoint file is not what was written. Nothing
// was changed.
var ErrCheckpointDamaged = errors.New("checkpoint file is damaged")

// ErrCheckpointMissing: the engine holds logs and there is no checkpoint file.
var ErrCheckpointMissing = errors.New("checkpoint file is missing")

// checkpointFile is used by one goroutine at a time.
type checkpointFile struct {
	path  string
	file  *os.File
	salt  [8]byte
	size  int64 // end of the last committed round
	live  int64 // bytes of the frames in where
	round uint64
	where map[LogID]frameRef
	buf   []byte
	floor int64
}

// frameRef is where a log's newest frame is, and enough to see whether a
// checkpoint differs from it.
type frameRef struct {
	offset   int64
	length   int64
	index    uint64
	mark     Mark
	stateLen int
	stateCRC uint32
}

// openCheckpointFile opens or creates the file. It returns how many bytes of an
// unfinished round it cut off.
func openCheckpointFile(dir string, holdsLogs func() (bool, error)) (*checkpointFile, int64, error) {
	f := &checkpointFile{
		path:  filepath.Join(dir, checkpointFileName),
		where: make(map[LogID]frameRef),
		floor: compactFloorBytes,
	}
	data, err := os.ReadFile(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		held, err := holdsLogs()
		if err != nil {
			return nil, 0, fmt.Errorf("list logs: %w", err)
		}
		if held {
			return nil, 0, fmt.Errorf("%w: %s; the store holds logs that it should describe. Put the file back from a copy, or move the whole data directory away to start empty", ErrCheckpointMissing, f.path)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, 0, fmt.Errorf("create directory: %w", err)
		}
		if err := f.rewrite(nil, nil); err != nil {
			return nil, 0, err
		}
		return f, 0, nil
	case err != nil:
		return nil, 0, err
	}
	if err := f.replay(data); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", f.path, err)
	}
	if f.file, err = os.OpenFile(f.path, os.O_RDWR, 0); err != nil {
		return nil, 0, err
	}
	cut := int64(len(data)) - f.size
	if cut > 0 {
		if err := f.file.Truncate(f.size); err != nil {
			return nil, 0, errors.Join(err, f.file.Close())
		}
		if err := f.file.Sync(); err != nil {
			return nil, 0, errors.Join(err, f.file.Close())
		}
	}
	return f, cut, nil
}

// replay reads all committed rounds into where.
func (f *checkpointFile) replay(data []byte) error {
	if len(data) < headerBytes || !bytes.Equal(data[:8], checkpointMagic[:]) {
		return fmt.Errorf("%w: no header", ErrCheckpointDamaged)
	}
	if v := binary.LittleEndian.Uint32(data[8:]); v > checkpointVersion && crc32.Checksum(data[:20], castagnoli) == binary.LittleEndian.Uint32(data[20:]) {
		return format.Newer("the checkpoint file", "version", uint64(v), checkpointVersion)
	} else if v != checkpointVersion {
		return fmt.Errorf("%w: version %d, this program reads version %d", ErrFormat, v, checkpointVersion)
	}
	copy(f.salt[:], data[12:20])
	if crc32.Checksum(data[:20], castagnoli) != binary.LittleEndian.Uint32(data[20:]) {
		return fmt.Errorf("%w: wrong CRC of the header", ErrCheckpointDamaged)
	}

	type change struct {
		id     LogID
		ref    frameRef
		forget bool
	}
	var pending []change
	f.size = headerBytes
	at := int64(headerBytes)
	for {
		kind, payload, n, ok := f.frame(data[at:])
		if !ok {
			break
		}
		switch kind {
		case frameCheckpoint:
			cp, bad := decodeCheckpoint(payload)
			if bad {
				return f.torn(data, at)
			}
			pending = append(pending, change{id: cp.Log, ref: refTo(cp, at, n)})
		case frameForget:
			if len(payload) != 24 {
				return f.torn(data, at)
			}
			pending = append(pending, change{id: decodeLogID(payload), forget: true})
		case frameCommit:
			number, began, bad := decodeCommit(payload)
			if bad || began != f.size || number <= f.round {
				return f.torn(data, at)
			}
			for _, c := range pending {
				f.drop(c.id)
				if !c.forget {
					f.where[c.id] = c.ref
					f.live += c.ref.length
				}
			}
			pending = pending[:0]
			f.round = number
			f.size = at + n
		default:
			// No torn frame has its checksum. Without it this program would go on from an older round.
			return format.Newer("the checkpoint file", "kind of frame", uint64(kind), uint64(frameCommit))
		}
		at += n
	}
	return f.torn(data, at)
}

// torn decides what a bad frame at offset at means. The round it belongs to
// began at f.size. If a round that began later was committed, then this one had
// been fsynced and was damaged since; if none was, it never got that far.
func (f *checkpointFile) torn(data []byte, at int64) error {
	if f.size == headerBytes && f.round == 0 {
		// The first round is part of the file's creation, which is atomic.
		return fmt.Errorf("%w: bad frame at byte %d of the first round", ErrCheckpointDamaged, at)
	}
	for rest := data[at:]; ; {
		i := bytes.Index(rest, commitMagic[:])
		if i < 0 {
			return nil
		}
		start := len(data) - len(rest) + i - frameHeadBytes
		rest = rest[i+len(commitMagic):]
		kind, payload, _, ok := f.frame(data[max(start, 0):])
		if !ok || kind != frameCommit {
			continue
		}
		if number, began, bad := decodeCommit(payload); !bad && began > f.size {
			return fmt.Errorf("%w: bad frame at byte %d, but round %d at byte %d was committed after it",
				ErrCheckpointDamaged, at, number, began)
		}
	}
}

// frame takes one frame off the front of data.
func (f *checkpointFile) frame(data []byte) (kind byte, payload []byte, n int64, ok bool) {
	if len(data) < frameHeadBytes+frameTailBytes {
		return 0, nil, 0, false
	}
	length := int64(binary.LittleEndian.Uint32(data))
	n = frameHeadBytes + length + frameTailBytes
	if length > maxPayloadBytes || n > int64(len(data)) {
		return 0, nil, 0, false
	}
	body := data[:frameHeadBytes+length]
	if f.checksum(body) != binary.LittleEndian.Uint32(data[len(body):]) {
		return 0, nil, 0, false
	}
	return data[4], body[frameHeadBytes:], n, true
}

// checksum covers the file's salt too, so that a frame which somebody's state
// happens to contain is not taken for one of this file.
func (f *checkpointFile) checksum(body []byte) uint32 {
	return crc32.Update(crc32.Checksum(f.salt[:], castagnoli), castagnoli, body)
}

func (f *checkpointFile) drop(id LogID) {
	if old, ok := f.where[id]; ok {
		f.live -= old.length
		delete(f.where, id)
	}
}

// same tells whether a checkpoint says nothing that the file doesn't.
func (f *checkpointFile) same(cp Checkpoint) bool {
	old, ok := f.where[cp.Log]
	return ok && old.index == cp.Index && old.mark == (Mark{Start: cp.Mark.Start, Next: cp.Mark.Next}) &&
		old.stateLen == len(cp.State) && old.stateCRC == crc32.Checksum(cp.State, castagnoli)
}

func (f *checkpointFile) logs() []LogID {
	ids := make([]LogID, 0, len(f.where))
	for id := range f.where {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i].Less(ids[j]) })
	return ids
}

func (f *checkpointFile) load(id LogID) (Checkpoint, bool, error) {
	ref, ok := f.where[id]
	if !ok {
		return Checkpoint{}, false, nil
	}
	frame := make([]byte, ref.length)
	if _, err := f.file.ReadAt(frame, ref.offset); err != nil {
		return Checkpoint{}, false, err
	}
	kind, payload, _, ok := f.frame(frame)
	if !ok || kind != frameCheckpoint {
		return Checkpoint{}, false, fmt.Errorf("%s: %w: wrong CRC of the frame at byte %d", f.path, ErrCheckpointDamaged, ref.offset)
	}
	cp, bad := decodeCheckpoint(payload)
	if bad || cp.Log != id {
		return Checkpoint{}, false, fmt.Errorf("%s: %w: frame at byte %d", f.path, ErrCheckpointDamaged, ref.offset)
	}
	return cp, true, nil
}

// write adds one durable round. A round without changes writes nothing.
func (f *checkpointFile) write(checkpoints []Checkpoint, gone []LogID) error {
	n := 0
	for _, id := range gone {
		if _, ok := f.where[id]; ok {
			gone[n] = id
			n++
		}
	}
	gone = gone[:n]
	if len(checkpoints) == 0 && len(gone) == 0 {
		return nil
	}
	if f.size > 2*f.live+f.floor {
		return f.rewrite(checkpoints, gone)
	}
	f.buf = f.buf[:0]
	refs, err := f.appendCheckpoints(f.size, checkpoints)
	if err != nil {
		return err
	}
	for _, id := range gone {
		f.appendFrame(frameForget, func(b []byte) []byte { return appendLogID(b, id) })
	}
	f.appendCommit(f.size)
	if _, err := f.file.WriteAt(f.buf, f.size); err != nil {
		return err
	}
	if err := f.file.Sync(); err != nil {
		return err
	}
	f.took(refs, gone)
	f.size += int64(len(f.buf))
	f.shrinkBuffer()
	return nil
}

// rewrite makes a new file that holds only live frames, and moves it into place.
func (f *checkpointFile) rewrite(checkpoints []Checkpoint, gone []LogID) (err error) {
	next := &checkpointFile{path: f.path, where: make(map[LogID]frameRef), round: f.round, floor: f.floor, buf: f.buf[:0]}
	if _, err := rand.Read(next.salt[:]); err != nil {
		return fmt.Errorf("draw salt: %w", err)
	}
	tmp := f.path + ".tmp"
	next.file, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, next.file.Close())
		}
	}()

	head := append(next.buf, checkpointMagic[:]...)
	head = binary.LittleEndian.AppendUint32(head, checkpointVersion)
	head = append(head, next.salt[:]...)
	head = binary.LittleEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	w := io.NewOffsetWriter(next.file, 0)
	if _, err := w.Write(head); err != nil {
		return err
	}
	next.size = headerBytes

	replaced := make(map[LogID]struct{}, len(checkpoints)+len(gone))
	for i := range checkpoints {
		replaced[checkpoints[i].Log] = struct{}{}
	}
	for _, id := range gone {
		replaced[id] = struct{}{}
	}
	at := next.size
	flush := func(refs map[LogID]frameRef) error {
		if _, err := w.Write(next.buf); err != nil {
			return err
		}
		at += int64(len(next.buf))
		next.took(refs, nil)
		return nil
	}
	for _, id := range f.logs() {
		if _, ok := replaced[id]; ok {
			continue
		}
		cp, _, err := f.load(id)
		if err != nil {
			return err
		}
		next.buf = next.buf[:0]
		refs, err := next.appendCheckpoints(at, []Checkpoint{cp})
		if err != nil {
			return err
		}
		if err := flush(refs); err != nil {
			return err
		}
	}
	next.buf = next.buf[:0]
	refs, err := next.appendCheckpoints(at, checkpoints)
	if err != nil {
		return err
	}
	next.appendCommit(headerBytes)
	if err := flush(refs); err != nil {
		return err
	}
	for _, id := range gone {
		next.drop(id)
	}
	next.size = at

	if err := next.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, f.path); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(f.path)); err != nil {
		return err
	}
	next.shrinkBuffer()
	if f.file != nil {
		// The old file is gone from the directory; what its Close says changes nothing.
		_ = f.file.Close()
	}
	*f = *next
	return nil
}

// appendCheckpoints encodes frames at the end of buf, whose first byte will be
// at offset base of the file.
func (f *checkpointFile) appendCheckpoints(base int64, checkpoints []Checkpoint) (map[LogID]frameRef, error) {
	refs := make(map[LogID]frameRef, len(checkpoints))
	for i := range checkpoints {
		cp := &checkpoints[i]
		if len(cp.State) > maxPayloadBytes-stateHeadBytes {
			return nil, fmt.Errorf("state of log %s has %d bytes, allowed are %d: %w",
				cp.Log, len(cp.State), maxPayloadBytes-stateHeadBytes, ErrTooLarge)
		}
		at := base + int64(len(f.buf))
		f.appendFrame(frameCheckpoint, func(b []byte) []byte {
			b = appendLogID(b, cp.Log)
			b = binary.LittleEndian.AppendUint64(b, cp.Index)
			b = binary.LittleEndian.AppendUint64(b, uint64(cp.Mark.Start))
			b = binary.LittleEndian.AppendUint64(b, uint64(cp.Mark.Next))
			return append(b, cp.State...)
		})
		refs[cp.Log] = refTo(*cp, at, base+int64(len(f.buf))-at)
	}
	return refs, nil
}

func (f *checkpointFile) appendCommit(began int64) {
	f.round++
	f.appendFrame(frameCommit, func(b []byte) []byte {
		b = append(b, commitMagic[:]...)
		b = binary.LittleEndian.AppendUint64(b, f.round)
		return binary.LittleEndian.AppendUint64(b, uint64(began))
	})
}

func (f *checkpointFile) appendFrame(kind byte, payload func([]byte) []byte) {
	start := len(f.buf)
	f.buf = append(f.buf, 0, 0, 0, 0, kind)
	f.buf = payload(f.buf)
	body := f.buf[start:]
	binary.LittleEndian.PutUint32(body, uint32(len(body)-frameHeadBytes))
	f.buf = binary.LittleEndian.AppendUint32(f.buf, f.checksum(body))
}

func (f *checkpointFile) took(refs map[LogID]frameRef, gone []LogID) {
	for id, ref := range refs {
		f.drop(id)
		f.where[id] = ref
		f.live += ref.length
	}
	for _, id := range gone {
		f.drop(id)
	}
}

// shrinkBuffer gives an unusually large buffer back.
func (f *checkpointFile) shrinkBuffer() {
	if cap(f.buf) > 1<<20 {
		f.buf = nil
	}
}

func (f *checkpointFile) close() error { return f.file.Close() }

func refTo(cp Checkpoint, offset, length int64) frameRef {
	return frameRef{
		offset: offset, length: length,
		index: cp.Index, mark: Mark{Start: cp.Mark.Start, Next: cp.Mark.Next},
		stateLen: len(cp.State), stateCRC: crc32.Checksum(cp.State, castagnoli),
	}
}

func decodeCheckpoint(p []byte) (cp Checkpoint, bad bool) {
	if len(p) < stateHeadBytes {
		return cp, true
	}
	cp.Log = decodeLogID(p)
	cp.Index = binary.LittleEndian.Uint64(p[24:])
	cp.Mark.Start = int64(binary.LittleEndian.Uint64(p[32:]))
	cp.Mark.Next = int64(binary.LittleEndian.Uint64(p[40:]))
	cp.State = p[stateHeadBytes:]
	return cp, cp.Mark.Start < 0 || cp.Mark.Next < cp.Mark.Start
}

func decodeCommit(p []byte) (number uint64, began int64, bad bool) {
	if len(p) != commitBytes || !bytes.Equal(p[:8], commitMagic[:]) {
		return 0, 0, true
	}
	return binary.LittleEndian.Uint64(p[8:]), int64(binary.LittleEndian.Uint64(p[16:])), false
}

func appendLogID(b []byte, id LogID) []byte {
	b = binary.LittleEndian.AppendUint64(b, id.Topic)
	b = binary.LittleEndian.AppendUint64(b, id.Partition)
	return binary.LittleEndian.AppendUint64(b, id.Replica)
}

func decodeLogID(p []byte) LogID {
	return LogID{
		Topic:     binary.LittleEndian.Uint64(p),
		Partition: binary.LittleEndian.Uint64(p[8:]),
		Replica:   binary.LittleEndian.Uint64(p[16:]),
	}
}

// SyncDir makes a directory's entries durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
