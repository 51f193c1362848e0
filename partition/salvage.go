package partition

import (
	"context"
	"errors"
	"fmt"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
)

// Origin is where a partition begins that was recovered by force, in a new replicated log. It is the same for all
// replicas of that log.
type Origin struct {
	Offset int64  // the first one, of a replica that has nothing yet
	Index  uint64 // added to the indexes of entries where tokens are made of them, which must never fall
}

// Salvage makes of a replica's part of a log that has lost its majority for good the beginning of a new log:
// all that its own log holds is applied, known to be committed or not, and made durable, and the checkpoint then stands before
// the new log's first entry. c is of the old log. It can be repeated: what was done is passed over, and
// once it is done the old log is never opened again. The partition must be closed.
func Salvage(ctx context.Context, c Config) error {
	fail := func(err error) error { return fmt.Errorf("salvage partition %s/%d: %w", c.Topic, c.Number, err) }
	host, ok := c.Host.(replication.Keeping)
	if !ok {
		return fail(errors.New("its log can't be opened without the others"))
	}
	cp, found := c.Checkpoints.Load(c.Log)
	if found && cp.Index == 0 {
		return nil // it stands there already: no other checkpoint has that index
	}
	m := newMachine(&c)
	if err := host.Replay(ctx, c.Shard, c.Replica, m); err != nil {
		return fail(err)
	}
	err := m.Sync()
	m.applying.Lock()
	applied, durable := m.state.index, m.durable
	m.applying.Unlock()
	if err == nil && durable < applied {
		err = fmt.Errorf("entries up to %d are applied, and its checkpoint is at %d: see the log for why it could not be made", applied, durable)
	}
	if err := errors.Join(err, m.Close()); err != nil {
		return fail(err)
	}
	if err := RebaseLogs(ctx, c.Engine, c.Checkpoints, c.Log); err != nil {
		return fail(err)
	}
	return nil
}

// RebaseLogs makes the checkpoints of logs the beginnings of new replicated logs, see Rebase, and drops what is stored above
// them. Logs without a checkpoint have nothing yet.
func RebaseLogs(ctx context.Context, engine storage.Engine, points *storage.Checkpointer, logs ...storage.LogID) error {
	var done []storage.LogID
	defer func() {
		for _, id := range done {
			points.Unregister(id)
		}
	}()
	for _, id := range logs {
		point, found := points.Load(id)
		if !found {
			continue
		}
		point, err := Rebase(point)
		if err != nil {
			return err
		}
		if err := dropUnproven(engine, id, point.Mark); err != nil {
			return err
		}
		points.Register(id, rebased{point})
		done = append(done, id)
	}
	return points.Sync(ctx)
}

// rebased is a checkpoint to be written.
type rebased struct{ point storage.Checkpoint }

func (r rebased) Capture() (storage.Checkpoint, error) { return r.point, nil }
func (r rebased) Durable(storage.Checkpoint)           {}

// dropUnproven deletes what is stored above a checkpoint: entries that the old log didn't bring again. The new
// log never will, and would be taken for one that has lost its end.
func dropUnproven(engine storage.Engine, id storage.LogID, m storage.Mark) (err error) {
	s, err := engine.Open(id, m)
	var hole *storage.HoleError
	if errors.As(err, &hole) {
		return nil // it stays as it is, and is told of as damaged
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if s.Reach() == 0 {
		return nil
	}
	return s.Settle(m)
}
