package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Keys of a topic's config; client/wire has them too.
const (
	keyRetention  = "retention"
	keyMaxBytes   = "max_bytes"
	keyMaxRecords = "max_records"
	keyKey        = "key"
	keyMaxRecord  = "max_record"
	keyWorkQueue  = "work_queue"
)

var topicKeys = []string{keyKey, keyMaxBytes, keyMaxRecord, keyMaxRecords, keyRetention, keyWorkQueue}

// MaxRecordBytes is the most that max_record may allow.
const MaxRecordBytes = 1 << 20

// KeyRule says where a plain record's key comes from when no header gives it.
type KeyRule struct {
	Kind  KeyKind
	Token int // from 1, for KeyToken
}

// KeyKind is the kind of a KeyRule.
type KeyKind uint8

const (
	// KeySubject: the whole subject, when it is longer than the topic's name.
	KeySubject KeyKind = iota
	KeyNone
	KeyToken
)

func (r KeyRule) String() string {
	switch r.Kind {
	case KeyNone:
		return "none"
	case KeyToken:
		return "token:" + strconv.Itoa(r.Token)
	}
	return "subject"
}

// TopicConfig is a topic's config, parsed. Zero limits mean none.
type TopicConfig struct {
	Retention  time.Duration
	MaxBytes   int64 // of a partition
	MaxRecords int64 // of a partition
	Key        KeyRule
	MaxRecord  int // bytes
	WorkQueue  bool
}

// ParseTopicConfig parses and checks a topic's config. Unknown keys are errors.
func ParseTopicConfig(m map[string]string) (TopicConfig, error) {
	c := TopicConfig{MaxRecord: MaxRecordBytes}
	for k, v := range m {
		var err error
		switch k {
		case keyRetention:
			c.Retention, err = ParseDuration(v)
		case keyMaxBytes:
			c.MaxBytes, err = ParseBytes(v)
		case keyMaxRecords:
			c.MaxRecords, err = strconv.ParseInt(v, 10, 64)
			if err != nil || c.MaxRecords < 0 {
				err = errors.New("allowed is a number of records, 0 for no limit")
			}
		case keyKey:
			c.Key, err = parseKeyRule(v)
		case keyMaxRecord:
			var n int64
			n, err = ParseBytes(v)
			if err == nil && (n < 1 || n > MaxRecordBytes) {
				err = errors.New("allowed is a size from 1B to 1MiB")
			}
			c.MaxRecord = int(n)
		case keyWorkQueue:
			switch v {
			case "true", "false":
				c.WorkQueue = v == "true"
			default:
				err = errors.New("allowed are true, which lets go of what every group has handled, and false")
			}
		default:
			return TopicConfig{}, fmt.Errorf("unknown config key %q, allowed are %s", k, strings.Join(topicKeys, ", "))
		}
		if err != nil {
			return TopicConfig{}, fmt.Errorf("config %s=%q: %w", k, v, err)
		}
	}
	return c, nil
}

func parseKeyRule(v string) (KeyRule, error) {
	switch {
	case v == "subject":
		return KeyRule{Kind: KeySubject}, nil
	case v == "none":
		return KeyRule{Kind: KeyNone}, nil
	case strings.HasPrefix(v, "token:"):
		n, err := strconv.Atoi(v[len("token:"):])
		if err == nil && n >= 1 && n <= 64 {
			return KeyRule{Kind: KeyToken, Token: n}, nil
		}
	}
	return KeyRule{}, errors.New("allowed are subject, none and token:N with N from 1 to 64")
}

// ParseDuration parses a duration with units up to days and weeks: 7d, 12h, 1d12h, 0.
func ParseDuration(s string) (time.Duration, error) {
	bad := errors.New("allowed is a duration like 7d, 12h, 30m or 90s, and 0 for no limit")
	if s == "0" {
		return 0, nil
	}
	var total time.Duration
	for s != "" {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		j := i
		for j < len(s) && (s[j] < '0' || s[j] > '9') {
			j++
		}
		n, err := strconv.ParseInt(s[:i], 10, 64)
		if err != nil {
			return 0, bad
		}
		unit, ok := durationUnits[s[i:j]]
		if !ok || n > (math.MaxInt64-int64(total))/int64(unit) {
			return 0, bad
		}
		total += time.Duration(n) * unit
		if s = s[j:]; s == "" {
			return total, nil
		}
	}
	return 0, bad
}

var durationUnits = map[string]time.Duration{
	"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour,
	"d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
}

// ParseBytes parses a size: 10GiB, 1MiB, 64KB, 4096.
func ParseBytes(s string) (int64, error) {
	bad := errors.New("allowed is a size like 10GiB, 512MiB or 1000000, and 0 for no limit")
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseInt(s[:i], 10, 64)
	if err != nil {
		return 0, bad
	}
	unit, ok := byteUnits[strings.ToLower(strings.TrimSpace(s[i:]))]
	if !ok || n > math.MaxInt64/unit {
		return 0, bad
	}
	return n * unit, nil
}

var byteUnits = map[string]int64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1000,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1000 * 1000,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1000 * 1000 * 1000,
	"t": 1 << 40, "tib": 1 << 40, "tb": 1000 * 1000 * 1000 * 1000,
}

// sortedKeys of a topic's config.
func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
