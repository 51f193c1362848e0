package partition

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

// maxGroupPulls is how many pulls of a group may wait at one partition.
const maxGroupPulls = 4 * group.MaxMembers

// pullWaiter is a pull that waits for its turn.
type pullWaiter struct {
	member string
	most   int
	taken  []group.Delivery
	err    *Error
	d      *group.Dispatcher // that taken is of
	done   chan struct{}     // closed with taken or err
}

// PullGroup hands records to a member, waiting for the first as the request says; then Deliveries
// may be empty. Batches that hold the records, whole or cut down to them, are appended to buf, in order of
// offset; only the records in Deliveries are the member's. Errors: not_leader, group_mismatch, bad_request, busy,
// damaged, unavailable, group_not_found (deleted meanwhile).
func (p *Partition) PullGroup(ctx context.Context, r group.Pull, buf []byte) (group.Pulled, []byte, error) {
	pulled, out, err := p.PullGroupInto(ctx, r, func(context.Context) ([]byte, error) { return buf, nil })
	if out == nil {
		out = buf
	}
	return pulled, out, err
}

// PullGroupInto is PullGroup with a buffer that is asked for when there are records, at most once: so that who waits holds none.
// An error of room gives the records back, and is returned.
func (p *Partition) PullGroupInto(ctx context.Context, r group.Pull, room func(ctx context.Context) ([]byte, error)) (group.Pulled, []byte, error) {
	pulled, buf, err := p.pullGroup(ctx, r, room)
	if err != nil {
		return pulled, buf, err
	}
	return pulled, buf, nil
}

func (p *Partition) pullGroup(ctx context.Context, r group.Pull, room func(ctx context.Context) ([]byte, error)) (none group.Pulled, buf []byte, _ *Error) {
	if err := p.checkGroup(r.Group, r.Member, &r.Options); err != nil {
		return none, buf, err
	}
	if r.MaxMessages <= 0 {
		r.MaxMessages = group.DefaultPullRecords
	}
	r.MaxMessages = min(r.MaxMessages, group.MaxPullMessages)
	if r.MaxBytes <= 0 {
		r.MaxBytes = defaultFetchBytes
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return none, buf, err
	}
	if err := p.sure(ctx); err != nil {
		return none, buf, err
	}
	for again := false; ; again = true {
		w, g, err := gl.pull(ctx, &r)
		if err != nil {
			return none, buf, err
		}
		if len(w.taken) == 0 {
			return none, buf, nil
		}
		if !again {
			var full error
			if buf, full = room(ctx); full != nil {
				gl.giveBack(g, w, 0)
				return none, nil, asError(p, full)
			}
		}
		before := len(buf)
		var cut int64
		buf, cut, err = p.m.readDeliveries(w.taken, r.MaxBytes, buf, p.name)
		switch {
		case err != nil:
			buf = buf[:before]
			gl.giveBack(g, w, 0)
			if err.Reason == ErrOutOfRange.Reason && !again {
				continue // retention took them meanwhile: the dispatcher hears of it
			}
			return none, buf, err
		case cut >= 0:
			gl.giveBack(g, w, cut)
		}
		if len(w.taken) > 0 {
			return group.Pulled{Deliveries: w.taken}, buf, nil
		}
	}
}

// pull waits until the member is served, or its time is over.
func (gl *groupLead) pull(ctx context.Context, r *group.Pull) (*pullWaiter, *ledGroup, *Error) {
	gl.mu.Lock()
	defer gl.mu.Unlock()
	g, err := gl.shared(ctx, r.Group, &r.Options)
	if err != nil {
		return nil, nil, err
	}
	if len(g.waiters) >= maxGroupPulls {
		return nil, nil, describe(ErrBusy, "%s: group %s has %d pulls that wait, that is the most", gl.p.name, r.Group, maxGroupPulls)
	}
	b := gl.p.m.look()
	gl.trimmed(b.start)
	g.d.Advance(b.next)
	w := &pullWaiter{member: r.Member, most: r.MaxMessages, done: make(chan struct{})}
	g.waiters = append(g.waiters, w)
	g.d.Wait(w.member, 1)
	gl.serve(g)
	if r.WaitMS <= 0 { // nobody will look ahead for it
		for range feedTurns {
			if g.d == nil || len(w.taken) > 0 || !g.d.Hungry() {
				break
			}
			if err := gl.feed(g); err != nil {
				g.damage = err.Description
				break
			}
			gl.serve(g)
		}
	}
	if len(w.taken) > 0 {
		gl.lookAhead(g)
		return w, g, nil
	}
	gl.enlist(g)
	gl.wake()
	gl.mu.Unlock()
	limit := time.NewTimer(waitOf(r.WaitMS, group.MaxWaitMS))
	defer limit.Stop()
	select {
	case <-w.done:
	case <-ctx.Done():
		err = asError(gl.p, ctx.Err())
	case <-gl.l.ctx.Done():
		err = gl.p.notLeader()
	case <-limit.C:
	}
	gl.mu.Lock()
	select {
	case <-w.done: // served or failed, whatever else came
		if err != nil && len(w.taken) > 0 {
			gl.putBack(g, w, 0)
		}
		if w.err != nil {
			err = w.err
		}
	default:
		gl.leave(g, w)
	}
	return w, g, err
}

// shared returns a shared group with its dispatcher, opening it and, unless want is nil, making it where that is needed. mu is held before
// and after, but not meanwhile.
func (gl *groupLead) shared(ctx context.Context, name string, want *group.Options) (*ledGroup, *Error) {
	for {
		if gl.over != nil {
			return nil, gl.p.notLeader()
		}
		o, err := gl.ensure(ctx, name, want, group.Shared)
		if err != nil {
			return nil, err
		}
		if o.Mode == group.Exclusive {
			return nil, mismatch(gl.p, name, "mode exclusive: ask for its lease and read from the partition")
		}
		g := gl.get(name)
		if g.d != nil {
			return g, nil
		}
		if _, _, err := gl.commitOp(ctx, func(e *group.Entry) { e.Open(name) }, func(code group.Code, _ uint64) {
			if code == group.OK && gl.led[name] == g && g.d == nil {
				gl.begin(g)
			}
		}); err != nil {
			return nil, err
		}
	}
}

// begin makes the group's dispatcher from what the log says. mu is held.
func (gl *groupLead) begin(g *ledGroup) {
	gl.forsake(g)
	p := gl.p
	b := p.m.look()
	gl.table.mu.RLock()
	g.d, _ = group.NewDispatcher(gl.table.s, g.name, b.next, p.now(), p.logTimeNow(b))
	gl.table.mu.RUnlock()
	if g.d == nil {
		return
	}
	g.d.Trim(b.start)
	for _, w := range g.waiters {
		g.d.Wait(w.member, 1)
	}
	gl.touch(g)
}

// serve hands records to those that wait, in turn. mu is held.
func (gl *groupLead) serve(g *ledGroup) {
	if g.d == nil || len(g.waiters) == 0 {
		return
	}
	now := gl.p.now()
	kept := g.waiters[:0]
	for i, w := range g.waiters {
		if !g.d.Available() {
			kept = append(kept, g.waiters[i:]...)
			break
		}
		if w.taken = g.d.Take(w.taken[:0], w.member, w.most, now); len(w.taken) == 0 {
			kept = append(kept, w)
			continue
		}
		w.d = g.d
		g.d.Wait(w.member, -1)
		close(w.done)
	}
	if len(kept) < len(g.waiters) {
		clear(g.waiters[len(kept):])
		g.waiters = kept
		gl.lookAt(g.d.Tick(now))
	}
}

// leave takes a pull out of those that wait. mu is held.
func (gl *groupLead) leave(g *ledGroup, w *pullWaiter) {
	i := slices.Index(g.waiters, w)
	if i < 0 {
		return
	}
	g.waiters = slices.Delete(g.waiters, i, i+1)
	if g.d != nil {
		g.d.Wait(w.member, -1)
	}
}

// failWaiters ends the pulls that wait. mu is held.
func (gl *groupLead) failWaiters(g *ledGroup, err *Error) {
	for _, w := range g.waiters {
		w.err = err
		close(w.done)
	}
	g.waiters = nil
}

// giveBack takes back what did not reach the member: all from offset on.
func (gl *groupLead) giveBack(g *ledGroup, w *pullWaiter, from int64) {
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.putBack(g, w, from)
}

func (gl *groupLead) putBack(g *ledGroup, w *pullWaiter, from int64) {
	kept := w.taken[:0]
	for _, v := range w.taken {
		back := v
		if back.First = max(v.First, from); back.First <= back.Last && g.d == w.d {
			g.d.GiveBack(w.member, back)
		}
		if v.Last = min(v.Last, from-1); v.First <= v.Last {
			kept = append(kept, v)
		}
	}
	w.taken = kept
	gl.serve(g)
	if len(g.waiters) > 0 {
		gl.wake()
	}
}

// enlist puts the group among those that the loop looks at when records arrive. mu is held.
func (gl *groupLead) enlist(g *ledGroup) {
	if !g.isHungry {
		g.isHungry = true
		gl.hungry = append(gl.hungry, g)
	}
}

// lookAhead lets the loop look at the keys of more records. mu is held.
func (gl *groupLead) lookAhead(g *ledGroup) {
	if g.d != nil && g.d.Hungry() && !g.isHungry {
		gl.enlist(g)
		gl.wake()
	}
}

// feedAhead serves a group and looks ahead as far as it wants; where neither is of use any more it leaves the
// loop's list. mu is held before and after, but not meanwhile.
func (gl *groupLead) feedAhead(g *ledGroup) {
	for range feedTurns {
		if g.d == nil {
			break
		}
		g.d.Advance(gl.p.m.look().next)
		gl.serve(g)
		if !g.d.Hungry() {
			break
		}
		if err := gl.feed(g); err != nil {
			g.damage = err.Description
			break
		}
		g.damage = ""
	}
	if g.d != nil {
		gl.serve(g)
	}
	switch {
	case len(g.waiters) == 0 && (g.d == nil || !g.d.Hungry() || g.damage != ""):
		g.isHungry = false
		if i := slices.Index(gl.hungry, g); i >= 0 {
			gl.hungry = slices.Delete(gl.hungry, i, i+1)
		}
	case g.d != nil && g.d.Hungry() && g.damage == "":
		gl.wake()
	}
}

// feeder is what feed needs for a moment.
type feeder struct {
	hashes []uint64
	it     record.Iterator
}

// feed tells the dispatcher the keys of the next records. mu is held before and after, but not meanwhile.
func (gl *groupLead) feed(g *ledGroup) *Error {
	d, from := g.d, g.d.Cursor()
	f := gl.p.feeders.Get().(*feeder)
	defer gl.p.feeders.Put(f)
	gl.mu.Unlock()
	var err *Error
	f.hashes, err = gl.p.m.keysFrom(from, f.hashes[:0], &f.it, gl.p.name)
	gl.mu.Lock()
	gl.trimmed(gl.p.m.look().start)
	if g.d == d && d.Cursor() == from {
		d.Feed(f.hashes)
	}
	if err != nil && err.Reason == ErrOutOfRange.Reason {
		return nil // trimmed meanwhile, which the dispatcher has just heard
	}
	if len(f.hashes) > 0 {
		return nil // what comes after the damage is met next time
	}
	return err
}

// AckGroup returns once what was taken is committed; Progress and Return need no commit. Member "" stands for whoever was handed
// the records under the token. Errors concern
// all items: not_leader, group_not_found, bad_request, unavailable (outcome unknown: ack again).
func (p *Partition) AckGroup(ctx context.Context, name, member string, items []group.AckItem) ([]group.Refusal, error) {
	refused, err := p.ackGroup(ctx, name, member, items, 0)
	if err != nil {
		return refused, err
	}
	return refused, nil
}

// AckGroupSoon is AckGroup for acks that nobody waits for: few of them wait for more, a moment, before they are
// committed. To the dispatcher they count at once: the next record of a key is not kept waiting.
func (p *Partition) AckGroupSoon(ctx context.Context, name, member string, items []group.AckItem) ([]group.Refusal, error) {
	wait := int64(ackGatherMS)
	if slices.ContainsFunc(items, func(it group.AckItem) bool { return it.Kind != group.Ack }) {
		wait = 0 // what comes back goes out again when that is committed
	}
	refused, err := p.ackGroup(ctx, name, member, items, wait)
	if err != nil {
		return refused, err
	}
	return refused, nil
}

func (p *Partition) ackGroup(ctx context.Context, name, member string, items []group.AckItem, waitMS int64) ([]group.Refusal, *Error) {
	if err := p.checkAcks(name, member, items); err != nil {
		return nil, err
	}
	gl, err := p.leadingGroups()
	if err != nil {
		return nil, err
	}
	if err := p.sure(ctx); err != nil {
		return nil, err
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.table.mu.RLock()
	_, known := gl.table.s.Options(name)
	gl.table.mu.RUnlock()
	if !known {
		return nil, describe(ErrGroupNotFound, "%s: group %s is not known", p.name, name)
	}
	g, err := gl.shared(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	b := p.m.look()
	gl.trimmed(b.start)
	g.d.Advance(b.next)
	for upTo := g.d.Late(items); g.d.Cursor() < upTo; {
		at := g.d.Cursor()
		if err := gl.feed(g); err != nil {
			return nil, err
		}
		if g.d == nil || g.d.Cursor() <= at {
			break // what can't be looked at is refused
		}
	}
	// Feeding lets others in: the leadership may have ended, and what was on its way with it.
	if gl.over != nil {
		return nil, gl.over
	}
	if g.d == nil {
		return nil, describe(ErrGroupNotFound, "%s: group %s was deleted", p.name, name)
	}
	refused := g.d.Ack(nil, member, items, p.now())
	gl.serve(g)
	var f *flush
	if g.d.Changed() {
		if g.d.Urgent(ackGatherRecords) {
			waitMS = 0
		}
		f = gl.markBy(g, waitMS)
	} else {
		f = g.sent // an ack that came again waits for the first one
	}
	gl.touch(g)
	if f == nil || len(refused) == len(items) || !needsCommit(items) {
		return refused, nil
	}
	if err := gl.flushed(ctx, f); err != nil {
		return nil, err
	}
	if f.void {
		refused = refused[:0]
		for i := range items {
			refused = append(refused, group.Refusal{Item: i, Reason: group.StaleToken, Description: "the group was reset or deleted meanwhile"})
		}
	}
	return refused, nil
}

func needsCommit(items []group.AckItem) bool {
	return slices.ContainsFunc(items, func(it group.AckItem) bool { return it.Kind != group.Progress && it.Kind != group.Return })
}

// checkAcks returns what is wrong with a request, all of which is refused then.
func (p *Partition) checkAcks(name, member string, items []group.AckItem) *Error {
	// A plain client's ack names no member, its token does.
	if err := p.checkGroup(name, cmp.Or(member, "-"), nil); err != nil {
		return err
	}
	if len(items) > group.MaxAckItems {
		return describe(ErrBadRequest, "%s: %d items, at most %d are allowed", p.name, len(items), group.MaxAckItems)
	}
	for i := range items {
		switch it := &items[i]; {
		case it.Kind < group.Ack || it.Kind > group.Return:
			return describe(ErrBadRequest, "%s: item %d is of kind %d: ack, nak, progress, term and return are allowed", p.name, i, it.Kind)
		case it.First < 0 || it.Last < it.First:
			return describe(ErrBadRequest, "%s: item %d is about offsets %d to %d", p.name, i, it.First, it.Last)
		case it.DelayMS < -1 || it.DelayMS > group.MaxDelayMS:
			return describe(ErrBadRequest, "%s: item %d has a delay of %d ms: 0 to %d are allowed, or -1 for the back-off", p.name, i, it.DelayMS, int64(group.MaxDelayMS))
		case len(it.Reason) > group.MaxText:
			return describe(ErrBadRequest, "%s: item %d has a reason of %d characters, at most %d are allowed", p.name, i, len(it.Reason), group.MaxText)
		}
	}
	return nil
}
