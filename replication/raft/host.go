package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/statemachine"
	"github.com/lni/vfs"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication"
)

// Host is one NodeHost: the replicas of one broker, one directory and one
// listener. It implements replication.Host.
type Host struct {
	config    Config
	logger    zerolog.Logger
	nh        *dragonboat.NodeHost
	registry  *registry
	transport *transport
	address   string
	lock      io.Closer // nil on a test's file system

	fatalOnce sync.Once
	store     atomic.Pointer[store] // nil where the directory has a Pebble log

	mu       sync.Mutex
	replicas map[uint64]*replica // by shard; nil once closed
	starting sync.WaitGroup      // Start calls under way

	campaigns *campaigns
	cuts      *cuts
	restoring restoring
	stop      chan struct{}
	owned     sync.WaitGroup

	checking         atomic.Int32 // replicas being started, whose messages wait
	dropped, unknown atomic.Uint64
	changes          atomic.Uint64 // leaderships begun here
}

var _ replication.Host = (*Host)(nil)

// NewHost opens the directory and listens. ErrLocked, ErrAddressInUse and
// ErrForeignDirectory tell what was in the way.
func NewHost(c Config) (*Host, error) {
	c, err := c.withDefaults()
	if err != nil {
		if c.Listener != nil {
			_ = c.Listener.Close()
		}
		return nil, err
	}
	h := &Host{
		config:   c,
		logger:   c.Logger,
		registry: newRegistry(c.Resolve),
		replicas: make(map[uint64]*replica),
		stop:     make(chan struct{}),
	}
	h.campaigns, h.cuts = newCampaigns(h), newCuts(h)

	// Whatever fails from here on, undo what was done.
	done := false
	listener := c.Listener
	defer func() {
		if done {
			return
		}
		if listener != nil {
			_ = listener.Close()
		}
		if h.lock != nil {
			_ = h.lock.Close()
		}
	}()
	if h.lock, err = openDirectory(&c); err != nil {
		return nil, err
	}
	if listener == nil {
		if listener, err = listen(c.Listen); err != nil {
			return nil, err
		}
	}
	h.address = listener.Addr().String()
	fsys := vfs.Default
	if c.FS != nil {
		fsys = c.FS
	}
	if ours, err := keepsJournal(fsys, c.Dir); err != nil {
		return nil, err
	} else if !ours {
		h.config.pebble = true
		h.logger.Info().Str("dir", c.Dir).Msg("raft directory was made by an earlier version and keeps its Pebble log: a broker that is replaced gets the journal, which writes half as much")
	}
	if status, err := readStatus(fsys, c.Dir); err != nil {
		return nil, err
	} else if began, err := hasData(fsys, c.Dir, c.Deployment); err != nil {
		return nil, err
	} else if status == nil && began {
		h.logger.Warn().Str("file", fsys.PathJoin(c.Dir, statusFile)).Msg("dragonboat's status file is missing and is made anew: the journal beside it says whose it is")
	}
	if dropped, err := dropHostID(fsys, c.Dir); err != nil {
		return nil, err
	} else if dropped {
		h.logger.Warn().Str("file", fsys.PathJoin(c.Dir, hostIDFile)).Msg("the host id that dragonboat gave this directory is damaged and is made anew: nothing refers to it")
	}
	h.transport = newTransport(listener, &c, h.warn)
	h.transport.spare = h.spare
	h.transport.screen = h.screen
	enlist(h)
	if h.nh, err = newNodeHost(h, &c); err != nil {
		delist(h)
		return nil, err
	}
	done = true
	h.owned.Add(1 + cutsAtOnce)
	go h.campaigns.run()
	for range cutsAtOnce {
		go h.cuts.run()
	}
	return h, nil
}

// openDirectory makes, locks and adopts the directory.
func openDirectory(c *Config) (io.Closer, error) {
	deployment := fmt.Sprintf("%020d", c.Deployment)
	if c.FS != nil {
		if err := makeDir(c.FS, c.Dir); err != nil {
			return nil, fmt.Errorf("make raft directory: %w", err)
		}
		return nil, adoptHostname(c.FS, c.Dir, deployment)
	}
	if err := makeDir(vfs.Default, c.Dir); err != nil {
		return nil, fmt.Errorf("make raft directory: %w", err)
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := adoptHostname(vfs.Default, c.Dir, deployment); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen for raft on %s: %w: stop what listens there, or choose another address", address, ErrAddressInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for raft on %s: %w", address, err)
	}
	return l, nil
}

func newNodeHost(h *Host, c *Config) (nh *dragonboat.NodeHost, err error) {
	// Dragonboat panics on a damaged directory; here it can still be an error.
	defer func() {
		if r := recover(); r != nil {
			nh, err = nil, fmt.Errorf("open raft directory %s: %v", c.Dir, r)
		}
	}()
	nc := config.NodeHostConfig{
		DeploymentID:        c.Deployment,
		NodeHostDir:         c.Dir,
		RTTMillisecond:      uint64(c.Tick / time.Millisecond),
		RaftAddress:         h.address,
		RaftEventListener:   listener{h},
		MaxSendQueueSize:    c.MaxLink,
		MaxReceiveQueueSize: c.MaxLink,
		Expert: config.ExpertConfig{
			TransportFactory:    h.transport,
			NodeRegistryFactory: registryFactory{h.registry},
			Engine:              engineConfig(),
			LogDB:               c.logDBConfig(),
			FS:                  c.FS,
		},
	}
	if !h.config.pebble {
		nc.Expert.LogDBFactory = storeFactory{h}
	}
	if c.tune != nil {
		c.tune(&nc)
	}
	nh, err = dragonboat.NewNodeHost(nc)
	switch {
	case err == nil && nh == nil:
		// It recovered from a panic whose value wasn't an error; the line is in the log.
		return nil, fmt.Errorf("open raft directory %s: dragonboat gave up: see its log lines", c.Dir)
	case err != nil && foreign(err):
		return nil, fmt.Errorf("open raft directory %s: %w: %w", c.Dir, ErrForeignDirectory, err)
	case err != nil:
		return nil, fmt.Errorf("open raft directory %s: %w", c.Dir, err)
	}
	return nh, nil
}

// foreign tells the errors of dragonboat's directory check, which live in an
// internal package of it.
func foreign(err error) bool {
	for _, text := range []string{
		"deployment ID changed", "settings changed", "logdb type changed", "hard setting changed",
		"incompatible LogDB data format", "not the owner", "NodeRegistryEnabled changed",
	} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// Address is where the host listens.
func (h *Host) Address() string { return h.address }

// Start implements replication.Host. The state machine is opened first, in this
// call: when that fails, so does Start, and nothing else is harmed.
func (h *Host) Start(ctx context.Context, r replication.Replica, sm replication.StateMachine) (replication.Log, error) {
	if r.Shard == 0 || r.Replica == 0 {
		return nil, fmt.Errorf("start replica %d of log %d: ids are 1 or more", r.Replica, r.Shard)
	}
	p := newReplica(h, r)
	if err := h.reserve(p); err != nil {
		return nil, err
	}
	defer h.starting.Done()
	h.checking.Add(1)
	defer h.checking.Add(-1)
	if err := h.start(ctx, p, sm); err != nil {
		h.release(p)
		return nil, fmt.Errorf("start replica %d of log %d: %w", r.Replica, r.Shard, err)
	}
	return p, nil
}

func (h *Host) start(ctx context.Context, p *replica, sm replication.StateMachine) error {
	halt, cancel := h.whileRunning(ctx)
	defer cancel()
	opened, err := sm.Open(halt)
	if err != nil {
		return fmt.Errorf("open state machine: %w", err)
	}
	r := p.Replica
	limits := h.cuts.limits(r.Shard)
	p.machine = newMachine(sm, opened, limits, h.fatal, h.warn, func(size int64) { h.cuts.grown(p, size) })
	p.machine.host = h
	p.machine.pace = h.config.Pace
	known := h.nh.HasNodeInfo(r.Shard, r.Replica)
	cut := uint64(0)
	if known {
		h.cuts.seed(p)
		cut, err = h.cutAt(r.Shard, r.Replica)
		if err == nil {
			err = h.checkSnapshot(r.Shard, r.Replica, opened)
		}
	}
	switch {
	case err != nil:
	case cut > opened:
		err = fmt.Errorf("%w: state machine is at index %d, but its Raft log begins after %d: its data is older than that: restore it, or ask for a fresh replica id",
			replication.ErrLost, opened, cut)
	case !known && opened > 0:
		// Dragonboat would panic, and rightly: entries up to opened can't be vouched for.
		err = fmt.Errorf("%w: state machine is at index %d, but its Raft log is gone: ask for a fresh replica id", replication.ErrLost, opened)
	case !known && r.Again:
		err = fmt.Errorf("%w: nothing is known of it here, and it has been a member: ask for a fresh replica id", replication.ErrLost)
	case !known && !r.Join && len(r.Initial) == 0:
		err = errors.New("nothing is known of it here: give Initial for one of the first replicas, or Join for a later one")
	case !known && r.Join && len(r.Initial) > 0:
		err = errors.New("both Initial and Join are given: a first replica doesn't join")
	default:
		err = h.launch(halt, p, known)
	}
	if err != nil {
		_ = sm.Close()
		return err
	}
	if err := h.checkEnd(p, sm, opened); err != nil {
		return err
	}
	h.mu.Lock()
	p.launched = true
	h.mu.Unlock()
	if len(r.Initial) < 2 && !r.Join { // else it is not alone
		h.campaigns.ask(p)
	}
	return nil
}

// launch hands the replica to dragonboat.
//
// A replica that joined must be told so at each start, because it has to start as
// non-voting even when it was promoted since. Whether it joined is in dragonboat's
// bootstrap record, which can't be read, but which refuses what doesn't fit: so the
// caller's word is tried first, then the other ways.
func (h *Host) launch(halt <-chan struct{}, p *replica, known bool) error {
	r := p.Replica
	initial := make(map[uint64]string, len(r.Initial))
	for id, address := range r.Initial {
		h.registry.hint(r.Shard, id, address)
		initial[id] = target(r.Shard, id)
	}
	type way struct {
		members map[uint64]string
		join    bool
	}
	var ways []way
	switch {
	case !known:
		ways = []way{{initial, r.Join}}
	case len(initial) > 0:
		ways = []way{{initial, false}, {nil, true}, {nil, false}}
	default:
		ways = []way{{nil, true}, {nil, false}}
	}
	if err := h.prepare(r, ways[0].members, known); err != nil {
		return err
	}
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	create := func(uint64, uint64) statemachine.IOnDiskStateMachine { return p.machine }
	for {
		c := h.config.replicaConfig(r.Shard, r.Replica)
		c.IsNonVoting = ways[0].join
		err := h.nh.StartOnDiskReplica(ways[0].members, ways[0].join, create, c)
		switch {
		case errors.Is(err, dragonboat.ErrInvalidShardSettings) && len(ways) > 1:
			ways = ways[1:]
			continue
		case !errors.Is(err, dragonboat.ErrShardAlreadyExist):
			return err
		}
		// Its last run is being unloaded.
		select {
		case <-poll.C:
		case <-halt:
			return fmt.Errorf("wait for its last run to end: %w", replication.ErrClosed)
		}
	}
}

// whileRunning derives a channel that closes with ctx or with the host.
func (h *Host) whileRunning(ctx context.Context) (<-chan struct{}, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	unhook := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		select {
		case <-h.stop:
			cancel()
		case <-unhook:
		}
	}()
	return ctx.Done(), func() {
		close(unhook)
		<-finished
		cancel()
	}
}

func (h *Host) reserve(p *replica) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replicas == nil {
		return fmt.Errorf("start replica %d of log %d: %w", p.Replica.Replica, p.Shard, replication.ErrClosed)
	}
	if other, ok := h.replicas[p.Shard]; ok {
		return fmt.Errorf("start replica %d of log %d: replica %d of it runs here already: close that first",
			p.Replica.Replica, p.Shard, other.Replica.Replica)
	}
	h.replicas[p.Shard] = p
	h.starting.Add(1)
	return nil
}

func (h *Host) release(p *replica) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.replicas[p.Shard] == p {
		delete(h.replicas, p.Shard)
	}
}

func (h *Host) replica(shard uint64) *replica {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.replicas[shard]
}

// Remove implements replication.Host. The id can't be used on this host again.
func (h *Host) Remove(ctx context.Context, shard, id uint64) error {
	if p := h.replica(shard); p != nil && p.Replica.Replica == id {
		return fmt.Errorf("remove replica %d of log %d: it runs: close it first", id, shard)
	}
	ctx, cancel := withLimit(ctx)
	defer cancel()
	if err := h.removeData(ctx, shard, id); err != nil {
		return fmt.Errorf("remove replica %d of log %d: %w", id, shard, sentinel(err))
	}
	if h.replica(shard) == nil {
		h.registry.forget(shard)
	}
	return nil
}

// removeData waits until a replica's last run has been unloaded. Another replica of the log may
// run here, which SyncRemoveData doesn't allow.
func (h *Host) removeData(ctx context.Context, shard, id uint64) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		err := h.nh.RemoveData(shard, id)
		if !errors.Is(err, dragonboat.ErrShardNotStopped) {
			return err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close implements replication.Host.
func (h *Host) Close() error {
	// 1. Nothing new starts; what is being opened gives up.
	h.mu.Lock()
	replicas := h.replicas
	h.replicas = nil
	h.mu.Unlock()
	if replicas == nil {
		return nil
	}
	close(h.stop)
	h.starting.Wait()
	// 2. Our own goroutines.
	h.owned.Wait()
	// 3. The replicas, side by side, since each waits for its state machine.
	var closing sync.WaitGroup
	errs := make(chan error, len(replicas))
	for _, p := range replicas {
		if p.launched {
			closing.Go(func() { errs <- p.Close() })
		}
	}
	closing.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	// 4. Dragonboat, which closes the transport and the log store; then the lock.
	err = errors.Join(err, closeNodeHost(h.nh))
	delist(h)
	if h.lock != nil {
		err = errors.Join(err, h.lock.Close())
	}
	return err
}

func closeNodeHost(nh *dragonboat.NodeHost) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("close raft host: %v", r)
		}
	}()
	nh.Close()
	return nil
}

func (h *Host) warn(event string, err error) { h.logger.Warn().Err(err).Msg(event) }

// fatal tells OnFatal, once.
func (h *Host) fatal(err error) {
	h.fatalOnce.Do(func() {
		h.logger.WithLevel(zerolog.FatalLevel).Err(err).Msg("raft host can't go on")
		if h.config.OnFatal != nil {
			h.config.OnFatal(err)
		}
	})
}

// Figures reports counts, and seconds, by name.
func (h *Host) Figures() map[string]float64 {
	h.mu.Lock()
	replicas, leaders := len(h.replicas), 0
	for _, p := range h.replicas {
		if p.Leadership().Self {
			leaders++
		}
	}
	h.mu.Unlock()
	out := map[string]float64{
		"replicas":          float64(replicas),
		"leaders":           float64(leaders),
		"leader_changes":    float64(h.changes.Load()),
		"proposals_dropped": float64(h.dropped.Load()),
		"proposals_unknown": float64(h.unknown.Load()),
		"uncut_bytes":       float64(h.cuts.total.Load()),
		"links_refused":     float64(h.transport.refused.Load()),
		"restoring":         float64(h.restoring.replicas.Load()),
		"snapshots_taken":   float64(h.restoring.taken.Load()),
		"spared_messages":   float64(h.restoring.dropped.Load()),
		"cuts":              float64(h.cuts.done.Load()),
		"cuts_failed":       float64(h.cuts.failed.Load()),
		"cut_seconds":       time.Duration(h.cuts.spent.Load()).Seconds(),
	}
	if s := h.store.Load(); s != nil {
		f := s.journal.Figures()
		out["journal_segments"] = float64(f.Segments)
		out["journal_bytes"] = float64(f.SegmentBytes)
		out["journal_live_bytes"] = float64(f.LiveBytes)
		out["journal_fsyncs"] = float64(f.Batches)
		out["journal_written_bytes"] = float64(f.Bytes)
		out["journal_moved_bytes"] = float64(f.MovedBytes)
		out["journal_joined"] = float64(f.Joined)
	}
	return out
}

// listener receives dragonboat's leadership events, in order, on one goroutine of the
// NodeHost.
type listener struct{ h *Host }

func (l listener) LeaderUpdated(info raftio.LeaderInfo) {
	if p := l.h.replica(info.ShardID); p != nil && p.Replica.Replica == info.ReplicaID {
		p.lead(info.LeaderID, info.Term)
	}
}
