package broker

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Progress: followers tell their leader how far they have applied the log, so that
// the leader knows who is in sync. Raft knows too, but says nothing.

const (
	progressEvery = 250 * time.Millisecond
	progressAll   = 8 // every so many times what has not changed is told too
	// progressStale is how old a follower's word may be, beside a link that is up.
	progressStale = (progressAll + 4) * progressEvery
	// lagTolerance is for how long a follower that had everything may be behind before people are told that it isn't in
	// sync: a machine that is short of time, or a disk that takes a while, delays an apply or a word by a second or two and
	// nobody needs to do anything about that. What acts on a follower's having everything grants nothing (docs/adr/0140).
	lagTolerance = 5 * time.Second
	// settleTime is how long a new leader has to hear from its followers before people are told that it didn't.
	settleTime = progressStale
)

// progressDamaged is a flag of what a follower tells: see quarantine.go.
const progressDamaged = 1

// looks are what a leader had applied when it looked, newest first. A follower of an idle partition learns of the last commit
// with the next heartbeat, and tells of it at its next look: so long it isn't behind.
type looks [5]uint64

func (l *looks) oldest() uint64 { return l[len(l)-1] }

// progress of one partition's followers, as its leader here knows it.
type progress struct {
	mu       sync.Mutex
	term     uint64
	own      looks
	applied  map[uint64]applied // by replica
	told     uint64             // the follower's side: what was told last, to whom
	toldTo   uint64
	toldTerm uint64
}

type applied struct {
	index uint64
	bytes int64 // stored
	bad   bool  // it is damaged: it never counts as being in sync
	at    time.Time
	since time.Time // of being in sync without a break; zero when it isn't
	whole time.Time // when it was last said to have everything; zero when it has fallen back since
}

// inSync lists the brokers that have what the leader had a moment ago, the
// leader itself included.
func (s *slot) inSync(b *Broker) []uint64 {
	ids := []uint64{b.self()}
	if s.alone() {
		return ids
	}
	s.progress.mu.Lock()
	defer s.progress.mu.Unlock()
	if s.progress.term != s.lead.load().term {
		return ids // what the leader itself has isn't known yet
	}
	for _, m := range s.replicas() {
		if a, ok := s.progress.applied[m.ID]; ok && !a.since.IsZero() && time.Since(a.at) < progressStale && b.peers.alive(m.Broker) {
			ids = append(ids, m.Broker)
		}
	}
	return ids
}

// late lists those of the others that nothing is wrong with yet: their links are up, and they had everything within
// lagTolerance, or the leader is too new to have heard from them.
func (s *slot) late(b *Broker, inSync []uint64) (ids []uint64) {
	now := s.lead.load()
	s.progress.mu.Lock()
	defer s.progress.mu.Unlock()
	for _, m := range s.replicas() {
		if m.Broker == b.self() || slices.Contains(inSync, m.Broker) {
			continue
		}
		a, link := s.progress.applied[m.ID], b.peers.state(m.Broker)
		switch {
		case !link.up || a.bad:
		case time.Since(now.since) < settleTime,
			link.since.Before(a.whole) && time.Since(a.whole) < lagTolerance: // and not since it was away
			ids = append(ids, m.Broker)
		}
	}
	return ids
}

// inSyncFor is for how long a follower has been in sync; negative: it isn't.
func (s *slot) inSyncFor(b *Broker, r config.Replica) time.Duration {
	s.progress.mu.Lock()
	defer s.progress.mu.Unlock()
	a, ok := s.progress.applied[r.ID]
	if !ok || s.progress.term != s.lead.load().term || a.since.IsZero() || time.Since(a.at) >= progressStale || !b.peers.alive(r.Broker) {
		return -1
	}
	return time.Since(a.since)
}

// heard is what a replica told last; false when that is too long ago, or it told nothing.
func (s *slot) heard(b *Broker, r config.Replica) (applied, bool) {
	s.progress.mu.Lock()
	defer s.progress.mu.Unlock()
	a, ok := s.progress.applied[r.ID]
	return a, ok && time.Since(a.at) < progressStale && b.peers.alive(r.Broker)
}

// observe notes what the leader has applied.
func (p *progress) observe(term, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != term {
		p.term = term
		for id, a := range p.applied { // what was heard of late still holds
			a.since, a.whole = time.Time{}, time.Time{}
			if !a.bad && time.Since(a.at) < progressEvery && a.index >= index {
				a.since, a.whole = a.at, a.at
			}
			p.applied[id] = a
		}
		for i := range p.own {
			p.own[i] = index
		}
	}
	copy(p.own[1:], p.own[:])
	p.own[0] = index
}

// hear takes a follower's word.
func (p *progress) hear(replica, index uint64, bytes int64, bad bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.applied == nil {
		p.applied = map[uint64]applied{} // it knows of this leadership before observe does
	}
	now := time.Now()
	a, was := applied{index: index, bytes: bytes, at: now, bad: bad}, p.applied[replica]
	switch {
	case bad:
	case p.term != 0 && index >= p.own.oldest():
		if a.since = was.since; a.since.IsZero() {
			a.since = now
		}
		a.whole = now
	case index >= was.index:
		a.whole = was.whole
	}
	p.applied[replica] = a
}

// watchProgress tells leaders how far this broker is, and looks how far its own
// partitions are.
func (b *Broker) watchProgress(ctx context.Context) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for n := 1; ; {
		// A new leader knows nothing of its followers: it is told at once.
		select {
		case <-tick.C:
			b.tellProgress(n%progressAll == 0)
			n++
			continue
		case <-b.leaders.watch():
		case <-ctx.Done():
			return
		}
		pause := time.NewTimer(progressEvery / 8)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		b.tellProgress(false)
	}
}

func (b *Broker) tellProgress(all bool) {
	reports := map[uint64][]byte{}
	subject := subjectProgress
	if b.epochs.Current().FeatureLevel >= config.LevelMoves {
		subject = subjectReplicas
	}
	for _, s := range *b.local.Load() {
		p := s.partition.Load()
		_, bad := s.damage()
		if p == nil && !bad || s.alone() {
			continue
		}
		index, bytes, now := uint64(0), int64(0), s.lead.load()
		if p != nil {
			st := p.Status()
			index, bytes = p.Log().Applied(), st.Bytes
			if r := st.Restoring; r != nil { // what it fetches, or had fetched before it began anew, isn't shown yet
				bytes = r.Held + min(r.Fetched, r.Lacking)
			}
		}
		if now.broker == b.self() {
			s.progress.observe(now.term, index)
			continue
		}
		g := &s.progress
		g.mu.Lock()
		// Who joins is told of again and again: the leader may not know the replica yet, and waits for it.
		news := all || s.joining() || g.told != index || g.toldTo != now.broker || g.toldTerm != now.term
		g.told, g.toldTo, g.toldTerm = index, now.broker, now.term
		g.mu.Unlock()
		if news && now.broker != 0 {
			msg := binary.AppendUvarint(reports[now.broker], s.shard)
			if subject == subjectReplicas {
				msg = binary.AppendUvarint(binary.AppendUvarint(msg, s.replica.ID), uint64(bytes))
				flags := uint64(0)
				if bad {
					flags |= progressDamaged
				}
				msg = binary.AppendUvarint(msg, flags)
			}
			reports[now.broker] = binary.AppendUvarint(msg, index)
		}
	}
	for to, msg := range reports {
		if err := b.peers.mesh.Send(to, subject, msg); err != nil {
			for _, s := range *b.local.Load() { // it is told again
				s.progress.mu.Lock()
				if s.progress.toldTo == to {
					s.progress.toldTo = 0
				}
				s.progress.mu.Unlock()
			}
		}
	}
}

// progressed takes followers' words: shard and index of each, in a cluster where some broker doesn't
// know of moves.
func (b *Broker) progressed(_ context.Context, from mesh.Identity, msg []byte) ([]byte, error) {
	return nil, b.hear(msg, 2, func(s *slot, v []uint64) { s.progress.hear(s.on(from.Broker), v[1], 0, false) })
}

// replicasProgressed takes followers' words: shard, replica, bytes stored, flags and index of each. A
// broker may have two replicas of a partition for a while, one of them damaged.
func (b *Broker) replicasProgressed(_ context.Context, from mesh.Identity, msg []byte) ([]byte, error) {
	return nil, b.hear(msg, 5, func(s *slot, v []uint64) {
		if s.brokerOf(v[1]) == from.Broker {
			s.progress.hear(v[1], v[4], int64(v[2]), v[3]&progressDamaged != 0)
		}
	})
}

// hear reads a message of entries of so many numbers, the first one a shard.
func (b *Broker) hear(msg []byte, numbers int, each func(s *slot, v []uint64)) error {
	var v [5]uint64
	for len(msg) > 0 {
		for i := range numbers {
			var ok bool
			if v[i], msg, ok = uvarint(msg); !ok {
				return errBadMessage
			}
		}
		if s := b.slotOf(v[0]); s != nil && s.local {
			each(s, v[:numbers])
		}
	}
	return nil
}
