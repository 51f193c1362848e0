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

// Dead appends the oldest dead records to dst, at most so many.
func (d *Dispatcher) Dead(dst []DeadLetter, most int64) []DeadLetter {
	d.dead.all(func(r runOf[struct{}]) bool {
		d.eachSlot(r.first, r.last, func(first, last int64, v slot) {
			if most > 0 && v.state == dead {
				last = min(last, first+most-1)
				most -= last - first + 1
				dst = append(dst, DeadLetter{First: first, Last: last, Deliveries: v.deliveries, Reason: v.reason})
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
