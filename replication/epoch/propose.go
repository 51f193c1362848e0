package epoch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// proposal is one caller of Propose.
type proposal struct {
	ctx    context.Context
	change func(*config.Config) error
	done   chan answer

	mu   sync.Mutex // held while change runs
	gone bool       // the caller has returned
}

type answer struct {
	config *config.Config
	err    error
}

// run runs the change, unless nobody waits for it any more.
func (p *proposal) run(next *config.Config) (err error, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, true
	}
	return p.change(next), false
}

func (p *proposal) answer(c *config.Config, err error) { p.done <- answer{c, err} }

// attempt is a value that changes made of one base, on its way through the machine.
type attempt struct {
	base    uint64
	config  *config.Config
	value   []byte
	took    []*proposal
	ticket  uint64
	settled chan settlement
	release func() // of what watches the callers
}

// settlement is how an attempt ended: chosen, lost, or not begun.
type settlement struct {
	result paxos.Result
	err    error
}

// settle is told of the attempt's outcomes, by the owner. The callers wait until the
// epoch is done; the planner goes on when it is chosen.
func (a *attempt) settle(result paxos.Result, err error) {
	if result == paxos.Done {
		a.release()
		for _, p := range a.took {
			p.answer(a.config, nil)
		}
		return
	}
	a.settled <- settlement{result, err}
}

// Propose decides the next configuration.
func (c *Cluster) Propose(ctx context.Context, change func(*config.Config) error) (*config.Config, error) {
	if ctx.Err() != nil {
		return c.Current(), c.gone(ctx, "propose epoch")
	}
	p := &proposal{ctx: ctx, change: change, done: make(chan answer, 1)}
	select {
	case c.proposals <- p:
	case <-c.stopped:
		return c.Current(), c.gone(ctx, "propose epoch")
	case <-ctx.Done():
		return c.Current(), c.gone(ctx, "propose epoch")
	}
	select {
	case a := <-p.done:
		return a.config, a.err
	case <-c.stopped:
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	select {
	case a := <-p.done:
		return a.config, a.err
	default:
		return c.Current(), c.gone(ctx, "propose epoch, which may still be decided")
	}
}

// plan is the planner's goroutine.
func (c *Cluster) plan() {
	for {
		select {
		case p := <-c.proposals:
			batch := []*proposal{p}
			for len(batch) < maxShared && len(c.proposals) > 0 {
				batch = append(batch, <-c.proposals)
			}
			c.decide(batch)
		case <-c.stopped:
			return
		}
	}
}

// decide has the changes of a batch decided, in as few epochs as it takes.
func (c *Cluster) decide(batch []*proposal) {
	waiting, release := together(c.ctx, batch)
	defer release()
	for len(batch) > 0 {
		if !c.giveWay(waiting) {
			return
		}
		base := c.Current()
		a, later, failed := c.shape(base, batch)
		if len(failed) > 0 {
			// What a change found wrong may be so only on an old base.
			newest, err := c.Read(waiting)
			if err != nil {
				for _, p := range batch {
					p.answer(base, fmt.Errorf("propose epoch %d: %w", base.Epoch+1, err))
				}
				return
			}
			if newest.Epoch != base.Epoch {
				continue
			}
			for _, f := range failed {
				f.p.answer(base, f.err)
			}
		}
		batch = later
		if a == nil {
			continue
		}
		if s, ok := c.attempt(a); !ok {
			continue // nobody waits for these any more
		} else if s.err != nil && !errors.Is(s.err, paxos.ErrBusy) {
			for _, p := range a.took {
				p.answer(base, s.err)
			}
		} else if s.result != paxos.Chosen {
			batch = append(a.took, later...)
			if s.err != nil && !c.sleep(waiting, c.o.Times.Retry) {
				return
			}
		}
	}
}

// failure is a change that found something wrong.
type failure struct {
	p   *proposal
	err error
}

// shape runs the changes one on top of the other. One that fails on top of another is
// judged later, when that other is decided; one that fails on the base alone has
// failed.
func (c *Cluster) shape(base *config.Config, batch []*proposal) (a *attempt, later []*proposal, failed []failure) {
	next := base.Clone()
	next.Epoch++
	next.Previous = base.Hash()
	next.By, next.At, next.Change = c.o.Self.Name, c.o.Clock().UnixMilli(), ""
	if c.o.Self.Name == "" {
		if b := base.Broker(c.self.ID); b != nil {
			next.By = b.Name
		}
	}
	var took []*proposal
	for _, p := range batch {
		trial := next.Clone()
		trial.Change = ""
		err, gone := p.run(trial)
		if gone {
			continue
		}
		if err == nil {
			trial.Change = joined(next.Change, trial.Change)
			if err = trial.Follows(base); err == nil {
				err = trial.Validate()
			}
			if err != nil {
				err = fmt.Errorf("propose epoch %d: %w", next.Epoch, err)
			}
		}
		switch {
		case err == nil:
			next = trial
			took = append(took, p)
		case len(took) > 0:
			later = append(later, p)
		default:
			failed = append(failed, failure{p, err})
		}
	}
	if len(took) == 0 {
		return nil, later, failed
	}
	value, err := next.Encode()
	if err != nil {
		if len(took) > 1 { // too much for one epoch
			a, more, failures := c.shape(base, took[:1])
			return a, append(append(more, took[1:]...), later...), append(failed, failures...)
		}
		return nil, later, append(failed, failure{took[0], fmt.Errorf("propose epoch %d: %w", next.Epoch, err)})
	}
	return &attempt{base: base.Epoch, config: next, value: value, took: took, settled: make(chan settlement, 1)}, later, failed
}

func joined(a, b string) string {
	if a != "" && b != "" {
		a += "; "
	}
	a += b
	if len(a) > config.MaxText {
		a = a[:config.MaxText]
	}
	return a
}

// attempt hands a value to the owner and waits until it is chosen or lost; false
// when the store stops or nobody waits any more.
func (c *Cluster) attempt(a *attempt) (settlement, bool) {
	ctx, release := together(c.ctx, a.took)
	var begun atomic.Bool
	unwatch := context.AfterFunc(ctx, func() {
		if begun.Load() {
			c.order(context.Background(), func(w *owner) { w.abandon(a.ticket) })
		}
	})
	a.release = func() { unwatch(); release() }
	if !c.order(ctx, func(w *owner) { w.propose(a); begun.Store(true) }) {
		a.release()
		return settlement{}, false
	}
	select {
	case s := <-a.settled:
		if s.result != paxos.Chosen {
			a.release()
		}
		return s, true
	case <-ctx.Done():
		a.release()
		c.order(context.Background(), func(w *owner) { w.abandon(a.ticket) })
		return settlement{}, false
	}
}

// giveWay waits a little for each live broker of a lower id, so that brokers that
// want the same at the same time don't race. It returns false when nobody waits.
func (c *Cluster) giveWay(ctx context.Context) bool {
	cur, rank := c.Current(), 0
	for i := range cur.Brokers {
		if b := &cur.Brokers[i]; b.ID < c.self.ID && b.State != config.Dead && c.o.Alive(b.ID) {
			rank++
		}
	}
	return c.sleep(ctx, time.Duration(min(rank, config.MaxCouncil))*c.o.Times.Rank)
}

func (c *Cluster) sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// together is a context that ends with the store, or when all callers' have ended.
func together(store context.Context, callers []*proposal) (context.Context, func()) {
	ctx, cancel := context.WithCancel(store)
	var left atomic.Int64
	left.Store(int64(len(callers)))
	stops := make([]func() bool, 0, len(callers))
	for _, p := range callers {
		stops = append(stops, context.AfterFunc(p.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		}))
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// keepCouncil has the soft leader change a seat of the council where it has too few or
// too many for the number of brokers, or one whose holder is dead or drains.
func (w *owner) keepCouncil() {
	cur := w.Current()
	if cur.Epoch == 0 || w.Leader() != w.self.ID || !names(cur, w.self) || !w.seating.CompareAndSwap(false, true) {
		return
	}
	fit := map[uint64]bool{w.self.ID: true}
	for id, epoch := range w.told {
		fit[id] = fit[id] || epoch >= cur.Epoch && w.o.Alive(id)
	}
	trial := *cur
	if !trial.StepCouncil(func(id uint64) bool { return fit[id] }) {
		w.seating.Store(false)
		return
	}
	w.running.Go(func() {
		defer w.seating.Store(false)
		ctx, cancel := context.WithTimeout(w.ctx, seatTimeout)
		defer cancel()
		_, _ = w.Propose(ctx, func(next *config.Config) error {
			if next.Epoch != cur.Epoch+1 || !next.StepCouncil(func(id uint64) bool { return fit[id] }) {
				return ErrUnchanged
			}
			next.Change = fmt.Sprintf("council changes from %v to %v", cur.Council, next.Council)
			return nil
		})
	})
}

const seatTimeout = 10 * time.Second
