package mesh

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// link keeps one connection to a peer up. One goroutine at a time owns it: open
// ends the one before, which the next one waits for.
type link struct {
	m    *Mesh
	peer *peer
	kind kind

	up       atomic.Pointer[dialled] // nil while it is down
	connects atomic.Uint64

	mu     sync.Mutex
	cancel context.CancelFunc
	done   chan struct{}
	since  time.Time // of the present state
	err    error     // why it is down
	// stranger is since when the peer says that it doesn't know this broker; told: that was logged as an error.
	stranger time.Time
	told     bool
}

// open starts the link, or has it begin anew. Inside the mesh's lock.
func (l *link) open() {
	ctx, cancel := context.WithCancel(l.m.ctx)
	l.mu.Lock()
	before := l.done
	if l.cancel != nil {
		l.cancel()
	}
	done := make(chan struct{})
	l.cancel, l.done = cancel, done
	if l.since.IsZero() {
		l.since = time.Now()
	}
	l.mu.Unlock()
	l.m.wg.Add(1)
	go func() {
		defer l.m.wg.Done()
		defer close(done)
		defer cancel()
		if before != nil {
			<-before
		}
		l.run(ctx)
	}()
}

// stop ends the link.
func (l *link) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel()
	}
}

// run dials until ctx ends.
func (l *link) run(ctx context.Context) {
	wait := l.m.c.RetryMin
	for ctx.Err() == nil {
		target := *l.peer.named.Load()
		d, err := l.m.dial(ctx, l.kind, target.Address, target.Broker, target.Incarnation, l.peer)
		if err == nil {
			begun := time.Now()
			l.raise(d)
			err = d.serve(ctx)
			l.lower(d, err)
			if time.Since(begun) > l.m.c.RetryMax { // else it is one of those that come up only to go down
				wait = l.m.c.RetryMin
			}
		} else if ctx.Err() == nil {
			l.failed(err)
		}
		// Half of it at random, so that brokers that lost each other don't meet
		// over and over again at the same moment.
		pause := time.NewTimer(wait/2 + rand.N(wait/2+1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
		wait = min(2*wait, l.m.c.RetryMax)
	}
}

// raise puts a connection to use. On a data link the other side learns first
// what subscribers of this broker want, and hears of changes before anything
// that was sent after them: a reply never overtakes the interest in it.
func (l *link) raise(d *dialled) {
	if l.kind == kindData {
		d.unfollow = l.m.c.Router.Follow(d.tellInterest)
		d.followed.Store(true)
	}
	l.up.Store(d)
	l.connects.Add(1)
	l.mu.Lock()
	l.since, l.err, l.stranger, l.told = time.Now(), nil, time.Time{}, false
	l.mu.Unlock()
	l.event().Msg("peer link up")
	l.tell(true)
}

func (l *link) lower(d *dialled, err error) {
	l.up.Store(nil)
	if d.unfollow != nil {
		d.unfollow()
	}
	l.mu.Lock()
	l.since, l.err = time.Now(), err
	l.mu.Unlock()
	l.event().AnErr("reason", err).Msg("peer link down")
	l.tell(false)
	if l.kind == kindData {
		l.m.lost(l.peer.id)
	}
}

// strangerGrace is how long a peer may not know this broker before that is worth an error: the epoch that names
// it reaches one before the other, as a cluster forms or changes.
const strangerGrace = 5 * time.Second

func (l *link) failed(err error) {
	var refused *RefusedError
	unknown := errors.As(err, &refused) && refused.Reason == RefusedIncarnation
	l.mu.Lock()
	news := l.err == nil || l.err.Error() != err.Error()
	if l.err = err; !unknown {
		l.stranger = time.Time{}
	} else if l.stranger.IsZero() {
		l.stranger = time.Now()
	}
	early := unknown && time.Since(l.stranger) < strangerGrace
	if unknown && !early && !l.told {
		news = true
	}
	l.told = unknown && !early
	l.mu.Unlock()
	switch {
	case early:
		l.m.log.Debug().Uint64("broker", l.peer.id).Str("link", string(l.kind)).Err(err).Msg("peer does not know this broker yet")
		return
	case !news:
		return
	}
	if refused != nil {
		l.m.log.Error().Uint64("broker", l.peer.id).Str("link", string(l.kind)).Str("reason", string(refused.Reason)).
			Err(err).Msg("peer link refused")
		return
	}
	l.m.log.Warn().Uint64("broker", l.peer.id).Str("link", string(l.kind)).Err(err).Msg("peer cannot be reached")
}

func (l *link) event() *zerolog.Event {
	p := l.peer.named.Load()
	return l.m.log.Info().Uint64("broker", p.Broker).Str("name", p.Name).Str("address", p.Address).Str("link", string(l.kind))
}

func (l *link) tell(up bool) {
	if f := l.m.onPeer.Load(); f != nil && l.kind == kindControl {
		(*f)(*l.peer.named.Load(), up)
	}
}
