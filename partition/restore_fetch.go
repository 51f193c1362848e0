package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/parleymq/parley/partition/storage"
)

// fetchAll fetches what lacks.
func (r *restore) fetchAll(ctx context.Context, lacking int64) error {
	m := r.m
	if m.peers == nil {
		return errors.New("chunks are missing, and this partition knows no other replicas to ask")
	}
	total := r.f.state.stored - r.f.spans[0].stored
	r.status = &Restoring{Held: max(total-lacking, 0), Lacking: lacking}
	m.catching.Store(r.status)
	m.log.Info().Str("log", m.id.String()).Int64("next_offset", r.next).Int64("to_offset", r.f.state.next).
		Int64("lacking_bytes", lacking).Int64("log_bytes", total).Bool("damaged", r.deep).
		Msg("replica lacks what the Raft log no longer holds: it is fetched from the others")
	r.lastTold = time.Now()
	var err error
	if r.done, err = m.peers.Turn(ctx); err != nil {
		return err
	}
	defer func() { r.done() }()
	for i := range r.f.spans {
		for r.have[i].at < r.f.spans[i].to {
			if err := r.fetchSpan(ctx, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// fetchSpan asks for the next chunks of a span, whoever has them, until some came.
func (r *restore) fetchSpan(ctx context.Context, i int) error {
	s, p := &r.f.spans[i], &r.have[i]
	for wait := restorePause; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.m.diskLow != nil && r.m.diskLow() {
			if err := r.awaitRoom(ctx); err != nil {
				return err
			}
		}
		replica, ok := r.pick()
		if ok {
			q := ChunkRequest{From: p.at, To: s.to, MaxBytes: fetchBytes, Replica: r.m.id.Replica, Hold: p.at}
			if p.local {
				q.Hold = s.from // it may turn out that all of the span is needed
			}
			data, err := r.m.peers.Chunks(ctx, replica, q)
			if err == nil {
				var local error
				if err, local = r.took(i, replica, data); local != nil {
					return local
				}
			}
			if err == nil {
				r.from, r.failedRounds = replica, 0
				clear(r.distrust)
				r.tell(replica, int64(len(data)))
				return nil
			}
			if ctx.Err() == nil {
				r.m.log.Debug().Err(err).Str("log", r.m.id.String()).Uint64("replica", replica).Int64("offset", p.at).
					Msg("another replica did not give the chunks that this one lacks")
				r.distrust[replica] = err
			}
			continue
		}
		// All were asked.
		if err := r.round(i); err != nil {
			return err
		}
		if err := r.rest(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, restoreMaxWait)
	}
}

// awaitRoom waits while the disk is about to be full: what is here stays, and no replica loses anything by the wait.
func (r *restore) awaitRoom(ctx context.Context) error {
	now := *r.status
	now.Problem = "this broker's disk is almost full: it goes on once there is room"
	r.publish(now)
	r.m.log.Error().Str("log", r.m.id.String()).Int64("fetched_bytes", now.Fetched).Int64("lacking_bytes", now.Lacking).
		Msg("the disk is almost full: replica fetches nothing until there is room again")
	begin := time.Now()
	for r.m.diskLow() {
		if err := r.rest(ctx, restoreMaxWait/4); err != nil {
			return err
		}
	}
	now.Problem = ""
	r.publish(now)
	r.m.log.Info().Str("log", r.m.id.String()).Dur("waited", time.Since(begin)).Msg("there is room on the disk again: replica goes on fetching what it lacks")
	return nil
}

// rest pauses without the turn: others, whose replicas can be reached, are not to wait for this one.
func (r *restore) rest(ctx context.Context, wait time.Duration) error {
	r.done()
	r.done = func() {}
	pause := time.NewTimer(wait)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	done, err := r.m.peers.Turn(ctx)
	if err == nil {
		r.done = done
	}
	return err
}

// pick chooses whom to ask: the one that answered last, else the first that has not failed
// since.
func (r *restore) pick() (uint64, bool) {
	others := r.m.peers.Others()
	if !slices.ContainsFunc(others, func(id uint64) bool { return !r.liars[id] }) {
		clear(r.liars) // there is nobody else: perhaps they are repaired by now
	}
	best, ok := uint64(0), false
	for _, id := range others {
		if _, failed := r.distrust[id]; failed || r.liars[id] {
			continue
		}
		if id == r.from {
			return id, true
		}
		if !ok {
			best, ok = id, true
		}
	}
	return best, ok
}

// round ends a round in which nobody gave what lacks.
func (r *restore) round(i int) error {
	why := "no other replica can be reached"
	trimmed, damaged, busy := len(r.distrust) > 0, false, len(r.distrust) > 0
	for id, err := range r.distrust {
		why = fmt.Sprintf("replica %d: %v", id, err)
		trimmed = trimmed && errors.Is(err, ErrTrimmed)
		busy = busy && errors.Is(err, ErrBusy)
		damaged = damaged || errors.Is(err, ErrDamaged) || errors.Is(err, storage.ErrCorrupt)
	}
	clear(r.distrust)
	if damaged && r.have[i].at > r.f.spans[i].from {
		// They may have no chunk that begins where the next one would, because what is here of the
		// span is wrong.
		r.have[i], r.alone = r.fresh(i), true
	}
	if trimmed {
		return errGone
	}
	r.failedRounds++
	now := *r.status
	now.Problem = why
	r.publish(now)
	if r.failedRounds == 1 && !busy || time.Since(r.lastTold) >= restoreTell { // being busy passes
		r.lastTold = time.Now()
		r.m.log.Warn().Str("log", r.m.id.String()).Str("reason", why).Int64("fetched_bytes", now.Fetched).Int64("lacking_bytes", now.Lacking).
			Msg("no replica gives what this one lacks at the moment, it goes on asking")
	}
	return nil
}

// took verifies what came and stores it. Bad is an error of the replica that gave it, local
// one of this replica's own store.
func (r *restore) took(i int, replica uint64, data []byte) (bad, local error) {
	if r.alone && len(r.have[i].by) > 0 && !r.have[i].by[replica] {
		r.have[i] = r.fresh(i) // its turn: from the span's beginning
		return nil, nil
	}
	s, p := &r.f.spans[i], r.have[i]
	size := len(data)
	var chunks []storage.Chunk
	var marks []storage.IndexEntry
	for len(data) > 0 {
		c, rest, err := nextChunk(data)
		if err != nil {
			return err, nil
		}
		data = rest
		if c.Base != p.at || c.Last < c.Base || c.Last >= s.to {
			return fmt.Errorf("%w: a chunk from %d to %d came, want one from %d on, below %d", storage.ErrCorrupt, c.Base, c.Last, p.at, s.to), nil
		}
		if err := verify(c.Data, everyBatch); err != nil {
			return err, nil
		}
		mk, due, err := p.take(&c, i > 0 || r.f.rooted)
		if err != nil {
			return err, nil
		}
		if due {
			marks = append(marks, mk)
		}
		chunks = append(chunks, c)
	}
	if len(chunks) == 0 {
		return fmt.Errorf("%w: no chunks came", storage.ErrCorrupt), nil
	}
	p.by = maps.Clone(p.by)
	if p.by == nil {
		p.by = map[uint64]bool{}
	}
	p.by[replica] = true
	if p.at == s.to {
		r.alone = p.chain != s.digest && !p.local
		if p.chain != s.digest {
			return r.differs(i, &p), nil
		}
	}
	stale, err := r.staleMarks(chunks, marks)
	if err != nil {
		return nil, err
	}
	if err := r.m.store.Mend(chunks, append(stale, marks...)); err != nil {
		return nil, err
	}
	r.have[i] = p
	// A checkpoint's round follows what is copied as it follows what is published: a copy as long as the tick of rounds would
	// leave hundreds of megabytes to one fsync, and acks of the same disk behind it.
	r.m.checkpoints.Note(size)
	return nil, nil
}

// differs has a span begin anew whose chunks, all together, are not what the manifest lists: what
// was here before is another history, or what came is.
func (r *restore) differs(i int, p *progress) error {
	s := &r.f.spans[i]
	r.have[i] = r.fresh(i)
	switch {
	case p.local:
		r.m.log.Warn().Str("log", r.m.id.String()).Int64("from", s.from).Int64("to", s.to).
			Msg("stored records differ from the other replicas' and are fetched anew")
	case len(p.by) == 1:
		for id := range p.by {
			r.liars[id] = true
			r.m.log.Error().Str("log", r.m.id.String()).Uint64("replica", id).Int64("from", s.from).Int64("to", s.to).
				Msg("another replica's records are not those that the snapshot lists: it is asked no more")
			return fmt.Errorf("%w: offsets %d to %d are not what the snapshot lists", storage.ErrCorrupt, s.from, s.to-1)
		}
	}
	return nil
}

// newer asks for a snapshot of now, as what the one at hand lists is gone. The replicated log
// goes on from the older one: what the newer one has of it is passed over (applyAll).
func (r *restore) newer(ctx context.Context) (*manifest, error) {
	r.m.log.Warn().Str("log", r.m.id.String()).Msg("what this replica lacks was trimmed meanwhile, a newer snapshot is asked for")
	for wait := restorePause; ; wait = min(2*wait, restoreMaxWait) {
		for _, id := range r.m.peers.Others() {
			b, err := r.m.peers.Snapshot(ctx, id)
			var f *manifest
			if err == nil {
				f, err = readManifest(bytes.NewReader(b))
			}
			if err == nil && f.state.index > r.f.state.index {
				return f, nil
			}
			if err != nil && ctx.Err() == nil {
				r.m.log.Debug().Err(err).Str("log", r.m.id.String()).Uint64("replica", id).Msg("another replica gave no snapshot")
			}
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, ctx.Err()
		}
	}
}
