package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// A partition that has lost its majority for good is recovered by an epoch, while all others go on (config.GoOn,
// config.BeginAnew). Where it goes on with the log of a replica, that replica's broker
//
//  1. closes it, applies all that its own Raft log holds, and makes of the checkpoint the beginning of a new group;
//  2. opens it in the new group, alone, has it commit its first entries, cuts its log behind them, and opens it again:
//     they begin in the middle of the partition's life, and whoever joins must get a snapshot and never them alone;
//  3. has an epoch say that it is done. Before that one nothing may join.
//
// Each step can be repeated after a crash: what the epoch says stands until the last one.

const (
	subjectSurvivors = "survivors" // what do your replicas of a partition have?
	survivorsWait    = 2 * time.Second
	salvageBegin     = 30 * time.Second // for the new group's first entries
	salvageAgain     = time.Second      // before a confirmation is tried again
)

// closeSuperseded closes partitions whose replica goes on in another Raft group.
func (k *carrier) closeSuperseded(c *config.Config) {
	var gone []*slot
	for i := range c.Topics {
		for n := range c.Topics[i].Partitions {
			p := &c.Topics[i].Partitions[n]
			r, ok := p.On(k.b.self())
			if s := k.slots[r.ID]; ok && s != nil && s.shard != p.Shard {
				gone = append(gone, s)
				delete(k.slots, r.ID)
			}
		}
	}
	closeSlots(k.b, gone)
	for _, s := range gone {
		k.b.leaders.leave(s.shard)
	}
}

// openPartition opens a partition; one that is being recovered from this broker's replica is brought over to its
// new group before.
func (k *carrier) openPartition(ctx context.Context, c partition.Config, part *config.Partition) (*partition.Partition, error) {
	if !part.Salvaging() {
		return partition.Open(ctx, c)
	}
	step := func(name string) { k.b.repairStep(c.Topic, c.Number, name) }
	old := c
	old.Shard, old.Origin, old.Initial, old.Alone = part.Salvage.Shard, partition.Origin(part.Salvage.Origin), nil, true
	// Once the new group has a log here, the checkpoint is of that one, and the old log may be gone: what
	// it has must not be applied to it again.
	if host, ok := k.b.host.(replication.Keeping); !ok || !slices.Contains(host.Shards(c.Replica), c.Shard) {
		step("replay")
		if err := partition.Salvage(ctx, old); err != nil {
			return nil, err
		}
	}
	step("begin")
	p, err := partition.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(k.begin(ctx, p, step), p.Close()); err != nil {
		return nil, fmt.Errorf("begin the new Raft group: %w", err)
	}
	step("forget")
	if err := k.b.host.Remove(ctx, part.Salvage.Shard, c.Replica); err != nil {
		return nil, fmt.Errorf("remove the old Raft log: %w", err)
	}
	step("reopen")
	return partition.Open(ctx, c)
}

// begin waits until a group of one has committed its first entries, and cuts its log behind them.
func (k *carrier) begin(ctx context.Context, p *partition.Partition, step func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, salvageBegin)
	defer cancel()
	look := time.NewTicker(recoverLook)
	defer look.Stop()
	for !p.Leading() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("it does not lead its group of one: %w", ctx.Err())
		}
	}
	step("cut")
	if log, ok := p.Log().(replication.Cutting); ok {
		return log.Cut(ctx)
	}
	return nil // a log that hands its whole state to whoever joins
}

// confirmSalvage has an epoch say that a partition was brought over to its new group.
func (k *carrier) confirmSalvage(s *slot) {
	b := k.b
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-b.carryCtx.Done():
			return
		}
		topic, part := find(b.epochs.Current(), s)
		if part == nil || !part.Salvaging() {
			return
		}
		b.repairStep(s.topic, s.number, "confirm")
		ctx, cancel := context.WithTimeout(b.carryCtx, upkeepPropose)
		c, err := b.epochs.Propose(ctx, func(next *config.Config) error {
			if err := next.Salvaged(topic, int(s.number), s.shard); err != nil {
				return err
			}
			next.Change = fmt.Sprintf("partition %s/%d has been recovered from broker %s's replica", s.topic, s.number, b.c.Name)
			if err := upkeep.Regrow(next, topic, int(s.number), part.Salvage.Factor, b.out(next)); err != nil {
				b.c.Logger.Warn().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("a recovered partition gets no other replicas by itself: give the topic its number of replicas again")
			}
			return nil
		})
		cancel()
		if err == nil || errors.Is(err, epoch.ErrUnchanged) {
			b.c.Logger.Warn().Str("topic", s.topic).Int32("partition", s.number).Uint64("epoch", c.Epoch).Msg("partition was recovered by force, from this broker's replica alone")
			return
		}
		b.c.Logger.Debug().Err(err).Str("topic", s.topic).Int32("partition", s.number).Msg("a recovery could not be confirmed yet, it is tried again")
		pause.Reset(salvageAgain)
	}
}

// out are the brokers that get no replicas, as they can't be reached from here.
func (b *Broker) out(c *config.Config) upkeep.Options {
	o := upkeep.Options{Shy: map[uint64]bool{}}
	for i := range c.Brokers {
		if id := c.Brokers[i].ID; id != b.self() && !b.peers.alive(id) {
			o.Shy[id] = true
		}
	}
	return o
}

// survivors are this broker's replicas of a partition.
func (b *Broker) survivors(q api.Part) []api.Survivor {
	out := []api.Survivor{}
	part := partOf(b.epochs.Current(), q)
	if part == nil {
		return out
	}
	host, _ := b.host.(replication.Keeping)
	running := b.slot(q.Topic, q.Number)
	for _, r := range part.Running() {
		if r.Broker != b.self() {
			continue
		}
		v := api.Survivor{Replica: r.ID, Broker: r.Broker}
		if host != nil {
			var err error
			if v.Term, v.Index, err = host.End(part.Shard, r.ID); err != nil {
				v.Problem = err.Error()
			}
		}
		if s := running; s != nil && s.replica.ID == r.ID {
			if p := s.partition.Load(); p != nil {
				st := p.Status()
				v.Next, v.Start, v.Bytes = st.Next, st.Start, st.Bytes
				if st.Restoring != nil {
					v.Problem = "it was being copied: " + st.Restoring.String()
				}
			}
			if why, bad := s.damage(); bad {
				v.Problem = "damaged: " + why
			} else if v.Problem == "" && s.partition.Load() == nil {
				v.Problem = s.problemText()
			}
		} else {
			v.Problem = "a newer replica on the same broker was to take its place"
		}
		out = append(out, v)
	}
	return out
}

// silence says why a broker gave no answer.
func (b *Broker) silence(id uint64, err error) string {
	if b.peers.state(id).up {
		return fmt.Sprintf("broker %s does not answer: %v", b.brokerName(id), err)
	}
	return fmt.Sprintf("broker %s can't be reached", b.brokerName(id))
}

// partOf is a partition of a live topic in an epoch, or nil.
func partOf(c *config.Config, q api.Part) *config.Partition {
	for i := range c.Topics {
		if t := &c.Topics[i]; t.ID == q.Topic && t.Live() && q.Number >= 0 && int(q.Number) < len(t.Partitions) {
			return &t.Partitions[q.Number]
		}
	}
	return nil
}

func (b *Broker) answerSurvivors(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var q api.Part
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, badRequest("malformed question about survivors")
	}
	if err := b.notStarted(); err != nil {
		return nil, err
	}
	return json.Marshal(b.survivors(q))
}

// Survivors implements api.Runtime.
func (r runtime) Survivors(ctx context.Context, q api.Part) []api.Survivor {
	b := r.b
	part := partOf(b.epochs.Current(), q)
	if part == nil {
		return nil
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var out []api.Survivor
	asked := map[uint64]bool{}
	for _, m := range part.Running() {
		if asked[m.Broker] {
			continue
		}
		asked[m.Broker] = true
		wg.Go(func() {
			var res []api.Survivor
			if m.Broker == b.self() {
				res = b.survivors(q)
			} else if err := b.request(ctx, m.Broker, subjectSurvivors, survivorsWait, q, &res); err != nil {
				for _, r := range part.Running() {
					if r.Broker == m.Broker {
						res = append(res, api.Survivor{Replica: r.ID, Broker: r.Broker, Away: true, Problem: b.silence(r.Broker, err)})
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, res...)
		})
	}
	wg.Wait()
	return out
}
