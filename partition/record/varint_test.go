package record

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
)

func TestVarint(t *testing.T) {
	t.Parallel()
	values := []int64{0, 1, -1, 63, 64, -64, -65, 8191, 8192, math.MaxInt32, math.MinInt32, math.MaxInt32 + 1, math.MinInt32 - 1, math.MaxInt64, math.MinInt64}
	for shift := range 63 {
		values = append(values, 1<<shift, -1<<shift, 1<<shift-1)
	}
	for _, v := range values {
		want := binary.AppendVarint([]byte{0xaa}, v)
		got := appendVarint([]byte{0xaa}, v)
		if !bytes.Equal(got, want) || varintLen(v) != len(want)-1 {
			t.Fatalf("%d: %x of length %d, want %x", v, got, varintLen(v), want)
		}
		if back, end := varint64(got, 1); back != v || end != len(got) {
			t.Fatalf("%d comes back as %d, ends at %d", v, back, end)
		}
		back, end := varint32(got, 1)
		if fits := v == int64(int32(v)); fits != (end == len(got)) || fits && int64(back) != v || !fits && end != 0 {
			t.Fatalf("%d comes back from 32 bits as %d, ends at %d", v, back, end)
		}
		for n := 1; n < len(got); n++ {
			if _, end := varint64(got[:n], 1); end != 0 {
				t.Fatalf("%d: %x is cut short and taken", v, got[:n])
			}
		}
	}
	for name, b := range map[string][]byte{
		"65 bits":   {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02},
		"11 bytes":  {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00},
		"no end":    bytes.Repeat([]byte{0xff}, 20),
		"from past": nil,
	} {
		if v, end := varint64(b, 0); end != 0 {
			t.Errorf("%s: %d, ends at %d", name, v, end)
		}
	}
	// Longer than needed, but within five bytes: other readers take it too.
	if v, end := varint32([]byte{0x82, 0x80, 0x80, 0x80, 0x00}, 0); v != 1 || end != 5 {
		t.Errorf("%d, ends at %d", v, end)
	}
	if _, end := varint32([]byte{0x82, 0x80, 0x80, 0x80, 0x80, 0x00}, 0); end != 0 {
		t.Error("six bytes for 32 bits were taken")
	}
}
