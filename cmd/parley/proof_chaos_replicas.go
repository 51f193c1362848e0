package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
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

type storedKey struct{ topic, partition uint64 }

// placement is which brokers have a replica of each partition of the topic, by the partition's number.
type placement map[uint64][]string

func placedReplicas(ctx context.Context, c *client.Client) (placement, error) {
	d, err := c.DescribeTopic(ctx, chaosTopic)
	if err != nil {
		return nil, fmt.Errorf("ask where the replicas are: %w", err)
	}
	at := placement{}
	for _, p := range d.Partitions {
		at[uint64(p.Partition)] = p.Replicas
	}
	return at, nil
}

// compareReplicas opens the logs of brokers that were stopped and compares the replicas of every partition
// byte for byte. It returns how many replicas and batches it compared, and tells each difference. What replicas that
// moved away have left is not compared: of several replicas on one broker the newest counts.
func compareReplicas(members []*clusterProcess, at placement, tell func(string, ...any)) (replicas, batches, different int64, err error) {
	all := map[storedKey][]storedPartition{}
	for _, m := range members {
		if err := readReplicas(m, at, all); err != nil {
			return 0, 0, 0, fmt.Errorf("read the log of %s: %w", m.name, err)
		}
	}
	for number, brokers := range at {
		found := 0
		for key, copies := range all {
			if key.partition == number {
				found = len(copies)
			}
		}
		if found != len(brokers) {
			different++
			tell("partition %d has %d replicas on disk, want %d, on %v", number, found, len(brokers), brokers)
		}
	}
	for key, copies := range all {
		replicas += int64(len(copies))
		for _, c := range copies {
			batches += int64(len(c.batches))
		}
		for _, c := range copies[1:] {
			if why := differ(&copies[0], &c); why != "" {
				different++
				tell("replicas of partition %d of topic %d differ: %s", key.partition, key.topic, why)
			}
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

func readReplicas(m *clusterProcess, at placement, all map[storedKey][]storedPartition) (err error) {
	engine, err := storage.OpenEngine("badger", storage.Options{Dir: filepath.Join(m.dir, "log", "store")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	points, err := storage.OpenCheckpointer(filepath.Join(m.dir, "log", "checkpoints"), engine, storage.CheckpointOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, points.Close()) }()
	newest := map[storedKey]storage.LogID{}
	for _, id := range points.Checkpoints() {
		key := storedKey{id.Topic, id.Partition}
		if slices.Contains(at[id.Partition], m.name) && id.Replica > newest[key].Replica {
			newest[key] = id
		}
	}
	for key, id := range newest {
		point, ok := points.Load(id)
		if !ok {
			continue
		}
		p, err := readReplica(engine, point)
		if err != nil {
			return fmt.Errorf("read %s: %w", id, err)
		}
		p.broker = m.name
		all[key] = append(all[key], p)
	}
	return nil
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
