package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Badger always picks the file with the most garbage. One that must not be
// collected, because it is damaged, would keep all others from being looked at.
// So its garbage is hidden: taken out of the table in which Badger counts it, and
// put back before the next look. Badger has no call for that; but the table is a
// shared memory map, so writing to the file changes what Badger sees. Should Badger count
// at the same instant, the count is off by that much, and nothing else.

// hide takes a file's garbage out of Badger's sight. It returns false if there
// is none.
func (e *Engine) hide(file uint32) (bool, error) {
	had := uint64(0)
	err := e.changeDiscards(file, func(n uint64) uint64 {
		had = n
		return 0
	})
	if err != nil || had == 0 {
		return false, err
	}
	if e.hidden == nil {
		e.hidden = make(map[uint32]uint64)
	}
	e.hidden[file] += had
	return true, nil
}

// unhide puts back what hide has taken.
func (e *Engine) unhide() error {
	for file, n := range e.hidden {
		if err := e.changeDiscards(file, func(more uint64) uint64 { return n + more }); err != nil {
			return err
		}
	}
	clear(e.hidden)
	return nil
}

// changeDiscards changes how much garbage Badger counts in a file, if it is in
// its table: pairs of file number and bytes, 8 each, up to the first number 0.
func (e *Engine) changeDiscards(file uint32, change func(uint64) uint64) (err error) {
	f, err := os.OpenFile(filepath.Join(e.files, badgerDiscard), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("hide garbage of a damaged file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var pair [16]byte
	for at := int64(0); ; at += int64(len(pair)) {
		if _, err := f.ReadAt(pair[:], at); err != nil {
			return nil // the end: it isn't there
		}
		switch binary.BigEndian.Uint64(pair[:]) {
		case uint64(file):
			binary.BigEndian.PutUint64(pair[8:], change(binary.BigEndian.Uint64(pair[8:])))
			_, err := f.WriteAt(pair[8:], at+8)
			return err
		case 0:
			return nil
		}
	}
}
