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

const (
	// outflowBurst is for how long a copy that stood still may catch up.
	outflowBurst = 50 * time.Millisecond
	// outflowPortion: one answer takes at most about this part of a second.
	outflowPortion = 4
)

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
	p.charge(now, n)
	return p.free.Sub(now)
}

func (p *outflow) charge(now time.Time, n int) {
	if earliest := now.Add(-outflowBurst); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
}

// wait lets n bytes through in their turn; false when stop closes first.
func (p *outflow) wait(stop <-chan struct{}, n int) bool {
	return passAfter(stop, p.take(n))
}

// passAfter waits for d; false when stop closes first.
func passAfter(stop <-chan struct{}, d time.Duration) bool {
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

// admit lets n bytes through once those before them have taken their time: what they take themselves is waited for by
// those that come after. So whoever asks hears something within limit, however low the rate; where it would take longer
// nothing is let through and nothing counted.
func (p *outflow) admit(stop <-chan struct{}, n int, limit time.Duration) bool {
	p.mu.Lock()
	d := time.Duration(0)
	if p.perSecond > 0 {
		now := p.now()
		if d = p.free.Sub(now); d > limit {
			p.mu.Unlock()
			return false
		}
		p.charge(now, n)
	}
	p.sum += int64(n)
	p.mu.Unlock()
	return passAfter(stop, d)
}

// late says that admit would refuse at the moment.
func (p *outflow) late(limit time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.perSecond > 0 && p.free.Sub(p.now()) > limit
}

// portion is how much of n bytes one answer should have, so that a low rate goes in small steps.
func (p *outflow) portion(n int) int {
	if p.perSecond == 0 {
		return n
	}
	return int(min(int64(n), max(p.perSecond/outflowPortion, 1)))
}

// copied is how many bytes were let through.
func (p *outflow) copied() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum
}
