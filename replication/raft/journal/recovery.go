package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/parleymq/parley/replication/format"
)

// Open opens the journal in a directory that exists, or begins one in an empty one. It reads all of it.
// Segments before the newest must be whole. The newest one may end in a batch that isn't:
// nobody was told that it was saved, so it doesn't count. Damage before that is a
// *DamageError, and nothing is changed.
func Open(dir string, o Options) (*Journal, error) {
	if o.FS == nil {
		o.FS = OS
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	j := &Journal{
		dir: dir, fs: o.FS, options: o,
		scratch: make([]byte, 0, 256<<10),
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		floor:   1,
	}
	j.index = newIndex(j.live)
	if err := j.open(); err != nil {
		for _, s := range append(j.segments, j.spares...) {
			_ = s.file.Close()
		}
		if j.end != nil {
			_ = j.end.Close()
		}
		return nil, err
	}
	if !o.byHand {
		j.cleaner.Add(1)
		go j.clean()
		j.nudge()
	}
	return j, nil
}

func (j *Journal) open() error {
	names, err := j.fs.List(j.dir)
	if err != nil {
		return fmt.Errorf("list raft journal: %w", err)
	}
	var numbers []uint64
	var spares []string
	known, hasEnd, promised := false, false, false
	for _, name := range names {
		if n, ok := segmentNumber(name); ok {
			numbers = append(numbers, n)
		}
		if strings.HasPrefix(name, sparePrefix) {
			spares = append(spares, filepath.Join(j.dir, name))
		}
		known = known || name == identityFile
		hasEnd = hasEnd || name == endFile
	}
	slices.Sort(numbers)
	unbegun, err := j.unbegun(numbers, known)
	if err != nil {
		return err
	}
	switch {
	case known && len(numbers) == 0:
		err = &DamageError{filepath.Join(j.dir, identityFile), 0, "there is no segment beside it, though every journal has one: they were lost"}
	case known:
		promised, err = j.readIdentity()
	case len(numbers) > 0 && !unbegun:
		err = &DamageError{filepath.Join(j.dir, identityFile), 0, "the file is missing, though there are segments"}
	default:
		// What is there of a beginning that didn't get as far as the identity, which comes last, is written over.
		hasEnd, numbers = false, nil
		err = j.newIdentity()
	}
	if err != nil {
		return err
	}
	end, err := j.readEnd(hasEnd, promised)
	if err != nil {
		return err
	}
	if err := j.replay(numbers, end); err != nil {
		return err
	}
	if len(j.segments) > 0 {
		if err := j.secure(); err != nil {
			return err
		}
	}
	if j.fs.Reusable() {
		if err := j.beginEnd(hasEnd && promised); err != nil {
			return err
		}
	}
	if known && j.end != nil && !promised {
		if err := j.writeIdentity(); err != nil {
			return err
		}
	}
	if err := j.reuse(spares); err != nil {
		return err
	}
	// Nothing is written behind a tail that was torn: it stays as it is, and the next header says where it begins.
	number, previousEnd := uint64(1), uint64(0)
	if len(j.segments) > 0 {
		number, previousEnd = j.active().number+1, uint64(j.active().end)
	}
	s, err := j.follow(number, previousEnd)
	if err != nil {
		return err
	}
	if len(j.segments) > 0 {
		// What was reserved and not used goes back to the file system.
		old := j.active()
		if old.whole = int64(old.end) >= j.options.SegmentBytes*3/4; !old.whole {
			if err := old.file.Truncate(int64(old.end)); err != nil {
				return fmt.Errorf("shorten raft journal segment %s: %w", old.name, err)
			}
		}
	}
	j.segments = append(j.segments, s)
	if !known {
		return j.writeIdentity()
	}
	return nil
}

// unbegun says that there is no more of a journal than its first segment, with nothing in it: whoever began it didn't get as
// far as to name it, and nothing was ever saved.
func (j *Journal) unbegun(numbers []uint64, known bool) (bool, error) {
	if known || len(numbers) != 1 || numbers[0] != 1 {
		return false, nil
	}
	name := j.segmentName(1)
	f, err := j.fs.Open(name)
	if err != nil {
		return false, fmt.Errorf("open raft journal segment: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return false, fmt.Errorf("size of raft journal segment %s: %w", name, err)
	}
	w := window{file: f, limit: size}
	for off := int64(segmentHeader); off < size; {
		b, err := w.at(off, int(min(64<<10, size-off)))
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			return false, nil
		}
		off += int64(len(b))
	}
	return true, nil
}

// The identity file is 32 bytes: the text "PRLYRJ1\n", the journal's id (uint64), 1 where there is an END (uint8), 11 zeros,
// and the CRC-32C of these 28 bytes.
const identitySize = 32

func (j *Journal) readIdentity() (end bool, err error) {
	name := filepath.Join(j.dir, identityFile)
	f, err := j.fs.Open(name)
	if err != nil {
		return false, fmt.Errorf("open raft journal: %w", err)
	}
	b := make([]byte, identitySize)
	n, err := f.ReadAt(b, 0)
	_ = f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	if err := newerFile(name, b); err != nil {
		return false, err
	}
	if n < identitySize || string(b[:8]) != segmentMagic || crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return false, &DamageError{name, 0, "it isn't what a journal has"}
	}
	j.id = binary.LittleEndian.Uint64(b[8:])
	return b[16] == endKnown, nil
}

// newIdentity draws an id.
func (j *Journal) newIdentity() error {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("make raft journal: %w", err)
	}
	j.id = binary.LittleEndian.Uint64(b[:])
	return nil
}

func (j *Journal) writeIdentity() error {
	b := make([]byte, identitySize)
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint64(b[8:], j.id)
	if j.end != nil {
		b[16] = endKnown
	}
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return j.writeFile(filepath.Join(j.dir, identityFile), b)
}

// writeFile makes a file hold b, durably, or leaves it as it was.
func (j *Journal) writeFile(name string, b []byte) error {
	f, err := j.fs.Create(name + ".new")
	if err != nil {
		return fmt.Errorf("make raft journal: %w", err)
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = j.fs.Rename(name+".new", name)
	}
	if err == nil {
		err = j.fs.SyncDir(j.dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// replay reads all segments into the index. They have to go as far as end.
func (j *Journal) replay(numbers []uint64, end reached) error {
	var openings []opening
	for i, number := range numbers {
		if i > 0 && number != numbers[i-1]+1 {
			return &DamageError{j.segmentName(numbers[i-1] + 1), 0, "the segment is missing"}
		}
		name := j.segmentName(number)
		f, err := j.fs.Open(name)
		if err != nil {
			return fmt.Errorf("open raft journal segment: %w", err)
		}
		s := &segment{name: name, number: number, file: f, salt: newSalt(j.id, number), end: segmentHeader}
		j.segments = append(j.segments, s)
		b := make([]byte, segmentHeader)
		if n, err := f.ReadAt(b, 0); n < len(b) && err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read raft journal segment %s: %w", name, err)
		}
		if err := newerFile(name, b); err != nil {
			return err
		}
		o, ok := parseOpening(b)
		if !ok || o.id != j.id || o.number != number {
			return &DamageError{name, 0, "its header isn't the one that it was given"}
		}
		openings = append(openings, o)
		j.floor = max(j.floor, o.floor)
	}
	for i, s := range j.segments {
		if i == 0 {
			j.batch = openings[0].batch
		} else if j.batch != openings[i].batch {
			return &DamageError{s.name, 0, fmt.Sprintf("it follows batch %d, the segment before it ends with %d", openings[i].batch, j.batch)}
		}
		bound := int64(-1)
		if i+1 < len(openings) {
			bound = int64(openings[i+1].previousEnd)
		}
		if err := j.scan(s, bound); err != nil {
			return err
		}
	}
	// First of all: a floor may be in what is missing at the end.
	if err := j.reaches(end); err != nil {
		return err
	}
	if len(numbers) > 0 && numbers[0] > j.floor {
		return &DamageError{j.segmentName(j.floor), 0, "the segment is missing"}
	}
	if err := j.index.check(); err != nil {
		return &DamageError{j.dir, 0, err.Error()}
	}
	return nil
}

// secure brings to disk what was read, before anything is built on it. Who wrote the newest batch may have ended
// before its fsync did, or because that failed: it can be read then, but only from memory. Pages count as
// written after a failed fsync, so the batch is written again. All batches before it are on disk; names may not be.
func (j *Journal) secure() error {
	s := j.active()
	if n := int64(s.end) - j.newest; s.end > segmentHeader && j.fs.Reusable() {
		b := make([]byte, n)
		if got, err := s.file.ReadAt(b, j.newest); got < len(b) {
			return fmt.Errorf("read raft journal %s at %d: %w", s.name, j.newest, err)
		}
		if _, err := s.file.WriteAt(b, j.newest); err != nil {
			return fmt.Errorf("write raft journal %s at %d again: %w", s.name, j.newest, err)
		}
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync raft journal %s: %w", s.name, err)
	}
	if err := j.fs.SyncDir(j.dir); err != nil {
		return fmt.Errorf("sync raft journal directory: %w", err)
	}
	return nil
}

// A found frame waits for the last one of its batch.
type found struct {
	kind  kind
	rec   record
	floor uint64
	at    place
}

// scan reads a segment. bound is where it ends by the header of the next one, -1 for the newest, which ends where
// the last whole batch does.
func (j *Journal) scan(s *segment, bound int64) error {
	size, err := s.file.Size()
	if err != nil {
		return fmt.Errorf("read raft journal segment %s: %w", s.name, err)
	}
	limit := size
	if bound >= 0 {
		if bound > size {
			return &DamageError{s.name, size, fmt.Sprintf("it ends here, and has to be %d bytes long", bound)}
		}
		limit = bound
	}
	in := &window{file: s.file, limit: limit}
	off := int64(segmentHeader)
	var pending []found
	what := ""
	for off < limit {
		var f found
		var last bool
		var size int
		if f, size, last, what, err = j.frame(s, in, off); err != nil {
			return err
		}
		if what != "" {
			break
		}
		pending = append(pending, f)
		off += int64(size)
		if !last {
			continue
		}
		for i := range pending {
			switch p := &pending[i]; p.kind {
			case kindRecord:
				j.index.apply(&p.rec, p.at)
			case kindFloor:
				j.floor = max(j.floor, p.floor)
			}
		}
		pending = pending[:0]
		j.batch++
		j.newest, s.end = int64(s.end), uint32(off)
	}
	if bound >= 0 {
		if int64(s.end) != bound {
			if what == "" {
				what = "a batch that was acknowledged is incomplete"
			}
			return &DamageError{s.name, off, what}
		}
		return nil
	}
	return j.torn(s, in, off, what)
}

// frame reads the frame at off. What is wrong with it is told by what; err is of the disk.
func (j *Journal) frame(s *segment, in *window, off int64) (f found, size int, last bool, what string, err error) {
	b, err := in.at(off, frameHeader)
	if err != nil {
		return f, 0, false, "", err
	}
	if b == nil {
		return f, 0, false, "a frame is cut off", nil
	}
	h, ok := parseHeader(b, &s.salt)
	switch {
	case !ok:
		return f, 0, false, "a frame's header is wrong", nil
	case h.batch != j.batch+1:
		return f, 0, false, fmt.Sprintf("a frame of batch %d comes after batch %d", h.batch, j.batch), nil
	}
	newer := foreign(s.name, off, b)
	payload, err := in.at(off+frameHeader, frameSize(int(h.length))-frameHeader)
	if err != nil {
		return f, 0, false, "", err
	}
	if payload == nil {
		return f, 0, false, "a frame is cut off", nil
	}
	fill := payload[h.length:]
	payload = payload[:h.length]
	if crc32.Checksum(payload, castagnoli) != h.payload {
		return f, 0, false, "a frame's CRC is wrong", nil
	}
	if newer != nil {
		return f, 0, false, "", newer
	}
	for _, b := range fill {
		if b != 0 {
			return f, 0, false, "what fills a frame up isn't zero", nil
		}
	}
	f = found{kind: h.kind, at: place{s.number32(), uint32(off), uint32(frameSize(int(h.length)))}}
	switch h.kind {
	case kindRecord:
		if f.rec, err = parseRecord(payload); errors.Is(err, format.ErrNewer) {
			return f, 0, false, "", fmt.Errorf("raft journal %s at %d: %w", s.name, off, err)
		} else if err != nil {
			return f, 0, false, err.Error(), nil
		}
		// The payload's memory is used again; entries stay on disk.
		f.rec.snapshot = slices.Clone(f.rec.snapshot)
		f.rec.bootstrap = slices.Clone(f.rec.bootstrap)
		f.rec.entries = nil
	case kindFloor:
		if len(payload) != 8 {
			return f, 0, false, errRecord.Error(), nil
		}
		f.floor = binary.LittleEndian.Uint64(payload)
	}
	return f, frameSize(int(h.length)), h.last, "", nil
}

// torn looks whether anything behind the end of the newest segment proves that what is at off was on disk
// once: a frame of a batch after the next one.
func (j *Journal) torn(s *segment, in *window, off int64, what string) error {
	// As many batches as the file has room for. That, and not the CRC alone, keeps a producer's bytes from being
	// taken for a frame.
	newest := j.batch + 1 + uint64(in.limit)/frameHeader
	for at := int64(s.end); at+frameHeader <= in.limit; at += frameAlign {
		b, err := in.at(at, frameHeader)
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		if batch := binary.LittleEndian.Uint64(b[8:]); batch <= j.batch+1 || batch > newest {
			continue
		}
		if h, ok := parseHeader(b, &s.salt); ok {
			return &DamageError{s.name, off, fmt.Sprintf("%s, but batch %d follows at %d, so it was acknowledged", what, h.batch, at)}
		}
	}
	return nil
}

// reuse takes spares that are as long as a segment, and removes others.
func (j *Journal) reuse(names []string) error {
	for _, name := range names {
		// Their numbers may not be given again while they are there.
		f, err := j.fs.Open(name)
		if err != nil {
			return fmt.Errorf("open spare raft journal segment: %w", err)
		}
		size, err := f.Size()
		if err != nil {
			_ = f.Close()
			return fmt.Errorf("open spare raft journal segment %s: %w", name, err)
		}
		if j.fs.Reusable() && size == j.options.SegmentBytes && len(j.spares) < MaxSpares {
			j.spares = append(j.spares, &segment{name: name, file: f})
			continue
		}
		_ = f.Close()
		if err := j.fs.Remove(name); err != nil {
			return fmt.Errorf("remove spare raft journal segment: %w", err)
		}
	}
	for _, s := range j.spares {
		var n uint64
		if _, err := fmt.Sscanf(filepath.Base(s.name), sparePrefix+"%d", &n); err == nil {
			j.spareCount = max(j.spareCount, n)
		}
	}
	return nil
}

// A window reads a file from front to back, a megabyte at a time.
type window struct {
	file  File
	limit int64
	start int64
	buf   []byte
}

// at returns n bytes at off, nil when the file ends before. They are good until the next call.
func (w *window) at(off int64, n int) ([]byte, error) {
	if off+int64(n) > w.limit {
		return nil, nil
	}
	if off < w.start || off+int64(n) > w.start+int64(len(w.buf)) {
		want := max(n, int(min(1<<20, w.limit-off)))
		if cap(w.buf) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		w.start = off
		if got, err := w.file.ReadAt(w.buf, off); got < want {
			w.buf = w.buf[:0]
			return nil, fmt.Errorf("read raft journal at %d: %w", off+int64(got), err)
		}
	}
	return w.buf[off-w.start : off-w.start+int64(n)], nil
}
