package broker

import (
	"hash/fnv"

	"github.com/parleymq/parley/broker/protocol"
	"github.com/parleymq/parley/broker/protocol/nats"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft"
)

// The parts that a Config without others gets: the one file of this package
// that names them.

const defaultEngine = "badger"

// addressed is a host that tells where it listens.
type addressed interface{ Address() string }

// figured is a part that reports figures for the metrics.
type figured interface{ Figures() map[string]float64 }

func openRaft(c HostConfig) (replication.Host, error) {
	rc := raft.Config{
		Dir: c.Dir, Listen: c.Listen, Resolve: c.Resolve, Deployment: deployment(c.Cluster),
		Logger: c.Logger, OnFatal: c.OnFatal,
	}
	if c.Memory > 0 {
		rc.WriteBuffer = int(min(max(c.Memory/16, 8<<20), raft.DefaultWriteBuffer))
	}
	return raft.NewHost(rc)
}

// deployment is a number of the cluster's id: hosts of different clusters that
// meet by a wrong address don't talk.
func deployment(cluster string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(cluster)) // never fails
	return h.Sum64()>>1 | 1
}

// natsFrontend is the front end of a Config that names none.
func natsFrontend(c *Config) (protocol.Frontend, error) {
	tls, err := c.TLS.load()
	if err != nil {
		return nil, err
	}
	nc := nats.Config{Logger: c.Logger, TLS: tls, DrainTime: c.DrainTime}
	if c.User != "" || c.Token != "" {
		auth := &nats.Static{Token: c.Token}
		if c.User != "" {
			auth.Users = []nats.User{{Name: c.User, Password: c.Password}}
		}
		nc.Authenticator = auth
	}
	return nats.New(nc), nil
}
