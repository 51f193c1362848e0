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
