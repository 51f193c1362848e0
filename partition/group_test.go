package partition

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

func (r *rig) fill(n int) {
	r.t.Helper()
	a := newAnswers()
	for i := range n {
		pub := Publication{Record: record.Record{Key: fmt.Append(nil, "k", i%7), Value: fmt.Append(nil, i)}, Expect: -1, Reply: fmt.Append(nil, i), Receiver: a}
		if err := r.p.Append(context.Background(), &pub); err != nil {
			r.t.Fatal(err)
		}
		if i%10 == 9 {
			r.p.Flush()
		}
	}
	r.p.Flush()
	r.until("answered", func() bool { return a.count() == n })
}

func (r *rig) lease(member string, generation, token uint64, wait time.Duration) (group.Lease, error) {
	return r.p.LeaseGroup(context.Background(), group.LeaseRequest{
		Group: "g", Member: member, Generation: generation, Token: token, WaitMS: wait.Milliseconds(),
		Options: group.Options{SessionMS: 1000},
	})
}

func (r *rig) commitGroup(member string, token uint64, offset int64, release bool) error {
	c, err := r.p.CommitGroup(context.Background(), group.Commit{Group: "g", Member: member, Token: token, Offset: offset, Release: release})
	if err == nil && offset >= 0 && c.Offset != offset {
		r.t.Fatalf("committed %d, want %d", c.Offset, offset)
	}
	return err
}

func wantError(t testing.TB, err error, want *Error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %s", err, want.Reason)
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestLeaseGoesFromMemberToMember(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	r.fill(100)
	lease := must[group.Lease](t)
	one := lease(r.lease("a", 1, 0, 0))
	if one.Token == 0 || one.Next != 0 {
		t.Fatalf("%+v", one)
	}
	if again := lease(r.lease("a", 1, one.Token, 0)); again.Token != one.Token || again.Wanted {
		t.Fatalf("renewed: %+v", again)
	}
	if err := r.commitGroup("a", one.Token, 40, false); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.commitGroup("a", one.Token, 30, false), ErrBadRequest)
	wantError(t, r.commitGroup("a", one.Token, 101, false), ErrBadRequest)
	wantError(t, r.commitGroup("b", one.Token, 50, false), ErrLeaseLost)
	held, err := r.lease("b", 2, 0, 10*time.Millisecond)
	wantError(t, err, ErrLeaseHeld)
	if held.HeldMS <= 0 || held.HeldMS > 1000 {
		t.Fatalf("held for %d ms", held.HeldMS)
	}
	if l := lease(r.lease("a", 1, one.Token, 0)); !l.Wanted {
		t.Fatal("a isn't told that b wants the lease")
	}
	// b waits; a finishes and releases.
	var wg sync.WaitGroup
	var two group.Lease
	wg.Go(func() { two, err = r.lease("b", 2, 0, 20*time.Second) })
	began := time.Now()
	if err := r.commitGroup("a", one.Token, 60, true); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err != nil || two.Token <= one.Token || two.Next != 60 || time.Since(began) > 500*time.Millisecond {
		t.Fatalf("%+v %v after %s", two, err, time.Since(began))
	}
	wantError(t, r.commitGroup("a", one.Token, 70, false), ErrLeaseLost)
	_, err = r.lease("a", 1, one.Token, 0)
	wantError(t, err, ErrLeaseLost)
	stale, err := r.lease("a", 1, 0, 0)
	wantError(t, err, ErrStaleGeneration)
	if stale.Generation != 2 {
		t.Fatalf("%+v", stale)
	}
	// b falls silent: c gets the lease when b's session is over, not before.
	if err := r.commitGroup("b", two.Token, 70, false); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	three := lease(r.lease("c", 3, 0, 20*time.Second))
	if d := time.Since(began); d < 900*time.Millisecond || three.Token <= two.Token || three.Next != 70 {
		t.Fatalf("%+v after %s", three, d)
	}
	wantError(t, r.commitGroup("b", two.Token, 80, true), ErrLeaseLost)
}

// A new leader lets the lease go on: its holder continues under the same token, others wait one session.
func TestLeaseOutlivesTheLeader(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	r.fill(10)
	one := must[group.Lease](t)(r.lease("a", 1, 0, 0))
	r.host.elect()
	r.waitLeading()
	r.until("leading groups", func() bool { _, err := r.p.GroupStates(""); return err == nil })
	_, err := r.lease("b", 2, 0, 10*time.Millisecond)
	wantError(t, err, ErrLeaseHeld)
	if err := r.commitGroup("a", one.Token, 5, false); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	two := must[group.Lease](t)(r.lease("b", 2, 0, 20*time.Second))
	if time.Since(began) < 900*time.Millisecond || two.Next != 5 {
		t.Fatalf("%+v after %s", two, time.Since(began))
	}
}

func (r *rig) pull(g, member string, most int, wait time.Duration, o group.Options) group.Pulled {
	r.t.Helper()
	p, buf, err := r.p.PullGroup(context.Background(), group.Pull{Group: g, Member: member, MaxMessages: most, WaitMS: wait.Milliseconds(), Options: o}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	// The batches hold all that was delivered.
	have := map[int64]bool{}
	if err := verify(buf, func(b record.Batch) bool {
		for o := b.BaseOffset(); o <= b.LastOffset(); o++ {
			if have[o] {
				r.t.Fatalf("offset %d twice in the batches", o)
			}
			have[o] = true
		}
		return true
	}); err != nil {
		r.t.Fatal(err)
	}
	for _, d := range p.Deliveries {
		for o := d.First; o <= d.Last; o++ {
			if !have[o] {
				r.t.Fatalf("offset %d was delivered without its batch", o)
			}
		}
	}
	return p
}

func (r *rig) ack(g, member string, items ...group.AckItem) []group.Refusal {
	r.t.Helper()
	refused, err := r.p.AckGroup(context.Background(), g, member, items)
	if err != nil {
		r.t.Fatal(err)
	}
	return refused
}

func all(kind group.AckKind, p group.Pulled) (items []group.AckItem) {
	for _, d := range p.Deliveries {
		items = append(items, group.AckItem{Kind: kind, First: d.First, Last: d.Last, Token: d.Token, DelayMS: -1})
	}
	return items
}

func count(p group.Pulled) (n int64) {
	for _, d := range p.Deliveries {
		n += d.Last - d.First + 1
	}
	return n
}

func (r *rig) state(name string) group.Status {
	r.t.Helper()
	list, err := r.p.GroupStates(name)
	if err != nil || len(list) != 1 {
		r.t.Fatalf("states of %s: %v %v", name, list, err)
	}
	return list[0]
}

func TestSharedGroup(t *testing.T) {
	t.Parallel()
	for _, mode := range []group.Mode{group.Shared, group.KeyOrdered} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1)
			r.open()
			r.fill(100)
			o := group.Options{Mode: mode, MaxDeliveries: 3}
			a := r.pull("g", "a", 40, 0, o)
			if count(a) != 40 || a.Deliveries[0].Token == 0 || a.Deliveries[0].Deliveries != 1 {
				t.Fatalf("%+v", a)
			}
			if n := len(r.ack("g", "b", all(group.Ack, a)...)); n != len(a.Deliveries) {
				t.Fatalf("%d foreign acks refused of %d", n, len(a.Deliveries))
			}
			if refused := r.ack("g", "a", all(group.Ack, a)...); len(refused) > 0 {
				t.Fatalf("%+v", refused)
			}
			if refused := r.ack("g", "a", all(group.Ack, a)...); len(refused) > 0 {
				t.Fatalf("acked again: %+v", refused)
			}
			st := r.state("g")
			if st.Committed != 40 || st.Lag != 60 || st.Handled != 40 || st.Pending != 0 {
				t.Fatalf("%+v", st)
			}
			// A nak comes back at once, under a larger token.
			b := r.pull("g", "b", 1, 0, o)
			if refused := r.ack("g", "b", group.AckItem{Kind: group.Nak, First: 40, Last: 40, Token: b.Deliveries[0].Token}); len(refused) > 0 {
				t.Fatalf("%+v", refused)
			}
			c := r.pull("g", "c", 1, time.Second, o)
			if d := c.Deliveries[0]; d.First != 40 || d.Deliveries != 2 || d.Token <= b.Deliveries[0].Token {
				t.Fatalf("%+v after %+v", c, b)
			}
			if refused := r.ack("g", "b", all(group.Ack, b)...); len(refused) != 1 || refused[0].Reason != group.StaleToken {
				t.Fatalf("%+v", refused)
			}
			// A member waits, and is woken when records arrive.
			r.ack("g", "c", all(group.Ack, c)...)
			for {
				p := r.pull("g", "a", 1000, 0, o)
				if count(p) == 0 {
					break
				}
				r.ack("g", "a", all(group.Ack, p)...)
			}
			var wg sync.WaitGroup
			var p group.Pulled
			wg.Go(func() { p = r.pull("g", "w", 10, 20*time.Second, o) })
			r.until("waiting", func() bool {
				gl := r.p.groups.Load()
				gl.mu.Lock()
				defer gl.mu.Unlock()
				return len(gl.led["g"].waiters) == 1
			})
			r.fill(3)
			wg.Wait()
			if count(p) == 0 || p.Deliveries[0].First != 100 {
				t.Fatalf("%+v", p)
			}
			// The leader changes: what isn't acked is delivered again, and an ack that comes first is taken.
			r.host.elect()
			r.waitLeading()
			r.until("leading groups", func() bool { _, err := r.p.GroupStates(""); return err == nil })
			if refused := r.ack("g", "w", group.AckItem{Kind: group.Ack, First: 100, Last: 100, Token: p.Deliveries[0].Token}); len(refused) > 0 {
				t.Fatalf("%+v", refused)
			}
			q := r.pull("g", "x", 10, time.Second, o)
			if count(q) != 2 || q.Deliveries[0].First != 101 || q.Deliveries[0].Token <= p.Deliveries[0].Token {
				t.Fatalf("%+v", q)
			}
		})
	}
}

func TestAnchorGivesPartitionsToMembers(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	join := func(id string) group.Assignment {
		t.Helper()
		return must[group.Assignment](t)(r.p.JoinGroup(context.Background(), group.Join{
			Group: "g", Member: group.Member{ID: id, Name: id}, Partitions: 8, Options: group.Options{SessionMS: 1000},
		}))
	}
	a := join("a")
	if a.Generation != 1 || len(a.Partitions) != 8 {
		t.Fatalf("%+v", a)
	}
	// a is told at once that b has come.
	var wg sync.WaitGroup
	var told group.Assignment
	var err error
	wg.Go(func() {
		told, err = r.p.SyncGroup(context.Background(), group.Sync{Group: "g", Member: "a", Generation: 1, WaitMS: 20_000})
	})
	b := join("b")
	wg.Wait()
	if err != nil || told.Generation != 2 || len(told.Partitions) != 4 || len(b.Partitions) != 4 {
		t.Fatalf("a %+v %v, b %+v", told, err, b)
	}
	// b falls silent: a, which syncs, gets everything back.
	r.until("b out", func() bool {
		told, err = r.p.SyncGroup(context.Background(), group.Sync{Group: "g", Member: "a", Generation: told.Generation, WaitMS: 100})
		if err != nil {
			t.Fatal(err)
		}
		return len(told.Partitions) == 8
	})
	_, err = r.p.SyncGroup(context.Background(), group.Sync{Group: "g", Member: "b", Generation: 2})
	wantError(t, err, ErrUnknownMember)
	if _, err := r.p.LeaveGroup(context.Background(), group.Leave{Group: "g", Member: "a"}); err != nil {
		t.Fatal(err)
	}
	if st := r.state("g"); !st.Anchor || len(st.Members) != 0 || st.Generation != 4 {
		t.Fatalf("%+v", st)
	}
	// Who has heard of a newer generation brings the anchor beyond it.
	if a := must[group.Assignment](t)(r.p.JoinGroup(context.Background(), group.Join{
		Group: "g", Member: group.Member{ID: "a"}, Partitions: 9, Generation: 70,
	})); a.Generation != 71 || len(a.Partitions) != 9 {
		t.Fatalf("%+v", a)
	}
}

// A generation that no counting reaches comes from a mistake. Taken for true it would be the last that the group has.
func TestGenerationsThatNobodyReachesAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	ctx := context.Background()
	for _, g := range []uint64{maxGeneration, 1<<64 - 1} {
		_, err := r.lease("x", g, 0, 0)
		wantError(t, err, ErrBadRequest)
		_, err = r.p.JoinGroup(ctx, group.Join{Group: "g", Member: group.Member{ID: "x"}, Partitions: 1, Generation: g})
		wantError(t, err, ErrBadRequest)
		_, err = r.p.SyncGroup(ctx, group.Sync{Group: "g", Member: "x", Generation: g})
		wantError(t, err, ErrBadRequest)
	}
	if _, err := r.lease("a", 1, 0, 0); err != nil {
		t.Fatalf("the first member after them: %v", err)
	}
}

// A generation just below the end of the numbers is believed to a bounded leap: however many such requests come, the next member
// that does as it is told gets the partition, after a few rounds with the anchor.
func TestNoGenerationIsTheLast(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	ctx := context.Background()
	for range 3 {
		l, err := r.lease("fool", maxGeneration-1, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.commitGroup("fool", l.Token, -1, true); err != nil { // given back
			t.Fatal(err)
		}
	}
	join := group.Join{Group: "g", Member: group.Member{ID: "a"}, Partitions: 1}
	a := must[group.Assignment](t)(r.p.JoinGroup(ctx, join))
	var err error
	for round := 0; ; round++ {
		var l group.Lease
		if l, err = r.lease("a", a.Generation, 0, 0); err == nil {
			break
		}
		wantError(t, err, ErrStaleGeneration)
		if l.Generation >= maxGeneration/2 || round > 5 {
			t.Fatalf("round %d: generation %d is named", round, l.Generation)
		}
		join.Generation = l.Generation
		a = must[group.Assignment](t)(r.p.JoinGroup(ctx, join))
	}
	// And likewise where it is the anchor that is told such a number.
	for range 3 {
		if _, err := r.p.SyncGroup(ctx, group.Sync{Group: "g", Member: "a", Generation: maxGeneration - 1}); err != nil {
			t.Fatal(err)
		}
		join.Generation = maxGeneration - 1
		a = must[group.Assignment](t)(r.p.JoinGroup(ctx, join))
	}
	if a.Generation > maxGeneration/2 {
		t.Fatalf("the anchor is at generation %d", a.Generation)
	}
	join = group.Join{Group: "g", Member: group.Member{ID: "b"}, Partitions: 1}
	if b := must[group.Assignment](t)(r.p.JoinGroup(ctx, join)); b.Generation <= a.Generation {
		t.Fatalf("another member's joining is generation %d after %d", b.Generation, a.Generation)
	}
}

// A join that is refused for the number of groups leaves nothing behind, however many there are.
func TestRefusedJoinsLeaveNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	join := func(name string) error {
		_, err := r.p.JoinGroup(context.Background(), group.Join{Group: name, Member: group.Member{ID: "m"}, Partitions: 1})
		return err
	}
	var wg sync.WaitGroup
	for i := range group.MaxGroups {
		wg.Go(func() {
			if err := join(fmt.Sprint("g", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 100 {
		wantError(t, join(fmt.Sprint("more", i)), ErrTooMany)
	}
	if err := join("g7"); err != nil {
		t.Errorf("a group that is there: %v", err)
	}
	gl := r.p.groups.Load()
	gl.mu.Lock()
	defer gl.mu.Unlock()
	if len(gl.led) != group.MaxGroups || len(gl.all) != group.MaxGroups {
		t.Errorf("the leader knows %d and %d groups", len(gl.led), len(gl.all))
	}
}
