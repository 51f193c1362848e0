package broker

import (
	"context"
	"sync"
	"time"

	"github.com/parleymq/parley/partition"
)

// stamps has the leaders here commit a barrier to each partition with the
// newest epoch that concerns it. Commands that were stamped with an older one are
// refused from there on, and acks say which epoch they go by.
type stamps struct {
	b    *Broker
	kick chan struct{}
}

const (
	// stampLook is how often a leader that has yet to commit its first entry is
	// looked at: nobody tells when it has.
	stampLook = 5 * time.Millisecond
	stampWait = 2 * time.Second
)

func (k *stamps) poke() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (k *stamps) run(ctx context.Context) {
	look := time.NewTicker(stampLook)
	defer look.Stop()
	tick := look.C
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.kick:
		case <-tick:
		}
		if tick = nil; k.work(ctx) {
			tick = look.C
		}
	}
}

// work stamps what can be stamped and reports whether something is left.
func (k *stamps) work(ctx context.Context) (more bool) {
	b := k.b
	local := b.local.Load()
	if local == nil {
		return false
	}
	room := make(chan struct{}, b.c.Limits.Openings)
	var wg sync.WaitGroup
	for _, s := range *local {
		p := s.partition.Load()
		if p == nil || s.lead.load().broker != b.self() {
			continue
		}
		if !p.Leading() {
			more = true
			continue
		}
		want, stamped := s.stamped(p, b)
		if stamped {
			continue
		}
		more = true
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, stampWait)
			defer cancel()
			if err := p.Barrier(ctx, want); err != nil && ctx.Err() == nil {
				b.c.Logger.Debug().Err(err).Str("topic", s.topic).Int32("partition", s.number).Uint64("epoch", want).
					Msg("partition could not be stamped with its epoch yet")
			}
		})
	}
	wg.Wait()
	if more {
		b.leaders.wake()
	}
	b.ready.kick()
	return more
}

// stamped says whether the partition goes by the newest epoch that concerns it.
func (s *slot) stamped(p *partition.Partition, b *Broker) (want uint64, ok bool) {
	have := p.Status().Barrier
	want = s.concern.Load()
	if want == 0 && have == 0 {
		want = max(b.routes.Load().config.Epoch, 1)
	}
	return want, have >= want
}
