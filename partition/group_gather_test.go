package partition

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/group"
)

// entries is how many entries the log has.
func (r *rig) entries() int {
	r.host.mu.Lock()
	defer r.host.mu.Unlock()
	return len(r.host.entries)
}

// ackSoon acks one record as nobody waits for it, and returns once the dispatcher knows of it.
func (r *rig) ackSoon(wg *sync.WaitGroup, answered *atomic.Int64, kind group.AckKind, d group.Delivery, offset int64) {
	r.t.Helper()
	pending := r.state("g").Pending
	wg.Go(func() {
		refused, err := r.p.AckGroupSoon(context.Background(), "g", "a", []group.AckItem{{Kind: kind, First: offset, Last: offset, Token: d.Token}})
		if err != nil || len(refused) > 0 {
			r.t.Error(refused, err)
		}
		answered.Add(1)
	})
	r.until("taken", func() bool { return r.state("g").Pending < pending })
}

// TestAcksGather: acks that nobody waits for share an entry, once the time for that is over. None is answered before it is
// committed, and what comes back, or is waited for, takes them along at once.
func TestAcksGather(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	began := time.Now()
	r := newRig(t, 1)
	r.clock = func() time.Time { return began.Add(time.Duration(ahead.Load()) * time.Millisecond) }
	r.open()
	r.fill(100)
	p := r.pull("g", "a", 100, 0, group.Options{Mode: group.Shared})
	d := p.Deliveries[0]
	var wg sync.WaitGroup
	var answered atomic.Int64
	before := r.entries()
	for off := range int64(20) {
		r.ackSoon(&wg, &answered, group.Ack, d, off)
	}
	if n, done := r.entries()-before, answered.Load(); n != 0 || done != 0 {
		t.Fatalf("%d entries, %d answers before the time is over", n, done)
	}
	ahead.Add(ackGatherMS)
	wg.Wait()
	if n := r.entries() - before; n != 1 || r.state("g").Committed != 20 {
		t.Fatalf("%d entries, %+v", n, r.state("g"))
	}
	// One that is waited for doesn't wait, nor does a nak.
	r.ackSoon(&wg, &answered, group.Ack, d, 20)
	r.ack("g", "a", group.AckItem{Kind: group.Ack, First: 21, Last: 21, Token: d.Token})
	wg.Wait()
	if n := r.entries() - before; n != 2 || r.state("g").Committed != 22 {
		t.Fatalf("%d entries, %+v", n, r.state("g"))
	}
	r.ackSoon(&wg, &answered, group.Ack, d, 22)
	r.ackSoon(&wg, &answered, group.Nak, d, 23)
	wg.Wait()
	if n := r.entries() - before; n != 3 || r.state("g").Committed != 23 {
		t.Fatalf("%d entries, %+v", n, r.state("g"))
	}
	// Many are enough.
	p = r.pull("g", "a", 1, 0, group.Options{})
	r.ack("g", "a", all(group.Ack, p)...)
	r.ack("g", "a", group.AckItem{Kind: group.Ack, First: 24, Last: 99, Token: d.Token})
	r.fill(ackGatherRecords)
	p = r.pull("g", "a", ackGatherRecords, 0, group.Options{})
	if refused, err := r.p.AckGroupSoon(context.Background(), "g", "a", all(group.Ack, p)); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	// What gathers when the leadership ends was not taken, and is said to be so.
	r.fill(1)
	p = r.pull("g", "a", 1, 0, group.Options{})
	failed := make(chan error, 1)
	go func() {
		_, err := r.p.AckGroupSoon(context.Background(), "g", "a", all(group.Ack, p))
		failed <- err
	}()
	r.until("taken", func() bool { return r.state("g").Pending == 0 })
	r.host.depose()
	wantError(t, <-failed, ErrNotLeader)
}

// TestKeysDontWaitForAcksToGather: a key is free for its member at once, for others when the ack is committed; when
// they wait for it that is at once too.
func TestKeysDontWaitForAcksToGather(t *testing.T) {
	t.Parallel()
	began := time.Now()
	r := newRig(t, 1)
	r.clock = func() time.Time { return began }
	r.open()
	r.fill(14) // seven keys, twice
	o := group.Options{Mode: group.KeyOrdered}
	p := r.pull("g", "a", 7, 0, o)
	var wg sync.WaitGroup
	var answered atomic.Int64
	r.ackSoon(&wg, &answered, group.Ack, p.Deliveries[0], 0)
	if q := r.pull("g", "a", 1, 0, o); count(q) != 1 || q.Deliveries[0].First != 7 || answered.Load() != 0 {
		t.Fatalf("%+v, %d answers", q, answered.Load())
	}
	var other group.Pulled
	wg.Go(func() { other = r.pull("g", "b", 10, 20*time.Second, o) })
	r.until("b waits", func() bool {
		gl := r.p.groups.Load()
		gl.mu.Lock()
		defer gl.mu.Unlock()
		return len(gl.led["g"].waiters) == 1
	})
	item := []group.AckItem{{Kind: group.Ack, First: 1, Last: 1, Token: p.Deliveries[0].Token}}
	if refused, err := r.p.AckGroupSoon(context.Background(), "g", "a", item); err != nil || len(refused) > 0 {
		t.Fatal(refused, err)
	}
	wg.Wait()
	if count(other) != 1 || other.Deliveries[0].First != 8 {
		t.Fatalf("%+v", other)
	}
}

// TestAcksGatherWhileAnEntryIsInFlight: acks that come while an entry is on its way are committed when their time is
// over, though nothing happens any more that would wake the leader.
func TestAcksGatherWhileAnEntryIsInFlight(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	began := time.Now()
	r := newRig(t, 1)
	r.clock = func() time.Time { return began.Add(time.Duration(ahead.Load()) * time.Millisecond) }
	r.open()
	r.fill(10)
	d := r.pull("g", "a", 10, 0, group.Options{Mode: group.Shared}).Deliveries[0]
	var wg sync.WaitGroup
	var answered atomic.Int64
	gl := r.p.groups.Load()
	inFlight := func() bool {
		gl.mu.Lock()
		defer gl.mu.Unlock()
		return gl.sent != nil
	}
	r.host.gate.Lock()
	wg.Go(func() {
		r.ack("g", "a", group.AckItem{Kind: group.Ack, First: 1, Last: 1, Token: d.Token})
	})
	r.until("an entry is in flight", inFlight)
	r.ackSoon(&wg, &answered, group.Ack, d, 0)
	r.host.gate.Unlock()
	r.until("it is committed", func() bool { return !inFlight() })
	if n := answered.Load(); n != 0 {
		t.Fatalf("%d answers before the time is over", n)
	}
	ahead.Add(ackGatherMS)
	r.until("answered", func() bool { return answered.Load() == 1 })
	wg.Wait()
	if n := r.state("g").Committed; n != 2 {
		t.Fatalf("committed %d", n)
	}
}
