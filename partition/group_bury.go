package partition

import (
	"time"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

const (
	// buryRecords and buryBytes bound what is handed to DeadLetter at once.
	buryRecords = 64
	buryBytes   = 1 << 20
	// buryStuck bounds the dead letters of a group that could not be written and are set aside, so that those after
	// them are. Beyond, the others wait until some of these go: then it isn't the letters.
	buryStuck = 1024
	// buryFirst and buryMost are how long it waits after DeadLetter failed.
	buryFirst = 100 * time.Millisecond
	buryMost  = 30 * time.Second
	// buryText bounds what is kept of a failure, for the group's state.
	buryText = 512
)

// graves is what the leader knows of a group's dead letters.
//
// Letters that come for the first time and those that failed before are never handed over together, and each kind has
// a clock of its own: one letter that can't be written delays no other, and a topic that takes none is not asked
// all the time. Of those that failed each has its turn, however many there are.
type graves struct {
	of    *group.Dispatcher
	stuck map[int64]setAside // those that could not be written, which the dispatcher has set aside
	start int64              // of the log: below it none is stuck
	from  int64              // from which on the next of them are tried
	fresh buryClock
	again buryClock
}

// setAside is what is known of a letter that could not be written.
type setAside struct {
	why   string // the newest failure
	since time.Time
}

// buryClock says when to try.
type buryClock struct {
	at   int64
	wait time.Duration
}

func (c *buryClock) failed(now int64) {
	c.wait = min(max(2*c.wait, buryFirst), buryMost)
	c.at = now + c.wait.Milliseconds()
}

// buryAll brings dead records to the dead-letter topic, group by group, for as long as the leadership lasts.
func (gl *groupLead) buryAll() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	gl.openDead()
	for {
		next := time.Hour
		again := false
		gl.mu.Lock()
		all := append([]*ledGroup(nil), gl.all...)
		gl.mu.Unlock()
		for _, g := range all {
			wait, more := gl.buryGroup(g)
			again = again || more
			if wait > 0 {
				next = min(next, wait)
			}
		}
		if again && gl.l.ctx.Err() == nil {
			continue
		}
		t.Reset(next)
		select {
		case <-gl.bury:
		case <-t.C:
		case <-gl.l.ctx.Done():
			return
		}
	}
}

// openDead opens the groups that another leader has left with dead records: nobody may come to pull from them.
func (gl *groupLead) openDead() {
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.table.mu.RLock()
	names := gl.table.s.WithDead()
	gl.table.mu.RUnlock()
	for _, name := range names {
		if _, err := gl.shared(gl.l.ctx, name, nil); err != nil {
			gl.p.c.Logger.Debug().Err(err).Str("partition", gl.p.name).Str("group", name).
				Msg("a group with dead records could not be opened: whoever pulls next opens it")
		}
	}
}

// buryGroup buries some of a group's dead. It says when to try again, or that there are more.
func (gl *groupLead) buryGroup(g *ledGroup) (wait time.Duration, more bool) {
	p := gl.p
	gl.mu.Lock()
	d := g.d
	if d == nil {
		gl.mu.Unlock()
		return 0, false
	}
	v := &g.graves
	if v.of != d {
		*v = graves{of: d, stuck: map[int64]setAside{}, start: gl.start}
	}
	v.trim(gl.start)
	g.stuck = v.told()
	dead, again, wait := v.next(p.now())
	gl.table.mu.RLock()
	o, _ := gl.table.s.Options(g.name)
	gl.table.mu.RUnlock()
	gl.mu.Unlock()
	if len(dead) == 0 {
		return wait, false
	}
	letters, failed := p.deadLetters(g.name, o.DeadLetter, dead)
	var errs []error
	if len(letters) > 0 {
		errs = p.c.DeadLetter(gl.l.ctx, letters)
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.trimmed(p.m.look().start)
	if g.d != d {
		return 0, true // reset or deleted meanwhile
	}
	written, last := 0, int64(-1)
	for i := range letters {
		at := letters[i].Record.Offset
		last = at
		if errs != nil && errs[i] != nil {
			failed = append(failed, unburied{at, at, errs[i]})
			continue
		}
		d.Buried(at, at)
		delete(v.stuck, at)
		written++
	}
	if d.Changed() {
		gl.mark(g)
	}
	if gl.l.ctx.Err() != nil {
		return 0, false // what failed says nothing of the letters
	}
	v.tried(failed, written, again, p.now(), p.c.Clock())
	if again {
		for _, f := range failed {
			last = max(last, f.last)
		}
		v.from = last + 1
	}
	g.stuck = v.told()
	if len(failed) > 0 {
		p.c.Logger.Warn().Err(failed[0].err).Str("partition", p.name).Str("group", g.name).Int64("offset", failed[0].first).
			Int("written", written).Int("stuck", len(v.stuck)).
			Msg("dead letters could not be written: nothing is dropped, they are tried again")
	}
	return 0, true
}

// next returns the dead letters to try now, and whether they have failed before; else how long there is nothing to do,
// 0 until something happens.
func (v *graves) next(now int64) (dead []group.DeadLetter, again bool, wait time.Duration) {
	if len(v.stuck) > 0 && v.again.at <= now {
		if dead = v.of.Aside(nil, v.from, buryRecords); len(dead) == 0 {
			dead = v.of.Aside(nil, 0, buryRecords)
		}
		if len(dead) > 0 {
			return dead, true, 0
		}
		clear(v.stuck)
	}
	if room := buryStuck - len(v.stuck); room > 0 && v.fresh.at <= now {
		if dead = v.of.Dead(nil, int64(min(room, buryRecords))); len(dead) > 0 {
			return dead, false, 0
		}
	}
	for _, at := range [...]int64{v.fresh.at, v.again.at} {
		if left := time.Duration(at-now) * time.Millisecond; left > 0 && (wait == 0 || left < wait) {
			wait = left
		}
	}
	return nil, false, wait
}

// trim forgets what retention took.
func (v *graves) trim(start int64) {
	if start <= v.start {
		return
	}
	v.start = start
	for o := range v.stuck {
		if o < start {
			delete(v.stuck, o)
		}
	}
}

// tried takes in what became of letters.
func (v *graves) tried(failed []unburied, written int, again bool, now int64, clock time.Time) {
	for _, f := range failed {
		text := f.err.Error()
		text = text[:min(len(text), buryText)]
		for o := f.first; o <= f.last; o++ {
			since := clock
			if old, ok := v.stuck[o]; ok {
				since = old.since
			}
			v.stuck[o] = setAside{text, since}
		}
		v.of.SetAside(f.first, f.last)
	}
	next := &v.fresh
	if again {
		next = &v.again
	}
	if written == 0 && len(failed) > 0 {
		next.failed(now)
	} else {
		*next = buryClock{}
	}
	switch {
	case len(v.stuck) == 0:
		v.from, v.again = 0, buryClock{}
	case !again && v.again.at <= now:
		v.again.at = now + max(v.again.wait, buryFirst).Milliseconds()
	}
}

// told is the oldest letter that can't be written; nil: none.
func (v *graves) told() *group.Stuck {
	first, ok := v.of.FirstAside()
	if !ok {
		return nil
	}
	x := v.stuck[first]
	return &group.Stuck{Offset: first, SinceMS: x.since.UnixMilli(), Reason: x.why, Waiting: len(v.stuck)}
}

// unburied are dead records that could not be brought to the dead-letter topic.
type unburied struct {
	first, last int64
	err         error
}

// deadLetters reads dead records. They share one buffer, which belongs to them.
func (p *Partition) deadLetters(name, target string, dead []group.DeadLetter) (letters []DeadLetter, failed []unburied) {
	bytes := 0
	for _, x := range dead {
		var bad error
		at := x.First // what is below is read
		err := p.m.batchesFrom(x.First, p.name, func(b record.Batch) (more, shared bool) {
			if b.BaseOffset() > x.Last {
				return false, false
			}
			b = append(record.Batch(nil), b...) // the tail's memory is not ours to keep
			var it record.Iterator
			if bad = it.Reset(b, record.DefaultLimits); bad != nil {
				return false, false
			}
			for it.Next() {
				r := it.Record()
				if r.Offset < x.First || r.Offset > x.Last {
					continue
				}
				if bytes += r.Size(); bytes > buryBytes && len(letters) > 0 {
					return false, false
				}
				c := *r
				c.Headers = append([]record.Header(nil), r.Headers...)
				letters = append(letters, DeadLetter{
					Topic: p.c.Topic, Partition: p.c.Number, Group: name, Target: target,
					Deliveries: x.Deliveries, Reason: x.Reason, Record: c,
				})
				at = r.Offset + 1
			}
			bad = it.Err()
			return bad == nil, false
		})
		switch {
		case bytes > buryBytes:
			return letters, failed
		case err != nil && err.Reason == ErrOutOfRange.Reason:
			// Trimmed meanwhile, which the dispatcher is told next.
		case err != nil:
			failed = append(failed, unburied{at, x.Last, err})
		case bad != nil || at <= x.Last:
			failed = append(failed, unburied{at, x.Last, describe(ErrDamaged, "%s: offset %d: %v", p.name, at, bad)})
		}
	}
	return letters, failed
}
