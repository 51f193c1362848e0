package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
)

// What clients send for a partition that another broker leads makes one hop
// over the mesh, to the leader; the answer comes straight back. A leader that
// is one no more refuses it rather than to pass it on: the sender learns, and
// nothing goes round in circles.

// electionWait is how long a publish or a fetch waits for a partition that has
// lost its leader, counted from then: whatever comes later is refused at once,
// with a retriable error. A failover is over well before (docs/adr/0081).
const electionWait = 3 * time.Second

// leader returns the partition when this broker leads it, or the broker to ask.
// Neither: nobody leads, or the leader here has yet to begin.
func (b *Broker) leader(s *slot, hop bool) (*partition.Partition, uint64) {
	if p := s.partition.Load(); p != nil && p.Leading() {
		return p, 0
	}
	if hop {
		return nil, 0
	}
	if to := s.lead.load().broker; to != b.self() {
		return nil, to
	}
	return nil, 0
}

// passage says how a message comes to its partition.
type passage struct {
	hop     bool     // another broker has forwarded it: it isn't forwarded again
	ordered *session // that of a plain client's publish, which keeps its order: see resend.go
	again   **kept   // it was refused once; nil once another broker has it
}

// reach returns the partition that takes m, or has handed m to its leader: then
// done is set. It waits for an election that is under way.
func (s *session) reach(t *topic, number int32, m *interest.Message, ordered bool) (p *partition.Partition, done bool, err *wire.Error) {
	slot := t.parts[number]
	if p := slot.partition.Load(); p != nil && p.Leading() && (!ordered || !slot.lead.flow.busy.Load()) {
		return p, false, nil
	}
	if _, to := s.b.leader(slot, s.hop); to == 0 && slot.local && !s.hop {
		s.awaitStart()
	}
	way := passage{hop: s.hop}
	if ordered {
		way.ordered = s
	}
	if s.resent != nil {
		way.again = &s.resent
	}
	return s.b.reach(s.ctx, t, number, m, way)
}

func (b *Broker) reach(ctx context.Context, t *topic, number int32, m *interest.Message, way passage) (p *partition.Partition, done bool, werr *wire.Error) {
	slot := t.parts[number]
	var look *time.Ticker
	var queued time.Time // since when it waits for its turn
	for {
		changed := b.leaders.watch()
		p, to := b.leader(slot, way.hop)
		wait, since := time.Duration(0), slot.lead.load().since
		var err error
		turn, waits := b.turn(slot, p, to, len(m.Reply) > 0, way)
		switch {
		case waits && way.again != nil: // it goes back among those that were refused: some of them may come before it
			return nil, false, notHere(t.name, number, "its leader changes")
		case waits:
			if queued.IsZero() {
				queued = time.Now()
				way.ordered.flush() // nothing else waits for this
			}
			if wait = resendFor - time.Since(queued); wait <= 0 {
				return nil, false, notHere(t.name, number, "what was published before it waits for the next leader")
			}
		case p != nil:
			return p, false, nil
		case to != 0:
			if err = b.handOn(to, slot, t, number, m, way); err == nil {
				return nil, true, nil
			}
			if !errors.Is(err, mesh.ErrUnreachable) {
				return nil, false, forwardError(t.name, number, err)
			}
			if down := b.peers.state(to).since; down.After(since) {
				since = down
			}
		}
		if !waits {
			wait = electionWait - time.Since(since)
		}
		if slot.alone() && slot.problem.Load() != nil {
			wait = 0 // nobody else could lead
		}
		if at := slot.lead.load().broker; way.hop && at != 0 && at != b.self() {
			wait = 0 // the sender's table was wrong, or is about to learn
		}
		if wait <= 0 || ctx.Err() != nil || b.stopping.Load() {
			return nil, false, b.noLeader(t, number, to, err)
		}
		if look == nil {
			look = time.NewTicker(10 * time.Millisecond)
			defer look.Stop()
		}
		limit := time.NewTimer(wait)
		select {
		case <-changed:
		case <-turn:
		case <-look.C: // a leader that has yet to begin, a data link that is down
		case <-limit.C:
		case <-ctx.Done():
		}
		limit.Stop()
	}
}

// turn lets a plain client's publish go to where it goes, or says that it has to wait for what came before.
func (b *Broker) turn(slot *slot, p *partition.Partition, to uint64, answered bool, way passage) (turn <-chan struct{}, waits bool) {
	if way.ordered == nil || p == nil && to == 0 {
		return nil, false
	}
	if here := slot.partition.Load(); p == nil && here != nil && here.Owing() {
		return nil, true // what this broker took as the leader is about to be answered, or refused
	}
	turn = slot.lead.flow.enter(to, answered, way.again != nil)
	return turn, turn != nil
}

// handOn forwards m to the partition's leader. What can be sent again, should that refuse it, is kept.
func (b *Broker) handOn(to uint64, slot *slot, t *topic, number int32, m *interest.Message, way passage) error {
	if len(m.Reply) == 0 || way.ordered == nil && way.again == nil {
		return b.forwards.send(to, t.name, number, m)
	}
	var k *kept
	if way.again != nil {
		k = *way.again
	} else if k = b.forwards.keep(t.name, number, m); k != nil {
		k.lead = slot.lead
	} else {
		slot.lead.flow.answered() // too much is kept: this one goes without
		return b.forwards.send(to, t.name, number, m)
	}
	k.to = to
	if err := b.forwards.sendKept(to, k); err != nil {
		if k.lead != nil {
			k.lead.flow.answered()
		}
		if way.again == nil {
			b.forwards.drop(k)
		}
		return err
	}
	if way.again != nil {
		*way.again = nil
	}
	return nil
}

func forwardError(topic string, number int32, err error) *wire.Error {
	switch {
	case errors.Is(err, mesh.ErrBusy):
		return busy("partition %s/%d: the link to its leader is full: slow down or try again", topic, number)
	case errors.Is(err, mesh.ErrTooLarge):
		return &wire.Error{Code: 413, Reason: wire.ReasonTooLarge, Description: fmt.Sprintf("partition %s/%d: %v", topic, number, err)}
	}
	return &wire.Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Description: fmt.Sprintf("partition %s/%d: %v", topic, number, err)}
}

// noLeader says why a partition can't be served now.
func (b *Broker) noLeader(t *topic, number int32, to uint64, err error) *wire.Error {
	s := t.parts[number]
	switch {
	case b.stopping.Load():
		return notHere(t.name, number, "this broker is stopping")
	case err != nil:
		name := fmt.Sprint(to)
		if at := b.routes.Load().config.Broker(to); at != nil {
			name = at.Name
		}
		return notHere(t.name, number, fmt.Sprintf("its leader %s can't be reached from this broker: %v", name, err))
	case s.local && s.partition.Load() == nil:
		return s.refusal()
	}
	down := 0
	for _, r := range s.replicas() {
		if !b.peers.alive(r.Broker) {
			down++
		}
	}
	if n := len(s.replicas()); down > (n-1)/2 {
		return notHere(t.name, number, fmt.Sprintf("%d of its %d replicas can't be reached, so it has no leader: it goes on once a majority is back", down, n))
	}
	return notHere(t.name, number, "it has no leader at the moment")
}

// peerSessions take what other brokers forward: one for each, as if it were a
// client of this broker.
type peerSessions struct {
	mu     sync.Mutex
	all    map[uint64]*peerSession
	closed bool
}

type peerSession struct {
	mu sync.Mutex // a link that was opened anew may overlap with its predecessor
	session
}

func (b *Broker) peerSession(from uint64) *peerSession {
	ps := &b.forwarders
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed {
		return nil
	}
	s := ps.all[from]
	if s == nil {
		s = &peerSession{}
		s.b, s.hop, s.turn = b, true, b.turns.Add(1)
		s.ctx, s.cancel = context.WithCancel(b.ctx)
		ps.all[from] = s
	}
	return s
}

// forwarded takes a message of another broker for a partition that this one
// leads.
func (b *Broker) forwarded(from uint64, name string, number int32, m *interest.Message) {
	s := b.peerSession(from)
	if s == nil {
		b.refuseForwarded(m, notHere(name, number, "this broker is stopping"))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := b.routes.Load()
	if r == nil {
		b.refuseForwarded(m, notHere(name, number, "the broker is starting"))
		return
	}
	t := r.byName[name]
	if t == nil || number < 0 || int(number) >= len(t.parts) {
		b.refuseForwarded(m, notHere(name, number, "the broker that leads it has not carried out the newest epoch yet"))
		return
	}
	switch {
	case hasPrefix(m.Subject, wire.FetchPrefix):
		s.fetchFrom(t, number, m)
	case hasPrefix(m.Subject, wire.GroupPrefix):
		s.groupFrom(t, number, m)
	case hasPrefix(m.Subject, wire.AckPrefix):
		if a, ok := parseAck(m.Subject); ok && a.number == number {
			s.ackFrom(t, &a, m)
		}
	case hasPrefix(m.Subject, wire.NextPrefix):
		s.nextHop(t, m)
	case hasPrefix(m.Subject, wire.PubPrefix):
		if err := s.batch(t, number, m); err != nil {
			b.acks.refuse(m.Reply, err)
		}
	default:
		if err := s.publish(t, number, m); err != nil {
			b.acks.refuse(m.Reply, err)
		}
	}
}

func (b *Broker) refuseForwarded(m *interest.Message, e *wire.Error) {
	b.refuse(kindOfRequest(m.Subject), m.Reply, e)
}

func (b *Broker) forwardedFlush(from uint64) {
	s := b.peerSession(from)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Flush()
}

// closeForwarders ends the sessions of other brokers, when b.ctx has ended.
func (b *Broker) closeForwarders() {
	ps := &b.forwarders
	ps.mu.Lock()
	ps.closed = true
	all := ps.all
	ps.all = nil
	ps.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		s.flush()
		s.mu.Unlock()
		s.wg.Wait()
	}
}
