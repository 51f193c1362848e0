package partition

import (
	"errors"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

// TestMarksOfAllVersions: what earlier versions wrote is read, and nothing else is taken for a mark.
func TestMarksOfAllVersions(t *testing.T) {
	t.Parallel()
	const offset, logTime, before, chain = 7, 1000, 300, 0xfeed
	whole := mark{offset: offset, logTime: logTime, before: before, ids: true, chained: true, chain: chain}
	now := whole.entry()
	plain := mark{offset: offset, logTime: logTime, before: before}
	for _, x := range []struct {
		name  string
		value []byte
		want  mark
	}{
		{"whole", now.Value, whole},
		{"without a chain", plain.entry().Value, plain},
		{"first version, no message ids", now.Value[:16], plain},
		{"first version, message ids", append(now.Value[:16:16], 1), mark{offset: offset, logTime: logTime, before: before, ids: true}},
	} {
		if got, err := parseMark(now.Key, x.value); err != nil || got != x.want {
			t.Errorf("%s: %+v, %v, want %+v", x.name, got, err, x.want)
		}
	}
	for name, value := range map[string][]byte{
		"cut short": now.Value[:15], "a chain that is cut": now.Value[:24], "a chain that is missing": now.Value[:17],
		"a chain that no flag tells of": append(append(now.Value[:16:16], 1), now.Value[17:]...), "nothing": nil,
	} {
		if _, err := parseMark(now.Key, value); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
