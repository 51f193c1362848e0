package record

import (
	"encoding/binary"
	"math/bits"
)

// xxh32 is XXH32 with seed 0, the checksum inside LZ4 frames
// (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
func xxh32(b []byte) uint32 {
	const (
		p1 uint32 = 0x9E3779B1
		p2 uint32 = 0x85EBCA77
		p3 uint32 = 0xC2B2AE3D
		p4 uint32 = 0x27D4EB2F
		p5 uint32 = 0x165667B1
	)
	h := p5
	n := uint32(len(b))
	if len(b) >= 16 {
		zero := uint32(0) // a variable: the sums are meant to wrap
		v := [4]uint32{zero + p1 + p2, p2, 0, zero - p1}
		for ; len(b) >= 16; b = b[16:] {
			for i := range v {
				v[i] = bits.RotateLeft32(v[i]+binary.LittleEndian.Uint32(b[4*i:])*p2, 13) * p1
			}
		}
		h = bits.RotateLeft32(v[0], 1) + bits.RotateLeft32(v[1], 7) + bits.RotateLeft32(v[2], 12) + bits.RotateLeft32(v[3], 18)
	}
	h += n
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(b)*p3, 17) * p4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*p5, 11) * p1
	}
	h = (h ^ h>>15) * p2
	h = (h ^ h>>13) * p3
	return h ^ h>>16
}
