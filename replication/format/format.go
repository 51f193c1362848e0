// Package format tells what a newer program wrote from what is damaged. Both can't be read; but the one is whole,
// and nothing about it may be cut off, mended, or replaced by what others have.
//
// The rule for whoever changes bytes on disk or on the wire: each kind of bytes begins with a version, or has its kinds and
// flags checked; what isn't known, under a checksum that is right, is an error of this package. Fields are
// added under a new version only.
package format

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNewer is what a *NewerError is.
var ErrNewer = errors.New("written by a newer parleyd")

// NewerError says what a newer program wrote. By names what differs: a format, a kind, a feature level.
type NewerError struct {
	What, By     string
	Found, Known uint64
}

// Newer makes a *NewerError.
func Newer(what, by string, found, known uint64) error {
	return &NewerError{What: what, By: by, Found: found, Known: known}
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("%s was written by a newer parleyd (%s %d, this program knows up to %d): it is not damaged, start the newer program", e.What, e.By, e.Found, e.Known)
}

// Is makes it an ErrNewer.
func (e *NewerError) Is(target error) bool { return target == ErrNewer }

// Text reads the version of what begins with a line of text that ends in it, such as "PARLEY EPOCHS 2\n": before is
// what comes before the number.
func Text(b []byte, before string) (version uint64, ok bool) {
	rest, ok := strings.CutPrefix(string(b), before)
	if !ok {
		return 0, false
	}
	line, _, ok := strings.Cut(rest, "\n")
	if !ok {
		return 0, false
	}
	version, err := strconv.ParseUint(line, 10, 32)
	return version, err == nil
}

// Corrupt marks an error as damage, unless a newer program is the reason.
func Corrupt(damage, err error) error {
	if err == nil || errors.Is(err, ErrNewer) {
		return err
	}
	return fmt.Errorf("%w: %w", damage, err)
}
