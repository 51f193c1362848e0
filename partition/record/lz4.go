package record

import (
	"encoding/binary"
	"slices"

	"github.com/pierrec/lz4/v4"
)

// LZ4 records are one LZ4 frame of independent blocks. The frame is read and
// written here, on the library's block functions, because its stream reader takes
// a frame's word for block sizes and reads on after the frame's end.
//
// Written frames have no checksums: the batch's CRC-32C covers the same bytes. A
// content checksum that is there is skipped, not verified, since implementations
// disagree about it (Kafka's Java reader combines the blocks' hashes, others hash
// the whole content).
const (
	lz4Magic = 0x184D2204

	lz4Version         = 1 << 6
	lz4VersionMask     = 3 << 6
	lz4Independent     = 1 << 5
	lz4BlockChecksum   = 1 << 4
	lz4ContentSize     = 1 << 3
	lz4ContentChecksum = 1 << 2
	lz4Reserved        = 1 << 1
	lz4DictID          = 1 << 0

	lz4Stored    = 1 << 31  // a block whose bytes are not compressed
	lz4BlockSize = 64 << 10 // what Kafka's Java client writes: readers keep buffers of this size

	lz4FrameHeader = 4 + 2 + 1 // magic, FLG and BD, header checksum
)

func lz4Compress(dst, src []byte) []byte {
	blocks := (len(src) + lz4BlockSize - 1) / lz4BlockSize
	dst = slices.Grow(dst, lz4FrameHeader+4*blocks+len(src)+4)
	dst = binary.LittleEndian.AppendUint32(dst, lz4Magic)
	flags := [2]byte{lz4Version | lz4Independent, 4 << 4} // 4: blocks of 64 KiB
	dst = append(dst, flags[0], flags[1], byte(xxh32(flags[:])>>8))
	for len(src) > 0 {
		block := src[:min(len(src), lz4BlockSize)]
		src = src[len(block):]
		at := len(dst)
		dst = dst[:at+4+len(block)]
		// The destination is one byte short of the source: a block that doesn't shrink
		// fails to fit and is stored as it is.
		n, err := lz4.CompressBlock(block, dst[at+4:at+4+len(block)-1], nil)
		if err != nil || n == 0 {
			binary.LittleEndian.PutUint32(dst[at:], lz4Stored|uint32(len(block)))
			copy(dst[at+4:], block)
			continue
		}
		binary.LittleEndian.PutUint32(dst[at:], uint32(n))
		dst = dst[:at+4+n]
	}
	return binary.LittleEndian.AppendUint32(dst, 0)
}

// lz4Frame is a frame whose descriptor has been read and checked.
type lz4Frame struct {
	flags    byte
	maxBlock int
	size     uint64 // of the content, where flags say that it is known
	rest     []byte // the blocks
}

func readLZ4Frame(src []byte) (f lz4Frame, err error) {
	if len(src) < lz4FrameHeader {
		return f, damaged(LZ4, "frame of %d bytes", len(src))
	}
	if m := binary.LittleEndian.Uint32(src); m != lz4Magic {
		return f, damaged(LZ4, "starts with %#08x where a frame has %#08x", m, uint32(lz4Magic))
	}
	f.flags = src[4]
	bd := src[5]
	switch {
	case f.flags&lz4VersionMask != lz4Version:
		return f, damaged(LZ4, "frame version %d, want 1", f.flags>>6)
	case f.flags&lz4Independent == 0:
		return f, damaged(LZ4, "blocks that depend on each other, which Kafka clients can't read; write independent blocks")
	case f.flags&(lz4Reserved|lz4DictID) != 0:
		return f, damaged(LZ4, "frame flags %#02x: a dictionary or reserved bits", f.flags)
	case bd&0x8f != 0 || bd>>4 < 4:
		return f, damaged(LZ4, "block descriptor %#02x", bd)
	}
	f.maxBlock = 1 << (8 + 2*(bd>>4)) // 4: 64 KiB … 7: 4 MiB
	end := 6
	if f.flags&lz4ContentSize != 0 {
		end += 8
		if len(src) < end+1 {
			return f, damaged(LZ4, "frame descriptor cut short")
		}
		f.size = binary.LittleEndian.Uint64(src[6:])
	}
	if got, want := src[end], byte(xxh32(src[4:end])>>8); got != want {
		return f, damaged(LZ4, "frame descriptor checksum %#02x, computed %#02x", got, want)
	}
	f.rest = src[end+1:]
	return f, nil
}

// block takes the next block; data is nil at the frame's end.
func (f *lz4Frame) block() (data []byte, stored bool, err error) {
	if len(f.rest) < 4 {
		return nil, false, damaged(LZ4, "frame without an end mark")
	}
	head := binary.LittleEndian.Uint32(f.rest)
	f.rest = f.rest[4:]
	n := head &^ lz4Stored
	if head == 0 {
		if f.flags&lz4ContentChecksum != 0 {
			if len(f.rest) < 4 {
				return nil, false, damaged(LZ4, "content checksum cut short")
			}
			f.rest = f.rest[4:]
		}
		if len(f.rest) != 0 {
			return nil, false, damaged(LZ4, "%d bytes after the frame", len(f.rest))
		}
		return nil, false, nil
	}
	if n == 0 || uint64(n) > uint64(f.maxBlock) {
		return nil, false, damaged(LZ4, "block of %d bytes in a frame of at most %d", n, f.maxBlock)
	}
	need := uint64(n)
	if f.flags&lz4BlockChecksum != 0 {
		need += 4
	}
	if need > uint64(len(f.rest)) {
		return nil, false, damaged(LZ4, "block of %d bytes, %d are left", n, len(f.rest))
	}
	data, f.rest = f.rest[:n:n], f.rest[n:]
	if f.flags&lz4BlockChecksum != 0 {
		if got, want := binary.LittleEndian.Uint32(f.rest), xxh32(data); got != want {
			return nil, false, damaged(LZ4, "block checksum %#08x, computed %#08x", got, want)
		}
		f.rest = f.rest[4:]
	}
	return data, head&lz4Stored != 0, nil
}

func lz4Decompress(buf, src []byte, limit int) ([]byte, error) {
	frame, err := readLZ4Frame(src)
	if err != nil {
		return nil, err
	}
	if frame.flags&lz4ContentSize != 0 && frame.size > uint64(limit) {
		return nil, tooLargeDecompressed(LZ4, frame.size, limit)
	}

	total := 0
	for f := frame; ; {
		data, stored, err := f.block()
		if err != nil {
			return nil, err
		}
		if data == nil {
			break
		}
		n := len(data)
		if !stored {
			if n, err = lz4BlockLen(data, f.maxBlock); err != nil {
				return nil, err
			}
		}
		if n > limit-total {
			return nil, tooLargeDecompressed(LZ4, uint64(total)+uint64(n), limit)
		}
		total += n
	}
	if frame.flags&lz4ContentSize != 0 && frame.size != uint64(total) {
		return nil, damaged(LZ4, "frame holds %d bytes and claims %d", total, frame.size)
	}

	out := sized(buf, total)
	at := 0
	for f := frame; ; {
		data, stored, err := f.block()
		if err != nil {
			return nil, err
		}
		if data == nil {
			if at != total {
				return nil, damaged(LZ4, "frame expands to %d bytes, its blocks say %d", at, total)
			}
			return out, nil
		}
		if stored {
			at += copy(out[at:], data)
			continue
		}
		n, err := lz4.UncompressBlock(data, out[at:]) // the first pass saw that it fits
		if err != nil {
			return nil, damaged(LZ4, "block of %d bytes: %v", len(data), err)
		}
		at += n
	}
}

// lz4BlockLen returns the size that a block expands to, by walking its
// sequences: a block doesn't say.
func lz4BlockLen(src []byte, limit int) (int, error) {
	size := 0 // compared with limit, 4 MiB or less, after each step: never overflows
	i := 0
	length := func(n int) (int, bool) {
		if n != 15 {
			return n, true
		}
		for i < len(src) {
			b := src[i]
			i++
			n += int(b)
			if n > limit {
				return n, false
			}
			if b != 255 {
				return n, true
			}
		}
		return n, false
	}
	for i < len(src) {
		token := src[i]
		i++
		n, ok := length(int(token >> 4))
		if !ok || n > len(src)-i {
			return 0, damaged(LZ4, "literals of %d bytes or more, %d are left", n, len(src)-i)
		}
		i += n
		if size += n; size > limit {
			return 0, damaged(LZ4, "block expands to more than its %d bytes", limit)
		}
		if i == len(src) {
			break
		}
		if len(src)-i < 2 {
			return 0, damaged(LZ4, "match cut short")
		}
		offset := int(src[i]) | int(src[i+1])<<8
		i += 2
		if offset == 0 || offset > size {
			return 0, damaged(LZ4, "match from %d bytes back, %d are there", offset, size)
		}
		n, ok = length(int(token & 15))
		if !ok {
			return 0, damaged(LZ4, "match of %d bytes or more in a block of at most %d", n, limit)
		}
		if size += n + 4; size > limit {
			return 0, damaged(LZ4, "block expands to more than its %d bytes", limit)
		}
	}
	if size == 0 {
		return 0, damaged(LZ4, "block of %d bytes that holds nothing", len(src))
	}
	return size, nil
}
