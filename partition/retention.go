package partition

import (
	"context"
	"time"
)

// SetRetention changes how much is kept, from the next look on.
func (p *Partition) SetRetention(r Retention) { p.retention.Store(&r) }

func (p *Partition) keepRetention() {
	t := time.NewTicker(p.c.RetentionEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := p.Retain(p.ctx); err != nil && p.ctx.Err() == nil {
				p.c.Logger.Warn().Err(err).Str("partition", p.name).Msg("retention could not be carried out, trying again later")
			}
		case <-p.ctx.Done():
			return
		}
	}
}

// Retain trims what retention no longer keeps. Only a leader does; the trim is
// replicated, so that all replicas agree on the start offset.
func (p *Partition) Retain(ctx context.Context) error {
	p.m.relax()
	p.m.release()
	if !p.leading.Load() {
		return nil
	}
	b := p.m.look()
	start, err := p.retained(*p.retention.Load(), b)
	if err != nil || start <= b.start {
		return err
	}
	if err := p.command(ctx, kindTrim, uint64(start)); err != nil {
		return err
	}
	p.c.Logger.Debug().Str("partition", p.name).Int64("from", b.start).Int64("start_offset", start).Msg("retention trimmed the log")
	return nil
}

// retained returns the start offset that retention asks for.
func (p *Partition) retained(r Retention, b bounds) (int64, error) {
	start := b.start
	if r.MaxAge > 0 {
		off, err := p.m.offsetAt(p.logTimeNow(b)-r.MaxAge.Milliseconds(), b)
		if err != nil {
			return 0, err
		}
		start = max(start, off)
	}
	if r.MaxBytes > 0 {
		off, err := p.m.offsetOfBytes(r.MaxBytes, b)
		if err != nil {
			return 0, err
		}
		start = max(start, off)
	}
	if r.MaxRecords > 0 {
		start = max(start, b.next-r.MaxRecords)
	}
	if r.WorkQueue {
		if handled, ok := p.m.groups.Load().handled(); ok {
			start = max(start, min(handled, b.next))
		}
	}
	return start, nil
}

// logTimeNow is what the leader would stamp now, so that an idle log ages too.
func (p *Partition) logTimeNow(b bounds) int64 {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	if p.a.lead == nil {
		return b.logTime
	}
	return p.a.lead.clock.stamp()
}
