package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
)

// A segment can't tell that its own end is missing: a torn tail, which nobody was told of, looks like a batch that was
// acknowledged and damaged since. So a file beside the segments says how far the journal went: END is written after
// each fsync of a batch, and before anybody is told. A journal that doesn't reach it has lost something.
//
// END is not synced with each batch: that would double the cost of a lone save. It is there, to the last batch,
// whatever happens to the process. A power cut may leave an older one, since nothing but the journal's own fsync is
// waited for; it is synced with each new segment, and as the journal is opened and closed. It is never ahead of the segments:
// what it names was on disk before.
//
// It holds two notes, in pages of their own, written in turn: one torn or damaged page leaves the other.
//
//	0  text "PRLYRJ1\n"
//	8  id of the journal             uint64
//	16 batch                         uint64
//	24 segment that the batch is in  uint64
//	32 where the batch ends in it    uint64
//	40 zeros                         20 bytes
//	60 CRC-32C of the 60 bytes before
const (
	endFile  = "END"
	endNote  = 64
	endPage  = 4096
	endBytes = 2 * endPage
	// endKnown, in the identity file, says that there is an END.
	endKnown = 1
)

// reached is how far a journal went, as END says.
type reached struct{ batch, segment, offset uint64 }

func (r reached) encode(b []byte, id uint64) {
	clear(b[:endNote])
	copy(b, segmentMagic)
	for i, v := range [...]uint64{id, r.batch, r.segment, r.offset} {
		binary.LittleEndian.PutUint64(b[8+8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

func parseReached(b []byte, id uint64) (r reached, ok bool) {
	if string(b[:8]) != segmentMagic || crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) ||
		binary.LittleEndian.Uint64(b[8:]) != id {
		return r, false
	}
	for i, v := range [...]*uint64{&r.batch, &r.segment, &r.offset} {
		*v = binary.LittleEndian.Uint64(b[16+8*i:])
	}
	return r, true
}

// readEnd reads END. known says that the identity file promises one.
func (j *Journal) readEnd(there, known bool) (r reached, err error) {
	name := filepath.Join(j.dir, endFile)
	if !there {
		if known {
			return r, &DamageError{name, 0, "the file is missing, so whether the journal is whole can't be told"}
		}
		return r, nil
	}
	f, err := j.fs.Open(name)
	if err != nil {
		return r, fmt.Errorf("open raft journal: %w", err)
	}
	b := make([]byte, endBytes)
	_, err = f.ReadAt(b, 0)
	_ = f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return r, fmt.Errorf("read %s: %w", name, err)
	}
	good := 0
	for at := 0; at < endBytes; at += endPage {
		if one, ok := parseReached(b[at:at+endNote], j.id); ok {
			good++
			if one.batch >= r.batch {
				r = one
			}
		}
	}
	switch {
	case good == 0 && known:
		return r, &DamageError{name, 0, "neither of its notes can be read, so whether the journal is whole can't be told"}
	case good == 1 && j.options.OnMended != nil:
		j.options.OnMended(name + ": one of its two notes is damaged, the other one counts")
	}
	return r, nil
}

// reaches says whether what was read goes as far as END says.
func (j *Journal) reaches(r reached) error {
	if j.batch >= r.batch {
		return nil
	}
	at := int64(0)
	if n := len(j.segments); n > 0 && j.active().number == r.segment {
		at = int64(j.active().end)
	}
	return &DamageError{j.segmentName(r.segment), at,
		fmt.Sprintf("batches after %d can't be read, and batch %d was acknowledged", j.batch, r.batch)}
}

// beginEnd opens END for writing, makes it where there is none, and has it say where the journal is now.
func (j *Journal) beginEnd(there bool) (err error) {
	name := filepath.Join(j.dir, endFile)
	if !there {
		// Under its name it is whole at once.
		b := make([]byte, endBytes)
		j.now().encode(b, j.id)
		copy(b[endPage:], b[:endNote])
		if err := j.writeFile(name, b); err != nil {
			return err
		}
	}
	if j.end, err = j.fs.Open(name); err != nil {
		return fmt.Errorf("open raft journal: %w", err)
	}
	if !there {
		return nil
	}
	for range 2 { // whichever of them is damaged, or old
		if err := j.noteEnd(j.now()); err != nil {
			return err
		}
	}
	return j.syncEnd()
}

// now is where the journal is. It is called by whoever has the turn, or alone.
func (j *Journal) now() reached {
	r := reached{batch: j.batch}
	if len(j.segments) > 0 {
		r.segment, r.offset = j.active().number, uint64(j.active().end)
	}
	return r
}

// noteEnd writes the next of the two notes.
func (j *Journal) noteEnd(r reached) error {
	if j.end == nil {
		return nil
	}
	r.encode(j.note[:], j.id)
	j.endTurn ^= 1
	if _, err := j.end.WriteAt(j.note[:], int64(j.endTurn)*endPage); err != nil {
		return fmt.Errorf("write %s of the raft journal: %w", endFile, err)
	}
	return nil
}

func (j *Journal) syncEnd() error {
	if j.end == nil {
		return nil
	}
	if err := j.end.Sync(); err != nil {
		return fmt.Errorf("sync %s of the raft journal: %w", endFile, err)
	}
	return nil
}
