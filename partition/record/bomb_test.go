package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// taken returns how much memory f allocates, in bytes. Its callers don't run in
// parallel: nothing else allocates meanwhile.
func taken(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// zstdRuns is a frame of blocks that each repeat one byte 128 Ki times: 4 bytes
// for 131072.
func zstdRuns(blocks int) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3} // no content size; window of 128 KiB
	for i := range blocks {
		head := uint32(128<<10)<<3 | 1<<1
		if i == blocks-1 {
			head |= 1
		}
		out = append(out, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return out
}

// zstdClaim is a frame whose header claims a size and whose only block holds n
// bytes.
func zstdClaim(size uint64, n int) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 3<<6 | 1<<5} // content size of 8 bytes, single segment
	out = binary.LittleEndian.AppendUint64(out, size)
	head := uint32(n)<<3 | 1
	out = append(out, byte(head), byte(head>>8), byte(head>>16))
	return append(out, make([]byte, n)...)
}

// lz4Claim is a frame of 5 bytes that claims another size.
func lz4Claim(t testing.TB, size uint64) []byte {
	out := lz4Stream(lz4.SizeOption(5))(t, []byte("small"))
	binary.LittleEndian.PutUint64(out[6:], size)
	out[14] = byte(xxh32(out[4:14]) >> 8)
	return out
}

// Bombs are refused for what they would expand to, before that memory is taken.
func TestBombs(t *testing.T) {
	const (
		limit = 8 << 20
		small = 64 << 10 // errors and messages
	)
	zeros := make([]byte, 64<<20)
	zstdZeros := zstdStream()(t, zeros)
	snappyClaim := func(size uint64) []byte {
		return append(binary.AppendUvarint(nil, size), 0<<2, 'x')
	}
	xerialHead := []byte(xerialMagic + "\x00\x00\x00\x01\x00\x00\x00\x01")
	xerialOf := func(chunks ...[]byte) []byte {
		out := bytes.Clone(xerialHead)
		for _, c := range chunks {
			out = binary.BigEndian.AppendUint32(out, uint32(len(c)))
			out = append(out, c...)
		}
		return out
	}
	half := s2.EncodeSnappy(nil, zeros[:5<<20])

	for _, c := range []struct {
		name  string
		codec Codec
		src   []byte
		want  error
		most  uint64 // bytes taken
	}{
		{"snappy: zeros", Snappy, s2.EncodeSnappy(nil, zeros), ErrDecompressedTooLarge, small},
		{"snappy: zeros in xerial chunks", Snappy, xerial.Encode(nil, zeros), ErrDecompressedTooLarge, small},
		{"snappy: two chunks, each within the limit", Snappy, xerialOf(half, half), ErrDecompressedTooLarge, small},
		{"snappy: claims 4 GiB", Snappy, snappyClaim(1<<32 - 1), ErrDecompressedTooLarge, small},
		{"snappy: claims 2^63", Snappy, snappyClaim(1 << 63), ErrCompressed, small},
		{"snappy: claims what is allowed and holds a byte", Snappy, snappyClaim(limit), ErrCompressed, small},
		{"snappy: chunk claims what is allowed", Snappy, xerialOf(snappyClaim(limit)), ErrCompressed, small},
		{"snappy: chunk of 4 GiB", Snappy, append(bytes.Clone(xerialHead), 0xff, 0xff, 0xff, 0xff, 0), ErrCompressed, small},
		{"lz4: zeros", LZ4, lz4Stream()(t, zeros), ErrDecompressedTooLarge, small},
		{"lz4: zeros in small blocks", LZ4, lz4Stream(lz4.BlockSizeOption(lz4.Block64Kb))(t, zeros), ErrDecompressedTooLarge, small},
		{"lz4: claims 1 TiB", LZ4, lz4Claim(t, 1<<40), ErrDecompressedTooLarge, small},
		{"lz4: claims what is allowed and holds 5 bytes", LZ4, lz4Claim(t, limit), ErrCompressed, small},
		{"zstd: runs of 1 GiB", Zstd, zstdRuns(8192), ErrDecompressedTooLarge, small},
		{"zstd: one run above the limit", Zstd, zstdRuns(limit/(128<<10) + 1), ErrDecompressedTooLarge, small},
		{"zstd: many frames", Zstd, bytes.Repeat(zstdRuns(33), 300), ErrDecompressedTooLarge, small},
		{"zstd: claims 2^60", Zstd, zstdClaim(1<<60, 1), ErrDecompressedTooLarge, small},
		{"zstd: claims what is allowed and holds a byte", Zstd, zstdClaim(limit, 1), ErrCompressed, small},
		{"zstd: claims less than it holds", Zstd, zstdClaim(10, 1000), ErrCompressed, small},
		{"zstd: window of 64 MiB", Zstd, zstdStream(zstd.WithWindowSize(64<<20))(t, zeros), ErrCompressed, small},
		// Compressed blocks don't say what they hold: these are decoded up to the limit,
		// and the output may be grown once on the way (the decoder without assembly does).
		{"zstd: zeros as a stream", Zstd, zstdZeros, ErrDecompressedTooLarge, limit * 5 / 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			rs := []Record{{}}
			b := Batch(kafkaBatch(rs, c.codec, NoProducer, c.src))
			lim := Limits{MaxBatchBytes: 64 << 20, MaxDecompressedBytes: limit}
			var ck Checker
			var it Iterator
			if err := ck.Check(smallBatch(t, c.codec), lim); err != nil { // warms the codec's pool
				t.Fatal(err)
			}
			if c.codec == Zstd {
				// The decoder's own buffers, not the bomb's.
				if _, err := zstdDecompress(nil, zstdZeros, 1<<20); !errors.Is(err, ErrDecompressedTooLarge) {
					t.Fatal(err)
				}
			}
			var err error
			n := taken(func() { err = ck.Check(b, lim) })
			wantError(t, err, c.want, "")
			if n > c.most+raceSlack {
				t.Errorf("check took %d bytes for %d, at most %d", n, len(b), c.most)
			}
			n = taken(func() { err = it.Reset(b, lim) })
			wantError(t, err, c.want, "")
			if n > c.most+raceSlack {
				t.Errorf("iterator took %d bytes for %d, at most %d", n, len(b), c.most)
			}
		})
	}
}

// Empty headers take 2 bytes each in a batch and 48 in memory.
func TestHeaderBomb(t *testing.T) {
	n := 500_000
	r := join([]byte{0, 0, 0, 1, 1}, appendVarint(nil, int64(n)), make([]byte, 2*n))
	b := Batch(kafkaBatch([]Record{{}}, None, NoProducer, body(r...)))
	var ck Checker
	var err error
	used := taken(func() {
		err = ck.CheckRecords(b, Limits{}, func(int, *Record) error { return nil })
	})
	wantError(t, err, ErrTooManyHeaders, "500000, at most 4096")
	if used > 64<<10 {
		t.Errorf("took %d bytes", used)
	}
}

// What the limits allow is still bounded by them, whatever the batch says.
func TestFullSizeRecordsAreTaken(t *testing.T) {
	const limit = 1 << 20
	record := body(join([]byte{0, 0, 0, 1}, appendVarint(nil, limit-100), make([]byte, limit-100), []byte{0})...)
	for _, e := range encodings {
		if e.codec == None {
			continue
		}
		b := Batch(kafkaBatch([]Record{{}}, e.codec, NoProducer, e.encode(t, record)))
		lim := Limits{MaxDecompressedBytes: len(record), MaxBatchBytes: 2 << 20}
		if err := b.Check(lim); err != nil {
			t.Errorf("%s: exactly at the limit: %v", e.name, err)
		}
		lim.MaxDecompressedBytes--
		wantError(t, b.Check(lim), ErrDecompressedTooLarge, "at most")
	}
}
