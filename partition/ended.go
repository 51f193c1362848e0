package partition

// endedTerms remembers how far the newest terms came: the counter of the last command that was
// applied before a newer term started. Whatever a deposed leader numbered higher is
// refused for good, wherever a copy of it may be.
type endedTerms [4]endedTerm

type endedTerm struct{ term, counter uint64 }

// note is called as a newer term starts.
func (e *endedTerms) note(term, counter uint64) {
	copy(e[1:], e[:])
	e[0] = endedTerm{term, counter}
}

func (e *endedTerms) of(term uint64) (counter uint64, ok bool) {
	for _, t := range e {
		if t.term == term && term != 0 {
			return t.counter, true
		}
	}
	return 0, false
}

// ended returns the counter of a term's last command that was applied, once a newer
// term has started here.
func (m *machine) ended(term uint64) (counter uint64, ok bool) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.state == nil || m.state.term <= term {
		return 0, false
	}
	return m.state.ended.of(term)
}
