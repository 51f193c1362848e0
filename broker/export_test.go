package broker

import (
	"context"
	"fmt"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
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
