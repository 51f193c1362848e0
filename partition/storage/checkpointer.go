package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// A Checkpoint is what one log's partition needs to go on from: everything up
// to Index is in the store and in State, nothing later is in State.
type Checkpoint struct {
	Log   LogID
	Index uint64 // index of the newest replicated entry that is covered
	Mark  Mark
	State []byte // opaque; the partition's small mutable state
}

// A Source is a partition that takes part in checkpoints. Its methods are
// called from the checkpointer's goroutine, one at a time, and must call neither
// Unregister nor Sync.
type Source interface {
	// Capture returns a consistent checkpoint: everything up to Index was
	// appended to the store, nothing later is in State. The checkpointer reads
	// State until the round ends. ErrUnchanged says that nothing happened since
	// the last one that became durable. Any other error leaves this log's older
	// checkpoint in place; the round goes on without it.
	Capture() (Checkpoint, error)

	// Durable is called once the checkpoint is on disk: physical trims and the
	// compaction of the replicated log follow it.
	Durable(Checkpoint)
}

// ErrUnchanged is returned by Capture when there is nothing new to write.
var ErrUnchanged = errors.New("nothing changed since the last checkpoint")

// Defaults of CheckpointOptions.
const (
	DefaultCheckpointBytes = 64 << 20
	DefaultCheckpointEvery = 5 * time.Second
)

// CheckpointOptions of a Checkpointer. Zero values mean the defaults.
type CheckpointOptions struct {
	// EveryBytes starts a round once that much was noted since the last one.
	EveryBytes int64
	// Every starts a round when that much time has passed.
	Every time.Duration
	// Ticks replaces the ticker of Every, for simulations.
	Ticks <-chan time.Time
	// OnFatal is called once, with the first I/O error. After it nothing can
	// be promised any more: the process should say why and exit.
	OnFatal func(error)
	Logger  zerolog.Logger

	// hooks are for the tests that show what goes wrong without a step.
	hooks checkpointHooks
}

// checkpointHooks switch single steps of a round off or around. Production code
// never sets them.
type checkpointHooks struct {
	writeFirst bool // write the file before the engine is synced
}

// A Checkpointer writes the checkpoints of all logs of one broker, round by
// round. The order within a round is what makes a checkpoint true:
//
//  1. Capture every source.
//  2. Engine.Sync: all that step 1 speaks of is durable.
//  3. Write the changed checkpoints and a commit marker, fsync.
//  4. Tell each source (Durable).
//
// Swapping 2 and 3 would let a power cut leave a checkpoint that promises data
// which was never written.
//
// Rounds run one at a time. A Sync that arrives while one is running waits for
// the next, which everybody who waits shares: n callers cost at most two rounds.
type Checkpointer struct {
	engine Engine
	opt    CheckpointOptions
	noted  atomic.Int64
	kick   chan struct{}

	mu      sync.Mutex
	sources map[LogID]*registration
	forget  map[LogID]struct{}
	next    *round // the round that has not begun, if anybody waits for one
	closed  bool
	rounds  sync.WaitGroup

	turn  sync.Mutex // held by the running round; guards what follows
	file  *checkpointFile
	fatal error
	stats checkpointStats
}

type registration struct {
	mu     sync.Mutex // held while a callback runs
	gone   bool
	source Source
}

type round struct {
	done chan struct{}
	err  error
}

type checkpointStats struct {
	rounds, frames, failures atomic.Int64
	nanos                    atomic.Int64
}

// OpenCheckpointer opens or creates the checkpoint file in dir. It refuses a
// damaged file, and a missing one when the engine holds logs already: starting
// afresh then would replay into, or delete, what those logs hold.
func OpenCheckpointer(dir string, e Engine, o CheckpointOptions) (*Checkpointer, error) {
	if o.EveryBytes <= 0 {
		o.EveryBytes = DefaultCheckpointBytes
	}
	if o.Every <= 0 {
		o.Every = DefaultCheckpointEvery
	}
	file, cut, err := openCheckpointFile(dir, func() (bool, error) {
		logs, err := e.Logs()
		return len(logs) > 0, err
	})
	if err != nil {
		return nil, fmt.Errorf("open checkpoints: %w", err)
	}
	if cut > 0 {
		o.Logger.Warn().Str("file", file.path).Int64("bytes", cut).
			Msg("cut an unfinished round off the checkpoint file")
	}
	return &Checkpointer{
		engine:  e,
		opt:     o,
		kick:    make(chan struct{}, 1),
		sources: make(map[LogID]*registration),
		forget:  make(map[LogID]struct{}),
		file:    file,
	}, nil
}

// Load returns a log's newest durable checkpoint; without one the log is new
// and everything is applied from the replicated log's beginning, with Mark{0, 0}.
// State is the caller's. The file was verified when it was opened; should the
// frame be unreadable now, that is final like any I/O error (OnFatal), and what
// Load returns has the true Mark but no State, so that nobody takes the log for
// a new one and drops what it holds.
func (c *Checkpointer) Load(id LogID) (Checkpoint, bool) {
	c.mu.Lock()
	_, forgotten := c.forget[id]
	c.mu.Unlock()
	if forgotten {
		return Checkpoint{}, false
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	cp, ok, err := c.file.load(id)
	if err != nil {
		c.fail(fmt.Errorf("load checkpoint of log %s: %w", id, err))
		ref := c.file.where[id]
		return Checkpoint{Log: id, Index: ref.index, Mark: ref.mark}, true
	}
	return cp, ok
}

// Checkpoints lists the logs that have a durable checkpoint.
func (c *Checkpointer) Checkpoints() []LogID {
	c.turn.Lock()
	defer c.turn.Unlock()
	return c.file.logs()
}

// Register makes a log take part in rounds that begin from now on.
func (c *Checkpointer) Register(id LogID, s Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.sources[id]; taken {
		panic("storage: log " + id.String() + " is registered twice with the checkpointer")
	}
	delete(c.forget, id)
	c.sources[id] = &registration{source: s}
}

// Unregister takes a log out; its checkpoint stays. No callback of its source
// runs after Unregister has returned.
func (c *Checkpointer) Unregister(id LogID) {
	c.mu.Lock()
	r := c.sources[id]
	delete(c.sources, id)
	c.mu.Unlock()
	if r == nil {
		return
	}
	r.mu.Lock()
	r.gone = true
	r.mu.Unlock()
}

// Forget drops a log's checkpoint with the next round. Call it after
// Unregister; once a Sync has returned, Engine.Drop may delete the log.
func (c *Checkpointer) Forget(id LogID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget[id] = struct{}{}
}

// Note tells how many bytes were appended to a store. It neither blocks nor
// allocates.
func (c *Checkpointer) Note(bytes int) {
	if c.noted.Add(int64(bytes)) < c.opt.EveryBytes {
		return
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Run starts rounds by bytes and by time until ctx ends. It returns the first
// I/O error, nil when ctx ended.
func (c *Checkpointer) Run(ctx context.Context) error {
	ticks := c.opt.Ticks
	if ticks == nil {
		t := time.NewTicker(c.opt.Every)
		defer t.Stop()
		ticks = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
		case <-c.kick:
		}
		err := c.Sync(ctx)
		switch {
		case err == nil, ctx.Err() != nil:
		case errors.Is(err, ErrClosed):
			return nil
		default:
			return err
		}
	}
}

// Sync returns when one full round that began after the call has ended. An
// error other than ctx's is final.
func (c *Checkpointer) Sync(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return fmt.Errorf("sync checkpoints: %w", ErrClosed)
	}
	r := c.joinLocked()
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// joinLocked returns the round that has not begun, starting one if need be.
func (c *Checkpointer) joinLocked() *round {
	if c.next == nil {
		c.next = &round{done: make(chan struct{})}
		c.rounds.Add(1)
		go c.lead(c.next)
	}
	return c.next
}

// Close runs a final round and closes the file.
func (c *Checkpointer) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	r := c.joinLocked()
	c.mu.Unlock()
	<-r.done
	c.rounds.Wait()
	c.turn.Lock()
	defer c.turn.Unlock()
	if err := c.file.close(); err != nil && r.err == nil {
		return fmt.Errorf("close checkpoints: %w", err)
	}
	return r.err
}

// lead waits for the running round to end and runs the next one.
func (c *Checkpointer) lead(r *round) {
	defer c.rounds.Done()
	c.turn.Lock()
	defer c.turn.Unlock()

	c.mu.Lock()
	c.next = nil // from here on callers wait for the round after this one
	c.noted.Store(0)
	regs := make([]*registration, 0, len(c.sources))
	for _, reg := range c.sources {
		regs = append(regs, reg)
	}
	gone := make([]LogID, 0, len(c.forget))
	for id := range c.forget {
		gone = append(gone, id)
	}
	c.mu.Unlock()

	r.err = c.run(regs, gone)
	close(r.done)
}

type captured struct {
	reg        *registration
	checkpoint Checkpoint
}

func (c *Checkpointer) run(regs []*registration, gone []LogID) error {
	if c.fatal != nil {
		return c.fatal
	}
	began := time.Now()
	var taken []captured
	for _, reg := range regs {
		reg.mu.Lock()
		if reg.gone {
			reg.mu.Unlock()
			continue
		}
		cp, err := reg.source.Capture()
		reg.mu.Unlock()
		switch {
		case errors.Is(err, ErrUnchanged):
		case err != nil:
			c.stats.failures.Add(1)
			c.opt.Logger.Warn().Err(err).Stringer("log", cp.Log).Msg("left a log out of the checkpoint")
		case c.file.same(cp):
		default:
			taken = append(taken, captured{reg, cp})
		}
	}

	sync := func() error {
		if err := c.engine.Sync(); err != nil {
			return fmt.Errorf("sync engine: %w", err)
		}
		return nil
	}
	write := func() error {
		checkpoints := make([]Checkpoint, len(taken))
		for i := range taken {
			checkpoints[i] = taken[i].checkpoint
		}
		if err := c.file.write(checkpoints, gone); err != nil {
			return fmt.Errorf("write checkpoints: %w", err)
		}
		return nil
	}
	steps := []func() error{sync, write}
	if c.opt.hooks.writeFirst {
		steps = []func() error{write, sync}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			c.fail(err)
			return err
		}
	}

	c.mu.Lock()
	for _, id := range gone {
		delete(c.forget, id)
	}
	c.mu.Unlock()
	for _, t := range taken {
		t.reg.mu.Lock()
		if !t.reg.gone {
			t.reg.source.Durable(t.checkpoint)
		}
		t.reg.mu.Unlock()
	}
	c.stats.rounds.Add(1)
	c.stats.frames.Add(int64(len(taken)))
	c.stats.nanos.Add(int64(time.Since(began)))
	return nil
}

// fail makes the first I/O error final. A failed fsync may have dropped the
// pages it could not write and marked them clean: a retry would succeed and lie.
func (c *Checkpointer) fail(err error) {
	if c.fatal != nil {
		return
	}
	c.fatal = err
	c.opt.Logger.Error().Err(err).Msg("checkpoint failed; nothing can be made durable any more")
	if c.opt.OnFatal != nil {
		c.opt.OnFatal(err)
	}
}

// Figures reports the checkpointer's metrics by name, in base units.
func (c *Checkpointer) Figures() map[string]float64 {
	return map[string]float64{
		"rounds_total":           float64(c.stats.rounds.Load()),
		"frames_total":           float64(c.stats.frames.Load()),
		"capture_failures_total": float64(c.stats.failures.Load()),
		"seconds_total":          float64(c.stats.nanos.Load()) / 1e9,
	}
}
