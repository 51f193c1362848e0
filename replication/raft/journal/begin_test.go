package journal

import (
	"errors"
	"strings"
	"testing"
)

// TestBeginnings: a journal that nobody named yet is begun anew, and one that has lost all its segments is refused.
func TestBeginnings(t *testing.T) {
	t.Parallel()
	begun := newDisk()
	if _, err := perform(begun, nil); err != nil {
		t.Fatal(err)
	}
	c := begun.copy()
	for name := range c.names {
		if strings.HasSuffix(name, segmentSuffix) {
			delete(c.names, name)
		}
	}
	if _, err := Open("/j", testOptions(c)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "no segment") {
		t.Errorf("without segments: %v", err)
	}
	c = begun.copy()
	delete(c.names, "/j/"+identityFile)
	clear(c.names["/j/0000000000000001"+segmentSuffix].data[segmentHeader:]) // whoever ends in order says so there
	if n, err := perform(c, nil); err != nil {
		t.Errorf("a beginning that wasn't named: %d, %v", n, err)
	}
	if _, err := perform(c, nil); err != nil {
		t.Errorf("and opened again: %v", err)
	}
	full := newDisk()
	_, steps := filled(t, 3, true)
	if _, err := perform(full, steps[:1]); err != nil {
		t.Fatal(err)
	}
	delete(full.names, "/j/"+identityFile)
	if _, err := Open("/j", testOptions(full)); !errors.Is(err, ErrDamaged) {
		t.Errorf("records, and no name: %v", err)
	}
}
