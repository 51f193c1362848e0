package partition

import (
	"sync"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

// TestTailWhileRead: what a reader got stays as it was, however much is pushed
// and dropped after it let go of the guard.
func TestTailWhileRead(t *testing.T) {
	t.Parallel()
	var mu sync.RWMutex
	tl := tail{budget: &TailBudget{}}
	push := func(i int64) {
		mu.Lock()
		defer mu.Unlock()
		tl.push(storage.Chunk{Base: i, Last: i, Data: make([]byte, 100<<10)})
		if i%50 == 49 {
			tl.shrink(minTailBytes)
		}
		if i%500 == 499 {
			tl.clear()
		}
	}
	const last = 5000
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for offset := int64(0); offset < last; {
				mu.RLock()
				got := tl.from(offset)
				newest := int64(-1)
				if n := len(tl.chunks); n > tl.head {
					newest = tl.chunks[n-1].Base
				}
				mu.RUnlock()
				for i := range got {
					if got[i].Base != got[0].Base+int64(i) || len(got[i].Data) != 100<<10 {
						t.Errorf("chunk %d after %d is %d with %d bytes", i, got[0].Base, got[i].Base, len(got[i].Data))
						return
					}
				}
				if newest >= 0 {
					offset = max(offset, newest-5)
				}
				if newest == last {
					return
				}
			}
		})
	}
	for i := int64(0); i <= last; i++ {
		push(i)
	}
	wg.Wait()
}
