package simulation

import (
	"github.com/parleymq/parley/replication/paxos"
)

// node is a broker: a disk, and a machine while the process runs.
type node struct {
	world   *world
	member  paxos.Member
	boot    uint64
	machine *paxos.Machine
	run     int // which life of all lives in this world

	// The disk. What was written after the last fsync is the tail.
	durable paxos.State
	history []paxos.Entry
	tail    []paxos.Record

	queue   []paxos.Effects // stepped and written, not yet carried out
	tickets []uint64
	plan    *plan
	refused bool // told that its disk was wiped
	wiped   bool
}

// plan is a value made on a base that may have been superseded since.
type plan struct {
	base  uint64
	value []byte
}

// format makes an empty disk with a given base.
func (n *node) format(base paxos.Entry) {
	n.durable = paxos.State{Newest: base}
	n.history = []paxos.Entry{base}
	n.tail, n.boot, n.refused = nil, 0, false
	n.world.check.formatted(n)
}

func (n *node) start() {
	w := n.world
	if n.machine != nil {
		return
	}
	if n.boot == 0 || !w.o.KeepBoot {
		n.boot++
	}
	m, err := w.o.New(paxos.Options{Self: n.member, Boot: n.boot, Decode: w.decode, State: n.durable})
	if err != nil {
		w.fail("%v does not start: %v", n.member, err)
		return
	}
	w.check.runs++
	n.machine, n.run = m, w.check.runs
	w.logf("%v starts, boot %d, newest %v, promised %v, accepted %v", n.member, n.boot, n.durable.Newest, n.durable.Promised, n.durable.Accepted.Ballot)
	w.check.started(n)
}

// crash loses the process and some end of what was written after the last fsync.
func (n *node) crash() {
	w := n.world
	if n.machine == nil {
		return
	}
	w.report.Crashes++
	kept := 0
	if len(n.tail) > 0 {
		kept = w.rng.IntN(len(n.tail) + 1)
	}
	w.logf("%v crashes, %d of %d unsynced records survive", n.member, kept, len(n.tail))
	n.tail = n.tail[:kept]
	n.fsync()
	n.machine, n.queue, n.tickets, n.plan = nil, nil, nil, nil
}

func (n *node) fsync() {
	for _, r := range n.tail {
		if err := n.durable.Apply(r); err != nil {
			n.world.fail("the journal of %v: %v", n.member, err)
			return
		}
		if r.Kind == paxos.RecordDecided {
			n.history = append(n.history, r.Entries...)
		}
		n.world.check.durable(n, r)
	}
	n.tail = n.tail[:0]
}

// take writes the records of a step; the rest waits for its fsync.
func (n *node) take(fx paxos.Effects) {
	n.tail = append(n.tail, fx.Persist...)
	n.queue = append(n.queue, fx)
	n.world.check.cached(n)
	if !n.world.chance(n.world.weather.lazy) || n.world.healed {
		n.flush()
	}
}

// flush carries out everything that waits, after one fsync.
func (n *node) flush() {
	for _, fx := range n.queue {
		if n.needsSync(fx) {
			n.fsync()
			break
		}
	}
	queue := n.queue
	n.queue = nil
	for _, fx := range queue {
		n.release(fx)
	}
}

func (n *node) needsSync(fx paxos.Effects) bool {
	for _, r := range fx.Persist {
		skipped := false
		for _, k := range n.world.o.Unsynced {
			skipped = skipped || r.Kind == k
		}
		if !skipped {
			return true
		}
	}
	return false
}

func (n *node) release(fx paxos.Effects) {
	w := n.world
	for _, e := range fx.Learned {
		w.logf("%v learns %v", n.member, e)
		w.check.learned(n, e)
	}
	for _, o := range fx.Outcomes {
		w.logf("%v: proposal %d: epoch %d %v", n.member, o.Ticket, o.Epoch, o.Result)
		w.check.outcome(n, o)
	}
	for _, r := range fx.Reads {
		w.logf("%v: read %d: epoch %d", n.member, r.Ticket, r.Epoch)
		w.check.readDone(n, r)
		if r.Epoch == 0 {
			n.planFirst(r.Peers)
		}
	}
	for _, r := range fx.Refused {
		w.logf("%v", r)
		n.refused = n.refused || r.Reason == paxos.Wiped && r.By == n.member
		w.check.refused(n, r)
	}
	for _, out := range fx.Send {
		w.check.sent(n, out)
		w.send(out)
	}
	for _, s := range fx.Serve {
		n.serve(s)
	}
}

// serve answers from the history: old entries have lost their values.
func (n *node) serve(s paxos.Serve) {
	first := n.history[0].Epoch
	last := n.history[len(n.history)-1].Epoch
	if s.From < first || s.From > last || n.machine == nil {
		return
	}
	entries := append([]paxos.Entry(nil), n.history[s.From-first:]...)
	for i := range entries {
		if entries[i].Epoch+uint64(n.world.weather.keep) <= last {
			entries[i].Value, entries[i].Summary = nil, []byte("summary")
		}
	}
	if entries = paxos.Fit(entries, n.world.weather.batch); len(entries) > 0 {
		n.world.send(n.machine.Decided(s.To, entries))
	}
}

func (n *node) ticket() uint64 {
	n.world.tickets++
	n.tickets = append(n.tickets, n.world.tickets)
	return n.world.tickets
}

func (n *node) read() {
	if n.machine == nil {
		return
	}
	t := n.ticket()
	n.world.check.reading(t)
	n.world.logf("%v: read %d begins", n.member, t)
	fx, err := n.machine.Read(t)
	if err == nil {
		n.take(fx)
	}
}

func (n *node) retry() {
	if n.machine != nil && n.machine.Waiting() {
		n.world.logf("%v retries", n.member)
		n.take(n.machine.Retry())
	}
}

func (n *node) abandon() {
	if n.machine == nil || len(n.tickets) == 0 {
		return
	}
	i := n.world.rng.IntN(len(n.tickets))
	t := n.tickets[i]
	n.tickets = append(n.tickets[:i], n.tickets[i+1:]...)
	n.world.logf("%v abandons %d", n.member, t)
	n.take(n.machine.Abandon(t))
}

func (n *node) observe(peer *node) {
	if n.machine != nil && peer.machine != nil && peer != n {
		n.take(n.machine.Observe(peer.member, peer.durable.Newest.Epoch))
	}
}
