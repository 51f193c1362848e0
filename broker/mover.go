package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// movers carries out moves: for each partition that this broker leads it brings the members
// of the Raft group, which are the fact, in line with what the newest epoch intends, one
// step at a time (nextStep). Nothing of it is remembered: a leader that takes over looks at
// the members and goes on. What fences a leader that acts late:
//
//   - It acts only on an epoch that the partition is stamped with: its barrier, committed
//     to the partition's own log, is no newer than that epoch. So no leader undoes what was
//     done for an epoch that it doesn't know.
//   - The epoch is read again before each step, and each change of the members names the
//     config-change id of the members that the step was made for.
//   - What comes late all the same (a replica added for a target that was replaced) is no
//     member that the epoch wants, and the next look removes it. Hence a look also at
//     each partition that doesn't move, whenever its leader or its epoch is another.
type movers struct {
	b    *Broker
	kick chan struct{}
	wg   sync.WaitGroup // steps under way
	room chan struct{}  // steps at once

	finished atomic.Uint64                // moves
	steps    [stepRenew + 1]atomic.Uint64 // taken, by kind
}

const (
	// moveLook is how often partitions are looked at that wait for something nobody tells.
	moveLook = 100 * time.Millisecond
	// moveStep bounds one step. A change that it cuts off may be made yet: the next look tells.
	moveStep = 3 * time.Second
	// moveAgain is the pause after a step that failed.
	moveAgain = 500 * time.Millisecond
	// moveCut is from how many stored bytes on the Raft log is cut before a replica is added, and moveCutWait for how long
	// that is waited for. Below, the entries are soon sent.
	moveCut     = 4 << 20
	moveCutWait = 10 * time.Second
	// stepsAtOnce bounds the steps under way, of all partitions.
	stepsAtOnce = 16
)

// move is what this broker knows of one partition's move while it leads.
type move struct {
	busy atomic.Bool // a step is under way

	mu      sync.Mutex
	members *replication.Membership // as last read, in term
	term    uint64
	settled settlement
	again   time.Time // not before, after a failure
	last    step
	since   time.Time // of last's phase
	began   time.Time // of the move, as this leader knows it
	copying int       // replicas that catch up
	cutFor  uint64    // the replica before whose addition the log was cut
	failed  string    // why the last step failed
}

// settlement is when the members were last found to be those that the epoch wants.
type settlement struct {
	term, epoch uint64
	at          time.Time // when they were first found so, in this term, for what concerns the partition
	sure        bool      // they were so once more, when no step of an earlier leader, or epoch, could be made late any more
}

func newMovers(b *Broker) *movers {
	return &movers{b: b, kick: make(chan struct{}, 1), room: make(chan struct{}, stepsAtOnce)}
}

func (k *movers) poke() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (k *movers) run(ctx context.Context) {
	defer k.wg.Wait()
	look := time.NewTicker(moveLook)
	defer look.Stop()
	tick := look.C
	for {
		changed := k.b.leaders.watch()
		select {
		case <-ctx.Done():
			return
		case <-k.kick:
		case <-changed:
		case <-tick:
		}
		if tick = nil; k.work(ctx) {
			tick = look.C
		}
	}
}

// work takes the next step of each partition that has one and reports whether anything is left.
func (k *movers) work(ctx context.Context) (more bool) {
	local := k.b.local.Load()
	now := time.Now()
	copies := 0
	for _, s := range *local {
		copies += s.copies(k.b)
	}
	for _, s := range *local {
		p := s.partition.Load()
		if p == nil || s.alone() || s.lead.load().broker != k.b.self() {
			continue
		}
		if !p.Leading() {
			more = true
			continue
		}
		s.move.mu.Lock()
		done := s.move.settled
		wait := done.term == s.lead.load().term && done.epoch >= max(s.concern.Load(), 1)
		if wait && !done.sure {
			more, wait = true, now.Before(done.at.Add(moveStep))
		}
		pause := now.Before(s.move.again)
		s.move.mu.Unlock()
		if wait {
			continue
		}
		more = true
		if pause || !s.move.busy.CompareAndSwap(false, true) {
			continue
		}
		room := copies < k.b.c.Limits.Moves
		select {
		case k.room <- struct{}{}:
		case <-ctx.Done():
			s.move.busy.Store(false)
			return false
		}
		k.wg.Go(func() {
			defer func() { <-k.room }()
			took, err := k.advance(ctx, s, p, room)
			s.move.mu.Lock()
			s.move.failed, s.move.again = "", time.Time{}
			if err != nil {
				s.move.members, s.move.failed, s.move.again = nil, err.Error(), time.Now().Add(moveAgain)
			}
			s.move.mu.Unlock()
			s.move.busy.Store(false)
			if err != nil && ctx.Err() == nil {
				k.b.c.Logger.Debug().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("step of a move was not taken, it is tried again")
			}
			if took {
				k.poke()
			}
		})
		if room && s.part.Load().Moving() {
			copies++ // it may have begun one: the next look knows
		}
	}
	return more
}

// copies counts the replicas that catch up for a partition that this broker leads.
func (s *slot) copies(b *Broker) int {
	if s.lead.load().broker != b.self() || !s.part.Load().Moving() {
		return 0
	}
	s.move.mu.Lock()
	defer s.move.mu.Unlock()
	return s.move.copying
}

// advance takes one step and reports whether it did something.
func (k *movers) advance(ctx context.Context, s *slot, p *partition.Partition, room bool) (took bool, err error) {
	running := ctx
	ctx, cancel := context.WithTimeout(ctx, moveStep)
	defer cancel()
	b := k.b
	c := b.routes.Load().config
	if b.epochs.Current().Epoch != c.Epoch {
		return false, nil // a newer epoch is being carried out
	}
	topic, part := find(c, s)
	barrier := p.Status().Barrier
	want, stamped := s.stamped(p, b)
	if part == nil || !stamped || want > c.Epoch || barrier > c.Epoch {
		return false, nil // the stamps, or the epochs, come first
	}
	members, term, err := s.membership(ctx, p)
	if err != nil {
		return false, err
	}
	v := &moveView{
		part: part, members: members, self: s.replica.ID, room: room,
		opened: func(r config.Replica) bool { _, ok := s.heard(b, r); return ok },
		caught: func(r config.Replica) bool { return r.ID == s.replica.ID || s.inSyncFor(b, r) >= 0 },
	}
	st := nextStep(v)
	if st.kind == stepWait && (st.phase == phaseAdding || st.phase == phaseCopying) {
		switch peer := b.peers.state(st.replica.Broker); {
		case !peer.up:
			st.why += ": it can't be reached"
		case peer.reluctant:
			st.why += ": it is stopping, or its disk is full"
		}
	}
	s.note(part, members, st)
	if b.epochs.Current().Epoch != c.Epoch { // while the members were being read
		return true, nil
	}
	if hook := b.c.OnMoveStep; hook != nil && st.kind != stepWait && (st.kind != stepDone || part.Moving()) {
		hook(s.topic, s.number, st.kind.String())
	}
	change := func(kind replication.ChangeKind, address string) error {
		s.move.forget()
		return p.Log().Change(ctx, replication.Change{Kind: kind, Replica: st.replica.ID, Address: address}, members.ConfigID)
	}
	switch st.kind {
	case stepDone:
		if part.Moving() {
			return true, k.finish(ctx, s, topic, part)
		}
		s.move.mu.Lock()
		defer s.move.mu.Unlock()
		switch was := s.move.settled; {
		case was.term != term || was.at.IsZero() || was.epoch < s.concern.Load():
			s.move.settled = settlement{term: term, epoch: c.Epoch, at: time.Now()}
			s.move.members = nil // the next look is to find out anew
		default:
			s.move.settled = settlement{term, c.Epoch, was.at, !time.Now().Before(was.at.Add(moveStep))}
		}
		return false, nil
	case stepWait:
		return false, nil
	case stepAdd:
		if k.shorten(running, s, p, st.replica) {
			return true, nil // the epoch and the members are looked at again
		}
		address := ""
		if at := c.Broker(st.replica.Broker); at != nil {
			address = at.Addresses.Raft
		}
		err = change(replication.AddNonVoting, address)
	case stepPromote:
		err = change(replication.Promote, "")
	case stepRemove:
		err = change(replication.Remove, "")
	case stepTransfer:
		err = b.handOver(ctx, s, st.replica.Broker, returnWait)
	case stepRenew:
		err = k.renew(ctx, s, topic, st.replica)
	}
	if err != nil {
		return false, fmt.Errorf("%s replica %d: %w", st.kind, st.replica.ID, err)
	}
	k.steps[st.kind].Add(1)
	b.c.Logger.Info().Str("topic", s.topic).Int32("partition", s.number).Uint64("epoch", c.Epoch).Stringer("step", st.kind).
		Uint64("replica", st.replica.ID).Str("on", b.brokerName(st.replica.Broker)).Msg("partition moves")
	return true, nil
}

// shorten has the Raft log forget its beginning before a replica is added, once for each, and reports whether it was tried. A
// log that still has all its entries would hand them to the newcomer one by one: at no rate that could be set, written twice by it,
// and through the queues that publishes go through. Behind a cut it gets a list and fetches what is listed (docs/adr/0180). When
// it can't be done the move goes on as it is.
func (k *movers) shorten(ctx context.Context, s *slot, p *partition.Partition, r config.Replica) bool {
	log, ok := p.Log().(replication.Cutting)
	if !ok || p.Status().Bytes < moveCut {
		return false
	}
	s.move.mu.Lock()
	tried := s.move.cutFor == r.ID
	s.move.cutFor = r.ID
	s.move.mu.Unlock()
	if tried {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, moveCutWait)
	defer cancel()
	if _, err := log.Shorten(ctx); err != nil && ctx.Err() == nil {
		k.b.c.Logger.Debug().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("the Raft log was not cut before a replica is added, which will get all its entries")
	}
	return true
}

// find returns a slot's topic and partition in an epoch, or nil.
func find(c *config.Config, s *slot) (topic uint64, part *config.Partition) {
	t := c.Topic(s.topic)
	if t == nil || int(s.number) >= len(t.Partitions) || t.Partitions[s.number].Shard != s.shard {
		return 0, nil
	}
	return t.ID, &t.Partitions[s.number]
}

// membership returns the members as this leader last read them. What it is used for names their
// config-change id, so that one which is out of date does no harm.
func (s *slot) membership(ctx context.Context, p *partition.Partition) (replication.Membership, uint64, error) {
	term := p.Status().Term
	s.move.mu.Lock()
	if s.move.members != nil && s.move.term == term {
		defer s.move.mu.Unlock()
		return *s.move.members, term, nil
	}
	s.move.mu.Unlock()
	m, err := p.Log().Members(ctx)
	if err != nil {
		return m, term, err
	}
	s.move.mu.Lock()
	defer s.move.mu.Unlock()
	s.move.members, s.move.term = &m, term
	return m, term, nil
}

// forget has the members read again.
func (m *move) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members = nil
}

// note keeps what is told of the move.
func (s *slot) note(part *config.Partition, members replication.Membership, st step) {
	s.move.mu.Lock()
	defer s.move.mu.Unlock()
	now := time.Now()
	if !part.Moving() {
		s.move.last, s.move.since, s.move.began, s.move.copying = step{}, time.Time{}, time.Time{}, 0
		return
	}
	if st.kind == stepDone {
		st.phase = phaseFinishing
	}
	if s.move.began.IsZero() {
		s.move.began = now
	}
	if s.move.last.phase != st.phase {
		s.move.since = now
	}
	s.move.last = st
	s.move.copying = len(members.NonVoting)
}

// moveStatus is what is told of a move by the broker that leads, nil when nothing moves.
func (s *slot) moveStatus(b *Broker, bytes int64) *api.MoveStatus {
	part := s.part.Load()
	if part == nil || !part.Moving() {
		return nil
	}
	s.move.mu.Lock()
	m := &api.MoveStatus{Phase: s.move.last.phase, Detail: s.move.failed}
	if m.Phase == "" {
		m.Phase = phaseWaiting
	}
	if why := s.move.last.why; why != "" {
		m.Detail = fmt.Sprintf("replica %d on %s: %s", s.move.last.replica.ID, b.brokerName(s.move.last.replica.Broker), why)
	}
	if !s.move.began.IsZero() {
		m.Seconds = time.Since(s.move.began).Seconds()
	}
	s.move.mu.Unlock()
	s.progress.mu.Lock()
	own := s.progress.own[0]
	s.progress.mu.Unlock()
	for _, r := range part.Adding() {
		st := api.ReplicaStatus{Replica: r.ID, Broker: r.Broker, OfBytes: bytes, Behind: own, InSync: s.inSyncFor(b, r) >= 0}
		if a, ok := s.heard(b, r); ok {
			st.Bytes, st.Behind = a.bytes, own-min(own, a.index)
		}
		m.Adding = append(m.Adding, st)
	}
	return m
}

// finish has the epoch decided that says so.
func (k *movers) finish(ctx context.Context, s *slot, topic uint64, part *config.Partition) error {
	target := part.Target
	c, err := k.b.epochs.Propose(ctx, func(next *config.Config) error {
		if err := next.FinishMove(topic, int(s.number), target); err != nil {
			return err
		}
		next.Change = fmt.Sprintf("partition %s/%d has moved to %s", s.topic, s.number, brokersText(next, target))
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		return fmt.Errorf("report a move as done: %w", err)
	}
	if err == nil {
		k.finished.Add(1)
		s.move.mu.Lock()
		took := time.Since(s.move.began)
		s.move.mu.Unlock()
		k.b.c.Logger.Info().Str("topic", s.topic).Int32("partition", s.number).Uint64("epoch", c.Epoch).Dur("took", took).
			Str("to", brokersText(c, target)).Msg("partition has moved")
	}
	return k.awaitEpoch(ctx, c.Epoch)
}

// awaitEpoch waits until this broker has carried out an epoch, so that the same step isn't taken twice.
func (k *movers) awaitEpoch(ctx context.Context, n uint64) error {
	if !k.b.carrier.wait(ctx, n) {
		return fmt.Errorf("wait for epoch %d to be carried out: %w", n, ctx.Err())
	}
	return nil
}

// renew has a wanted replica given a fresh id.
func (k *movers) renew(ctx context.Context, s *slot, topic uint64, r config.Replica) error {
	c, err := k.b.epochs.Propose(ctx, func(next *config.Config) error {
		if err := next.Replace(topic, int(s.number), r.ID); err != nil {
			return err
		}
		next.Change = fmt.Sprintf("partition %s/%d: replica %d was removed before, its broker %s gets a fresh one", s.topic, s.number, r.ID, k.b.brokerName(r.Broker))
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		return err
	}
	return k.awaitEpoch(ctx, c.Epoch)
}

// brokersText names the brokers of replicas.
func brokersText(c *config.Config, replicas []config.Replica) string {
	text := ""
	for i, r := range replicas {
		if i > 0 {
			text += ","
		}
		if b := c.Broker(r.Broker); b != nil {
			text += b.Name
		} else {
			text += fmt.Sprint(r.Broker)
		}
	}
	return text
}
