package broker

import (
	"hash/fnv"

	_ "github.com/parleymq/parley/partition/storage/badger"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft"
)

// The parts that a Config without others gets. This file and natsfront.go are the
// only ones of this package that name them.

const defaultEngine = "badger"

// minTwoBeats election ticks are enough for a heartbeat every two: three may be lost.
const minTwoBeats = 6

// figured is a part that reports figures for the metrics.
type figured interface{ Figures() map[string]float64 }

func openRaft(c HostConfig) (replication.Host, error) {
	rc := raft.Config{
		Dir: c.Dir, Listen: c.Listen, Listener: c.Listener, Dial: c.Dial, Secret: c.Secret, TLS: c.TLS,
		Tick: c.Tick, ElectionTicks: uint64(max(c.Election, 0)), Resolve: c.Resolve, Deployment: deployment(c.Cluster),
		SnapshotBytes: c.CutBytes, RetainBytes: c.CutBytes / 16,
		Logger: c.Logger, OnFatal: c.OnFatal, Pace: c.Pace, NoRoom: c.NoRoom, KeepAll: c.KeepAll,
	}
	if c.Election >= minTwoBeats {
		rc.HeartbeatTicks = 2 // half the messages of an idle broker (docs/adr/0106)
	}
	if c.Memory > 0 {
		rc.WriteBuffer = int(min(max(c.Memory/16, 8<<20), raft.DefaultWriteBuffer))
	}
	h, err := raft.NewHost(rc)
	if err != nil {
		return nil, err // not a nil *raft.Host within the interface
	}
	return h, nil
}

// deployment is a number of the cluster's id: hosts of different clusters that
// meet by a wrong address don't talk.
func deployment(cluster string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(cluster)) // never fails
	return h.Sum64()>>1 | 1
}
