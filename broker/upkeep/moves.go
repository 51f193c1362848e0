package upkeep

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Limits of what moves at the same time.
const (
	MaxMoving    = 32 // partitions
	MaxReceiving = 8  // replicas that one broker gets
)

// Options of Next.
type Options struct {
	// Shy are brokers that get no replicas for now: they can't be reached, or have not been up
	// for long enough. They keep what they have.
	Shy map[uint64]bool
	// Down are brokers that can't be reached: their replicas don't count for a majority.
	Down map[uint64]bool
	// Leaderless are partitions, by shard, that have had no leader for some time: nobody could carry a move
	// out. They keep the target that they have, get no other one, and take no room from others.
	Leaderless map[uint64]bool
	// Paused: nothing is healed. See Deaths.
	Paused bool
	// Moving and Receiving replace MaxMoving and MaxReceiving.
	Moving, Receiving int
}

// passes says that a partition is passed over.
func (o *Options) passes(p *config.Partition) bool { return o.Leaderless[p.Shard] || p.Salvaging() }

// A Move gives a partition another target.
type Move struct {
	Topic   uint64
	Name    string // of the topic
	Number  int
	Brokers []uint64 // the target, the preferred leader first
	Why     string
	shard   uint64
	code    placement.Code
	// from and to are brokers that lose and get a replica by it, beside what is there or coming.
	from, to []uint64
}

// Next returns the moves to begin now, a bounded number of them. settled says that nothing is
// left to do, now or later, but what waits for a broker to come, or to come back.
//
// What is needed comes before what is nice: replicas of the dead are replaced, then those of
// brokers that drain, then partitions get the number of replicas that they want; only when
// nothing of that is left, or moves, and no broker is shy, replicas are evened out, and
// only where the configuration says that they are uneven. Partitions without a leader are passed over,
// until they have one.
func Next(c *config.Config, o Options) (moves []Move, settled bool, err error) {
	if o.Moving <= 0 {
		o.Moving = MaxMoving
	}
	if o.Receiving <= 0 {
		o.Receiving = MaxReceiving
	}
	g := gather(c)
	g.count(c, o)
	plan, err := placement.Make(g.input(c, o))
	if err != nil {
		return nil, false, fmt.Errorf("plan moves: %w", err)
	}
	wanted := g.changes(plan, func(m *placement.Move) bool {
		switch m.Reason.Code {
		case placement.CodeDead:
			return !o.Paused
		case placement.CodeDrain, placement.CodeGrow, placement.CodeShrink:
			return true
		}
		return false
	})
	waits := o.Paused || len(o.Shy) > 0
	if len(wanted) == 0 && (g.moving == 0 || allActive(c)) && c.Uneven > 0 && !waits {
		// Without shy brokers this is the plan as it is meant. What moves already is not turned for it.
		wanted = slices.DeleteFunc(g.changes(plan, func(*placement.Move) bool { return true }),
			func(m Move) bool { return g.parts[g.byID[m.shard]].partition().Moving() })
		if len(wanted) == 0 && g.moving == 0 {
			wanted = g.leads(plan)
		}
	}
	if len(wanted) == 0 {
		return nil, g.moving == 0 && !waits && g.passed == 0, nil
	}
	slices.SortStableFunc(wanted, func(a, b Move) int { return cmp.Compare(urgency(a.code), urgency(b.code)) })
	return g.admit(wanted, o), false, nil
}

// allActive says that no broker is dead or leaves: what moves then does so for evenness' sake, or because somebody asked.
func allActive(c *config.Config) bool {
	return !slices.ContainsFunc(c.Brokers, func(b config.Broker) bool { return b.State != config.Active })
}

func urgency(code placement.Code) int {
	switch code {
	case placement.CodeDead:
		return 0
	case placement.CodeDrain:
		return 1
	case placement.CodeGrow:
		return 2
	}
	return 3
}

// gathered is a configuration as the planner sees it.
type gathered struct {
	parts   []located
	keeping map[uint64]bool // brokers that count as draining, but keep what they have
	byID    map[uint64]int  // by shard
	moving  int             // partitions; see count
	passed  int             // partitions without a leader
	getting map[uint64]int  // by broker: replicas on their way there; see count
}

// located is a partition of a live topic.
type located struct {
	topic  *config.Topic
	number int
}

func (l located) partition() *config.Partition { return &l.topic.Partitions[l.number] }

func gather(c *config.Config) *gathered {
	g := &gathered{byID: map[uint64]int{}, keeping: map[uint64]bool{}, getting: map[uint64]int{}}
	for i := range c.Topics {
		t := &c.Topics[i]
		for n := range t.Partitions {
			p := &t.Partitions[n]
			if !t.Live() {
				continue
			}
			g.byID[p.Shard] = len(g.parts)
			g.parts = append(g.parts, located{t, n})
		}
	}
	return g
}

// count notes what moves already. A partition that has lost its live majority goes nowhere before a
// broker is back, and takes no room from others until then.
func (g *gathered) count(c *config.Config, o Options) {
	for _, l := range g.parts {
		p := l.partition()
		if o.passes(p) {
			g.passed++
			continue
		}
		live := 0
		for _, r := range p.Replicas {
			if !o.Down[r.Broker] && c.Broker(r.Broker).State != config.Dead {
				live++
			}
		}
		if !p.Moving() || live <= len(p.Replicas)/2 {
			continue
		}
		g.moving++
		for _, r := range p.Adding() {
			g.getting[r.Broker]++
		}
	}
}

func brokersOf(replicas []config.Replica) []uint64 {
	ids := make([]uint64, len(replicas))
	for i, r := range replicas {
		ids[i] = r.Broker
	}
	return ids
}

// Brokers makes the planner's brokers of a configuration's.
func Brokers(c *config.Config) []placement.Broker {
	out := make([]placement.Broker, len(c.Brokers))
	for i := range c.Brokers {
		b := &c.Brokers[i]
		out[i] = placement.Broker{ID: b.ID, Name: b.Name, Weight: b.Weight, Rack: b.Rack, State: placement.State(b.State)}
	}
	return out
}

// input asks for a plan. A shy broker counts as draining, so that it gets nothing; what the plan
// then takes from it is left out of the changes.
func (g *gathered) input(c *config.Config, o Options) placement.Input {
	in := placement.Input{Brokers: Brokers(c)}
	for i := range in.Brokers {
		if b := &in.Brokers[i]; b.State == placement.Active && o.Shy[b.ID] {
			b.State = placement.Draining
			g.keeping[b.ID] = true
		}
	}
	for _, l := range g.parts {
		p := l.partition()
		wanted := brokersOf(p.Wanted())
		in.Partitions = append(in.Partitions, placement.Partition{Shard: p.Shard, Factor: len(wanted), Replicas: wanted, Voters: votersOf(p), Down: down(p, o)})
	}
	return in
}

// votersOf are the brokers of the replica set: what Raft's membership begins and ends a move as.
func votersOf(p *config.Partition) []uint64 { return unique(brokersOf(p.Replicas)) }

func unique(ids []uint64) []uint64 {
	slices.Sort(ids)
	return slices.Compact(ids)
}

// down are the voters that don't count as live: none where nobody leads, so that the planner leaves it as it is.
func down(p *config.Partition, o Options) (ids []uint64) {
	for _, id := range votersOf(p) {
		if o.Down[id] || o.passes(p) {
			ids = append(ids, id)
		}
	}
	return ids
}

// changes makes moves of those of the plan's that are wanted, one for each partition.
func (g *gathered) changes(plan *placement.Plan, want func(*placement.Move) bool) []Move {
	byShard := map[uint64][]*placement.Move{}
	all := map[uint64]int{}
	for i := range plan.Moves {
		m := &plan.Moves[i]
		all[m.Shard]++
		if want(m) && !(m.Reason.Code == placement.CodeDrain && g.keeping[m.From]) {
			byShard[m.Shard] = append(byShard[m.Shard], m)
		}
	}
	var out []Move
	for _, a := range plan.Assignments {
		ms := byShard[a.Shard]
		if len(ms) == 0 {
			continue
		}
		l := g.parts[g.byID[a.Shard]]
		set := brokersOf(l.partition().Wanted())
		move := Move{Topic: l.topic.ID, Name: l.topic.Name, Number: l.number, shard: a.Shard, code: ms[0].Reason.Code, Why: ms[0].Reason.Text}
		for _, m := range ms {
			at := slices.Index(set, m.From)
			switch {
			case m.From == 0:
				set = append(set, m.To)
			case m.To == 0:
				set = slices.Delete(set, at, at+1)
			default:
				set[at] = m.To
			}
			if m.To != 0 {
				move.to = append(move.to, m.To)
			}
			if m.From != 0 {
				move.from = append(move.from, m.From)
			}
			if urgency(m.Reason.Code) < urgency(move.code) {
				move.code, move.Why = m.Reason.Code, m.Reason.Text
			}
		}
		if all[a.Shard] == len(ms) && sameSet(set, a.Replicas) {
			set = a.Replicas // the plan's own order: it knows who should lead
		}
		move.Brokers = set
		out = append(out, move)
	}
	return out
}

func sameSet(a, b []uint64) bool {
	return slices.Equal(unique(slices.Clone(a)), unique(slices.Clone(b)))
}

// leads makes moves of the plan's changes of preferred leaders, which move no data.
func (g *gathered) leads(plan *placement.Plan) []Move {
	at := map[uint64][]uint64{}
	for _, a := range plan.Assignments {
		at[a.Shard] = a.Replicas
	}
	var out []Move
	for _, lead := range plan.Leads {
		l := g.parts[g.byID[lead.Shard]]
		set := brokersOf(l.partition().Wanted())
		i := slices.Index(set, lead.To)
		if i < 0 || !sameSet(set, at[lead.Shard]) {
			continue
		}
		set = slices.Insert(slices.Delete(set, i, i+1), 0, lead.To)
		out = append(out, Move{Topic: l.topic.ID, Name: l.topic.Name, Number: l.number, shard: lead.Shard, Brokers: set, Why: lead.Reason.Text, code: lead.Reason.Code})
	}
	return out
}

// admit keeps to the limits. A partition that moves already and needs another target gets it
// in any case: what it was to get is lost.
func (g *gathered) admit(wanted []Move, o Options) []Move {
	var out []Move
	moving := g.moving
	for _, m := range wanted {
		p := g.parts[g.byID[m.shard]].partition()
		if len(m.to) > 0 && !p.Moving() {
			if moving >= o.Moving || slices.ContainsFunc(m.to, func(id uint64) bool { return g.getting[id] >= o.Receiving }) {
				continue
			}
		}
		if len(m.to) > 0 || len(m.from) > 0 {
			if !p.Moving() {
				moving++
			}
			for _, id := range m.to {
				g.getting[id]++
			}
		}
		out = append(out, m)
	}
	return out
}
