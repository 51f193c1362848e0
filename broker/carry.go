package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// carrier brings what this broker runs in line with the newest epoch. One
// goroutine owns the slots and works epoch by epoch:
//
//  1. Routes are published, so that new topics are known and deleted ones no longer.
//  2. Replicas of deleted topics, and those that moved away, are closed. Their data stays.
//  3. Replicas that should be here are opened, a bounded number at once; one that a move adds
//     joins its group.
//  4. Data of replicas that an epoch retires goes to the trash, and later for good; that of
//     topics that an epoch says to purge is deleted. Absence from an epoch never deletes
//     anything.
//
// The epoch counts as carried out when its partitions are open or have failed
// to open; a partition that failed is tried again with the next epoch and on
// each tick.
type carrier struct {
	b     *Broker
	slots map[uint64]*slot // by replica id
	last  *config.Config   // that was carried out
	// chosen are the replicas that a recovery goes on with, by shard; nil otherwise. They may not be the newest ones here.
	chosen map[uint64]uint64
	wg     sync.WaitGroup // replicas that catch up

	mu      sync.Mutex
	carried uint64
	purged  map[uint64]bool // topics whose data was deleted here since the start
	changed chan struct{}   // closed and replaced when carried moves
}

func newCarrier(b *Broker) *carrier {
	return &carrier{b: b, slots: map[uint64]*slot{}, purged: map[uint64]bool{}, changed: make(chan struct{})}
}

// run works until ctx ends, then returns with everything still open.
func (k *carrier) run(ctx context.Context) {
	watch := k.b.epochs.Watch(ctx)
	tick := time.NewTicker(k.b.c.PurgeEvery)
	defer tick.Stop()
	due := time.NewTimer(k.b.c.PurgeEvery) // of the trash
	defer due.Stop()
	var current *config.Config
	for {
		select {
		case <-due.C:
		case <-ctx.Done():
			return
		case c, ok := <-watch:
			if !ok {
				return
			}
			current = c
		case <-tick.C:
		}
		if current == nil {
			continue
		}
		if err := k.carry(ctx, current); err != nil {
			k.b.c.Logger.Error().Err(err).Uint64("epoch", current.Epoch).Msg("epoch could not be carried out")
		}
		k.expire(ctx, current)
		if at := k.b.trash.next(); !at.IsZero() {
			due.Reset(min(max(at.Sub(k.b.c.Clock()), trashPause), k.b.c.PurgeEvery))
		}
	}
}

func (k *carrier) carry(ctx context.Context, c *config.Config) error {
	k.closeSuperseded(c)
	r, err := newRoutes(c, func(t *config.Topic, n int32) *slot { return k.slot(t, n) })
	if err != nil {
		return err
	}
	k.b.locate(c)
	k.concern(c, r)
	local := make(map[uint64]*slot, len(k.slots))
	for shard, s := range r.byShard {
		if s.local {
			local[shard] = s
		}
	}
	k.b.local.Store(&local)
	k.b.routes.Store(r)
	k.closeGone(c)
	k.open(ctx, c, r)
	if ctx.Err() != nil {
		return nil
	}
	k.last = c
	k.b.stamps.poke()
	k.b.movers.poke()
	k.mu.Lock()
	if c.Epoch > k.carried || k.carried == 0 {
		k.carried = c.Epoch
		close(k.changed)
		k.changed = make(chan struct{})
	}
	k.mu.Unlock()
	return errors.Join(k.b.trash.empty(ctx, c), k.purge(ctx, c))
}

// slot returns the slot of a partition: this broker's own replica, or a fresh
// one that only says that others have it.
func (k *carrier) slot(t *config.Topic, n int32) *slot {
	p := &t.Partitions[n]
	r, local := p.On(k.b.self())
	if id := k.chosen[p.Shard]; id != 0 {
		r, local = p.Find(id)
	}
	s := k.slots[r.ID]
	if !local || s == nil {
		s = &slot{topic: t.Name, number: n, shard: p.Shard, lead: k.b.leaders.of(p.Shard)}
	}
	if local && k.slots[r.ID] == nil {
		s.replica, s.local = r, true
		s.log = storage.LogID{Topic: t.ID, Partition: uint64(n), Replica: r.ID}
		k.slots[r.ID] = s
	}
	s.part.Store(p)
	return s
}

// concern notes which partitions the epoch changes: new ones, and those whose
// topic's config or replica set is another than before.
func (k *carrier) concern(c *config.Config, r *routes) {
	before := map[uint64]*config.Topic{}
	if k.last != nil {
		for i := range k.last.Topics {
			before[k.last.Topics[i].ID] = &k.last.Topics[i]
		}
	}
	named := map[uint64]bool{}
	for i := range c.Topics {
		t := &c.Topics[i]
		for n := range t.Partitions {
			named[t.Partitions[n].Shard] = true
		}
		live := r.byID[t.ID]
		if live == nil {
			continue
		}
		old := before[t.ID]
		same := old != nil && old.Live() && maps.Equal(old.Config, t.Config)
		for n, s := range live.parts {
			now := &t.Partitions[n]
			switch {
			case k.last == nil: // which epoch began a move isn't known: this one has it
				if now.Moving() {
					s.concern.Store(c.Epoch)
				}
			case !same || n >= len(old.Partitions) || !sameMembers(&old.Partitions[n], now):
				s.concern.Store(c.Epoch)
			}
		}
	}
	k.b.leaders.keep(c, named)
}

// sameMembers says whether two epochs want the same of a partition's Raft group.
func sameMembers(a, b *config.Partition) bool {
	return a.Shard == b.Shard && sameReplicas(a.Replicas, b.Replicas) && sameReplicas(a.Target, b.Target) && sameReplicas(a.Abandoned, b.Abandoned)
}

// sameReplicas compares without regard to which one is the preferred leader's.
func sameReplicas(a, b []config.Replica) bool {
	if len(a) != len(b) {
		return false
	}
	for _, r := range a {
		if !slices.Contains(b, r) {
			return false
		}
	}
	return true
}

// open opens what should be open, and sets limits that have changed.
func (k *carrier) open(ctx context.Context, c *config.Config, r *routes) {
	room := make(chan struct{}, k.b.c.Limits.Openings)
	var wg sync.WaitGroup
	for i := range c.Topics {
		t := r.byID[c.Topics[i].ID]
		if t == nil {
			continue
		}
		keep := partition.Retention{
			MaxAge: t.config.Retention, MaxBytes: t.config.MaxBytes, MaxRecords: t.config.MaxRecords, WorkQueue: t.config.WorkQueue,
		}
		for n, s := range t.parts {
			switch p := s.partition.Load(); {
			case !s.local || ctx.Err() != nil:
			case p == nil && s.joining() && k.b.space.Low():
				s.problem.Store(notHere(s.topic, s.number, "a replica of it is to come here, and the disk is full"))
			case p == nil:
				s.retention = keep
				part := &c.Topics[i].Partitions[n]
				room <- struct{}{}
				wg.Go(func() {
					defer func() { <-room }()
					k.openSlot(ctx, c, s, part)
				})
			case s.retention != keep:
				s.retention = keep
				p.SetRetention(keep)
			}
		}
	}
	wg.Wait()
}

func (k *carrier) openSlot(ctx context.Context, c *config.Config, s *slot, part *config.Partition) {
	b := k.b
	// Only the first replicas of a partition begin with initial members. Where the replica set is another
	// by now, who begins with it would make a second group: a member that was never opened here, or is
	// lost, is replaced.
	join := !slices.Contains(part.Replicas, s.replica)
	again := !join && part.Moved
	var initial map[uint64]string
	if !join && !again {
		initial = make(map[uint64]string, len(part.Replicas))
		for _, m := range part.Replicas {
			if at := c.Broker(m.Broker); at != nil {
				initial[m.ID] = at.Addresses.Raft
			}
		}
	}
	s.current.Store(false)
	pc := partition.Config{
		Topic: s.topic, Number: s.number, Log: s.log, Epoch: c.Epoch, Shard: s.shard, Replica: s.replica.ID, Initial: initial, Join: join, Again: again, Alone: s.only(),
		Host: b.host, Engine: b.engine, Checkpoints: b.checkpoints, Peers: replicaPeers{b, s}, Clock: b.c.Clock,
		Retention: s.retention, RetentionEvery: b.c.RetentionEvery, DiskFull: b.space.Full, DiskLow: b.space.Low, Logger: b.c.Logger,
		Limits:     partition.Limits{MaxRecordBytes: int(b.c.MaxRecord) + letterRoom},
		DeadLetter: b.writeDeadLetters, NoGroups: b.noGroups, Form: b.stateForm,
		TailBudget: b.tails,
		OnLeader: func(l replication.Leadership) {
			at := s.brokerOf(l.Leader)
			if l.Leader == 0 && s.joining() {
				return // it has yet to be told of anybody
			}
			if at == 0 && l.Leader != 0 {
				return // an epoch that this broker doesn't know yet has it: the leader tells the others itself
			}
			b.leaders.learn(s.shard, l.Term, at)
			if l.Self {
				b.stamps.poke()
			}
			b.ready.kick()
		},
		Origin: partition.Origin(part.Origin),
	}
	if part.Salvaging() {
		s.problem.Store(notHere(s.topic, s.number, "it is being recovered from this broker's replica"))
	}
	p, err := k.openPartition(ctx, pc, part)
	switch {
	case err == nil:
		s.problem.Store(nil)
		s.lost.Store(false)
		s.partition.Store(p)
		b.stamps.poke()
		b.ready.kick()
		k.wg.Go(func() { k.catchUp(s, p) })
		if part.Salvaging() && b.epochs != nil { // else the whole cluster is being recovered
			k.wg.Go(func() { k.confirmSalvage(s) })
		}
	case ctx.Err() != nil:
	default:
		s.fail(err)
		b.ready.kick()
		b.c.Logger.Error().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("partition could not be opened")
	}
}

// purgeProposal bounds how long the carrier waits for an epoch: with the council's
// majority gone none is decided, and other work is to go on.
const purgeProposal = 5 * time.Second

// catchUp notes when a replica has once had all that was committed before it
// was opened: until then the broker isn't ready, so that whoever restarts brokers
// one after another waits for it.
func (k *carrier) catchUp(s *slot, p *partition.Partition) {
	if s.alone() {
		s.current.Store(true) // what it has is all there is
		return
	}
	for k.b.carryCtx.Err() == nil && s.partition.Load() == p {
		if s.joining() { // nobody can say yet what it has to have
			pause := time.NewTimer(progressEvery)
			select {
			case <-pause.C:
			case <-k.b.carryCtx.Done():
			}
			pause.Stop()
			continue
		}
		select {
		case k.b.catchRoom <- struct{}{}:
		case <-k.b.carryCtx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(k.b.carryCtx, catchUpTry)
		err := p.Log().Barrier(ctx)
		cancel()
		<-k.b.catchRoom
		if err == nil {
			s.current.Store(true)
			k.b.ready.kick()
			return
		}
		pause := time.NewTimer(catchUpPause)
		select {
		case <-pause.C:
		case <-k.b.carryCtx.Done():
		}
		pause.Stop()
	}
}

const (
	catchUpTry   = 2 * time.Second
	catchUpPause = 50 * time.Millisecond
)

// closeGone closes partitions that no live topic has here. Their data stays.
func (k *carrier) closeGone(c *config.Config) {
	wanted := map[uint64]bool{}
	for i := range c.Topics {
		if !c.Topics[i].Live() {
			continue
		}
		for n := range c.Topics[i].Partitions {
			if r, ok := c.Topics[i].Partitions[n].On(k.b.self()); ok {
				wanted[r.ID] = true
			}
		}
	}
	var gone []*slot
	for id, s := range k.slots {
		if !wanted[id] {
			gone = append(gone, s)
			delete(k.slots, id)
		}
	}
	closeSlots(k.b, gone)
	for _, s := range gone {
		k.b.leaders.leave(s.shard)
	}
}

// closeSlots closes partitions, a bounded number at once.
func closeSlots(b *Broker, slots []*slot) {
	room := make(chan struct{}, b.c.Limits.Openings)
	var wg sync.WaitGroup
	for _, s := range slots {
		p := s.partition.Swap(nil)
		if p == nil {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if err := p.Close(); err != nil {
				b.c.Logger.Warn().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("partition did not close cleanly")
			}
			b.leaders.lost(s.shard)
		})
	}
	wg.Wait()
}

// purge deletes the data of topics that the epoch says to purge, then has the
// next epoch forget them. Each step can be repeated after a crash.
func (k *carrier) purge(ctx context.Context, c *config.Config) error {
	var errs []error
	var done []uint64
	for i := range c.Topics {
		t := &c.Topics[i]
		if !t.Purge {
			continue
		}
		if !k.hasPurged(t.ID) {
			if err := k.purgeTopic(ctx, t); err != nil {
				errs = append(errs, fmt.Errorf("purge topic %s: %w", t.Name, err))
				continue
			}
			k.notePurged(t.ID)
		}
		done = append(done, t.ID)
	}
	// One broker has the topics forgotten, when all have deleted their data.
	if len(done) == 0 || k.b.epochs.Leader() != k.b.self() {
		return errors.Join(errs...)
	}
	if done = k.b.purgedEverywhere(ctx, c, done); len(done) == 0 {
		return errors.Join(errs...)
	}
	limited, cancel := context.WithTimeout(ctx, purgeProposal)
	defer cancel()
	_, err := k.b.epochs.Propose(limited, func(next *config.Config) error {
		kept := next.Topics[:0]
		removed := 0
		for _, t := range next.Topics {
			if t.Purge && contains(done, t.ID) {
				removed++
				continue
			}
			kept = append(kept, t)
		}
		if removed == 0 {
			return epoch.ErrUnchanged
		}
		next.Topics = kept
		next.Change = fmt.Sprintf("%d deleted topics purged", removed)
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (k *carrier) hasPurged(topic uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.purged[topic]
}

func (k *carrier) notePurged(topic uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.purged[topic] = true
}

func (k *carrier) purgeTopic(ctx context.Context, t *config.Topic) error {
	var logs []shardLog
	for n := range t.Partitions {
		p := &t.Partitions[n]
		for _, r := range slices.Concat(p.Running(), p.Retired) {
			if r.Broker == k.b.self() {
				logs = append(logs, shardLog{p.Shard, storage.LogID{Topic: t.ID, Partition: uint64(n), Replica: r.ID}})
			}
		}
	}
	if err := k.b.dropReplicas(ctx, logs); err != nil {
		return err
	}
	k.b.c.Logger.Info().Str("topic", t.Name).Uint64("id", t.ID).Msg("deleted topic purged")
	return nil
}

// expire proposes to purge topics whose grace has passed. From that epoch on
// they can't be restored, so that no restore races with the deletion.
func (k *carrier) expire(ctx context.Context, c *config.Config) {
	now := k.b.c.Clock().UnixMilli()
	due := func(t *config.Topic) bool {
		return !t.Live() && !t.Purge && now-t.DeletedAt >= k.b.c.DeleteGrace.Milliseconds()
	}
	any := false
	for i := range c.Topics {
		any = any || due(&c.Topics[i])
	}
	if !any || ctx.Err() != nil || k.b.epochs.Leader() != k.b.self() {
		return
	}
	limited, cancel := context.WithTimeout(ctx, purgeProposal)
	defer cancel()
	_, err := k.b.epochs.Propose(limited, func(next *config.Config) error {
		n := 0
		for i := range next.Topics {
			if due(&next.Topics[i]) {
				next.Topics[i].Purge = true
				n++
			}
		}
		if n == 0 {
			return epoch.ErrUnchanged
		}
		next.Change = fmt.Sprintf("%d deleted topics to be purged, their grace of %s is over", n, k.b.c.DeleteGrace)
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		k.b.c.Logger.Error().Err(err).Msg("deleted topics could not be purged")
	}
}

// carriedOut is the newest epoch that was carried out here.
func (k *carrier) carriedOut() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.carried
}

// wait returns when the epoch was carried out here, or ctx ends.
func (k *carrier) wait(ctx context.Context, n uint64) bool {
	for {
		k.mu.Lock()
		done, changed := k.carried >= n && k.carried > 0, k.changed
		k.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// closeAll closes every partition, when run has returned.
func (k *carrier) closeAll() {
	all := make([]*slot, 0, len(k.slots))
	for _, s := range k.slots {
		all = append(all, s)
	}
	closeSlots(k.b, all)
	k.wg.Wait()
}

func contains(ids []uint64, id uint64) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}
