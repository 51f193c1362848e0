package journal

import (
	"fmt"
)

// index is what is known of all replicas. Live and at recovery it changes by apply only, apart from
// commit indexes and trims, which may be ahead of the disk.
type index struct {
	logs map[Key]*log
	live func(segment uint32, bytes int64) // tells what a segment gains and loses
}

// log is what is known of a replica.
type log struct {
	state     State
	hasState  bool
	snapIndex uint64
	snapshot  []byte
	bootstrap []byte
	trim      uint64 // the log begins behind it
	runs      []run  // of entries, adjoining once recovery is over

	// since is the oldest segment that something of the above but the runs is in; 0 for none.
	since uint32
	// unsaved: a commit index or a trim is not in the journal yet.
	unsaved bool
	// apart: the last run has entries behind its end that don't count.
	apart bool
}

// A run is entries of a replica that are near one another in a segment. Between its frames there may be others'
// frames, and its own may hold more entries than count.
type run struct {
	first   uint64
	count   uint32
	segment uint32
	at      uint32
	size    uint32 // from the first frame's begin to the last one's end
	bytes   uint32 // of the frames
}

func (r *run) end() uint64 { return r.first + uint64(r.count) }

// place is where a frame is.
type place struct {
	segment  uint32
	at, size uint32
}

func newIndex(live func(uint32, int64)) *index {
	return &index{logs: make(map[Key]*log), live: live}
}

// last is the index of the newest entry, or of what the log begins behind.
func (l *log) last() uint64 {
	if n := len(l.runs); n > 0 {
		return l.runs[n-1].end() - 1
	}
	return l.trim
}

// apply takes a record that is on disk.
func (x *index) apply(r *record, at place) {
	l := x.logs[r.key]
	if r.flags&flagRemove != 0 && l != nil {
		x.clear(l)
		delete(x.logs, r.key)
		l = nil
	}
	if r.flags&^flagRemove == 0 {
		return
	}
	if l == nil {
		l = &log{}
		x.logs[r.key] = l
	}
	if r.flags&flagAll != 0 {
		l.since = at.segment
		// A commit index or a trim may have come after the record was encoded.
		l.unsaved = l.state.Commit > r.state.Commit || l.trim > r.trim
		r.state.Commit = max(r.state.Commit, l.state.Commit)
	} else if r.flags&^(flagEntries|flagMoved) != 0 && l.since == 0 {
		l.since = at.segment
	}
	if r.flags&flagState != 0 {
		l.state, l.hasState = r.state, true
	}
	if r.flags&flagSnapshot != 0 && (r.snapshotIndex > l.snapIndex || r.flags&(flagInstall|flagAll) != 0) {
		l.snapIndex, l.snapshot = r.snapshotIndex, append([]byte(nil), r.snapshot...)
	}
	if r.flags&flagInstall != 0 {
		x.clear(l)
		l.trim = r.snapshotIndex
	}
	if r.flags&flagBootstrap != 0 {
		l.bootstrap = append([]byte(nil), r.bootstrap...)
	}
	if r.flags&flagTrim != 0 {
		x.trim(l, r.trim)
	}
	if r.flags&flagEntries == 0 {
		return
	}
	if r.flags&flagReset != 0 {
		x.clear(l)
		l.trim = r.first - 1
	}
	if r.flags&flagMoved != 0 {
		x.replace(l, run{r.first, uint32(r.count), at.segment, at.at, at.size, at.size})
		return
	}
	x.truncate(l, r.first)
	x.append(l, run{r.first, uint32(r.count), at.segment, at.at, at.size, at.size})
}

func (x *index) append(l *log, r run) {
	x.live(r.segment, int64(r.bytes))
	if n := len(l.runs); n > 0 && !l.apart {
		p := &l.runs[n-1]
		span := r.at + r.size - p.at
		if p.segment == r.segment && p.end() == r.first && r.at > p.at && span <= mergeBytes && span <= mergeShare*(p.bytes+r.bytes) {
			p.count += r.count
			p.size = r.at + r.size - p.at
			p.bytes += r.bytes
			return
		}
	}
	l.apart = false
	l.runs = append(l.runs, r)
}

// truncate removes entries from an index on.
func (x *index) truncate(l *log, from uint64) {
	n := len(l.runs)
	for n > 0 && l.runs[n-1].first >= from {
		n--
		x.live(l.runs[n].segment, -int64(l.runs[n].bytes))
		// The one before may have been cut short earlier.
		l.apart = true
	}
	l.runs = l.runs[:n]
	if n > 0 && l.runs[n-1].end() > from {
		l.runs[n-1].count = uint32(from - l.runs[n-1].first)
		l.apart = true
	}
}

// trim removes entries up to an index.
func (x *index) trim(l *log, to uint64) {
	if to <= l.trim {
		return
	}
	l.trim = to
	n := 0
	for n < len(l.runs) && l.runs[n].end() <= to+1 {
		x.live(l.runs[n].segment, -int64(l.runs[n].bytes))
		n++
	}
	if n > 0 {
		// Copied, so that a log that was long once doesn't keep its memory.
		l.runs = append([]run(nil), l.runs[n:]...)
	}
	if len(l.runs) > 0 && l.runs[0].first <= to {
		r := &l.runs[0]
		r.count -= uint32(to + 1 - r.first)
		r.first = to + 1
	}
}

func (x *index) clear(l *log) {
	for _, r := range l.runs {
		x.live(r.segment, -int64(r.bytes))
	}
	l.runs, l.apart = nil, false
}

// replace puts a copy in the place of the entries that it has. At recovery these may be gone, with
// entries before and behind still to come.
func (x *index) replace(l *log, c run) {
	if c.end() <= l.trim+1 {
		return
	}
	if c.first <= l.trim {
		c.count -= uint32(l.trim + 1 - c.first)
		c.first = l.trim + 1
	}
	x.live(c.segment, int64(c.bytes))
	out := make([]run, 0, len(l.runs)+2)
	placed := false
	for _, r := range l.runs {
		if !placed && r.end() > c.first && r.first >= c.first {
			out, placed = append(out, c), true
		}
		if r.end() <= c.first || r.first >= c.end() {
			out = append(out, r)
			continue
		}
		pieces := int64(0)
		if r.first < c.first {
			head := r
			head.count = uint32(c.first - r.first)
			out = append(out, head, c)
			placed = true
			pieces++
		}
		if r.end() > c.end() {
			tail := r
			tail.first, tail.count = c.end(), uint32(r.end()-c.end())
			out = append(out, tail)
			pieces++
		}
		x.live(r.segment, (pieces-1)*int64(r.bytes))
	}
	if !placed {
		out = append(out, c)
	}
	l.runs, l.apart = out, true
}

// check finds logs with holes, which no crash leaves behind.
func (x *index) check() error {
	for key, l := range x.logs {
		next := l.trim + 1
		for _, r := range l.runs {
			if r.first != next {
				return fmt.Errorf("entries %d to %d of replica %d of log %d are missing", next, r.first-1, key.Replica, key.Shard)
			}
			next = r.end()
		}
	}
	return nil
}
