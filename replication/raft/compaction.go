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
type cuts struct {
	h    *Host
	mu   sync.Mutex
	due  map[*replica]struct{}
	wake chan struct{}

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
	part := func(n uint64) uint64 { return n - n/4*spread/255 }
	return cutLimits{
		bytes: int64(part(uint64(c.h.config.SnapshotBytes))),
		count: part(c.h.config.SnapshotCount),
	}
}

// seed makes up for what was applied since the last cut before a restart, which isn't
// recorded: half a limit, or a broker that is restarted often would never cut.
func (c *cuts) seed(p *replica) {
	p.machine.bytes.Add(p.machine.limits.bytes / 2)
	p.machine.count.Add(p.machine.limits.count / 2)
}

// ask puts a replica in the queue, which is as long as there are replicas.
func (c *cuts) ask(p *replica) {
	c.mu.Lock()
	_, asked := c.due[p]
	c.due[p] = struct{}{}
	c.mu.Unlock()
	if !asked {
		c.notify()
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
		for p := c.take(); p != nil; p = c.take() {
			c.cut(p)
			if stopped(c.h.stop) {
				return
			}
		}
	}
}

func (c *cuts) cut(p *replica) {
	start := time.Now()
	m := p.machine
	bytes, count := m.bytes.Load(), m.count.Load()
	if bytes < m.limits.bytes && count < m.limits.count || p.isClosed() {
		return // it was cut since it asked
	}
	retain := uint64(float64(count) * min(1, float64(c.h.config.RetainBytes)/float64(max(bytes, 1))))
	ctx, cancel := context.WithTimeout(context.Background(), cutTimeout)
	defer cancel()
	halt, unhook := c.h.whileRunning(ctx)
	defer unhook()
	err := c.request(p, retain, halt)
	// Whether it worked or not, the next try comes when as much was applied again.
	m.bytes.Add(-bytes)
	m.count.Add(^(count - 1))
	switch {
	case err == nil:
		c.done.Add(1)
		c.spent.Add(int64(time.Since(start)))
		c.h.logger.Debug().Uint64("log", p.Shard).Int64("bytes", bytes).Uint64("entries", count).
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
