package epoch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

// bootstrap runs Bootstrap of each, for at most the time, and returns how each ended.
func bootstrap(limit time.Duration, nodes ...*node) []error {
	out := make([]error, len(nodes))
	done := make(chan struct{})
	for i, n := range nodes {
		go func() {
			ctx, cancel := within(limit)
			defer cancel()
			out[i] = n.c.Bootstrap(ctx)
			done <- struct{}{}
		}()
	}
	for range nodes {
		<-done
	}
	return out
}

func (w *world) up(nodes ...*node) {
	w.t.Helper()
	for _, n := range nodes {
		if err := n.start(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// wiped is the node of an emptied disk: another incarnation.
func (n *node) wipe(incarnation string) {
	n.stop()
	n.dir = newMemoryDirectory()
	n.self.Incarnation = incarnation
}

func bubble(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1)
			defer w.stop()
			f(t, w)
		})
	})
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	bubble(t, "one listed", func(t *testing.T, w *world) {
		w.formed(1)
	})
	bubble(t, "five, in any order, one late", func(t *testing.T, w *world) {
		nodes := w.listed(5)
		for i, n := range nodes {
			n.genesis = func() *config.Config { l := list(5); l[0], l[i] = l[i], l[0]; return Initial(l) }
		}
		w.up(nodes[:4]...)
		go func() {
			time.Sleep(30 * time.Second)
			w.up(nodes[4])
			bootstrap(time.Minute, nodes[4])
		}()
		begun := time.Now()
		for i, err := range bootstrap(time.Minute, nodes[:4]...) {
			if err != nil {
				t.Errorf("b%d: %v", i+1, err)
			}
		}
		if took := time.Since(begun); took < 30*time.Second || took > 32*time.Second {
			t.Errorf("it took %v", took)
		}
		if got := nodes[0].waits; len(got) < 2 || got[0] == "" || !strings.Contains(strings.Join(got, "\n"), "b5 at b5:6222: connection refused") || got[len(got)-1] != "" {
			t.Errorf("told %q", got)
		}
		w.settle(1, time.Second)
		if c := nodes[4].c.Current(); len(c.Council) != 5 || len(c.Brokers) != 5 {
			t.Errorf("%+v", c)
		}
	})
	bubble(t, "seven have a council of five", func(t *testing.T, w *world) {
		nodes := w.formed(7)
		var got uint64
		if c, err := nodes[6].c.Propose(t.Context(), count("a", &got)); err != nil || len(c.Council) != 5 {
			t.Errorf("%v, %v", c.Council, err)
		}
		w.settle(2, time.Second)
	})
	bubble(t, "lists differ", func(t *testing.T, w *world) {
		nodes := w.listed(3)
		nodes[1].genesis = func() *config.Config { l := list(3); l[2].Address = "b9:6222"; return Initial(l) }
		w.up(nodes...)
		errs := bootstrap(10*time.Second, nodes[:2]...)
		for i, want := range []string{"broker b2 at b2:6222 was given another one: b3 is b9:6222 there and b3:6222 here", "b3 is b3:6222 there and b9:6222 here"} {
			if !errors.Is(errs[i], ErrDifferentList) || !strings.Contains(errs[i].Error(), want) {
				t.Errorf("b%d: %v, want %q", i+1, errs[i], want)
			}
		}
		// Started again with the right list, it is welcome.
		nodes[1].stop()
		nodes[1].genesis = nodes[0].genesis
		w.up(nodes[1])
		for i, err := range bootstrap(10*time.Second, nodes...) {
			if err != nil {
				t.Errorf("b%d: %v", i+1, err)
			}
		}
	})
	bubble(t, "one list is longer", func(t *testing.T, w *world) {
		nodes := w.listed(2)
		nodes[1].genesis = func() *config.Config { return Initial(list(3)) }
		w.up(nodes...)
		errs := bootstrap(5*time.Second, nodes...)
		for i, want := range []string{"only there: b3=b3:6222", "only here: b3=b3:6222"} {
			if !errors.Is(errs[i], ErrDifferentList) || !strings.Contains(errs[i].Error(), want) {
				t.Errorf("b%d: %v", i+1, errs[i])
			}
		}
	})
	bubble(t, "addresses swapped", func(t *testing.T, w *world) {
		nodes := w.listed(3)
		w.byAddress["b2:6222"], w.byAddress["b3:6222"] = nodes[2], nodes[1]
		w.up(nodes...)
		if errs := bootstrap(5*time.Second, nodes[0]); !errors.Is(errs[0], ErrDifferentList) || !strings.Contains(errs[0].Error(), "answers a broker that is named") {
			t.Error(errs)
		}
	})
	bubble(t, "a copied directory", func(t *testing.T, w *world) {
		nodes := w.listed(2)
		nodes[1].self.Incarnation = nodes[0].self.Incarnation
		w.up(nodes...)
		if errs := bootstrap(5*time.Second, nodes[0]); errs[0] == nil || !strings.Contains(errs[0].Error(), "the data directory was copied") {
			t.Error(errs)
		}
	})
	bubble(t, "a wiped disk", func(t *testing.T, w *world) {
		nodes := w.formed(3)
		nodes[2].wipe("another")
		w.up(nodes[2])
		if errs := bootstrap(5*time.Second, nodes[2]); !errors.Is(errs[0], ErrWiped) || !strings.Contains(errs[0].Error(), "--join") {
			t.Error(errs)
		}
		if nodes[2].c.Current().Epoch != 0 {
			t.Error("a wiped disk learned an epoch that doesn't name it")
		}
	})
	bubble(t, "a wiped disk, all others are down", func(t *testing.T, w *world) {
		nodes := w.formed(3)
		nodes[0].stop()
		nodes[1].stop()
		nodes[2].wipe("another")
		w.up(nodes[2])
		if errs := bootstrap(10*time.Second, nodes[2]); !errors.Is(errs[0], context.DeadlineExceeded) || nodes[2].c.Current().Epoch != 0 {
			t.Error(errs)
		}
	})
	bubble(t, "wiped while the cluster forms", func(t *testing.T, w *world) {
		// All but the last vote; then that one's disk is replaced.
		nodes := w.listed(3)
		w.up(nodes...)
		go bootstrap(20*time.Second, nodes[0], nodes[1])
		time.Sleep(100 * time.Millisecond)
		nodes[2].wipe("another")
		w.up(nodes[2])
		errs := bootstrap(20*time.Second, nodes[2])
		one := nodes[0].c.Current()
		switch {
		case one.Epoch == 1 && one.Brokers[2].Incarnation == "another" && errs[0] == nil:
		case one.Epoch == 1 && one.Brokers[2].Incarnation != "another" && errors.Is(errs[0], ErrWiped):
		default:
			t.Errorf("epoch %d, %v", one.Epoch, errs)
		}
	})
	bubble(t, "crashes while the cluster forms", func(t *testing.T, w *world) {
		nodes := w.listed(3)
		for _, n := range nodes {
			n.dir.slowTo(2 * time.Millisecond)
		}
		w.up(nodes...)
		for round := range 20 {
			ended := make(chan struct{})
			go func() { bootstrap(time.Duration(5+round)*time.Millisecond, nodes...); close(ended) }()
			<-ended
			n := nodes[round%3]
			n.crash()
			w.up(n)
		}
		for i, err := range bootstrap(10*time.Second, nodes...) {
			if err != nil {
				t.Errorf("b%d: %v", i+1, err)
			}
		}
		w.settle(1, time.Second)
	})
	bubble(t, "a restart forgets the list", func(t *testing.T, w *world) {
		nodes := w.formed(3)
		for _, n := range nodes {
			n.stop()
			n.genesis = func() *config.Config { return Initial(list(2)) } // what it says doesn't matter any more
		}
		w.up(nodes...)
		for _, err := range bootstrap(time.Second, nodes...) {
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// lone is a broker alone, whose cluster others may join.
func (w *world) lone() *node {
	w.t.Helper()
	n := w.add(1, broker("b1"), func() *config.Config { return Lone("b1") })
	w.up(n)
	if err := bootstrap(time.Second, n)[0]; err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) join(name string, seeds ...string) (*node, error) {
	self := broker(name)
	n := &node{w: w, self: self, dir: newMemoryDirectory(), seeds: seeds}
	ctx, cancel := within(20 * time.Second)
	defer cancel()
	j, err := Join(ctx, JoinOptions{Self: self, Seeds: seeds, Ask: n.ask, dir: n.dir})
	if err != nil {
		return n, err
	}
	added := w.add(j.ID, self, nil)
	added.dir, added.seeds, added.self.ID = n.dir, seeds, j.ID
	if err := added.start(); err != nil {
		return added, err
	}
	return added, added.c.Bootstrap(ctx)
}

func TestJoin(t *testing.T) {
	t.Parallel()
	bubble(t, "one by one, from a lone broker", func(t *testing.T, w *world) {
		first := w.lone()
		var got uint64
		for i := range 2*KeepValues + 50 {
			if _, err := first.c.Propose(t.Context(), count(fmt.Sprint(i), &got)); err != nil {
				t.Fatal(err)
			}
		}
		for i := 2; i <= 5; i++ {
			n, err := w.join(fmt.Sprintf("b%d", i), "b9:1", "b1:6222")
			if err != nil {
				t.Fatal(err)
			}
			if n.id != uint64(i) {
				t.Errorf("id %d", n.id)
			}
		}
		for end := time.Now().Add(20 * time.Second); len(first.c.Current().Council) != 5; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("council %v", first.c.Current().Council)
			}
		}
		newest := w.settle(1, 5*time.Second)
		for _, n := range w.all() {
			if got := len(n.c.History(newest, 1000)); got != int(newest)+1 {
				t.Errorf("broker %d has %d headers", n.id, got)
			}
		}
		first.crash() // and the others decide without it
		if c, err := w.nodes[5].c.Propose(t.Context(), count("without the first", &got)); err != nil || c.NextTopic != 2*KeepValues+52 {
			t.Errorf("counter %d, %v", c.NextTopic, err)
		}
	})
	bubble(t, "twice", func(t *testing.T, w *world) {
		first := w.lone()
		n := &node{w: w, self: broker("b2")}
		for range 2 { // the second time its disk lost the answer
			j, err := Join(t.Context(), JoinOptions{Self: n.self, Seeds: []string{"b1:6222"}, Ask: n.ask, dir: newMemoryDirectory()})
			if err != nil || j.ID != 2 || j.Epoch != 2 || j.Cluster != first.c.Current().ClusterID {
				t.Errorf("%+v, %v", j, err)
			}
		}
	})
	bubble(t, "twice under two names", func(t *testing.T, w *world) {
		w.lone()
		n := &node{w: w, self: broker("b2")}
		if _, err := Join(t.Context(), JoinOptions{Self: n.self, Seeds: []string{"b1:6222"}, Ask: n.ask, dir: newMemoryDirectory()}); err != nil {
			t.Fatal(err)
		}
		n.self.Name = "b9"
		_, err := Join(t.Context(), JoinOptions{Self: n.self, Seeds: []string{"b1:6222"}, Ask: n.ask, dir: newMemoryDirectory()})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "has joined already, as broker b2 (id 2)") {
			t.Error(err)
		}
	})
	bubble(t, "a program that is too old", func(t *testing.T, w *world) {
		first := w.lone()
		if _, err := first.c.Propose(t.Context(), func(c *config.Config) error { c.FeatureLevel = 1; return nil }); err != nil {
			t.Fatal(err)
		}
		n := &node{w: w, self: broker("b2")}
		o := JoinOptions{Self: n.self, Seeds: []string{"b1:6222"}, Ask: n.ask, dir: newMemoryDirectory()}
		if _, err := Join(t.Context(), o); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "use a newer version") {
			t.Error(err)
		}
		o.Level = 1
		if _, err := Join(t.Context(), o); err != nil || first.c.Current().Uneven == 0 {
			t.Error(err, first.c.Current().Uneven)
		}
	})
	bubble(t, "a name that is taken", func(t *testing.T, w *world) {
		w.lone()
		other := &node{w: w, self: broker("b1")}
		other.self.Incarnation = "another"
		_, err := Join(t.Context(), JoinOptions{Self: other.self, Seeds: []string{"b1:6222"}, Ask: other.ask, dir: newMemoryDirectory()})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "a broker named b1 is in the cluster and live") {
			t.Error(err)
		}
	})
	bubble(t, "a wiped disk comes back", func(t *testing.T, w *world) {
		nodes := w.formed(3)
		nodes[2].stop()
		w.mu.Lock()
		delete(w.nodes, 3)
		w.mu.Unlock()
		w.byAddress["b3:6222"] = nil
		self := broker("b3")
		self.Incarnation = "another"
		n := &node{w: w, self: self}
		dir := newMemoryDirectory()
		j, err := Join(t.Context(), JoinOptions{Self: self, Seeds: []string{"b2:6222"}, Ask: n.ask, dir: dir})
		if err != nil || j.ID != 4 {
			t.Fatalf("%+v, %v", j, err)
		}
		back := w.add(4, self, nil)
		back.dir, back.seeds = dir, []string{"b2:6222"}
		w.up(back)
		if err := bootstrap(5*time.Second, back)[0]; err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); fmt.Sprint(back.c.Current().Council) != "[1 2 4]"; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("council %v", back.c.Current().Council)
			}
		}
	})
	bubble(t, "nobody answers", func(t *testing.T, w *world) {
		n := &node{w: w, self: broker("b2")}
		ctx, cancel := within(3 * time.Second)
		defer cancel()
		if _, err := Join(ctx, JoinOptions{Self: n.self, Seeds: []string{"b1:6222"}, Ask: n.ask, dir: newMemoryDirectory()}); !errors.Is(err, errNobody) {
			t.Error(err)
		}
	})
}

func TestParseInitial(t *testing.T) {
	t.Parallel()
	if l, err := ParseInitial("b1=h1:1, b2=[::1]:2"); err != nil || fmt.Sprint(l) != "[{b1 h1:1} {b2 [::1]:2}]" {
		t.Errorf("%v, %v", l, err)
	}
	for _, s := range []string{"", "b1", "b1=h", "b1=:1", "b1=h:0", "=h:1", "b1=h:1,b1=h:2", "b1=h:1,b2=h:1", "b1=h:1,"} {
		if l, err := ParseInitial(s); err == nil {
			t.Errorf("%q: %v", s, l)
		}
	}
}
