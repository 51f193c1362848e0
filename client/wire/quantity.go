package wire

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Sizes and ages as people write them: in a topic's config, in flags and in
// the broker's configuration file.

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	// Longest names first: "KiB" ends in "B" too.
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// ParseSize reads a number of bytes: a whole or decimal number, then B, KB, MB,
// GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024) or nothing.
// Letters count without case.
func ParseSize(s string) (int64, error) {
	text, unit := strings.TrimSpace(s), int64(1)
	for _, u := range sizeUnits {
		if n := len(text) - len(u.name); n > 0 && strings.EqualFold(text[n:], u.name) {
			text, unit = strings.TrimSpace(text[:n]), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		if n > math.MaxInt64/unit {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return n * unit, nil
	}
	if strings.Trim(text, "0123456789.") != "" {
		// Excludes what ParseFloat would take beyond plain decimals: 1e9, inf, -1.
		return 0, fmt.Errorf("size %q: want a number of bytes such as 4096, 512KiB or 1.5GiB", s)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: want a number of bytes such as 4096, 512KiB or 1.5GiB", s)
	}
	if f*float64(unit) >= math.MaxInt64 {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return int64(f * float64(unit)), nil
}

// FormatSize writes bytes in the largest binary unit, exact when it divides,
// else with one decimal: 1GiB, 1.5KiB, 17B.
func FormatSize(n int64) string {
	for _, u := range sizeUnits[:4] {
		if n >= u.bytes || n <= -u.bytes {
			if n%u.bytes == 0 {
				return strconv.FormatInt(n/u.bytes, 10) + u.name
			}
			return strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// ParseAge reads a span of time that isn't negative: what time.ParseDuration
// takes, and days and weeks (7d, 2w, 1d12h). A bare 0 is zero.
func ParseAge(s string) (time.Duration, error) {
	bad := func() (time.Duration, error) {
		return 0, fmt.Errorf("duration %q: want a span such as 90s, 12h, 7d or 2w", s)
	}
	rest := strings.TrimSpace(s)
	if rest == "" || strings.ContainsAny(rest, "+-") {
		return bad()
	}
	var total time.Duration
	for _, u := range []struct {
		letter byte
		span   time.Duration
	}{{'w', 7 * 24 * time.Hour}, {'d', 24 * time.Hour}} {
		i := strings.IndexByte(rest, u.letter)
		if i < 0 {
			continue
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		if err != nil {
			return bad()
		}
		if n > int64((math.MaxInt64-total)/u.span) {
			return 0, fmt.Errorf("duration %q is too long", s)
		}
		total += time.Duration(n) * u.span
		if rest = rest[i+1:]; rest == "" {
			return total, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil {
		return bad()
	}
	if d > math.MaxInt64-total {
		return 0, fmt.Errorf("duration %q is too long", s)
	}
	return total + d, nil
}

// FormatAge writes a duration so that ParseAge reads it back: whole days as 7d.
func FormatAge(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String()
	// 12h0m0s reads worse than 12h and means the same.
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
