package epoch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"

	"github.com/parleymq/parley/replication/format"
)

// The journal is an append-only file of 64-byte blocks; docs/format/epochs.md
// describes it. An entry is a frame padded to whole blocks, then one block that
// is its commit marker. The two are written and fsynced one after the other, so
// that the file tells a torn write from damage:
//
//   - a marker whose entry doesn't read back: the entry was durable before the
//     marker was written, so this is damage, and the journal is not opened;
//   - an entry without a marker, at the end: it was never decided; it is cut.
//
// A block lies within one disk sector, so a marker is there whole, or its bytes
// are zero or missing; anything else is damage too.
const (
	block       = 64
	frameHeader = 28
	maxPayload  = 8 << 20

	frameMagic  = 0x4e454550 // "PEEN"
	markerMagic = 0x4b4d4550 // "PEMK"

	journalName = "journal"

	headerText     = "PARLEY EPOCHS "
	journalVersion = 1
)

var fileHeader = func() []byte {
	b := make([]byte, block)
	copy(b, fmt.Sprintf("%s%d\n", headerText, journalVersion))
	binary.LittleEndian.PutUint32(b[block-4:], checksum(b[:block-4]))
	return b
}()

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// kind of a frame's payload.
type kind uint8

const (
	kindValue  kind = 1 // an encoded configuration
	kindHeader kind = 2 // a Header alone
	kindStep   kind = 3 // what the acceptor and the learner have to remember: records
	kindBoot   kind = 4 // how often the store was opened
)

type entry struct {
	kind    kind
	epoch   uint64
	payload []byte
	ended   bool // a start from which on the file beside the journal says where it ends
}

type journal struct {
	f    file
	size int64 // the end of the last committed entry
	dead int64 // bytes of entries that nothing needs any more

	dir    directory
	end    file   // nil until something is noted
	number uint64 // of the newest note
	boot   uint64 // the last start in the journal
	mended string // damage that costs nothing
}

// openJournal opens or creates the journal and returns its committed entries.
// cut is the number of bytes of a torn tail that were cut.
func openJournal(dir directory) (j *journal, entries []entry, cut int64, err error) {
	if err := dir.remove(journalName + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, 0, fmt.Errorf("remove half-written epoch journal: %w", err)
	}
	f, err := dir.open(journalName, false)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("open epoch journal: %w", err)
	}
	b, err := dir.read(journalName)
	if err != nil {
		f.Close()
		return nil, nil, 0, fmt.Errorf("read epoch journal: %w", err)
	}
	entries, end, err := scan(b)
	if err != nil {
		f.Close()
		return nil, nil, 0, format.Corrupt(ErrCorrupt, fmt.Errorf("%s: %w", dir.path(journalName), err))
	}
	j = &journal{f: f, size: end, dir: dir}
	if err := j.reaches(entries); err != nil {
		f.Close()
		return nil, nil, 0, err
	}
	if end == 0 {
		err = j.write(fileHeader, 0)
		j.size = block
	} else if cut = int64(len(b)) - end; cut > 0 {
		if err = f.Truncate(end); err == nil {
			err = f.Sync()
		}
	}
	if err == nil {
		err = dir.sync()
	}
	if err != nil {
		f.Close()
		return nil, nil, 0, fmt.Errorf("prepare epoch journal: %w", err)
	}
	return j, entries, cut, nil
}

// append writes an entry and, once it is durable, its marker. After an error
// nothing more may be appended: what the file holds is no longer known.
func (j *journal) append(e entry) error {
	if e.ended {
		// Before the journal says that there is one.
		if err := j.note(j.size); err != nil {
			return err
		}
	}
	frame := appendFrame(nil, e)
	if err := j.write(frame, j.size); err != nil {
		return fmt.Errorf("write epoch %d: %w", e.epoch, err)
	}
	if err := j.write(marker(e, j.size), j.size+int64(len(frame))); err != nil {
		return fmt.Errorf("commit epoch %d: %w", e.epoch, err)
	}
	j.size += int64(len(frame)) + block
	if n, size := binary.Uvarint(e.payload); e.kind == kindBoot && size > 0 {
		j.boot = n
	}
	return j.note(j.size)
}

func (j *journal) write(b []byte, at int64) error {
	if _, err := j.f.WriteAt(b, at); err != nil {
		return err
	}
	return j.f.Sync()
}

func (j *journal) close() error {
	err := j.f.Close()
	if j.end != nil {
		err = errors.Join(err, j.end.Sync(), j.end.Close())
	}
	return err
}

// rewriteJournal replaces the journal by one with the given entries.
func rewriteJournal(dir directory, entries []entry) (*journal, error) {
	was, _, _, err := readEnding(dir)
	if err != nil {
		return nil, err
	}
	j := &journal{dir: dir, number: was.number, boot: was.boot}
	f, err := dir.open(journalName+".new", true)
	if err != nil {
		return nil, fmt.Errorf("rewrite epoch journal: %w", err)
	}
	b := bytes.Clone(fileHeader)
	for _, e := range entries {
		at := int64(len(b))
		b = appendFrame(b, e)
		b = append(b, marker(e, at)...)
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = j.noteDurably(0) // the new one is shorter; and the old one, which may stay, knows of no later start
	}
	if err == nil {
		err = dir.rename(journalName+".new", journalName)
	}
	if err == nil {
		err = dir.sync()
	}
	if err == nil {
		j.f, j.size = f, int64(len(b))
		for _, e := range entries {
			if n, size := binary.Uvarint(e.payload); e.kind == kindBoot && size > 0 {
				j.boot = n
			}
		}
		err = j.noteDurably(j.size)
	}
	if err != nil {
		f.Close()
		if j.end != nil {
			j.end.Close()
		}
		return nil, fmt.Errorf("rewrite epoch journal: %w", err)
	}
	return j, nil
}

func appendFrame(b []byte, e entry) []byte {
	var h [frameHeader]byte
	binary.LittleEndian.PutUint32(h[0:], frameMagic)
	h[4] = byte(e.kind)
	if e.ended {
		h[5] = 1
	}
	binary.LittleEndian.PutUint64(h[8:], e.epoch)
	binary.LittleEndian.PutUint32(h[16:], uint32(len(e.payload)))
	binary.LittleEndian.PutUint32(h[20:], checksum(e.payload))
	binary.LittleEndian.PutUint32(h[24:], checksum(h[:24]))
	b = append(b, h[:]...)
	b = append(b, e.payload...)
	if over := (frameHeader + len(e.payload)) % block; over > 0 {
		b = append(b, make([]byte, block-over)...)
	}
	return b
}

func marker(e entry, at int64) []byte {
	b := make([]byte, block)
	binary.LittleEndian.PutUint32(b[0:], markerMagic)
	binary.LittleEndian.PutUint64(b[8:], e.epoch)
	binary.LittleEndian.PutUint64(b[16:], uint64(at))
	binary.LittleEndian.PutUint32(b[24:], uint32(len(e.payload)))
	binary.LittleEndian.PutUint32(b[28:], checksum(e.payload))
	binary.LittleEndian.PutUint32(b[block-4:], checksum(b[:block-4]))
	return b
}

// isMarker says whether b is a whole, undamaged marker.
func isMarker(b []byte) bool {
	return len(b) == block && binary.LittleEndian.Uint32(b) == markerMagic &&
		binary.LittleEndian.Uint32(b[block-4:]) == checksum(b[:block-4])
}

// scan reads a whole journal. It returns the committed entries, which share b,
// and the end of the last one; 0 when not even the file header was written.
func scan(b []byte) (entries []entry, end int64, err error) {
	if len(b) < block || bytes.Equal(b[:block], make([]byte, block)) {
		if len(bytes.Trim(b, "\x00")) > block { // more than the header's own torn bytes
			return nil, 0, errors.New("its header is missing")
		}
		return nil, 0, nil
	}
	if !bytes.Equal(b[:block], fileHeader) {
		v, ok := format.Text(b, headerText)
		if ok && v > journalVersion && binary.LittleEndian.Uint32(b[block-4:]) == checksum(b[:block-4]) {
			return nil, 0, format.Newer("the epoch journal", "format", v, journalVersion)
		}
		return nil, 0, errors.New("its header is damaged")
	}
	at := int64(block)
	for at < int64(len(b)) {
		e, length, ok := parseFrame(b[at:])
		if !ok {
			if m := findMarker(b, at); m >= 0 {
				return nil, 0, fmt.Errorf("the committed entry at byte %d is damaged (its commit marker is at byte %d)", at, m)
			}
			return entries, at, nil
		}
		rest := b[at+length:]
		if len(rest) < block || bytes.Equal(rest[:block], make([]byte, block)) {
			if m := findMarker(b, at+length); m >= 0 {
				return nil, 0, fmt.Errorf("the commit marker at byte %d is missing, but a later one is at byte %d", at+length, m)
			}
			return entries, at, nil
		}
		if !bytes.Equal(rest[:block], marker(e, at)) {
			return nil, 0, fmt.Errorf("the commit marker at byte %d is damaged", at+length)
		}
		entries = append(entries, e)
		at += length + block
	}
	return entries, at, nil
}

// parseFrame reads the frame that b begins with; length includes the padding.
func parseFrame(b []byte) (e entry, length int64, ok bool) {
	if len(b) < frameHeader || binary.LittleEndian.Uint32(b) != frameMagic ||
		binary.LittleEndian.Uint32(b[24:]) != checksum(b[:24]) {
		return entry{}, 0, false
	}
	n := int64(binary.LittleEndian.Uint32(b[16:]))
	length = (frameHeader + n + block - 1) / block * block
	if n > maxPayload || length > int64(len(b)) {
		return entry{}, 0, false
	}
	e = entry{kind: kind(b[4]), epoch: binary.LittleEndian.Uint64(b[8:]), payload: b[frameHeader : frameHeader+n], ended: b[5] == 1}
	if checksum(e.payload) != binary.LittleEndian.Uint32(b[20:]) {
		return entry{}, 0, false
	}
	for _, fill := range b[frameHeader+n : length] {
		if fill != 0 {
			return entry{}, 0, false
		}
	}
	return e, length, true
}

func findMarker(b []byte, from int64) int64 {
	for at := from; at+block <= int64(len(b)); at += block {
		if isMarker(b[at : at+block]) {
			return at
		}
	}
	return -1
}
