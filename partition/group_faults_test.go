package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

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
