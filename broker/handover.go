package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Leadership moves for three reasons: a partition's preferred leader is back and
// in sync, this broker stops, or its disk is full. It moves gently: one
// partition at a time when nothing is pressing, and only to a replica that
// lacks nothing.

const (
	returnLook   = 500 * time.Millisecond
	returnPause  = 50 * time.Millisecond  // between two hand-overs
	returnWait   = 2 * time.Second        // for all attempts at one
	returnTry    = 700 * time.Millisecond // for one attempt
	returnAgain  = 15 * time.Second       // after one that did not
	handoverWait = 4 * time.Second        // for all, when the broker stops
	handoverTry  = time.Second            // for one partition then
	handoverRoom = 32                     // at once then
	// handoverListen is how long a broker that stops listens whether others do so too: whoever is about to
	// stop takes nothing over.
	handoverListen = 50 * time.Millisecond
	handoverLook   = 10 * time.Millisecond
)

// reluctant: this broker wants no leadership.
func (b *Broker) reluctant() bool {
	return b.stopping.Load() || b.space != nil && b.space.Full()
}

// watchLeadership returns leadership to preferred leaders, until ctx ends.
func (b *Broker) watchLeadership(ctx context.Context) {
	tick := time.NewTicker(returnLook)
	defer tick.Stop()
	failed := map[uint64]time.Time{} // shards, and when a hand-over came to nothing
	was := b.reluctant()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if now := b.reluctant(); now != was {
			was = now
			b.leaders.repeat()
		}
		for shard, s := range *b.local.Load() {
			if at, ok := failed[shard]; ok && time.Since(at) < returnAgain || ctx.Err() != nil {
				continue
			}
			delete(failed, shard)
			to := b.betterLeader(s)
			if to == 0 {
				continue
			}
			if err := b.handOver(ctx, s, to, returnWait); err != nil {
				failed[shard] = time.Now()
				b.c.Logger.Debug().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("leadership was not handed over")
				continue
			}
			pause := time.NewTimer(returnPause)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
			}
		}
	}
}

// betterLeader returns the broker that should lead instead of this one, or 0.
func (b *Broker) betterLeader(s *slot) uint64 {
	if s.alone() || !b.leadsNow(s) {
		return 0
	}
	if _, bad := s.damage(); bad || b.reluctant() {
		return b.successor(s)
	}
	preferred := s.part.Load().Wanted()[0]
	first := preferred.Broker
	if first == b.self() || !slices.Contains(s.replicas(), preferred) {
		return 0 // it leads, or is on its way to be a member
	}
	state := b.peers.state(first)
	if !state.up || state.reluctant || time.Since(state.since) < b.c.ReturnAfter || s.inSyncFor(b, preferred) < b.c.ReturnAfter {
		return 0
	}
	return first
}

func (b *Broker) leadsNow(s *slot) bool {
	p := s.partition.Load()
	return p != nil && p.Leading()
}

// successor picks who leads when this broker won't: by preference, in sync. One that a move
// removes comes last.
func (b *Broker) successor(s *slot) uint64 {
	p := s.part.Load()
	for _, list := range [...][]config.Replica{p.Wanted(), p.Replicas} {
		for _, r := range list {
			if slices.Contains(p.Replicas, r) && b.mayLead(s, r) {
				return r.Broker
			}
		}
	}
	return 0
}

// mayLead says that another broker's replica is in sync and wants to lead.
func (b *Broker) mayLead(s *slot, r config.Replica) bool {
	st := b.peers.state(r.Broker)
	return r.Broker != b.self() && st.up && !st.reluctant && s.inSyncFor(b, r) >= 0
}

// handOver moves the leadership of a partition that this broker leads, and waits
// until it has moved.
func (b *Broker) handOver(ctx context.Context, s *slot, to uint64, wait time.Duration) error {
	p := s.partition.Load()
	if p == nil {
		return s.refusal()
	}
	replica := s.on(to)
	if replica == 0 {
		return badRequest("broker %s has no replica of partition %s/%d", b.brokerName(to), s.topic, s.number)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	for ctx.Err() == nil && p.Leading() {
		try, cancelTry := context.WithTimeout(ctx, returnTry)
		err = p.HandOver(try, replica)
		cancelTry()
	}
	for {
		changed := b.leaders.watch()
		if now := s.lead.load().broker; now != b.self() && now != 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("hand over partition %s/%d to broker %s: %w", s.topic, s.number, b.brokerName(to), err)
		}
	}
}

// handOverAll moves all leadership away, before the broker stops. What can't be
// moved in time is left to an election.
func (b *Broker) handOverAll(ctx context.Context) {
	if b.peers.mesh == nil || b.local.Load() == nil {
		return
	}
	b.leaders.repeat() // nobody is to hand leadership to this broker any more
	ctx, cancel := context.WithTimeout(ctx, handoverWait)
	defer cancel()
	listen := time.NewTimer(handoverListen)
	defer listen.Stop()
	select {
	case <-listen.C:
	case <-ctx.Done():
	}
	room := make(chan struct{}, handoverRoom)
	var wg sync.WaitGroup
	for _, s := range *b.local.Load() {
		if s.alone() || !b.leadsNow(s) {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			for ctx.Err() == nil && b.leadsNow(s) {
				to := b.successor(s)
				if to == 0 {
					return
				}
				willing, done := b.whileWilling(ctx, to)
				err := b.handOver(willing, s, to, handoverTry)
				done()
				if err != nil {
					b.c.Logger.Debug().Err(err).Msg("leadership was not handed over yet")
				}
			}
		})
	}
	wg.Wait()
}

// whileWilling ends its context when a broker goes away, or wants no leadership any more. done ends it too, and is
// to be called.
func (b *Broker) whileWilling(ctx context.Context, broker uint64) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		look := time.NewTicker(handoverLook)
		defer look.Stop()
		for {
			select {
			case <-look.C:
			case <-ctx.Done():
				return
			}
			if st := b.peers.state(broker); !st.up || st.reluctant {
				cancel()
			}
		}
	})
	return ctx, func() { cancel(); wg.Wait() }
}

// transferRequest asks a partition's leader to hand it over.
type transferRequest struct {
	api.Part
	To uint64
}

// Transfer implements api.Runtime.
func (r runtime) Transfer(ctx context.Context, topic uint64, number int32, to uint64) error {
	b := r.b
	s := b.slot(topic, number)
	if s == nil {
		return notHere("", number, "the epoch is being carried out")
	}
	var err error = notHere(s.topic, number, "it has no leader at the moment")
	for {
		changed := b.leaders.watch()
		switch p, at := b.leader(s, false); {
		case p != nil && to == b.self():
			return nil
		case p == nil && at == to: // once it has begun to lead
			var res []api.PartitionStatus
			if err = b.request(ctx, to, subjectStatus, statusWait, []api.Part{{Topic: topic, Number: number}}, &res); err == nil && len(res) == 1 && res[0].Leader == to {
				return nil
			}
		case p != nil:
			err = b.handOver(ctx, s, to, returnWait)
		case at != 0:
			err = b.request(ctx, at, subjectTransfer, returnWait+statusWait, transferRequest{api.Part{Topic: topic, Number: number}, to}, nil)
		}
		look := time.NewTimer(20 * time.Millisecond)
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			look.Stop()
			return err
		}
		look.Stop()
	}
}

func (b *Broker) answerTransfer(ctx context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var q transferRequest
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, badRequest("malformed request to transfer")
	}
	if err := b.notStarted(); err != nil {
		return nil, err
	}
	s := b.slot(q.Topic, q.Number)
	if s == nil || !b.leadsNow(s) {
		return nil, notHere("", q.Number, "this broker does not lead it")
	}
	if err := b.handOver(ctx, s, q.To, returnWait); err != nil {
		return nil, &wire.Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Description: err.Error()}
	}
	return []byte("true"), nil
}
