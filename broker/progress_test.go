package broker

import (
	"slices"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/mesh"
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
	late := func(want bool, when string) { // health says nothing of it yet
		t.Helper()
		in(false, when)
		if got := len(s.late(b, s.inSync(b))) == 1; got != want {
			t.Errorf("%s: late %v", when, got)
		}
	}
	age := func(by time.Duration, of func(*applied) *time.Time) {
		s.progress.mu.Lock()
		defer s.progress.mu.Unlock()
		a := s.progress.applied[2]
		*of(&a) = time.Now().Add(-by)
		s.progress.applied[2] = a
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
	for range len(s.progress.own) {
		s.progress.observe(7, 30)
	}
	s.progress.hear(2, 25, 0, false)
	late(true, "behind for a moment")
	b.peers.known[2] = &peerState{up: true, since: time.Now()}
	late(false, "behind, after it was away")
	b.peers.known[2] = &peerState{up: true}
	age(lagTolerance, func(a *applied) *time.Time { return &a.whole })
	late(false, "behind for long")
	s.progress.hear(2, 30, 0, false)
	in(true, "caught up")
	s.progress.hear(2, 29, 0, false)
	late(false, "fallen back, as after a restart")
	s.progress.hear(2, 30, 0, false)
	s.progress.hear(2, 30, 0, true)
	late(false, "damaged while it had everything")
	s.progress.hear(2, 30, 0, false)
	age(progressStale, func(a *applied) *time.Time { return &a.at })
	in(false, "not heard of any more")
}

// TestNewLeaderIsPatient: a new leader isn't said to lack followers that it has yet to hear from, where nothing is
// known to be wrong with them.
func TestNewLeaderIsPatient(t *testing.T) {
	t.Parallel()
	b := &Broker{}
	b.selfID.Store(1)
	b.peers = &peers{b: b, mesh: new(mesh.Mesh), known: map[uint64]*peerState{2: {up: true}, 3: {up: true}}}
	s := &slot{local: true, replica: config.Replica{ID: 1, Broker: 1}, lead: &lead{}}
	s.part.Store(&config.Partition{Replicas: []config.Replica{s.replica, {ID: 2, Broker: 2}, {ID: 3, Broker: 3}}})
	lead := func(since time.Time) { s.lead.now.Store(&leading{term: 5, broker: 1, since: since}) }
	late := func(when string, want ...uint64) {
		t.Helper()
		if got := s.late(b, s.inSync(b)); !slices.Equal(got, want) {
			t.Errorf("%s: late are %v", when, got)
		}
	}
	lead(time.Now())
	s.progress.observe(5, 10)
	late("before anybody was heard", 2, 3)
	s.progress.hear(2, 10, 0, false)
	late("one was heard", 3)
	b.peers.known[3] = &peerState{}
	late("the other can't be reached")
	b.peers.known[3] = &peerState{up: true}
	s.progress.hear(3, 10, 0, true)
	late("the other is damaged")
	s.progress.hear(3, 9, 0, false)
	late("the other is behind", 3)
	lead(time.Now().Add(-settleTime))
	late("the leader isn't new")
}
