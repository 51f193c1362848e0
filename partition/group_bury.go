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
	// buryFirst and buryMost are how long it waits after DeadLetter failed.
	buryFirst = 100 * time.Millisecond
	buryMost  = 30 * time.Second
)

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
	if left := g.buryAt - p.now(); left > 0 {
		gl.mu.Unlock()
		return time.Duration(left) * time.Millisecond, false
	}
	dead := d.Dead(nil, buryRecords)
	var o group.Options
	gl.table.mu.RLock()
	o, _ = gl.table.s.Options(g.name)
	gl.table.mu.RUnlock()
	gl.mu.Unlock()
	if len(dead) == 0 {
		return 0, false
	}
	letters, err := p.deadLetters(g.name, o.DeadLetter, dead)
	if err == nil {
		err = gl.p.c.DeadLetter(gl.l.ctx, letters)
	}
	gl.mu.Lock()
	defer gl.mu.Unlock()
	gl.trimmed(p.m.look().start)
	if g.d != d {
		return 0, true // reset or deleted meanwhile
	}
	if err != nil {
		if gl.l.ctx.Err() != nil {
			return 0, false
		}
		g.buryWait = min(max(2*g.buryWait, buryFirst), buryMost)
		g.buryAt = p.now() + g.buryWait.Milliseconds()
		if g.problem = err.Error(); g.problem == "" {
			g.problem = "dead letters could not be written"
		}
		p.c.Logger.Warn().Err(err).Str("partition", p.name).Str("group", g.name).Dur("again_in", g.buryWait).
			Msg("dead letters could not be written: nothing is dropped, they are tried again")
		return g.buryWait, false
	}
	g.buryWait, g.buryAt, g.problem = 0, 0, ""
	for i := range letters {
		d.Buried(letters[i].Record.Offset, letters[i].Record.Offset)
	}
	if d.Changed() {
		gl.mark(g)
	}
	return 0, true
}

// deadLetters reads dead records. They share one buffer, which belongs to them.
func (p *Partition) deadLetters(name, target string, dead []group.DeadLetter) (letters []DeadLetter, _ error) {
	bytes := 0
	for _, x := range dead {
		var failed error
		err := p.m.batchesFrom(x.First, p.name, func(b record.Batch) bool {
			if b.BaseOffset() > x.Last {
				return false
			}
			b = append(record.Batch(nil), b...) // the tail's memory is not ours to keep
			var it record.Iterator
			if failed = it.Reset(b, record.DefaultLimits); failed != nil {
				return false
			}
			for it.Next() {
				r := it.Record()
				if r.Offset < x.First || r.Offset > x.Last {
					continue
				}
				if bytes += r.Size(); bytes > buryBytes && len(letters) > 0 {
					return false
				}
				c := *r
				c.Headers = append([]record.Header(nil), r.Headers...)
				letters = append(letters, DeadLetter{
					Topic: p.c.Topic, Partition: p.c.Number, Group: name, Target: target,
					Deliveries: x.Deliveries, Reason: x.Reason, Record: c,
				})
			}
			failed = it.Err()
			return failed == nil
		})
		if err != nil {
			return letters, err
		}
		if failed != nil {
			return letters, describe(ErrDamaged, "%s: offset %d: %v", p.name, x.First, failed)
		}
		if bytes > buryBytes {
			break
		}
	}
	return letters, nil
}
