package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
)

// What the API asks the partitions' leaders about groups. Each other broker gets one
// question about all of its partitions, or a few where they are very many.

const (
	groupsWait = 5 * time.Second // for one broker's answer about groups
	setWait    = 8 * time.Second // for one broker's change, which commits to logs
	setAtOnce  = 16              // partitions that a broker changes at a time
	// maxSums bounds what one broker tells of groups in one answer.
	maxSums = 16384
	// stateParts bounds one question about a group: with members and their partitions an
	// answer is to fit a link.
	stateParts = 1024
)

// groupQuestion goes to a peer, about partitions that it leads.
type groupQuestion struct {
	Parts []api.Part
	Group string                `json:",omitempty"` // of parts
	Set   *wire.GroupSetRequest `json:",omitempty"` // what to do; nil: nothing
}

// leadersOf sorts partitions by who leads them: indexes into parts, by broker; 0: nobody.
func (b *Broker) leadersOf(parts []api.Part) map[uint64][]int {
	by := map[uint64][]int{}
	for i, p := range parts {
		to := uint64(0)
		if s := b.slot(p.Topic, p.Number); s != nil {
			if p, at := b.leader(s, false); p != nil {
				to = b.self()
			} else {
				to = at
			}
		}
		by[to] = append(by[to], i)
	}
	return by
}

func pick(parts []api.Part, indexes []int) []api.Part {
	out := make([]api.Part, len(indexes))
	for n, i := range indexes {
		out[n] = parts[i]
	}
	return out
}

const leaderless = "it has no leader at the moment"

// movingPause lies between two questions to partitions whose leadership moves.
const movingPause = 20 * time.Millisecond

// whileMoving asks about partitions, and again about those that nobody led, for as
// long as an election takes. ask returns these.
func (b *Broker) whileMoving(ctx context.Context, parts []api.Part, ask func(indexes []int) (moving []int)) {
	indexes := make([]int, len(parts))
	for i := range indexes {
		indexes[i] = i
	}
	for limit := time.Now().Add(electionWait); ; {
		changed := b.leaders.watch()
		if indexes = ask(indexes); len(indexes) == 0 || !time.Now().Before(limit) {
			return
		}
		pause := time.NewTimer(movingPause)
		select {
		case <-changed:
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
		pause.Stop()
	}
}

// GroupParts implements api.Groups.
func (r runtime) GroupParts(ctx context.Context, name string, parts []api.Part) []api.GroupPart {
	out := make([]api.GroupPart, len(parts))
	r.b.whileMoving(ctx, parts, func(indexes []int) (moving []int) {
		for n, res := range r.b.groupParts(ctx, name, pick(parts, indexes)) {
			if out[indexes[n]] = res; res.Moving {
				moving = append(moving, indexes[n])
			}
		}
		return moving
	})
	return out
}

func (b *Broker) groupParts(ctx context.Context, name string, parts []api.Part) []api.GroupPart {
	out := make([]api.GroupPart, len(parts))
	var wg sync.WaitGroup
	for to, indexes := range b.leadersOf(parts) {
		switch to {
		case 0:
			for _, i := range indexes {
				out[i].Problem, out[i].Moving = leaderless, true
			}
		case b.self():
			for _, i := range indexes {
				out[i] = b.groupPart(name, parts[i])
			}
		default:
			for len(indexes) > 0 {
				some := indexes[:min(len(indexes), stateParts)]
				indexes = indexes[len(some):]
				wg.Go(func() {
					var res []api.GroupPart
					err := b.request(ctx, to, subjectGroupParts, groupsWait, groupQuestion{Parts: pick(parts, some), Group: name}, &res)
					if err == nil && len(res) != len(some) {
						err = errBadMessage
					}
					for n, i := range some {
						if err != nil {
							out[i].Problem = b.silent(to, err)
						} else {
							out[i] = res[n]
						}
					}
				})
			}
		}
	}
	wg.Wait()
	return out
}

func (b *Broker) silent(to uint64, err error) string {
	return fmt.Sprintf("its leader %s does not answer: %v", b.brokerName(to), err)
}

// groupPart is what this broker knows of a group on a partition.
func (b *Broker) groupPart(name string, at api.Part) api.GroupPart {
	s := b.slot(at.Topic, at.Number)
	if s == nil {
		return api.GroupPart{Problem: "broker " + b.c.Name + " has not carried out the newest epoch yet"}
	}
	p := s.partition.Load()
	if p == nil {
		return api.GroupPart{Problem: s.refusal().Description}
	}
	states, err := p.GroupStates(name)
	if err != nil {
		return api.GroupPart{Problem: groupError(err).Description, Moving: errors.Is(err, partition.ErrNotLeader)}
	}
	res := api.GroupPart{States: wireStates(s.topic, s.number, states)}
	res.Start, res.Next = p.Bounds()
	return res
}

func (b *Broker) groupQuestion(req []byte) (q groupQuestion, err error) {
	if err := json.Unmarshal(req, &q); err != nil || len(q.Parts) > statusParts {
		return q, badRequest("malformed question about groups")
	}
	return q, b.notStarted()
}

func (b *Broker) answerGroupParts(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	q, err := b.groupQuestion(req)
	if err != nil {
		return nil, err
	}
	res := make([]api.GroupPart, len(q.Parts))
	for i, p := range q.Parts {
		res[i] = b.groupPart(q.Group, p)
	}
	return json.Marshal(res)
}

// GroupSums implements api.Groups.
func (r runtime) GroupSums(ctx context.Context, parts []api.Part) api.GroupsSeen {
	b := r.b
	var mu sync.Mutex
	var all api.GroupsSeen
	add := func(s api.GroupsSeen) {
		mu.Lock()
		defer mu.Unlock()
		all.Sums = append(all.Sums, s.Sums...)
		all.Spans = append(all.Spans, s.Spans...)
		all.Silent = append(all.Silent, s.Silent...)
		all.Problems = append(all.Problems, s.Problems...)
	}
	var wg sync.WaitGroup
	for to, indexes := range b.leadersOf(parts) {
		switch to {
		case 0:
			add(api.GroupsSeen{Silent: silence(pick(parts, indexes), leaderless)})
		case b.self():
			add(b.groupSums(pick(parts, indexes)))
		default:
			for len(indexes) > 0 {
				some := indexes[:min(len(indexes), statusParts)]
				indexes = indexes[len(some):]
				wg.Go(func() {
					var res api.GroupsSeen
					if err := b.request(ctx, to, subjectGroupSums, groupsWait, groupQuestion{Parts: pick(parts, some)}, &res); err != nil {
						res = api.GroupsSeen{Silent: silence(pick(parts, some), b.silent(to, err))}
					}
					add(res)
				})
			}
		}
	}
	wg.Wait()
	return all
}

// silence says of partitions why they give no answer, topic by topic.
func silence(parts []api.Part, why string) (all []api.Silence) {
	at := map[uint64]int{}
	for _, p := range parts {
		i, ok := at[p.Topic]
		if !ok {
			i = len(all)
			at[p.Topic] = i
			all = append(all, api.Silence{Topic: p.Topic, Problem: why})
		}
		all[i].Numbers = append(all[i].Numbers, p.Number)
	}
	return all
}

// groupSums adds up the groups of partitions that this broker leads.
func (b *Broker) groupSums(parts []api.Part) (res api.GroupsSeen) {
	type key struct {
		topic uint64
		group string
	}
	at := map[key]int{}
	spans := map[uint64]int64{}
	left := 0
	for _, part := range parts {
		s := b.slot(part.Topic, part.Number)
		if s == nil {
			res.Silent = append(res.Silent, silence([]api.Part{part}, "broker "+b.c.Name+" has not carried out the newest epoch yet")...)
			continue
		}
		p := s.partition.Load()
		if p == nil {
			res.Silent = append(res.Silent, silence([]api.Part{part}, s.refusal().Description)...)
			continue
		}
		states, err := p.GroupStates("")
		if err != nil {
			res.Silent = append(res.Silent, silence([]api.Part{part}, groupError(err).Description)...)
			continue
		}
		start, next := p.Bounds()
		spans[part.Topic] += next - start
		for i := range states {
			st := &states[i]
			k := key{part.Topic, st.Group}
			n, ok := at[k]
			if !ok {
				if len(res.Sums) == maxSums {
					left++
					continue
				}
				n = len(res.Sums)
				at[k] = n
				res.Sums = append(res.Sums, api.GroupSum{
					Topic: part.Topic, Group: st.Group, Mode: st.Options.Mode.String(), From: positionText(st.Options.From),
				})
			}
			if st.Token != 0 { // the anchor knows of groups that nobody has read with
				res.Sums[n].Span += next - start
			}
			res.Sums[n].Lag += st.Lag
			res.Sums[n].LagMS = max(res.Sums[n].LagMS, st.LagMS)
			res.Sums[n].Members = max(res.Sums[n].Members, len(st.Members))
		}
	}
	for topic, n := range spans {
		res.Spans = append(res.Spans, api.TopicSpan{Topic: topic, Records: n})
	}
	if left > 0 {
		res.Problems = append(res.Problems, fmt.Sprintf("broker %s knows more than %d groups: ask topic by topic", b.c.Name, maxSums))
	}
	return res
}

func (b *Broker) answerGroupSums(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	q, err := b.groupQuestion(req)
	if err != nil {
		return nil, err
	}
	return json.Marshal(b.groupSums(q.Parts))
}

// SetGroup implements api.Groups.
func (r runtime) SetGroup(ctx context.Context, parts []api.Part, q wire.GroupSetRequest) []error {
	out := make([]error, len(parts))
	r.b.whileMoving(ctx, parts, func(indexes []int) (moving []int) {
		for n, err := range r.b.setGroupOn(ctx, pick(parts, indexes), &q) {
			out[indexes[n]] = err
			var e *wire.Error
			if errors.As(err, &e) && e.Reason == wire.ReasonNotLeader {
				moving = append(moving, indexes[n])
			}
		}
		return moving
	})
	return out
}

func (b *Broker) setGroupOn(ctx context.Context, parts []api.Part, q *wire.GroupSetRequest) []error {
	out := make([]error, len(parts))
	var wg sync.WaitGroup
	for to, indexes := range b.leadersOf(parts) {
		wg.Go(func() {
			switch to {
			case 0:
				for _, i := range indexes {
					out[i] = &wire.Error{Code: 503, Reason: wire.ReasonNotLeader, Retriable: true, Description: leaderless}
				}
				return
			case b.self():
				for n, e := range b.setGroups(ctx, pick(parts, indexes), q) {
					out[indexes[n]] = nilable(e)
				}
				return
			}
			var res []*wire.Error
			err := b.request(ctx, to, subjectGroupSet, setWait, groupQuestion{Parts: pick(parts, indexes), Set: q}, &res)
			if err == nil && len(res) != len(indexes) {
				err = errBadMessage
			}
			for n, i := range indexes {
				if err == nil {
					out[i] = nilable(res[n])
					continue
				}
				var e *wire.Error
				if !errors.As(err, &e) {
					e = &wire.Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Outcome: wire.OutcomeUnknown, Description: b.silent(to, err)}
				}
				out[i] = e
			}
		})
	}
	wg.Wait()
	return out
}

// setGroups changes a group on partitions that this broker leads.
func (b *Broker) setGroups(ctx context.Context, parts []api.Part, q *wire.GroupSetRequest) []*wire.Error {
	out := make([]*wire.Error, len(parts))
	room := make(chan struct{}, setAtOnce)
	var wg sync.WaitGroup
	for i, part := range parts {
		s := b.slot(part.Topic, part.Number)
		if s == nil {
			out[i] = notHere("", part.Number, "broker "+b.c.Name+" has not carried out the newest epoch yet")
			continue
		}
		p := s.partition.Load()
		if p == nil {
			out[i] = s.refusal()
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if _, err := b.setGroup(ctx, s.topic, s.number, p, q); err != nil {
				out[i] = groupError(err)
			}
		})
	}
	wg.Wait()
	return out
}

func (b *Broker) answerGroupSet(ctx context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	q, err := b.groupQuestion(req)
	if err != nil {
		return nil, err
	}
	if q.Set == nil {
		return nil, badRequest("malformed change of a group")
	}
	return json.Marshal(b.setGroups(ctx, q.Parts, q.Set))
}
