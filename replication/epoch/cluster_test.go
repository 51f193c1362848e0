package epoch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

// settle waits until all live nodes know the same epoch, at least n.
func (w *world) settle(n uint64, limit time.Duration) uint64 {
	w.t.Helper()
	newest, ok := w.same(n, limit)
	if !ok {
		w.t.Fatalf("brokers don't all know an epoch of %d or later after %v; one knows %d", n, limit, newest)
	}
	return newest
}

func (w *world) same(n uint64, limit time.Duration) (newest uint64, ok bool) {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		lowest, highest := uint64(1<<62), uint64(0)
		for _, x := range w.all() {
			if c := x.life(); c != nil {
				lowest, highest = min(lowest, c.Current().Epoch), max(highest, c.Current().Epoch)
			}
		}
		if lowest == highest && lowest >= n {
			return lowest, true
		}
		if time.Now().After(end) {
			return highest, false
		}
	}
}

func TestThreeDecide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		nodes := w.formed(3)
		one := nodes[0].c.Current()
		if one.Epoch != 1 || len(one.ClusterID) != 32 || len(one.Council) != 3 {
			t.Fatalf("%+v", one)
		}
		for i, b := range one.Brokers {
			want := nodes[i].self
			if want.ID = uint64(i + 1); b != want {
				t.Errorf("epoch 1 says %+v, want %+v", b, want)
			}
		}
		for i := range 30 {
			var got uint64
			n := nodes[i%3]
			c, err := n.c.Propose(t.Context(), count(fmt.Sprint(i), &got))
			if err != nil || c.Epoch != uint64(i+2) || got != uint64(i+1) || c.By != n.self.Name {
				t.Fatalf("%d: epoch %d, number %d, by %s, %v", i, c.Epoch, got, c.By, err)
			}
			if r, err := nodes[(i+1)%3].c.Read(t.Context()); err != nil || r.Epoch != c.Epoch {
				t.Fatalf("%d: read epoch %d, %v", i, r.Epoch, err)
			}
		}
		w.settle(31, time.Second)
		// What one heard of, it fetches, and says so until it has it.
		h1, h3 := nodes[0].c.History(100, 100), nodes[2].c.History(100, 100)
		for i := range h1 {
			if h1[i].Hash != h3[i].Hash {
				t.Errorf("epoch %d differs", h1[i].Epoch)
			}
		}
		for _, n := range nodes {
			if n.c.Leader() != 1 || n.c.Behind() != 0 {
				t.Errorf("leader %d, behind %d", n.c.Leader(), n.c.Behind())
			}
		}
	})
}

// TestSharedEpochs: changes that wait together are decided together, and one that
// fails on top of another is judged on its own.
func TestSharedEpochs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		nodes := w.formed(3)
		const n = 100
		type result struct {
			epoch, number uint64
			err           error
		}
		results := make(chan result, n)
		taken := errors.New("taken")
		for i := range n {
			go func() {
				var r result
				c, err := nodes[0].c.Propose(t.Context(), func(next *config.Config) error {
					if i >= n/2 { // only one of these can win
						if next.Brokers[0].Rack != "" {
							return taken
						}
						next.Brokers[0].Rack = "r1"
					}
					r.number = next.TakeTopic()
					return nil
				})
				r.epoch, r.err = c.Epoch, err
				results <- r
			}()
		}
		numbers, won := map[uint64]bool{}, 0
		for range n {
			r := <-results
			switch {
			case r.err == nil:
				won++
				if numbers[r.number] {
					t.Errorf("number %d given out twice", r.number)
				}
				numbers[r.number] = true
			case !errors.Is(r.err, taken):
				t.Error(r.err)
			}
		}
		if cur := nodes[0].c.Current(); won != n/2+1 || cur.NextTopic != n/2+2 || cur.Epoch > 12 {
			t.Errorf("%d won, counter %d, epoch %d", won, cur.NextTopic, cur.Epoch)
		}
	})
}

// TestLeaderDies: a new epoch within three seconds after the soft leader is gone,
// even while nobody has noticed.
func TestLeaderDies(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"crash", "cut off", "unnoticed"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1)
				defer w.stop()
				nodes := w.formed(3)
				for _, n := range nodes {
					n.dir.slowTo(5 * time.Millisecond)
				}
				var got uint64
				if _, err := nodes[0].c.Propose(t.Context(), count("a", &got)); err != nil {
					t.Fatal(err)
				}
				if how == "crash" {
					nodes[0].crash()
				} else {
					w.isolate(1, how == "cut off")
				}
				begun := time.Now()
				c, err := nodes[2].c.Propose(t.Context(), count("b", &got))
				if took := time.Since(begun); err != nil || took > 3*time.Second || c.Epoch != 3 {
					t.Errorf("epoch %d after %v, %v", c.Epoch, took, err)
				} else {
					t.Logf("%s: a new epoch after %v", how, took)
				}
				if how == "crash" {
					if err := nodes[0].start(); err != nil {
						t.Fatal(err)
					}
				}
				w.heal()
				w.settle(3, 5*time.Second)
			})
		})
	}
}

// TestMinority: without a majority nothing is decided or read, callers are told
// when their time is over, and all goes on when it is back.
func TestMinority(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		nodes := w.formed(3)
		w.isolate(1, true)
		ctx, cancel := within(2 * time.Second)
		defer cancel()
		var got uint64
		if c, err := nodes[0].c.Propose(ctx, count("a", &got)); !errors.Is(err, context.DeadlineExceeded) || c.Epoch != 1 {
			t.Errorf("%v", err)
		}
		ctx, cancel = within(2 * time.Second)
		defer cancel()
		if _, err := nodes[0].c.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		// A change's verdict on an old base is not passed on.
		if _, err := nodes[1].c.Propose(t.Context(), func(next *config.Config) error { next.FeatureLevel = 1; return nil }); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := nodes[0].c.Propose(t.Context(), func(next *config.Config) error {
				if next.FeatureLevel == 0 {
					return errors.New("not yet")
				}
				next.Change = "late"
				return nil
			})
			ended <- err
		}()
		time.Sleep(time.Second)
		w.heal()
		begun := time.Now()
		if err := <-ended; err != nil || time.Since(begun) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		w.settle(3, 2*time.Second)
	})
}

// TestCatchUp: a broker that was down for hundreds of epochs has all of them afterwards.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		nodes := w.formed(3)
		nodes[2].crash()
		var got uint64
		for i := range KeepEvery + 2*KeepValues + 20 {
			if _, err := nodes[i%2].c.Propose(t.Context(), count(fmt.Sprint(i), &got)); err != nil {
				t.Fatal(err)
			}
		}
		if err := nodes[2].start(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		newest := w.settle(KeepEvery, 5*time.Second)
		t.Logf("%d epochs after %v", newest, time.Since(begun))
		check := func() {
			t.Helper()
			a, b := nodes[0].c.History(newest, 10_000), nodes[2].c.History(newest, 10_000)
			if len(a) != int(newest)+1 || len(a) != len(b) {
				t.Fatalf("%d and %d headers", len(a), len(b))
			}
			for i := range a {
				if fmt.Sprint(a[i]) != fmt.Sprint(b[i]) {
					t.Fatalf("%+v and %+v", a[i], b[i])
				}
			}
			if _, v, err := nodes[2].c.At(newest - 50); err != nil || v.Epoch != newest-50 {
				t.Errorf("a recent value: %v", err)
			}
			if h, v, err := nodes[2].c.Next(t.Context(), 9); err != nil || h.Epoch != 10 || v != nil {
				t.Errorf("an old epoch: %+v, %v", h, err)
			}
		}
		check()
		for _, n := range nodes {
			n.crash()
		}
		for _, n := range nodes {
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
		}
		w.settle(newest, time.Second)
		check()
	})
}

// TestDiskFails: after a failed fsync a broker says so once, takes part in nothing
// more, and the others go on.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		nodes := w.formed(3)
		watch := nodes[0].c.Watch(t.Context())
		nodes[0].dir.mu.Lock()
		nodes[0].dir.broken = true
		nodes[0].dir.mu.Unlock()
		var got uint64
		if _, err := nodes[0].c.Propose(t.Context(), count("a", &got)); !errors.Is(err, ErrClosed) || !errors.Is(err, errFault) {
			t.Error(err)
		}
		if _, err := nodes[0].c.Read(t.Context()); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		for range watch {
		}
		if c, err := nodes[1].c.Propose(t.Context(), count("b", &got)); err != nil {
			t.Error(err)
		} else if len(nodes[0].fatal) != 1 {
			t.Errorf("told %v", nodes[0].fatal)
		} else if c.NextTopic > 3 {
			t.Errorf("the counter stands at %d", c.NextTopic)
		}
	})
}

// TestDuel: five brokers that all want epochs at once, none of which thinks that others
// are live, get all of them.
func TestDuel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 7)
		defer w.stop()
		w.times.Rank = 1 // nobody gives way
		nodes := w.formed(5)
		w.mu.Lock()
		w.delay = 5 * time.Millisecond
		w.mu.Unlock()
		const each = 20
		var mu sync.Mutex
		var took []time.Duration
		numbers := map[uint64]bool{}
		var wg sync.WaitGroup
		for _, n := range nodes {
			n.dir.slowTo(2 * time.Millisecond)
			wg.Go(func() {
				for range each {
					begun := time.Now()
					var got uint64
					if _, err := n.c.Propose(t.Context(), count(n.self.Name, &got)); err != nil {
						t.Error(err)
					}
					mu.Lock()
					took = append(took, time.Since(begun))
					if numbers[got] {
						t.Errorf("number %d given out twice", got)
					}
					numbers[got] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		slices.Sort(took)
		t.Logf("%d epochs by 5 duelling brokers, each after: p50 %v, p90 %v, slowest %v", len(took), took[len(took)/2], took[len(took)*9/10], took[len(took)-1])
		if len(numbers) != 5*each || took[len(took)-1] > 10*time.Second {
			t.Errorf("%d numbers, the slowest after %v", len(numbers), took[len(took)-1])
		}
	})
}
