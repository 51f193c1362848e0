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

// TestOutflowAdmits: at a rate that is low for what is asked for, whoever asks hears something soon and all get on; what is refused
// is not counted.
func TestOutflowAdmits(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	p := newOutflow(64 << 10)
	p.now = func() time.Time { return now }
	const piece, limit = 1 << 20, 2 * time.Second // 16 s each
	begin, sent, refused := now, 0, 0
	for sent < 4 {
		if !p.late(limit) && p.free.Before(now.Add(time.Millisecond)) {
			if !p.admit(nil, piece, limit) {
				t.Fatal("it refuses, and said that it wouldn't")
			}
			sent++
			continue
		}
		if p.late(limit) {
			if p.admit(nil, piece, limit) {
				t.Fatal("it lets through what has to wait for too long")
			}
			refused++
		}
		now = now.Add(time.Second)
	}
	if took := now.Sub(begin); took < 46*time.Second || took > 50*time.Second || p.copied() != 4*piece || refused == 0 {
		t.Errorf("4 pieces of 16 s each, the last one not waited for, took %v; %d bytes are counted, %d times it refused", took, p.copied(), refused)
	}
	if n := p.portion(1 << 20); n != 16<<10 {
		t.Errorf("a portion is %d bytes", n)
	}
	free := newOutflow(-1)
	if n := free.portion(1 << 20); n != 1<<20 || free.late(0) || !free.admit(nil, 1<<30, 0) {
		t.Errorf("no limit limits: a portion is %d bytes", n)
	}
	stop := make(chan struct{})
	close(stop)
	now = now.Add(15 * time.Second)
	if p.admit(stop, piece, limit) {
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
