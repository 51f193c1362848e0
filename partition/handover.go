package partition

import (
	"context"
	"time"
)

const (
	// handOverDrain is how long a hand-over waits for what is in flight.
	handOverDrain = 500 * time.Millisecond
	// handOverSettle is how long the followers then get to apply it: a replica that
	// has committed entries to apply does not take the leadership, and until
	// Raft gives up on it nothing is committed.
	handOverSettle = 20 * time.Millisecond
	handOverLook   = 2 * time.Millisecond
)

// HandOver asks for the leadership to move to another replica, and waits until
// this one leads no more or ctx ends. What is published meanwhile waits; it is
// refused as not_leader once the leadership has gone, and goes on otherwise.
func (p *Partition) HandOver(ctx context.Context, to uint64) error {
	if !p.Leading() {
		return p.notLeader()
	}
	a := p.a
	a.mu.Lock()
	a.held++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.held--
		a.wakeWaiting()
		a.pump()
		a.mu.Unlock()
	}()
	look := time.NewTicker(handOverLook)
	defer look.Stop()
	drained := time.Now().Add(handOverDrain)
	var quiet time.Time // since when nothing is in flight
	for {
		a.mu.Lock()
		idle := a.inFlight == 0
		a.mu.Unlock()
		switch now := time.Now(); {
		case !idle:
			quiet = time.Time{}
		case quiet.IsZero():
			quiet = now
		}
		if !quiet.IsZero() && time.Since(quiet) >= handOverSettle || time.Now().After(drained) || !p.Leading() {
			break
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := p.log.Transfer(ctx, to); err != nil {
		return err
	}
	for p.Leading() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
