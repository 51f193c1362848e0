package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Limits of joining a cluster, and of noticing that one belongs to it no more.
const (
	maxJoin        = 32                     // addresses
	probeWait      = 2 * time.Second        // for the answers of all that are asked at a start
	expelledLook   = 2 * time.Second        // how often brokers that refuse this one are asked why
	lateProbeLimit = 500 * time.Millisecond // for one answer then
)

// seeds parses Join: peer addresses of brokers that are in the cluster.
func (c *Config) seeds() ([]string, error) {
	if c.Join == "" {
		return nil, nil
	}
	bad := func(format string, args ...any) error {
		return &ConfigError{Key: "join", Value: c.Join, Allowed: fmt.Sprintf(format, args...)}
	}
	var list []string
	for part := range strings.SplitSeq(c.Join, ",") {
		address := strings.TrimSpace(part)
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || port == "0" {
			return nil, bad("%q is not HOST:PORT: give peer addresses (peer-listen) of brokers that are in the cluster, separated by commas", part)
		}
		list = append(list, address)
	}
	if len(list) > maxJoin {
		return nil, bad("%d addresses, at most %d are asked", len(list), maxJoin)
	}
	return list, nil
}

// fresh says that the data directory belongs to no cluster yet.
func (b *Broker) fresh() bool {
	return b.id.Joining || b.id.Peers && b.id.ClusterID == "" && isEmpty(b.dir.sub(epochsDir))
}

// join has a fresh data directory admitted to a cluster, when the broker was told to join one. A
// broker that initial-cluster names as well forms that cluster with the others instead,
// unless it stands already: then its disk was emptied.
func (b *Broker) join(ctx context.Context, initial []epoch.Listed) error {
	c := &b.c
	seeds, err := c.seeds()
	if err != nil || len(seeds) == 0 {
		return err
	}
	if !b.fresh() {
		return nil // a member of some cluster; see sameCluster
	}
	if len(initial) > 1 {
		stands := false
		for _, k := range b.probe(ctx, append(addressesOf(initial, c.Name), seeds...)) {
			stands = stands || k.err == nil && k.Epoch > 0
		}
		if !stands {
			return nil
		}
	}
	report := func(why string) {
		text := "it waits to be admitted to the cluster"
		if why != "" {
			text += ": " + why
		}
		b.waiting.Store(&text)
		c.Logger.Info().Str("waits_for", why).Msg("the broker has not been admitted to the cluster yet")
	}
	c.Logger.Info().Strs("by", seeds).Msg("the broker joins a cluster")
	// An attempt before this one may have been admitted, and ended before all was written.
	if err := os.RemoveAll(b.dir.sub(epochsDir)); err != nil {
		return fmt.Errorf("join a cluster: %w", err)
	}
	b.id.Joining = true
	if err := b.id.save(b.dir.path); err != nil {
		return err
	}
	j, err := epoch.Join(ctx, epoch.JoinOptions{
		Dir: b.dir.sub(epochsDir), Self: b.describe(), Level: b.level(), Seeds: seeds, Ask: b.peers.ask, OnWait: report,
	})
	if err != nil {
		return err
	}
	b.joined = true
	b.id.ClusterID, b.id.BrokerID, b.id.Joining = j.Cluster, j.ID, false
	if err := b.id.save(b.dir.path); err != nil {
		return err
	}
	b.selfID.Store(j.ID)
	b.peers.mesh.SetSelf(mesh.Identity{Cluster: j.Cluster, Broker: j.ID, Name: c.Name, Incarnation: b.id.Incarnation})
	c.Logger.Info().Str("cluster", j.Cluster).Uint64("id", j.ID).Uint64("epoch", j.Epoch).Msg("the broker was admitted to the cluster")
	return nil
}

func addressesOf(list []epoch.Listed, except string) (all []string) {
	for _, l := range list {
		if l.Name != except {
			all = append(all, l.Address)
		}
	}
	return all
}

// probed is what one address said.
type probed struct {
	epoch.Known
	address string
	err     error
}

// probe asks all addresses at the same time what they know of this broker.
func (b *Broker) probe(ctx context.Context, addresses []string) []probed {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	self := b.describe()
	answers := make(chan probed, len(addresses))
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, a := range addresses {
		asking.Go(func() {
			k, err := epoch.Probe(ctx, b.peers.ask, self, a)
			answers <- probed{k, a, err}
		})
	}
	all := make([]probed, 0, len(addresses))
	for range addresses {
		p := <-answers
		all = append(all, p)
		if p.err == nil && p.Epoch > 0 && p.Named {
			cancel() // nothing worse can be heard of the others
		}
	}
	return all
}

// ExpelledError: the cluster has removed this broker.
type ExpelledError struct {
	Name, Cluster, Dir string
	ID, Epoch          uint64
}

func (e *ExpelledError) Error() string {
	return fmt.Sprintf("broker %s (id %d) was removed from cluster %s: epoch %d doesn't name it, and its id is never given out again; "+
		"to have the machine back, start it with an empty data directory (this one is %s) and --join", e.Name, e.ID, e.Cluster, e.Epoch, e.Dir)
}

func (b *Broker) expelled(epoch uint64) error {
	return &ExpelledError{Name: b.c.Name, ID: b.self(), Cluster: b.id.ClusterID, Epoch: epoch, Dir: b.dir.path}
}

// stillMember asks the other brokers, before anything is served, whether this one was removed
// while it was down, and those that it was told to join whether they are of its cluster at
// all. When nobody answers it goes on: its own epochs name it.
func (b *Broker) stillMember(ctx context.Context) error {
	if b.peers.mesh == nil || b.joined {
		return nil
	}
	seeds, err := b.c.seeds()
	if err != nil {
		return err
	}
	cur := b.epochs.Current()
	addresses := seeds
	for i := range cur.Brokers {
		if o := &cur.Brokers[i]; o.ID != b.self() && len(addresses) < maxJoin {
			addresses = append(addresses, o.Addresses.Peer)
		}
	}
	for _, k := range b.probe(ctx, addresses) {
		var refused *mesh.RefusedError
		switch {
		case b.removedBy(cur, k.Known):
			return b.expelled(k.Epoch)
		case errors.As(k.err, &refused) && refused.Reason == mesh.RefusedCluster && contained(seeds, k.address):
			return fmt.Errorf("data directory %s can't join by %s: %s; give an empty directory, or leave join out", b.dir.path, k.address, refused.Text)
		}
	}
	if len(seeds) > 0 {
		b.c.Logger.Info().Str("cluster", cur.ClusterID).Str("data", b.dir.path).Msg("the data directory belongs to a cluster already, there is nothing to join")
	}
	return nil
}

func contained(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// removedBy: an epoch that is newer than one which named this incarnation doesn't. An
// incarnation that is gone never comes back.
func (b *Broker) removedBy(cur *config.Config, k epoch.Known) bool {
	return k.Cluster == cur.ClusterID && k.Epoch > cur.Epoch && !k.Named
}

// watchMembership stops the broker when the cluster has removed it: by the epoch that says so, or
// by asking whoever refuses it. Nothing that it still holds counts any more.
func (b *Broker) watchMembership(ctx context.Context) {
	watch := b.epochs.Watch(ctx)
	tick := time.NewTicker(expelledLook)
	defer tick.Stop()
	for {
		select {
		case c, open := <-watch:
			if !open {
				return
			}
			if c.Epoch > 0 && c.Broker(b.self()) == nil {
				b.expel(c.Epoch)
				return
			}
		case <-tick.C:
			if n := b.refusedEverywhere(ctx); n > 0 {
				b.expel(n)
				return
			}
		}
	}
}

// refusedEverywhere returns the epoch of a peer that removed this broker, or 0.
func (b *Broker) refusedEverywhere(ctx context.Context) uint64 {
	cur := b.epochs.Current()
	for _, p := range b.peers.mesh.Peers() {
		if p.Reachable || !strings.Contains(p.LastError, string(mesh.RefusedIncarnation)) {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, lateProbeLimit)
		k, err := epoch.Probe(limited, b.peers.ask, b.describe(), p.Address)
		cancel()
		if err == nil && b.removedBy(cur, k) {
			return k.Epoch
		}
	}
	return 0
}

// expel ends the broker as fatal does, but for a disk that is well.
func (b *Broker) expel(epoch uint64) {
	err := b.expelled(epoch)
	b.failOnce.Do(func() {
		b.acks.mute()
		b.stopping.Store(true)
		b.failed.Store(&err)
		b.c.Logger.Error().Err(err).Str("data", filepath.Clean(b.dir.path)).Msg("the broker stops: it does not belong to the cluster any more")
		if !b.ready.listening.Load() {
			return // Start fails and cleans up itself
		}
		go func() { // ends with the broker: Close waits for the same work
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = b.Close(ctx)
		}()
	})
}
