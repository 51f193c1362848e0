package memlog

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/parleymq/parley/replication"
)

// action is one thing that may happen next. It is called with steps held and mu not.
type action func()

// Step does one thing that can happen, chosen by the seed, and tells whether there was
// one. Faults of a step come on top.
func (c *Cluster) Step() bool {
	c.steps.Lock()
	defer c.steps.Unlock()
	c.mu.Lock()
	actions := c.enabled()
	if len(actions) == 0 {
		c.mu.Unlock()
		return false
	}
	next := actions[c.rng.IntN(len(actions))]
	faults := c.faults()
	c.mu.Unlock()
	for _, f := range faults {
		f()
	}
	next()
	c.mu.Lock()
	c.moved.Broadcast()
	c.mu.Unlock()
	return true
}

// enabled lists what can happen, in an order that only depends on the state.
func (c *Cluster) enabled() []action {
	var out []action
	for _, shard := range c.order {
		g := c.groups[shard]
		if !g.ready(c) {
			for _, r := range g.sorted() {
				if g.electable(c, r) {
					out = append(out, c.locked(func() {
						if !g.ready(c) && g.electable(c, r) {
							g.elect(c, r)
						}
					}))
				}
			}
		} else {
			if to := g.replicas[g.transfer]; g.transfer != 0 {
				out = append(out, c.locked(func() {
					if to != nil && g.electable(c, to) {
						g.elect(c, to)
					}
					g.transfer = 0
				}))
			}
			if len(g.queue) > 0 || len(g.late) > 0 {
				out = append(out, c.locked(func() { g.advance(c) }))
			}
		}
		for _, r := range g.sorted() {
			if c.stale(g, r) {
				out = append(out, func() { c.tell(g, r) })
			}
			if c.reachable(r) && g.ready(c) && r.applied < g.last() {
				out = append(out, func() { c.apply(g, r) })
			}
		}
	}
	return out
}

func (c *Cluster) locked(f func()) action {
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		f()
	}
}

// advance commits the next proposal, or one that was late.
func (g *group) advance(c *Cluster) {
	if len(g.queue) == 0 || len(g.late) > 0 && c.rng.IntN(4) == 0 {
		if len(g.late) == 0 {
			return
		}
		p := g.late[0]
		g.late = slices.Delete(g.late, 0, 1)
		g.append(entry{data: p.data})
		return
	}
	if !g.ready(c) {
		return
	}
	at := 0
	if g.queue[0].fate == CommitBehind && len(g.queue) > 1 {
		g.queue[0].fate = Commit
		at = 1
	}
	p := g.queue[at]
	g.queue = slices.Delete(g.queue, at, at+1)
	g.commit(c, p)
}

// faults picks the faults of one step.
func (c *Cluster) faults() []action {
	var out []action
	f := &c.options.Faults
	if *f == (Faults{}) || len(c.order) == 0 {
		return nil
	}
	hit := func(p float64) bool { return p > 0 && c.rng.Float64() < p }
	g := c.groups[c.order[c.rng.IntN(len(c.order))]]
	replicas := g.sorted()
	if len(replicas) == 0 {
		return nil
	}
	r := replicas[c.rng.IntN(len(replicas))]
	if hit(f.Gap) {
		out = append(out, c.locked(func() { g.append(entry{kind: noEntry}) }))
	}
	if hit(f.Elect) {
		out = append(out, c.locked(func() {
			if g.electable(c, r) {
				g.elect(c, r)
			}
		}))
	}
	if hit(f.Compact) && c.reachable(g.replicas[g.leader]) {
		keep := c.rng.IntN(4)
		out = append(out, func() { must(c.compact(g, keep)) })
	}
	if hit(f.Sync) {
		out = append(out, func() {
			if !r.isClosed() {
				must(r.sm.Sync())
			}
		})
	}
	if hit(f.Reopen) {
		out = append(out, func() { must(c.reopen(r)) })
	}
	return out
}

// must: a state machine that fails ends the simulation, as it would end the process.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("memlog: %v", err))
	}
}

// stale: r believes something else than it would be told. A replica that is cut off
// learns in the end that it leads no more.
func (c *Cluster) stale(g *group, r *replica) bool {
	if r.closed {
		return false
	}
	if c.cut[r.host] {
		return r.view.Leader != 0 && g.leader != r.id
	}
	return r.view != g.view(r)
}

// tell brings r's belief up to date.
func (c *Cluster) tell(g *group, r *replica) {
	c.mu.Lock()
	if !c.stale(g, r) {
		c.mu.Unlock()
		return
	}
	view := g.view(r)
	if c.cut[r.host] {
		view = replication.Leadership{Term: r.view.Term}
	}
	r.view = view
	c.mu.Unlock()
	if r.onLeader != nil {
		r.onLeader(view)
	}
}

// apply hands the next entries to r, or a snapshot when they were forgotten.
func (c *Cluster) apply(g *group, r *replica) {
	c.mu.Lock()
	if r.closed || r.applied >= g.last() {
		c.mu.Unlock()
		return
	}
	if r.applied+1 < g.cut {
		c.mu.Unlock()
		if c.snapshot(g, r) {
			return
		}
		c.mu.Lock() // its own log has the entries still
	}
	from := int(r.applied)
	n := min(1+c.rng.IntN(c.options.ApplyBatch), len(g.log)-from)
	batch := slices.Clone(g.log[from : from+n])
	r.entries = r.entries[:0]
	for _, e := range batch {
		if e.kind == dataEntry {
			r.entries = append(r.entries, replication.Entry{Index: e.index, Data: slices.Clone(e.data)})
		}
	}
	entries := r.entries
	c.mu.Unlock()

	if len(entries) > 0 {
		if err := r.sm.Apply(entries); err != nil {
			panic(fmt.Sprintf("memlog: apply entries of log %d on replica %d: %v", g.shard, r.id, err))
		}
		for _, e := range entries {
			for i := range e.Data {
				e.Data[i] = 0xdb // it was the log's: whoever kept it shall notice
			}
		}
	}

	c.mu.Lock()
	r.applied = batch[n-1].index
	if len(entries) > 0 {
		r.handed = entries[len(entries)-1].Index
	}
	i := 0
	removed := false
	for _, e := range batch {
		switch {
		case e.kind == dataEntry:
			if p := e.proposal; p != nil && p.r == r {
				p.resolve(entries[i].Result, nil)
			}
			i++
		case e.kind == configEntry:
			if e.proposal != nil && e.proposal.r == r {
				e.change.done = true
				e.proposal.resolve(replication.Result{}, e.change.err)
			}
			if e.change != nil && e.change.err == nil && e.change.Kind == replication.Remove && e.change.Replica == r.id {
				removed = true
			}
		}
	}
	c.mu.Unlock()
	if removed {
		c.halt(r)
	}
}

// snapshot brings r to where the leader is, and tells whether the leader could help.
func (c *Cluster) snapshot(g *group, r *replica) bool {
	c.mu.Lock()
	source := g.replicas[g.leader]
	if source == r || !c.reachable(source) || source.applied+1 < g.cut {
		c.mu.Unlock()
		return false
	}
	applied, handed := source.applied, source.handed
	c.mu.Unlock()
	var data bytes.Buffer
	point, err := source.sm.PrepareSnapshot()
	if err == nil {
		err = source.sm.SaveSnapshot(point, &data, source.stop)
	}
	if err == nil {
		err = r.sm.RecoverFromSnapshot(&data, r.stop)
	}
	if err != nil {
		panic(fmt.Sprintf("memlog: snapshot of log %d from replica %d to %d: %v", g.shard, source.id, r.id, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.applied, r.handed = applied, handed
	// What r had proposed may have been in there.
	for p := range r.inFlight {
		if !slices.Contains(g.queue, p) && !g.pendingEntry(p, applied) {
			p.resolveUnknown()
		}
	}
	return true
}

// pendingEntry: p is in the log above index.
func (g *group) pendingEntry(p *proposal, index uint64) bool {
	for i := range g.log {
		if g.log[i].proposal == p && g.log[i].index > index {
			return true
		}
	}
	return false
}

// compact forgets all but the newest keep entries, once the leader's state machine has
// made what it applied durable.
func (c *Cluster) compact(g *group, keep int) error {
	c.mu.Lock()
	leader := g.replicas[g.leader]
	if !c.reachable(leader) {
		c.mu.Unlock()
		return fmt.Errorf("compact log %d: it has no leader", g.shard)
	}
	applied := leader.applied
	c.mu.Unlock()
	if err := leader.sm.Sync(); err != nil {
		return fmt.Errorf("compact log %d: sync state machine: %w", g.shard, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if applied > uint64(keep) {
		g.cut = max(g.cut, applied-uint64(keep)+1)
	}
	return nil
}

// reopen replaces r's state machine by what it is after a crash. The caller holds steps.
func (c *Cluster) reopen(r *replica) error {
	crash, ok := r.sm.(Crasher)
	c.mu.Lock()
	if r.closed {
		c.mu.Unlock()
		return nil
	}
	for p := range r.inFlight {
		p.resolveUnknown()
	}
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("reopen replica %d of log %d: its state machine has no method Crash", r.id, r.shard)
	}
	sm := crash.Crash()
	index, err := sm.Open(r.stop)
	if err != nil {
		return fmt.Errorf("open state machine: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if index > r.applied {
		return fmt.Errorf("open state machine of log %d: it says index %d, but only %d was applied", r.shard, index, r.applied)
	}
	r.sm, r.applied, r.handed = sm, index, index
	return nil
}
