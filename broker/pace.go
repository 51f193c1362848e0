package broker

import (
	"sync"
	"time"
)

// pace limits the bytes a second that copies of replicas take from this broker, all of them together, so that
// what is published doesn't wait for the disk and the network that they use. What a new replica reads from the Raft log's
// end isn't counted: it is what everybody else gets too.
type pace struct {
	perSecond int64 // 0: no limit

	mu   sync.Mutex
	free time.Time // when the bytes that were let through so far will have taken their time
	now  func() time.Time
	sum  int64
}

// paceBurst is for how long a copy that stood still may catch up.
const paceBurst = 50 * time.Millisecond

func newPace(perSecond int64) *pace { return &pace{perSecond: max(perSecond, 0), now: time.Now} }

// take returns for how long n bytes have to wait.
func (p *pace) take(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum += int64(n)
	if p.perSecond == 0 {
		return 0
	}
	now := p.now()
	if earliest := now.Add(-paceBurst); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
	return p.free.Sub(now)
}

// wait lets n bytes through in their turn; false when stop closes first.
func (p *pace) wait(stop <-chan struct{}, n int) bool {
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
func (p *pace) copied() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum
}
