package broker

import (
	"sync"
	"time"
)

// outflow limits the bytes a second that copies of replicas take from this broker, all of them together, so that
// what is published doesn't wait for the disk and the network that they use. What a new replica reads from the Raft log's
// end isn't counted: it is what everybody else gets too.
type outflow struct {
	perSecond int64 // 0: no limit

	mu   sync.Mutex
	free time.Time // when the bytes that were let through so far will have taken their time
	now  func() time.Time
	sum  int64
}

// outflowBurst is for how long a copy that stood still may catch up.
const outflowBurst = 50 * time.Millisecond

func newOutflow(perSecond int64) *outflow {
	return &outflow{perSecond: max(perSecond, 0), now: time.Now}
}

// take returns for how long n bytes have to wait.
func (p *outflow) take(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum += int64(n)
	if p.perSecond == 0 {
		return 0
	}
	now := p.now()
	if earliest := now.Add(-outflowBurst); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
	return p.free.Sub(now)
}

// wait lets n bytes through in their turn; false when stop closes first.
func (p *outflow) wait(stop <-chan struct{}, n int) bool {
	d := p.take(n)
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}

// copied is how many bytes were let through.
func (p *outflow) copied() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum
}
