package broker

import (
	"context"
	"errors"
	"time"

	"github.com/parleymq/parley/partition/storage"
)

// collectEvery is how often the store gives back what trims and purges have
// freed. A look that finds nothing costs next to nothing.
const collectEvery = 20 * time.Second

// collect runs until ctx ends.
func (b *Broker) collect(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		began := time.Now()
		err := b.engine.Collect(ctx.Done())
		switch took := time.Since(began); {
		case ctx.Err() != nil || errors.Is(err, storage.ErrClosed):
			return
		case err != nil:
			// A sync that failed is met by the next checkpoint, which ends the broker.
			b.c.Logger.Error().Err(err).Msg("space could not be given back")
		case took > time.Second:
			b.c.Logger.Debug().Dur("took", took).Msg("space was given back")
		}
	}
}
