package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication/epoch/config"
)

// storedBatch is one batch as a replica has it on disk.
type storedBatch struct {
	base, last int64
	sum        [sha256.Size]byte
}

// storedPartition is one replica of a partition.
type storedPartition struct {
	broker  string
	start   int64
	next    int64
	batches []storedBatch
}

// placement is which replicas the brokers have, by their log; what is retired rests on its broker's disk and is not compared.
type placement struct {
	epoch   uint64
	brokers map[storage.LogID]string
	resting map[storage.LogID]bool
	gone    map[uint64]bool // deleted topics
}

// placedReplicas reads where the newest epoch that any of some stopped brokers knows has the replicas of all topics.
func placedReplicas(members []*clusterProcess) (*placement, error) {
	var newest *config.Config
	for _, m := range members {
		c, err := broker.KnownEpoch(m.dir)
		if err != nil {
			return nil, fmt.Errorf("read the epochs of %s: %w", m.name, err)
		}
		if newest == nil || c.Epoch > newest.Epoch {
			newest = c
		}
	}
	return placementOf(newest), nil
}

func placementOf(c *config.Config) *placement {
	at := &placement{epoch: c.Epoch, brokers: map[storage.LogID]string{}, resting: map[storage.LogID]bool{}, gone: map[uint64]bool{}}
	for i := range c.Topics {
		t := &c.Topics[i]
		at.gone[t.ID] = !t.Live()
		for n := range t.Partitions {
			id := func(r config.Replica) storage.LogID {
				return storage.LogID{Topic: t.ID, Partition: uint64(n), Replica: r.ID}
			}
			for _, r := range t.Partitions[n].Replicas {
				if b := c.Broker(r.Broker); b != nil && t.Live() {
					at.brokers[id(r)] = b.Name
				}
			}
			for _, r := range t.Partitions[n].Retired {
				at.resting[id(r)] = true
			}
		}
	}
	return at
}

// compareReplicas opens the logs of brokers that were stopped and compares the replicas of every partition of every
// topic byte for byte. It returns how many replicas and batches it compared, and tells each difference, each replica
// that isn't where the epoch says, and each that is somewhere else.
func compareReplicas(members []*clusterProcess, at *placement, tell func(string, ...any)) (replicas, batches, different int64, err error) {
	all := map[storage.LogID]storedPartition{}
	for _, m := range members {
		strange, err := readReplicas(m, at, all)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("read the log of %s: %w", m.name, err)
		}
		for _, id := range strange {
			different++
			tell("%s has replica %d of partition %d of topic %d on disk, which epoch %d doesn't have there", m.name, id.Replica, id.Partition, id.Topic, at.epoch)
		}
	}
	ids := slices.SortedFunc(maps.Keys(at.brokers), func(a, b storage.LogID) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Replica, b.Replica))
	})
	var first *storedPartition
	for i, id := range ids {
		if i == 0 || ids[i-1].Topic != id.Topic || ids[i-1].Partition != id.Partition {
			first = nil
		}
		p, ok := all[id]
		if !ok {
			different++
			tell("replica %d of partition %d of topic %d is not on the disk of %s, where epoch %d has it", id.Replica, id.Partition, id.Topic, at.brokers[id], at.epoch)
			continue
		}
		replicas++
		batches += int64(len(p.batches))
		if first == nil {
			first = &p
			continue
		}
		if why := differ(first, &p); why != "" {
			different++
			tell("replicas of partition %d of topic %d differ: %s", id.Partition, id.Topic, why)
		}
	}
	return replicas, batches, different, nil
}

func differ(a, b *storedPartition) string {
	if a.start != b.start || a.next != b.next {
		return fmt.Sprintf("%s holds [%d, %d), %s [%d, %d)", a.broker, a.start, a.next, b.broker, b.start, b.next)
	}
	for i := range min(len(a.batches), len(b.batches)) {
		x, y := &a.batches[i], &b.batches[i]
		switch {
		case x.base != y.base || x.last != y.last:
			return fmt.Sprintf("%s has a batch of offsets %d to %d where %s has one of %d to %d", a.broker, x.base, x.last, b.broker, y.base, y.last)
		case x.sum != y.sum:
			return fmt.Sprintf("the batch of offsets %d to %d has other bytes on %s than on %s", x.base, x.last, a.broker, b.broker)
		}
	}
	if len(a.batches) != len(b.batches) {
		return fmt.Sprintf("%s has %d batches, %s %d", a.broker, len(a.batches), b.broker, len(b.batches))
	}
	return ""
}

// readReplicas reads those that a broker is to have, and lists those that it is not to have.
func readReplicas(m *clusterProcess, at *placement, all map[storage.LogID]storedPartition) (strange []storage.LogID, err error) {
	engine, err := storage.OpenEngine("badger", storage.Options{Dir: filepath.Join(m.dir, "log", "store")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	points, err := storage.OpenCheckpointer(filepath.Join(m.dir, "log", "checkpoints"), engine, storage.CheckpointOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, points.Close()) }()
	for _, id := range points.Checkpoints() {
		switch {
		case at.brokers[id] == m.name:
		case at.resting[id] || at.gone[id.Topic]:
			continue
		default:
			strange = append(strange, id)
			continue
		}
		point, ok := points.Load(id)
		if !ok {
			continue
		}
		p, err := readReplica(engine, point)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", id, err)
		}
		p.broker = m.name
		all[id] = p
	}
	return strange, nil
}

func readReplica(engine storage.Engine, point storage.Checkpoint) (p storedPartition, err error) {
	store, err := engine.Open(point.Log, point.Mark)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	p.start, p.next = point.Mark.Start, point.Mark.Next
	var bad error
	err = store.Read(point.Mark.Start, func(c storage.Chunk) bool {
		rest := c.Data
		for len(rest) > 0 {
			var b record.Batch
			if b, rest, bad = record.Split(rest); bad != nil {
				return false
			}
			h := sha256.New()
			var at [8]byte
			binary.BigEndian.PutUint64(at[:], uint64(c.LogTime))
			h.Write(at[:])
			h.Write(b)
			s := storedBatch{base: b.BaseOffset(), last: b.LastOffset()}
			h.Sum(s.sum[:0])
			p.batches = append(p.batches, s)
		}
		return true
	})
	return p, errors.Join(err, bad)
}
