package journal

import "errors"

// The cleaner takes away the oldest segment when little in it is alive, or when all of them together hold too
// much that isn't. What is alive is copied to the end: entries, and what is known of
// the replicas (states, snapshots, bootstraps, trims). So a replica where nothing happens holds nothing up.
//
// It copies as one of those who wait for an fsync, a megabyte at a time, and decides what is alive when it has the
// turn to write: what it copies can't be out of date when it is on disk.

// clean runs until Close.
func (j *Journal) clean() {
	defer j.cleaner.Done()
	for {
		select {
		case <-j.stop:
			return
		case <-j.wake:
		}
		switch err := j.tidy(); {
		case errors.Is(err, ErrClosed):
			return
		case err != nil:
			j.fail(err)
			return
		}
	}
}

// tidy cleans as long as it is worth it, and sees that there is a spare.
func (j *Journal) tidy() error {
	for !j.stopping() && j.worthIt() {
		if err := j.cleanOldest(); err != nil {
			return err
		}
	}
	return j.stock()
}

func (j *Journal) stopping() bool {
	select {
	case <-j.stop:
		return true
	default:
		return false
	}
}

// fail ends what the cleaner can't go on with. Saves that come after it fail.
func (j *Journal) fail(err error) {
	j.mu.Lock()
	first := j.broken == nil && !j.closed
	if j.broken == nil {
		j.broken = err
	}
	j.mu.Unlock()
	if first && j.options.OnError != nil {
		j.options.OnError(err)
	}
}

// worthIt says whether the oldest segment should go.
func (j *Journal) worthIt() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.segments) < 2 || j.broken != nil {
		return false
	}
	if j.segments[0].live <= j.options.SegmentBytes/8 {
		return true
	}
	used, live := int64(0), int64(0)
	for _, s := range j.segments[:len(j.segments)-1] {
		used += int64(s.end)
		live += s.live
	}
	return used-live > max(4*j.options.SegmentBytes, live/2)
}

// cleanOldest copies what is alive in the oldest segment, then takes it away.
func (j *Journal) cleanOldest() error {
	j.mu.Lock()
	s := j.segments[0]
	var keys []Key
	for key, l := range j.index.logs {
		for i := range l.runs {
			if l.runs[i].segment == s.number32() {
				keys = append(keys, key)
				break
			}
		}
	}
	j.mu.Unlock()
	for len(keys) > 0 {
		if err := j.commit(&request{late: func(b *Batch) (err error) {
			keys, err = j.move(b, s, keys)
			return err
		}}); err != nil {
			return err
		}
		if j.stopping() {
			return nil
		}
	}
	err := j.commit(&request{late: func(b *Batch) error {
		b.metas(func(l *log) bool { return l.unsaved || l.since <= s.number32() && l.since > 0 })
		b.floor(s.number + 1)
		return nil
	}})
	if err != nil {
		return err
	}
	return j.retire()
}

// move adds copies of entries in s to b, until it is full, and returns the replicas that may have more.
func (j *Journal) move(b *Batch, s *segment, keys []Key) ([]Key, error) {
	var buf, entries []byte
	for len(keys) > 0 && b.Len() < moveBytes {
		j.mu.Lock()
		var runs []run
		if l := j.index.logs[keys[0]]; l != nil {
			for _, r := range l.runs {
				if r.segment == s.number32() {
					runs = append(runs, r)
				}
			}
		}
		j.mu.Unlock()
		first, next := uint64(0), uint64(0)
		flush := func() {
			if next > first {
				b.moved(keys[0], first, next-first, entries)
			}
			entries = entries[:0]
		}
		whole := true
		for _, r := range runs {
			if b.Len()+len(entries) >= moveBytes {
				whole = false
				break
			}
			if r.first != next {
				flush()
				first, next = r.first, r.first
			}
			var err error
			buf, err = s.entries(keys[0], r, r.first, r.end(), buf, func(index uint64, entry []byte) bool {
				entries = appendEntry(entries, entry)
				next = index + 1
				return true
			})
			if err == nil && next != r.end() {
				err = &DamageError{s.name, int64(r.at), "an entry isn't there"}
			}
			if err != nil {
				return keys, err
			}
		}
		flush()
		if !whole {
			break
		}
		keys = keys[1:]
	}
	j.mu.Lock()
	j.figures.MovedBytes += uint64(b.Len())
	j.mu.Unlock()
	return keys, nil
}

// stock keeps a spare ready, so that nobody waits for one to be made.
func (j *Journal) stock() error {
	j.mu.Lock()
	enough := len(j.spares) > 0 || j.broken != nil || j.closed ||
		int64(j.segments[len(j.segments)-1].end) < j.options.SegmentBytes/2
	j.mu.Unlock()
	if enough {
		return nil
	}
	s, err := j.makeSpare()
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.spares = append(j.spares, s)
	j.mu.Unlock()
	return nil
}
