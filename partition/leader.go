package partition

import (
	"context"
	"errors"
	"time"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/replication"
)

// leadership is one term in which this replica leads. Its loop commits
// Start(term), then waits for each proposal's outcome in order and answers.
type leadership struct {
	term     uint64
	counter  uint64 // guarded by appender.mu
	clock    *logClock
	inflight chan *proposal
	ctx      context.Context // ends when the leadership is lost
	cancel   context.CancelFunc
	patience time.Time // until then what it has left under way may still become known; set once it is lost
}

const (
	retryFirst = 5 * time.Millisecond
	retryMost  = 250 * time.Millisecond

	// outliveWait is how long a deposed leader waits to learn what has become of what it had under
	// way: about as long as the next one takes to commit its Start.
	outliveWait = 500 * time.Millisecond
	outliveLook = 5 * time.Millisecond
)

// onLeader is called by the log on each change, in order.
func (p *Partition) onLeader(l replication.Leadership) {
	p.leaderMu.Lock()
	defer p.leaderMu.Unlock()
	p.learnLeader(l)
}

// learnLeader is onLeader with leaderMu held.
func (p *Partition) learnLeader(l replication.Leadership) {
	if p.closing {
		return
	}
	p.known = l
	if p.current != nil && (!l.Self || l.Term != p.current.term) {
		// At once, not when its loop has noticed: that may be waiting for a proposal that went
		// nowhere, and readers would be told meanwhile that the log ends here.
		p.leading.Store(false)
		p.current.cancel()
		p.current = nil
	}
	if l.Self && p.current == nil {
		ctx, cancel := context.WithCancel(p.ctx)
		lead := &leadership{term: l.Term, inflight: make(chan *proposal, maxInFlight), ctx: ctx, cancel: cancel}
		p.current = lead
		previous := p.leadDone
		done := make(chan struct{})
		p.leadDone = done
		p.wg.Go(func() {
			defer close(done)
			defer cancel()
			if previous != nil {
				<-previous // one loop at a time: the last one answers its own first
			}
			p.leadTerm(lead)
		})
	}
	if p.c.OnLeader != nil {
		p.c.OnLeader(l)
	}
}

// leadTerm runs one leadership to its end.
func (p *Partition) leadTerm(l *leadership) {
	if !p.start(l) {
		return
	}
	if e := p.m.lost(p.name); e != nil {
		p.refused.Store(e)
		return
	}
	a := p.a
	p.owing.Store(true)
	a.mu.Lock()
	a.lead, a.stalled, a.inFlight, a.beside = l, false, 0, 0
	a.mu.Unlock()
	p.m.started.Store(true)
	p.leaderMu.Lock()
	p.leading.Store(p.current == l)
	p.leaderMu.Unlock()
	p.leadGroups(l)
	p.c.Logger.Info().Str("partition", p.name).Uint64("term", l.term).Int64("next_offset", p.m.look().next).Msg("leading the partition")
loop:
	for {
		select {
		case g := <-l.inflight:
			if !p.conclude(l, g) {
				break loop
			}
		case <-l.ctx.Done():
			break loop
		}
	}
	p.resign(l)
}

// start commits Start(term). It returns false when the leadership is over.
func (p *Partition) start(l *leadership) bool {
	for wait := retryFirst; l.ctx.Err() == nil; wait = min(2*wait, retryMost) {
		l.clock = newLogClock(p.c.Clock, p.m.look().logTime)
		buf := make([]byte, commandHeaderSize)
		commandHeader{kind: kindStart, term: l.term, logTime: l.clock.stamp(), barrier: p.m.look().barrier}.put(buf)
		pending, err := p.log.Propose(buf, p.c.Limits.ProposeTimeout)
		if err == nil {
			var r replication.Result
			if r, err = pending.WaitContext(l.ctx); err == nil {
				switch r.Value {
				case resultOK:
					// Only now is all of the terms before applied here, with their log time.
					l.clock = newLogClock(p.c.Clock, p.m.look().logTime)
					return true
				case resultUndecided:
					err = replication.ErrUnknown // once more, which changes nothing if it is in the log
				default:
					return false // a newer term has started
				}
			}
		}
		if errors.Is(err, replication.ErrClosed) {
			return false
		}
		p.c.Logger.Debug().Err(err).Str("partition", p.name).Uint64("term", l.term).Msg("start of the term was not committed, trying again")
		p.pause(l, wait)
	}
	return false
}

func (p *Partition) pause(l *leadership, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.ctx.Done():
	}
}

type verdict uint8

const (
	settled verdict = iota
	again           // nothing happened, or nobody knows: propose it again
	over            // the term is over
)

// wait waits for a group's outcome.
func (p *Partition) wait(l *leadership, g *proposal) (replication.Result, verdict) {
	if g.pending == nil {
		if errors.Is(g.refused, replication.ErrClosed) {
			return replication.Result{}, over
		}
		return replication.Result{}, again
	}
	r, err := g.pending.WaitContext(l.ctx)
	if err != nil && l.ctx.Err() != nil {
		r, err = p.outlive(l, g, err)
	}
	g.pending = nil
	switch {
	case errors.Is(err, replication.ErrClosed):
		g.unknown = true
		return r, over
	case errors.Is(err, replication.ErrDropped):
		return r, again
	case err != nil:
		g.unknown = true
		return r, again
	}
	switch r.Value {
	case resultUndecided:
		g.unknown = true
		return r, again
	case resultOK:
		return r, settled
	case resultSkipped:
		return r, again
	case resultStaleBarrier:
		// The log owns the old bytes; the entry itself never took effect.
		g.header.barrier = p.m.look().barrier
		g.buf = append([]byte(nil), g.buf...)
		g.header.put(g.buf)
		return r, again
	case resultStaleTerm:
		return r, over
	default:
		g.unknown = true
		return r, over
	}
}

// outlive waits for the outcome of what a lost leadership has left under way, as long as it may become known.
func (p *Partition) outlive(l *leadership, g *proposal, err error) (replication.Result, error) {
	p.setPatience(l)
	var r replication.Result
	for errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if p.ruledOut(l, g) || time.Now().After(l.patience) {
			return r, replication.ErrUnknown
		}
		look, cancel := context.WithTimeout(context.Background(), outliveLook)
		r, err = g.pending.WaitContext(look)
		cancel()
	}
	return r, err
}

// setPatience begins the wait of a lost leadership, of all its groups together.
func (p *Partition) setPatience(l *leadership) {
	if l.patience.IsZero() {
		l.patience = time.Now().Add(outliveWait)
	}
}

// ruledOut says that a group never takes effect: a newer term has started here, and the commands that were applied
// before it ended below the group's. No copy of it that is still under way can be taken any more.
func (p *Partition) ruledOut(l *leadership, g *proposal) bool {
	last, over := p.m.ended(l.term)
	return over && g.header.counter > last
}

// conclude settles the oldest group in flight, proposing it and those behind it again as
// often as it takes. It returns false when the leadership is over.
func (p *Partition) conclude(l *leadership, g *proposal) bool {
	r, v := p.wait(l, g)
	if v == settled {
		p.settle(g, r)
		return true
	}
	a := p.a
	a.mu.Lock()
	a.stalled = true
	n := len(l.inflight)
	a.mu.Unlock()
	list := []*proposal{g}
	verdicts := []verdict{v}
	for range n {
		h := <-l.inflight
		hr, hv := p.wait(l, h)
		if hv == settled {
			p.settle(h, hr)
			continue
		}
		list, verdicts = append(list, h), append(verdicts, hv)
	}
	for i, g := range list {
		if !p.insist(l, g, verdicts[i]) {
			for _, g := range list[i:] {
				p.abandon(l, g)
			}
			return false
		}
	}
	a.mu.Lock()
	a.stalled = false
	a.pump()
	a.mu.Unlock()
	return true
}

// insist proposes a proposal again until it is applied or the term is over.
func (p *Partition) insist(l *leadership, g *proposal, v verdict) bool {
	for wait := retryFirst; v == again; wait = min(2*wait, retryMost) {
		if l.ctx.Err() != nil {
			return false
		}
		p.retried.Add(1)
		p.a.propose(g)
		var r replication.Result
		if r, v = p.wait(l, g); v == settled {
			p.settle(g, r)
			return true
		}
		p.pause(l, wait)
	}
	return false
}

// resign ends a leadership: what is in flight gets the answer that is true,
// what waits is refused.
func (p *Partition) resign(l *leadership) {
	p.leaderMu.Lock()
	if p.current == l || p.current == nil {
		p.leading.Store(false)
	}
	p.leaderMu.Unlock()
	l.cancel()
	p.groups.Store(nil) // loops run one at a time, so it is this one's
	a := p.a
	a.mu.Lock()
	a.lead = nil
	a.wakeWaiting()
	a.seal()
	waiting := a.ready
	a.ready = nil
	a.mu.Unlock()
	for len(l.inflight) > 0 {
		g := <-l.inflight
		if r, v := p.wait(l, g); v == settled {
			p.settle(g, r)
		} else {
			p.abandon(l, g)
		}
	}
	for _, g := range waiting {
		p.fail(g, p.notLeader())
	}
	p.owing.Store(false)
	p.c.Logger.Info().Str("partition", p.name).Uint64("term", l.term).Msg("no longer leading the partition")
}

// abandon answers a group that was proposed and whose being applied is not known. Where it may
// still turn out that it never will be, that is waited for: such a record can be published again by anybody.
func (p *Partition) abandon(l *leadership, g *proposal) {
	p.a.mu.Lock()
	p.a.landed(g)
	p.a.mu.Unlock()
	if g.unknown {
		p.setPatience(l)
		g.unknown = !p.outlasts(l, g)
	}
	if g.unknown {
		p.fail(g, describe(ErrUnavailable, "%s: leadership was lost before the record was committed: it may be in the log", p.name))
		return
	}
	p.fail(g, p.notLeader())
}

// outlasts waits until a group is ruled out, or until there is no hope that it is.
func (p *Partition) outlasts(l *leadership, g *proposal) bool {
	look := time.NewTicker(outliveLook)
	defer look.Stop()
	for {
		if last, over := p.m.ended(l.term); over {
			return g.header.counter > last
		}
		if time.Now().After(l.patience) {
			return false
		}
		select {
		case <-look.C:
		case <-p.ctx.Done(): // closing: nothing is applied here any more
			return false
		}
	}
}

// fail answers everybody in the group with the same error.
func (p *Partition) fail(g *proposal, e *Error) {
	p.a.mu.Lock()
	waits := p.a.forget(g)
	p.a.mu.Unlock()
	o := p.outcome(-1)
	o.Err = e
	for i := range g.items {
		g.failItem(&g.items[i], o, waits)
	}
	if g.control != nil {
		g.control <- e
	}
	if g.entry != nil {
		g.entry(nil, e)
	}
	g.release()
}

// failItem answers a batch's publishers; those of single records get them back.
func (g *proposal) failItem(it *proposalItem, o Outcome, waits []*idWait) {
	answer := func(j int, o Outcome) {
		if rec := &g.records[it.records+j]; rec.receiver != nil {
			rec.receiver.Settle(g.reply(rec), o)
		}
		for h := it.hashes; waits != nil && h < it.hashes+it.hashesN; h++ {
			if it.ready || g.hashes[h].delta == int32(j) {
				waits[h].settle(o)
			}
		}
	}
	if it.ready {
		answer(0, o)
		return
	}
	b, _, err := record.Split(g.buf[it.at:])
	if err != nil {
		panic("split own record batch: " + err.Error())
	}
	var iter record.Iterator
	if err := iter.Reset(b, record.DefaultLimits); err != nil {
		panic("read own record batch: " + err.Error())
	}
	o.Expect = it.expect
	for j := 0; j < it.recordsN && iter.Next(); j++ {
		o.Record = iter.Record()
		answer(j, o)
	}
}

func (w *idWait) settle(o Outcome) {
	if w == nil {
		return
	}
	for _, x := range w.waiters {
		if x.receiver != nil {
			x.receiver.Settle(x.reply, o)
		}
	}
}

// settle answers a proposal that was applied. The next proposal is proposed first.
func (p *Partition) settle(g *proposal, r replication.Result) {
	a := p.a
	p.sureAt.Store(g.at)
	a.mu.Lock()
	a.landed(g)
	waits := a.forget(g)
	late := p.rebuild(g, r.Data, waits)
	a.pump()
	a.mu.Unlock()
	if g.control != nil {
		g.control <- nil
	}
	if g.entry != nil {
		g.entry(r.Data, nil)
	}
	for _, d := range late {
		d.receiver.Settle(d.reply, d.outcome)
	}
	for i := range g.items {
		p.settleItem(g, i, r.Data, waits)
	}
	g.release()
}

func (p *Partition) settleItem(g *proposal, i int, results []byte, waits []*idWait) {
	it := &g.items[i]
	if it.recordsN == 0 {
		return // built anew
	}
	code, offset, ok := itemResult(results, i)
	o := p.outcome(offset)
	count := record.Batch(g.buf[it.at:]).Count()
	switch {
	case !ok:
		// The result was lost with a leader's memory; the records are in the log.
		o.Offset, o.Err = -1, describe(ErrUnavailable, "%s: the record's offset is not known any more: it may be in the log", p.name)
	case code == itemOK:
	case code == itemDuplicate:
		o.Duplicate = true
	case code == itemDuplicateID && count == 1:
		o.Duplicate = true
	case code == itemDuplicateID:
		o.Err = describe(ErrInvalidBatch, "%s: a message id of the batch was published before: send records with ids one a batch", p.name)
	case code == itemExpectMismatch:
		o.Err = describe(ErrExpectMismatch, "%s: the next offset is %d, not the one that was expected", p.name, offset)
	case code == itemOutOfOrder:
		o.Err = describe(ErrOutOfOrder, "%s: producer %d: sequence %d does not follow the last one", p.name,
			record.Batch(g.buf[it.at:]).Producer().ID, record.Batch(g.buf[it.at:]).Producer().Sequence)
	case code == itemFenced:
		o.Err = describe(ErrProducerFenced, "%s: producer %d: epoch %d is over", p.name,
			record.Batch(g.buf[it.at:]).Producer().ID, record.Batch(g.buf[it.at:]).Producer().Epoch)
	case code == itemUnknownProducer:
		o.Err = describe(ErrUnknownProducer, "%s: producer %d is not known here: start a new epoch with sequence 0", p.name,
			record.Batch(g.buf[it.at:]).Producer().ID)
	default:
		o.Err = describe(ErrUnavailable, "%s: unknown result %d: is this broker older than its peers?", p.name, code)
	}
	if o.Err == nil && !o.Duplicate {
		p.acked.Add(uint64(count))
	}
	base := o.Offset
	for j := range it.recordsN {
		rec := &g.records[it.records+j]
		if rec.receiver == nil {
			continue
		}
		if o.Err == nil && !o.Duplicate {
			o.Offset = base + int64(j)
		}
		rec.receiver.Settle(g.reply(rec), o)
	}
	if waits == nil {
		return
	}
	for h := it.hashes; h < it.hashes+it.hashesN; h++ {
		w := o
		if w.Err == nil {
			w.Duplicate = true
			if code == itemOK {
				w.Offset = base + int64(g.hashes[h].delta)
			}
		}
		waits[h].settle(w)
	}
}

// lateAnswer is a record that turned out to be in the log already.
type lateAnswer struct {
	receiver Receiver
	reply    []byte
	outcome  Outcome
}

// rebuild takes the records of a batch that was rejected whole for a message
// id that had come another way, and appends them again without it. The
// appender's mutex is held, and g's ids are off its books. Within one term this
// can't happen, because the appender knows every id that is under way; it
// guards against what it does not know.
func (p *Partition) rebuild(g *proposal, results []byte, waits []*idWait) (late []lateAnswer) {
	for i := range g.items {
		it := &g.items[i]
		code, _, ok := itemResult(results, i)
		if ok && code == itemDuplicateID && !it.ready {
			late = append(late, p.rebuildItem(g, it, waits)...)
			it.recordsN = 0
		}
	}
	return late
}

func (p *Partition) rebuildItem(g *proposal, it *proposalItem, waits []*idWait) (late []lateAnswer) {
	a := p.a
	b, _, err := record.Split(g.buf[it.at:])
	if err != nil {
		panic("split own record batch: " + err.Error())
	}
	var iter record.Iterator
	if err := iter.Reset(b, record.DefaultLimits); err != nil {
		panic("read own record batch: " + err.Error())
	}
	h, end := it.hashes, it.hashes+it.hashesN
	for j := 0; iter.Next(); j++ {
		rec := &g.records[it.records+j]
		pub := Publication{Record: *iter.Record(), Expect: -1, Reply: g.reply(rec), Receiver: rec.receiver}
		var hash idHash
		var wait *idWait
		if h < end && g.hashes[h].delta == int32(j) {
			hash = g.hashes[h].hash
			if waits != nil {
				wait, waits[h] = waits[h], nil
			}
			h++
			if off, dup := p.m.findID(hash, g.header.logTime); dup {
				o := p.outcome(off)
				o.Duplicate = true
				late = wait.answers(late, o)
				if rec.receiver != nil {
					late = append(late, lateAnswer{rec.receiver, append([]byte(nil), pub.Reply...), o})
				}
				continue
			}
			pub.MsgID = hash[:]
		}
		if err := a.take(&pub, hash); err != nil {
			panic("append own record again: " + err.Error())
		}
		if wait != nil {
			*a.ids[hash] = *wait
			a.bytes += wait.bytes
			a.count += len(wait.waiters)
		}
		a.open.count++
		a.count++
	}
	return late
}

func (w *idWait) answers(late []lateAnswer, o Outcome) []lateAnswer {
	if w == nil {
		return late
	}
	for _, x := range w.waiters {
		if x.receiver != nil {
			late = append(late, lateAnswer{x.receiver, x.reply, o})
		}
	}
	return late
}
