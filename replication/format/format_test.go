package format

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestNewer(t *testing.T) {
	t.Parallel()
	damage := errors.New("damaged")
	err := fmt.Errorf("open: %w", Newer("the file f", "format", 3, 2))
	for _, text := range []string{"open: the file f", "newer parleyd", "format 3", "up to 2", "start the newer program"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q lacks %q", err, text)
		}
	}
	if !errors.Is(err, ErrNewer) || errors.Is(Corrupt(damage, err), damage) || !errors.Is(Corrupt(damage, err), ErrNewer) {
		t.Errorf("%v is taken for damage", err)
	}
	if err := Corrupt(damage, errors.New("x")); !errors.Is(err, damage) || errors.Is(err, ErrNewer) {
		t.Errorf("%v is no damage", err)
	}
	if Corrupt(damage, nil) != nil {
		t.Error("nothing is damage")
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint64{"PARLEY X 1\n": 1, "PARLEY X 12\n\x00\x00": 12, "PARLEY X \n": 0, "PARLEY X 1": 0, "PARLEY Y 1\n": 0, "": 0, "PARLEY X -1\n": 0, "PARLEY X 99999999999\n": 0} {
		v, ok := Text([]byte(text), "PARLEY X ")
		if ok != (want > 0) || ok && v != want {
			t.Errorf("%q: %d %v, want %d", text, v, ok, want)
		}
	}
}
