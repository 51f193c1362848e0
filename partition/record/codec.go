package record

import (
	"fmt"
	"slices"
)

// A Codec says how the records of a batch are compressed. The numbers are the
// format's.
type Codec int8

const (
	None   Codec = 0
	Gzip   Codec = 1 // recognised, so that the refusal can name it; not supported
	Snappy Codec = 2
	LZ4    Codec = 3
	Zstd   Codec = 4
)

var codecNames = [...]string{None: "none", Gzip: "gzip", Snappy: "snappy", LZ4: "lz4", Zstd: "zstd"}

func (c Codec) String() string {
	if c >= 0 && int(c) < len(codecNames) {
		return codecNames[c]
	}
	return fmt.Sprintf("codec(%d)", int8(c))
}

// Supported says whether batches of this codec are read and written.
func (c Codec) Supported() bool {
	return c == None || c == Snappy || c == LZ4 || c == Zstd
}

func (c Codec) check() error {
	if c.Supported() {
		return nil
	}
	return fmt.Errorf("%w %s: use none, snappy, lz4 or zstd", ErrUnsupportedCodec, c)
}

// ParseCodec reads a codec's name as String writes it. It returns
// ErrUnsupportedCodec for gzip and for names it doesn't know.
func ParseCodec(name string) (Codec, error) {
	i := slices.Index(codecNames[:], name)
	if i < 0 {
		return None, fmt.Errorf("%w %q: use none, snappy, lz4 or zstd", ErrUnsupportedCodec, name)
	}
	c := Codec(i)
	return c, c.check()
}

// compress appends src, compressed, to dst. It may leave dst longer than src
// would have been.
func compress(dst []byte, c Codec, src []byte) ([]byte, error) {
	switch c {
	case Snappy:
		return snappyCompress(dst, src), nil
	case LZ4:
		return lz4Compress(dst, src), nil
	case Zstd:
		return zstdCompress(dst, src)
	}
	return dst, c.check()
}

// decompress returns what src expands to, in buf's memory where that is large
// enough. It finds out how large the result is, or can be at most, before it takes
// memory, and fails with ErrDecompressedTooLarge beyond limit.
func decompress(buf []byte, c Codec, src []byte, limit int) ([]byte, error) {
	switch c {
	case Snappy:
		return snappyDecompress(buf, src, limit)
	case LZ4:
		return lz4Decompress(buf, src, limit)
	case Zstd:
		return zstdDecompress(buf, src, limit)
	}
	return nil, c.check()
}

// sized returns a slice of length n, in buf's memory where that is large enough.
func sized(buf []byte, n int) []byte {
	if cap(buf) >= n {
		return buf[:n]
	}
	return make([]byte, n)
}

func tooLargeDecompressed(c Codec, n uint64, limit int) error {
	return fmt.Errorf("%w: %s records take %d bytes, at most %d are allowed", ErrDecompressedTooLarge, c, n, limit)
}

func damaged(c Codec, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrCompressed, c, fmt.Sprintf(format, args...))
}
