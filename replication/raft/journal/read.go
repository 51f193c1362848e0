package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sort"
)

// Read calls f with the entries of a replica in [low, high), in order, until it says no, there are no
// more, or the next one is missing. The bytes are f's to keep only during the call.
func (j *Journal) Read(key Key, low, high uint64, f func(index uint64, entry []byte) (more bool, err error)) error {
	var buf []byte
	for low < high {
		r, s, ok, err := j.find(key, low)
		if err != nil || !ok {
			return err
		}
		more := true
		var ferr error
		buf, err = s.entries(key, r, low, min(high, r.end()), buf, func(index uint64, entry []byte) bool {
			more, ferr = f(index, entry)
			low = index + 1
			return more && ferr == nil
		})
		s.use.RUnlock()
		switch {
		case err != nil:
			return err
		case ferr != nil || !more:
			return ferr
		case low < min(high, r.end()):
			return &DamageError{s.name, int64(r.at), fmt.Sprintf("entry %d of replica %d of log %d isn't there", low, key.Replica, key.Shard)}
		}
	}
	return nil
}

// find returns the run that has an entry. Its segment can't go until it is released.
func (j *Journal) find(key Key, index uint64) (run, *segment, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return run{}, nil, false, ErrClosed
	}
	l := j.index.logs[key]
	if l == nil {
		return run{}, nil, false, nil
	}
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].end() > index })
	if i == len(l.runs) || l.runs[i].first > index {
		return run{}, nil, false, nil
	}
	s := j.segment(l.runs[i].segment)
	s.use.RLock()
	return l.runs[i], s, true, nil
}

// entries calls f with a replica's entries of a run from low to high, and returns buf, grown.
func (s *segment) entries(key Key, r run, low, high uint64, buf []byte, f func(uint64, []byte) bool) ([]byte, error) {
	if cap(buf) < int(r.size) {
		buf = make([]byte, r.size)
	}
	buf = buf[:r.size]
	if n, err := s.file.ReadAt(buf, int64(r.at)); n < len(buf) {
		return buf, fmt.Errorf("read raft journal %s at %d: %w", s.name, r.at, err)
	}
	for off := 0; off < len(buf); {
		at := int64(r.at) + int64(off)
		if len(buf)-off < frameHeader {
			return buf, &DamageError{s.name, at, "a frame is cut off"}
		}
		h, ok := parseHeader(buf[off:], &s.salt)
		if !ok || frameSize(int(h.length)) > len(buf)-off {
			return buf, &DamageError{s.name, at, "a frame's header is wrong"}
		}
		payload := buf[off+frameHeader : off+frameHeader+int(h.length)]
		if crc32.Checksum(payload, castagnoli) != h.payload {
			return buf, &DamageError{s.name, at, "a frame's CRC is wrong"}
		}
		off += frameSize(int(h.length))
		if h.kind != kindRecord {
			continue
		}
		rec, err := parseRecord(payload)
		if err == nil && rec.key == key && rec.flags&flagEntries != 0 && rec.first+rec.count > low {
			more := true
			err = rec.each(func(index uint64, entry []byte) bool {
				if index >= high {
					more = false
				} else if index >= low {
					more = f(index, entry)
				}
				return more
			})
			if !more {
				return buf, err
			}
		}
		if err != nil {
			return buf, &DamageError{s.name, at, err.Error()}
		}
	}
	return buf, nil
}

// A Status is what is known of a replica.
type Status struct {
	State         State
	HasState      bool
	SnapshotIndex uint64
	Snapshot      []byte // nil for none; not to be changed
	Bootstrap     []byte // nil for none; not to be changed
	First, Last   uint64 // entries; Last < First for none
}

// Status returns what is known of a replica, and whether anything is.
func (j *Journal) Status(key Key) (Status, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l := j.index.logs[key]
	if l == nil {
		return Status{}, false
	}
	return Status{
		State: l.state, HasState: l.hasState, SnapshotIndex: l.snapIndex, Snapshot: l.snapshot, Bootstrap: l.bootstrap,
		First: l.trim + 1, Last: l.last(),
	}, true
}

// Replicas returns who has something in the journal, in order.
func (j *Journal) Replicas() []Key {
	j.mu.Lock()
	keys := make([]Key, 0, len(j.index.logs))
	for key := range j.index.logs {
		keys = append(keys, key)
	}
	j.mu.Unlock()
	sort.Slice(keys, func(a, b int) bool {
		if keys[a].Shard != keys[b].Shard {
			return keys[a].Shard < keys[b].Shard
		}
		return keys[a].Replica < keys[b].Replica
	})
	return keys
}

// Trim says that entries up to an index are not needed. It is remembered, and written when segments
// are cleaned: forgotten in a crash, it only means that entries are still there.
func (j *Journal) Trim(key Key, to uint64) {
	j.mu.Lock()
	if l := j.index.logs[key]; l != nil {
		before := l.trim
		j.index.trim(l, min(to, l.last()))
		l.unsaved = l.unsaved || l.trim != before
	}
	j.mu.Unlock()
	j.nudge()
}

func appendEntry(b, entry []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(entry))), entry...)
}
