package journal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

// oracle is what a journal has to know, kept in the dumbest way.
type oracle map[Key]*oracleLog

type oracleLog struct {
	state     State
	snapIndex uint64
	snapshot  string
	bootstrap string
	trim      uint64
	base      uint64 // what trim was when the log began
	last      uint64
	entries   map[uint64]string // those that were trimmed, too
}

func (o oracle) log(key Key) *oracleLog {
	if o[key] == nil {
		o[key] = &oracleLog{entries: make(map[uint64]string)}
	}
	return o[key]
}

// texts are entries.
type texts []string

func (e texts) Len() int       { return len(e) }
func (e texts) Size(i int) int { return len(e[i]) }
func (e texts) Put(i int, to []byte) error {
	copy(to, e[i])
	return nil
}

// A step is something that is asked of a journal, and what it means.
type step struct {
	name  string
	do    func(j *Journal) error
	means func(o oracle)
}

// script makes steps as Raft might ask for: o is changed along the way.
func script(rng *rand.Rand, n int) []step {
	o := make(oracle)
	var steps []step
	add := func(s step) {
		s.means(o)
		steps = append(steps, s)
	}
	keys := []Key{{1, 1}, {2, 1}, {2, 9}, {3, 1}, {1 << 40, 1 << 50}}
	text := func(key Key, index, term uint64) string {
		size := rng.IntN(60)
		switch rng.IntN(20) {
		case 0:
			size = rng.IntN(3000)
		case 1:
			size = 5000
		}
		return fmt.Sprintf("%d/%d %d@%d %s", key.Shard, key.Replica, index, term, bytes.Repeat([]byte{byte(rng.IntN(256))}, size))
	}
	for range n {
		key := keys[min(rng.IntN(len(keys)), rng.IntN(len(keys)))]
		l := o.log(key)
		kind := rng.IntN(100)
		switch {
		case kind < 62: // entries and state of one or several replicas
			var updates []Update
			var of []Key
			seen := map[Key]bool{}
			for range 1 + rng.IntN(3) {
				key := keys[rng.IntN(len(keys))]
				if seen[key] {
					continue
				}
				seen[key] = true
				l := o.log(key)
				u := Update{State: l.state}
				from := l.last + 1
				if l.state.Term == 0 || rng.IntN(10) == 0 {
					u.State.Term++
					u.State.Vote = uint64(rng.IntN(4))
					// A new leader's entries may replace what wasn't committed.
					if low := max(l.trim, l.state.Commit); low < l.last && rng.IntN(2) == 0 {
						from = low + 1 + rng.Uint64N(l.last-low)
					}
				}
				if u.State.Term == l.state.Term && u.State.Vote == 0 {
					u.State.Vote = uint64(rng.IntN(4)) // a vote alone
				}
				last := from - 1
				if rng.IntN(8) != 0 {
					var e texts
					for range 1 + rng.IntN(6) {
						last++
						e = append(e, text(key, last, u.State.Term))
					}
					u.First, u.Entries = from, e
				} else {
					last = l.last
				}
				if last > u.State.Commit {
					u.State.Commit += rng.Uint64N(last - u.State.Commit + 1)
				}
				updates, of = append(updates, u), append(of, key)
			}
			add(step{fmt.Sprintf("save %v", of), func(j *Journal) error {
				b := j.NewBatch()
				for i := range updates {
					b.Save(of[i], updates[i])
				}
				return b.Commit()
			}, func(o oracle) {
				for i, u := range updates {
					l := o.log(of[i])
					l.state = u.State
					if u.Entries == nil {
						continue
					}
					for i, e := range u.Entries.(texts) {
						l.entries[u.First+uint64(i)] = e
						l.last = u.First + uint64(i)
					}
				}
			}})
		case kind < 68: // a commit index alone
			if l.state.Commit >= l.last {
				continue
			}
			commit := l.state.Commit + 1 + rng.Uint64N(l.last-l.state.Commit)
			state := l.state
			state.Commit = commit
			add(step{"commit index", func(j *Journal) error {
				b := j.NewBatch()
				b.Save(key, Update{State: state})
				return b.Commit()
			}, func(o oracle) { o.log(key).state = state }})
		case kind < 78: // a cut: snapshot, then trim
			if l.state.Commit <= max(l.trim, l.snapIndex) {
				continue
			}
			index := l.state.Commit
			add(step{"snapshot", func(j *Journal) error {
				b := j.NewBatch()
				b.Snapshot(key, index, []byte(fmt.Sprint("snapshot ", index)))
				return b.Commit()
			}, func(o oracle) {
				l := o.log(key)
				l.snapIndex, l.snapshot = index, fmt.Sprint("snapshot ", index)
			}})
			to := l.trim + 1 + rng.Uint64N(index-l.trim)
			add(step{"trim", func(j *Journal) error {
				j.Trim(key, to)
				return nil
			}, func(o oracle) { o.log(key).trim = max(o.log(key).trim, to) }})
		case kind < 81: // a snapshot that was received
			index := l.last + 1 + rng.Uint64N(100)
			state := State{Term: l.state.Term + 1, Commit: index}
			add(step{"install", func(j *Journal) error {
				b := j.NewBatch()
				b.Save(key, Update{State: state, Install: index, Snapshot: []byte("installed")})
				return b.Commit()
			}, func(o oracle) {
				*o.log(key) = oracleLog{
					state: state, snapIndex: index, snapshot: "installed", bootstrap: o.log(key).bootstrap,
					trim: index, base: index, last: index, entries: make(map[uint64]string),
				}
			}})
		case kind < 84:
			add(step{"bootstrap", func(j *Journal) error {
				b := j.NewBatch()
				b.Bootstrap(key, []byte("bootstrap"))
				return b.Commit()
			}, func(o oracle) { o.log(key).bootstrap = "bootstrap" }})
		case kind < 86:
			add(step{"remove", func(j *Journal) error {
				b := j.NewBatch()
				b.Remove(key)
				return b.Commit()
			}, func(o oracle) { delete(o, key) }})
		default:
			add(step{"tidy", func(j *Journal) error { return j.tidy() }, func(oracle) {}})
		}
	}
	return steps
}

// differs says what a journal has that it should not, or lacks. What may be forgotten in a crash is a
// commit index, and that entries were trimmed.
func (o oracle) differs(j *Journal, crashed bool) error {
	for _, key := range j.Replicas() {
		if o[key] == nil {
			return fmt.Errorf("replica %v is there and should not be", key)
		}
	}
	for key, l := range o {
		s, ok := j.Status(key)
		if !ok {
			if l.state == (State{}) && l.bootstrap == "" && l.snapshot == "" && l.last == 0 {
				continue
			}
			return fmt.Errorf("replica %v is missing", key)
		}
		if s.State.Term != l.state.Term || s.State.Vote != l.state.Vote {
			return fmt.Errorf("state of %v is %+v, want %+v", key, s.State, l.state)
		}
		if s.State.Commit > l.state.Commit || !crashed && s.State.Commit != l.state.Commit {
			return fmt.Errorf("commit of %v is %d, want %d", key, s.State.Commit, l.state.Commit)
		}
		if s.SnapshotIndex != l.snapIndex || string(s.Snapshot) != l.snapshot || string(s.Bootstrap) != l.bootstrap {
			return fmt.Errorf("snapshot %d %q, bootstrap %q of %v, want %d %q, %q",
				s.SnapshotIndex, s.Snapshot, s.Bootstrap, key, l.snapIndex, l.snapshot, l.bootstrap)
		}
		if s.Last != l.last || s.First > l.trim+1 || s.First <= l.base || !crashed && s.First != l.trim+1 {
			return fmt.Errorf("%v has entries %d to %d, want %d to %d", key, s.First, s.Last, l.trim+1, l.last)
		}
		next := s.First
		err := j.Read(key, s.First, s.Last+1, func(index uint64, e []byte) (bool, error) {
			if index != next || string(e) != l.entries[index] {
				return false, fmt.Errorf("entry %d of %v is %.60q, want %d: %.60q", index, key, e, next, l.entries[next])
			}
			next++
			return true, nil
		})
		if err == nil && next != s.Last+1 {
			err = fmt.Errorf("entry %d of %v is missing", next, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
