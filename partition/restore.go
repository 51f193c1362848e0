package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/parleymq/parley/partition/storage"
)

// restore brings a replica to a snapshot's point:
//
//  1. Compare (restore_compare.go). A span of the manifest is there when this replica's own marks have the same
//     chain at both ends, or, for what is hidden above its end (fetched before a restart, or applied
//     before a crash), when its chunks are read, verified and linked to the same digest.
//  2. Fetch (restore_fetch.go) what is not, span by span, from whichever replica answers, verify it, and store
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
	m.restores++
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
	m.log.Debug().Str("log", m.id.String()).Uint64("index", f.state.index).Int64("next_offset", f.state.next).Msg("replica has taken a snapshot's place in the log")
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

// install makes the snapshot's state the partition's. Entries that the state has may come all the same: where a
// newer snapshot was taken than the replicated log knows of, here or at the replica that made this one.
func (m *machine) install(s *state) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.visible.Lock()
	m.tail.clear()
	m.shelf.clear()
	m.visible.Unlock()
	m.state, m.reach, m.ahead = s, 0, s.index
	if err := m.rebuildWindow(); err != nil {
		return err
	}
	m.window.Store(s.ids)
	m.show(nil)
	m.restoring = false
	m.damage.Store(nil) // what was missing has come
	m.condemned.Store(nil)
	return nil
}
