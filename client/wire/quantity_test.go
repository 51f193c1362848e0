package wire

import (
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "17B": 17, "1KiB": 1024, "1kib": 1024, "1KB": 1000, "10 GiB": 10 << 30,
		"1.5GiB": 3 << 29, "2TiB": 2 << 40, " 1MiB ": 1 << 20, "0.5KiB": 512,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "B", "KiB", "-1", "-1KiB", "1e9", "inf", "NaN", "1XB", "1.2.3", "9223372036854775808", "9000000TiB", "0x10", "1_000"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestParseAge(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "12h": 12 * time.Hour, "7d": 168 * time.Hour, "2w": 336 * time.Hour,
		"1w2d3h": 9*24*time.Hour + 3*time.Hour, "1.5h": 90 * time.Minute, "100ms": 100 * time.Millisecond,
	} {
		if got, err := ParseAge(in); err != nil || got != want {
			t.Errorf("ParseAge(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "d", "-1h", "7", "1d-2h", "1.5d", "2d1w", "x", "99999999999w", "106751d24h"} {
		if got, err := ParseAge(in); err == nil {
			t.Errorf("ParseAge(%q) = %v; want an error", in, got)
		}
	}
}

func TestFormatReadsBack(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, 1, 1023, 1024, 1536, 1 << 20, 10 << 30, 3 << 40} {
		if got, err := ParseSize(FormatSize(n)); err != nil || got != n {
			t.Errorf("%d -> %q -> %d, %v", n, FormatSize(n), got, err)
		}
	}
	for _, d := range []time.Duration{0, time.Second, 12 * time.Hour, 90 * time.Minute, 7 * 24 * time.Hour, 10 * time.Second} {
		if got, err := ParseAge(FormatAge(d)); err != nil || got != d {
			t.Errorf("%v -> %q -> %v, %v", d, FormatAge(d), got, err)
		}
	}
}
