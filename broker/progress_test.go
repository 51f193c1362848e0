package broker

import (
	"testing"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

// TestInSync: a follower is in sync when it has what its leader had, in the term that the leader has looked at its own log in,
// and isn't damaged.
func TestInSync(t *testing.T) {
	t.Parallel()
	b := &Broker{}
	b.selfID.Store(1)
	b.peers = &peers{b: b, known: map[uint64]*peerState{2: {up: true}}}
	s := &slot{local: true, replica: config.Replica{ID: 1, Broker: 1}, lead: &lead{}}
	follower := config.Replica{ID: 2, Broker: 2}
	s.part.Store(&config.Partition{Replicas: []config.Replica{s.replica, follower}})
	lead := func(term uint64) { s.lead.now.Store(&leading{term: term, broker: 1}) }
	in := func(want bool, when string) {
		t.Helper()
		if got := s.inSyncFor(b, follower) >= 0; got != want {
			t.Errorf("%s: in sync %v", when, got)
		}
		if got := len(s.inSync(b)) == 2; got != want {
			t.Errorf("%s: listed %v", when, got)
		}
	}
	lead(5)
	s.progress.hear(2, 10, 0, false)
	in(false, "before the leader has looked at all")
	s.progress.observe(5, 10)
	s.progress.hear(2, 9, 0, false)
	in(false, "an entry behind")
	s.progress.hear(2, 10, 0, false)
	in(true, "with all of it")
	s.progress.hear(2, 10, 0, true)
	in(false, "damaged")
	s.progress.hear(2, 10, 0, false)
	in(true, "not damaged any more")
	lead(7) // somebody else led meanwhile, and committed more
	s.progress.hear(2, 12, 0, false)
	in(false, "before the leader has looked in this term")
	s.progress.observe(7, 20)
	in(false, "as far as it was in an older term")
	s.progress.hear(2, 20, 0, false)
	in(true, "with what this term began with")
	s.progress.mu.Lock()
	a := s.progress.applied[2]
	a.at = time.Now().Add(-progressStale)
	s.progress.applied[2] = a
	s.progress.mu.Unlock()
	in(false, "not heard of any more")
}
