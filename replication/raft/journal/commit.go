package journal

import (
	"encoding/binary"
	"fmt"
)

// Whoever commits while nobody has the turn takes it: it writes its own batch and everything else that
// waits, syncs once, changes the index, tells the others, and hands the turn to the first of those
// that came meanwhile. So there is no goroutine to switch to for a lone save, and a crowd
// shares its fsyncs. Batches on disk are what one turn wrote.
//
// Rejected: writing ahead while an fsync is under way. Two batches could then be on disk in
// part, and a torn tail couldn't be told from damage.

// A request waits for its turn, or to be served.
type request struct {
	batch *Batch
	// late fills the batch when its turn has come, before anything that waits with it, and with the index as
	// it is on disk.
	late    func(*Batch) error
	closing bool
	done    chan turn
	err     error
}

type turn int

const (
	served turn = iota
	lead
)

// Commit saves a batch: when it returns without an error, the batch is on disk. After an error of the
// disk nothing can be saved any more: what the kernel holds then can't be trusted.
func (b *Batch) Commit() error {
	if b.err != nil {
		return b.err
	}
	if b.frames == 0 {
		b.j.mu.Lock()
		defer b.j.mu.Unlock()
		return b.j.broken
	}
	b.req.err = nil
	return b.j.commit(&b.req)
}

func (j *Journal) commit(r *request) error {
	if r.done == nil {
		r.done = make(chan turn, 1)
	}
	if r.batch == nil {
		r.batch = &Batch{j: j}
	}
	j.mu.Lock()
	if err := j.refuses(r); err != nil {
		j.mu.Unlock()
		return err
	}
	j.queue = append(j.queue, r)
	if j.leading {
		j.mu.Unlock()
		if <-r.done == served {
			return r.err
		}
		j.mu.Lock()
	}
	j.leading = true
	taken := j.take()
	broken := j.broken
	j.mu.Unlock()
	var err error
	if broken != nil {
		err = broken
	} else {
		err = j.write(taken)
	}
	j.mu.Lock()
	if err == nil {
		j.applied(taken)
	}
	first := err != nil && j.broken == nil
	if first {
		j.broken = err
	}
	for _, t := range taken {
		t.err = err
		if t != r {
			t.done <- served
		}
	}
	j.figures.Joined += uint64(len(taken) - 1)
	if len(j.queue) > 0 {
		j.queue[0].done <- lead
	} else {
		j.leading = false
	}
	j.mu.Unlock()
	if first && j.options.OnError != nil {
		j.options.OnError(err)
	}
	return r.err
}

func (j *Journal) refuses(r *request) error {
	if j.broken != nil {
		return j.broken
	}
	if j.closed && !r.closing {
		return ErrClosed
	}
	return nil
}

// take returns what is written now: the first that waits, and more as far as one fsync should carry.
func (j *Journal) take() []*request {
	n, size := 0, 0
	for n < len(j.queue) && (n == 0 || size+len(j.queue[n].batch.buf) <= batchBytes) {
		size += len(j.queue[n].batch.buf)
		n++
	}
	taken := append([]*request(nil), j.queue[:n]...)
	rest := copy(j.queue, j.queue[n:])
	clear(j.queue[rest:])
	j.queue = j.queue[:rest]
	// What looks at the index must see all that is before it in the journal.
	front := 0
	for i, r := range taken {
		if r.late != nil {
			copy(taken[front+1:i+1], taken[front:i])
			taken[front] = r
			front++
		}
	}
	return taken
}

// write brings requests to disk as one batch.
func (j *Journal) write(taken []*request) error {
	size, frames := 0, 0
	for _, r := range taken {
		if r.late != nil {
			r.batch.Reset()
			if err := r.late(r.batch); err != nil {
				return err
			}
		}
		size += len(r.batch.buf)
		frames += r.batch.frames
	}
	if frames == 0 {
		return nil
	}
	j.mu.Lock()
	s := j.active()
	j.mu.Unlock()
	if int64(s.end)+int64(size) > j.options.SegmentBytes && s.end > segmentHeader {
		var err error
		if s, err = j.rotate(s); err != nil {
			return err
		}
	}
	if int64(s.end)+int64(size) > maxSegment {
		return fmt.Errorf("write raft journal: a batch of %d bytes: up to %d are allowed", size, maxSegment)
	}
	j.batch++
	at, small := int64(s.end), j.scratch[:0]
	for _, r := range taken {
		b := r.batch.buf
		for off := 0; off < len(b); {
			n := frameSize(int(unsealed(b[off:]).length))
			frames--
			stamp(b[off:], &s.salt, j.batch, frames == 0)
			off += n
		}
		// Small ones go to the file with one call.
		if len(small)+len(b) <= cap(j.scratch) {
			small = append(small, b...)
			continue
		}
		if err := j.put(s, &at, small); err != nil {
			return err
		}
		small = small[:0]
		if err := j.put(s, &at, b); err != nil {
			return err
		}
	}
	if err := j.put(s, &at, small); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("sync raft journal %s: %w", s.name, err)
	}
	return j.noteEnd(reached{batch: j.batch, segment: s.number, offset: uint64(at)})
}

func (j *Journal) put(s *segment, at *int64, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := s.file.WriteAt(b, *at); err != nil {
		return fmt.Errorf("write raft journal %s at %d: %w", s.name, *at, err)
	}
	*at += int64(len(b))
	return nil
}

// applied changes the index as the batch says. It is called with mu held.
func (j *Journal) applied(taken []*request) {
	s := j.active()
	j.figures.Batches++
	for _, r := range taken {
		b := r.batch.buf
		for off := 0; off < len(b); {
			h := unsealed(b[off:])
			n := frameSize(int(h.length))
			switch payload := b[off+frameHeader : off+frameHeader+int(h.length)]; h.kind {
			case kindRecord:
				rec, err := parseRecord(payload)
				if err != nil {
					panic(fmt.Sprintf("raft journal: a record that was just encoded: %v", err))
				}
				j.index.apply(&rec, place{s.number32(), s.end, uint32(n)})
			case kindFloor:
				j.floor = max(j.floor, binary.LittleEndian.Uint64(payload))
			}
			s.end += uint32(n)
			off += n
		}
		j.figures.Bytes += uint64(len(b))
	}
}
