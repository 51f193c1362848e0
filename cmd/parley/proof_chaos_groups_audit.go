package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// What members of groups saw is held against what must be. Members are many and see
// things late, so events have no common time; but each goes by a clock that only rises, and what began after
// something was known to have happened came after it.

// groupPlace is a record.
type groupPlace struct {
	part   int32
	offset int64
}

// groupVerdict counts what is wrong in groups.
type groupVerdict struct {
	Handled   int64 `json:"handled"`    // records, once for each group
	Again     int64 `json:"again"`      // deliveries beyond the first, which is no fault
	Unhandled int64 `json:"unhandled"`  // records that no member has handled in the end
	Undone    int64 `json:"undone"`     // acked or ended, and delivered later all the same
	Reordered int64 `json:"reordered"`  // before an earlier record of the same partition or key
	TwoLive   int64 `json:"two_live"`   // two members had the same right at the same time
	OldToken  int64 `json:"old_tokens"` // something was taken under a token that was not the newest any more
	Letters   int64 `json:"letters"`    // ended, and not in the dead-letter topic once; or there, and not ended
}

func (v *groupVerdict) clean() bool {
	return v.Unhandled+v.Undone+v.Reordered+v.TwoLive+v.OldToken+v.Letters == 0
}

// groupAudit is of one group.
type groupAudit struct {
	name  string
	keyed bool
	tell  func(format string, args ...any)

	mu    sync.Mutex
	clock int64
	v     groupVerdict

	records map[groupPlace]*groupRecord // shared groups
	keys    map[groupKey]*keyHistory    // key-ordered ones
	runs    map[int32]map[uint64]*groupRun
}

type groupRecord struct {
	key    string
	first  int64  // when it was first delivered
	how    string // that was
	newest uint64 // token of the newest delivery that was seen
	holder string
	done   int64  // when an ack or an end was first known to be taken
	tried  uint64 // newest token under which somebody has begun to ack or end it
	ended  bool
	open   bool     // nobody knows what became of an end: it may be a dead letter
	trace  []string // what happened, until it is done: the newest
}

// groupTrace is how much is remembered of a record that isn't done.
const groupTrace = 12

func (r *groupRecord) note(clock int64, format string, args ...any) {
	if r.done != 0 {
		r.trace = nil
		return
	}
	if len(r.trace) == groupTrace {
		r.trace = r.trace[:copy(r.trace, r.trace[1:])]
	}
	r.trace = append(r.trace, fmt.Sprintf("%d %s", clock, fmt.Sprintf(format, args...)))
}

type groupKey struct {
	part int32
	key  string
}

// keyHistory is to whom records of a key were handed last.
type keyHistory struct {
	holder string
	newest uint64         // token
	open   map[int64]bool // offsets that the holder has not begun to answer
}

// groupRun is what was handled under one token of an exclusive group.
type groupRun struct {
	member      string
	first, last int64
}

func newGroupAudit(name string, keyed bool, tell func(string, ...any)) *groupAudit {
	return &groupAudit{name: name, keyed: keyed, tell: tell, records: map[groupPlace]*groupRecord{}, keys: map[groupKey]*keyHistory{}, runs: map[int32]map[uint64]*groupRun{}}
}

func (a *groupAudit) tick() int64 {
	a.clock++
	return a.clock
}

func (a *groupAudit) bad(count *int64, format string, args ...any) {
	*count++
	a.tell("group "+a.name+": "+format, args...)
}

// now is for what begins: a request for records.
func (a *groupAudit) now() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tick()
}

// delivered notes a record of a shared group, in the answer to a request that began at asked.
func (a *groupAudit) delivered(asked int64, member, key string, at groupPlace, token uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.tick()
	r := a.records[at]
	if r == nil {
		r = &groupRecord{key: key, first: now, how: fmt.Sprintf("to %s under %d, asked for at %d, seen at %d", member, token, asked, now)}
		a.records[at] = r
	} else {
		a.v.Again++
	}
	switch {
	case r.done != 0 && r.done < asked:
		a.bad(&a.v.Undone, "offset %d of partition %d was acked and is delivered again, under token %d", at.offset, at.part, token)
	case token == r.newest && member != r.holder:
		a.bad(&a.v.TwoLive, "offset %d of partition %d was handed to %s and to %s under the same token %d", at.offset, at.part, r.holder, member, token)
	}
	r.note(now, "delivered to %s under %d", member, token)
	if token >= r.newest {
		r.newest, r.holder = token, member
	}
	if !a.keyed || key == "" {
		return
	}
	k := groupKey{at.part, key}
	h := a.keys[k]
	switch {
	case h != nil && token < h.newest:
		return // on its way for long: the key has been another's since
	case h == nil || h.holder != member:
		// A key changes hands when all of it is answered. Otherwise something came back, or the leader
		// changed, and that makes a newer token.
		if h != nil && token == h.newest && len(h.open) > 0 {
			a.bad(&a.v.TwoLive, "offset %d of partition %d was handed to %s under token %d when %s had %d records of its key %s", at.offset, at.part, member, token, h.holder, len(h.open), key)
		}
		h = &keyHistory{holder: member, open: map[int64]bool{}}
		a.keys[k] = h
	case token > h.newest:
		clear(h.open)
	}
	h.newest = token
	h.open[at.offset] = true
}

// answer is an ack, a nak or an end that a member is about to send.
type answer struct {
	at      groupPlace
	token   uint64
	old     bool // a newer delivery of the record was known
	foreign bool // another member was known to have records of the key
}

// answering notes that a member is about to answer for a record; final: with an ack or an end.
func (a *groupAudit) answering(member string, at groupPlace, token uint64, final bool) answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.tick()
	r := a.records[at]
	r.note(now, "%s answers under %d, final %v", member, token, final)
	w := answer{at: at, token: token, old: r.newest > token && r.done == 0}
	if a.keyed && r.key != "" {
		h := a.keys[groupKey{at.part, r.key}]
		w.foreign = h.holder != member && len(h.open) > 0 && r.done == 0
		if h.holder == member {
			delete(h.open, at.offset)
		}
	}
	if final {
		r.tried = max(r.tried, token)
	}
	return w
}

// taken notes that the answer was taken. final: nothing more may come of the record; ended: as a dead letter.
func (a *groupAudit) taken(w answer, final, ended bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.tick()
	r := a.records[w.at]
	if r.done != 0 {
		return // who comes second is told that it is done
	}
	switch {
	case r.tried > w.token:
		// Who was handed it later has answered by now, perhaps: then this one is told that it is done.
	case w.old:
		a.bad(&a.v.OldToken, "an answer for offset %d of partition %d was taken under token %d, when token %d was known", w.at.offset, w.at.part, w.token, r.newest)
	case w.foreign:
		a.bad(&a.v.TwoLive, "an answer for offset %d of partition %d, key %s, was taken when the key was known to be another member's", w.at.offset, w.at.part, r.key)
	}
	r.note(now, "the answer under %d is taken", w.token)
	if final {
		r.done, r.ended, r.trace = now, ended, nil
	}
}

// refused notes that an answer was not taken, or that nobody knows.
func (a *groupAudit) refused(w answer, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[w.at].note(a.tick(), "the answer under %d is not taken: %v", w.token, why)
}

// unknown notes that nobody knows what became of an end.
func (a *groupAudit) unknown(w answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[w.at].open = true
}

// handled notes a record of an exclusive group.
func (a *groupAudit) handled(member string, at groupPlace, token uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tick()
	runs := a.runs[at.part]
	if runs == nil {
		runs = map[uint64]*groupRun{}
		a.runs[at.part] = runs
	}
	run := runs[token]
	switch {
	case run == nil:
		runs[token] = &groupRun{member: member, first: at.offset, last: at.offset}
		return
	case run.member != member:
		a.bad(&a.v.TwoLive, "partition %d was %s's and %s's under the same token %d", at.part, run.member, member, token)
	case at.offset != run.last+1:
		a.bad(&a.v.Reordered, "offset %d of partition %d was handled after offset %d under token %d", at.offset, at.part, run.last, token)
	}
	run.last = max(run.last, at.offset)
}

// superseded tells whether a newer token of the partition is known than that of a member that is about to commit.
func (a *groupAudit) superseded(part int32, token uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for t := range a.runs[part] {
		if t > token {
			return true
		}
	}
	return false
}

// committed notes that such a commit was taken.
func (a *groupAudit) committed(part int32, token uint64, superseded bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if superseded {
		a.bad(&a.v.OldToken, "a commit in partition %d was taken under token %d, when a newer one was known", part, token)
	}
}

// missing counts records below the partitions' ends that nobody has handled, and names one. Without letters those pass that may be among them.
func (a *groupAudit) missing(ends []int64, letters map[groupPlace]int) (n int64, first string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for part, end := range ends {
		if runs := a.runs[int32(part)]; runs != nil {
			last := int64(-1)
			for _, r := range runs {
				last = max(last, r.last)
			}
			if last+1 < end {
				n += end - last - 1
				first = cmp.Or(first, fmt.Sprintf("offset %d of partition %d", last+1, part))
			}
			continue
		}
		for offset := range end {
			at := groupPlace{int32(part), offset}
			r := a.records[at]
			if r == nil || r.done == 0 && !(r.open && (letters == nil || letters[at] > 0)) {
				n++
				if first == "" {
					first = fmt.Sprintf("offset %d of partition %d", offset, part)
					if r != nil {
						first += fmt.Sprintf(", key %s (%s)", r.key, strings.Join(r.trace, "; "))
					}
				}
			}
		}
	}
	return n, first
}

// finish sums up. ends are the partitions' next offsets, letters how often each record is in the dead-letter topic.
func (a *groupAudit) finish(ends []int64, letters map[groupPlace]int) groupVerdict {
	missing, first := a.missing(ends, letters)
	a.mu.Lock()
	defer a.mu.Unlock()
	if missing > 0 {
		a.tell("group %s: %d records are not handled, %s among them", a.name, missing, first)
	}
	a.v.Unhandled = missing
	for part, end := range ends {
		a.v.Handled += end
		a.tokens(int32(part))
	}
	a.v.Handled -= missing
	a.order()
	for at, r := range a.records {
		if n := letters[at]; r.ended && n != 1 {
			a.bad(&a.v.Letters, "offset %d of partition %d was ended and is in the dead-letter topic %d times", at.offset, at.part, n)
		}
	}
	for at := range letters {
		if r := a.records[at]; r == nil || r.done != 0 && !r.ended {
			a.bad(&a.v.Letters, "offset %d of partition %d is in the dead-letter topic and was not ended", at.offset, at.part)
		}
	}
	return a.v
}

// tokens looks whether the runs of a partition follow one another without a gap.
func (a *groupAudit) tokens(part int32) {
	runs := a.runs[part]
	next := int64(0)
	for _, token := range slices.Sorted(maps.Keys(runs)) {
		r := runs[token]
		if r.first > next {
			a.bad(&a.v.Unhandled, "partition %d begins at offset %d under token %d, and before only what is below %d was handled", part, r.first, token, next)
		}
		if r.first < next {
			a.v.Again += next - r.first
		}
		next = max(next, r.last+1)
	}
}

// order looks whether the records of each key were first delivered in order.
func (a *groupAudit) order() {
	if !a.keyed {
		return
	}
	last := map[groupKey]*groupRecord{}
	for _, at := range slices.SortedFunc(maps.Keys(a.records), func(x, y groupPlace) int {
		return cmp.Or(cmp.Compare(x.part, y.part), cmp.Compare(x.offset, y.offset))
	}) {
		r := a.records[at]
		if r.key == "" {
			continue
		}
		k := groupKey{at.part, r.key}
		if before := last[k]; before != nil && before.first > r.first {
			a.bad(&a.v.Reordered, "offset %d of partition %d came %s; before it, of key %s: %s", at.offset, at.part, r.how, r.key, before.how)
		}
		last[k] = r
	}
}
