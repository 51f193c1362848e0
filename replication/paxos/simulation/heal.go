package simulation

// healRounds is how many rounds of everybody retrying and every message arriving a
// new epoch may take once nothing fails any more.
const healRounds = 60

// heal ends all faults; then a new epoch has to be decided, everybody has to learn
// it, and a read has to see it.
func (w *world) heal() {
	w.logf("faults end")
	w.healed = true
	w.weather.drop, w.weather.repeat = 0, 0
	w.cut = [maxNodes + 1][maxNodes + 1]bool{}
	for _, n := range w.nodes {
		n.start()
		if n.refused {
			w.readmit(n)
		}
		n.flush()
	}
	goal := w.check.newest + 1
	for round := range healRounds {
		for _, n := range w.nodes {
			if round == 0 || w.chance(0.6) {
				n.retry()
			}
			for _, peer := range w.nodes {
				n.observe(peer)
			}
			if w.failed() || !w.settle() {
				return
			}
		}
		if w.reached(goal) {
			return
		}
		w.lead(goal)
		if w.failed() || !w.settle() {
			return
		}
	}
	switch {
	case w.failed():
	case w.check.newest == 0 && w.report.Wipes > 0, !w.check.spares(&node{}):
		w.report.Unhealable = true
	default:
		w.report.Stalled = true
		w.fail("faults ended, %d rounds went by, and there is no epoch %d that all know of (newest chosen: %d)", healRounds, goal, w.check.newest)
	}
}

// readmit takes a broker whose wiped disk was refused in as a newcomer.
func (w *world) readmit(n *node) {
	if base, ok := w.admission(); ok {
		n.crash()
		w.logf("%v joins after it was refused", n.member)
		n.member = w.incarnate(n.member.ID)
		n.format(base)
		n.start()
	}
}

// lead has one broker propose, the lowest that is named.
func (w *world) lead(goal uint64) {
	for _, n := range w.nodes {
		f := n.machine.Facts()
		if f.Epoch >= goal {
			return
		}
		for _, x := range f.Members {
			if x.ID == n.member.ID && (x.Incarnation == n.member.Incarnation || x.Incarnation == "") && !n.refused {
				if f.Epoch > 0 && n.plan == nil {
					n.makePlan(false)
				}
				n.propose()
				return
			}
		}
	}
}

// settle delivers until nothing is under way.
func (w *world) settle() bool {
	const most = 50_000
	for range most {
		if len(w.net) == 0 || w.failed() {
			return !w.failed()
		}
		in := w.net[0]
		w.net = w.net[1:]
		w.hand(in)
	}
	w.fail("%d messages went by and still more come", most)
	return false
}

// reached: is the goal chosen, known to everyone it concerns, and does a read see it?
func (w *world) reached(goal uint64) bool {
	if w.check.newest < goal {
		return false
	}
	f := w.values[string(w.check.chosen[w.check.newest].Value)]
	for _, x := range f.Members {
		if n := w.node(x.ID); n != nil && n.member == x && n.durable.Newest.Epoch != w.check.newest {
			return false
		}
	}
	reads := w.report.Reads
	for _, n := range w.nodes {
		if n.durable.Newest.Epoch == w.check.newest {
			n.read()
			if !w.settle() {
				return false
			}
			return w.report.Reads > reads
		}
	}
	return false
}
