package record

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy/xerial"
)

// repeating makes S2 write its "repeat the last offset" element.
func repeating() []byte {
	var out []byte
	for i := range 40 {
		out = append(out, bytes.Repeat([]byte("abcdefgh"), 20)...)
		out = append(out, byte(i))
	}
	return out
}

func TestDamagedCompression(t *testing.T) {
	t.Parallel()
	text := bytes.Repeat([]byte("compressed "), 500)
	frame := func() []byte { return lz4Compress(nil, text) }
	// header sets the LZ4 frame's flags and makes its checksum right.
	header := func(flags, blocks byte) []byte {
		out := frame()
		out[4], out[5] = flags, blocks
		out[6] = byte(xxh32(out[4:6]) >> 8)
		return out
	}
	checked := lz4Stream()(t, text) // with a content checksum
	checked[len(checked)-1] ^= 1
	if out, err := lz4Decompress(nil, checked, len(text)); err != nil || !bytes.Equal(out, text) {
		t.Errorf("a content checksum, which implementations disagree about, was verified: %v", err)
	}
	framed := func(version uint32) []byte {
		out := xerial.Encode(nil, text)
		binary.BigEndian.PutUint32(out[8:], version)
		return out
	}

	for _, c := range []struct {
		name  string
		codec Codec
		src   []byte
		text  string
	}{
		{"snappy: nothing", Snappy, nil, "without a length"},
		{"snappy: S2's repeat", Snappy, s2.Encode(nil, repeating()), "copy from 0 bytes back"},
		{"snappy: copy from before the start", Snappy, []byte{8, 0 << 2, 'x', 1 | 3<<2, 9}, "copy from 9 bytes back, 1 are there"},
		{"snappy: claims too little", Snappy, []byte{1, 1 << 2, 'x', 'y'}, "more than the 1 bytes"},
		{"snappy: claims too much", Snappy, []byte{3, 1 << 2, 'x', 'y'}, "holds 2 bytes and claims 3"},
		{"snappy: literal beyond", Snappy, []byte{100, 63 << 2, 0xff, 0xff, 0xff, 0xff, 'x'}, "literal of 4294967296 bytes, 1 are left"},
		{"snappy: literal's length cut", Snappy, []byte{100, 63 << 2, 0xff}, "literal cut short"},
		{"snappy: length of six bytes", Snappy, []byte{0x81, 0x80, 0x80, 0x80, 0x80, 0, 0 << 2, 'x'}, "without a length"},
		{"xerial: version 0", Snappy, framed(0), "version 0, at least 1"},
		{"xerial: version -1", Snappy, framed(1<<32 - 1), "version -1"},
		{"xerial: three bytes after the last chunk", Snappy, append(framed(1), 0, 0, 0), "3 bytes where a chunk's length"},
		{"lz4: nothing", LZ4, nil, "frame of 0 bytes"},
		{"lz4: magic", LZ4, append([]byte{5}, frame()[1:]...), "0x184d2204"},
		{"lz4: dependent blocks", LZ4, header(0x40, 0x40), "depend on each other"},
		{"lz4: version 2", LZ4, header(0xa0, 0x40), "version 2"},
		{"lz4: dictionary", LZ4, header(0x61, 0x40), "dictionary"},
		{"lz4: reserved flag", LZ4, header(0x62, 0x40), "reserved"},
		{"lz4: blocks of 16 KiB", LZ4, header(0x60, 0x30), "block descriptor"},
		{"lz4: descriptor checksum", LZ4, append(bytes.Clone(frame()[:6]), append([]byte{frame()[6] ^ 1}, frame()[7:]...)...), "descriptor checksum"},
		{"lz4: byte after the frame", LZ4, append(frame(), 0), "1 bytes after the frame"},
		{"lz4: two frames", LZ4, append(frame(), frame()...), "after the frame"},
		{"lz4: match from before the start", LZ4, append(frame()[:7], 5, 0, 0, 0, 0x10, 'x', 9, 0, 0, 0, 0, 0, 0), "match from 9 bytes back, 1 are there"},
		{"zstd: not a frame", Zstd, []byte("not a frame at all"), "frame header"},
		{"zstd: byte after the frame", Zstd, append(zstdRuns(1), 0), "frame header"},
		{"zstd: reserved block", Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3, 3<<1 | 1, 0, 0}, "reserved type"},
		{"zstd: block above 128 KiB", Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 8 << 3, 1<<1 | 1, 0xff, 0xff, 0}, "at most 131072"},
		{"zstd: dictionary", Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 1, 7 << 3, 5, 1, 0, 0}, "dictionary 5"},
		{"zstd: skippable frame beyond", Zstd, []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}, "4294967295 bytes, 0 are left"},
	} {
		_, err := decompress(nil, c.codec, c.src, 1<<20)
		if err == nil {
			t.Errorf("%s: taken", c.name)
			continue
		}
		t.Run(c.name, func(t *testing.T) { wantError(t, err, ErrCompressed, c.text) })
	}
}

func TestCutCompression(t *testing.T) {
	t.Parallel()
	text := repeating()
	for _, c := range codecs[1:] {
		whole, err := compress([]byte("before"), c, text)
		if err != nil || !bytes.HasPrefix(whole, []byte("before")) {
			t.Fatalf("%s: %v", c, err)
		}
		whole = whole[len("before"):]
		for n := range whole {
			if n == 0 && c == Zstd {
				continue // no frames are no bytes: the records are then missing
			}
			if out, err := decompress(nil, c, whole[:n], 1<<20); err == nil {
				t.Errorf("%s: %d of %d bytes give %d", c, n, len(whole), len(out))
			}
		}
		if out, err := decompress(nil, c, whole, len(text)); err != nil || !bytes.Equal(out, text) {
			t.Errorf("%s: %v", c, err)
		}
	}
}
