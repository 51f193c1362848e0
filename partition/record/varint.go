package record

import "math/bits"

// Integers inside records are zigzag varints: base 128, low groups first, at most
// 5 bytes for 32 bits and 10 for 64.

func zigzag(v int64) uint64   { return uint64(v<<1) ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

func varintLen(v int64) int { return (bits.Len64(zigzag(v)|1) + 6) / 7 }

func appendVarint(dst []byte, v int64) []byte {
	u := zigzag(v)
	for u >= 0x80 {
		dst = append(dst, byte(u)|0x80)
		u >>= 7
	}
	return append(dst, byte(u))
}

// varint32 reads an integer at b[i:] and returns where it ends, or an end of 0 when
// there is none.
func varint32(b []byte, i int) (v int32, end int) {
	if i < len(b) && b[i] < 0x80 {
		u := uint32(b[i])
		return int32(u>>1) ^ -int32(u&1), i + 1
	}
	u, end := uvarint(b, i, 5)
	if u > 1<<32-1 {
		return 0, 0
	}
	return int32(unzigzag(u)), end
}

// varint64 is varint32 for 64 bits.
func varint64(b []byte, i int) (v int64, end int) {
	u, end := uvarint(b, i, 10)
	return unzigzag(u), end
}

func uvarint(b []byte, i, most int) (u uint64, end int) {
	for shift := uint(0); most > 0 && i < len(b); most-- {
		c := b[i]
		i++
		if shift == 63 && c > 1 {
			return 0, 0
		}
		u |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return u, i
		}
		shift += 7
	}
	return 0, 0
}
