package broker

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// readyLook is how often what nobody tells is looked at while not ready.
const readyLook = 20 * time.Millisecond

// linkWait is how long a broker that starts waits for links to others before it
// is ready without them.
const linkWait = 1500 * time.Millisecond

// readiness is whether the broker serves: its listeners are open, the epoch was
// carried out, and every partition here has had a leader once or has said why
// it can't. Once ready it stays so until it stops.
type readiness struct {
	ready     atomic.Bool
	listening atomic.Bool
	done      chan struct{} // closed when ready
	kicked    chan struct{}
}

func newReadiness() *readiness {
	return &readiness{done: make(chan struct{}), kicked: make(chan struct{}, 1)}
}

func (r *readiness) kick() {
	select {
	case r.kicked <- struct{}{}:
	default:
	}
}

// watchReady turns the broker ready.
func (b *Broker) watchReady(ctx context.Context) {
	if !b.carrier.wait(ctx, 0) {
		return
	}
	// A leader that has yet to commit its first entry is told by nobody.
	look := time.NewTicker(readyLook)
	defer look.Stop()
	led := map[*slot]bool{}
	for b.notReady(led) != "" {
		select {
		case <-ctx.Done():
			return
		case <-b.ready.kicked:
		case <-look.C:
		}
	}
	b.ready.ready.Store(true)
	close(b.ready.done)
	b.c.Logger.Info().Dur("after", time.Since(b.started)).Msg("broker is ready")
}

// notReady says what is missing, or "". It remembers in led who has led.
func (b *Broker) notReady(led map[*slot]bool) string {
	if why := b.waiting.Load(); why != nil {
		return *why
	}
	if !b.ready.listening.Load() {
		return "listeners are not open yet"
	}
	if b.peers.mesh != nil && time.Since(b.bootstrapped) < linkWait {
		for _, p := range b.peers.mesh.Peers() {
			if !p.Reachable {
				return "the links to other brokers are being opened"
			}
		}
	}
	missing, behind, first := 0, 0, ""
	for _, t := range b.routes.Load().byID {
		for _, s := range t.parts {
			if !s.local || led[s] || s.problem.Load() != nil || s.joining() {
				continue
			}
			p := s.partition.Load()
			if p != nil && (p.Leading() || s.lead.load().broker != b.self() && s.lead.load().broker != 0) {
				if s.current.Load() {
					led[s] = true
				} else {
					behind++
				}
				continue
			}
			if missing == 0 {
				first = fmt.Sprintf("%s/%d", s.topic, s.number)
			}
			missing++
		}
	}
	if missing > 0 {
		return fmt.Sprintf("%d partitions wait for a leader, %s among them", missing, first)
	}
	if behind > 0 {
		return fmt.Sprintf("%d replicas catch up with their leaders", behind)
	}
	return ""
}

// Ready waits until the broker serves, or ctx ends.
func (b *Broker) Ready(ctx context.Context) error {
	select {
	case <-b.ready.done:
		return nil
	case <-b.done:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("wait for the broker: %w: %s", ctx.Err(), b.NotReady())
	}
}

// NotReady says why the broker isn't ready, or "" when it is.
func (b *Broker) NotReady() string {
	switch {
	case b.stopping.Load():
		return "the broker is stopping"
	case b.ready.ready.Load():
		return ""
	}
	if why := b.notReady(map[*slot]bool{}); why != "" {
		return why
	}
	return "partitions are being opened"
}
