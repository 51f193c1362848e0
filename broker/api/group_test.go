package api

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// grouped is a runtime whose partitions know what a test gives them.
type grouped struct {
	still
	parts []GroupPart
	set   []error
	asked []Part
	seen  GroupsSeen
}

func (g *grouped) GroupParts(_ context.Context, _ string, parts []Part) []GroupPart {
	g.asked = parts
	return g.parts
}
func (g *grouped) GroupSums(context.Context, []Part) GroupsSeen { return g.seen }
func (g *grouped) SetGroup(_ context.Context, parts []Part, _ wire.GroupSetRequest) []error {
	g.asked = parts
	return g.set[:len(parts)]
}

func groupHandlers(t *testing.T, g *grouped) *Handlers {
	t.Helper()
	h := handlers(t, 3)
	g.still = still{1}
	h.Runtime = g
	if _, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "orders", Partitions: 3, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestGroupDescribeAddsUp(t *testing.T) {
	t.Parallel()
	g := &grouped{parts: []GroupPart{
		{States: []wire.GroupPartitionState{{
			Group: "g", Mode: "shared", Committed: 4, Next: 10, Lag: 6, LagMS: 700, Pending: 2, Anchor: true, Generation: 7,
			Members: []wire.GroupMember{{ID: "x1", Name: "worker"}},
		}}, Next: 10},
		{States: []wire.GroupPartitionState{{Group: "g", Mode: "shared", Member: "x1", Committed: 5, Next: 9, Lag: 4, LagMS: 900}}, Next: 9},
		{Start: 2, Next: 5},
	}}
	d, err := groupHandlers(t, g).GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	// The third partition is one that nobody has come to yet.
	if d.Lag != 6+4+3 || d.LagMS != 900 || d.Generation != 7 || d.Partitions[1].Member != "worker" || d.Partitions[2].Committed != -1 {
		t.Errorf("%+v", d)
	}
}

// After partitions were added another one is the anchor. What the old one says is out of date, also when
// it has counted further.
func TestGroupDescribeAsksTheAnchor(t *testing.T) {
	t.Parallel()
	state := func(generation uint64, members ...wire.GroupMember) GroupPart {
		return GroupPart{States: []wire.GroupPartitionState{{Group: "g", Mode: "exclusive", Anchor: true, Generation: generation, Members: members}}}
	}
	anchor := record.PartitionOf([]byte("g"), 3)
	for old := range int32(3) {
		if old == anchor {
			continue
		}
		g := &grouped{parts: make([]GroupPart, 3)}
		g.parts[old], g.parts[anchor] = state(9), state(8, wire.GroupMember{ID: "x1"})
		h := groupHandlers(t, g)
		d, err := h.GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"})
		if err != nil || d.Generation != 8 || len(d.Members) != 1 {
			t.Errorf("old anchor %d: %+v, %v", old, d, err)
		}
		// While nobody has come to the new one, the old one is all there is.
		g.parts[anchor] = GroupPart{}
		if d, err := h.GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"}); err != nil || d.Generation != 9 {
			t.Errorf("only anchor %d: %+v, %v", old, d, err)
		}
	}
}

func TestGroupDescribeOfAnUnknownGroup(t *testing.T) {
	t.Parallel()
	g := &grouped{parts: make([]GroupPart, 3)}
	h := groupHandlers(t, g)
	var e *wire.Error
	if _, err := h.GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"}); !errors.As(err, &e) || e.Reason != wire.ReasonGroupNotFound || e.Retriable {
		t.Errorf("unknown: %v", err)
	}
	// Where not everybody answers, it may be there.
	g.parts[1].Problem = "its leader b2 does not answer"
	if _, err := h.GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"}); !errors.As(err, &e) || !e.Retriable || !strings.Contains(e.Description, "b2") {
		t.Errorf("silent: %v", err)
	}
}

func TestGroupChangesOnSomePartitions(t *testing.T) {
	t.Parallel()
	none := failf(404, wire.ReasonGroupNotFound, "not here")
	down := retriable(503, wire.ReasonNotLeader, "it has no leader")
	for name, c := range map[string]struct {
		set    []error
		reason string // "" for none
		text   []string
	}{
		"all":         {[]error{nil, nil, nil}, "", nil},
		"some know":   {[]error{nil, none, none}, "", nil},
		"none knows":  {[]error{none, none, none}, wire.ReasonGroupNotFound, nil},
		"one failed":  {[]error{nil, down, none}, wire.ReasonNotLeader, []string{"1 of 3 partitions", "partition 1: it has no leader", "Repeat"}},
		"all failed":  {[]error{down, down, down}, wire.ReasonNotLeader, []string{"nowhere"}},
		"none did it": {[]error{none, down, none}, wire.ReasonNotLeader, []string{"0 of 3"}},
	} {
		g := &grouped{set: c.set}
		res, err := groupHandlers(t, g).GroupDelete(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"})
		if c.reason == "" {
			if err != nil || res.Change != "deleted" || len(g.asked) != 3 {
				t.Errorf("%s: %+v, %v", name, res, err)
			}
			continue
		}
		var e *wire.Error
		if !errors.As(err, &e) || e.Reason != c.reason {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range c.text {
			if !strings.Contains(e.Description, s) {
				t.Errorf("%s: %q does not say %q", name, e.Description, s)
			}
		}
	}
}

func TestGroupResetRequests(t *testing.T) {
	t.Parallel()
	g := &grouped{set: make([]error, 3)}
	h := groupHandlers(t, g)
	one, nine := int32(1), int32(9)
	if res, err := h.GroupReset(t.Context(), wire.GroupResetRequest{Topic: "orders", Group: "g", To: "17", Partition: &one}); err != nil ||
		len(g.asked) != 1 || g.asked[0].Number != 1 || res.Detail != "1 partition to 17" {
		t.Errorf("%+v %v, asked %v", res, err, g.asked)
	}
	for want, q := range map[string]wire.GroupResetRequest{
		"an offset belongs to one":      {Topic: "orders", Group: "g", To: "17"},
		"topic orders has no partition": {Topic: "orders", Group: "g", To: "latest", Partition: &nine},
		"there is no topic":             {Topic: "other", Group: "g", To: "latest"},
		"allowed are 1 to 64 letters":   {Topic: "orders", Group: "a.b", To: "latest"},
	} {
		if _, err := h.GroupReset(t.Context(), q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestGroupListAddsUpBrokers(t *testing.T) {
	t.Parallel()
	g := &grouped{}
	h := groupHandlers(t, g)
	id := h.Store.Current().Topic("orders").ID
	g.seen.Sums = []GroupSum{
		{Topic: id, Group: "b", Mode: "shared", Lag: 1, From: "latest", Span: 10},
		{Topic: id, Group: "a", Mode: "exclusive", Lag: 2, LagMS: 5, From: "earliest", Span: 10}, {Topic: id, Group: "a", Members: 3, Lag: 4, LagMS: 3, From: "earliest", Span: 10},
	}
	g.seen.Spans = []TopicSpan{{id, 20}, {id, 7}} // a third partition has 7 records, and nobody has come for them
	res, err := h.GroupList(t.Context(), wire.GroupListRequest{})
	if err != nil || len(res.Groups) != 2 || res.Groups[0] != (wire.GroupSummary{Topic: "orders", Group: "a", Mode: "exclusive", Members: 3, Lag: 6 + 7, LagMS: 5}) ||
		res.Groups[1].Lag != 1 || len(res.Problems) != 0 {
		t.Errorf("%+v %v", res, err)
	}
}

// What partitions know that give no answer is shown as unknown, with the reason: neither as none nor as zero.
func TestGroupsOfSilentPartitions(t *testing.T) {
	t.Parallel()
	g := &grouped{}
	h := groupHandlers(t, g)
	id := h.Store.Current().Topic("orders").ID
	anchor := record.PartitionOf([]byte("g"), 3)
	const why = "its leader b2 does not answer"
	for _, silent := range []int32{anchor, (anchor + 1) % 3} {
		g.seen = GroupsSeen{
			Sums:   []GroupSum{{Topic: id, Group: "g", Mode: "shared", Members: 2, Lag: 5, LagMS: 9}},
			Silent: []Silence{{Topic: id, Numbers: []int32{silent}, Problem: why}},
		}
		res, err := h.GroupList(t.Context(), wire.GroupListRequest{})
		if err != nil || len(res.Groups) != 1 || len(res.Problems) != 1 || !strings.Contains(res.Problems[0], why) {
			t.Fatalf("%+v, %v", res, err)
		}
		one, members := res.Groups[0], 2
		if silent == anchor {
			members = -1
		}
		if one.Lag != -1 || one.LagMS != -1 || one.Members != members || !strings.Contains(one.Problem, why) || !strings.Contains(one.Problem, "5 records") {
			t.Errorf("partition %d is silent, the anchor is %d: %+v", silent, anchor, one)
		}
		g.parts = make([]GroupPart, 3)
		for n := range g.parts {
			g.parts[n] = GroupPart{States: []wire.GroupPartitionState{{Group: "g", Mode: "shared", Token: 1, Committed: 1, Next: 6, Lag: 5}}, Next: 6}
		}
		g.parts[silent] = GroupPart{Problem: why}
		d, err := h.GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"})
		if err != nil || d.Lag != -1 || d.LagMS != -1 || d.Partitions[silent].Lag != -1 || d.Partitions[silent].NextOffset != -1 || d.Partitions[silent].Pending != -1 ||
			d.Partitions[silent].Problem != why || d.Partitions[(silent+2)%3].Lag != 5 {
			t.Errorf("described as %+v, %v", d, err)
		}
		if known := d.Problem == ""; known != (silent != anchor) {
			t.Errorf("partition %d is silent, the anchor is %d: problem %q", silent, anchor, d.Problem)
		}
	}
}
