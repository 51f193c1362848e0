package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
)

const (
	// cutsAtOnce: a cut makes the state machine sync and costs about eleven
	// fsyncs of dragonboat's own, some under a lock of the whole process.
	cutsAtOnce = 2
	// cutTimeout is when a cut is given up; it may still be carried out.
	cutTimeout = 2 * time.Minute
)

// cuts keeps the Raft logs short. A replica's log grows with what it applies, so the cut
// follows bytes as much as entries. It is dragonboat's snapshot, which for a state machine on disk is
// a note of the index that was synced, and the removal of entries before it.
//
// Beside each log's own limit there is one for all of them together, or many logs that
// fill slowly would fill the disk. When it is reached, the longest is cut.
type cuts struct {
	h    *Host
	mu   sync.Mutex
	due  map[*replica]struct{}
	wake chan struct{}

	total   atomic.Int64 // bytes that all replicas applied since their last cuts
	pressed atomic.Bool  // total is above its limit, and the longest log is not cut yet

	done, failed atomic.Uint64
	spent        atomic.Int64
}

func newCuts(h *Host) *cuts {
	return &cuts{h: h, due: make(map[*replica]struct{}), wake: make(chan struct{}, cutsAtOnce)}
}

// limits of one log: between three quarters of the configured ones and all, by its id, so that logs
// that grow alike are not cut together.
func (c *cuts) limits(shard uint64) cutLimits {
	spread := shard * 0x9e3779b97f4a7c15 >> 56 // 0..255
	part := func(n int64) int64 { return n - n/4*int64(spread)/255 }
	return cutLimits{bytes: part(c.h.config.SnapshotBytes), count: part(c.h.config.SnapshotCount)}
}

// seed makes up for what was applied since the last cut before a restart, which isn't
// recorded: half a limit, or a broker that is restarted often would never cut. It doesn't
// count towards the total, where it would be mostly wrong.
func (c *cuts) seed(p *replica) {
	p.machine.seed.Store(p.machine.limits.bytes / 2)
	p.machine.count.Add(p.machine.limits.count / 2)
}

// grown is told of each batch that p applied.
func (c *cuts) grown(p *replica, size int64) {
	m := p.machine
	if m.bytes.Load()+m.seed.Load() >= m.limits.bytes || m.count.Load() >= m.limits.count {
		c.ask(p)
	}
	if c.total.Add(size) >= c.h.config.LogBytes && c.pressed.CompareAndSwap(false, true) {
		c.notify()
	}
}

// gone takes a closed replica out of the total.
func (c *cuts) gone(p *replica) { c.total.Add(-p.machine.bytes.Swap(0)) }

// ask puts a replica in the queue, which is as long as there are replicas. It is called with each
// batch that is applied beyond the limit, until the cut is done.
func (c *cuts) ask(p *replica) {
	if !p.cutting.CompareAndSwap(false, true) {
		return
	}
	c.mu.Lock()
	c.due[p] = struct{}{}
	c.mu.Unlock()
	c.notify()
}

// longest queues the log that grew most since its last cut.
func (c *cuts) longest() {
	var most *replica
	c.h.mu.Lock()
	for _, p := range c.h.replicas {
		if p.launched && !p.cutting.Load() && p.machine.bytes.Load() > 0 &&
			(most == nil || p.machine.bytes.Load() > most.machine.bytes.Load()) {
			most = p
		}
	}
	c.h.mu.Unlock()
	if most != nil {
		c.ask(most)
	}
}

func (c *cuts) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cuts) take() *replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.due {
		delete(c.due, p)
		if len(c.due) > 0 {
			c.notify()
		}
		return p
	}
	return nil
}

func (c *cuts) run() {
	defer c.h.owned.Done()
	for {
		select {
		case <-c.h.stop:
			return
		case <-c.wake:
		}
		for {
			if c.pressed.Load() && c.total.Load() >= c.h.config.LogBytes {
				c.longest()
			}
			p := c.take()
			if p == nil {
				c.pressed.Store(false)
				break
			}
			c.cut(p)
			if stopped(c.h.stop) {
				return
			}
		}
	}
}

func (c *cuts) cut(p *replica) {
	defer p.cutting.Store(false)
	if p.isClosed() {
		return
	}
	start := time.Now()
	m := p.machine
	// Whether it works or not, the next try comes when as much was applied again.
	bytes, count := m.bytes.Swap(0), m.count.Swap(0)
	c.total.Add(-bytes)
	m.seed.Store(0)
	retain := uint64(float64(count) * min(1, float64(c.h.config.RetainBytes)/float64(max(bytes, 1))))
	ctx, cancel := context.WithTimeout(context.Background(), cutTimeout)
	defer cancel()
	halt, unhook := c.h.whileRunning(ctx)
	defer unhook()
	err := c.request(p, retain, halt)
	switch {
	case err == nil:
		c.done.Add(1)
		c.spent.Add(int64(time.Since(start)))
		c.h.logger.Debug().Uint64("log", p.Shard).Int64("bytes", bytes).Int64("entries", count).
			Dur("took", time.Since(start)).Msg("raft log was cut")
	case p.isClosed() || stopped(c.h.stop):
	default:
		c.failed.Add(1)
		c.h.logger.Warn().Err(err).Uint64("log", p.Shard).Msg("raft log could not be cut")
	}
}

func (c *cuts) request(p *replica, retain uint64, halt <-chan struct{}) error {
	request, err := c.h.nh.RequestSnapshot(p.Shard, dragonboat.SnapshotOption{
		OverrideCompactionOverhead: true,
		CompactionOverhead:         retain,
	}, cutTimeout)
	if err != nil {
		return fmt.Errorf("request cut: %w", sentinel(err))
	}
	select {
	case result := <-request.ResultC():
		if !result.Completed() && !result.Rejected() { // rejected: nothing new to cut
			return errors.New("request cut: it was given up")
		}
		return nil
	case <-halt:
		return errors.New("request cut: no answer")
	}
}

const (
	// shortenKeep is how many entries Shorten keeps at most: a follower that lacks one fewer gets the entries, not a snapshot.
	shortenKeep = 1024
	// shortenLook is how often Shorten looks whether they are gone: dragonboat removes them after it has reported the cut.
	shortenLook = 5 * time.Millisecond
)

// Shorten implements replication.Cutting.
func (p *replica) Shorten(ctx context.Context) (cut bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("shorten log %d: %w", p.Shard, err)
		}
	}()
	first, last, err := p.span()
	if err != nil || first > 1 {
		return false, err
	}
	if !p.cutting.CompareAndSwap(false, true) {
		return false, errors.New("it is being cut already")
	}
	defer p.cutting.Store(false)
	m := p.machine
	bytes := m.bytes.Swap(0)
	m.count.Store(0)
	m.seed.Store(0)
	p.h.cuts.total.Add(-bytes)
	halt, unhook := p.h.whileRunning(ctx)
	defer unhook()
	if err := p.h.cuts.request(p, min(last/2, shortenKeep), halt); err != nil {
		return false, err
	}
	look := time.NewTicker(shortenLook)
	defer look.Stop()
	for first == 1 {
		select {
		case <-look.C:
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if first, _, err = p.span(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// span is the first and the last entry of the log.
func (p *replica) span() (first, last uint64, err error) {
	r, err := p.h.nh.GetLogReader(p.Shard)
	if err != nil {
		return 0, 0, sentinel(err)
	}
	first, last = r.GetRange()
	return first, last, nil
}

// Cut implements replication.Cutting.
func (p *replica) Cut(ctx context.Context) error {
	halt, unhook := p.h.whileRunning(ctx)
	defer unhook()
	if err := p.h.cuts.request(p, 0, halt); err != nil {
		return fmt.Errorf("cut log %d: %w", p.Shard, err)
	}
	at, err := p.h.cutAt(p.Shard, p.Replica.Replica)
	if err == nil && at == 0 {
		err = errors.New("there is no note of it")
	}
	if err != nil {
		return fmt.Errorf("cut log %d: %w", p.Shard, err)
	}
	return nil
}
