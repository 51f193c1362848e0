package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// trash is what replicas that moved away from this broker leave. A replica gets here when an
// epoch names it as retired, and by nothing else: what an epoch doesn't mention stays. Its
// data rests where it was, closed, until the grace is over; then it is deleted, and an
// epoch forgets the replica. While the disk is full the grace is over at once.
type trash struct {
	b    *Broker
	path string

	mu sync.Mutex
	// since is when this broker found a replica retired, Unix ms. It is kept in a file, or each
	// restart would begin the grace anew.
	since map[uint64]int64
	gone  map[uint64]bool // replicas whose data was deleted here since the start

	deleted uint64
}

const (
	trashFile    = "trash"
	confirmWait  = 5 * time.Second // for the epoch that forgets
	trashPause   = time.Second     // before what failed is tried again
	trashVersion = 1
)

// trashNote is the trash file.
type trashNote struct {
	Version int              `json:"version"`
	Since   map[uint64]int64 `json:"since"`
}

func openTrash(b *Broker, path string) (*trash, error) {
	t := &trash{b: b, path: path, since: map[uint64]int64{}, gone: map[uint64]bool{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read trash: %w", err)
	}
	var n trashNote
	if err := json.Unmarshal(data, &n); err != nil || n.Version != trashVersion {
		// It says nothing but how long data was kept already: it is kept longer.
		b.c.Logger.Warn().Err(err).Str("file", path).Msg("the note on retired replicas can't be read: their grace begins anew")
		return t, nil
	}
	for id, at := range n.Since {
		t.since[id] = at
	}
	return t, nil
}

// save writes the file, if anything changed. Lost, it costs time alone.
func (t *trash) save() error {
	t.mu.Lock()
	data, err := json.Marshal(trashNote{Version: trashVersion, Since: t.since})
	t.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write trash: %w", err)
	}
	tmp := t.path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write trash: %w", err)
	}
	if err := os.Rename(tmp, t.path); err != nil {
		return fmt.Errorf("write trash: %w", err)
	}
	return nil
}

// retired is a replica of this broker that an epoch names as retired.
type retired struct {
	topic     string
	shard     uint64
	log       storage.LogID
	replica   uint64
	partition int
}

func (t *trash) retired(c *config.Config) (all []retired) {
	self := t.b.self()
	for i := range c.Topics {
		topic := &c.Topics[i]
		for n := range topic.Partitions {
			p := &topic.Partitions[n]
			for _, r := range p.Retired {
				if r.Broker == self {
					all = append(all, retired{topic: topic.Name, shard: p.Shard, replica: r.ID, partition: n,
						log: storage.LogID{Topic: topic.ID, Partition: uint64(n), Replica: r.ID}})
				}
			}
		}
	}
	return all
}

// empty takes in what the epoch retires, deletes what is due, and has the deletions
// confirmed. It is called by the carrier, which has closed those replicas before. Each step can
// be repeated after a crash.
func (t *trash) empty(ctx context.Context, c *config.Config) error {
	all := t.retired(c)
	now := t.b.c.Clock().UnixMilli()
	named := map[uint64]bool{}
	changed := false
	var due []retired
	t.mu.Lock()
	for _, r := range all {
		named[r.replica] = true
		since, ok := t.since[r.replica]
		if !ok {
			since, changed = now, true
			t.since[r.replica] = now
			t.b.c.Logger.Info().Str("topic", r.topic).Int("partition", r.partition).Uint64("replica", r.replica).
				Dur("grace", t.b.c.TrashGrace).Msg("replica moved away, its data goes when the grace is over")
		}
		if now-since >= t.b.c.TrashGrace.Milliseconds() || t.b.space.Full() {
			due = append(due, r)
		}
	}
	for id := range t.since {
		if !named[id] { // it was forgotten, with its topic or because its data was gone
			delete(t.since, id)
			delete(t.gone, id)
			changed = true
		}
	}
	t.mu.Unlock()
	var errs []error
	if changed {
		errs = append(errs, t.save())
	}
	if len(due) > 0 && ctx.Err() == nil {
		errs = append(errs, t.delete(ctx, due))
	}
	return errors.Join(errs...)
}

// delete deletes retired replicas' data and has that confirmed.
func (t *trash) delete(ctx context.Context, due []retired) error {
	var ids []uint64
	var left []retired
	var logs []shardLog
	t.mu.Lock()
	for _, r := range due {
		ids = append(ids, r.replica)
		if !t.gone[r.replica] {
			left = append(left, r)
			logs = append(logs, shardLog{r.shard, r.log})
		}
	}
	t.mu.Unlock()
	if len(left) > 0 {
		if err := t.b.dropReplicas(ctx, logs); err != nil {
			return fmt.Errorf("delete %d retired replicas: %w", len(left), err)
		}
	}
	t.mu.Lock()
	for _, r := range left {
		t.gone[r.replica] = true
		t.deleted++
	}
	t.mu.Unlock()
	for _, r := range left {
		t.b.c.Logger.Info().Str("topic", r.topic).Int("partition", r.partition).Uint64("replica", r.replica).Msg("data of a retired replica deleted")
	}
	return t.confirm(ctx, ids)
}

// shardLog is a replica's data: in the Raft host and in the store.
type shardLog struct {
	shard uint64
	log   storage.LogID
}

// dropReplicas deletes what closed replicas have on this broker. It can be repeated.
func (b *Broker) dropReplicas(ctx context.Context, logs []shardLog) error {
	for _, l := range logs {
		b.checkpoints.Forget(l.log)
		shards := []uint64{l.shard}
		if host, ok := b.host.(replication.Keeping); ok { // of the groups, too, that it had before a recovery
			shards = append(slices.DeleteFunc(host.Shards(l.log.Replica), func(s uint64) bool { return s == l.shard }), l.shard)
		}
		for _, shard := range shards {
			if err := b.host.Remove(ctx, shard, l.log.Replica); err != nil {
				return err
			}
		}
	}
	if err := b.checkpoints.Sync(ctx); err != nil {
		return err
	}
	for _, l := range logs {
		if err := b.engine.Drop(l.log); err != nil {
			return fmt.Errorf("drop log %s: %w", l.log, err)
		}
	}
	return nil
}

// confirm has an epoch forget replicas whose data is gone.
func (t *trash) confirm(ctx context.Context, ids []uint64) error {
	ctx, cancel := context.WithTimeout(ctx, confirmWait)
	defer cancel()
	self := t.b.self()
	_, err := t.b.epochs.Propose(ctx, func(next *config.Config) error {
		n := next.ForgetRetired(func(_ *config.Topic, _ int, r config.Replica) bool { return r.Broker == self && contains(ids, r.ID) })
		if n == 0 {
			return epoch.ErrUnchanged
		}
		next.Change = fmt.Sprintf("broker %s has deleted the data of %d retired replicas", t.b.c.Name, n)
		return nil
	})
	if err != nil && !errors.Is(err, epoch.ErrUnchanged) {
		return fmt.Errorf("confirm that retired replicas are deleted: %w", err)
	}
	return nil
}

// next is when something in the trash is due, zero while there is nothing.
func (t *trash) next() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first time.Time
	for _, since := range t.since {
		at := time.UnixMilli(since).Add(t.b.c.TrashGrace)
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// held counts the replicas in the trash.
func (t *trash) held() (replicas int, deleted uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.since), t.deleted
}
