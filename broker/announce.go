package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// describe says what this broker is, for epochs.
func (b *Broker) describe() config.Broker {
	c := &b.c
	self := config.Broker{
		ID: b.self(), Name: c.Name, Incarnation: b.id.Incarnation, Rack: c.Rack, Weight: uint32(c.Weight),
		Addresses: config.Addresses{
			Client: advertised(c.AdvertiseClient, b.addresses.Clients),
			Peer:   advertised(c.AdvertisePeer, b.addresses.Peer),
			Raft:   advertised(c.AdvertiseRaft, b.addresses.Raft),
		},
	}
	if initial, err := c.initial(); err == nil && c.AdvertisePeer == "" {
		for _, l := range initial {
			if l.Name == c.Name && len(initial) > 1 {
				self.Addresses.Peer = l.Address
			}
		}
	}
	return self
}

// checkLogs refuses epochs that know less than the logs beside them: the journal
// was cut or is an old copy. To go on would give the same ids out once more, and
// old records would surface under new topics.
func (b *Broker) checkLogs() error {
	logs, err := b.engine.Logs()
	if err != nil {
		return fmt.Errorf("list logs: %w", err)
	}
	c := b.epochs.Current()
	for _, id := range append(logs, b.checkpoints.Checkpoints()...) {
		if id.Topic >= c.NextTopic || id.Replica >= c.NextReplica {
			return fmt.Errorf("data directory %s: there is a log %s, but epoch %d, the newest in %s, has given out topic ids up to %d and replica ids up to %d: "+
				"epochs are missing at the end of that journal, restore it from a copy",
				b.dir.path, id, c.Epoch, filepath.Join(epochsDir, "journal"), c.NextTopic-1, c.NextReplica-1)
		}
	}
	return nil
}

// announce has an epoch decided that says what this broker is, where the newest
// one doesn't say it yet. A broker with others doesn't wait for it: the council may
// be as much on its way up as this broker is.
func (b *Broker) announce(ctx context.Context) error {
	b.locate(b.epochs.Current())
	if len(b.epochs.Current().Brokers) == 1 {
		return b.announceOnce(ctx)
	}
	if now := b.epochs.Current().Broker(b.self()); now != nil && b.announced(now) {
		return nil
	}
	b.background.Go(func() {
		for b.bgCtx.Err() == nil {
			ctx, cancel := context.WithTimeout(b.bgCtx, requestTime)
			err := b.announceOnce(ctx)
			cancel()
			if err == nil || b.bgCtx.Err() != nil {
				return
			}
			b.c.Logger.Warn().Err(err).Msg("the cluster was not told yet where this broker is now")
			pause := time.NewTimer(time.Second)
			select {
			case <-pause.C:
			case <-b.bgCtx.Done():
			}
			pause.Stop()
		}
	})
	return nil
}

func (b *Broker) announced(was *config.Broker) bool {
	self := b.describe()
	self.State = was.State
	keepSuperseded(&self, was)
	return *was == self
}

func (b *Broker) announceOnce(ctx context.Context) error {
	self := b.describe()
	_, err := b.epochs.Propose(ctx, func(next *config.Config) error {
		was := next.Broker(self.ID)
		if was == nil {
			return fmt.Errorf("epoch %d names no broker %d, which this data directory belongs to", next.Epoch-1, self.ID)
		}
		self.State = was.State
		keepSuperseded(&self, was)
		if next.ClusterID == "" {
			next.ClusterID, next.FeatureLevel = b.id.ClusterID, b.level()
			next.Change = fmt.Sprintf("cluster formed by broker %s", self.Name)
		} else {
			if was.Incarnation != self.Incarnation {
				return fmt.Errorf("epoch %d knows broker %d as incarnation %s, this data directory is %s", next.Epoch-1, self.ID, was.Incarnation, self.Incarnation)
			}
			if b.announced(was) {
				return epoch.ErrUnchanged
			}
			if was.Rack != self.Rack || was.Weight != self.Weight {
				next.EvenOut()
			}
			next.Change = fmt.Sprintf("broker %s changed: its name, addresses, rack or weight", self.Name)
		}
		*was = self
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		return fmt.Errorf("announce broker %s: %w", b.c.Name, err)
	}
	b.locate(b.epochs.Current())
	return nil
}

// keepSuperseded: a broker whose name was given to another one keeps the name that it
// got instead.
func keepSuperseded(self, was *config.Broker) {
	if superseded(was) {
		self.Name = was.Name
	}
}

// advertised is what others dial. A listener on all interfaces has no address
// that anybody could dial, so it is known by the machine's name.
func advertised(address, listened string) string {
	if address != "" {
		return address
	}
	host, port, err := net.SplitHostPort(listened)
	if err != nil {
		return listened
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return listened
	}
	if host, err = os.Hostname(); err != nil {
		return listened
	}
	return net.JoinHostPort(host, port)
}
