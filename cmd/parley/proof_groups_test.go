package main

import (
	"strings"
	"testing"
	"time"
)

// TestGroupsProof is the short form of proof groups: that partitions move as they should, that what a member that sleeps commits is
// refused, and that everything is handled. How long anything takes is for a quiet machine to tell.
func TestGroupsProof(t *testing.T) {
	longProof(t)
	t.Setenv(asTool, "1") // members are this program
	parleyd := buildParleyd(t)
	t.Setenv("TMPDIR", t.TempDir())
	o := processTool(t, "proof", "groups", "--parleyd", parleyd, "--partitions", "8", "--session", "2s", "--steady", "1s", "--slack", "1m", "-o", "json")
	t.Log(strings.TrimSpace(o.stderr))
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s", o.code, o.stdout)
	}
	r := decode(t, o.stdout)
	if r["unhandled"] != 0.0 || r["commits_taken"] != 0.0 || r["commits_refused"] == 0.0 || r["records"] == 0.0 {
		t.Errorf("%v", r)
	}
	events, _ := r["events"].([]any)
	if len(events) != 5 {
		t.Fatalf("%d events: %v", len(events), events)
	}
	for _, e := range events {
		e, _ := e.(map[string]any)
		moved, _ := e["moved"].(float64)
		unmoved, _ := e["unmoved"].(float64)
		if moved < 2 || unmoved < 2 || moved+unmoved != 8 {
			t.Errorf("%v", e)
		}
	}
}

// TestHandoverAccount: how long records waited, and on whose partitions, comes out of what the members said in any order.
func TestHandoverAccount(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_700_000_000, 0)
	at := func(ms int64) int64 { return began.Add(time.Duration(ms) * time.Millisecond).UnixNano() }
	when := func(ms int64) time.Time { return time.Unix(0, at(ms)) }
	h := newHandover(3)
	for n := range int64(20) { // partition 0 stays with a, 100 ms between records
		h.add(groupEvent{"a", 0, n, 5, at(100 * n), at(100*n + 3)})
	}
	for n := range int64(10) { // partition 1 goes from a to b after 1000
		h.add(groupEvent{"a", 1, n, 6, at(100 * n), at(100*n + 4)})
	}
	before := h.owners()
	for n := int64(19); n >= 10; n-- { // what b handles is heard late first
		h.add(groupEvent{"b", 1, n, 9, at(100 * n), max(at(100*n+5), at(1700))})
	}
	h.add(groupEvent{"a", 1, 10, 6, at(1000), at(1900)}) // under the old token, and again
	after := h.owners()
	if before[1] != "a" || after[1] != "b" || after[0] != "a" || after[2] != "" {
		t.Fatalf("%v, then %v", before, after)
	}
	if handled, again, stale := h.count(); handled != 40 || again != 1 || stale != 1 {
		t.Errorf("%d handled, %d again, %d under an old token", handled, again, stale)
	}
	row := h.judge("x", before[:2], after[:2], when(950), when(2000), 700*time.Millisecond, 3*time.Millisecond)
	if row.Moved != 1 || row.Unmoved != 1 || row.MovedMS != 700 || row.UnmovedMS != 3 || !row.WithinLimits {
		t.Errorf("%+v", row)
	}
	for _, limits := range [][2]time.Duration{{699 * time.Millisecond, time.Second}, {time.Second, 2 * time.Millisecond}} {
		if row := h.judge("x", before[:2], after[:2], when(950), when(2000), limits[0], limits[1]); row.WithinLimits {
			t.Errorf("%v: %+v", limits, row)
		}
	}
	// Of a wait that had begun before, what lies within counts.
	if gap := h.gap(1, when(1500), when(2000)); gap != 200*time.Millisecond {
		t.Errorf("%s", gap)
	}
	if n := h.behind([]int64{20, 20, 2}); n != 2 {
		t.Errorf("%d behind", n)
	}
	for _, c := range []struct {
		owners, members string
		even            bool
	}{
		{"aabb", "ab", true}, {"aaab", "ab", false}, {"aab", "ab", true}, {"aabc", "ab", false}, {"aa_b", "ab", false}, {"abc", "abc", true},
	} {
		if got := even(strings.Split(c.owners, ""), strings.Split(c.members, "")); got != c.even {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
