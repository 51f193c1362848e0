package broker

import (
	"context"
	"fmt"

	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Logs lists the partition logs that this broker stores, open or not.
func (b *Broker) Logs() ([]storage.LogID, error) { return b.engine.Logs() }

// Problems are those that this broker tells of itself.
func (b *Broker) Problems() []string { return runtime{b}.Problems() }

// Members are those of a partition's Raft group, as this broker's replica knows them.
func (b *Broker) Members(ctx context.Context, topic string, number int32) (replication.Membership, error) {
	log, err := b.log(topic, number)
	if err != nil {
		return replication.Membership{}, err
	}
	return log.Members(ctx)
}

// ChangeMembers changes them behind everybody's back.
func (b *Broker) ChangeMembers(ctx context.Context, topic string, number int32, c replication.Change) error {
	log, err := b.log(topic, number)
	if err != nil {
		return err
	}
	m, err := log.Members(ctx)
	if err != nil {
		return err
	}
	return log.Change(ctx, c, m.ConfigID)
}

func (b *Broker) log(topic string, number int32) (replication.Log, error) {
	p := b.routes.Load().byName[topic].parts[number].partition.Load()
	if p == nil {
		return nil, fmt.Errorf("partition %s/%d is not open here", topic, number)
	}
	return p.Log(), nil
}

// Differences are how many this broker found between replicas, and how many of what it took for one were gone at second look.
func (b *Broker) Differences() (found, passing uint64) {
	return b.comparer.found.Load(), b.comparer.passing.Load()
}

// CondemnState tells another broker's replica that its state is not what the majority has, which is this broker's, altered.
func (b *Broker) CondemnState(ctx context.Context, to, topic, version string, alter func(*partition.StateDigest)) error {
	s := b.slotNamed(topic, 0)
	d, err := s.partition.Load().StateAt(0)
	if err != nil {
		return err
	}
	alter(&d)
	other := b.epochs.Current().BrokerNamed(to).ID
	q := condemnation{Shard: s.shard, Replica: s.on(other), State: &d, Version: version, Why: "a test says so"}
	return b.comparer.askReplica(ctx, config.Replica{ID: q.Replica, Broker: other}, b.comparer.patience(), subjectCondemn, q, new(bool))
}

// Damage is what this broker's replica finds wrong with itself.
func (b *Broker) Damage(topic string, number int32) string {
	why, _ := b.slotNamed(topic, number).damage()
	return why
}
