package epoch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
)

// A journal that was cut looks like one that never went further: an entry without its marker at the end was never
// promised to anybody. Cut at an older entry, it has forgotten promises and votes, which an acceptor must not. So a file
// beside it says how far it went. It is written after an entry's marker is on disk and before anybody is told. It isn't
// synced each time: to the process's own end it is exact, a power cut may leave an older one.
//
// It holds two notes, in pages of their own, written in turn:
//
//	0  text "PRLYEPE1"
//	8  number of the note           uint64, rising
//	16 start that the journal is of uint64
//	24 how long the journal is      uint64; 0 while it is being rewritten
//	32 zeros                        28 bytes
//	60 CRC-32C of the 60 bytes before
//
// A journal whose last start is a later one than the note's was written by a program that knows of no such file.
const (
	endName  = "end"
	endText  = "PRLYEPE1"
	endPage  = 4096
	endBytes = 2 * endPage
)

type ending struct {
	number, boot uint64
	size         int64
}

func (e ending) encode() []byte {
	b := make([]byte, block)
	copy(b, endText)
	binary.LittleEndian.PutUint64(b[8:], e.number)
	binary.LittleEndian.PutUint64(b[16:], e.boot)
	binary.LittleEndian.PutUint64(b[24:], uint64(e.size))
	binary.LittleEndian.PutUint32(b[block-4:], checksum(b[:block-4]))
	return b
}

// readEnding reads the newest note; good is how many of the two can be read.
func readEnding(dir directory) (e ending, there bool, good int, err error) {
	b, err := dir.read(endName)
	if errors.Is(err, fs.ErrNotExist) {
		return e, false, 0, nil
	}
	if err != nil {
		return e, false, 0, fmt.Errorf("read end of epoch journal: %w", err)
	}
	for at := 0; at+block <= len(b) && at < endBytes; at += endPage {
		note := b[at : at+block]
		if string(note[:8]) != endText || binary.LittleEndian.Uint32(note[block-4:]) != checksum(note[:block-4]) {
			continue
		}
		good++
		if n := binary.LittleEndian.Uint64(note[8:]); n >= e.number {
			e = ending{n, binary.LittleEndian.Uint64(note[16:]), int64(binary.LittleEndian.Uint64(note[24:]))}
		}
	}
	return e, true, good, nil
}

// reaches compares a journal that was read with what was noted of it.
func (j *journal) reaches(entries []entry) error {
	promised := false
	for _, e := range entries {
		if e.kind == kindBoot {
			promised = promised || e.ended
			if n, size := binary.Uvarint(e.payload); size > 0 {
				j.boot = n
			}
		}
	}
	e, there, good, err := readEnding(j.dir)
	if err != nil {
		return err
	}
	damaged := false
	if there && good == 0 {
		b, err := j.dir.read(endName)
		if err != nil {
			return fmt.Errorf("read end of epoch journal: %w", err)
		}
		damaged = len(bytes.Trim(b, "\x00")) > 0
	}
	j.number = e.number
	name := j.dir.path(endName)
	switch {
	case !there && promised:
		return fmt.Errorf("%w: %s is missing, so whether the journal beside it is whole can't be told", ErrCorrupt, name)
	case !there:
		return nil
	case good == 0 && (promised || damaged): // zeros are what a power cut may leave of a file that was just made
		return fmt.Errorf("%w: neither of the notes in %s can be read, so whether the journal beside it is whole can't be told", ErrCorrupt, name)
	case good == 1:
		j.mended = name + ": one of its two notes is damaged, the other one counts"
	}
	at := j.dir.path(journalName)
	switch {
	case j.boot < e.boot:
		return fmt.Errorf("%w: %s ends before start %d, which was in it", ErrCorrupt, at, e.boot)
	case j.boot == e.boot && j.size < e.size:
		return fmt.Errorf("%w: %s ends at byte %d, and what was in it up to byte %d was promised to others", ErrCorrupt, at, j.size, e.size)
	}
	return nil
}

// note says how far the journal goes.
func (j *journal) note(size int64) error {
	made := false
	if j.end == nil {
		_, there, good, err := readEnding(j.dir)
		if err != nil {
			return err
		}
		f, err := j.dir.open(endName, false)
		if err != nil {
			return fmt.Errorf("open end of epoch journal: %w", err)
		}
		j.end, made = f, !there || good < 2
	}
	times := 1
	if made {
		times = 2 // both of them
	}
	for range times {
		j.number++
		if _, err := j.end.WriteAt(ending{j.number, j.boot, size}.encode(), int64(j.number&1)*endPage); err != nil {
			return fmt.Errorf("write end of epoch journal: %w", err)
		}
	}
	if !made {
		return nil
	}
	return errors.Join(j.end.Sync(), j.dir.sync())
}

// noteDurably is note for a journal that is about to be replaced, or was.
func (j *journal) noteDurably(size int64) error {
	err := j.note(size)
	if err == nil {
		err = j.end.Sync()
	}
	return err
}
