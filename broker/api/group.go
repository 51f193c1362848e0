package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/replication/epoch/config"
)

// GroupPart is what a partition's leader says of groups there.
type GroupPart struct {
	States      []wire.GroupPartitionState `json:"states"`
	Start, Next int64                      // of the log
	Problem     string                     `json:"problem,omitempty"` // why there is no answer
	Moving      bool                       `json:"moving,omitempty"`  // it is that nobody leads it, for the moment
}

// GroupSum is one group on some of a topic's partitions.
type GroupSum struct {
	Topic   uint64 `json:"topic"`
	Group   string `json:"group"`
	Mode    string `json:"mode"`
	Members int    `json:"members"`
	Lag     int64  `json:"lag"`
	LagMS   int64  `json:"lag_ms"`
}

// Groups is what the API needs of the partitions' leaders for groups. Each is asked
// at the same time, for a bounded time.
type Groups interface {
	// GroupParts tells of one group, in the order of the question.
	GroupParts(ctx context.Context, group string, parts []Part) []GroupPart
	// GroupSums tells of all groups of the partitions; problems are of those that
	// gave no answer.
	GroupSums(ctx context.Context, parts []Part) (sums []GroupSum, problems []string)
	// SetGroup resets or deletes a group on each of the partitions: *wire.Error
	// where that failed, in the order of the question.
	SetGroup(ctx context.Context, parts []Part, q wire.GroupSetRequest) []error
	// Redrive puts dead letters back.
	Redrive(ctx context.Context, q wire.GroupRedriveRequest) (wire.GroupRedriven, error)
}

func partsOf(t *config.Topic) []Part {
	parts := make([]Part, len(t.Partitions))
	for n := range parts {
		parts[n] = Part{Topic: t.ID, Number: int32(n)}
	}
	return parts
}

func noGroup(topic, group string) *wire.Error {
	return failf(404, wire.ReasonGroupNotFound, "topic %s has no group %q", topic, group)
}

// groupOf finds the topic of a request about a group.
func (h *Handlers) groupOf(topic, group string) (*config.Topic, error) {
	if err := CheckGroupName(group); err != nil {
		return nil, err
	}
	t := h.Store.Current().Topic(topic)
	if t == nil {
		return nil, noTopic(topic)
	}
	return t, nil
}

// CheckGroupName says what is wrong with a group's name.
func CheckGroupName(name string) error {
	if name == "" || len(name) > wire.MaxGroupName || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}) {
		return failf(400, wire.ReasonBadRequest, "group %q: allowed are 1 to %d letters, digits, - and _", name[:min(len(name), 80)], wire.MaxGroupName)
	}
	return nil
}

// GroupList lists the groups of a topic, or of all.
func (h *Handlers) GroupList(ctx context.Context, q wire.GroupListRequest) (wire.GroupList, error) {
	c := h.Store.Current()
	if q.Topic != "" && c.Topic(q.Topic) == nil {
		return wire.GroupList{}, noTopic(q.Topic)
	}
	var parts []Part
	name := map[uint64]string{}
	for i := range c.Topics {
		if t := &c.Topics[i]; t.Live() && (q.Topic == "" || t.Name == q.Topic) {
			parts = append(parts, partsOf(t)...)
			name[t.ID] = t.Name
		}
	}
	sums, problems := h.Runtime.GroupSums(ctx, parts)
	type key struct{ topic, group string }
	at := map[key]int{}
	res := wire.GroupList{Groups: []wire.GroupSummary{}, Problems: problems}
	for _, s := range sums {
		k := key{name[s.Topic], s.Group}
		i, ok := at[k]
		if !ok {
			i = len(res.Groups)
			at[k] = i
			res.Groups = append(res.Groups, wire.GroupSummary{Topic: k.topic, Group: s.Group, Mode: s.Mode})
		}
		g := &res.Groups[i]
		g.Members = max(g.Members, s.Members)
		g.Lag += s.Lag
		g.LagMS = max(g.LagMS, s.LagMS)
	}
	slices.SortFunc(res.Groups, func(a, b wire.GroupSummary) int {
		return cmp.Or(strings.Compare(a.Topic, b.Topic), strings.Compare(a.Group, b.Group))
	})
	return res, nil
}

// GroupDescribe describes one group, partition by partition.
func (h *Handlers) GroupDescribe(ctx context.Context, q wire.GroupRequest) (wire.GroupDescription, error) {
	t, err := h.groupOf(q.Topic, q.Group)
	if err != nil {
		return wire.GroupDescription{}, err
	}
	parts := h.Runtime.GroupParts(ctx, q.Group, partsOf(t))
	res := wire.GroupDescription{
		Topic: q.Topic, Group: q.Group, Members: []wire.GroupMember{}, Partitions: make([]wire.GroupPartitionDescription, len(parts)),
	}
	// Partitions that were added below config.LevelAnchors have moved the anchor. The one before goes on counting its members out, for nobody.
	anchor := int(record.PartitionOf([]byte(q.Group), t.Anchors()))
	known, anchored, silent := false, false, ""
	for n := range parts {
		if parts[n].Problem != "" {
			silent = parts[n].Problem
		}
		for _, s := range parts[n].States {
			if !known {
				res.Mode, res.Options = s.Mode, s.Options
			}
			known = true
			if s.Anchor && (n == anchor || !anchored && s.Generation >= res.Generation) {
				anchored = n == anchor
				res.Generation, res.Members, res.Mode, res.Options = s.Generation, s.Members, s.Mode, s.Options
			}
		}
	}
	switch {
	case known:
	case silent != "":
		return wire.GroupDescription{}, retriable(503, wire.ReasonUnavailable, "no partition of topic %s that answers knows the group %q, and not all do: %s", q.Topic, q.Group, silent)
	default:
		return wire.GroupDescription{}, noGroup(q.Topic, q.Group)
	}
	names := map[string]string{}
	for _, m := range res.Members {
		names[m.ID] = cmp.Or(m.Name, m.ID)
	}
	for n := range parts {
		d := describeGroup(&parts[n], int32(n), &res)
		d.Member = cmp.Or(names[d.Member], d.Member)
		res.Partitions[n] = d
		res.Lag += d.Lag
		res.LagMS = max(res.LagMS, d.LagMS)
	}
	return res, nil
}

func describeGroup(p *GroupPart, n int32, g *wire.GroupDescription) wire.GroupPartitionDescription {
	d := wire.GroupPartitionDescription{Partition: n, Committed: -1, NextOffset: p.Next, Problem: p.Problem}
	if d.Problem != "" {
		return d
	}
	// An anchor that nobody reads is as untouched as no state at all.
	if len(p.States) > 0 && !p.States[0].Untouched {
		s := &p.States[0]
		d.Member, d.Committed, d.NextOffset, d.Lag, d.LagMS = s.Member, s.Committed, s.Next, s.Lag, s.LagMS
		d.Pending, d.Redelivering, d.Token, d.Redelivered, d.DeadLetters = s.Pending, s.Redelivering, s.Token, s.Redelivered, s.DeadLetters
		d.Problem = s.Problem
		return d
	}
	// Nobody has come for it yet: all that the group would begin with is its lag.
	if g.Options.From != "latest" {
		d.Lag = p.Next - p.Start
	}
	return d
}

// GroupReset moves a group to another position, on one partition or on all.
func (h *Handlers) GroupReset(ctx context.Context, q wire.GroupResetRequest) (wire.GroupChange, error) {
	t, err := h.groupOf(q.Topic, q.Group)
	if err != nil {
		return wire.GroupChange{}, err
	}
	parts := partsOf(t)
	if q.Partition != nil {
		if _, err := findPartition(h.Store.Current(), q.Topic, *q.Partition); err != nil {
			return wire.GroupChange{}, err
		}
		parts = parts[*q.Partition : *q.Partition+1]
	}
	if _, err := strconv.ParseInt(q.To, 10, 64); err == nil && len(parts) > 1 {
		return wire.GroupChange{}, failf(400, wire.ReasonBadRequest, "to %s: topic %s has %d partitions and an offset belongs to one: name it, or reset to earliest, latest or a time", q.To, q.Topic, len(parts))
	}
	return h.setGroup(ctx, t, parts, wire.GroupSetRequest{Group: q.Group, To: q.To}, "reset")
}

// GroupDelete forgets a group on all partitions.
func (h *Handlers) GroupDelete(ctx context.Context, q wire.GroupRequest) (wire.GroupChange, error) {
	t, err := h.groupOf(q.Topic, q.Group)
	if err != nil {
		return wire.GroupChange{}, err
	}
	return h.setGroup(ctx, t, partsOf(t), wire.GroupSetRequest{Group: q.Group, Delete: true}, "deleted")
}

// maxPartialText bounds how many partitions a partial failure names.
const maxPartialText = 4

// setGroup changes a group on partitions. Where some fail, the error says which
// and what has been done: the request can be repeated.
func (h *Handlers) setGroup(ctx context.Context, t *config.Topic, parts []Part, q wire.GroupSetRequest, change string) (wire.GroupChange, error) {
	done, unknown := 0, 0
	var failed []string
	var first *wire.Error
	for i, err := range h.Runtime.SetGroup(ctx, parts, q) {
		var e *wire.Error
		switch {
		case err == nil:
			done++
			continue
		case errors.As(err, &e):
		default:
			e = AsError(err)
		}
		if e.Reason == wire.ReasonGroupNotFound {
			unknown++
			continue
		}
		if first == nil {
			first = e
		}
		if len(failed) < maxPartialText {
			failed = append(failed, fmt.Sprintf("partition %d: %s", parts[i].Number, e.Description))
		}
	}
	wrong := len(parts) - done - unknown
	switch {
	case first != nil && done == 0 && wrong == len(parts):
		e := *first
		e.Description = fmt.Sprintf("group %s of topic %s was %s nowhere: %s", q.Group, t.Name, change, strings.Join(failed, "; "))
		return wire.GroupChange{}, &e
	case first != nil:
		if more := wrong - len(failed); more > 0 {
			failed = append(failed, fmt.Sprintf("and %d more", more))
		}
		e := *first
		e.Description = fmt.Sprintf("group %s of topic %s was %s on %d of %s, not on: %s. Repeat the request", q.Group, t.Name, change,
			done, plural(len(parts), "partition"), strings.Join(failed, "; "))
		return wire.GroupChange{}, &e
	case done == 0:
		return wire.GroupChange{}, noGroup(t.Name, q.Group)
	}
	res := wire.GroupChange{Topic: t.Name, Group: q.Group, Change: change, Detail: plural(done, "partition")}
	if q.To != "" {
		res.Detail += " to " + q.To
	}
	return res, nil
}

// GroupRedrive puts dead letters back into their topic.
func (h *Handlers) GroupRedrive(ctx context.Context, q wire.GroupRedriveRequest) (wire.GroupRedriven, error) {
	if _, err := h.groupOf(q.Topic, q.Group); err != nil {
		return wire.GroupRedriven{}, err
	}
	if q.Limit < 0 || q.Limit > wire.MaxRedrive {
		return wire.GroupRedriven{}, failf(400, wire.ReasonBadRequest, "limit %d: allowed are 1 to %d", q.Limit, wire.MaxRedrive)
	}
	if q.Limit == 0 {
		q.Limit = wire.MaxRedrive
	}
	return h.Runtime.Redrive(ctx, q)
}
