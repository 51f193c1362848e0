package record

import (
	"testing"

	"github.com/pierrec/lz4/v4"
)

// Values of org.apache.kafka.common.utils.UtilsTest.testMurmur2, and of the Java
// method for one to five digits.
func TestMurmur2(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc":   479470107,
		"1":     -1993445489,
		"12":    126087238,
		"123":   -267702483,
		"1234":  -1614185708,
		"12345": -1188365604,
	} {
		if got := int32(Murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestPartitionOf(t *testing.T) {
	t.Parallel()
	// toPositive(h) % n, as DefaultPartitioner does it: the sign bit is dropped, the
	// value is not negated.
	if got, want := PartitionOf([]byte("21"), 1024), int32((-973932308&0x7fffffff)%1024); got != want {
		t.Errorf("partition %d, want %d", got, want)
	}
	if got, want := PartitionOf([]byte("abc"), 7), int32(479470107%7); got != want {
		t.Errorf("partition %d, want %d", got, want)
	}
	for n := int32(1); n < 50; n++ {
		for _, key := range []string{"", "a", "foobar", "21"} {
			if p := PartitionOf([]byte(key), n); p < 0 || p >= n {
				t.Errorf("partition of %q is %d of %d", key, p, n)
			}
		}
	}
}

func TestXXH32(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint32{"": 0x02CC5D05, "a": 0x550D7456, "abc": 0x32D153FF} {
		if got := xxh32([]byte(in)); got != want {
			t.Errorf("xxh32(%q) = %#x, want %#x", in, got, want)
		}
	}
	// Longer inputs against the block checksums of the LZ4 library.
	src := make([]byte, 5000)
	for i := range src {
		src[i] = byte(i * i >> 3)
	}
	encode := lz4Stream(lz4.BlockChecksumOption(true), lz4.BlockSizeOption(lz4.Block64Kb))
	for n := 1; n < len(src); n += 37 {
		if _, err := lz4Decompress(nil, encode(t, src[:n]), len(src)); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestCodecNames(t *testing.T) {
	t.Parallel()
	for _, c := range codecs {
		if got, err := ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("ParseCodec(%q) = %v, %v", c.String(), got, err)
		}
	}
	for _, name := range []string{"gzip", "", "brotli", "ZSTD"} {
		_, err := ParseCodec(name)
		wantError(t, err, ErrUnsupportedCodec, "none, snappy, lz4 or zstd")
	}
}
