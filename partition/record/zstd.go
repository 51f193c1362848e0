package record

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// zstdMaxWindow is the window that RFC 8878 asks every decoder to support. A
	// larger one helps no batch within the limits, and would cost each consumer
	// that decodes as a stream that much memory. The zstd tool's levels up to 19 stay
	// within it.
	zstdMaxWindow = 8 << 20

	// zstdWindow is what we write: large enough for most batches whole, and it
	// bounds an encoder's memory.
	zstdWindow = 256 << 10

	zstdMaxBlock  = 128 << 10
	zstdOverAlloc = 16 // slack behind the output lets the decoder use its fast copies
)

// Encoders and decoders are used one call at a time (concurrency 1: they start no
// goroutines) and left to the garbage collector when idle.
var (
	zstdEncoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil,
			zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true),
			zstd.WithWindowSize(zstdWindow),
			zstd.WithEncoderLevel(zstd.SpeedDefault),
			zstd.WithEncoderCRC(false)) // the batch has its own CRC
		if err != nil {
			return err
		}
		return e
	}}
	zstdDecoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(1<<31), // zstdBound checks it, and against the batch's own limit
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return err
		}
		return d
	}}
)

func zstdCompress(dst, src []byte) ([]byte, error) {
	v := zstdEncoders.Get()
	e, ok := v.(*zstd.Encoder)
	if !ok {
		return dst, v.(error)
	}
	defer zstdEncoders.Put(e)
	return e.EncodeAll(src, slices.Grow(dst, e.MaxEncodedSize(len(src)))), nil
}

func zstdDecompress(buf, src []byte, limit int) ([]byte, error) {
	bound, err := zstdBound(src, limit)
	if err != nil {
		return nil, err
	}
	v := zstdDecoders.Get()
	d, ok := v.(*zstd.Decoder)
	if !ok {
		return nil, v.(error)
	}
	defer zstdDecoders.Put(d)
	// The decoder stops after the block that leaves this room. On that block it may
	// have grown its output once: a frame whose blocks don't say what they hold takes
	// up to two and a half times the limit for a moment, never more.
	out, err := d.DecodeAll(src, sized(buf, bound+zstdOverAlloc)[:0])
	switch {
	case err == nil && len(out) > limit, err != nil && bound == limit && len(out) > limit-zstdMaxBlock:
		// Out of room within the last block that could fit. The decoder has several
		// errors for that, some shared with damage.
		return nil, fmt.Errorf("%w: %s records, at most %d bytes are allowed", ErrDecompressedTooLarge, Zstd, limit)
	case err != nil:
		return nil, damaged(Zstd, "%v", err)
	}
	return out, nil
}

// zstdBound returns how many bytes src can expand to at most, and not more than
// limit, by walking the headers of its frames and blocks. A frame may say its
// size; where it does, it can't claim more than its blocks could hold.
func zstdBound(src []byte, limit int) (int, error) {
	total := 0
	for len(src) > 0 {
		var h zstd.Header
		if err := h.Decode(src); err != nil {
			return 0, damaged(Zstd, "frame header: %v", err)
		}
		src = src[h.HeaderSize:]
		if h.Skippable {
			if uint64(h.SkippableSize) > uint64(len(src)) {
				return 0, damaged(Zstd, "skippable frame of %d bytes, %d are left", h.SkippableSize, len(src))
			}
			src = src[h.SkippableSize:]
			continue
		}
		if h.DictionaryID != 0 {
			return 0, damaged(Zstd, "dictionary %d, none is supported", h.DictionaryID)
		}
		if !h.SingleSegment && h.WindowSize > zstdMaxWindow {
			return 0, damaged(Zstd, "window of %d bytes, at most %d are allowed: use a lower level", h.WindowSize, zstdMaxWindow)
		}
		if h.HasFCS && h.FrameContentSize > uint64(limit-total) {
			return 0, tooLargeDecompressed(Zstd, uint64(total)+h.FrameContentSize, limit)
		}
		least, most, rest, err := zstdBlocks(src)
		if err != nil {
			return 0, err
		}
		if least > uint64(limit-total) {
			return 0, tooLargeDecompressed(Zstd, uint64(total)+least, limit)
		}
		src = rest
		if h.HasCheckSum {
			if len(src) < 4 {
				return 0, damaged(Zstd, "checksum cut short")
			}
			src = src[4:]
		}
		switch {
		case !h.HasFCS:
			total += int(min(most, uint64(limit-total)))
		case h.FrameContentSize < least || h.FrameContentSize > most:
			return 0, damaged(Zstd, "frame claims %d bytes, its blocks hold %d to %d", h.FrameContentSize, least, most)
		default:
			total += int(h.FrameContentSize)
		}
	}
	return total, nil
}

// zstdBlocks walks the blocks of a frame and returns how many bytes they expand to,
// at least and at most: only a compressed block doesn't say.
func zstdBlocks(src []byte) (least, most uint64, rest []byte, err error) {
	for {
		if len(src) < 3 {
			return 0, 0, nil, damaged(Zstd, "frame cut short")
		}
		head := uint32(src[0]) | uint32(src[1])<<8 | uint32(src[2])<<16
		src = src[3:]
		last, size := head&1 != 0, int(head>>3)
		if size > zstdMaxBlock {
			return 0, 0, nil, damaged(Zstd, "block of %d bytes, at most %d are allowed", size, zstdMaxBlock)
		}
		stored := size
		switch head >> 1 & 3 {
		case 0: // raw
			least += uint64(size)
			most += uint64(size)
		case 1: // one byte, repeated
			least += uint64(size)
			most += uint64(size)
			stored = 1
		case 2: // compressed
			most += zstdMaxBlock
		default:
			return 0, 0, nil, damaged(Zstd, "block of the reserved type")
		}
		if stored > len(src) {
			return 0, 0, nil, damaged(Zstd, "block of %d bytes, %d are left", stored, len(src))
		}
		src = src[stored:]
		if last {
			return least, most, src, nil
		}
	}
}
