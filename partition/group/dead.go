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

// Dead records are in one of two books, so that to look for some costs what is found, however many others there
// are: dead are those that nobody has tried to bury, or may try with others; aside those that failed.

// Dead appends dead records that are not set aside to dst, the oldest, at most so many.
func (d *Dispatcher) Dead(dst []DeadLetter, most int64) []DeadLetter {
	return d.letters(dst, &d.dead, 0, most)
}

// Aside appends dead records that are set aside to dst, the oldest from offset from on, at most so many.
func (d *Dispatcher) Aside(dst []DeadLetter, from, most int64) []DeadLetter {
	return d.letters(dst, &d.aside, from, most)
}

func (d *Dispatcher) letters(dst []DeadLetter, book *runs[struct{}], from, most int64) []DeadLetter {
	for most > 0 {
		r, ok := book.next(from)
		if !ok {
			break
		}
		first := max(r.first, from)
		from = min(r.last, first+most-1) + 1
		most -= from - first
		d.eachSlot(first, from-1, func(first, last int64, v slot) {
			dst = append(dst, DeadLetter{First: first, Last: last, Deliveries: v.deliveries, Reason: v.reason})
		})
	}
	return dst
}

// SetAside says that dead records could not be brought to the dead-letter topic: Aside has them from now on.
func (d *Dispatcher) SetAside(first, last int64) {
	d.eachSlot(first, last, func(first, last int64, v slot) {
		if v.state == dead {
			d.dead.clear(first, last)
			d.aside.set(first, last, struct{}{})
		}
	})
}

// FirstAside is the oldest record that is set aside.
func (d *Dispatcher) FirstAside() (offset int64, ok bool) {
	r, ok := d.aside.next(0)
	return r.first, ok
}

// Buried says that dead records are in the dead-letter topic: the next entry counts them as handled.
func (d *Dispatcher) Buried(first, last int64) {
	d.eachSlot(first, last, func(first, last int64, v slot) {
		if v.state != dead {
			return
		}
		d.unbury(first, last)
		d.slots.set(first, last, slot{state: settling, done: true, member: -1, deliveries: v.deliveries})
		d.acks.set(first, last, struct{}{})
	})
}

// unbury takes records out of the books of the dead.
func (d *Dispatcher) unbury(first, last int64) {
	d.dead.clear(first, last)
	d.aside.clear(first, last)
}
