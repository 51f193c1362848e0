package upkeep

import (
	"fmt"
	"slices"

	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Lone lists the partitions of which a broker has the only live copy, so that it can't give its own
// up: all other replicas are on brokers that are not live, or it is the only one and there is no
// other broker to take it.
func Lone(c *config.Config, broker uint64, live func(uint64) bool) (names []string) {
	other := slices.ContainsFunc(c.Brokers, func(b config.Broker) bool {
		return b.ID != broker && b.State == config.Active && live(b.ID)
	})
	for _, l := range gather(c).parts {
		p := l.partition()
		if !on(p.Replicas, broker) {
			continue
		}
		alone := true
		for _, r := range p.Replicas {
			alone = alone && (r.Broker == broker || c.Broker(r.Broker).State == config.Dead || !live(r.Broker))
		}
		if alone && (len(p.Replicas) > 1 || !other) {
			names = append(names, fmt.Sprintf("%s/%d", l.topic.Name, l.number))
		}
	}
	return names
}

// Stuck counts the replicas of a broker that no other broker can take, since all that take replicas
// have one of that partition already.
func Stuck(c *config.Config, broker uint64) (n int) {
	for _, l := range gather(c).parts {
		p := l.partition()
		if on(p.Wanted(), broker) && !slices.ContainsFunc(c.Brokers, func(b config.Broker) bool {
			return b.ID != broker && b.State == config.Active && !on(p.Wanted(), b.ID)
		}) {
			n++
		}
	}
	return n
}

func on(replicas []config.Replica, broker uint64) bool {
	return slices.ContainsFunc(replicas, func(r config.Replica) bool { return r.Broker == broker })
}

// Bereft lists the partitions that have no live majority, or no replica at all, without a broker that
// is gone: nobody can take over what it has of them, and nobody can give it up.
func Bereft(c *config.Config, broker uint64, live func(uint64) bool) (names []string) {
	for _, l := range gather(c).parts {
		p := l.partition()
		if !on(p.Wanted(), broker) {
			continue
		}
		up := 0
		for _, r := range p.Replicas {
			if r.Broker != broker && c.Broker(r.Broker).State != config.Dead && live(r.Broker) {
				up++
			}
		}
		if len(p.Wanted()) == 1 || up < len(p.Replicas)/2+1 {
			names = append(names, fmt.Sprintf("%s/%d", l.topic.Name, l.number))
		}
	}
	return names
}

// GiveUp drops the replicas of a dead broker that nobody can take, and returns how many. None of their
// partitions may be Bereft of it.
func GiveUp(c *config.Config, broker uint64) (dropped int, err error) {
	for _, l := range gather(c).parts {
		p := l.partition()
		if !on(p.Wanted(), broker) {
			continue
		}
		rest := slices.DeleteFunc(brokersOf(p.Wanted()), func(id uint64) bool { return id == broker })
		if err := c.SetTarget(l.topic.ID, l.number, rest); err != nil {
			return 0, err
		}
		dropped++
	}
	return dropped, nil
}

// Regrow gives one partition as many replicas as it had, or as many as there are brokers for now.
func Regrow(c *config.Config, topic uint64, n, replicas int, o Options) error {
	g := gather(c)
	in := g.input(c, o)
	able := map[uint64]bool{}
	for _, b := range in.Brokers {
		if b.State == placement.Active {
			able[b.ID] = true
		}
	}
	at := slices.IndexFunc(g.parts, func(l located) bool { return l.topic.ID == topic && l.number == n })
	if at < 0 {
		return nil
	}
	p := g.parts[at].partition()
	for _, r := range p.Wanted() {
		able[r.Broker] = true
	}
	in.Partitions[at].Factor = max(len(p.Wanted()), min(replicas, len(able)))
	plan, err := placement.Make(in)
	if err != nil {
		return fmt.Errorf("plan moves: %w", err)
	}
	for _, m := range g.changes(plan, func(m *placement.Move) bool { return m.Reason.Code == placement.CodeGrow }) {
		if m.Topic == topic && m.Number == n {
			return c.SetTarget(topic, n, m.Brokers)
		}
	}
	return nil
}

// Resize gives the partitions of a topic another number of replicas.
func Resize(c *config.Config, topic uint64, replicas int, o Options) (moves []Move, err error) {
	g := gather(c)
	in := g.input(c, o)
	for i := range in.Partitions {
		if g.parts[i].topic.ID == topic {
			in.Partitions[i].Factor = replicas
		}
	}
	plan, err := placement.Make(in)
	if err != nil {
		return nil, fmt.Errorf("plan moves: %w", err)
	}
	held := map[uint64]placement.Reason{}
	for _, h := range plan.Held {
		held[h.Shard] = h.Reason
	}
	for _, m := range g.changes(plan, func(m *placement.Move) bool {
		return m.Reason.Code == placement.CodeGrow || m.Reason.Code == placement.CodeShrink
	}) {
		if m.Topic == topic {
			moves = append(moves, m)
		}
	}
	for _, l := range g.parts {
		p := l.partition()
		if l.topic.ID != topic || len(p.Wanted()) == replicas {
			continue
		}
		i := slices.IndexFunc(moves, func(m Move) bool { return m.Number == l.number })
		if i < 0 || len(moves[i].Brokers) != replicas {
			why := "the rest of its replicas can't be placed"
			if r, ok := held[p.Shard]; ok {
				why = r.Text
			}
			return nil, fmt.Errorf("%w: partition %s/%d can't have %d replicas now: %s", config.ErrInvalid, l.topic.Name, l.number, replicas, why)
		}
	}
	return moves, nil
}
