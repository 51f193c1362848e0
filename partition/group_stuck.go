package partition

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parleymq/parley/partition/group"
)

// A dead letter that can't be written is told of in words (Status.Problem, health, the log) and as a figure
// (Status.Stuck). In a shared group the leader writes the letters and knows; in an exclusive one the member does, and tells with
// its renewals and commits. That is not in the log: the next leader hears it with the next renewal, the next member finds
// out by itself.

// held is what the member of an exclusive group tells of a dead letter that holds up its position.
type held struct {
	stuck *group.Stuck
	token uint64 // of the lease under which it was told
}

// told takes in what the holder of a lease says of its dead letters, nil: none is stuck. mu is held.
func (gl *groupLead) told(g *ledGroup, token uint64, by string, s *group.Stuck) {
	was := g.held.stuck
	if g.held.token != token {
		was = nil
	}
	if s == nil {
		g.held = held{}
		if was != nil {
			gl.p.c.Logger.Info().Str("partition", gl.p.name).Str("group", g.name).Int64("offset", was.Offset).Time("since", time.UnixMilli(was.SinceMS)).
				Msg("the dead letter that held up an exclusive group is written: the partition goes on")
		}
		return
	}
	c := *s
	c.Reason = c.Reason[:min(len(c.Reason), buryText)]
	c.Topic = c.Topic[:min(len(c.Topic), group.MaxText)]
	c.Waiting = max(c.Waiting, 1)
	if was != nil && was.Offset == c.Offset {
		c.SinceMS = was.SinceMS // a member says for how long, which wavers
	} else {
		gl.p.c.Logger.Warn().Str("partition", gl.p.name).Str("group", g.name).Int64("offset", c.Offset).Str("member", by).
			Str("dead_letter_topic", c.Topic).Time("since", time.UnixMilli(c.SinceMS)).Str("error", c.Reason).
			Msg("a dead letter of an exclusive group can't be written: the partition waits for it, for order's sake")
	}
	g.held = held{&c, token}
}

// stuckNow is the group's dead letter that can't be written, and the same in words. mu is held, token is the lease's.
func (gl *groupLead) stuckNow(g *ledGroup, token uint64, committed int64) (*group.Stuck, string) {
	if g.stuck != nil {
		return g.stuck, stuckText(g.stuck)
	}
	s := g.held.stuck
	if s == nil || g.held.token != token || s.Offset < committed { // another has it, or the group was reset
		return nil, ""
	}
	text := fmt.Sprintf("the dead letter of offset %d can't be written to %s since %s, and holds this partition up, for order's sake: %s",
		s.Offset, s.Topic, clockText(s.SinceMS), s.Reason)
	if s.Waiting > 1 {
		text += fmt.Sprintf("; %d dead letters wait", s.Waiting)
	}
	return s, text + fmt.Sprintf("; its member tries again until the topic takes it: see to %s, or go on without it by `parley group reset %s %s --to %d --partition %d`",
		s.Topic, gl.p.c.Topic, g.name, s.Offset+1, gl.p.c.Number)
}

// stuckText is about a shared group.
func stuckText(s *group.Stuck) string {
	text := fmt.Sprintf("the dead letter of offset %d can't be written since %s and is kept: %s", s.Offset, clockText(s.SinceMS), s.Reason)
	switch {
	case s.Waiting >= buryStuck:
		text += fmt.Sprintf("; %d dead letters can't be, the others wait for them", s.Waiting)
	case s.Waiting > 1:
		text += fmt.Sprintf("; %d dead letters can't be", s.Waiting)
	}
	return text + "; they are tried again until the dead-letter topic takes them, other records go on: see to that topic"
}

func clockText(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// maxGroupProblems bounds the groups that one partition's problems are told of.
const maxGroupProblems = 16

// GroupProblems says what keeps groups from going on here, for the cluster's health: nothing unless this replica leads.
func (p *Partition) GroupProblems() []string {
	gl, err := p.leadingGroups()
	if err != nil {
		return nil
	}
	var out []string
	gl.mu.Lock()
	defer gl.mu.Unlock()
	for _, g := range gl.all {
		if g.damage == "" && g.stuck == nil && g.held.stuck == nil {
			continue
		}
		gl.table.mu.RLock()
		l, _ := gl.table.s.Lease(g.name)
		gl.table.mu.RUnlock()
		text := g.damage
		if text == "" {
			_, text = gl.stuckNow(g, l.Token, l.Floor)
		}
		if text != "" {
			out = append(out, "group "+g.name+": "+text)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out[:min(len(out), maxGroupProblems)]
}
