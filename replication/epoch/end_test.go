package epoch

import (
	"errors"
	"testing"
)

type unrenamed struct{ directory }

var errEnded = errors.New("the process ended")

func (unrenamed) rename(string, string) error { return errEnded }

// TestRewriteEndsBeforeTheRename: the journal that stays is whole, also one that was never started with.
func TestRewriteEndsBeforeTheRename(t *testing.T) {
	t.Parallel()
	for boots := range uint64(2) {
		dir := newMemoryDirectory()
		j, _, _, err := openJournal(dir)
		if err != nil {
			t.Fatal(err)
		}
		b, err := genesis().Encode()
		if err != nil {
			t.Fatal(err)
		}
		value := entry{kind: kindValue, payload: b}
		if err := j.append(value); err != nil {
			t.Fatal(err)
		}
		for n := range boots {
			if err := j.append(bootEntry(n + 1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		if _, err := rewriteJournal(unrenamed{dir}, []entry{bootEntry(1), value}); !errors.Is(err, errEnded) {
			t.Fatal(err)
		}
		if j, _, _, err = openJournal(dir); err != nil {
			t.Errorf("after %d starts: %v", boots, err)
			continue
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
}
