package partition

import (
	"context"
	"time"
)

// Await returns nil once the log holds the offset, and at the latest after
// maxWait; at once when the offset is beyond the end, which Fetch refuses. It
// lets a reader wait without holding a buffer. Errors: not_leader, ctx's.
func (p *Partition) Await(ctx context.Context, offset int64, maxWait time.Duration) error {
	if !p.leading.Load() {
		return p.notLeader()
	}
	if _, next := p.Bounds(); offset > next || maxWait <= 0 {
		return nil
	}
	more := p.m.waitBeyond(offset)
	if more == nil {
		return nil
	}
	t := time.NewTimer(maxWait)
	defer t.Stop()
	select {
	case <-more:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.ctx.Done():
		return p.notLeader()
	}
}
