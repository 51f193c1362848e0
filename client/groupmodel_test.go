package client

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// modelGroup is a group on one partition as DESIGN says it behaves, in the plainest way: a map of everything.
type modelGroup struct {
	opts wire.GroupOptions

	// Of the anchor.
	members    map[string]time.Time // last heard of
	generation uint64
	partitions int
	assigned   map[string][]int32

	// Exclusive.
	committed int64
	holder    string
	token     uint64
	leaseGen  uint64
	until     time.Time
	wanted    uint64 // newest generation that asked

	// Shared.
	open  uint64 // token of first deliveries
	acked map[int64]bool
	dead  map[int64]string
	out   map[int64]*modelDelivery
	tries map[int64]int32
	after map[int64]time.Time
	stop  map[string]uint64 // stop requests of a member

	refused, kept int
}

type modelDelivery struct {
	member string
	token  uint64
	n      int32
	until  time.Time
}

func (m *model) holds(data []byte) time.Duration {
	var q struct {
		WaitMS    int64 `json:"wait_ms"`
		MaxWaitMS int64 `json:"max_wait_ms"` // of a fetch
	}
	_ = json.Unmarshal(data, &q) // batches are none, and wait for nothing
	return time.Duration(q.WaitMS+q.MaxWaitMS) * time.Millisecond
}

func (m *model) groupOf(topic string, n int32, name string, opts wire.GroupOptions) *modelGroup {
	key := fmt.Sprintf("%s/%d/%s", topic, n, name)
	g := m.groups[key]
	if g == nil {
		if opts.SessionMS == 0 {
			opts.SessionMS = wire.DefaultSessionMS
		}
		if opts.AckWaitMS == 0 {
			opts.AckWaitMS = wire.DefaultAckWaitMS
		}
		m.index++
		g = &modelGroup{opts: opts, members: map[string]time.Time{}, assigned: map[string][]int32{}, open: m.index,
			acked: map[int64]bool{}, dead: map[int64]string{}, out: map[int64]*modelDelivery{}, tries: map[int64]int32{}, after: map[int64]time.Time{}}
		p := m.parts[topic][n]
		if g.committed = p.start; opts.From == "latest" {
			g.committed = p.next()
		}
		for o := int64(0); o < g.committed; o++ {
			g.acked[o] = true
		}
		m.groups[key] = g
	}
	return g
}

func (m *model) group(subject string, data []byte) reply {
	op, rest, _ := strings.Cut(subject[len(wire.GroupPrefix):], ".")
	p, topic, n := m.find(rest)
	if p == nil {
		return refusal(404, wire.ReasonTopicNotFound, false, OutcomeRejected)
	}
	now := time.Now()
	decode := func(v any) {
		if err := json.Unmarshal(data, v); err != nil {
			panic(err)
		}
	}
	switch "$PARLEY.GROUP." + op + "." {
	case wire.GroupJoin:
		var q wire.GroupJoinRequest
		decode(&q)
		g := m.groupOf(topic, n, q.Group, q.Options)
		if q.Options.Mode != g.opts.Mode {
			return refusal(409, wire.ReasonGroupMismatch, false, OutcomeRejected)
		}
		_, known := g.members[q.Member]
		g.members[q.Member] = now
		if !known || q.Generation > g.generation || g.partitions != len(m.parts[topic]) {
			g.generation = max(g.generation, q.Generation)
			g.assign(len(m.parts[topic]))
		}
		return jsonReply(g.assignment(q.Group, q.Member))
	case wire.GroupSync:
		var q wire.GroupSyncRequest
		decode(&q)
		g := m.groupOf(topic, n, q.Group, wire.GroupOptions{Mode: wire.ModeExclusive})
		g.expire(now, len(m.parts[topic]))
		if g.partitions != len(m.parts[topic]) {
			g.assign(len(m.parts[topic]))
		}
		if _, ok := g.members[q.Member]; !ok {
			return refusal(404, wire.ReasonUnknownMember, false, OutcomeRejected)
		}
		g.members[q.Member] = now
		m.hold = g.generation == q.Generation
		return jsonReply(g.assignment(q.Group, q.Member))
	case wire.GroupLeave:
		var q wire.GroupLeaveRequest
		decode(&q)
		g := m.groupOf(topic, n, q.Group, wire.GroupOptions{Mode: wire.ModeExclusive})
		if _, ok := g.members[q.Member]; ok {
			delete(g.members, q.Member)
			g.assign(len(m.parts[topic]))
		}
		return jsonReply(wire.GroupAssignment{Group: q.Group, Generation: g.generation})
	case wire.GroupLease:
		var q wire.GroupLeaseRequest
		decode(&q)
		g := m.groupOf(topic, n, q.Group, q.Options)
		return g.lease(m, &q, now)
	case wire.GroupCommit:
		var q wire.GroupCommitRequest
		decode(&q)
		g := m.groupOf(topic, n, q.Group, wire.GroupOptions{Mode: wire.ModeExclusive})
		if q.Token != g.token || g.holder != q.Member {
			g.refused++
			return refusal(409, wire.ReasonLeaseLost, false, OutcomeRejected)
		}
		if q.Offset >= 0 {
			if q.Offset > p.next() || q.Offset < g.committed {
				return refusal(400, wire.ReasonBadRequest, false, OutcomeRejected)
			}
			g.committed = q.Offset
		}
		g.until = now.Add(time.Duration(g.opts.SessionMS) * time.Millisecond)
		g.kept++
		if q.Release {
			g.holder = ""
		}
		return jsonReply(wire.GroupCommitted{Committed: g.committed, Wanted: g.wanted > g.leaseGen})
	case wire.GroupPull:
		var q wire.GroupPullRequest
		decode(&q)
		g := m.groupOf(topic, n, q.Group, q.Options)
		return g.pull(m, p, &q, now)
	case wire.GroupAck:
		var q wire.GroupAckRequest
		decode(&q)
		if q.Gather {
			m.unhurried++
		}
		g := m.groupOf(topic, n, q.Group, wire.GroupOptions{Mode: wire.ModeShared})
		return g.ack(m, &q, now)
	}
	return refusal(400, wire.ReasonBadRequest, false, OutcomeRejected)
}

func (g *modelGroup) expire(now time.Time, partitions int) {
	before := len(g.members)
	maps.DeleteFunc(g.members, func(_ string, last time.Time) bool {
		return now.Sub(last) > time.Duration(g.opts.SessionMS)*time.Millisecond
	})
	if len(g.members) != before {
		g.assign(partitions)
	}
}

// assign deals the partitions out; in a shared group everybody has all of them.
func (g *modelGroup) assign(partitions int) {
	g.generation++
	g.partitions = partitions
	g.assigned = map[string][]int32{}
	names := slices.Sorted(maps.Keys(g.members))
	for i, name := range names {
		for p := range partitions {
			if g.opts.Mode != wire.ModeExclusive || p%len(names) == i {
				g.assigned[name] = append(g.assigned[name], int32(p))
			}
		}
	}
}

func (g *modelGroup) assignment(group, member string) wire.GroupAssignment {
	return wire.GroupAssignment{Group: group, Generation: g.generation, Partitions: g.assigned[member], Options: g.opts}
}

func (g *modelGroup) lease(m *model, q *wire.GroupLeaseRequest, now time.Time) reply {
	session := time.Duration(g.opts.SessionMS) * time.Millisecond
	if q.Token != 0 {
		if q.Token != g.token || g.holder != q.Member {
			g.refused++
			return refusal(409, wire.ReasonLeaseLost, false, OutcomeRejected)
		}
		g.until = now.Add(session)
		return jsonReply(wire.GroupLeased{Token: g.token, Next: g.committed, Wanted: g.wanted > g.leaseGen})
	}
	free := g.holder == "" || now.After(g.until)
	switch {
	case q.Generation < max(g.leaseGen, g.wanted):
		return jsonReply(wire.GroupLeased{Generation: max(g.leaseGen, g.wanted), Error: &Error{Code: 409, Reason: wire.ReasonStaleGeneration, Description: "model"}})
	case !free && q.Member != g.holder:
		g.wanted = max(g.wanted, q.Generation)
		m.hold = true
		return refusal(409, wire.ReasonLeaseHeld, true, OutcomeRejected)
	}
	m.index++
	g.holder, g.token, g.leaseGen, g.until = q.Member, m.index, q.Generation, now.Add(session)
	return jsonReply(wire.GroupLeased{Token: g.token, Next: g.committed})
}

// pull hands out what may be: in the order of offsets, a key at a time where that is the mode.
func (g *modelGroup) pull(m *model, p *modelPartition, q *wire.GroupPullRequest, now time.Time) reply {
	h := map[string][]string{wire.HeaderNext: {fmt.Sprint(p.next())}}
	empty := func() reply { return reply{data: packPull(nil, nil), header: h} }
	if q.Stop {
		if g.stop == nil {
			g.stop = map[string]uint64{}
		}
		g.stop[q.Member]++
		return empty()
	}
	if g.stop[q.Member] > 0 {
		return empty()
	}
	var dels []wire.GroupDelivery
	var batches []byte
	locked := map[string]string{} // key to member
	if g.opts.Mode == wire.ModeKeyOrdered {
		for o, d := range g.out {
			if now.Before(d.until) {
				locked[p.key(o)] = d.member
			}
		}
	}
	for o := p.start; o < p.next() && len(dels) < q.MaxMessages; o++ {
		if g.acked[o] || g.dead[o] != "" {
			continue
		}
		d := g.out[o]
		if d != nil && now.Before(d.until) {
			continue
		}
		key := p.key(o)
		if d != nil { // it ran out
			delete(g.out, o)
		}
		blocked := now.Before(g.after[o])
		if g.opts.Mode == wire.ModeKeyOrdered {
			if owner, ok := locked[key]; ok && owner != q.Member {
				blocked = true
			}
			if blocked || g.tries[o] > 0 {
				// Nothing of the key goes out until this one is done.
				locked[key] = "nobody"
			}
			for older := p.start; g.tries[o] > 0 && older < o; older++ {
				if p.key(older) == key && !g.acked[older] && g.dead[older] == "" {
					blocked = true
				}
			}
			if g.tries[o] > 0 && !blocked {
				for other, d := range g.out {
					blocked = blocked || p.key(other) == key && now.Before(d.until)
				}
			}
		}
		if blocked {
			continue
		}
		g.tries[o]++
		token := g.open
		if g.tries[o] > 1 {
			m.index++
			token = m.index
			g.open = max(g.open, token)
		}
		if g.opts.MaxDeliveries > 0 && g.tries[o] > g.opts.MaxDeliveries {
			g.dead[o] = "max deliveries"
			continue
		}
		g.out[o] = &modelDelivery{q.Member, token, g.tries[o], now.Add(time.Duration(g.opts.AckWaitMS) * time.Millisecond)}
		dels = append(dels, wire.GroupDelivery{First: o, Last: o, Deliveries: g.tries[o], Token: token})
	}
	if len(dels) == 0 {
		m.hold = true
		return empty()
	}
	for _, b := range p.batches {
		b := record.Batch(b.bytes)
		for _, d := range dels {
			if d.First >= b.BaseOffset() && d.First <= b.LastOffset() {
				batches = append(batches, b...)
				break
			}
		}
	}
	return reply{data: packPull(dels, batches), header: h}
}

func packPull(dels []wire.GroupDelivery, batches []byte) []byte {
	// Ranges, as a broker makes them.
	var ranges []wire.GroupDelivery
	for _, d := range dels {
		if n := len(ranges); n > 0 && ranges[n-1].Last+1 == d.First && ranges[n-1].Token == d.Token && ranges[n-1].Deliveries == d.Deliveries {
			ranges[n-1].Last = d.Last
			continue
		}
		ranges = append(ranges, d)
	}
	head, err := json.Marshal(wire.GroupPulled{Deliveries: ranges})
	if err != nil {
		panic(err)
	}
	out := binary.BigEndian.AppendUint32(nil, uint32(len(head)))
	return append(append(out, head...), batches...)
}

func (p *modelPartition) key(o int64) string { return p.log[o-p.start].key }

func (g *modelGroup) ack(m *model, q *wire.GroupAckRequest, now time.Time) reply {
	var out wire.GroupAcked
	for i, it := range q.Items {
		refused := false
		for o := it.First; o <= it.Last && it.First < it.Last; o++ {
			// An item is taken or refused as a whole.
			d := g.out[o]
			refused = refused || (d == nil || d.token != it.Token || d.member != q.Member) && !(g.acked[o] && it.Kind == wire.AckDone)
		}
		if refused {
			out.Refused = append(out.Refused, wire.GroupRefusal{Item: i, Reason: wire.ReasonStaleToken, Description: "model says no to one of them"})
			continue
		}
		for o := it.First; o <= it.Last; o++ {
			d := g.out[o]
			if d == nil || d.token != it.Token || d.member != q.Member || now.After(d.until) { // as the dispatcher, which looks at the clock first
				if !g.acked[o] || it.Kind != wire.AckDone {
					refused = true
				}
				continue
			}
			switch it.Kind {
			case wire.AckDone:
				g.acked[o] = true
				delete(g.out, o)
			case wire.AckNak:
				delete(g.out, o)
				delay := time.Duration(it.DelayMS) * time.Millisecond
				if it.DelayMS <= 0 {
					delay = 50 * time.Millisecond
				}
				g.after[o] = now.Add(delay)
			case wire.AckReturn:
				delete(g.out, o)
				g.tries[o]--
			case wire.AckTerm:
				delete(g.out, o)
				g.dead[o] = it.Reason
			case wire.AckProgress:
				d.until = now.Add(time.Duration(g.opts.AckWaitMS) * time.Millisecond)
			default:
				refused = true
			}
		}
		if refused {
			g.refused++
			out.Refused = append(out.Refused, wire.GroupRefusal{Item: i, Reason: wire.ReasonStaleToken, Description: "model says no"})
		}
	}
	return jsonReply(out)
}

// failover gives the partitions of a topic other leaders, which don't know what was handed out.
func (m *model) failover(topic string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts["failover"]++
	for name, g := range m.groups {
		if strings.HasPrefix(name, topic+"/") {
			m.index++
			g.open = m.index
			clear(g.out)
			g.until = time.Now().Add(time.Duration(g.opts.SessionMS) * time.Millisecond)
		}
	}
}

func (m *model) groupAt(topic string, n int, group string) *modelGroup {
	return m.groups[fmt.Sprintf("%s/%d/%s", topic, n, group)]
}

// handled says whether a group has everything behind it, and what is missing.
func (m *model) handled(topic, group string) (bool, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n, p := range m.parts[topic] {
		g := m.groupAt(topic, n, group)
		if g == nil {
			if len(p.log) > 0 {
				return false, fmt.Sprintf("partition %d: no group", n)
			}
			continue
		}
		if g.opts.Mode == wire.ModeExclusive {
			if g.committed < p.next() {
				return false, fmt.Sprintf("partition %d: committed %d of %d, holder %q", n, g.committed, p.next(), g.holder)
			}
			continue
		}
		for o := p.start; o < p.next(); o++ {
			if !g.acked[o] && g.dead[o] == "" {
				return false, fmt.Sprintf("partition %d: offset %d is not acked: %+v, tries %d", n, o, g.out[o], g.tries[o])
			}
		}
	}
	return true, ""
}
