package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/group"
)

// die has member a end records with a reason.
func (r *rig) die(from, to int64, o group.Options) {
	r.t.Helper()
	dead := int64(0)
	r.until("dead", func() bool {
		for _, d := range r.pull("g", "a", 512, 0, o).Deliveries {
			if refused := r.ack("g", "a", group.AckItem{Kind: group.Term, First: d.First, Last: d.Last, Token: d.Token, Reason: "poison"}); len(refused) > 0 {
				r.t.Fatalf("%+v", refused)
			}
			dead += d.Last - d.First + 1
		}
		return dead == to-from
	})
}

// Dead letters that can't be written stay, with the reason, and hold up no other: neither those that died
// with them nor those that die later.
func TestUnwritableDeadLettersHoldUpNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	var mu sync.Mutex
	bad := []int64{0, 17, 63, 64, 65, 199}
	got := map[int64]int{}
	largest := 0
	r.deadLetter = func(_ context.Context, ls []DeadLetter) []error {
		mu.Lock()
		defer mu.Unlock()
		errs := make([]error, len(ls))
		failed := 0
		for i, l := range ls {
			if slices.Contains(bad, l.Record.Offset) {
				errs[i] = fmt.Errorf("offset %d is too large for the dead-letter topic", l.Record.Offset)
				failed++
				continue
			}
			got[l.Record.Offset]++
		}
		if failed == 0 {
			largest = max(largest, len(ls))
			return nil
		}
		return errs
	}
	r.open()
	r.fill(200)
	o := group.Options{Mode: group.Shared}
	r.die(0, 200, o)
	stuck := func(dead int64) func() bool {
		return func() bool {
			st := r.state("g")
			return st.DeadPending == 6 && int64(st.DeadLetters) == dead-6 && st.Committed == 0 && st.Lag == 6 &&
				strings.Contains(st.Problem, "offset 0 can't be written since ") && strings.Contains(st.Problem, "offset 0 is too large") && strings.Contains(st.Problem, "6 dead letters")
		}
	}
	r.until("only the unwritable are left", stuck(200))
	r.fill(50)
	r.die(200, 250, o)
	r.until("later ones are written meanwhile", stuck(250))
	r.host.elect() // the next leader finds out by itself
	r.waitLeading()
	r.waitGroups()
	r.until("told of by the next leader", func() bool { st := r.state("g"); return st.DeadPending == 6 && st.Problem != "" })
	mu.Lock()
	for _, o := range bad {
		if got[o] > 0 {
			t.Errorf("offset %d was written", o)
		}
	}
	bad = nil
	mu.Unlock()
	r.until("all are buried", func() bool { st := r.state("g"); return st.Committed == 250 && st.DeadPending == 0 && st.Problem == "" })
	mu.Lock()
	defer mu.Unlock()
	for o := range int64(250) {
		if got[o] != 1 {
			t.Errorf("offset %d was written %d times", o, got[o])
		}
	}
	if largest < 2 {
		t.Errorf("at most %d letters were written at once", largest)
	}
}

// A topic that takes nothing is asked seldom, and about each letter in its turn; what is set aside is bounded.
func TestGravesOfATopicThatTakesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1) // without DeadLetter nobody buries
	r.open()
	const n = buryStuck + 500
	r.fill(n)
	r.die(0, n, group.Options{Mode: group.Shared})
	gl := r.p.groups.Load()
	gl.mu.Lock()
	defer gl.mu.Unlock()
	v := &graves{of: gl.led["g"].d, stuck: map[int64]setAside{}}
	tried := map[int64]int{}
	now, calls := int64(1), 0
	for ; now < 2*3600_000; calls++ {
		dead, again, wait := v.next(now)
		if len(dead) == 0 {
			if wait <= 0 {
				t.Fatalf("at %d: nothing to do, and nothing to wait for", now)
			}
			now += wait.Milliseconds()
			continue
		}
		var failed []unburied
		for _, d := range dead {
			failed = append(failed, unburied{d.First, d.Last, errors.New("no room")})
			for o := d.First; o <= d.Last; o++ {
				tried[o]++
			}
		}
		v.tried(failed, 0, again, now, time.UnixMilli(now))
		if again {
			v.from = dead[len(dead)-1].Last + 1
		}
	}
	if len(v.stuck) != buryStuck || !strings.Contains(stuckText(v.told()), "the others wait") {
		t.Errorf("%d are set aside: %s", len(v.stuck), stuckText(v.told()))
	}
	if calls > 1200 {
		t.Errorf("%d calls in two hours", calls)
	}
	for o := range int64(buryStuck) {
		if tried[o] < 10 {
			t.Errorf("offset %d was tried %d times", o, tried[o])
		}
	}
}
