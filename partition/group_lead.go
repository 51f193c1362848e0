package partition

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/parleymq/parley/partition/group"
)

// groupLead is the leader's side of groups, for one term. It begins after Start(term) is applied, so
// what the log says of groups is all there, and ends with the leadership.
//
// What changes groups goes through entries, of which one is in flight at a time: what comes meanwhile
// gathers in the next one, as in the appender. Direct operations (make, grant, commit, …) are written as they come;
// what dispatchers and coordinators have gathered is written when the entry is proposed.
//
// The loop serves waiting pulls when records arrive, feeds keys, and looks after what time brings. A
// record that is appended costs one wake-up of the loop, whatever the number of groups, and a look at
// those groups only that have a pull waiting.
//
// mu guards it all; the order of locks is mu, then the table's, then the appender's.
type groupLead struct {
	p     *Partition
	l     *leadership
	table *groupTable
	began int64 // see Partition.now

	mu     sync.Mutex
	led    map[string]*ledGroup
	all    []*ledGroup // the same, in no order
	open   *groupEntry // gathering; nil: empty
	sent   *groupEntry // in flight
	dirty  []*ledGroup // dispatcher or coordinator has something for the next entry
	hungry []*ledGroup // with pulls that wait, or that want to look ahead
	dueAt  int64       // when the dirty ones are to be committed at the latest
	nextAt int64       // when to look at the clock's doings; 0 not
	start  int64       // of the log, as dispatchers know it
	size   int         // of the groups' state, at sizeAt
	sizeAt int64
	over   *Error // why nothing more is taken

	kick chan struct{} // the loop looks again
	bury chan struct{} // there are dead letters
}

// ledGroup is what the leader knows of a group beside the log.
type ledGroup struct {
	name    string
	d       *group.Dispatcher // shared; nil until it is opened
	waiters []*pullWaiter

	lease  leaseTime          // exclusive
	c      *group.Coordinator // anchor
	change chan struct{}      // closed when lease or generation may have changed; nil while nobody waits

	handledFrom       int64 // cursor when this leader began, of an exclusive group
	isDirty, isHungry bool
	gathering, sent   *flush // for those who wait for what d or c has gathered

	graves graves
	stuck  *group.Stuck // shared: a dead letter that can't be written
	held   held         // exclusive: likewise, as its member tells
	damage string       // that stops the look ahead
}

const (
	// maxGroupOps bounds direct operations of one entry, and so the callers that wait.
	maxGroupOps = 8192
	// groupEntryBytes is about how large an entry gets; what dispatchers have gathered beyond it follows in the next one.
	groupEntryBytes = 512 << 10
	// sureForMS is how long the leader takes for granted that it still leads after something was committed or
	// confirmed. It is less than followers wait before they elect another one, 0.5 s (docs/adr/0081).
	sureForMS = 400
	// loopLeastMS is how close together looks at the clock are.
	loopLeastMS = 5
	// ackGatherMS is how long acks that nobody waits for gather. An entry costs each replica an fsync and a round of
	// messages, whatever it holds: at a thousand records a second those of acks would be as many as those of records.
	ackGatherMS = 10
	// ackGatherRecords is how many of them are enough.
	ackGatherRecords = 1024
	// sureAgain is when the leader asks again that could not find out whether it still leads.
	sureAgain = 100 * time.Millisecond
)

// now is the leader's clock: milliseconds since the partition was opened, by the monotonic clock.
func (p *Partition) now() int64 { return p.c.Clock().Sub(p.began).Milliseconds() }

// leadGroups begins the leader's side.
func (p *Partition) leadGroups(l *leadership) {
	gl := &groupLead{
		p: p, l: l, table: p.m.groups.Load(), led: map[string]*ledGroup{}, began: p.now(),
		kick: make(chan struct{}, 1), bury: make(chan struct{}, 1),
	}
	gl.mu.Lock()
	gl.table.mu.RLock()
	for _, name := range gl.table.s.Names() {
		if l, ok := gl.table.s.Lease(name); ok {
			// Its holder may have been told by the leader before that it has it for a session.
			o, _ := gl.table.s.Options(name)
			g := gl.get(name)
			g.lease, g.handledFrom = leaseTime{token: l.Token, deadline: gl.began + o.SessionMS}, l.Floor
		}
		if _, ok := gl.table.s.AnchorOptions(name); ok {
			g := gl.get(name)
			g.c = group.NewCoordinator(gl.table.s, name, gl.began)
			gl.lookAt(gl.began + 1)
		}
	}
	gl.table.mu.RUnlock()
	gl.mu.Unlock()
	p.groups.Store(gl)
	p.wg.Go(gl.run)
	if p.c.DeadLetter != nil {
		p.wg.Go(gl.buryAll)
	}
}

// leadingGroups returns the leader's side, or why there is none.
func (p *Partition) leadingGroups() (*groupLead, *Error) {
	gl := p.groups.Load()
	if gl == nil || !p.leading.Load() || gl.l.ctx.Err() != nil {
		return nil, p.notLeader()
	}
	return gl, nil
}

// sure returns nil when this replica is known to have led a moment ago. A leader that was paused or cut off
// doesn't know that another one leads: it asks the others before it says anything that only the leader may say.
func (p *Partition) sure(ctx context.Context) *Error {
	if p.isSure() {
		return nil
	}
	at := p.now()
	if err := p.Confirm(ctx); err != nil {
		return asError(p, err)
	}
	p.sureAt.Store(at)
	return nil
}

func (p *Partition) isSure() bool { return p.now()-p.sureAt.Load() < sureForMS }

// asError makes an *Error of what ended a wait.
func asError(p *Partition, err error) *Error {
	if e, ok := err.(*Error); ok {
		return e
	}
	return describe(ErrUnavailable, "%s: gave up waiting: %v", p.name, err)
}

// get returns the group's volatile side. mu is held.
func (gl *groupLead) get(name string) *ledGroup {
	g := gl.led[name]
	if g == nil {
		g = &ledGroup{name: name}
		gl.led[name] = g
		gl.all = append(gl.all, g)
	}
	return g
}

func (gl *groupLead) wake() {
	select {
	case gl.kick <- struct{}{}:
	default:
	}
}

// wakeChange lets those who wait for a lease or a generation look again. mu is held.
func (gl *groupLead) wakeChange(g *ledGroup) {
	if g.change != nil {
		close(g.change)
		g.change = nil
	}
}

func (g *ledGroup) waitChange() <-chan struct{} {
	if g.change == nil {
		g.change = make(chan struct{})
	}
	return g.change
}

// lookAt makes the loop look at the clock's doings at that time. mu is held.
func (gl *groupLead) lookAt(at int64) {
	if at > 0 && (gl.nextAt == 0 || at < gl.nextAt) {
		gl.nextAt = at
		gl.wake()
	}
}

// touch looks at what a dispatcher waits for, and whether it has dead letters. mu is held.
func (gl *groupLead) touch(g *ledGroup) {
	if g.d == nil {
		return
	}
	gl.lookAt(g.d.Tick(gl.p.now()))
	if g.d.Changed() && !g.isDirty {
		gl.mark(g)
	}
	if _, _, dead, _ := g.d.Figures(); dead > 0 {
		select {
		case gl.bury <- struct{}{}:
		default:
		}
	}
}

// run is the loop.
func (gl *groupLead) run() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		more := gl.turn(t)
		select {
		case <-gl.kick:
		case <-more:
		case <-t.C:
		case <-gl.l.ctx.Done():
			gl.mu.Lock()
			gl.end(gl.p.notLeader())
			for _, g := range gl.all {
				gl.failWaiters(g, gl.over)
			}
			gl.mu.Unlock()
			gl.p.m.shelf.clear()
			return
		}
	}
}

// turn does what there is to do, sets the timer, and returns a channel that is closed when records arrive that
// someone waits for.
func (gl *groupLead) turn(t *time.Timer) (more <-chan struct{}) {
	if gl.anyHungry() && gl.p.sure(gl.l.ctx) != nil {
		// Nobody is served by one who may lead no more.
		t.Reset(sureAgain)
		return nil
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	now := gl.p.now()
	if gl.nextAt != 0 && gl.nextAt <= now {
		gl.lookAround(now)
	}
	gl.propose()
	b := gl.p.m.look()
	gl.trimmed(b.start)
	for _, g := range append([]*ledGroup(nil), gl.hungry...) {
		gl.feedAhead(g)
	}
	now = gl.p.now()
	wait := int64(math.MaxInt64)
	if gl.nextAt != 0 {
		wait = max(gl.nextAt-now, loopLeastMS)
	}
	if len(gl.dirty) > 0 && gl.sent == nil {
		wait = min(wait, max(gl.dueAt-now, 1))
	}
	if wait != math.MaxInt64 {
		t.Reset(time.Duration(wait) * time.Millisecond)
	}
	if len(gl.hungry) > 0 {
		if more = gl.p.m.waitBeyond(b.next); more == nil {
			gl.wake()
		}
	}
	return more
}

func (gl *groupLead) anyHungry() bool {
	gl.mu.Lock()
	defer gl.mu.Unlock()
	return len(gl.hungry) > 0
}

// lookAround does what time has brought in any group. mu is held.
func (gl *groupLead) lookAround(now int64) {
	gl.nextAt = 0
	logNow := gl.p.logTimeNow(gl.p.m.look())
	for _, g := range append([]*ledGroup(nil), gl.all...) {
		if g.d != nil {
			gl.touch(g)
			gl.serve(g)
		}
		if g.c != nil {
			gl.lookAfterMembers(g, now, logNow)
		}
		if g.d == nil {
			gl.drop(g)
		}
	}
}

// trimmed tells dispatchers that retention took records. mu is held.
func (gl *groupLead) trimmed(start int64) {
	if start <= gl.start {
		return
	}
	gl.start = start
	for _, g := range gl.all {
		if g.d != nil {
			g.d.Trim(start)
		}
	}
}

// await waits for a channel while the leadership lasts.
func (gl *groupLead) await(ctx context.Context, done <-chan struct{}, limit <-chan time.Time) (timeout bool, err *Error) {
	select {
	case <-done:
		return false, nil
	case <-limit:
		return true, nil
	case <-ctx.Done():
		return false, asError(gl.p, ctx.Err())
	}
}

// ensure makes the group on this partition where it is not known yet, and returns its options; with want nil it
// makes none. mu is held before
// and after, but not meanwhile.
func (gl *groupLead) ensure(ctx context.Context, name string, want *group.Options, mode group.Mode) (group.Options, *Error) {
	for {
		gl.table.mu.RLock()
		have, ok := gl.table.s.Options(name)
		if !ok && want != nil {
			// The anchor of the group may be here: it knows better.
			if o, anchored := gl.table.s.AnchorOptions(name); anchored {
				have, ok = o, true
				if c := have.Conflict(want); c != "" {
					gl.table.mu.RUnlock()
					return have, mismatch(gl.p, name, c)
				}
				ok = false
				mode, want = have.Mode, &have
			}
		}
		gl.table.mu.RUnlock()
		switch {
		case !ok && want == nil:
			return have, describe(ErrGroupNotFound, "%s: group %s is not known", gl.p.name, name)
		case ok && want == nil:
			return have, nil
		case ok:
			if c := have.Conflict(want); c != "" {
				return have, mismatch(gl.p, name, c)
			}
			return have, nil
		}
		if err := gl.noRoom(); err != nil {
			return have, err
		}
		o := want.WithDefaults(mode)
		gl.mu.Unlock()
		offset, err := gl.p.position(o.From, o.Partitions)
		gl.mu.Lock()
		if err != nil {
			return o, err
		}
		code, _, err := gl.commitOp(ctx, func(e *group.Entry) { e.Make(name, &o, offset) }, nil)
		switch {
		case err != nil:
			return o, err
		case code == group.Full:
			return o, describe(ErrTooMany, "%s: the partition knows %d groups already: delete some", gl.p.name, group.MaxGroups)
		case code != group.OK:
			return o, describe(ErrUnavailable, "%s: group %s could not be made: code %d", gl.p.name, name, code)
		}
	}
}

func mismatch(p *Partition, name, conflict string) *Error {
	return describe(ErrGroupMismatch, "%s: group %s has %s: join with the same options, or none", p.name, name, conflict)
}

// position finds the offset where a group begins; partitions is how many the topic had when the group was made, 0 unknown.
func (p *Partition) position(at group.Position, partitions int32) (int64, *Error) {
	start, next := p.Bounds()
	if partitions > 0 && p.c.Number >= partitions {
		return start, nil // the partition came after the group
	}
	switch at.Kind {
	case group.Latest:
		return next, nil
	case group.AtOffset:
		return min(max(at.Value, start), next), nil
	case group.AtTime:
		off, err := p.OffsetAt(at.Value)
		if err != nil {
			return 0, asError(p, err)
		}
		return off, nil
	}
	return start, nil
}
