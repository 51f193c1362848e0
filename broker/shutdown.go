package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// fatal ends the broker after an I/O error: what the disk holds is no longer
// known, so nothing is acked any more. The embedding program is told; it should
// exit. Data is safe up to the last ack.
func (b *Broker) fatal(err error) {
	b.failOnce.Do(func() {
		b.acks.mute()
		b.stopping.Store(true)
		b.failed.Store(&err)
		b.c.Logger.Error().Err(err).Msg("the broker can't go on: its disk failed")
		if b.c.OnFatal != nil {
			b.c.OnFatal(err)
		}
		if !b.ready.listening.Load() {
			return // Start fails and cleans up itself
		}
		go func() { // ends with the broker: Close waits for the same work
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = b.Close(ctx)
		}()
	})
}

// Close stops the broker. When ctx ends first it returns an error that names
// the step that took too long; the rest is then left to the process's end, and
// nothing acked is lost by it.
func (b *Broker) Close(ctx context.Context) error {
	b.closeOnce.Do(func() {
		b.stopping.Store(true)
		first := "begin"
		b.stepName.Store(&first)
		go func() { // waited for by closed
			b.closeErr = b.shut(ctx)
			close(b.closed)
			close(b.done)
		}()
	})
	select {
	case <-b.closed:
		return b.closeErr
	case <-ctx.Done():
		select {
		case <-b.closed:
			return b.closeErr
		default:
			return fmt.Errorf("close broker: %w at the step: %s", ctx.Err(), *b.stepName.Load())
		}
	}
}

// shut undoes start, in steps. It copes with a start that ended half way.
func (b *Broker) shut(ctx context.Context) error {
	var errs []error
	step := func(name string, f func() error) {
		began := time.Now()
		b.stepName.Store(&name)
		if err := f(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		if took := time.Since(began); took > time.Second {
			b.c.Logger.Info().Str("step", name).Dur("took", took).Msg("stopping")
		}
	}
	// 1. Others take over what this broker leads, while it still serves; then
	// clients are told, and front ends let them go and end.
	if b.ready.listening.Load() && b.failed.Load() == nil {
		step("hand over leadership", func() error { b.handOverAll(ctx); return nil })
	}
	b.infoMu.Lock()
	b.lameDuck = true
	close(b.changed)
	b.changed = make(chan struct{})
	b.infoMu.Unlock()
	step("stop serving", func() error {
		b.serveCancel()
		if !b.ready.listening.Load() {
			for _, f := range b.fronts {
				_ = f.listener.Close()
			}
		}
		if b.httpServer != nil {
			if err := b.httpServer.Shutdown(ctx); err != nil {
				_ = b.httpServer.Close()
			}
		}
		b.serving.Wait()
		return nil
	})
	// 2. What clients have asked for and nobody waits for any more.
	step("end requests", func() error {
		b.cancel()
		b.wg.Wait()
		b.closeForwarders()
		b.resends.close()
		return nil
	})
	// 3. No epoch is carried out any more; background work ends.
	step("end background work", func() error {
		b.carryCancel()
		b.carrying.Wait()
		b.bgCancel()
		b.background.Wait()
		return nil
	})
	// 4. A last checkpoint, so that the next start has nothing to apply again;
	// then the partitions answer what is under way and close.
	if b.checkpoints != nil && b.failed.Load() == nil {
		step("checkpoint", func() error { return b.checkpoints.Sync(ctx) })
	}
	step("close partitions", func() error { b.carrier.closeAll(); return nil })
	if b.peers.mesh != nil {
		step("close links to other brokers", b.peers.mesh.Close)
	} else if b.peerListener != nil {
		_ = b.peerListener.Close()
	}
	// 5. Raft, then what it applied to.
	if b.host != nil {
		step("close raft", b.host.Close)
	} else if b.raftListener != nil {
		_ = b.raftListener.Close()
	}
	if b.checkpoints != nil {
		step("close checkpoints", b.checkpoints.Close)
	}
	if b.engine != nil {
		step("close store", b.engine.Close)
	}
	if b.epochs != nil {
		step("close epochs", b.epochs.Close)
	}
	// 6. The directory is free for another.
	if b.dir != nil {
		step("unlock data directory", b.dir.close)
	}
	return errors.Join(errs...)
}
