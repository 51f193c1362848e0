package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// A damaged replica is one that has lost something, or has something on its disk that doesn't
// verify. It keeps its files and never counts as in sync; where it leads it hands over. Where
// its Raft log has lost its end it doesn't run at all, for it may have acked what is missing.
// Once the others have a majority in sync without it, an epoch gives its broker a fresh
// replica in its place: then it stops, and its files go to the trash when the fresh one has
// taken over. Where there is no other replica it serves what verifies.
//
// With two replicas the other one has no majority: the damaged one stays a voter. The topic has
// to get a third replica, or this one another broker.

const (
	damageLook = time.Second
	// damageMost is how often one partition's replica is replaced here between two starts: a disk
	// that damages whatever is written to it must not have the others copy for ever.
	damageMost = 3
	damageWait = 5 * time.Second // for the epoch
	// damagePatience is for a replica that has yet to catch up: one that was cut off in the middle of a snapshot
	// opens with holes, and is handed the snapshot again.
	damagePatience = 30 * time.Second
	// damageAgain is the pause after an attempt that failed.
	damageAgain = 10 * time.Second
)

// damage says what is wrong with this broker's replica, if anything is.
func (s *slot) damage() (why string, bad bool) {
	if p := s.partition.Load(); p != nil {
		if d := p.Damage(); d != "" {
			return d, true
		}
		return "", false
	}
	if s.lost.Load() {
		return s.problemText(), true
	}
	return "", false
}

// damagedOn lists the brokers whose replica is damaged, as the leader knows.
func (s *slot) damagedOn(b *Broker) (ids []uint64) {
	if _, bad := s.damage(); bad {
		ids = append(ids, b.self())
	}
	for _, r := range s.replicas() {
		if a, ok := s.heard(b, r); ok && a.bad && r.Broker != b.self() {
			ids = append(ids, r.Broker)
		}
	}
	return ids
}

// readError is the answer to a read that failed. Where other replicas have what is damaged here, the
// reader tries again: one of them takes over.
func (b *Broker) readError(s *slot, err error) *wire.Error {
	e := wireError(err)
	if e.Reason == wire.ReasonDamaged && s != nil && !s.only() {
		return notHere(s.topic, s.number, "this broker's replica is damaged, another one takes over: "+e.Description)
	}
	return e
}

// watchDamage asks for fresh replicas in place of damaged ones, until ctx ends.
func (b *Broker) watchDamage(ctx context.Context) {
	tick := time.NewTicker(damageLook)
	defer tick.Stop()
	asked := map[uint64]int{}       // by shard
	found := map[uint64]time.Time{} // replicas, and since when
	told := map[uint64]bool{}       // replicas
	again := map[uint64]time.Time{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, s := range *b.local.Load() {
			why, bad := s.damage()
			if !bad || s.only() {
				delete(found, s.replica.ID)
				continue
			}
			first, known := found[s.replica.ID]
			if !known {
				first = time.Now()
				found[s.replica.ID] = first
			}
			if !s.lost.Load() && !s.current.Load() && time.Since(first) < damagePatience {
				continue
			}
			if !told[s.replica.ID] {
				told[s.replica.ID] = true
				b.c.Logger.Error().Str("topic", s.topic).Int32("partition", s.number).Uint64("replica", s.replica.ID).Str("damage", why).
					Msg("replica is damaged: it is to be replaced by a fresh one, its files stay until that is in sync")
			}
			if asked[s.shard] >= damageMost || time.Now().Before(again[s.shard]) {
				continue
			}
			if b.leadsNow(s) || !b.spared(ctx, s) {
				continue // it hands over, or is needed
			}
			done, err := b.quarantine(ctx, s, why)
			switch {
			case err != nil && ctx.Err() == nil:
				again[s.shard] = time.Now().Add(damageAgain)
				b.c.Logger.Warn().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("damaged replica could not be replaced yet, it is tried again")
			case done:
				if asked[s.shard]++; asked[s.shard] == damageMost {
					b.c.Logger.Error().Str("topic", s.topic).Int32("partition", s.number).Int("times", damageMost).
						Msg("replica was replaced as often as is done between two starts: check this broker's disk")
				}
			}
		}
	}
}

// repairStep tells a test.
func (b *Broker) repairStep(topic string, number int32, step string) {
	if hook := b.c.OnRepairStep; hook != nil {
		hook(topic, number, step)
	}
}

// spared says that the others have a majority of the voters in sync without this broker's replica, as
// their leader knows.
func (b *Broker) spared(ctx context.Context, s *slot) bool {
	to := s.lead.load().broker
	t := b.routes.Load().byName[s.topic]
	if to == 0 || to == b.self() || t == nil {
		return false
	}
	var res []api.PartitionStatus
	if err := b.request(ctx, to, subjectStatus, statusWait, []api.Part{{Topic: t.id, Number: s.number}}, &res); err != nil || len(res) != 1 || res[0].Leader != to {
		return false
	}
	others := 0
	for _, id := range res[0].InSync {
		if id != b.self() {
			others++
		}
	}
	return others > len(s.replicas())/2
}

// quarantine has an epoch decided that replaces this broker's replica.
func (b *Broker) quarantine(ctx context.Context, s *slot, why string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, damageWait)
	defer cancel()
	topic, part := find(b.routes.Load().config, s)
	if part == nil {
		return false, nil
	}
	b.repairStep(s.topic, s.number, "replace")
	c, err := b.epochs.Propose(ctx, func(next *config.Config) error {
		if err := next.Replace(topic, int(s.number), s.replica.ID); err != nil {
			return err
		}
		next.Change = fmt.Sprintf("partition %s/%d: replica %d on broker %s is damaged and gets replaced", s.topic, s.number, s.replica.ID, b.c.Name)
		return nil
	})
	if errors.Is(err, epoch.ErrUnchanged) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b.comparer.replaced.Add(1)
	b.c.Logger.Warn().Str("topic", s.topic).Int32("partition", s.number).Uint64("replica", s.replica.ID).Uint64("epoch", c.Epoch).Str("damage", why).
		Msg("damaged replica is being replaced")
	return true, nil
}
