package upkeep

import (
	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Plan is all that has to move until every broker holds its share, as people are shown it.
type Plan struct {
	Moves []PlannedMove
	Leads []PlannedMove // preferred leaders that change beside
	Held  []PlannedMove // what should change and can't now
	Loads []placement.Load
}

// PlannedMove is one replica, or one preferred leader, of one partition.
type PlannedMove struct {
	Topic    string
	TopicID  uint64
	Number   int
	From, To uint64 // 0: added, dropped
	Code     string
	Why      string
}

// Balance plans the whole of what Next would do step by step.
func Balance(c *config.Config, o Options) (*Plan, error) {
	g := gather(c)
	plan, err := placement.Make(g.input(c, o))
	if err != nil {
		return nil, err
	}
	out := &Plan{Loads: plan.Loads}
	at := func(shard uint64) PlannedMove {
		l := g.parts[g.byID[shard]]
		return PlannedMove{Topic: l.topic.Name, TopicID: l.topic.ID, Number: l.number}
	}
	for _, m := range plan.Moves {
		if m.Reason.Code == placement.CodeDrain && g.keeping[m.From] {
			continue
		}
		p := at(m.Shard)
		p.From, p.To, p.Code, p.Why = m.From, m.To, string(m.Reason.Code), m.Reason.Text
		out.Moves = append(out.Moves, p)
	}
	for _, m := range plan.Leads {
		p := at(m.Shard)
		p.From, p.To, p.Code, p.Why = m.From, m.To, string(m.Reason.Code), m.Reason.Text
		out.Leads = append(out.Leads, p)
	}
	for _, h := range plan.Held {
		p := at(h.Shard)
		p.Code, p.Why = string(h.Reason.Code), h.Reason.Text
		out.Held = append(out.Held, p)
	}
	return out, nil
}
