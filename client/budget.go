package client

import (
	"context"
	"sync"
)

// budget bounds what a Producer holds.
type budget struct {
	maxBytes   int
	maxRecords int
	fail       bool // rather than wait

	mu      sync.Mutex
	bytes   int           // guarded by mu
	records int           // guarded by mu
	freed   chan struct{} // guarded by mu; non-nil while somebody waits, closed when room came
}

// take reserves room for one record, waiting for it or failing with ErrBufferFull.
func (b *budget) take(ctx context.Context, bytes int, stop <-chan struct{}) error {
	for {
		b.mu.Lock()
		if b.bytes+bytes <= b.maxBytes && b.records < b.maxRecords {
			b.bytes += bytes
			b.records++
			b.mu.Unlock()
			return nil
		}
		if b.fail {
			b.mu.Unlock()
			return ErrBufferFull
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return ErrClosed
		}
	}
}

func (b *budget) give(bytes, records int) {
	b.mu.Lock()
	b.bytes -= bytes
	b.records -= records
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
	b.mu.Unlock()
}
