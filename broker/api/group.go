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
	// From is where the group begins, Span how many records the partitions hold that it has come to.
	From string `json:"from,omitempty"`
	Span int64  `json:"span,omitempty"`
}

// TopicSpan is how many records some of a topic's partitions hold.
type TopicSpan struct {
	Topic   uint64 `json:"topic"`
	Records int64  `json:"records"`
}

// Silence is about partitions that gave no answer.
type Silence struct {
	Topic   uint64  `json:"topic"`
	Numbers []int32 `json:"numbers"`
	Problem string  `json:"problem"`
}

// GroupsSeen is what those said that answered, and who didn't.
type GroupsSeen struct {
	Sums     []GroupSum
	Spans    []TopicSpan
	Silent   []Silence
	Problems []string
}

// Groups is what the API needs of the partitions' leaders for groups. Each is asked
// at the same time, for a bounded time.
type Groups interface {
	// GroupParts tells of one group, in the order of the question.
	GroupParts(ctx context.Context, group string, parts []Part) []GroupPart
	// GroupSums tells of all groups of the partitions.
	GroupSums(ctx context.Context, parts []Part) GroupsSeen
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
	seen := h.Runtime.GroupSums(ctx, parts)
	type key struct{ topic, group string }
	at := map[key]int{}
	res := wire.GroupList{Groups: []wire.GroupSummary{}, Problems: seen.Problems}
	read := map[key]int64{} // of what a topic's partitions hold, where somebody has come for it
	begin := map[key]string{}
	for _, s := range seen.Sums {
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
		read[k] += s.Span
		begin[k] = cmp.Or(s.From, begin[k])
	}
	holds := map[string]int64{}
	for _, s := range seen.Spans {
		holds[name[s.Topic]] += s.Records
	}
	for i := range res.Groups {
		g := &res.Groups[i]
		if k := (key{g.Topic, g.Group}); begin[k] != "latest" {
			g.Lag += max(0, holds[g.Topic]-read[k]) // partitions that nobody has come for yet
		}
	}
	h.silence(&res, seen.Silent, c, name)
	slices.SortFunc(res.Groups, func(a, b wire.GroupSummary) int {
		return cmp.Or(strings.Compare(a.Topic, b.Topic), strings.Compare(a.Group, b.Group))
	})
	return res, nil
}

// silence tells of partitions that gave no answer: what only they know is shown as unknown, not as none.
func (h *Handlers) silence(res *wire.GroupList, silent []Silence, c *config.Config, name map[uint64]string) {
	numbers, texts := map[string][]int32{}, map[string][]string{}
	for _, s := range silent {
		topic := name[s.Topic]
		slices.Sort(s.Numbers)
		numbers[topic] = append(numbers[topic], s.Numbers...)
		texts[topic] = append(texts[topic], fmt.Sprintf("partition %s: %s", numberList(s.Numbers), s.Problem))
	}
	for topic, text := range texts {
		slices.Sort(text)
		texts[topic] = text
		res.Problems = append(res.Problems, fmt.Sprintf("topic %s, %s. Groups that only these know are not listed", topic, strings.Join(text, "; ")))
	}
	slices.Sort(res.Problems)
	for i := range res.Groups {
		g := &res.Groups[i]
		if len(numbers[g.Topic]) == 0 {
			continue
		}
		g.Problem = fmt.Sprintf("%s. The others lag %s", strings.Join(texts[g.Topic], "; "), plural(int(g.Lag), "record"))
		g.Lag, g.LagMS = -1, -1
		if t := c.Topic(g.Topic); slices.Contains(numbers[g.Topic], record.PartitionOf([]byte(g.Group), t.Anchors())) {
			g.Members = -1
			g.Problem += "; one of them is the group's anchor, which knows its members"
		}
	}
}

// maxNumbersText bounds the partitions that a text names.
const maxNumbersText = 8

func numberList(numbers []int32) string {
	text := make([]string, 0, maxNumbersText+1)
	for i, n := range numbers {
		if i == maxNumbersText {
			text = append(text, fmt.Sprintf("and %d more", len(numbers)-i))
			break
		}
		text = append(text, strconv.Itoa(int(n)))
	}
	return strings.Join(text, ", ")
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
				res.Generation, res.Mode, res.Options = s.Generation, s.Mode, s.Options
				res.Members = append([]wire.GroupMember{}, s.Members...) // a list also where there are none
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
	unknown := false
	for n := range parts {
		d := describeGroup(&parts[n], int32(n), &res)
		d.Member = cmp.Or(names[d.Member], d.Member)
		res.Partitions[n] = d
		res.Lag += d.Lag
		res.LagMS = max(res.LagMS, d.LagMS)
		unknown = unknown || parts[n].Problem != ""
	}
	if unknown {
		res.Lag, res.LagMS = -1, -1
	}
	if why := parts[anchor].Problem; why != "" {
		res.Problem = fmt.Sprintf("who the members are is not known: partition %d, the group's anchor, gives no answer: %s", anchor, why)
	}
	return res, nil
}

func describeGroup(p *GroupPart, n int32, g *wire.GroupDescription) wire.GroupPartitionDescription {
	d := wire.GroupPartitionDescription{Partition: n, Committed: -1, NextOffset: p.Next, Problem: p.Problem}
	if d.Problem != "" { // nothing is known, which is not the same as nothing
		d.NextOffset, d.Lag, d.LagMS, d.Pending, d.Redelivering = -1, -1, -1, -1, -1
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
