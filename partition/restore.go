package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/parleymq/parley/partition/storage"
)

// restore brings a replica to a snapshot's point:
//
//  1. Compare. A span of the manifest is there when this replica's own marks have the same
//     chain at both ends, or, for what is hidden above its end (fetched before a restart, or applied
//     before a crash), when its chunks are read, verified and linked to the same digest.
//  2. Fetch what is not, span by span, from whichever replica answers, verify it, and store
//     it where it belongs. Nobody sees it yet, and the old checkpoint holds.
//  3. Settle: the store shows the manifest's log; the state replaces the old one; a checkpoint
//     makes both durable.
//
// An end in the middle costs nothing but step 1 at the next start, when the replicated log
// hands in the same snapshot again. Fetching goes on until it is done: an error would be the
// process's end, and there is nothing else that this replica could do.
type restore struct {
	m *machine
	f *manifest
	// What this replica had when it began.
	start, next  int64
	chain        uint64
	stored       int64
	marked       int64
	markedAt     int64
	deep         bool // what is shown is read and verified too: something in it is damaged
	have         []progress
	status       *Restoring
	lastTold     time.Time
	began        time.Time
	from         uint64           // the replica that answered last
	distrust     map[uint64]error // those that have failed since
	liars        map[uint64]bool  // those whose records are not what the manifest lists
	alone        bool             // the present span is to come from one replica, to find out which one is wrong
	failedRounds int
	done         func() // ends the turn
}

// progress of one span: chunks from its beginning up to at are there, and link to chain.
type progress struct {
	at    int64
	chain uint64
	local bool            // some of them were there before, unproven until the span's end is reached
	by    map[uint64]bool // those that gave the rest
	marks state
}

// Restoring is how far a replica is that fetches what it lacks.
type Restoring struct {
	Held    int64  // bytes of the log that it had when it began
	Lacking int64  // bytes that it lacked
	Fetched int64  // of those, so far
	From    uint64 // the replica that it fetches from
	Problem string // why it doesn't get on, at the moment
}

func (r *Restoring) String() string {
	text := fmt.Sprintf("catching up: %d of %d bytes that its log lacks are fetched", r.Fetched, r.Lacking)
	if r.Problem != "" {
		text += "; " + r.Problem
	}
	return text
}

const (
	fetchBytes     = 1 << 20 // of one request
	restorePause   = 50 * time.Millisecond
	restoreMaxWait = 2 * time.Second
	restoreTell    = 10 * time.Second // between log lines
)

// errGone: no replica has the chunks any more.
var errGone = errors.New("the chunks were trimmed on all other replicas")

// RecoverFromSnapshot implements replication.StateMachine. It returns when all is there
// and durable, when stop is closed, or when the local store fails.
func (m *machine) RecoverFromSnapshot(r io.Reader, stop <-chan struct{}) error {
	f, err := readManifest(r)
	if err != nil {
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	ctx, cancel := untilStopped(stop)
	defer cancel()
	if err := m.restoreTo(ctx, f); err != nil {
		if ctx.Err() != nil {
			err = errStopped
		}
		return fmt.Errorf("recover from snapshot: %w", err)
	}
	return nil
}

// untilStopped makes a context of a channel. Cancel waits for what it started.
func untilStopped(stop <-chan struct{}) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

func (m *machine) restoreTo(ctx context.Context, f *manifest) error {
	m.applying.Lock()
	m.restoring = true
	s := m.state
	r := &restore{
		m: m, start: s.start, next: s.next, chain: s.chain, stored: s.stored, marked: s.marked, markedAt: s.markedAt,
		deep: m.damage.Load() != nil, began: time.Now(), distrust: map[uint64]error{}, liars: map[uint64]bool{},
	}
	m.applying.Unlock()
	defer m.catching.Store(nil)
	for {
		r.f = f
		err := r.run(ctx)
		if err == nil {
			break
		}
		if !errors.Is(err, errGone) {
			return err
		}
		// What the manifest lists is history. A newer one lists what there is.
		if f, err = r.newer(ctx); err != nil {
			return err
		}
	}
	if err := m.install(f.state); err != nil {
		return err
	}
	if err := m.Sync(); err != nil {
		return err
	}
	m.applying.Lock()
	durable := m.durable
	m.applying.Unlock()
	if durable < f.state.index {
		return fmt.Errorf("its checkpoint was not written: entry %d is durable, want %d", durable, f.state.index)
	}
	if r.status != nil {
		m.log.Info().Str("log", m.id.String()).Int64("next_offset", f.state.next).Int64("fetched_bytes", r.status.Fetched).
			Dur("took", time.Since(r.began)).Msg("replica has fetched what it lacked")
	}
	return nil
}

// run compares and fetches, until the store holds the manifest's log.
func (r *restore) run(ctx context.Context) error {
	for {
		lacking, err := r.compare(ctx)
		if err != nil {
			return err
		}
		if lacking > 0 {
			if err := r.fetchAll(ctx, lacking); err != nil {
				return err
			}
		}
		s := r.f.state
		if err := r.dropMarks(s.next); err != nil {
			return err
		}
		err = r.m.store.Settle(storage.Mark{Start: s.start, Next: s.next})
		var hole *storage.HoleError
		if !errors.As(err, &hole) || r.deep {
			return err
		}
		// Marks told of chunks that aren't there: from here on only what is read counts.
		r.m.log.Warn().Err(err).Str("log", r.m.id.String()).Msg("stored records are missing, all that is there is read and compared")
		r.deep = true
	}
}

// compare looks for each span how much of it is there, and returns how many bytes are not.
func (r *restore) compare(ctx context.Context) (lacking int64, err error) {
	r.have = make([]progress, len(r.f.spans))
	for i := range r.f.spans {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		before := lacking
		lacking += r.f.after(i) - r.f.spans[i].stored
		held, err := r.compareSpan(i)
		if err != nil {
			return 0, err
		}
		lacking = max(lacking-held, before)
		if r.have[i].at < r.f.spans[i].to {
			lacking = max(lacking, before+1)
		}
	}
	return lacking, nil
}

// fresh is the progress of a span of which nothing counts.
func (r *restore) fresh(i int) progress {
	s := r.f.spans[i]
	p := progress{at: s.from, chain: s.seed}
	p.marks.stored, p.marks.marked = s.stored, s.stored-markEveryBytes // the first chunk gets a mark
	return p
}

func (r *restore) compareSpan(i int) (held int64, err error) {
	s := &r.f.spans[i]
	p := r.fresh(i)
	r.have[i] = p
	known := i > 0 || r.f.rooted // a chain at the beginning that marks can be compared to
	if known && !r.deep && s.from >= r.start && s.from <= r.next {
		switch same, err := r.chainIs(s.from, s.seed); {
		case err != nil:
			return 0, err
		case !same:
		case s.to <= r.next:
			same, err := r.chainIs(s.to, s.digest)
			if err != nil {
				return 0, err
			}
			if same {
				r.have[i] = progress{at: s.to, chain: s.digest}
				return r.f.after(i) - s.stored, nil
			}
		default: // it begins in what is shown here and goes on above
			p.at, p.chain, p.local = r.next, r.chain, true
			p.marks.stored, p.marks.marked, p.marks.markedAt = r.stored, r.marked, r.markedAt
			held = max(r.stored-s.stored, 0)
		}
	}
	var marks []storage.IndexEntry
	err = r.m.store.Survey(p.at, s.to, func(c storage.Chunk) bool {
		if c.Base != p.at || c.Last >= s.to || verify(c.Data, everyBatch) != nil {
			return false
		}
		mk, due, err := p.take(&c, known)
		if err != nil {
			return false
		}
		if due {
			marks = append(marks, mk)
		}
		p.local = true
		held += int64(len(c.Data))
		return true
	})
	if err != nil {
		return 0, err
	}
	if p.at == s.to && p.chain != s.digest {
		return 0, nil // another history
	}
	if p.at > s.from {
		r.have[i] = p
		// Their marks may have been lost in a crash, or be another history's.
		if err := r.m.store.Mend(nil, marks); err != nil {
			return 0, err
		}
	}
	return held, nil
}

// take links a chunk to what is there and returns its mark, if one is due.
func (p *progress) take(c *storage.Chunk, chained bool) (entry storage.IndexEntry, due bool, err error) {
	chain, err := link(p.chain, c)
	if err != nil {
		return entry, false, err
	}
	before := p.marks.stored
	p.marks.stored += int64(len(c.Data))
	p.marks.logTime = c.LogTime
	if entry, due = p.marks.mark(c.Base, before, p.chain, len(c.Meta) > 0); due && !chained {
		entry = mark{offset: c.Base, logTime: c.LogTime, before: before, ids: len(c.Meta) > 0}.entry()
	}
	p.at, p.chain = c.Last+1, chain
	return entry, due, nil
}

// chainIs compares the chain that this replica has at an offset that it shows.
func (r *restore) chainIs(offset int64, chain uint64) (bool, error) {
	if offset == r.next {
		return r.chain == chain, nil
	}
	k, v, ok, err := r.m.store.SeekBack(markKey(offset))
	if err != nil || !ok {
		return false, err
	}
	mk, err := parseMark(k, v)
	if err != nil {
		return false, nil //nolint:nilerr // a damaged mark tells nothing
	}
	return mk.offset == offset && mk.chained && mk.chain == chain, nil
}

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

func (r *restore) publish(now Restoring) {
	r.status = &now
	r.m.catching.Store(r.status)
}

func (r *restore) tell(from uint64, bytes int64) {
	now := *r.status
	now.Fetched, now.From, now.Problem = now.Fetched+bytes, from, ""
	r.publish(now)
	if time.Since(r.lastTold) >= restoreTell {
		r.lastTold = time.Now()
		r.m.log.Info().Str("log", r.m.id.String()).Int64("fetched_bytes", now.Fetched).Int64("lacking_bytes", now.Lacking).
			Uint64("from_replica", from).Msg("replica is catching up")
	}
}

// took verifies what came and stores it. Bad is an error of the replica that gave it, local
// one of this replica's own store.
func (r *restore) took(i int, replica uint64, data []byte) (bad, local error) {
	if r.alone && len(r.have[i].by) > 0 && !r.have[i].by[replica] {
		r.have[i] = r.fresh(i) // its turn: from the span's beginning
		return nil, nil
	}
	s, p := &r.f.spans[i], r.have[i]
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

// staleMarks deletes marks of another history where chunks come.
func (r *restore) staleMarks(chunks []storage.Chunk, marks []storage.IndexEntry) (gone []storage.IndexEntry, err error) {
	keep := make(map[string]bool, len(marks))
	for _, mk := range marks {
		keep[string(mk.Key)] = true
	}
	gone, err = r.marksWithin(chunks[0].Base, markKey(chunks[len(chunks)-1].Last+1), 0)
	return slices.DeleteFunc(gone, func(e storage.IndexEntry) bool { return keep[string(e.Key)] }), err
}

// marksWithin lists marks, at most limit unless that is 0, as index entries that delete them.
func (r *restore) marksWithin(at int64, end []byte, limit int) (all []storage.IndexEntry, err error) {
	for limit == 0 || len(all) < limit {
		k, _, ok, err := r.m.store.Seek(markKey(at), end)
		if err != nil || !ok {
			return all, err
		}
		if len(k) != 9 {
			return nil, fmt.Errorf("%w: an index key of %d bytes", storage.ErrCorrupt, len(k))
		}
		all = append(all, storage.IndexEntry{Key: k})
		d := decoder{b: k[1:]}
		at = int64(d.u64()) + 1
	}
	return all, nil
}

// dropMarks deletes the marks from an offset on: another history's, which what is applied later
// would not write over.
func (r *restore) dropMarks(from int64) error {
	const atOnce = 1024
	for {
		gone, err := r.marksWithin(from, []byte{'o' + 1}, atOnce)
		if err != nil || len(gone) == 0 {
			return err
		}
		if err := r.m.store.Mend(nil, gone); err != nil {
			return err
		}
	}
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

// install makes the snapshot's state the partition's. Entries that the state has may come all the same: where a
// newer snapshot was taken than the replicated log knows of, here or at the replica that made this one.
func (m *machine) install(s *state) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.visible.Lock()
	m.tail.clear()
	m.visible.Unlock()
	m.state, m.reach, m.ahead = s, 0, s.index
	if err := m.rebuildWindow(); err != nil {
		return err
	}
	m.window.Store(s.ids)
	m.show(nil)
	m.restoring = false
	m.damage.Store(nil) // what was missing has come
	return nil
}
