package group

import "slices"

// WithDead names the groups that have dead records which are not in their dead-letter topics.
func (s *State) WithDead() []string {
	var names []string
	for name, g := range s.groups {
		found := false
		g.back.all(func(r runOf[back]) bool {
			found = r.v.dead
			return !found
		})
		if found {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// DeadLetter is a run of dead records.
type DeadLetter struct {
	First, Last int64
	Deliveries  int32
	Reason      string
}

// Dead appends dead records to dst, at most so many: the oldest from offset from on that pass.
func (d *Dispatcher) Dead(dst []DeadLetter, from, most int64, pass func(offset int64) bool) []DeadLetter {
	d.dead.all(func(r runOf[struct{}]) bool {
		if r.last < from {
			return true
		}
		d.eachSlot(max(r.first, from), r.last, func(first, last int64, v slot) {
			if v.state != dead {
				return
			}
			open := false
			for o := first; o <= last && most > 0; o++ {
				switch n := len(dst) - 1; {
				case !pass(o):
					open = false
				case open:
					dst[n].Last = o
					most--
				default:
					dst = append(dst, DeadLetter{First: o, Last: o, Deliveries: v.deliveries, Reason: v.reason})
					open = true
					most--
				}
			}
		})
		return most > 0
	})
	return dst
}

// Buried says that dead records are in the dead-letter topic: the next entry counts them as handled.
func (d *Dispatcher) Buried(first, last int64) {
	d.eachSlot(first, last, func(first, last int64, v slot) {
		if v.state != dead {
			return
		}
		d.dead.clear(first, last)
		d.slots.set(first, last, slot{state: settling, done: true, member: -1, deliveries: v.deliveries})
		d.acks.set(first, last, struct{}{})
	})
}
