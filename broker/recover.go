package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/raft"
)

// Recovering makes a cluster of one broker from its data directory, when a majority is gone for
// good. It goes in steps, each of which can be repeated:
//
//  1. Everything is opened as at a start, with no way to other brokers, to see that it can be. Then the file
//     `recover` is written: no broker starts here before the recovery is through.
//  2. It is opened again, and all that the Raft logs hold is applied, known to be committed or not, and made
//     durable by a checkpoint. `recover` notes it: from here on the old Raft groups are never opened again.
//  3. The checkpoints become beginnings of new Raft groups.
//  4. The next epoch names this broker alone, and new groups for all partitions.
//  5. Each new group commits a first entry, and its log is cut after that. Its entries begin in the
//     middle of a partition's life: who joins it later must get a snapshot, and never them alone.
//  6. The file goes.
//
// Everything that the broker's Raft logs hold is kept. They know little of what is committed: the commit index is
// saved with later entries only, so an acked record may look as if it were not. What was never acked
// may appear by it, as it may after any change of leaders. What only others had is lost.

const (
	recoverFile = "recover"
	// recoverSettle is for how long nothing more must be applied.
	recoverSettle = 2 * time.Second
	recoverLook   = 50 * time.Millisecond
	recoverLimit  = 10 * time.Minute // for all of it

	// recoverKeeping is what the file says until everything is applied; then it has the new epoch's number.
	recoverKeeping = "keeping\n"
)

// ErrRecovering: the recovery of a data directory was begun and not finished.
var ErrRecovering = errors.New("a recovery of this data directory was begun and has to be finished first")

// noRecovery refuses a directory in the middle of one.
func (b *Broker) noRecovery() error {
	if _, err := os.Stat(b.dir.sub(recoverFile)); !errors.Is(err, os.ErrNotExist) {
		if err != nil {
			return fmt.Errorf("look for a recovery: %w", err)
		}
		return fmt.Errorf("%w: parley cluster recover --data-dir %s --accept-data-loss", ErrRecovering, b.dir.path)
	}
	return nil
}

// Recovery is what a recovery of a data directory comes to.
type Recovery struct {
	Name       string // of the broker
	Cluster    string
	Epoch      uint64   // that the directory knows; the recovery makes the next one
	Lost       []string // brokers
	Partitions []config.Survivor
	Deleted    []string // deleted topics that can't be restored after it
	Begun      bool     // it was begun before, and not finished
	// Committed: the Raft log's store is that of earlier versions. Kept is what it knows to be committed, which may lack the last moments.
	Committed bool

	applied bool // and has come to where the old Raft groups must not be opened again
	broker  uint64
	change  string
}

// PlanRecovery says what a recovery would do, and changes nothing. The broker must be stopped.
func PlanRecovery(dataDir string) (Recovery, error) {
	var r Recovery
	if _, err := os.Stat(filepath.Join(dataDir, "id")); err != nil {
		return r, fmt.Errorf("%s is no data directory of a broker: %w", dataDir, err)
	}
	dir, err := openDataDir(dataDir)
	if err != nil {
		return r, err
	}
	defer dir.close() //nolint:errcheck // nothing was written
	id, err := loadIdentity(dir.path, false)
	if err != nil {
		return r, err
	}
	cur, err := epoch.Peek(dir.sub(epochsDir))
	if err != nil {
		return r, err
	}
	stage, err := os.ReadFile(dir.sub(recoverFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("look for a recovery: %w", err)
	}
	end, err2 := logEnds(dir)
	if err2 != nil {
		return r, err2
	}
	if r, err = planRecovery(cur, id, err == nil, end); err != nil {
		return r, err
	}
	if r.Committed, err = raft.OldStore(dir.sub(raftDir)); err != nil {
		return r, err
	}
	r.applied = r.Begun && string(stage) != recoverKeeping
	return r, nil
}

// logEnds tells how far the Raft logs of a directory reach. A replica that was being copied, and whose store has yet to
// come to the snapshot that its log begins with, counts as having nothing.
func logEnds(dir *dataDir) (func(t *config.Topic, n int, r config.Replica) (term, index uint64), error) {
	ends, err := raft.Ends(dir.sub(raftDir))
	if err != nil {
		return nil, fmt.Errorf("look how far the Raft logs reach: %w", err)
	}
	path := filepath.Join(dir.sub(logDir), "checkpoints")
	if found, err := filepath.Glob(filepath.Join(path, "*")); err != nil || len(found) == 0 || len(ends) == 0 {
		return nil, err
	}
	points, err := storage.OpenCheckpointer(path, nothingStored{}, storage.CheckpointOptions{})
	if err != nil {
		return nil, err
	}
	defer points.Close() //nolint:errcheck // nothing was written
	at := map[storage.LogID]uint64{}
	for _, id := range points.Checkpoints() {
		if p, found := points.Load(id); found {
			at[id] = p.Index
		}
	}
	return func(t *config.Topic, n int, r config.Replica) (term, index uint64) {
		end := ends[replication.LogOf{Shard: t.Partitions[n].Shard, Replica: r.ID}]
		if at[storage.LogID{Topic: t.ID, Partition: uint64(n), Replica: r.ID}] < end.Snapshot {
			return 0, 0
		}
		return end.Term, end.Index
	}, nil
}

// nothingStored is an engine for looking at checkpoints alone.
type nothingStored struct{ storage.Engine }

func (nothingStored) Logs() ([]storage.LogID, error) { return nil, nil }
func (nothingStored) Sync() error                    { return nil }

func planRecovery(cur *config.Config, id identity, begun bool, end func(*config.Topic, int, config.Replica) (uint64, uint64)) (Recovery, error) {
	r := Recovery{Cluster: cur.ClusterID, Epoch: cur.Epoch, broker: id.BrokerID, Begun: begun}
	self := cur.Broker(id.BrokerID)
	switch {
	case cur.Epoch == 0 || self == nil || self.Incarnation != id.Incarnation:
		return r, fmt.Errorf("epoch %d, the newest that this directory knows, doesn't name its broker (id %d): there is nothing to recover here", cur.Epoch, id.BrokerID)
	case len(cur.Brokers) == 1 && !begun:
		return r, fmt.Errorf("broker %s is the whole cluster: start it", self.Name)
	}
	r.Name = self.Name
	for i := range cur.Brokers {
		if b := &cur.Brokers[i]; b.ID != id.BrokerID {
			r.Lost = append(r.Lost, b.Name)
		}
	}
	r.Partitions = cur.Survivors(id.BrokerID, end)
	for i := range cur.Topics {
		if t := &cur.Topics[i]; !t.Live() && !t.Purge {
			r.Deleted = append(r.Deleted, t.Name)
		}
	}
	empty := 0
	for _, p := range r.Partitions {
		if p.Replica == 0 {
			empty++
		}
	}
	r.change = fmt.Sprintf("recovered by force from broker %s alone, without %s: %d partitions as it had them, %d begin anew, empty",
		r.Name, strings.Join(r.Lost, ", "), len(r.Partitions)-empty, empty)
	r.change = r.change[:min(len(r.change), config.MaxText)]
	return r, nil
}

// Recover makes a cluster of one broker of c.DataDir. Only the directory, the engine and the logger of c
// count. It returns the epoch that it has written.
func Recover(ctx context.Context, c Config) (*config.Config, error) {
	r, err := PlanRecovery(c.DataDir)
	if err != nil {
		return nil, err
	}
	c.Name, c.Join, c.InitialCluster = r.Name, "", ""
	c.Listen, c.HTTP, c.PeerListen, c.RaftListen = "127.0.0.1:0", "off", "127.0.0.1:0", "127.0.0.1:0"
	c.AdvertiseClient, c.AdvertisePeer, c.AdvertiseRaft = "", "", ""
	c.FreeSpaceFloor = -1
	c.Dial = func(context.Context, string) (net.Conn, error) {
		return nil, errors.New("a recovery reaches nobody")
	}
	if c, err = c.withDefaults(); err != nil {
		return nil, fmt.Errorf("configure recovery: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	if !r.Begun {
		if err := alone(ctx, c, r, false, nothing); err != nil {
			return nil, fmt.Errorf("open what is there: %w", err)
		}
		if err := noteRecovery(&c, recoverKeeping); err != nil {
			return nil, err
		}
	}
	if !r.applied {
		if err := alone(ctx, c, r, true, (*Broker).applyAll); err != nil {
			return nil, fmt.Errorf("apply what the Raft logs hold: %w", err)
		}
		if err := noteRecovery(&c, fmt.Sprintf("%d\n", r.Epoch+1)); err != nil {
			return nil, err
		}
	}
	if err := beginAnew(&c, r); err != nil {
		return nil, err
	}
	if err := alone(ctx, c, r, false, (*Broker).cutAll); err != nil {
		return nil, fmt.Errorf("begin the new Raft groups: %w", err)
	}
	return endRecovery(&c)
}

// alone opens all partitions of the data directory, does one thing with them, makes everything durable and
// closes them. Nobody else is reached. With keepAll everything in the Raft logs is applied.
func alone(ctx context.Context, c Config, r Recovery, keepAll bool, do func(*Broker, context.Context) error) error {
	b := newBroker(c)
	b.keepAll = keepAll
	b.carrier.chosen = map[uint64]uint64{}
	for _, p := range r.Partitions {
		b.carrier.chosen[p.Shard] = p.Replica
	}
	err := b.openAlone(ctx)
	if err == nil {
		err = do(b, ctx)
	}
	if err == nil {
		err = b.checkpoints.Sync(ctx)
	}
	if err == nil && keepAll {
		err = b.checkKept()
	}
	b.stopping.Store(true)
	return errors.Join(err, b.shut(context.Background()))
}

func (b *Broker) openAlone(ctx context.Context) (err error) {
	c := &b.c
	if b.dir, err = openDataDir(c.DataDir); err != nil {
		return err
	}
	if b.id, err = loadIdentity(b.dir.path, false); err != nil {
		return err
	}
	b.selfID.Store(b.id.BrokerID)
	if b.raftListener, err = net.Listen("tcp", c.RaftListen); err != nil {
		return fmt.Errorf("listen for raft: %w", err)
	}
	cur, err := epoch.Peek(b.dir.sub(epochsDir))
	if err != nil {
		return err
	}
	if err := b.openParts(); err != nil {
		return err
	}
	r, err := newRoutes(cur, b.carrier.slot)
	if err != nil {
		return err
	}
	b.locate(cur)
	b.routes.Store(r)
	b.carrier.open(ctx, cur, r)
	b.carryCancel() // nobody waits for leaders
	for _, s := range b.carrier.slots {
		if why := s.problemText(); s.partition.Load() == nil && why != "" {
			return fmt.Errorf("partition %s/%d: %s", s.topic, s.number, why)
		}
	}
	return nil
}

// cutAll has each group commit its first entries, and cuts its log behind them.
func (b *Broker) cutAll(ctx context.Context) error {
	look := time.NewTicker(recoverLook)
	defer look.Stop()
	for _, s := range b.carrier.slots {
		p := s.partition.Load()
		for !p.Leading() {
			select {
			case <-look.C:
			case <-ctx.Done():
				return fmt.Errorf("partition %s/%d does not lead its group of one: %w", s.topic, s.number, ctx.Err())
			}
		}
		log, ok := p.Log().(replication.Cutting)
		if !ok {
			continue // a log that hands its whole state to whoever joins
		}
		if err := log.Cut(ctx); err != nil {
			return fmt.Errorf("partition %s/%d: %w", s.topic, s.number, err)
		}
	}
	return nil
}

func nothing(*Broker, context.Context) error { return nil }

// applyAll waits until everything that the Raft logs hold is applied.
func (b *Broker) applyAll(ctx context.Context) error {
	for {
		if err := b.quiesce(ctx); err != nil {
			return err
		}
		waits := false
		for _, s := range b.carrier.slots {
			log, ok := s.partition.Load().Log().(replication.Holding)
			if !ok {
				continue
			}
			last, err := log.Unapplied()
			var left *replication.UnprovenError
			if errors.As(err, &left) {
				b.c.Logger.Error().Str("topic", s.topic).Int32("partition", s.number).Int("entries", left.Proposals).Uint64("last", left.Last).
					Msg("left out: the Raft log, whose store is of an earlier version, holds entries that it doesn't know to be committed; what was acked in the last moments may be among them")
				continue
			}
			if err != nil {
				return fmt.Errorf("partition %s/%d: %w", s.topic, s.number, err)
			}
			waits = waits || last > 0
		}
		if !waits {
			return nil
		}
	}
}

// checkKept: a partition that a checkpoint left out would begin anew with less than it has.
func (b *Broker) checkKept() error {
	for _, s := range b.carrier.slots {
		point, _ := b.checkpoints.Load(s.log)
		if applied := s.partition.Load().Log().Applied(); point.Index < applied {
			return fmt.Errorf("partition %s/%d: entries up to %d are applied, and its checkpoint is at %d: see the log for why it could not be made",
				s.topic, s.number, applied, point.Index)
		}
	}
	return nil
}

// quiesce waits until nothing more is applied.
func (b *Broker) quiesce(ctx context.Context) error {
	look := time.NewTicker(recoverLook)
	defer look.Stop()
	applied, since := map[uint64]uint64{}, time.Now()
	for time.Since(since) < recoverSettle {
		for id, s := range b.carrier.slots {
			p := s.partition.Load()
			if n := p.Log().Applied(); n != applied[id] {
				applied[id], since = n, time.Now()
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// noteRecovery writes how far the recovery is.
func noteRecovery(c *Config, stage string) (err error) {
	dir, err := openDataDir(c.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	if err := writeDurably(dir.path, dir.sub(recoverFile), []byte(stage)); err != nil {
		return fmt.Errorf("note the recovery: %w", err)
	}
	return nil
}

// beginAnew is what follows once everything is durable: steps 3 and 4.
func beginAnew(c *Config, r Recovery) (err error) {
	dir, err := openDataDir(c.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	cur, err := epoch.Peek(dir.sub(epochsDir))
	if err != nil || len(cur.Brokers) == 1 {
		return err
	}
	if err := rebaseCheckpoints(c, dir, r); err != nil {
		return fmt.Errorf("begin new logs: %w", err)
	}
	_, err = epoch.Recover(dir.sub(epochsDir), r.Name, c.Clock(), func(next *config.Config) error {
		next.RecoverOn(r.broker, r.Partitions)
		next.Change = r.change
		return nil
	})
	return err
}

// endRecovery lets brokers start in the directory again.
func endRecovery(c *Config) (_ *config.Config, err error) {
	dir, err := openDataDir(c.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	cur, err := epoch.Peek(dir.sub(epochsDir))
	if err != nil {
		return nil, err
	}
	if err := os.Remove(dir.sub(recoverFile)); err != nil {
		return nil, fmt.Errorf("end the recovery: %w", err)
	}
	return cur, syncDir(dir.path)
}

func rebaseCheckpoints(c *Config, dir *dataDir, r Recovery) (err error) {
	engine, err := storage.OpenEngine(c.Engine, storage.Options{Dir: filepath.Join(dir.sub(logDir), "store")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	points, err := storage.OpenCheckpointer(filepath.Join(dir.sub(logDir), "checkpoints"), engine, storage.CheckpointOptions{Logger: c.Logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, points.Close()) }()
	var ids []storage.LogID
	for _, p := range r.Partitions {
		if p.Replica != 0 {
			ids = append(ids, storage.LogID{Topic: p.TopicID, Partition: uint64(p.Number), Replica: p.Replica})
		}
	}
	return partition.RebaseLogs(context.Background(), engine, points, ids...)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
