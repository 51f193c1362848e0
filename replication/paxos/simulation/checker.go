package simulation

import (
	"slices"

	"github.com/parleymq/parley/replication/paxos"
)

// checker sees everything and knows what was chosen, whether or not any machine does.
type checker struct {
	world    *world
	genesis  paxos.Entry
	chosen   map[uint64]paxos.Entry
	newest   uint64 // chosen
	runs     int
	votes    map[attempt]*votes
	owners   map[attempt]int // which life used a ballot
	promised map[voter]paxos.Ballot
	acked    map[string]uint64 // by incarnation: the newest epoch it said it has
	watched  map[string]uint64 // by incarnation: the newest epoch it showed
	onDisk   map[string]uint64
	proposed map[string]bool
	values   map[uint64][]byte // by ticket
	began    map[uint64]uint64 // by ticket: what was chosen when the read began
}

type attempt struct {
	epoch  uint64
	ballot paxos.Ballot
}

type votes struct {
	value  []byte
	voters []paxos.Member
}

type voter struct {
	incarnation string
	epoch       uint64
}

func (c *checker) start(genesis paxos.Entry) {
	c.genesis = genesis
	c.chosen = map[uint64]paxos.Entry{0: genesis}
	c.votes, c.owners, c.promised = map[attempt]*votes{}, map[attempt]int{}, map[voter]paxos.Ballot{}
	c.acked, c.watched, c.onDisk = map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	c.proposed, c.values, c.began = map[string]bool{}, map[uint64][]byte{}, map[uint64]uint64{}
}

// given is an epoch 1 that the run begins with.
func (c *checker) given(e paxos.Entry) {
	c.chosen[e.Epoch], c.newest = e, e.Epoch
	c.proposed[string(e.Value)] = true
}

func (c *checker) formatted(n *node) {
	c.onDisk[n.member.Incarnation] = n.durable.Newest.Epoch
	c.watched[n.member.Incarnation] = n.durable.Newest.Epoch
}

// started: what a broker said and showed before, it still has.
func (c *checker) started(n *node) {
	has := n.durable.Newest.Epoch
	if said := c.acked[n.member.Incarnation]; said > has {
		c.world.fail("%v acknowledged epoch %d and starts with %d", n.member, said, has)
	}
	if shown := c.watched[n.member.Incarnation]; shown > has {
		c.world.fail("%v showed epoch %d and starts with %d", n.member, shown, has)
	}
	c.watched[n.member.Incarnation] = has
}

// durable: a vote on disk counts even if nobody was told.
func (c *checker) durable(n *node, r paxos.Record) {
	switch r.Kind {
	case paxos.RecordAccepted:
		c.vote(n, attempt{r.Epoch, r.Ballot}, r.Value)
	case paxos.RecordDecided:
		c.onDisk[n.member.Incarnation] = r.Epoch
	}
}

func (c *checker) vote(n *node, a attempt, value []byte) {
	if !c.mayVote(n, a.epoch) {
		return
	}
	v := c.votes[a]
	if v == nil {
		v = &votes{value: value}
		c.votes[a] = v
	}
	if string(v.value) != string(value) {
		c.world.fail("ballot %v of epoch %d carries %q and %q", a.ballot, a.epoch, v.value, value)
		return
	}
	if slices.Contains(v.voters, n.member) {
		return
	}
	v.voters = append(v.voters, n.member)
	if !c.decides(a.epoch, v.voters) {
		return
	}
	f := c.world.values[string(value)]
	e := paxos.Entry{Epoch: a.epoch, Hash: f.Hash, Previous: f.Previous, Value: value}
	was, ok := c.chosen[a.epoch]
	switch {
	case ok && string(was.Value) != string(value):
		c.world.fail("epoch %d has two values: %q and, by ballot %v, %q", a.epoch, was.Value, a.ballot, value)
	case ok:
	case !c.proposed[string(value)]:
		c.world.fail("epoch %d has the value %q, which nobody proposed", a.epoch, value)
	case f.Epoch != a.epoch || f.Previous != c.chosen[a.epoch-1].Hash:
		c.world.fail("the chain breaks: epoch %d has the value %q, made as epoch %d after %v", a.epoch, value, f.Epoch, f.Previous)
	default:
		c.chosen[a.epoch] = e
		c.newest = max(c.newest, a.epoch)
		if a.epoch > 1 && !slices.Equal(f.Council, c.council(a.epoch)) {
			c.world.report.CouncilChanges++
		}
		c.world.logf("epoch %d is chosen: %q by ballot %v, council of the next %v", a.epoch, value, a.ballot, f.Council)
	}
}

// council that votes on epoch.
func (c *checker) council(epoch uint64) []paxos.Member {
	return c.world.values[string(c.chosen[epoch-1].Value)].Council
}

func (c *checker) decides(epoch uint64, voters []paxos.Member) bool {
	council := c.council(epoch)
	if epoch == 1 {
		ids := map[uint64]bool{}
		for _, v := range voters {
			ids[v.ID] = true
		}
		return len(ids) == len(council)
	}
	return 2*count(council, func(x paxos.Member) bool { return slices.Contains(voters, x) }) > len(council)
}

func count(members []paxos.Member, is func(paxos.Member) bool) int {
	n := 0
	for _, x := range members {
		if is(x) {
			n++
		}
	}
	return n
}

// mayVote: only the council that epoch-1 names votes on epoch, once it has learned epoch-1.
func (c *checker) mayVote(n *node, epoch uint64) bool {
	if _, ok := c.chosen[epoch-1]; !ok {
		c.world.fail("%v votes on epoch %d before epoch %d is chosen", n.member, epoch, epoch-1)
		return false
	}
	if !slices.ContainsFunc(c.council(epoch), func(x paxos.Member) bool {
		return x == n.member || epoch == 1 && x.ID == n.member.ID
	}) {
		c.world.fail("%v votes on epoch %d, whose council is %v", n.member, epoch, c.council(epoch))
		return false
	}
	if c.onDisk[n.member.Incarnation] < epoch-1 && n.durable.Newest.Epoch < epoch-1 && len(c.world.o.Unsynced) == 0 {
		c.world.fail("%v votes on epoch %d and has only epoch %d", n.member, epoch, n.durable.Newest.Epoch)
		return false
	}
	return true
}

// sent sees each message that leaves a broker.
func (c *checker) sent(n *node, out paxos.Message) {
	a := attempt{out.Epoch, out.Ballot}
	switch out.Kind {
	case paxos.Prepare:
		if life, used := c.owners[a]; used && life != n.run {
			c.world.fail("%v uses ballot %v of epoch %d, which an earlier life used", n.member, out.Ballot, out.Epoch)
		}
		c.owners[a] = n.run
	case paxos.Accept:
		if !c.proposed[string(out.Value)] {
			c.world.fail("%v asks for votes for %q, which nobody proposed", n.member, out.Value)
		}
		v := c.votes[a]
		if v == nil {
			c.votes[a] = &votes{value: out.Value}
		} else if string(v.value) != string(out.Value) {
			c.world.fail("ballot %v of epoch %d is used for %q and %q", out.Ballot, out.Epoch, v.value, out.Value)
		}
	case paxos.Promise, paxos.Accepts:
		if !c.mayVote(n, out.Epoch) {
			return
		}
		k := voter{n.member.Incarnation, out.Epoch}
		if out.Ballot.Compare(c.promised[k]) < 0 {
			c.world.fail("%v promised ballot %v of epoch %d and falls back: %v", n.member, c.promised[k], out.Epoch, out)
		}
		c.promised[k] = out.Ballot
		if v := c.votes[a]; out.Kind == paxos.Accepts && v != nil {
			c.vote(n, a, v.value)
		}
	case paxos.LearnAck:
		c.acked[n.member.Incarnation] = max(c.acked[n.member.Incarnation], out.Epoch)
	}
}

// learned sees what a broker shows to its watchers.
func (c *checker) learned(n *node, e paxos.Entry) {
	was := c.watched[n.member.Incarnation]
	if e.Epoch != was+1 {
		c.world.fail("%v shows epoch %d after %d", n.member, e.Epoch, was)
		return
	}
	c.watched[n.member.Incarnation] = e.Epoch
	c.isChosen(n, e)
}

func (c *checker) isChosen(n *node, e paxos.Entry) {
	switch k, ok := c.chosen[e.Epoch]; {
	case !ok:
		c.world.fail("%v takes %v for decided, no majority voted for it", n.member, e)
	case k.Hash != e.Hash:
		c.world.fail("%v takes %v for decided, chosen is %v", n.member, e, k)
	}
}

// cached sees what a cached read would return.
func (c *checker) cached(n *node) {
	e := n.machine.Newest()
	if len(c.world.o.Unsynced) == 0 && e.Epoch > n.durable.Newest.Epoch {
		c.isChosen(n, e)
	}
}

func (c *checker) proposing(ticket uint64, value []byte) {
	c.proposed[string(value)] = true
	c.values[ticket] = value
}

func (c *checker) outcome(n *node, o paxos.Outcome) {
	r := &c.world.report
	chosen, ok := c.chosen[o.Epoch]
	mine := ok && string(chosen.Value) == string(c.values[o.Ticket])
	switch o.Result {
	case paxos.Chosen:
		r.Chosen++
		if !mine {
			c.world.fail("%v says that its proposal %q is epoch %d, which is %q", n.member, c.values[o.Ticket], o.Epoch, chosen.Value)
		}
	case paxos.Lost:
		r.Lost++
		if !ok || mine {
			c.world.fail("%v says that its proposal %q lost epoch %d, which is %q", n.member, c.values[o.Ticket], o.Epoch, chosen.Value)
		}
	case paxos.Done:
		r.Done++
		has := func(x paxos.Member) bool { return max(c.onDisk[x.Incarnation], c.acked[x.Incarnation]) >= o.Epoch }
		councils := [][]paxos.Member{c.council(o.Epoch + 1)}
		if o.Epoch > 1 {
			councils = append(councils, c.council(o.Epoch))
		}
		for _, council := range councils {
			if 2*count(council, has) <= len(council) {
				c.world.fail("%v says that epoch %d is done, no majority of %v has it", n.member, o.Epoch, council)
			}
		}
	}
}

func (c *checker) reading(ticket uint64) { c.began[ticket] = c.newest }

// readDone: nothing that was chosen before the read began may be missing.
func (c *checker) readDone(n *node, r paxos.ReadResult) {
	c.world.report.Reads++
	if r.Epoch < c.began[r.Ticket] {
		c.world.fail("%v: read %d returned epoch %d, but %d was chosen before it began", n.member, r.Ticket, r.Epoch, c.began[r.Ticket])
	}
	if _, ok := c.chosen[r.Epoch]; !ok {
		c.world.fail("%v: read %d returned epoch %d, which was not chosen", n.member, r.Ticket, r.Epoch)
	}
}

func (c *checker) refused(n *node, r paxos.Refusal) {
	if r.Reason == paxos.Contradiction || r.Reason == paxos.OtherCluster {
		c.world.fail("%v", r)
	}
	_ = n
}

// spares: would the council that votes next, and the one that chose the newest epoch,
// which perhaps nobody has learned yet, keep a live majority without n?
func (c *checker) spares(n *node) bool {
	for epoch := max(2, c.newest); epoch <= c.newest+1; epoch++ {
		council := c.council(epoch)
		if 2*count(council, func(x paxos.Member) bool { return x != n.member && c.lives(x) }) <= len(council) {
			return false
		}
	}
	return true
}

// lives: does any broker still have that member's disk?
func (c *checker) lives(x paxos.Member) bool {
	n := c.world.node(x.ID)
	return n != nil && n.member == x
}
