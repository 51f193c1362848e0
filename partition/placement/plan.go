package placement

import (
	"cmp"
	"fmt"
	"slices"
)

func noBroker(t *part) error {
	return fmt.Errorf("place shard %d: %w: add one that is active and has a weight above 0", t.Shard, ErrNoBroker)
}

// plan reads the result off.
func (p *planner) plan() *Plan {
	out := &Plan{Held: p.held, Assignments: make([]Assignment, 0, len(p.parts))}
	for i := range p.parts {
		t := &p.parts[i]
		replicas := p.arrange(i)
		out.Assignments = append(out.Assignments, Assignment{t.Shard, replicas})
		out.Moves = p.moves(t, replicas, out.Moves)
		if len(t.Replicas) > 0 && t.Replicas[0] != replicas[0] {
			out.Leads = append(out.Leads, Lead{t.Shard, t.Replicas[0], replicas[0], p.whyLeads(t, replicas)})
		}
	}
	slices.SortStableFunc(out.Held, func(a, b Held) int { return cmp.Compare(a.Shard, b.Shard) })
	out.Loads = p.loads(out.Assignments)
	return out
}

// moves appends how a partition's set differs from what it was. A
// slot may have gone a long way round and another may have come to where it
// was: only the difference counts.
func (p *planner) moves(t *part, replicas []uint64, moves []Move) []Move {
	var gone []uint64
	for _, id := range t.Replicas {
		if !slices.Contains(replicas, id) {
			gone = append(gone, id)
		}
	}
	for _, s := range t.slots {
		if slices.Contains(t.Replicas, s.broker) {
			continue
		}
		m := Move{Shard: t.Shard, To: s.broker}
		why := s.cause
		at := slices.Index(gone, s.origin)
		if at < 0 {
			at = slices.IndexFunc(gone, func(id uint64) bool { return t.cameFrom(id) >= 0 })
		}
		if s.origin != 0 && at >= 0 {
			m.From = gone[at]
			gone = slices.Delete(gone, at, at+1)
			why = t.slots[t.cameFrom(m.From)].cause
		} else if s.origin != 0 { // an added replica ended up where this one was
			why = cause{code: CodeGrow, have: len(t.Replicas), want: t.Factor}
		}
		m.Reason = why.reason()
		moves = append(moves, m)
	}
	for _, id := range gone {
		why := cause{code: CodeShrink, have: len(t.Replicas), want: t.Factor}
		moves = append(moves, Move{Shard: t.Shard, From: id, Reason: why.reason()})
	}
	return moves
}

// cameFrom returns the slot that was on a broker before the plan, -1 when none
// was or it was dropped.
func (t *part) cameFrom(broker uint64) int {
	return slices.IndexFunc(t.slots, func(s slot) bool { return s.origin == broker })
}

func (p *planner) whyLeads(t *part, replicas []uint64) Reason {
	old := t.Replicas[0]
	if b := p.brokers[old]; t.leadCause.code == "" || b == nil || !b.host() || !slices.Contains(replicas, old) {
		return cause{code: CodeLeft, id: old, subject: b}.reason()
	}
	return t.leadCause.reason()
}

func (p *planner) loads(after []Assignment) []Load {
	loads := make([]Load, 0, len(p.brokers))
	for _, b := range p.brokers {
		l := Load{Broker: b.ID}
		if h, ok := p.hostOf[b.ID]; ok {
			l.Share, l.Lower, l.Upper = p.shares[h].float(), p.lower[h], p.upper[h]
			l.LeadLower, l.LeadUpper = p.lead.lower[h], p.lead.upper[h]
		}
		loads = append(loads, l)
	}
	slices.SortFunc(loads, func(a, b Load) int { return cmp.Compare(a.Broker, b.Broker) })
	at := make(map[uint64]*Load, len(loads))
	for i := range loads {
		at[loads[i].Broker] = &loads[i]
	}
	count := func(replicas []uint64, held, led func(*Load) *int) {
		for j, id := range replicas {
			if l := at[id]; l != nil {
				*held(l)++
				if j == 0 {
					*led(l)++
				}
			}
		}
	}
	for i := range p.parts {
		count(p.parts[i].Replicas, func(l *Load) *int { return &l.Before }, func(l *Load) *int { return &l.LedBefore })
		count(after[i].Replicas, func(l *Load) *int { return &l.After }, func(l *Load) *int { return &l.LedAfter })
	}
	return loads
}
