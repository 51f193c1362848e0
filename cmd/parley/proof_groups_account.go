package main

import (
	"slices"
	"sync"
	"time"
)

// handover is what the records of a group's partitions say of who had which of them, and of how long they waited. Times are
// nanoseconds since 1970, by the clock that all processes of the proof share.
type handover struct {
	mu    sync.Mutex
	parts []handoverPart
}

// handoverPart is one partition. Records begin at offset 0.
type handoverPart struct {
	due     []int64 // when the record was due to be published
	handled []int64 // when it was handled first; 0: not yet
	owner   string  // who handled a record under the newest token
	token   uint64  // the newest
	stale   int     // records handled under an older token when a newer one was in use already
	again   int     // records handled more than once
}

// groupEvent is one record that a member has handled.
type groupEvent struct {
	member   string
	part     int32
	offset   int64
	token    uint64
	due, now int64
}

func newHandover(parts int32) *handover { return &handover{parts: make([]handoverPart, parts)} }

func (h *handover) add(e groupEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.parts[e.part]
	for int64(len(p.due)) <= e.offset {
		p.due, p.handled = append(p.due, 0), append(p.handled, 0)
	}
	p.due[e.offset] = e.due
	if at := p.handled[e.offset]; at != 0 {
		p.again++
		e.now = min(e.now, at)
	}
	p.handled[e.offset] = e.now
	switch {
	case e.token > p.token:
		p.token, p.owner = e.token, e.member
	case e.token < p.token:
		p.stale++
	}
}

// owners is who has each partition, "" nobody yet.
func (h *handover) owners() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]string, len(h.parts))
	for i := range h.parts {
		all[i] = h.parts[i].owner
	}
	return all
}

func (h *handover) tokens() []uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]uint64, len(h.parts))
	for i := range h.parts {
		all[i] = h.parts[i].token
	}
	return all
}

// behind is how many of so many records of each partition are not handled.
func (h *handover) behind(sent []int64) (n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.parts {
		n += sent[i]
		for _, at := range h.parts[i].handled[:min(int64(len(h.parts[i].handled)), sent[i])] {
			if at != 0 {
				n--
			}
		}
	}
	return n
}

func (h *handover) count() (handled, again, stale int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.parts {
		p := &h.parts[i]
		handled += len(p.handled)
		again, stale = again+p.again, stale+p.stale
	}
	return handled, again, stale
}

// gap is the longest that a record of the partition waited, of those that were due within from..to: while nobody works on the
// partition, the record that comes first waits for all of that time.
func (h *handover) gap(part int, from, to time.Time) (longest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.parts[part]
	// The first record that waited may have been due before whatever happened at from.
	at, _ := slices.BinarySearch(p.due, from.UnixNano())
	for i := max(at-1, 0); i < len(p.due) && p.due[i] <= to.UnixNano(); i++ {
		if p.handled[i] != 0 && p.handled[i] >= from.UnixNano() {
			longest = max(longest, time.Duration(p.handled[i]-max(p.due[i], from.UnixNano())))
		}
	}
	return longest
}

// even tells whether each of the members has its share of the partitions, and nobody else has any.
func even(owners, members []string) bool {
	has := map[string]int{}
	for _, o := range owners {
		has[o]++
	}
	for _, m := range members {
		if n := has[m]; n < len(owners)/len(members) || n > (len(owners)+len(members)-1)/len(members) {
			return false
		}
		delete(has, m)
	}
	return len(has) == 0
}

// rebalanceRow is what one event did.
type rebalanceRow struct {
	Event        string  `json:"event"`
	Moved        int     `json:"moved"`
	MovedMS      float64 `json:"moved_gap_ms"` // the longest
	MovedMost    float64 `json:"moved_allowed_ms"`
	Unmoved      int     `json:"unmoved"`
	UnmovedMS    float64 `json:"unmoved_gap_ms"`
	UnmovedMost  float64 `json:"unmoved_allowed_ms"`
	WithinLimits bool    `json:"within"`
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// judge compares who had what before and after an event that happened at from and was over at to.
func (h *handover) judge(event string, before, after []string, from, to time.Time, moved, unmoved time.Duration) rebalanceRow {
	r := rebalanceRow{Event: event, MovedMost: milliseconds(moved), UnmovedMost: milliseconds(unmoved)}
	for i := range before {
		gap := milliseconds(h.gap(i, from, to))
		if before[i] == after[i] {
			r.Unmoved++
			r.UnmovedMS = max(r.UnmovedMS, gap)
		} else {
			r.Moved++
			r.MovedMS = max(r.MovedMS, gap)
		}
	}
	r.WithinLimits = r.MovedMS <= r.MovedMost && r.UnmovedMS <= r.UnmovedMost
	return r
}
