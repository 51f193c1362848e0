package partition

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/parleymq/parley/partition/record"
)

// Publication is one record for Append. Its slices are copied.
type Publication struct {
	Record   record.Record
	MsgID    []byte // nil: none
	Expect   int64  // compare-and-append: the partition's next offset; -1 none
	Reply    []byte // handed back to Receiver
	Receiver Receiver
	Stalled  func() // called before Append waits for room; nil: nobody cares
}

// appender gathers what is to be appended and proposes it in proposals.
//
// Group commit without a timer: the first proposal is proposed at once; what
// comes while it is in flight gathers in the next one, which follows when the
// first is done or when it has grown to pipelineBytes, up to maxInFlight.
//
// Order. Each proposal carries the leader's term and a counter, and apply takes a counter only
// after the one before. A proposal that was dropped, or whose outcome is unknown,
// is proposed again byte for byte under the same counter: whichever copy comes
// first is taken, any other is answered with the first one's result. So
// nothing is answered out of order and nothing is applied twice. The
// alternative, a fresh counter for each attempt, would apply an entry twice
// whose outcome was unknown.
//
// One mutex guards it all; receivers are never called under it.
type appender struct {
	p  *Partition
	mu sync.Mutex

	lead  *leadership // nil while this replica may not append
	open  *proposal   // being filled, or nil
	item  openItem    // the batch being built at the end of open
	ready []*proposal // full, in order
	freed chan struct{}

	bytes, count int // taken and not yet settled
	lastSize     int // of the newest sealed proposal's entry
	inFlight     int
	beside       int  // of those in flight, entries about groups: appends don't wait for them
	stalled      bool // the leader loop is proposing again: nothing new until it is done
	held         int  // hand-overs under way: nothing new is admitted or proposed until they are done

	ids map[idHash]*idWait // message ids that are taken and not settled
}

// idWait collects publishes that repeat a message id which is under way. They
// take room in the queue as records do.
type idWait struct {
	waiters []waiter
	bytes   int
}

type waiter struct {
	receiver Receiver
	reply    []byte
}

// join adds a publish to those that wait for w's outcome. mu is held.
func (a *appender) join(w *idWait, reply []byte, rcv Receiver) {
	w.waiters = append(w.waiters, waiter{receiver: rcv, reply: append([]byte(nil), reply...)})
	size := recordOverhead + len(reply)
	w.bytes += size
	a.bytes += size
	a.count++
}

func newAppender(p *Partition) *appender {
	lim := record.DefaultLimits
	lim.MaxRecordBytes = p.c.Limits.MaxRecordBytes
	return &appender{p: p, ids: map[idHash]*idWait{}, item: openItem{builder: record.NewBuilder(record.None, lim)}}
}

// admit waits until the queue has room and this replica leads. It returns with
// mu held unless it fails.
func (a *appender) admit(ctx context.Context, size, count int, stalled func()) *Error {
	if a.p.c.DiskFull != nil && a.p.c.DiskFull() {
		return describe(ErrDiskFull, "%s: free disk space is below the floor: publishing resumes by itself once there is room", a.p.name)
	}
	var timer <-chan time.Time
	a.mu.Lock()
	for {
		if !a.leading() {
			a.mu.Unlock()
			return a.p.notLeader()
		}
		lim := &a.p.c.Limits
		if a.held == 0 && (a.bytes == 0 || a.bytes+size <= lim.QueueBytes && a.count+count <= lim.QueueRecords) {
			return nil
		}
		a.pump()
		if a.freed == nil {
			a.freed = make(chan struct{})
		}
		freed := a.freed
		a.mu.Unlock()
		if timer == nil {
			t := time.NewTimer(lim.BusyWait)
			defer t.Stop()
			timer = t.C
			if stalled != nil {
				stalled()
			}
		}
		select {
		case <-freed:
		case <-timer:
			a.mu.Lock()
			held := a.held > 0
			a.mu.Unlock()
			if held {
				return describe(ErrNotLeader, "%s: its leadership is being handed over: try again", a.p.name)
			}
			return describe(ErrBusy, "%s: too much waits to be committed, at most %d records and %d bytes are taken: slow down or try again", a.p.name, a.p.c.Limits.QueueRecords, a.p.c.Limits.QueueBytes)
		case <-ctx.Done():
			return describe(ErrBusy, "%s: gave up while the queue was full: %v", a.p.name, ctx.Err())
		}
		a.mu.Lock()
	}
}

// findID tells whether a message id was published within the window that ends
// now: in an idle partition the newest entry's log time may be long past. mu is held,
// and this replica leads.
func (a *appender) findID(h idHash) (int64, bool) {
	return a.p.m.findID(h, a.lead.clock.stamp())
}

// append takes one record.
func (a *appender) append(ctx context.Context, pub *Publication) *Error {
	size := pub.Record.Size()
	if limit := a.p.c.Limits.MaxRecordBytes; size > limit {
		return describe(ErrTooLarge, "%s: a record of %d bytes, at most %d are allowed", a.p.name, size, limit)
	}
	size += recordOverhead + 4*len(pub.Record.Headers) + len(pub.Reply)
	var hash idHash
	if pub.MsgID != nil {
		hash = hashMessageID(pub.MsgID)
	}
	if err := a.admit(ctx, size, 1, pub.Stalled); err != nil {
		return err
	}
	if pub.MsgID != nil {
		if w := a.ids[hash]; w != nil {
			// The first one's outcome is this one's too.
			a.join(w, pub.Reply, pub.Receiver)
			a.mu.Unlock()
			return nil
		}
		if off, dup := a.findID(hash); dup {
			a.mu.Unlock()
			if pub.Receiver != nil {
				o := a.p.outcome(off)
				o.Duplicate = true
				pub.Receiver.Settle(pub.Reply, o)
			}
			return nil
		}
	}
	err := a.take(pub, hash)
	if err == nil {
		a.bytes += size
		a.count++
		a.open.bytes += size
		a.open.count++
		if a.openSize() >= a.p.c.Limits.GroupBytes {
			a.seal()
			a.pump()
		}
	}
	a.mu.Unlock()
	return err
}

// take puts a record into the open batch, or into a new one where it doesn't fit.
func (a *appender) take(pub *Publication, hash idHash) *Error {
	if a.open == nil {
		a.open = newProposal(kindAppend, a.lastSize)
	}
	// A compare-and-append stands alone: the batch is the unit of rejection.
	if pub.Expect >= 0 || a.item.expect >= 0 || a.item.builder.Size() >= batchTarget {
		a.finishItem()
	}
	if a.item.builder.Count() == 0 {
		a.item.records, a.item.hashes, a.item.expect = len(a.open.records), len(a.open.hashes), pub.Expect
	}
	err := a.item.builder.Append(&pub.Record)
	if errors.Is(err, record.ErrBatchFull) {
		a.finishItem()
		a.item.records, a.item.hashes, a.item.expect = len(a.open.records), len(a.open.hashes), pub.Expect
		err = a.item.builder.Append(&pub.Record)
	}
	if err != nil {
		return describe(ErrTooLarge, "%s: %v", a.p.name, err)
	}
	if pub.MsgID != nil {
		a.open.hashes = append(a.open.hashes, idAt{delta: int32(a.item.builder.Count() - 1), hash: hash})
		a.ids[hash] = &idWait{}
	}
	a.open.addPending(pub.Receiver, pub.Reply)
	return nil
}

// finishItem closes the batch under construction.
func (a *appender) finishItem() {
	if a.item.builder.Count() == 0 {
		a.item.expect = -1
		return
	}
	g := a.open
	hashes := g.hashes[a.item.hashes:]
	g.buf = appendItemPrefix(g.buf, a.item.expect, hashes)
	at := len(g.buf)
	buf, err := a.item.builder.Finish(g.buf, record.NoProducer)
	if err != nil {
		// Only a codec can fail, and these batches have none.
		panic("finish record batch: " + err.Error())
	}
	g.buf = buf
	g.items = append(g.items, proposalItem{
		at: at, records: a.item.records, recordsN: len(g.records) - a.item.records,
		hashes: a.item.hashes, hashesN: len(hashes), expect: a.item.expect,
	})
	a.item.expect = -1
}

// appendBatch takes a batch that the caller has checked, with its message ids.
func (a *appender) appendBatch(ctx context.Context, b record.Batch, ids []idAt, expect int64, reply []byte, rcv Receiver) *Error {
	size := len(b) + recordOverhead + len(reply)
	if err := a.admit(ctx, size, b.Count(), nil); err != nil {
		return err
	}
	if len(ids) > 0 {
		done, err := a.duplicateBatch(ids, reply, rcv)
		if done || err != nil {
			return err
		}
	}
	if a.open == nil {
		a.open = newProposal(kindAppend, max(a.lastSize, len(b)+itemOverhead+len(ids)*idEntrySize))
	}
	a.finishItem()
	g := a.open
	hashes := len(g.hashes)
	g.hashes = append(g.hashes, ids...)
	for i := range ids {
		a.ids[ids[i].hash] = &idWait{}
	}
	g.buf = appendItemPrefix(g.buf, expect, ids)
	g.items = append(g.items, proposalItem{
		at: len(g.buf), records: len(g.records), recordsN: 1, hashes: hashes, hashesN: len(ids), expect: expect, ready: true,
	})
	g.buf = append(g.buf, b...)
	g.addPending(rcv, reply)
	g.bytes += size
	g.count += b.Count()
	a.bytes += size
	a.count += b.Count()
	if a.openSize() >= a.p.c.Limits.GroupBytes {
		a.seal()
		a.pump()
	}
	a.mu.Unlock()
	return nil
}

// duplicateBatch deals with a batch some of whose message ids were seen; they
// differ from each other. It returns with mu held only when neither done nor an error is returned.
func (a *appender) duplicateBatch(ids []idAt, reply []byte, rcv Receiver) (done bool, err *Error) {
	known, offset := 0, int64(-1)
	var under *idWait
	for i := range ids {
		if w := a.ids[ids[i].hash]; w != nil {
			under = w
			known++
		} else if off, dup := a.findID(ids[i].hash); dup {
			if known == 0 {
				offset = off
			}
			known++
		}
	}
	switch {
	case known == 0:
		return false, nil
	case known < len(ids) || len(ids) > 1 && under != nil:
		a.mu.Unlock()
		return false, describe(ErrInvalidBatch, "%s: %d of the batch's %d message ids were published before: send records with ids one a batch", a.p.name, known, len(ids))
	case under != nil:
		a.join(under, reply, rcv)
		a.mu.Unlock()
		return true, nil
	}
	a.mu.Unlock()
	if rcv != nil {
		o := a.p.outcome(offset)
		o.Duplicate = true
		rcv.Settle(reply, o)
	}
	return true, nil
}

// control queues a command that is not an append.
func (a *appender) control(kind commandKind, value uint64, done chan<- *Error) *Error {
	g := newProposal(kind, 8)
	for shift := 56; shift >= 0; shift -= 8 {
		g.buf = append(g.buf, byte(value>>shift))
	}
	g.control = done
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.leading() {
		return a.p.notLeader()
	}
	a.seal()
	a.ready = append(a.ready, g)
	a.pump()
	return nil
}

// groupEntry queues an entry about groups; buf begins with room for the header. done is told the outcome once, and
// must not block. It goes before what is being gathered to be appended, and neither waits for the other. It is taken
// for the term l only: what another term's leader made of groups is not true any more.
func (a *appender) groupEntry(l *leadership, buf []byte, done func(results []byte, e *Error)) *Error {
	g := newProposal(kindGroup, 0)
	g.buf, g.entry = buf, done
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.leading() || a.lead != l {
		return a.p.notLeader()
	}
	a.ready = append(a.ready, g)
	a.pump()
	return nil
}

// leading says whether anything is taken: a term may be lost before its loop has ended.
func (a *appender) leading() bool { return a.lead != nil && a.p.leading.Load() }

func (a *appender) openSize() int {
	if a.open == nil {
		return 0
	}
	return len(a.open.buf) + a.item.builder.Size()
}

// seal moves the open proposal to those that are ready.
func (a *appender) seal() {
	if a.open == nil {
		return
	}
	a.finishItem()
	if len(a.open.items) == 0 {
		return
	}
	a.ready = append(a.ready, a.open)
	// The log keeps the buffer, so the next proposal needs one of its own: about as
	// large as this one, so that it neither grows by copying nor wastes much.
	a.lastSize = min(len(a.open.buf), a.p.c.Limits.GroupBytes)
	a.open = nil
}

// flush starts what has gathered.
func (a *appender) flush() {
	a.mu.Lock()
	a.pump()
	a.mu.Unlock()
}

// pump proposes while there is something to propose and room in flight.
func (a *appender) pump() {
	for a.lead != nil && !a.stalled && a.held == 0 && a.inFlight < maxInFlight {
		if len(a.ready) == 0 {
			if a.open == nil || a.inFlight > a.beside && a.openSize() < a.p.c.Limits.PipelineBytes {
				return
			}
			a.seal()
			if len(a.ready) == 0 {
				return
			}
		}
		g := a.ready[0]
		a.ready[0] = nil
		if a.ready = a.ready[1:]; len(a.ready) == 0 {
			a.ready = nil
		}
		l := a.lead
		l.counter++
		g.header = commandHeader{
			kind: g.kind, term: l.term, counter: l.counter, barrier: a.p.m.look().barrier, logTime: l.clock.stamp(),
		}
		g.header.put(g.buf)
		g.at = a.p.now()
		a.propose(g)
		a.inFlight++
		if g.entry != nil {
			a.beside++
		}
		l.inflight <- g // never blocks: it holds maxInFlight
	}
}

func (a *appender) propose(g *proposal) {
	pending, err := a.p.log.Propose(g.buf, a.p.c.Limits.ProposeTimeout)
	g.pending, g.refused = pending, err
}

// forget takes a proposal off the books and returns those who wait for its message
// ids, one list a hash of g.hashes. mu is held.
func (a *appender) forget(g *proposal) (waits []*idWait) {
	a.bytes -= g.bytes
	a.count -= g.count
	for i := range g.hashes {
		w := a.ids[g.hashes[i].hash]
		if w != nil && len(w.waiters) > 0 {
			a.bytes -= w.bytes
			a.count -= len(w.waiters)
			if waits == nil {
				waits = make([]*idWait, len(g.hashes))
			}
			waits[i] = w
		}
		delete(a.ids, g.hashes[i].hash)
	}
	a.wakeWaiting()
	return waits
}

// landed takes a proposal out of those in flight. mu is held.
func (a *appender) landed(g *proposal) {
	a.inFlight--
	if g.entry != nil {
		a.beside--
	}
}

// wakeWaiting lets those that wait to be admitted look again. mu is held.
func (a *appender) wakeWaiting() {
	if a.freed != nil {
		close(a.freed)
		a.freed = nil
	}
}
