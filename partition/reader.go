package partition

import (
	"context"
	"errors"
	"time"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// FetchRequest asks for batches from Offset on.
type FetchRequest struct {
	Offset   int64
	MaxBytes int           // 0: 1 MiB. One batch is always returned, however large.
	MaxWait  time.Duration // how long to wait at the end of the log; 0 not at all
}

// FetchResult holds whole batches as they are stored. The first one may start
// below the offset that was asked for. Batches is empty when the wait ran out.
type FetchResult struct {
	Start, Next int64
	Batches     []byte
}

const defaultFetchBytes = 1 << 20

// Fetch returns committed batches; they are appended to buf. Errors: not_leader,
// offset_out_of_range (with the bounds), damaged.
func (p *Partition) Fetch(ctx context.Context, r FetchRequest, buf []byte) (FetchResult, error) {
	if r.MaxBytes <= 0 {
		r.MaxBytes = defaultFetchBytes
	}
	var timer <-chan time.Time
	for {
		if !p.leading.Load() {
			return FetchResult{}, p.notLeader()
		}
		res, err := p.m.fetch(r, buf, p.name)
		if err != nil || len(res.Batches) > len(buf) || r.MaxWait <= 0 {
			return res, err
		}
		more := p.m.waitBeyond(r.Offset)
		if more == nil {
			continue
		}
		if timer == nil {
			t := time.NewTimer(r.MaxWait)
			defer t.Stop()
			timer = t.C
		}
		select {
		case <-more:
		case <-timer:
			return res, nil
		case <-ctx.Done():
			return res, ctx.Err()
		case <-p.ctx.Done():
			return FetchResult{}, p.notLeader()
		}
	}
}

// Bounds returns the first offset that can be read and the one that comes next, as this replica has them:
// a leader that was deposed and doesn't know it yet may be behind. Confirm tells.
func (p *Partition) Bounds() (start, next int64) {
	b := p.m.look()
	return b.start, b.next
}

// OffsetAt returns the first offset stored at log time timeMS (Unix
// milliseconds) or later; it is the next offset when there is none.
func (p *Partition) OffsetAt(timeMS int64) (int64, error) {
	if !p.leading.Load() {
		return 0, p.notLeader()
	}
	off, err := p.m.offsetAt(timeMS, p.m.look())
	switch {
	case errors.Is(err, storage.ErrClosed):
		return 0, closedUnder(p.name)
	case err != nil:
		return 0, describe(ErrDamaged, "%s: look up time %d: %v", p.name, timeMS, err)
	}
	return off, nil
}

func (m *machine) fetch(r FetchRequest, buf []byte, name string) (FetchResult, error) {
	m.visible.RLock()
	b := m.bounds
	recent := m.tail.from(r.Offset)
	m.visible.RUnlock()
	res := FetchResult{Start: b.start, Next: b.next, Batches: buf}
	if r.Offset < b.start || r.Offset > b.next {
		return res, outOfRange(name, r.Offset, b)
	}
	if r.Offset == b.next {
		return res, nil
	}
	if c := m.condemned.Load(); c != nil {
		if e := c.refuse(name, r.Offset); e != nil {
			return res, e
		}
		b.next, recent = c.limit(r.Offset, b.next), nil
	}
	limit := len(buf) + r.MaxBytes
	if recent != nil {
		var err error
		for i := range recent {
			all := false
			if buf, all, err = appendWithin(buf, len(res.Batches), recent[i].Data, r.Offset, limit, false); err != nil || !all {
				break
			}
		}
		res.Batches = buf
		if err != nil {
			return res, describe(ErrDamaged, "%s: offset %d in memory: %v", name, r.Offset, err)
		}
		return res, nil
	}
	return m.fetchStored(r, res, b, limit, name)
}

func (m *machine) fetchStored(r FetchRequest, res FetchResult, b bounds, limit int, name string) (FetchResult, error) {
	empty := len(res.Batches)
	buf := res.Batches
	want := r.Offset
	var bad error
	err := m.store.Read(r.Offset, func(c storage.Chunk) bool {
		if c.Base >= b.next {
			return false
		}
		if c.Base > want {
			bad = describe(ErrDamaged, "%s: offsets %d to %d are missing on this broker's disk: read from offset %d on", name, want, c.Base-1, c.Base)
			return false
		}
		all := false
		if buf, all, bad = appendWithin(buf, empty, c.Data, r.Offset, limit, true); bad != nil || !all {
			return false
		}
		want = c.Last + 1
		return len(buf) < limit
	})
	res.Batches = buf
	if len(buf) > empty {
		return res, nil // what comes after the damage is met by the next fetch
	}
	err = errors.Join(err, bad)
	var e *Error
	switch now := m.look(); {
	case errors.Is(err, storage.ErrClosed):
		return res, closedUnder(name)
	case r.Offset < now.start: // trimmed since the bounds were taken
		return res, outOfRange(name, r.Offset, now)
	case errors.As(err, &e):
	case err != nil:
		e = describe(ErrDamaged, "%s: offset %d on this broker's disk: %v", name, r.Offset, err)
	default:
		e = describe(ErrDamaged, "%s: offsets %d to %d are missing on this broker's disk", name, r.Offset, b.next-1)
	}
	m.damaged(e)
	return res, e
}

func outOfRange(name string, offset int64, b bounds) *Error {
	e := describe(ErrOutOfRange, "%s: offset %d is outside the log, which holds %d to %d", name, offset, b.start, b.next)
	e.Start, e.Next = b.start, b.next
	return e
}

func closedUnder(name string) *Error {
	return describe(ErrClosed, "%s: the partition was closed on this broker meanwhile: try again", name)
}

// appendWithin appends the batches of data that end at or above offset. One batch is taken
// whatever its size while buf has grown by nothing.
func appendWithin(buf []byte, empty int, data []byte, offset int64, limit int, check bool) (_ []byte, all bool, err error) {
	for len(data) > 0 {
		b, rest, err := record.Split(data)
		if err != nil {
			return buf, false, err
		}
		data = rest
		if b.LastOffset() < offset {
			continue
		}
		if len(buf) > empty && len(buf)+len(b) > limit {
			return buf, false, nil
		}
		if check {
			if err := b.VerifyCRC(); err != nil {
				return buf, false, err
			}
		}
		buf = append(buf, b...)
	}
	return buf, true, nil
}
