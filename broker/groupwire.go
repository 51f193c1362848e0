package broker

import (
	"strconv"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/replication/epoch/config"
)

// What groups are called on the wire and in a partition, both ways.

// parsePosition takes what a group's From or a reset's To may be: earliest, latest, an
// offset, a time (RFC 3339) or a time before now (-1h).
func parsePosition(s string, now time.Time) (group.Position, *wire.Error) {
	switch s {
	case "", "earliest":
		return group.Position{Kind: group.Earliest}, nil
	case "latest":
		return group.Position{Kind: group.Latest}, nil
	}
	if n, ok := number64([]byte(s)); ok {
		return group.Position{Kind: group.AtOffset, Value: n}, nil
	}
	if s[0] == '-' {
		if d, err := wire.ParseAge(s[1:]); err == nil {
			return group.Position{Kind: group.AtTime, Value: now.Add(-d).UnixMilli()}, nil
		}
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return group.Position{Kind: group.AtTime, Value: t.UnixMilli()}, nil
	}
	return group.Position{}, badRequest("position %q: allowed are earliest, latest, an offset, a time like 2026-01-31T08:00:00Z, or -1h", clip([]byte(s)))
}

func positionText(p group.Position) string {
	switch p.Kind {
	case group.Earliest:
		return "earliest"
	case group.Latest:
		return "latest"
	case group.AtOffset:
		return strconv.FormatInt(p.Value, 10)
	}
	return time.UnixMilli(p.Value).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// groupOptions checks what a member asks for. What it leaves out stays zero.
func (c *groupCall) options(name string, o *wire.GroupOptions) (group.Options, error) {
	return c.b.groupOptions(c.topic.name, name, o)
}

func (b *Broker) groupOptions(topic, name string, o *wire.GroupOptions) (group.Options, error) {
	if err := api.CheckGroupName(name); err != nil {
		return group.Options{}, err
	}
	mode, err := group.ParseMode(o.Mode)
	if err != nil {
		return group.Options{}, badRequest("%v", err)
	}
	from, werr := parsePosition(o.From, b.c.Clock())
	if werr != nil {
		return group.Options{}, werr
	}
	if len(o.BackoffMS) > wire.MaxBackoffSteps {
		return group.Options{}, badRequest("%d back-off steps, at most %d are allowed", len(o.BackoffMS), wire.MaxBackoffSteps)
	}
	for _, v := range []struct {
		name      string
		is        int64
		low, high int64
	}{
		{"session_ms", o.SessionMS, wire.MinSessionMS, wire.MaxSessionMS},
		{"ack_wait_ms", o.AckWaitMS, 1, group.MaxDelayMS},
		{"max_deliveries", int64(o.MaxDeliveries), 1, 1<<31 - 1},
		{"max_in_flight", int64(o.MaxInFlight), 1, wire.MaxInFlight},
		{"max_in_flight_member", int64(o.MaxInFlightMember), 1, wire.MaxInFlight},
	} {
		if v.is != 0 && (v.is < v.low || v.is > v.high) {
			return group.Options{}, badRequest("%s %d: allowed are %d to %d", v.name, v.is, v.low, v.high)
		}
	}
	for _, ms := range o.BackoffMS {
		if ms < 0 || ms > group.MaxDelayMS {
			return group.Options{}, badRequest("backoff_ms %d: allowed are 0 to %d", ms, group.MaxDelayMS)
		}
	}
	named := o.DeadLetter
	// Of an exclusive group members write dead letters themselves. For the others a name
	// that can't be a topic's would be noticed when the first one is to be written.
	if mode != group.Exclusive && (mode != 0 || o.DeadLetter != "") {
		if err := config.CheckTopicName(deadLetterTopic(topic, name, o.DeadLetter)); err != nil {
			return group.Options{}, badRequest("the group's dead-letter topic: %v: name another by dead_letter", err)
		}
	}
	if o.DeadLetter == deadLetterTopic(topic, name, "") {
		named = "" // as members hear it from their anchor: the same as none
	}
	return group.Options{
		Mode: mode, From: from, SessionMS: o.SessionMS, AckWaitMS: o.AckWaitMS, MaxDeliveries: o.MaxDeliveries,
		BackoffMS: o.BackoffMS, MaxInFlight: o.MaxInFlight, MaxInFlightMember: o.MaxInFlightMember, DeadLetter: named,
		Partitions: min(max(o.Partitions, 0), wire.MaxPartitions),
	}, nil
}

// deadLetterTopic is where a group's dead letters go; named is the group's option.
func deadLetterTopic(topic, name, named string) string {
	if named != "" {
		return named
	}
	return "dlq-" + topic + "-" + name
}

func wireOptions(topic, name string, o *group.Options) wire.GroupOptions {
	return wire.GroupOptions{
		Mode: o.Mode.String(), From: positionText(o.From), SessionMS: o.SessionMS, AckWaitMS: o.AckWaitMS, MaxDeliveries: o.MaxDeliveries,
		BackoffMS: o.BackoffMS, MaxInFlight: o.MaxInFlight, MaxInFlightMember: o.MaxInFlightMember, Partitions: o.Partitions,
		DeadLetter: deadLetterTopic(topic, name, o.DeadLetter),
	}
}

func (c *groupCall) assignment(name string, a *group.Assignment) wire.GroupAssignment {
	res := wire.GroupAssignment{Group: name, Generation: a.Generation, Partitions: a.Partitions, Options: wireOptions(c.topic.name, name, &a.Options)}
	if res.Partitions == nil {
		res.Partitions = []int32{}
	}
	return res
}

func wireStatus(topic string, number int32, st *group.Status) wire.GroupPartitionState {
	s := wire.GroupPartitionState{
		Group: st.Group, Mode: st.Options.Mode.String(), Partition: number, Member: st.Holder, Committed: st.Committed, Next: st.Next,
		Lag: st.Lag, LagMS: st.LagMS, Pending: st.Pending, Redelivering: st.Redelivering, Token: st.Token,
		Handled: st.Handled, Delivered: st.Delivered, Redelivered: st.Redelivered, DeadLetters: st.DeadLetters,
		Options: wireOptions(topic, st.Group, &st.Options), Problem: st.Problem, DeadPending: st.DeadPending,
		Anchor: st.Anchor, Generation: st.Generation, Untouched: st.Token == 0, // a group that is read has had one since it was made
	}
	for _, m := range st.Members {
		parts := m.Partitions
		if parts == nil {
			parts = []int32{}
		}
		s.Members = append(s.Members, wire.GroupMember{ID: m.ID, Name: m.Name, Host: m.Host, Version: m.Version, Partitions: parts, JoinedMS: m.JoinedMS})
	}
	return s
}

var ackKinds = map[string]group.AckKind{
	wire.AckDone: group.Ack, wire.AckNak: group.Nak, wire.AckProgress: group.Progress, wire.AckTerm: group.Term, wire.AckReturn: group.Return,
}

func checkMember(id string) *wire.Error {
	if id == "" || len(id) > wire.MaxMemberText {
		return badRequest("the member's id has %d bytes, allowed are 1 to %d", len(id), wire.MaxMemberText)
	}
	return nil
}

// stuckOf is what a member says of a dead letter, by this broker's clock.
func stuckOf(s *wire.GroupStuck) *group.Stuck {
	if s == nil {
		return nil
	}
	since := time.Now().Add(-time.Duration(min(max(s.ForMS, 0), maxStuckMS)) * time.Millisecond)
	return &group.Stuck{Offset: s.Offset, SinceMS: since.UnixMilli(), Topic: s.Topic, Reason: s.Reason, Waiting: s.Waiting}
}

// maxStuckMS: what is said to be longer is not believed.
const maxStuckMS = 10 * 365 * 24 * 3600_000
