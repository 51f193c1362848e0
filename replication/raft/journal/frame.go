package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/parleymq/parley/replication/format"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A frame is a header of 24 bytes and a payload, filled up with zeros to a multiple of 8:
//
//	0  length of the payload  uint32
//	4  CRC-32C of the payload uint32
//	8  batch                  uint64
//	16 kind                   uint8
//	17 1: the batch's last    uint8
//	18 zeros                  2 bytes
//	20 CRC-32C of the journal's id, the segment's number and the 20 bytes before
//
// The id and the number are in the CRC so that what is left of a file's earlier life, or of
// another journal's, is never taken for this one's.
const (
	frameHeader = 24
	frameAlign  = 8
)

type kind uint8

const (
	kindRecord kind = 1 // about one replica
	kindFloor  kind = 2 // segments before a number are not needed
	kindEnd    kind = 3 // the journal was closed
)

type header struct {
	length  uint32
	payload uint32 // CRC
	batch   uint64
	kind    kind
	last    bool
}

// salt is what a segment's header CRCs begin with.
type salt [16]byte

func newSalt(id, segment uint64) (s salt) {
	binary.LittleEndian.PutUint64(s[:8], id)
	binary.LittleEndian.PutUint64(s[8:], segment)
	return s
}

func (s *salt) sum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(s[:], castagnoli), castagnoli, b)
}

// size is what a frame with a payload of n bytes takes.
func frameSize(n int) int { return (frameHeader + n + frameAlign - 1) &^ (frameAlign - 1) }

// stamp completes the header in b, whose length, kind and payload CRC are set.
func stamp(b []byte, s *salt, batch uint64, last bool) {
	binary.LittleEndian.PutUint64(b[8:], batch)
	b[17] = 0
	if last {
		b[17] = 1
	}
	binary.LittleEndian.PutUint32(b[20:], s.sum(b[:20]))
}

// parseHeader returns ok only for a whole header of this segment.
func parseHeader(b []byte, s *salt) (h header, ok bool) {
	if s.sum(b[:20]) != binary.LittleEndian.Uint32(b[20:]) {
		return header{}, false
	}
	h = unsealed(b)
	h.batch = binary.LittleEndian.Uint64(b[8:])
	h.last = b[17] == 1
	return h, h.kind >= kindRecord && b[17] <= 1
}

// foreign says what a newer program did that wrote a frame whose CRCs are right. It was written whole, and is no torn
// end that might be passed over: whoever goes on without it forgets what was promised.
func foreign(name string, at int64, b []byte) error {
	where := fmt.Sprintf("raft journal %s: the frame at %d", name, at)
	switch k := kind(b[16]); {
	case k > kindEnd:
		return format.Newer(where, "kind", uint64(k), uint64(kindEnd))
	case b[18] != 0 || b[19] != 0:
		return format.Newer(where, "flags", uint64(b[18])|uint64(b[19])<<8, 0)
	}
	return nil
}

// unsealed reads what is set before a batch is stamped.
func unsealed(b []byte) header {
	return header{
		length:  binary.LittleEndian.Uint32(b),
		payload: binary.LittleEndian.Uint32(b[4:]),
		kind:    kind(b[16]),
	}
}

// A segment begins with a header of 64 bytes:
//
//	0  text "PRLYRJ1\n"
//	8  id of the journal                     uint64
//	16 number of the segment                 uint64
//	24 where the segment before it ends      uint64, 0 for the first
//	32 segments before this one aren't needed uint64
//	40 batch before the first in it          uint64
//	48 zeros                                 12 bytes
//	60 CRC-32C of the 60 bytes before        uint32
const segmentHeader = 64

const (
	segmentText    = "PRLYRJ"
	segmentVersion = 1
	segmentMagic   = "PRLYRJ1\n"
)

// newerFile says that a newer program wrote a file that begins with b, the last four bytes of which are the CRC of
// the others. However much else of a file's format changes, this must not.
func newerFile(name string, b []byte) error {
	n := len(b) - 4
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return nil
	}
	if v, ok := format.Text(b, segmentText); ok && v > segmentVersion {
		return format.Newer("raft journal "+name, "format", v, segmentVersion)
	}
	return nil
}

type opening struct {
	id, number, previousEnd, floor, batch uint64
}

func (o opening) encode() []byte {
	b := make([]byte, segmentHeader)
	copy(b, segmentMagic)
	for i, v := range []uint64{o.id, o.number, o.previousEnd, o.floor, o.batch} {
		binary.LittleEndian.PutUint64(b[8+8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func parseOpening(b []byte) (o opening, ok bool) {
	if len(b) < segmentHeader || string(b[:8]) != segmentMagic ||
		crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return opening{}, false
	}
	for i, v := range []*uint64{&o.id, &o.number, &o.previousEnd, &o.floor, &o.batch} {
		*v = binary.LittleEndian.Uint64(b[8+8*i:])
	}
	return o, true
}
