package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication/epoch/config"
)

// diskSource is a log as a checkpoint has it.
type diskSource struct{ point storage.Checkpoint }

func (s diskSource) Capture() (storage.Checkpoint, error) { return s.point, nil }
func (diskSource) Durable(storage.Checkpoint)             {}

// onDisk makes a stopped broker's log of replicas, each with so many records.
func onDisk(t *testing.T, name string, records map[storage.LogID]int) *clusterProcess {
	t.Helper()
	dir := t.TempDir()
	engine, err := storage.OpenEngine("badger", storage.Options{Dir: filepath.Join(dir, "log", "store")})
	if err != nil {
		t.Fatal(err)
	}
	points, err := storage.OpenCheckpointer(filepath.Join(dir, "log", "checkpoints"), engine, storage.CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var stores []storage.Store
	for id, n := range records {
		store, err := engine.Open(id, storage.Mark{})
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, store)
		for i := range int64(n) {
			b := record.NewBuilder(record.None, record.Limits{})
			if err := b.Append(&record.Record{Value: fmt.Appendf(nil, "%d %d", id.Topic, i)}); err != nil {
				t.Fatal(err)
			}
			data, err := b.Finish(nil, record.Producer{})
			if err != nil {
				t.Fatal(err)
			}
			record.Batch(data).Stamp(i, 1)
			if err := store.Append([]storage.Chunk{{Base: i, Last: i, Index: uint64(i) + 1, Data: data}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		points.Register(id, diskSource{storage.Checkpoint{Log: id, Index: uint64(n), Mark: storage.Mark{Next: int64(n)}}})
	}
	if err := points.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := points.Close(); err != nil {
		t.Fatal(err)
	}
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	return &clusterProcess{brokerProcess: &brokerProcess{name: name, dir: dir}}
}

// TestReplicasCompared: partitions of the same number of two topics lie on different brokers. A replica that
// is missing, one that is another id's, one that nobody has placed and one that differs are each found.
func TestReplicasCompared(t *testing.T) {
	t.Parallel()
	log := func(topic, replica uint64) storage.LogID { return storage.LogID{Topic: topic, Replica: replica} }
	at := placementOf(&config.Config{
		Epoch:   9,
		Brokers: []config.Broker{{ID: 1, Name: "b1"}, {ID: 2, Name: "b2"}, {ID: 3, Name: "b3"}},
		Topics: []config.Topic{
			{ID: 1, Name: "a", Partitions: []config.Partition{{
				Replicas: []config.Replica{{ID: 11, Broker: 1}, {ID: 14, Broker: 2}}, Retired: []config.Replica{{ID: 12, Broker: 2}, {ID: 13, Broker: 3}},
			}}},
			{ID: 2, Name: "b", Partitions: []config.Partition{{Replicas: []config.Replica{{ID: 21, Broker: 2}, {ID: 22, Broker: 3}}}}},
		},
	})
	for _, tt := range []struct {
		name       string
		b1, b2, b3 map[storage.LogID]int
		replicas   int64
		finds      []string
	}{
		{name: "sound", replicas: 4,
			b1: map[storage.LogID]int{log(1, 11): 3}, b2: map[storage.LogID]int{log(1, 14): 3, log(1, 12): 1, log(2, 21): 2}, b3: map[storage.LogID]int{log(1, 13): 2, log(2, 22): 2}},
		{name: "missing", replicas: 3, finds: []string{"replica 22 of partition 0 of topic 2 is not on the disk of b3"},
			b1: map[storage.LogID]int{log(1, 11): 3}, b2: map[storage.LogID]int{log(1, 14): 3, log(2, 21): 2}},
		{name: "an older id", replicas: 3, finds: []string{"replica 14 of partition 0 of topic 1 is not on the disk of b2"},
			b1: map[storage.LogID]int{log(1, 11): 3}, b2: map[storage.LogID]int{log(1, 12): 3, log(2, 21): 2}, b3: map[storage.LogID]int{log(2, 22): 2}},
		{name: "on another broker", replicas: 4, finds: []string{"b3 has replica 14 of partition 0 of topic 1 on disk"},
			b1: map[storage.LogID]int{log(1, 11): 3}, b2: map[storage.LogID]int{log(1, 14): 3, log(2, 21): 2}, b3: map[storage.LogID]int{log(1, 14): 3, log(2, 22): 2}},
		{name: "strange", replicas: 4, finds: []string{"b1 has replica 15 of partition 0 of topic 1 on disk"},
			b1: map[storage.LogID]int{log(1, 11): 3, log(1, 15): 1}, b2: map[storage.LogID]int{log(1, 14): 3, log(2, 21): 2}, b3: map[storage.LogID]int{log(2, 22): 2}},
		{name: "shorter", replicas: 4, finds: []string{"replicas of partition 0 of topic 1 differ: b1 holds [0, 3), b2 [0, 2)"},
			b1: map[storage.LogID]int{log(1, 11): 3}, b2: map[storage.LogID]int{log(1, 14): 2, log(2, 21): 2}, b3: map[storage.LogID]int{log(2, 22): 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var told []string
			members := []*clusterProcess{onDisk(t, "b1", tt.b1), onDisk(t, "b2", tt.b2), onDisk(t, "b3", tt.b3)}
			replicas, batches, different, err := compareReplicas(members, at, func(format string, args ...any) {
				told = append(told, fmt.Sprintf(format, args...))
			})
			if err != nil || replicas != tt.replicas || different != int64(len(tt.finds)) || batches == 0 {
				t.Errorf("%d replicas, %d batches, %d differ: %v, %v", replicas, batches, different, told, err)
			}
			for _, want := range tt.finds {
				if !slices.ContainsFunc(told, func(s string) bool { return strings.HasPrefix(s, want) }) {
					t.Errorf("told %q, not %q", told, want)
				}
			}
		})
	}
}

// TestUneven: a partition's replicas are compared where it has some, and nowhere else.
func TestUneven(t *testing.T) {
	t.Parallel()
	on := map[string]map[partitionName]offsets{
		"b1": parseBounds("parley_partition_next_offset{partition=\"0\",topic=\"t\"} 7\nparley_partition_start_offset{partition=\"0\",topic=\"t\"} 1\n"),
		"b2": parseBounds("# HELP x\nparley_partition_start_offset{partition=\"0\",topic=\"t\"} 1\nparley_partition_next_offset{partition=\"0\",topic=\"t\"} 7\nparley_partition_bytes{partition=\"0\",topic=\"t\"} 9\n"),
		"b3": parseBounds("parley_partition_next_offset{partition=\"0\",topic=\"t\"} 6\nparley_partition_start_offset{partition=\"0\",topic=\"t\"} 1\n"),
		"b4": {},
	}
	part := partitionName{"t", "0"}
	for _, tt := range []struct {
		brokers []string
		why     string
	}{
		{[]string{"b1", "b2"}, ""},
		{[]string{"b1", "b3"}, "partition t/0 holds [1, 7) on b1 and [1, 6) on b3"},
		{[]string{"b1", "b2", "b4"}, "b4 says nothing of partition t/0"},
	} {
		if why := unevenOn(on, part, tt.brokers); why != tt.why {
			t.Errorf("%v: %q, want %q", tt.brokers, why, tt.why)
		}
	}
}
