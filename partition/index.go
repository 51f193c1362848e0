package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/parleymq/parley/partition/storage"
)

// The partition's ordered index holds a mark every so often: at which offset,
// what log time it was and how many bytes had been stored before. Log time
// and bytes rise with the offset, so a lookup by time or by size is a binary
// search over offsets and then a short scan.
//
//	key:   'o', offset (8)
//	value: log time (8), bytes stored before (8), flags (1), and with flag 2 the chain before (8)
//
// Marks of earlier versions have no flags, or flag 1 alone.
//
// Every chunk with message ids has a mark, so that the window is rebuilt without
// reading what holds none: after a busy minute that would be gigabytes.
const (
	markEveryBytes = 256 << 10
	markEveryMS    = 1000

	markIDs     = 1 // the chunk holds message ids
	markChained = 2 // the chain before it is known: see chain.go
)

func markKey(offset int64) []byte {
	b := make([]byte, 9)
	b[0] = 'o'
	binary.BigEndian.PutUint64(b[1:], uint64(offset))
	return b
}

type mark struct {
	offset, logTime, before int64
	ids, chained            bool
	chain                   uint64
}

// mark returns the index entry for a chunk at base, if one is due.
func (s *state) mark(base, before int64, chain uint64, ids bool) (storage.IndexEntry, bool) {
	if !ids && before != 0 && s.stored-s.marked < markEveryBytes && s.logTime-s.markedAt < markEveryMS {
		return storage.IndexEntry{}, false
	}
	s.marked, s.markedAt = s.stored, s.logTime
	return mark{offset: base, logTime: s.logTime, before: before, ids: ids, chained: true, chain: chain}.entry(), true
}

func (mk mark) entry() storage.IndexEntry {
	v := make([]byte, 0, 25)
	v = binary.BigEndian.AppendUint64(v, uint64(mk.logTime))
	v = binary.BigEndian.AppendUint64(v, uint64(mk.before))
	flags := byte(0)
	if mk.ids {
		flags |= markIDs
	}
	if mk.chained {
		flags |= markChained
	}
	v = append(v, flags)
	if mk.chained {
		v = binary.BigEndian.AppendUint64(v, mk.chain)
	}
	return storage.IndexEntry{Key: markKey(mk.offset), Value: v}
}

// markBelow returns the offset of the newest mark at or below offset, or offset
// where there is none.
func (m *machine) markBelow(offset int64) (int64, error) {
	k, v, ok, err := m.store.SeekBack(markKey(offset))
	if err != nil || !ok {
		return offset, err
	}
	mk, err := parseMark(k, v)
	return mk.offset, err
}

func parseMark(k, v []byte) (mark, error) {
	flags := byte(0)
	if len(v) > 16 {
		flags = v[16]
	}
	if len(k) != 9 || k[0] != 'o' || len(v) != 16 && len(v) != 17 && len(v) != 25 || (flags&markChained != 0) != (len(v) == 25) {
		return mark{}, fmt.Errorf("%w: a mark of %d and %d bytes", storage.ErrCorrupt, len(k), len(v))
	}
	mk := mark{
		offset:  int64(binary.BigEndian.Uint64(k[1:])),
		logTime: int64(binary.BigEndian.Uint64(v)),
		before:  int64(binary.BigEndian.Uint64(v[8:])),
		ids:     flags&markIDs != 0,
		chained: flags&markChained != 0,
	}
	if mk.chained {
		mk.chain = binary.BigEndian.Uint64(v[17:])
	}
	return mk, nil
}

// lastMark returns the last mark in [lo, hi) for which before holds. before
// must hold for a prefix of the marks (it is monotone in the offset).
func lastMark(st storage.Store, lo, hi int64, before func(mark) bool) (best mark, found bool, err error) {
	for lo < hi {
		mid := lo + (hi-lo)/2
		k, v, ok, err := st.SeekBack(markKey(mid))
		if err != nil {
			return best, found, err
		}
		var mk mark
		if ok {
			if mk, err = parseMark(k, v); err != nil {
				return best, found, err
			}
		}
		switch {
		case !ok || mk.offset < lo:
			lo = mid + 1
		case before(mk):
			best, found, lo = mk, true, mid+1
		default:
			hi = mk.offset
		}
	}
	return best, found, nil
}

// offsetAt returns the first offset within b that was stored at log time t or
// later, or b.next.
func (m *machine) offsetAt(t int64, b bounds) (int64, error) {
	from := b.start
	mk, found, err := lastMark(m.store, b.start, b.next, func(mk mark) bool { return mk.logTime < t })
	if err != nil {
		return 0, err
	}
	if found {
		from = mk.offset
	}
	at := b.next
	err = m.store.Read(from, func(c storage.Chunk) bool {
		if c.Base >= b.next {
			return false
		}
		if c.LogTime >= t {
			at = max(c.Base, b.start)
			return false
		}
		return true
	})
	return at, err
}

// offsetOfBytes returns the lowest marked offset within b from which at most
// limit bytes follow: b.start when all of it fits, the newest mark when even
// what follows that doesn't.
func (m *machine) offsetOfBytes(limit int64, b bounds) (int64, error) {
	low := b.stored - limit
	if low <= 0 {
		return b.start, nil
	}
	// The last mark below low still has too much after it; the next one fits.
	mk, found, err := lastMark(m.store, b.start, b.next, func(mk mark) bool { return mk.before < low })
	if err != nil || !found {
		return b.start, err
	}
	k, v, ok, err := m.store.Seek(markKey(mk.offset+1), markKey(b.next))
	if err != nil {
		return b.start, err
	}
	if !ok {
		return mk.offset, nil
	}
	after, err := parseMark(k, v)
	if err != nil {
		return b.start, err
	}
	return after.offset, nil
}
