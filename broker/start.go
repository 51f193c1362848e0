package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/parleymq/parley/broker/admin"
	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Start starts a broker. It returns once the listeners are open and clients are
// served; partitions may still be opening: see Ready. ctx bounds the start
// alone. What fails, fails here, with nothing left behind.
func Start(ctx context.Context, c Config) (b *Broker, err error) {
	c, err = c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure broker: %w", err)
	}
	b = newBroker(c)
	if err := b.start(ctx); err != nil {
		b.stopping.Store(true)
		return nil, errors.Join(err, b.shut(context.Background()))
	}
	// What failed once there was work in the background, but before fatal could
	// tell that Start was through.
	if err := b.failed.Load(); err != nil {
		return nil, errors.Join(*err, b.Close(context.Background()))
	}
	return b, nil
}

// newBroker puts a broker together that has touched nothing yet.
func newBroker(c Config) *Broker {
	b := &Broker{
		c: c, started: time.Now(), router: interest.NewRouter(), ready: newReadiness(),
		fetchRoom: make(chan struct{}, c.Limits.FetchReplies), requestRoom: make(chan struct{}, c.Limits.Requests),
		catchRoom: make(chan struct{}, c.Limits.Openings),
		changed:   make(chan struct{}), closed: make(chan struct{}), done: make(chan struct{}),
		tails: &partition.TailBudget{Limit: tailDefault},
	}
	if c.MemoryLimit > 0 {
		b.tails.Limit = min(tailDefault, c.MemoryLimit/tailShare)
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.bgCtx, b.bgCancel = context.WithCancel(context.Background())
	b.serveCtx, b.serveCancel = context.WithCancel(context.Background())
	b.carryCtx, b.carryCancel = context.WithCancel(context.Background())
	b.metrics = newMetrics(b)
	b.acks = &acker{router: b.router, since: b.started, metrics: b.metrics}
	b.resends = &resends{b: b}
	b.acks.resends = b.resends
	b.api = &api.Handlers{
		Runtime: runtime{b}, Version: Version, Clock: c.Clock, MaxRecord: c.MaxRecord, Logger: c.Logger,
	}
	b.carrier = newCarrier(b)
	b.keeper = newKeeper(b)
	b.peers = &peers{b: b, known: map[uint64]*peerState{}}
	b.leaders = newLeaders(b)
	b.catchUps = newCatchUps(b.c.Limits)
	b.comparer = newComparer(b)
	b.stamps = &stamps{b: b, kick: make(chan struct{}, 1)}
	b.movers, b.copies = newMovers(b), newOutflow(c.CopyRate)
	b.forwards = &forwards{b: b, under: map[uint64]map[string]underway{}, kept: map[uint64]map[uint64]*kept{}}
	b.loop = newLoopback(b)
	b.forwarders.all = map[uint64]*peerSession{}
	b.local.Store(&map[uint64]*slot{})
	return b
}

func (b *Broker) start(ctx context.Context) (err error) {
	c := &b.c
	// 1. The data directory: nobody else has it, and it is ours.
	if b.dir, err = openDataDir(c.DataDir); err != nil {
		return err
	}
	if err := b.noRecovery(); err != nil {
		return err
	}
	initial, err := c.initial()
	if err != nil {
		return err
	}
	if b.id, err = loadIdentity(b.dir.path, len(initial) > 1 || c.Join != ""); err != nil {
		return err
	}
	b.selfID.Store(b.id.BrokerID)
	// 2. Ports, so that one in use is told before anything is touched.
	if err := b.listen(); err != nil {
		return err
	}
	if c.OnListen != nil {
		c.OnListen(b.addresses)
	}
	// 3. The other brokers, and the epochs that say which they are. A cluster that
	// is being formed is waited for here.
	if b.peerListener != nil {
		if err := b.startMesh(); err != nil {
			return err
		}
		if err := b.join(ctx, initial); err != nil {
			return err
		}
	}
	if err := b.openEpochs(initial); err != nil {
		return err
	}
	if err := b.bootstrap(ctx, initial); err != nil {
		return err
	}
	if err := b.stillMember(ctx); err != nil {
		return err
	}
	b.bootstrapped = time.Now()
	b.api.Store = b.epochs
	if id := b.epochs.Current().ClusterID; id != "" && id != b.id.ClusterID {
		return fmt.Errorf("data directory %s: its id file belongs to cluster %s, its epochs to %s", b.dir.path, b.id.ClusterID, id)
	}
	// 4. Raft and the store.
	if err := b.openParts(); err != nil {
		return err
	}
	if err := b.checkLogs(); err != nil {
		return err
	}
	if b.trash, err = openTrash(b, filepath.Join(b.dir.sub(logDir), trashFile)); err != nil {
		return err
	}
	// 5. What this broker is, decided where it changed.
	if err := b.announce(ctx); err != nil {
		return err
	}
	// 6. Routes first, so that no client is told that nobody is there; then the
	// partitions, and clients at the same time.
	current := b.epochs.Current()
	r, err := newRoutes(current, b.carrier.slot)
	if err != nil {
		return fmt.Errorf("epoch %d: %w", current.Epoch, err)
	}
	b.routes.Store(r)
	b.carrying.Go(func() { b.carrier.run(b.carryCtx) })
	b.background.Go(func() {
		if err := b.checkpoints.Run(b.bgCtx); err != nil {
			b.fatal(err)
		}
	})
	b.background.Go(func() { b.space.Run(b.bgCtx) })
	b.background.Go(func() { b.collect(b.bgCtx) })
	b.background.Go(func() { b.watchReady(b.bgCtx) })
	b.background.Go(func() { b.stamps.run(b.bgCtx) })
	b.background.Go(func() { b.keeper.run(b.bgCtx) })
	b.comparer.load(filepath.Join(b.dir.sub(logDir), comparedName))
	b.background.Go(func() { b.comparer.run(b.bgCtx) })
	if b.peers.mesh != nil {
		b.background.Go(func() { b.leaders.run(b.bgCtx) })
		b.background.Go(func() { b.watchProgress(b.bgCtx) })
		b.background.Go(func() { b.watchLeadership(b.bgCtx) })
		b.background.Go(func() { b.movers.run(b.bgCtx) })
		b.background.Go(func() { b.watchDamage(b.bgCtx) })
		b.background.Go(func() { b.watchMembership(b.bgCtx) })
	}
	b.serve()
	return nil
}

// listen opens the front ends' listeners and the HTTP port.
func (b *Broker) listen() error {
	c := &b.c
	if c.Frontends == nil {
		f, err := natsFrontend(c)
		if err != nil {
			return err
		}
		c.Frontends = []Frontend{{Protocol: f, Listen: c.Listen}}
	}
	for _, f := range c.Frontends {
		l, err := net.Listen("tcp", f.Listen)
		if err != nil {
			return fmt.Errorf("listen for %s clients: %w", f.Protocol.Name(), err)
		}
		b.fronts = append(b.fronts, front{f.Protocol, l})
		b.addresses.Fronts = append(b.addresses.Fronts, l.Addr().String())
	}
	b.addresses.Clients = b.addresses.Fronts[0]
	b.addresses.Peer, b.addresses.DataPath = c.PeerListen, b.dir.path
	if err := b.listenForBrokers(); err != nil {
		return err
	}
	if c.HTTP == "off" {
		return nil
	}
	l, err := net.Listen("tcp", c.HTTP)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	b.addresses.HTTP = l.Addr().String()
	b.httpServer = &http.Server{
		Handler: admin.New(admin.Options{
			API: b.api, Registry: b.metrics.registry, Pprof: c.Pprof,
			Started: func() bool { return b.routes.Load() != nil }, NotReady: b.NotReady,
		}),
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
	b.serving.Go(func() {
		if err := b.httpServer.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			c.Logger.Error().Err(err).Msg("HTTP server ended")
		}
	})
	return nil
}

// listenForBrokers opens the Raft port and the peer port. A lone broker goes without a
// peer port where it can't have one: nobody can join it then, which its log says.
func (b *Broker) listenForBrokers() (err error) {
	c := &b.c
	if b.raftListener, err = net.Listen("tcp", c.RaftListen); err != nil {
		return fmt.Errorf("listen for raft: %w", err)
	}
	b.addresses.Raft = b.raftListener.Addr().String()
	if err := c.guarded("raft-listen", b.raftListener); err != nil {
		return err
	}
	lone := !b.id.Peers && c.InitialCluster == ""
	l, err := net.Listen("tcp", c.PeerListen)
	if err != nil {
		err = fmt.Errorf("listen for other brokers: %w: choose another peer-listen", err)
	} else if err = c.guarded("peer-listen", l); err != nil {
		_ = l.Close()
	}
	if err != nil && lone {
		c.Logger.Info().Err(err).Msg("this broker runs alone, and none can join it before it has a peer port")
		return nil
	}
	if err != nil {
		return err
	}
	b.peerListener, b.addresses.Peer = l, l.Addr().String()
	return nil
}

// openEpochs opens the journal.
func (b *Broker) openEpochs(initial []epoch.Listed) (err error) {
	c := &b.c
	o := epoch.Options{
		Dir: b.dir.sub(epochsDir), Genesis: b.genesis, Clock: c.Clock, OnFatal: b.fatal, Self: b.describe(), Level: b.level(),
		OnCut: func(n int64) {
			c.Logger.Warn().Int64("bytes", n).Msg("cut an epoch that was never decided off the journal")
		},
		OnMended: func(what string) {
			c.Logger.Warn().Str("damage", what).Msg("what is beside the journal of epochs was damaged where it costs nothing, and is mended")
		},
	}
	if b.id.Peers {
		o.Genesis = nil
		if len(initial) > 1 && !b.joined {
			o.Genesis = func() *config.Config { return epoch.Initial(initial) }
		}
	}
	if o.Seeds, err = c.seeds(); err != nil {
		return err
	}
	if b.peerListener != nil {
		o.Transport, o.Ask, o.Alive, o.Gone = b.peers, b.peers.ask, b.peers.alive, b.keeper.gone
		o.OnRefused = b.refusedMessage
		o.OnWait = func(why string) {
			text := "the cluster is being formed"
			if why != "" {
				text += ", it waits for: " + why
			}
			b.waiting.Store(&text)
			c.Logger.Info().Str("waits_for", why).Msg("the brokers of initial-cluster form a cluster once all of them are there")
		}
	}
	if b.epochs, err = epoch.Open(o); err != nil {
		return err
	}
	if b.peers.mesh != nil {
		b.peers.deliver(b.epochs)
	}
	return nil
}

// genesis is epoch 0 of a lone broker: it names itself and nothing more.
func (b *Broker) genesis() *config.Config {
	return &config.Config{
		Council: []uint64{b.self()}, NextBroker: b.self() + 1, NextTopic: 1, NextShard: 1, NextReplica: 1,
		Brokers: []config.Broker{{ID: b.self(), Name: b.c.Name, Weight: uint32(b.c.Weight)}},
		By:      b.c.Name, At: b.c.Clock().UnixMilli(), Change: "a new cluster of one broker",
	}
}

func (b *Broker) openParts() (err error) {
	c := &b.c
	tls, err := c.PeerTLS.load()
	if err != nil {
		return err
	}
	floor, log := max(c.FreeSpaceFloor, 0), c.Logger.With().Str("part", "storage").Logger()
	if c.FreeSpace != nil {
		b.space, err = storage.NewSpaceFunc(b.dir.path, floor, 0, c.FreeSpace)
	} else {
		b.space, err = storage.NewSpace(b.dir.path, floor, 0)
	}
	if err != nil {
		return err
	}
	b.space.Tell(func(full bool) {
		e, text := log.Info(), "there is room on the disk again: publishes are taken"
		if full {
			e, text = log.Error(), "free disk space is below the floor: publishes are refused until there is room again"
		}
		e.Int64("free", b.space.Free()).Int64("floor", floor).Str("dir", b.dir.path).Msg(text)
	})
	b.host, err = c.OpenHost(HostConfig{
		Dir: b.dir.sub(raftDir), Listen: c.RaftListen, Cluster: b.id.ClusterID, Resolve: b.resolve,
		Listener: b.raftListener, Dial: c.Dial, Secret: c.Secret, TLS: tls, Tick: c.RaftTick, Election: c.ElectionTicks, Pace: b.copies.wait, NoRoom: b.space.Scarce,
		Memory: c.MemoryLimit, CutBytes: c.CutBytes, KeepAll: b.keepAll, Logger: c.Logger.With().Str("part", "raft").Logger(), OnFatal: b.fatal,
	})
	if err != nil {
		return fmt.Errorf("open raft: %w", err)
	}
	engine, err := storage.OpenEngine(c.Engine, storage.Options{
		Dir: filepath.Join(b.dir.sub(logDir), "store"), MemoryBytes: c.MemoryLimit / 4,
		Logf: func(level, message string) {
			switch level {
			case "error":
				log.Error().Msg(message)
			case "warn", "warning":
				log.Warn().Msg(message)
			default:
				log.Debug().Msg(message)
			}
		},
	})
	if err != nil {
		return err
	}
	b.engine = timedEngine{engine, b.metrics.syncLatency}
	b.checkpoints, err = storage.OpenCheckpointer(filepath.Join(b.dir.sub(logDir), "checkpoints"), b.engine,
		storage.CheckpointOptions{Every: c.CheckpointEvery, OnFatal: b.fatal, Logger: log})
	if err != nil {
		return err
	}
	return nil
}

// locate notes where each replica's broker is, for Raft.
func (b *Broker) locate(c *config.Config) {
	at := map[uint64]string{}
	for i := range c.Topics {
		for n := range c.Topics[i].Partitions {
			for _, r := range c.Topics[i].Partitions[n].Running() {
				if on := c.Broker(r.Broker); on != nil {
					at[r.ID] = on.Addresses.Raft
				}
			}
		}
	}
	b.replicas.Store(&at)
}

func (b *Broker) resolve(_, replica uint64) (string, bool) {
	at := b.replicas.Load()
	if at == nil {
		return "", false
	}
	a, ok := (*at)[replica]
	return a, ok
}

func (b *Broker) serve() {
	b.metrics.addFronts(b.fronts)
	for _, f := range b.fronts {
		b.serving.Go(func() {
			if err := f.protocol.Serve(b.serveCtx, f.listener, b); err != nil {
				b.c.Logger.Error().Err(err).Str("protocol", f.protocol.Name()).Msg("front end ended")
			}
		})
	}
	b.ready.listening.Store(true)
	b.ready.kick()
	b.c.Logger.Info().Str("name", b.c.Name).Str("cluster", b.id.ClusterID).Str("clients", b.addresses.Clients).
		Str("http", b.addresses.HTTP).Str("data", b.dir.path).Str("version", Version).Msg("broker serves")
}
