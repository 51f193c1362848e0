package broker

import (
	"testing"
	"time"
)

func TestOutflow(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	p := newOutflow(1 << 20)
	p.now = func() time.Time { return now }
	waited := time.Duration(0)
	for range 64 { // 64 pieces of 64 KiB are 4 s
		d := p.take(64 << 10)
		if d > 0 {
			now = now.Add(d)
			waited += d
		}
	}
	if waited < 3900*time.Millisecond || waited > 4*time.Second {
		t.Errorf("4 MiB at 1 MiB/s took %v", waited)
	}
	now = now.Add(time.Hour) // what wasn't used isn't saved up
	if d := p.take(1 << 20); d < 900*time.Millisecond {
		t.Errorf("after a pause 1 MiB waits for %v", d)
	}
	if d := newOutflow(-1).take(1 << 30); d != 0 {
		t.Errorf("no limit waits for %v", d)
	}
	stop := make(chan struct{})
	close(stop)
	if p.wait(stop, 1<<30) {
		t.Error("a copy that was stopped went on")
	}
}

func BenchmarkOutflow(b *testing.B) {
	b.ReportAllocs()
	p := newOutflow(1 << 50)
	stop := make(chan struct{})
	for b.Loop() {
		p.wait(stop, 64<<10)
	}
}
