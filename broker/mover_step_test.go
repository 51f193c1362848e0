package broker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch/config"
)

// world is one partition's Raft group and epochs, without anything else: steps are carried out at once.
type world struct {
	t       *testing.T
	r       *rand.Rand
	c       *config.Config
	members replication.Membership
	leader  uint64
	down    map[uint64]bool // brokers
	caught  map[uint64]bool // replicas
	log     []string
}

func newWorld(t *testing.T, r *rand.Rand, brokers, replicas int) *world {
	c := &config.Config{ClusterID: "c", Epoch: 1, FeatureLevel: config.LevelMoves, Council: []uint64{1}, NextBroker: 1, NextTopic: 2, NextShard: 2, NextReplica: 1}
	for n := range brokers {
		c.Brokers = append(c.Brokers, config.Broker{ID: c.TakeBroker(), Name: fmt.Sprint("b", n+1), Incarnation: fmt.Sprint("i", n), Weight: 1})
	}
	p := config.Partition{Shard: 1}
	w := &world{t: t, r: r, c: c, down: map[uint64]bool{}, caught: map[uint64]bool{},
		members: replication.Membership{Voters: map[uint64]string{}, NonVoting: map[uint64]string{}, Removed: map[uint64]struct{}{}}}
	for n := range replicas {
		id := c.TakeReplica()
		p.Replicas = append(p.Replicas, config.Replica{ID: id, Broker: uint64(n + 1)})
		w.members.Voters[id], w.caught[id] = "", true
	}
	c.Topics = []config.Topic{{ID: 1, Name: "t", Subjects: []string{"t"}, Partitions: []config.Partition{p}}}
	w.leader = p.Replicas[0].ID
	return w
}

func (w *world) part() *config.Partition { return &w.c.Topics[0].Partitions[0] }

func (w *world) live(id uint64) bool {
	r, ok := w.part().Find(id)
	return ok && !w.down[r.Broker] && w.caught[id]
}

func (w *world) view() *moveView {
	return &moveView{
		part: w.part(), members: w.members, self: w.leader, room: true,
		opened: func(r config.Replica) bool { return !w.down[r.Broker] },
		caught: func(r config.Replica) bool { return w.live(r.ID) },
	}
}

// quorum says that the voters that are live are a majority.
func (w *world) quorum() bool {
	n := 0
	for id := range w.members.Voters {
		if w.live(id) {
			n++
		}
	}
	return n > len(w.members.Voters)/2
}

// elect gives the leadership to a live voter, if there is a majority.
func (w *world) elect() bool {
	if !w.quorum() {
		return false
	}
	if _, voter := w.members.Voters[w.leader]; voter && w.live(w.leader) {
		return true
	}
	for _, id := range ordered(w.members.Voters) {
		if w.live(id) {
			w.leader = id
		}
	}
	return true
}

// step takes one step and checks what must hold whatever the order.
func (w *world) step() stepKind {
	s := nextStep(w.view())
	p := w.part()
	w.log = append(w.log, fmt.Sprintf("%s %d", s.kind, s.replica.ID))
	wanted := slices.Contains(p.Wanted(), s.replica)
	before := len(w.members.Voters)
	switch s.kind {
	case stepAdd:
		if !wanted || w.down[s.replica.Broker] {
			w.fail("adds %v", s.replica)
		}
		w.members.NonVoting[s.replica.ID] = ""
	case stepPromote:
		if _, ok := w.members.NonVoting[s.replica.ID]; !ok || !wanted || !w.live(s.replica.ID) {
			w.fail("promotes %v, which hasn't caught up", s.replica)
		}
		delete(w.members.NonVoting, s.replica.ID)
		w.members.Voters[s.replica.ID] = ""
	case stepRemove:
		id := s.replica.ID
		if wanted || id == w.leader {
			w.fail("removes %v", s.replica)
		}
		if _, voter := w.members.Voters[id]; voter && before <= min(len(p.Replicas), len(p.Wanted())) {
			w.fail("removes %v before another was promoted: %d voters", s.replica, before)
		}
		delete(w.members.Voters, id)
		delete(w.members.NonVoting, id)
		w.members.Removed[id] = struct{}{}
	case stepTransfer:
		if _, voter := w.members.Voters[s.replica.ID]; !voter || !wanted || !w.live(s.replica.ID) {
			w.fail("hands over to %v", s.replica)
		}
		w.leader = s.replica.ID
	case stepRenew:
		if err := w.c.Replace(1, 0, s.replica.ID); err != nil {
			w.fail("renew: %v", err)
		}
	case stepDone:
		for _, r := range p.Wanted() {
			if _, voter := w.members.Voters[r.ID]; !voter {
				w.fail("it is done, and %v is no voter", r)
			}
		}
		if len(w.members.Voters) != len(p.Wanted()) || len(w.members.NonVoting) > 0 {
			w.fail("it is done, with members %+v", w.members)
		}
		if p.Moving() {
			if err := w.c.FinishMove(1, 0, p.Target); err != nil {
				w.fail("finish: %v", err)
			}
		}
	}
	if !w.quorum() {
		w.fail("no majority of the voters is live after %s of %v", s.kind, s.replica)
	}
	return s.kind
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\n%v\nmembers %+v\npartition %+v", fmt.Sprintf(format, args...), w.log, w.members, w.part())
}

// retarget asks for other brokers, whatever moves.
func (w *world) retarget() {
	n := 1 + w.r.IntN(min(4, len(w.c.Brokers)))
	var to []uint64
	for _, b := range w.r.Perm(len(w.c.Brokers))[:n] {
		to = append(to, uint64(b+1))
	}
	next := w.c.Clone()
	next.Epoch, next.Previous = w.c.Epoch+1, w.c.Hash()
	if err := next.SetTarget(1, 0, to); err != nil {
		return
	}
	if err := next.Follows(w.c); err != nil {
		w.fail("target %v: %v", to, err)
	}
	w.c = next
	w.log = append(w.log, fmt.Sprintf("target %v", to))
}

// TestSteps moves a partition about at random: brokers go down and come back, leaders change, targets
// are replaced. Never is a majority lost by a step, and when all is well again the move ends.
func TestSteps(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	kinds := map[stepKind]int{}
	for run := range 3000 {
		r := rand.New(rand.NewPCG(seed, uint64(run)))
		w := newWorld(t, r, 3+r.IntN(5), 1+r.IntN(3))
		for range 60 {
			switch {
			case r.IntN(12) == 0:
				w.retarget()
			case r.IntN(10) == 0:
				b := uint64(1 + r.IntN(len(w.c.Brokers)))
				w.down[b] = !w.down[b]
			case r.IntN(4) == 0: // somebody catches up
				for id := range w.members.NonVoting {
					w.caught[id] = true
				}
			case r.IntN(15) == 0: // the epoch is about to be replaced, or the last leader's act comes late
				for _, x := range w.part().Adding() {
					if _, banned := w.members.Removed[x.ID]; !banned && r.IntN(2) == 0 {
						if _, voter := w.members.Voters[x.ID]; !voter {
							w.members.NonVoting[x.ID] = ""
						}
					}
				}
				w.retarget()
			}
			if w.elect() {
				kinds[w.step()]++
			}
		}
		clear(w.down)
		for n := 0; w.part().Moving(); n++ {
			if n > 200 {
				w.fail("the move doesn't end")
			}
			for id := range w.members.NonVoting {
				w.caught[id] = true
			}
			for id := range w.members.Voters {
				w.caught[id] = true
			}
			if !w.elect() {
				w.fail("no leader")
			}
			kinds[w.step()]++
		}
	}
	for k := stepDone; k <= stepRenew; k++ {
		if kinds[k] < 100 {
			t.Errorf("%s was taken %d times: the test doesn't test it", k, kinds[k])
		}
	}
	t.Logf("steps: %v", kinds)
}

// TestStepsInOrder: the order of a move that nothing disturbs.
func TestStepsInOrder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		to   []uint64
		want string
	}{
		{[]uint64{1, 2, 4}, "[add 4 promote 4 remove 3 done 0]"},
		{[]uint64{4, 2, 3}, "[add 4 promote 4 transfer 4 remove 1 done 0]"},
		{[]uint64{1}, "[remove 2 remove 3 done 0]"},
		{[]uint64{1, 2, 3, 4}, "[add 4 promote 4 done 0]"},
		{[]uint64{4, 5, 6}, "[add 4 promote 4 remove 2 add 5 promote 5 remove 3 add 6 promote 6 transfer 4 remove 1 done 0]"},
		{[]uint64{3, 1}, "[remove 2 done 0]"},
	} {
		w := newWorld(t, rand.New(rand.NewPCG(1, 1)), 6, 3)
		if err := w.c.SetTarget(1, 0, c.to); err != nil {
			t.Fatal(err)
		}
		for n := 0; w.part().Moving() && n < 30; n++ {
			for id := range w.members.NonVoting {
				w.caught[id] = true
			}
			w.step()
		}
		if got := fmt.Sprint(w.log); got != c.want {
			t.Errorf("to %v: %s\nwant %s", c.to, got, c.want)
		}
	}
}

// TestStepsWait: what a move waits for, and that it says so.
func TestStepsWait(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(w *world)
		room    bool
		want    string
	}{
		"the target's broker is down": {func(w *world) { w.down[4] = true }, true, "wait 4 adding: its broker has not opened it"},
		"others are being copied":     {func(w *world) {}, false, "wait 4 waiting: as many replicas as may be copied at once are being copied"},
		"it catches up":               {func(w *world) { w.members.NonVoting[4] = "" }, true, "wait 4 copying: it is catching up"},
		"the others lag": {func(w *world) {
			w.members.NonVoting[4], w.caught[4] = "", true
			w.caught[2], w.caught[3] = false, false
		}, true, "wait 4 promoting: with it only 2 of 4 voters would be live"},
		"the others lag when one is to go": {func(w *world) {
			w.members.Voters[4], w.caught[4] = "", true
			w.caught[2], w.caught[4] = false, false
		}, true, "wait 3 removing: without replica 3 only 1 of 3 voters are live"},
		"nobody is there to lead": {func(w *world) {
			if err := w.c.SetTarget(1, 0, []uint64{4, 5, 6}); err != nil {
				t.Fatal(err)
			}
			clear(w.members.Voters)
			for id := range uint64(4) {
				w.members.Voters[3+id] = ""
			}
			w.leader, w.caught[3] = 3, true
		}, true, "wait 3 handing over: the leader leaves, and no replica that stays is in sync"},
	} {
		w := newWorld(t, rand.New(rand.NewPCG(1, 1)), 6, 3)
		if err := w.c.SetTarget(1, 0, []uint64{1, 2, 4}); err != nil {
			t.Fatal(err)
		}
		c.prepare(w)
		v := w.view()
		v.room = c.room
		s := nextStep(v)
		if got := fmt.Sprintf("%s %d %s: %s", s.kind, s.replica.ID, s.phase, s.why); got != c.want {
			t.Errorf("%s: %s\nwant %s", name, got, c.want)
		}
	}
}
