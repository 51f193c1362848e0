package partition

import (
	"context"
	"time"
)

// Await returns nil once the log holds the offset, and at the latest after
// maxWait; at once when the offset is beyond the end, which Fetch refuses. It
// lets a reader wait without holding a buffer. Errors: not_leader, ctx's.
//
// An offset beyond the end may have been read from a newer leader that this replica has not
// heard of, after a pause or cut off from the others: so whether this one leads is
// asked of the others before Fetch may say that there is no such offset.
func (p *Partition) Await(ctx context.Context, offset int64, maxWait time.Duration) error {
	if !p.leading.Load() {
		return p.notLeader()
	}
	if _, next := p.Bounds(); offset > next {
		return p.Confirm(ctx)
	}
	if maxWait <= 0 {
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

// confirmLimit bounds asking the others. Who is cut off from them gets no answer.
const confirmLimit = 2 * time.Second

// Confirm returns nil when this replica leads and has applied all that was committed before the call: the
// others say so. What Bounds and OffsetAt return afterwards is no older than the call. Errors: not_leader, ctx's.
func (p *Partition) Confirm(ctx context.Context) error {
	if !p.leading.Load() {
		return p.notLeader()
	}
	asking, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	err := p.log.Barrier(asking)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil || !p.leading.Load():
		return p.notLeader()
	}
	return nil
}
