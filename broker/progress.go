package broker

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/mesh"
)

// Progress: followers tell their leader how far they have applied the log, so that
// the leader knows who is in sync. Raft knows too, but says nothing.

const (
	progressEvery = 250 * time.Millisecond
	progressAll   = 8 // every so many times what has not changed is told too
	// progressStale is how old a follower's word may be, beside a link that is up.
	progressStale = (progressAll + 4) * progressEvery
)

// progress of one partition's followers, as its leader here knows it.
type progress struct {
	mu       sync.Mutex
	term     uint64
	own      [3]uint64 // what the leader had applied at the last looks, newest first
	applied  map[uint64]applied
	told     uint64 // the follower's side: what was told last, to whom
	toldTo   uint64
	toldTerm uint64
}

type applied struct {
	index uint64
	at    time.Time
	since time.Time // of being in sync without a break; zero when it isn't
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
	for _, m := range s.replicas() {
		if a, ok := s.progress.applied[m.Broker]; ok && !a.since.IsZero() && time.Since(a.at) < progressStale && b.peers.alive(m.Broker) {
			ids = append(ids, m.Broker)
		}
	}
	return ids
}

// inSyncFor is for how long a follower has been in sync; negative: it isn't.
func (s *slot) inSyncFor(b *Broker, broker uint64) time.Duration {
	s.progress.mu.Lock()
	defer s.progress.mu.Unlock()
	a, ok := s.progress.applied[broker]
	if !ok || a.since.IsZero() || time.Since(a.at) >= progressStale || !b.peers.alive(broker) {
		return -1
	}
	return time.Since(a.since)
}

// observe notes what the leader has applied.
func (p *progress) observe(term, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != term {
		p.term = term
		for id, a := range p.applied { // what was heard of late still holds
			a.since = time.Time{}
			if time.Since(a.at) < progressEvery && a.index >= index {
				a.since = a.at
			}
			p.applied[id] = a
		}
		p.own = [3]uint64{index, index, index}
	}
	p.own = [3]uint64{index, p.own[0], p.own[1]}
}

// hear takes a follower's word.
func (p *progress) hear(broker, index uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.applied == nil {
		p.applied = map[uint64]applied{} // it knows of this leadership before observe does
	}
	now := time.Now()
	a := applied{index: index, at: now}
	if index >= p.own[2] {
		if a.since = p.applied[broker].since; a.since.IsZero() {
			a.since = now
		}
	}
	p.applied[broker] = a
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
	for _, s := range *b.local.Load() {
		p := s.partition.Load()
		if p == nil || s.alone() {
			continue
		}
		index, now := p.Log().Applied(), s.lead.load()
		if now.broker == b.self() {
			s.progress.observe(now.term, index)
			continue
		}
		g := &s.progress
		g.mu.Lock()
		news := all || g.told != index || g.toldTo != now.broker || g.toldTerm != now.term
		g.told, g.toldTo, g.toldTerm = index, now.broker, now.term
		g.mu.Unlock()
		if news && now.broker != 0 {
			reports[now.broker] = binary.AppendUvarint(binary.AppendUvarint(reports[now.broker], s.shard), index)
		}
	}
	for to, msg := range reports {
		if err := b.peers.mesh.Send(to, subjectProgress, msg); err != nil {
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

// progressed takes followers' words.
func (b *Broker) progressed(_ context.Context, from mesh.Identity, msg []byte) ([]byte, error) {
	for len(msg) > 0 {
		shard, rest, ok := uvarint(msg)
		if !ok {
			return nil, errBadMessage
		}
		index, rest, ok := uvarint(rest)
		if !ok {
			return nil, errBadMessage
		}
		msg = rest
		if s := b.slotOf(shard); s != nil && s.local {
			s.progress.hear(from.Broker, index)
		}
	}
	return nil, nil
}
