package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

func (r *rig) waitGroups() {
	r.t.Helper()
	r.until("leading groups", func() bool { _, err := r.p.GroupStates(""); return err == nil })
}

// What can't be written to the dead-letter topic stays; once it can be, each dead record goes there once and counts as handled.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	for _, mode := range []group.Mode{group.Shared, group.KeyOrdered} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1)
			var refuse atomic.Bool
			refuse.Store(true)
			var mu sync.Mutex
			got := map[int64]DeadLetter{}
			r.deadLetter = func(_ context.Context, ls []DeadLetter) error {
				if refuse.Load() {
					return errors.New("no room in the dead-letter topic")
				}
				mu.Lock()
				defer mu.Unlock()
				for _, l := range ls {
					if _, twice := got[l.Record.Offset]; twice {
						t.Errorf("offset %d twice", l.Record.Offset)
					}
					if string(l.Record.Value) != fmt.Sprint(l.Record.Offset) || l.Target != "graveyard" || l.Group != "g" {
						t.Errorf("%+v", l)
					}
					got[l.Record.Offset] = l
				}
				return nil
			}
			r.open()
			r.fill(20)
			o := group.Options{Mode: mode, MaxDeliveries: 2, DeadLetter: "graveyard"}
			handled := 0
			r.until("15 handled and 5 dead", func() bool {
				p := r.pull("g", "a", 100, 0, o)
				for _, d := range p.Deliveries {
					for off := d.First; off <= d.Last; off++ {
						it := group.AckItem{Kind: group.Ack, First: off, Last: off, Token: d.Token}
						switch {
						case off%5 == 0:
							it.Kind = group.Nak
						case off == 7:
							it.Kind, it.Reason = group.Term, "nobody can read this"
						}
						if refused := r.ack("g", "a", it); len(refused) == 0 && it.Kind == group.Ack {
							handled++
						}
					}
				}
				st := r.state("g")
				return handled == 15 && st.DeadPending == 5 && st.Problem != "" && st.Pending == 0 && st.Redelivering == 0
			})
			if st := r.state("g"); st.Committed != 0 || st.Lag != 5 || st.DeadLetters != 0 {
				t.Fatalf("%+v", st)
			}
			r.host.elect() // the next leader finds them in the log
			r.waitLeading()
			r.waitGroups()
			if p := r.pull("g", "b", 100, 0, o); count(p) != 0 {
				t.Fatalf("dead records are delivered: %+v", p)
			}
			refuse.Store(false)
			r.until("buried", func() bool { st := r.state("g"); return st.Committed == 20 && st.DeadLetters == 5 && st.Problem == "" })
			mu.Lock()
			defer mu.Unlock()
			if len(got) != 5 || got[7].Reason != "nobody can read this" || got[7].Deliveries != 1 || got[5].Deliveries != 2 {
				t.Fatalf("%+v", got)
			}
		})
	}
}

// A reset while members run makes what they have void, and wakes those that wait.
func TestResetAndDeleteWhileMembersRun(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	r.fill(30)
	o := group.Options{Mode: group.Shared}
	p := r.pull("g", "a", 30, 0, o)
	if refused := r.ack("g", "a", group.AckItem{Kind: group.Ack, First: 0, Last: 19, Token: p.Deliveries[0].Token}); len(refused) > 0 {
		t.Fatal(refused)
	}
	var wg sync.WaitGroup
	var q group.Pulled
	wg.Go(func() { q = r.pull("g", "b", 100, 20*time.Second, o) })
	r.until("waiting", func() bool {
		gl := r.p.groups.Load()
		gl.mu.Lock()
		defer gl.mu.Unlock()
		return len(gl.led["g"].waiters) == 1
	})
	if err := r.p.SetGroup(context.Background(), group.Set{Group: "g", To: group.Position{Kind: group.AtOffset, Value: 10}}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if count(q) != 20 || q.Deliveries[0].First != 10 || q.Deliveries[0].Token <= p.Deliveries[0].Token {
		t.Fatalf("%+v", q)
	}
	if refused := r.ack("g", "a", group.AckItem{Kind: group.Ack, First: 20, Last: 29, Token: p.Deliveries[0].Token}); len(refused) != 1 || refused[0].Reason != group.StaleToken {
		t.Fatal(refused)
	}
	if st := r.state("g"); st.Committed != 10 || st.Pending != 20 {
		t.Fatalf("%+v", st)
	}
	wantError(t, r.p.SetGroup(context.Background(), group.Set{Group: "g", To: group.Position{Kind: group.AtOffset, Value: 31}}), ErrBadRequest)
	wantError(t, r.p.SetGroup(context.Background(), group.Set{Group: "nobody"}), ErrGroupNotFound)

	// Exclusive: the lease is lost, and the same generation may ask anew.
	lease, err := r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "x", Member: "a", Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.p.SetGroup(context.Background(), group.Set{Group: "x", To: group.Position{Kind: group.Latest}}); err != nil {
		t.Fatal(err)
	}
	_, err = r.p.CommitGroup(context.Background(), group.Commit{Group: "x", Member: "a", Token: lease.Token, Offset: 3})
	wantError(t, err, ErrLeaseLost)
	if again, err := r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "x", Member: "a", Generation: 1}); err != nil || again.Next != 30 || again.Token <= lease.Token {
		t.Fatalf("%+v %v", again, err)
	}

	// Deleted: who waits is told.
	wg.Go(func() {
		_, _, err = r.p.PullGroup(context.Background(), group.Pull{Group: "g", Member: "w", WaitMS: 20_000, Options: o}, nil)
	})
	r.until("waiting", func() bool {
		gl := r.p.groups.Load()
		gl.mu.Lock()
		defer gl.mu.Unlock()
		return len(gl.led["g"].waiters) == 1
	})
	if err := r.p.SetGroup(context.Background(), group.Set{Group: "g", Delete: true}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	wantError(t, err, ErrGroupNotFound)
	_, err = r.p.AckGroup(context.Background(), "g", "b", all(group.Ack, q))
	wantError(t, err, ErrGroupNotFound)
}

// A deposed leader answers nothing, and one that can't reach the others says nothing that only a leader may say.
func TestDeposedLeaderServesNoGroup(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	r.fill(10)
	o := group.Options{Mode: group.Shared}
	p := r.pull("g", "a", 5, 0, o)
	lease, err := r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "x", Member: "a", Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	// Cut off: it still thinks that it leads.
	r.host.mu.Lock()
	r.host.barrier = func(ctx context.Context) error { return errors.New("no majority") }
	r.host.mu.Unlock()
	r.p.sureAt.Store(r.p.now() - sureForMS)
	ask := map[string]func() error{
		"pull": func() error {
			_, _, err := r.p.PullGroup(context.Background(), group.Pull{Group: "g", Member: "b"}, nil)
			return err
		},
		"progress": func() error {
			_, err := r.p.AckGroup(context.Background(), "g", "a", all(group.Progress, p))
			return err
		},
		"ack": func() error { _, err := r.p.AckGroup(context.Background(), "g", "a", all(group.Ack, p)); return err },
		"renew": func() error {
			_, err := r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "x", Member: "a", Generation: 1, Token: lease.Token})
			return err
		},
		"commit": func() error {
			_, err := r.p.CommitGroup(context.Background(), group.Commit{Group: "x", Member: "a", Token: lease.Token, Offset: 1})
			return err
		},
		"join": func() error {
			_, err := r.p.JoinGroup(context.Background(), group.Join{Group: "x", Member: group.Member{ID: "a"}, Partitions: 1})
			return err
		},
	}
	for what, f := range ask {
		if err := f(); !errors.Is(err, ErrNotLeader) {
			t.Errorf("%s while cut off: %v", what, err)
		}
	}
	r.host.depose()
	for what, f := range ask {
		if err := f(); !errors.Is(err, ErrNotLeader) {
			t.Errorf("%s after it was deposed: %v", what, err)
		}
	}
	if _, err := r.p.GroupStates(""); !errors.Is(err, ErrNotLeader) {
		t.Errorf("states: %v", err)
	}
}

// Retention "until every group has handled it" never takes what a group has not handled, and nothing without a group.
func TestWorkQueueRetention(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.ret = Retention{WorkQueue: true}
	r.open()
	r.fill(100)
	retain := func(want int64) {
		t.Helper()
		if err := r.p.Retain(context.Background()); err != nil {
			t.Fatal(err)
		}
		if start, _ := r.p.Bounds(); start != want {
			t.Fatalf("log starts at %d, want %d", start, want)
		}
	}
	retain(0)
	o := group.Options{Mode: group.Shared}
	p := r.pull("s", "a", 50, 0, o)
	lease, err := r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "x", Member: "a", Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	retain(0)
	if _, err := r.p.CommitGroup(context.Background(), group.Commit{Group: "x", Member: "a", Token: lease.Token, Offset: 60}); err != nil {
		t.Fatal(err)
	}
	retain(0)
	token := p.Deliveries[0].Token
	r.ack("s", "a", group.AckItem{Kind: group.Ack, First: 0, Last: 9, Token: token}, group.AckItem{Kind: group.Ack, First: 20, Last: 49, Token: token})
	retain(10)
	r.ack("s", "a", group.AckItem{Kind: group.Ack, First: 10, Last: 19, Token: token})
	retain(50)
	for count(p) > 0 {
		p = r.pull("s", "a", 50, 0, o)
		r.ack("s", "a", all(group.Ack, p)...)
	}
	retain(60)
	// Retention by count takes what a group has not handled: that is what it is for. The group goes on behind it.
	r.p.SetRetention(Retention{MaxRecords: 10})
	retain(90)
	if st := r.state("x"); st.Committed != 90 || st.Lag != 10 {
		t.Fatalf("%+v", st)
	}
	r.fill(50)
	p = r.pull("s", "a", 10, 0, o)
	retain(140)
	if q := r.pull("s", "a", 100, 0, o); count(q) != 10 || q.Deliveries[0].First != 140 {
		t.Fatalf("%+v", q)
	}
	if st := r.state("s"); st.Pending != 10 || st.Committed != 140 {
		t.Fatalf("%+v", st)
	}
	if refused := r.ack("s", "a", all(group.Ack, p)...); len(refused) != 1 || refused[0].Reason != group.AlreadyDone {
		t.Fatalf("%+v", refused)
	}
}

// Groups come back from a checkpoint, with their tokens.
func TestGroupsOutliveARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	r.fill(50)
	o := group.Options{Mode: group.Shared, From: group.Position{Kind: group.AtOffset, Value: 10}, BackoffMS: []int64{5, 10}}
	p := r.pull("s", "a", 20, 0, o)
	token := p.Deliveries[0].Token
	r.ack("s", "a", group.AckItem{Kind: group.Ack, First: 12, Last: 15, Token: token}, group.AckItem{Kind: group.Nak, First: 16, Last: 16, Token: token, DelayMS: -1})
	lease := must[group.Lease](t)(r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "x", Member: "a", Generation: 7}))
	must[group.Assignment](t)(r.p.JoinGroup(context.Background(), group.Join{Group: "x", Member: group.Member{ID: "a", Name: "n", Host: "h", Version: "v"}, Partitions: 3}))
	for _, sync := range []bool{true, false} { // from the checkpoint, then from the log alone
		if sync {
			if err := r.cp.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		before := r.p.m.groups.Load().encode(nil)
		if err := r.p.Close(); err != nil {
			t.Fatal(err)
		}
		r.open()
		r.waitGroups()
		if after := r.p.m.groups.Load().encode(nil); !bytes.Equal(before, after) {
			t.Fatalf("groups differ after a restart:\n%x\n%x", before, after)
		}
	}
	if st := r.state("x"); st.Token != lease.Token || st.Holder != "a" || !st.Anchor || len(st.Members) != 1 || st.Members[0].Host != "h" {
		t.Fatalf("%+v", st)
	}
	var seen []int64
	for _, d := range r.pull("s", "b", 100, time.Second, o).Deliveries {
		for off := d.First; off <= d.Last; off++ {
			seen = append(seen, off)
			if want := int32(1); off == 16 && d.Deliveries != 2 || off != 16 && d.Deliveries != want {
				t.Errorf("offset %d: delivery %d", off, d.Deliveries)
			}
		}
	}
	if len(seen) < 35 || seen[0] != 10 || seen[1] != 11 || seen[2] > 17 {
		t.Fatal(seen)
	}
}

// Members come, go and fall silent, leaders change, proposals are lost and doubled: each record is handled, and each ack that was
// answered stands.
func TestSharedGroupsUnderFaults(t *testing.T) {
	t.Parallel()
	for _, mode := range []group.Mode{group.Shared, group.KeyOrdered} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(mode, seed), func(t *testing.T) {
				t.Parallel()
				sharedUnderFaults(t, mode, seed)
			})
		}
	}
}

func sharedUnderFaults(t *testing.T, mode group.Mode, seed uint64) {
	r := newRig(t, seed)
	r.host.faults = faults{drop: 30, lose: 20, commitUnknown: 30, double: 30, busy: 20}
	r.open()
	const records, members = 2000, 6
	o := group.Options{Mode: mode, AckWaitMS: 60, SessionMS: 1000, MaxInFlight: 300}
	var mu sync.Mutex
	acked := map[int64]uint64{}   // answered: token
	newest := map[int64]uint64{}  // newest delivery's token
	byKey := map[string]uint64{}  // newest token of a key
	maybe := map[int64][]uint64{} // outcome unknown
	done := make(chan struct{})
	var wg sync.WaitGroup
	left := func() int {
		mu.Lock()
		defer mu.Unlock()
		return records - len(acked)
	}
	for m := range members {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(m)))
			name := fmt.Sprint("m", m)
			for {
				select {
				case <-done:
					return
				default:
				}
				p, buf, err := r.p.PullGroup(context.Background(), group.Pull{Group: "g", Member: name, MaxMessages: 1 + rng.IntN(60), WaitMS: 20, Options: o}, nil)
				if err != nil {
					continue
				}
				keys := map[int64]string{}
				if err := verify(buf, func(b record.Batch) bool {
					var it record.Iterator
					if err := it.Reset(b, record.DefaultLimits); err != nil {
						t.Error(err)
					}
					for it.Next() {
						keys[it.Record().Offset] = string(it.Record().Key)
					}
					return true
				}); err != nil {
					t.Error(err)
				}
				var items []group.AckItem
				mu.Lock()
				for _, d := range p.Deliveries {
					for off := d.First; off <= d.Last; off++ {
						if tok, is := acked[off]; is && d.Token >= tok {
							t.Errorf("offset %d was delivered under token %d after its ack under %d was answered", off, d.Token, tok)
						}
						// The test hears of deliveries in no order, the dispatcher made them in one.
						newest[off] = max(newest[off], d.Token)
						byKey[keys[off]] = max(byKey[keys[off]], d.Token)
					}
					items = append(items, group.AckItem{Kind: group.Ack, First: d.First, Last: d.Last, Token: d.Token})
				}
				mu.Unlock()
				switch rng.IntN(10) {
				case 0:
					continue // forgets them
				case 1:
					for i := range items {
						items[i].Kind, items[i].DelayMS = group.Nak, -1
					}
				}
				refused, err := r.p.AckGroup(context.Background(), "g", name, items)
				mu.Lock()
				for i, it := range items {
					if it.Kind != group.Ack {
						continue
					}
					no := false
					for _, x := range refused {
						no = no || x.Item == i
					}
					for off := it.First; off <= it.Last; off++ {
						switch {
						case err != nil:
							maybe[off] = append(maybe[off], it.Token)
						case !no:
							if tok, is := acked[off]; is {
								t.Errorf("offset %d: acks under tokens %d and %d were taken", off, tok, it.Token)
							}
							acked[off] = it.Token
						}
					}
				}
				mu.Unlock()
			}
		})
	}
	r.fill(records)
	rng := rand.New(rand.NewPCG(seed, 77))
	for range 4 {
		at := left()
		r.until("some more acked", func() bool { return left() <= at-100 || r.handled("g") == records })
		if rng.IntN(2) == 0 {
			r.host.elect()
			r.waitLeading()
		}
	}
	r.until("all handled", func() bool { return r.handled("g") == records })
	close(done)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for off := range int64(records) {
		if _, is := acked[off]; !is && len(maybe[off]) == 0 {
			t.Errorf("offset %d is handled, and nobody acked it", off)
		}
	}
}

func (r *rig) handled(name string) int64 {
	list, err := r.p.GroupStates(name)
	if err != nil || len(list) == 0 {
		return 0
	}
	return list[0].Committed
}

// Two members each think that they are right: whatever they do, cursors only go on under the newest token, and nobody gets a
// lease that another holds.
func TestExclusiveGroupsUnderFaults(t *testing.T) {
	t.Parallel()
	r := newRig(t, 5)
	r.host.faults = faults{drop: 30, lose: 20, commitUnknown: 30, double: 30, busy: 20}
	r.open()
	r.fill(1000)
	var mu sync.Mutex
	var newest uint64
	var cursor int64
	var generation atomic.Uint64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for m := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(5, uint64(m)))
			name := fmt.Sprint("m", m)
			for {
				select {
				case <-done:
					return
				default:
				}
				l, err := r.p.LeaseGroup(context.Background(), group.LeaseRequest{Group: "g", Member: name, Generation: generation.Add(1), WaitMS: 3000, Options: group.Options{SessionMS: 1000}})
				if err != nil {
					continue
				}
				mu.Lock()
				if l.Token <= newest {
					t.Errorf("lease under token %d after %d", l.Token, newest)
				}
				if l.Next < cursor {
					t.Errorf("lease begins at %d, %d was committed", l.Next, cursor)
				}
				newest = l.Token
				mu.Unlock()
				at := l.Next
				for range 3 + rng.IntN(5) {
					at = min(at+rng.Int64N(30), 1000)
					mu.Lock()
					old := newest != l.Token
					c, err := r.p.CommitGroup(context.Background(), group.Commit{Group: "g", Member: name, Token: l.Token, Offset: at})
					switch {
					case err == nil && old:
						t.Errorf("commit under token %d was taken after the lease under %d", l.Token, newest)
					case err == nil && c.Offset != at:
						t.Errorf("committed %d, asked for %d", c.Offset, at)
					case err == nil:
						cursor = at
					}
					mu.Unlock()
				}
				if rng.IntN(3) > 0 {
					if _, err := r.p.CommitGroup(context.Background(), group.Commit{Group: "g", Member: name, Token: l.Token, Offset: -1, Release: true}); err != nil {
						continue
					}
				}
			}
		})
	}
	for range 3 {
		at := r.handled("g")
		r.until("further", func() bool { return r.handled("g") >= min(at+200, 1000) })
		r.host.elect()
		r.waitLeading()
	}
	r.until("all handled", func() bool { return r.handled("g") == 1000 })
	close(done)
	wg.Wait()
}

// A thousand members wait at one partition: each is served, and appending costs the same.
func TestThousandMembers(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	const members = 1000
	var wg sync.WaitGroup
	var got atomic.Int64
	for m := range members {
		wg.Go(func() {
			p, _, err := r.p.PullGroup(context.Background(), group.Pull{
				Group: "g", Member: fmt.Sprint("m", m), MaxMessages: 1, WaitMS: 60_000, Options: group.Options{Mode: group.Shared},
			}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			got.Add(count(p))
			if refused, err := r.p.AckGroup(context.Background(), "g", fmt.Sprint("m", m), all(group.Ack, p)); err != nil || len(refused) > 0 {
				t.Error(refused, err)
			}
		})
	}
	r.until("waiting", func() bool {
		gl := r.p.groups.Load()
		gl.mu.Lock()
		defer gl.mu.Unlock()
		g := gl.led["g"]
		return g != nil && len(g.waiters) == members
	})
	r.fill(members)
	wg.Wait()
	if got.Load() != members || r.handled("g") != members {
		t.Fatalf("%d served, %d handled", got.Load(), r.handled("g"))
	}
	// And join: few generations, all placed.
	for m := range members {
		wg.Go(func() {
			if _, err := r.p.JoinGroup(context.Background(), group.Join{Group: "j", Member: group.Member{ID: fmt.Sprint("m", m)}, Partitions: 64}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if st := r.state("j"); len(st.Members) != members || st.Generation > members {
		t.Fatalf("%d members, generation %d", len(st.Members), st.Generation)
	}
}

// What an earlier term's leader still wants to commit is not taken, though the same replica leads again.
func TestEntriesOfAnOldTermAreRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	old := r.p.groups.Load()
	r.host.elect()
	r.waitLeading()
	r.until("new leader's side", func() bool { gl := r.p.groups.Load(); return gl != nil && gl != old })
	var e group.Entry
	e.Reset(make([]byte, commandHeaderSize))
	e.Delete("g")
	if err := r.p.a.groupEntry(old.l, e.Bytes(), func([]byte, *Error) { t.Error("it was proposed") }); !errors.Is(err, ErrNotLeader) {
		t.Fatal(err)
	}
}

// drain pulls and acks all there is, as members do, and returns how many records that were.
func drain(b testing.TB, p *Partition, mode group.Mode, members int, total int64) {
	var handled atomic.Int64
	var wg sync.WaitGroup
	for m := range members {
		wg.Go(func() {
			name := fmt.Sprint("m", m)
			buf := make([]byte, 0, 2<<20)
			items := make([]group.AckItem, 0, 1024)
			for handled.Load() < total {
				pulled, _, err := p.PullGroup(context.Background(), group.Pull{Group: "g", Member: name, MaxMessages: 512, WaitMS: 50, Options: group.Options{Mode: mode}}, buf)
				if err != nil {
					b.Error(err)
					return
				}
				items = items[:0]
				n := int64(0)
				for _, d := range pulled.Deliveries {
					n += d.Last - d.First + 1
					items = append(items, group.AckItem{Kind: group.Ack, First: d.First, Last: d.Last, Token: d.Token})
				}
				for len(items) > 0 {
					k := min(len(items), group.MaxAckItems)
					refused, err := p.AckGroup(context.Background(), "g", name, items[:k])
					if err != nil || len(refused) > 0 {
						b.Error(refused, err)
						return
					}
					items = items[k:]
				}
				handled.Add(n)
			}
		})
	}
	wg.Wait()
}

// An ack that comes while a reset or a deletion is being committed is not taken for one of what comes after.
func TestAckDuringResetIsRefused(t *testing.T) {
	t.Parallel()
	for _, set := range []group.Set{{Group: "g"}, {Group: "g", Delete: true}} {
		r := newRig(t, 1)
		r.open()
		r.fill(10)
		p := r.pull("g", "a", 10, 0, group.Options{Mode: group.Shared})
		r.host.gate.Lock()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := r.p.SetGroup(context.Background(), set); err != nil {
				t.Error(err)
			}
		})
		gl := r.p.groups.Load()
		r.until("in flight", func() bool {
			gl.mu.Lock()
			defer gl.mu.Unlock()
			return gl.sent != nil
		})
		wg.Go(func() {
			refused, err := r.p.AckGroup(context.Background(), "g", "a", all(group.Ack, p))
			if err != nil || len(refused) != 1 || refused[0].Reason != group.StaleToken {
				t.Errorf("delete %v: %+v %v", set.Delete, refused, err)
			}
		})
		r.until("gathered", func() bool {
			gl.mu.Lock()
			defer gl.mu.Unlock()
			return gl.led["g"].gathering != nil
		})
		r.host.gate.Unlock()
		wg.Wait()
	}
}

// What a snapshot brings is what the leader's side looks at.
func TestRestoredGroupsAreShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	s, err := decodeState(m.state.encode(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.groups.apply(1, s, randomGroupEntry(rand.New(rand.NewPCG(1, 1)), nil, 9)); err != nil {
		t.Fatal(err)
	}
	if err := m.install(s); err != nil {
		t.Fatal(err)
	}
	if m.groups.Load() != s.groups {
		t.Fatal("the groups from before are shown")
	}
}
