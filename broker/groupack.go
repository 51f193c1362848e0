package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/group"
)

// What plain clients publish to the reply subject of a record, and brokers among
// themselves.
const (
	ackDone     = "+ACK"
	ackNak      = "-NAK"
	ackProgress = "+WPI"
	ackTerm     = "+TERM"
	ackReturn   = "-RETURN" // only brokers: nobody has seen the record
)

// ackSubject is what $PARLEY.ACK.<topic>.<partition>.<group>.<offset>.<deliveries>.<token> says.
type ackSubject struct {
	topic  string
	number int32
	group  string
	offset int64
	token  uint64
}

func appendAckSubject(b []byte, topic string, number int32, name string, offset int64, deliveries int32, token uint64) []byte {
	b = append(append(b, wire.AckPrefix...), topic...)
	b = strconv.AppendInt(append(b, '.'), int64(number), 10)
	b = append(append(b, '.'), name...)
	b = strconv.AppendInt(append(b, '.'), offset, 10)
	b = strconv.AppendInt(append(b, '.'), int64(deliveries), 10)
	return strconv.AppendUint(append(b, '.'), token, 10)
}

// parseAck takes an ack's subject apart, from its end: a topic's name may have dots.
func parseAck(subject []byte) (a ackSubject, ok bool) {
	rest, ok := bytes.CutPrefix(subject, []byte(wire.AckPrefix))
	if !ok {
		return a, false
	}
	var tokens [5][]byte // partition, group, offset, deliveries, token
	for i := len(tokens) - 1; i >= 0; i-- {
		dot := bytes.LastIndexByte(rest, '.')
		if dot <= 0 {
			return a, false
		}
		rest, tokens[i] = rest[:dot], rest[dot+1:]
	}
	number, ok1 := number64(tokens[0])
	offset, ok2 := number64(tokens[2])
	_, ok3 := number64(tokens[3])
	token, err := strconv.ParseUint(string(tokens[4]), 10, 64)
	if !ok1 || !ok2 || !ok3 || err != nil || number >= wire.MaxPartitions || len(tokens[1]) > wire.MaxGroupName {
		return a, false
	}
	return ackSubject{topic: string(rest), number: int32(number), group: string(tokens[1]), offset: offset, token: token}, true
}

// ackItem makes an item of what was published.
func (a *ackSubject) item(body []byte, hop bool) (group.AckItem, *wire.Error) {
	item := group.AckItem{First: a.offset, Last: a.offset, Token: a.token}
	word, rest, _ := bytes.Cut(bytes.TrimSpace(body), []byte(" "))
	rest = bytes.TrimSpace(rest)
	switch string(word) {
	case "", ackDone:
		item.Kind = group.Ack
	case ackProgress:
		item.Kind = group.Progress
	case ackTerm:
		item.Kind, item.Reason = group.Term, string(rest[:min(len(rest), wire.MaxMemberText)])
	case ackNak:
		item.Kind, item.DelayMS = group.Nak, -1
		if len(rest) == 0 {
			break
		}
		var q struct {
			DelayMS *int64 `json:"delay_ms"`
		}
		if err := json.Unmarshal(rest, &q); err != nil || q.DelayMS == nil || *q.DelayMS < 0 {
			return item, badRequest(`%s %q: allowed is %s or %s {"delay_ms":1000}`, ackNak, clip(rest), ackNak, ackNak)
		}
		if *q.DelayMS > group.MaxDelayMS { // by itself: acks of one burst go on together
			return item, badRequest("%s with a delay of %d ms: 0 to %d are allowed", ackNak, *q.DelayMS, int64(group.MaxDelayMS))
		}
		item.DelayMS = *q.DelayMS
	case ackReturn:
		if hop {
			item.Kind = group.Return
			break
		}
		fallthrough
	default:
		return item, badRequest("an ack is %q: allowed are nothing, %s, %s, %s and %s", clip(body), ackDone, ackNak, ackProgress, ackTerm)
	}
	return item, nil
}

// gathered are the acks of one burst for one group on one partition: they go into
// the log together.
type gathered struct {
	topic  *topic
	number int32
	part   *partition.Partition
	group  string
	hop    bool
	items  []group.AckItem
	from   []interest.Message // what each item came with
}

// maxGathered acks wait for the end of a burst.
const maxGathered = 1024

// ack takes what is published to $PARLEY.ACK.…
func (s *session) ack(m *interest.Message) {
	a, ok := parseAck(m.Subject)
	if !ok {
		s.b.refuseGroup(aGroupRequest, m.Reply, badRequest("the subject %q is not the reply subject of a record", clip(m.Subject)))
		return
	}
	t := s.b.routes.Load().byName[a.topic]
	if t == nil {
		s.b.refuseGroup(aGroupRequest, m.Reply, &wire.Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: "there is no topic " + a.topic})
		return
	}
	if int(a.number) >= len(t.parts) {
		s.b.refuseGroup(aGroupRequest, m.Reply, noPartition(t, strconv.AppendInt(nil, int64(a.number), 10)))
		return
	}
	s.ackFrom(t, &a, m)
}

// ackFrom judges an ack on the leader's broker, or hands it to the leader.
func (s *session) ackFrom(t *topic, a *ackSubject, m *interest.Message) {
	item, werr := a.item(m.Payload, s.hop || s.own)
	if werr != nil {
		s.b.refuseGroup(aGroupRequest, m.Reply, werr)
		return
	}
	p, to := s.b.leader(t.parts[a.number], s.hop)
	if to != 0 && s.b.forwards.send(to, t.name, a.number, m) == nil {
		return
	}
	if p != nil {
		s.gather(t, a, p, item, m)
		return
	}
	leave, werr := s.admitGroup(false)
	if werr != nil {
		s.b.refuseGroup(aGroupRequest, m.Reply, werr)
		return
	}
	g := gathered{topic: t, number: a.number, group: a.group, hop: s.hop}
	g.add(item, m)
	s.wg.Go(func() {
		defer leave()
		s.b.settle(&g)
	})
}

// add keeps a copy of what an ack came with, in one piece of memory.
func (g *gathered) add(item group.AckItem, m *interest.Message) {
	kept := make([]byte, 0, len(m.Subject)+len(m.Reply)+len(m.Payload))
	keep := func(part []byte) []byte {
		at := len(kept)
		kept = append(kept, part...)
		return kept[at:len(kept):len(kept)]
	}
	g.items = append(g.items, item)
	g.from = append(g.from, interest.Message{Subject: keep(m.Subject), Reply: keep(m.Reply), Payload: keep(m.Payload)})
}

func (s *session) gather(t *topic, a *ackSubject, p *partition.Partition, item group.AckItem, m *interest.Message) {
	at := slices.IndexFunc(s.acks, func(g *gathered) bool { return g.part == p && g.group == a.group })
	if at < 0 {
		at = len(s.acks)
		s.acks = append(s.acks, &gathered{topic: t, number: a.number, part: p, group: a.group, hop: s.hop})
	}
	s.acks[at].add(item, m)
	if s.ackCount++; s.ackCount >= maxGathered {
		s.flushAcks()
	}
}

// flushAcks hands over what was gathered, at the end of a burst.
func (s *session) flushAcks() {
	for i, g := range s.acks {
		s.acks[i] = nil
		leave, werr := s.admitGroup(false)
		if werr != nil {
			for i := range g.from {
				s.b.refuseGroup(aGroupRequest, g.from[i].Reply, werr)
			}
			continue
		}
		s.wg.Go(func() {
			defer leave()
			s.b.settle(g)
		})
	}
	s.acks, s.ackCount = s.acks[:0], 0
}

// settle commits acks, and tells whoever wants to hear. A session that has ended doesn't
// take them back: who publishes an ack and leaves has acked.
func (b *Broker) settle(g *gathered) {
	ctx, cancel := context.WithTimeout(b.ctx, requestTime)
	defer cancel()
	for try := 1; ; try++ {
		if g.part == nil && !b.findLeader(ctx, g) {
			return
		}
		take := g.part.AckGroup
		if !g.awaited() {
			take = g.part.AckGroupSoon
		}
		refused, err := take(ctx, g.group, "", g.items)
		if err == nil || try == appendTries || !errors.Is(err, partition.ErrNotLeader) {
			b.tellSettled(g, refused, err)
			return
		}
		g.part = nil // leadership moved while they were on their way
	}
}

// awaited tells whether somebody wants to hear that the acks are committed.
func (g *gathered) awaited() bool {
	return slices.ContainsFunc(g.from, func(m interest.Message) bool { return len(m.Reply) > 0 })
}

// findLeader finds out who takes the acks. False: nothing is left to do here, they
// were handed to the leader's broker or refused.
func (b *Broker) findLeader(ctx context.Context, g *gathered) bool {
	p, done, werr := b.reach(ctx, g.topic, g.number, &g.from[0], passage{hop: g.hop})
	if werr != nil {
		b.tellSettled(g, nil, werr)
		return false
	}
	if !done {
		g.part = p
		return true
	}
	// The first one has gone to the leader, the others follow it.
	g.items, g.from = g.items[1:], g.from[1:]
	for len(g.items) > 0 {
		one := gathered{topic: g.topic, number: g.number, group: g.group, hop: g.hop, items: g.items[:1], from: g.from[:1]}
		g.items, g.from = g.items[1:], g.from[1:]
		if b.findLeader(ctx, &one) {
			g.part, g.items, g.from = one.part, append(one.items, g.items...), append(one.from, g.from...)
			return true // it has come back here
		}
	}
	return false
}

func (b *Broker) tellSettled(g *gathered, refused []group.Refusal, err error) {
	why := make([]*wire.Error, len(g.items))
	for _, r := range refused {
		// Whose ack was lost on the way back sends it again.
		if r.Reason == group.AlreadyDone && g.items[r.Item].Kind == group.Ack {
			continue
		}
		b.metrics.groupFailed(r.Reason)
		why[r.Item] = &wire.Error{Code: 409, Reason: r.Reason, Description: r.Description}
	}
	if err != nil {
		e := b.gone(g.topic, groupError(err))
		b.metrics.groupFailed(e.Reason)
		for i := range why {
			why[i] = e
		}
	}
	for i := range g.from {
		switch reply := g.from[i].Reply; {
		case len(reply) == 0:
		case why[i] != nil:
			b.answer(reply, appendError(nil, why[i]))
		default:
			b.answer(reply, acked)
		}
	}
}

// acked is an empty wire.GroupAcked.
var acked = []byte("{}")
