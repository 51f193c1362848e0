package simulation

import (
	"slices"

	"github.com/parleymq/parley/replication/paxos"
)

// propose makes a plan, or submits the one it has: by then its base may be old.
func (n *node) propose() {
	if n.machine == nil {
		return
	}
	if n.plan == nil {
		if n.machine.Newest().Epoch == 0 {
			n.read() // who the others are, and that all are empty
			return
		}
		n.makePlan(n.world.chance(n.world.weather.council))
	}
	if n.world.healed || n.world.chance(0.7) {
		n.submit()
	}
}

func (n *node) submit() {
	w := n.world
	p := n.plan
	n.plan = nil
	t := n.ticket()
	fx, err := n.machine.Propose(t, p.base, p.value)
	if err != nil {
		w.logf("%v: proposal %d of %q on base %d: %v", n.member, t, p.value, p.base, err)
		return
	}
	w.report.Proposals++
	w.logf("%v: proposal %d of %q on base %d", n.member, t, p.value, p.base)
	w.check.proposing(t, p.value)
	n.take(fx)
}

// planFirst plans epoch 1 from what a read at epoch 0 found: all brokers, empty.
func (n *node) planFirst(peers []paxos.Member) {
	w := n.world
	if n.machine == nil || n.plan != nil || n.refused {
		return
	}
	members := slices.Clone(peers)
	slices.SortFunc(members, func(a, b paxos.Member) int { return int(a.ID) - int(b.ID) })
	f := paxos.Facts{Cluster: "c1", Epoch: 1, Previous: n.durable.Newest.Hash, Members: members}
	f.Council = members[:councilSize(w.rng, len(members))]
	e := w.entry(f)
	n.plan = &plan{0, e.Value}
	if n.durable.Newest.Epoch == 0 {
		n.submit()
	}
}

// makePlan makes the next value: mostly of no consequence, sometimes with another
// seat on the council, a newcomer or one less.
func (n *node) makePlan(change bool) {
	w := n.world
	base := n.machine.Newest()
	old := n.machine.Facts()
	f := paxos.Facts{Cluster: old.Cluster, Epoch: base.Epoch + 1, Previous: base.Hash,
		Members: slices.Clone(old.Members), Council: slices.Clone(old.Council)}
	if change {
		switch w.rng.IntN(5) {
		case 0:
			w.seat(&f)
		case 1:
			w.unseat(&f)
		case 2:
			w.unseat(&f)
			w.seat(&f)
		default:
			w.admit(&f)
		}
	}
	e := w.entry(f)
	n.plan = &plan{base.Epoch, e.Value}
}

// seat gives a broker a seat on the council.
func (w *world) seat(f *paxos.Facts) {
	var free []paxos.Member
	for _, x := range f.Members {
		if !slices.Contains(f.Council, x) {
			free = append(free, x)
		}
	}
	if len(free) > 0 {
		f.Council = append(f.Council, pick(w.rng, free...))
	}
}

func (w *world) unseat(f *paxos.Facts) {
	if len(f.Council) > 1 {
		i := w.rng.IntN(len(f.Council))
		f.Council = slices.Delete(f.Council, i, i+1)
	}
}

// admit names a broker's new incarnation in place of the old, with its seat.
func (w *world) admit(f *paxos.Facts) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if slices.Contains(f.Members, n.member) {
		return
	}
	named := false
	for i, x := range f.Members {
		if x.ID == n.member.ID {
			f.Members[i], named = n.member, true
		}
	}
	if !named {
		f.Members = append(f.Members, n.member)
	}
	for i, x := range f.Council {
		if x.ID == n.member.ID {
			f.Council[i] = n.member
		}
	}
}

// join brings in a broker that no epoch names yet.
func (w *world) join() {
	if len(w.nodes) >= maxNodes || w.check.newest == 0 {
		return
	}
	base, ok := w.admission()
	if !ok {
		return
	}
	n := &node{world: w, member: w.incarnate(uint64(len(w.nodes) + 1))}
	w.nodes = append(w.nodes, n)
	w.logf("%v joins", n.member)
	n.format(base)
	n.start()
}

// admission is what a newcomer is told: the newest epoch of some running broker.
func (w *world) admission() (paxos.Entry, bool) {
	var bases []paxos.Entry
	for _, n := range w.nodes {
		if n.machine != nil && n.durable.Newest.Epoch > 0 {
			bases = append(bases, n.durable.Newest)
		}
	}
	if len(bases) == 0 {
		return paxos.Entry{}, false
	}
	return pick(w.rng, bases...), true
}

// wipe loses a broker's disk, unless that loses the council's majority or, before
// epoch 1, the last disk.
func (w *world) wipe(n *node) {
	base, joins := w.admission()
	if w.check.newest == 0 || !joins || w.chance(0.2) && w.listedIn(n) {
		base = w.check.genesis // told nothing, it takes itself for a new cluster's
	}
	if w.check.newest == 0 {
		whole := 0
		for _, x := range w.nodes {
			if x != n && !x.wiped {
				whole++
			}
		}
		if whole == 0 {
			return
		}
	} else if !w.check.spares(n) {
		return
	}
	n.crash()
	w.report.Wipes++
	was := n.member
	n.member, n.wiped = w.incarnate(was.ID), true
	w.logf("the disk of %v is wiped: now %v, from epoch %d", was, n.member, base.Epoch)
	n.format(base)
	n.start()
}

func (w *world) listedIn(n *node) bool { return n.member.ID <= uint64(w.listed) }
