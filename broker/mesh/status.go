package mesh

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	frontend "github.com/parleymq/parley/broker/protocol/nats"
)

// counters of a peer, or of the mesh.
type counters struct {
	// of a peer
	forwards, routed, replied, dropped, busy atomic.Uint64
	received, takenIn                        atomic.Uint64
	interests                                atomic.Int64

	// of the mesh
	refused, requests, lostSends, lostGroups atomic.Uint64
}

// PeerStatus is one peer as this broker sees it.
type PeerStatus struct {
	Peer

	// Reachable: both links of this broker to the peer are up, and it has been
	// heard on the control link within Config.PeerTimeout.
	Reachable bool
	Since     time.Time // of being reachable, or not
	Control   bool      // the link is up
	Data      bool
	Inbound   bool // the peer's data link to this broker is up
	Interests int  // filters that the peer's subscribers have

	RTT            time.Duration // of the last ping on the control link, 0 before the first
	PendingBytes   int64         // on the data link: sent or waiting, and not dealt with by the peer
	PendingControl int64         // waiting on the control link
	LastError      string        // why a link is down, or was last

	// Counters that only grow.
	Connects uint64 // of both links
	Forwards uint64 // messages forwarded to it
	Routed   uint64 // messages of live subscribers sent to it
	Replies  uint64 // sent straight back to it
	Dropped  uint64 // messages and replies that it could not be sent
	Busy     uint64 // forwards and sends refused because too much was under way
	Received uint64 // messages and replies that came from it
	TakenIn  uint64 // runs of forwarded messages that came from it
}

// Peers returns what is known of each peer, by broker id.
func (m *Mesh) Peers() []PeerStatus {
	inbound := make(map[uint64]bool)
	m.mu.Lock()
	for s := range m.sessions {
		if s.hello.Kind == kindData {
			inbound[s.hello.Broker] = true
		}
	}
	m.mu.Unlock()
	all := make([]PeerStatus, 0, len(m.peerMap()))
	for _, p := range m.peerMap() {
		s := p.status()
		s.Inbound = inbound[p.id]
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return cmp.Compare(a.Broker, b.Broker) })
	return all
}

func (p *peer) status() PeerStatus {
	s := PeerStatus{
		Peer:      *p.named.Load(),
		Connects:  p.control.connects.Load() + p.data.connects.Load(),
		Forwards:  p.forwards.Load(),
		Routed:    p.routed.Load(),
		Replies:   p.replied.Load(),
		Dropped:   p.dropped.Load(),
		Busy:      p.busy.Load(),
		Received:  p.received.Load(),
		TakenIn:   p.takenIn.Load(),
		Interests: int(p.interests.Load()),
	}
	fresh := false
	if d := p.control.up.Load(); d != nil {
		s.Control = true
		s.RTT = time.Duration(d.rtt.Load())
		s.PendingControl = d.out.pending()
		fresh = time.Duration(p.m.sinceStart()-d.lastHeard.Load()) <= p.m.c.PeerTimeout
	}
	if d := p.data.up.Load(); d != nil {
		s.Data = true
		s.PendingBytes = d.out.pending()
	}
	s.Reachable = s.Control && s.Data && fresh
	for _, l := range []*link{&p.data, &p.control} {
		l.mu.Lock()
		if l.since.After(s.Since) {
			s.Since = l.since
		}
		if l.err != nil {
			s.LastError = l.err.Error()
		}
		l.mu.Unlock()
	}
	return s
}

// Stats of the mesh as a whole.
type Stats struct {
	Refused    uint64 // connections to the peer port that were denied
	Requests   uint64 // of peers, handled
	LostSends  uint64 // one-way messages that no handler got
	LostGroups uint64 // messages for a queue group whose members were all gone

	Port frontend.Stats // of the peer listener
}

// Stats returns the figures as they are now.
func (m *Mesh) Stats() Stats {
	return Stats{
		Refused:    m.stats.refused.Load(),
		Requests:   m.stats.requests.Load(),
		LostSends:  m.stats.lostSends.Load(),
		LostGroups: m.stats.lostGroups.Load(),
		Port:       m.front.Stats(),
	}
}
