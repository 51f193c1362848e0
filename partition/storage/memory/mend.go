package memory

import (
	"bytes"
	"fmt"
	"sort"

	"github.com/parleymq/parley/partition/storage"
)

// Survey implements storage.Store.
func (s *store) Survey(from, to int64, visit func(storage.Chunk) bool) error {
	l := s.log
	l.mu.RLock()
	if s.closed {
		l.mu.RUnlock()
		return fmt.Errorf("survey log %s: %w", l.id, storage.ErrClosed)
	}
	chunks := l.chunks // immutable, as in Read
	l.mu.RUnlock()
	at := sort.Search(len(chunks), func(i int) bool { return chunks[i].Last >= from })
	for _, c := range chunks[at:] {
		if c.Base >= to || !visit(c) {
			return nil
		}
	}
	return nil
}

// Mend implements storage.Store.
func (s *store) Mend(chunks []storage.Chunk, index []storage.IndexEntry) error {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.closed {
		return fmt.Errorf("mend log %s: %w", l.id, storage.ErrClosed)
	}
	s.mending = true
	if len(chunks) > 0 {
		first, last := chunks[0].Base, chunks[len(chunks)-1].Last
		if err := storage.CheckAppend(l.id, first, chunks, index); err != nil {
			return err
		}
		from := sort.Search(len(l.chunks), func(i int) bool { return l.chunks[i].Last >= first })
		to := from
		for to < len(l.chunks) && l.chunks[to].Base <= last {
			to++
		}
		all := append(make([]storage.Chunk, 0, len(l.chunks)+len(chunks)), l.chunks[:from]...)
		for _, c := range chunks {
			c.Data, c.Meta = bytes.Clone(c.Data), bytes.Clone(c.Meta)
			all = append(all, c)
		}
		l.chunks = append(all, l.chunks[to:]...)
	}
	for _, e := range index {
		l.put(string(e.Key), e.Value)
	}
	return nil
}

// Settle implements storage.Store.
func (s *store) Settle(m storage.Mark) error {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.closed {
		return fmt.Errorf("settle log %s: %w", l.id, storage.ErrClosed)
	}
	if m.Start < 0 || m.Next < m.Start {
		return fmt.Errorf("settle log %s: mark from %d to %d makes no sense", l.id, m.Start, m.Next)
	}
	keep, err := l.adjoining(m)
	if err != nil {
		return err
	}
	first := sort.Search(keep, func(i int) bool { return l.chunks[i].Last >= m.Start })
	l.chunks = l.chunks[first:keep:keep]
	l.next, l.floor = m.Next, m.Start
	l.bytes = l.size()
	s.mending = false
	return nil
}

// adjoining checks that chunks adjoin between the bounds of m, and counts those below m.Next.
func (l *log) adjoining(m storage.Mark) (keep int, err error) {
	keep = sort.Search(len(l.chunks), func(i int) bool { return l.chunks[i].Last >= m.Next })
	want := m.Start
	for _, c := range l.chunks[:keep] {
		if c.Last < m.Start {
			continue
		}
		if c.Base > want && !m.AllowHoles {
			return 0, &storage.HoleError{Log: l.id, From: want, To: c.Base}
		}
		want = c.Last + 1
	}
	if want < m.Next && !m.AllowHoles {
		return 0, &storage.HoleError{Log: l.id, From: want, To: m.Next}
	}
	return keep, nil
}
