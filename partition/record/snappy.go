package record

import (
	"encoding/binary"
	"slices"

	"github.com/klauspost/compress/s2"
)

// Kafka's Java client wraps Snappy blocks in the framing of the xerial library:
// a header of 16 bytes, then chunks of a big-endian length and a block. Other
// clients write one bare block. Every client reads both, so both are read here; a
// bare block is written, as it is smaller and needs no copy.
const (
	xerialMagic  = "\x82SNAPPY\x00"
	xerialHeader = len(xerialMagic) + 4 + 4 // magic, version, oldest compatible version
)

func snappyCompress(dst, src []byte) []byte {
	n := len(dst)
	dst = slices.Grow(dst, s2.MaxEncodedLen(len(src)))
	block := s2.EncodeSnappy(dst[n:cap(dst)], src)
	return dst[:n+len(block)]
}

func snappyDecompress(buf, src []byte, limit int) ([]byte, error) {
	if len(src) < xerialHeader || string(src[:len(xerialMagic)]) != xerialMagic {
		size, err := snappyBlock(src, limit)
		if err != nil {
			return nil, err
		}
		out := sized(buf, size)
		if _, err := s2.Decode(out, src); err != nil {
			return nil, damaged(Snappy, "%v", err)
		}
		return out, nil
	}

	if v := int32(binary.BigEndian.Uint32(src[len(xerialMagic):])); v < 1 {
		return nil, damaged(Snappy, "xerial framing version %d, at least 1", v)
	}
	chunks := src[xerialHeader:]
	total := 0
	for rest := chunks; len(rest) > 0; {
		chunk, after, err := xerialChunk(rest)
		if err != nil {
			return nil, err
		}
		size, err := snappyBlock(chunk, limit-total)
		if err != nil {
			return nil, err
		}
		total += size
		rest = after
	}
	out := sized(buf, total)
	at := 0
	for rest := chunks; len(rest) > 0; {
		chunk, after, err := xerialChunk(rest)
		if err != nil {
			return nil, err
		}
		size, err := s2.DecodedLen(chunk)
		if err != nil {
			return nil, damaged(Snappy, "%v", err)
		}
		if _, err := s2.Decode(out[at:at+size:at+size], chunk); err != nil {
			return nil, damaged(Snappy, "%v", err)
		}
		at += size
		rest = after
	}
	return out, nil
}

func xerialChunk(b []byte) (chunk, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, damaged(Snappy, "%d bytes where a chunk's length needs 4", len(b))
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return nil, nil, damaged(Snappy, "chunk of %d bytes, %d are left", n, len(b))
	}
	return b[:n], b[n:], nil
}

// snappyBlock returns the size that a block expands to. It walks the block's
// elements, so that a block that merely claims a size costs no memory, and it
// refuses the extensions of S2, which the decoder would take and no other client
// could read.
func snappyBlock(src []byte, limit int) (int, error) {
	claim, n := binary.Uvarint(src)
	if n <= 0 || n > 5 || claim > 1<<32-1 {
		return 0, damaged(Snappy, "block without a length")
	}
	if claim > uint64(max(limit, 0)) {
		return 0, tooLargeDecompressed(Snappy, claim, limit)
	}
	var size uint64 // no element is longer than 4 GiB: never overflows
	for s := src[n:]; len(s) > 0; {
		tag := s[0]
		var head, length, offset uint64
		switch tag & 3 {
		case 0: // literal
			length = uint64(tag>>2) + 1
			head = 1
			if extra := int(tag>>2) - 59; extra > 0 {
				if len(s) < 1+extra {
					return 0, damaged(Snappy, "literal cut short")
				}
				length = 0
				for i := extra; i > 0; i-- {
					length = length<<8 | uint64(s[i])
				}
				length++
				head += uint64(extra)
			}
			if length > uint64(len(s))-head {
				return 0, damaged(Snappy, "literal of %d bytes, %d are left", length, uint64(len(s))-head)
			}
			size += length
			s = s[head+length:]
			if size > claim {
				return 0, damaged(Snappy, "block holds more than the %d bytes it claims", claim)
			}
			continue
		case 1:
			head = 2
			length = 4 + uint64(tag>>2&7)
		case 2:
			head = 3
			length = 1 + uint64(tag>>2)
		case 3:
			head = 5
			length = 1 + uint64(tag>>2)
		}
		if uint64(len(s)) < head {
			return 0, damaged(Snappy, "copy cut short")
		}
		switch tag & 3 {
		case 1:
			offset = uint64(tag&0xe0)<<3 | uint64(s[1])
		case 2:
			offset = uint64(binary.LittleEndian.Uint16(s[1:]))
		case 3:
			offset = uint64(binary.LittleEndian.Uint32(s[1:]))
		}
		if offset == 0 || offset > size {
			return 0, damaged(Snappy, "copy from %d bytes back, %d are there", offset, size)
		}
		size += length
		if size > claim {
			return 0, damaged(Snappy, "block holds more than the %d bytes it claims", claim)
		}
		s = s[head:]
	}
	if size != claim {
		return 0, damaged(Snappy, "block holds %d bytes and claims %d", size, claim)
	}
	return int(size), nil
}
