package partition

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/parleymq/parley/partition/group"
)

// TestNoGroupsYet: where entries about groups are not allowed, none is written, whatever is asked;
// afterwards everything is as if nobody had asked.
func TestNoGroupsYet(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	r.open()
	r.fill(10)
	var allowed atomic.Bool
	r.p.c.NoGroups = func() string {
		if allowed.Load() {
			return ""
		}
		return "there are no groups yet"
	}
	ctx := context.Background()
	index := func() uint64 {
		r.p.m.applying.Lock()
		defer r.p.m.applying.Unlock()
		return r.p.m.state.index
	}
	before := index()
	pull := func() error {
		_, _, err := r.p.PullGroup(ctx, group.Pull{Group: "s", Member: "m", MaxMessages: 1}, nil)
		return err
	}
	refused := map[string]error{"a pull": pull()}
	_, refused["a lease"] = r.lease("m", 1, 0, 0)
	_, refused["a sync"] = r.p.SyncGroup(ctx, group.Sync{Group: "e", Member: "m", Generation: 1})
	if _, err := r.p.LeaveGroup(ctx, group.Leave{Group: "e", Member: "m"}); err != nil { // there is nothing to leave
		t.Errorf("a departure: %v", err)
	}
	_, refused["a join"] = r.p.JoinGroup(ctx, group.Join{Group: "e", Member: group.Member{ID: "m"}, Partitions: 1})
	refused["a deletion"] = r.p.SetGroup(ctx, group.Set{Group: "s", Delete: true})
	refused["a reset"] = r.p.SetGroup(ctx, group.Set{Group: "s"})
	for what, err := range refused {
		var e *Error
		if what == "a sync" && errors.Is(err, ErrUnknownMember) {
			continue
		}
		if !errors.As(err, &e) || e.Reason != ErrNotYet.Reason || !e.Retriable || e.Unknown {
			t.Errorf("%s: %v, want a definite refusal that may be tried again", what, err)
		}
	}
	if after := index(); after != before {
		t.Errorf("entries %d to %d were written", before+1, after)
	}
	allowed.Store(true)
	if err := pull(); err != nil {
		t.Errorf("allowed: %v", err)
	}
	if l := must[group.Lease](t)(r.lease("m", 1, 0, 0)); l.Token == 0 {
		t.Errorf("allowed: %+v", l)
	}
}
