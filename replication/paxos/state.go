package paxos

import "fmt"

// State is what a machine must find again after a restart: the newest decided
// entry, and what its acceptor promised and accepted for the epoch after it.
type State struct {
	Newest   Entry
	Promised Ballot
	Accepted Accepted
}

// Apply adds a record of the journal, in the order in which they were persisted.
func (s *State) Apply(r Record) error {
	switch r.Kind {
	case RecordPromised, RecordAccepted:
		if r.Epoch <= s.Newest.Epoch {
			return nil // left over from an epoch that has been decided
		}
		if r.Epoch != s.Newest.Epoch+1 {
			return fmt.Errorf("%w: %v, but the newest epoch is %d", ErrState, r, s.Newest.Epoch)
		}
		if r.Ballot.Compare(s.Promised) < 0 {
			return fmt.Errorf("%w: %v after %v was promised", ErrState, r, s.Promised)
		}
		s.Promised = r.Ballot
		if r.Kind == RecordAccepted {
			s.Accepted = Accepted{r.Ballot, r.Value}
		}
	case RecordDecided:
		last := s.Newest
		for _, e := range r.Entries {
			if e.Epoch != last.Epoch+1 || e.Previous != last.Hash {
				return fmt.Errorf("%w: %v of previous %v, but the newest is %v", ErrState, e, e.Previous, last)
			}
			last = e
		}
		if len(r.Entries) == 0 || last.Value == nil {
			return fmt.Errorf("%w: %v ends without a value", ErrState, r)
		}
		*s = State{Newest: last}
	default:
		return fmt.Errorf("%w: %v", ErrState, r)
	}
	return nil
}
