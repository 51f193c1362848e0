package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
)

// runtime is what the API needs to know of this broker and, through it, of the
// others.
type runtime struct{ b *Broker }

var _ api.Runtime = runtime{}

// Limits of what brokers ask one another for the API.
const (
	statusWait  = time.Second // for one leader's answer
	statusParts = 4096        // partitions in one question
)

func (b *Broker) slot(topic uint64, number int32) *slot {
	t := b.routes.Load().byID[topic]
	if t == nil || number < 0 || int(number) >= len(t.parts) {
		return nil
	}
	return t.parts[number]
}

// topicNamed finds a topic by its name, or nil.
func (b *Broker) topicNamed(name string) *topic {
	if r := b.routes.Load(); r != nil {
		return r.byName[name]
	}
	return nil
}

// slotNamed finds a partition's slot by its topic's name, or nil.
func (b *Broker) slotNamed(topic string, number int32) *slot {
	t := b.topicNamed(topic)
	if t == nil || number < 0 || int(number) >= len(t.parts) {
		return nil
	}
	return t.parts[number]
}

// slotOf finds a partition's slot by its shard, or nil.
func (b *Broker) slotOf(shard uint64) *slot {
	if r := b.routes.Load(); r != nil {
		return r.byShard[shard]
	}
	return nil
}

// Levels implements api.Runtime.
func (r runtime) Levels(ctx context.Context) map[uint64]uint32 { return r.b.keeper.levels(ctx) }

// Leader implements api.Runtime.
func (r runtime) Leader(topic uint64, number int32) uint64 {
	if s := r.b.slot(topic, number); s != nil {
		return s.lead.load().broker
	}
	return 0
}

// Term implements api.Runtime.
func (r runtime) Term(topic uint64, number int32) uint64 {
	if s := r.b.slot(topic, number); s != nil {
		return s.lead.load().term
	}
	return 0
}

// own is what this broker knows of a partition by itself.
func (b *Broker) own(s *slot) api.PartitionStatus {
	now := s.lead.load()
	st := api.PartitionStatus{Leader: now.broker, Term: now.term, Problem: s.problemText()}
	p := s.partition.Load()
	if p == nil {
		if st.Leader == b.self() {
			st.Leader = 0
		}
		return st
	}
	ps := p.Status()
	st.Start, st.Next, st.Bytes = ps.Start, ps.Next, ps.Bytes
	if ps.Damage != "" {
		st.Problem = ps.Damage
	}
	if ps.Restoring != nil {
		st.Problem = ps.Restoring.String()
	}
	switch {
	case ps.Leading:
		st.Leader, st.Term, st.InSync, st.Move = b.self(), ps.Term, s.inSync(b), s.moveStatus(b, ps.Bytes)
		st.Late = s.late(b, st.InSync)
		st.Damaged = s.damagedOn(b)
		st.Comparison = b.comparer.status(s)
		st.Groups = p.GroupProblems()
	case st.Leader == b.self():
		st.Leader = 0 // it has yet to begin
	}
	return st
}

// Partitions implements api.Runtime.
func (r runtime) Partitions(ctx context.Context, parts []api.Part) []api.PartitionStatus {
	b := r.b
	out := make([]api.PartitionStatus, len(parts))
	ask := map[uint64][]int{} // indexes into parts, by leader
	for i, p := range parts {
		s := b.slot(p.Topic, p.Number)
		if s == nil {
			out[i].Problem = "this broker has not carried out the newest epoch yet"
			continue
		}
		out[i] = b.own(s)
		if to := out[i].Leader; to != 0 && to != b.self() {
			ask[to] = append(ask[to], i)
		}
	}
	var wg sync.WaitGroup
	for to, indexes := range ask {
		for len(indexes) > 0 {
			some := indexes[:min(len(indexes), statusParts)]
			indexes = indexes[len(some):]
			wg.Go(func() { b.askStatus(ctx, to, parts, some, out) })
		}
	}
	wg.Wait()
	b.askLaggards(ctx, parts, out)
	b.askRoom(ctx, out)
	return out
}

// askLaggards asks replicas that aren't in sync, where they can be reached, what
// they are about: their leader doesn't know.
func (b *Broker) askLaggards(ctx context.Context, parts []api.Part, out []api.PartitionStatus) {
	ask := map[uint64][]int{}
	for i, p := range parts {
		s := b.slot(p.Topic, p.Number)
		if s == nil || out[i].Problem != "" || out[i].Leader == 0 {
			continue
		}
		for _, m := range s.replicas() {
			if !slices.Contains(out[i].InSync, m.Broker) && b.peers.alive(m.Broker) {
				ask[m.Broker] = append(ask[m.Broker], i)
			}
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for at, indexes := range ask {
		indexes = indexes[:min(len(indexes), statusParts)]
		wg.Go(func() {
			q, res := make([]api.Part, len(indexes)), []api.PartitionStatus{}
			for n, i := range indexes {
				q[n] = parts[i]
			}
			if at == b.self() {
				for _, p := range q {
					var own api.PartitionStatus
					if s := b.slot(p.Topic, p.Number); s != nil { // else it was deleted meanwhile
						own = b.own(s)
					}
					res = append(res, own)
				}
			} else if err := b.request(ctx, at, subjectStatus, statusWait, q, &res); err != nil || len(res) != len(q) {
				return // that it isn't in sync is known all the same
			}
			mu.Lock()
			defer mu.Unlock()
			for n, i := range indexes {
				if res[n].Problem != "" && out[i].Problem == "" {
					out[i].Problem = "replica on " + b.brokerName(at) + ": " + res[n].Problem
				}
			}
		})
	}
	wg.Wait()
}

// askStatus fills in what a leader says of its partitions.
func (b *Broker) askStatus(ctx context.Context, to uint64, parts []api.Part, indexes []int, out []api.PartitionStatus) {
	q := make([]api.Part, len(indexes))
	for n, i := range indexes {
		q[n] = parts[i]
	}
	var res []api.PartitionStatus
	err := b.request(ctx, to, subjectStatus, statusWait, q, &res)
	if err == nil && len(res) != len(q) {
		err = errBadMessage
	}
	for n, i := range indexes {
		if err != nil {
			out[i].Problem = "its leader, " + b.silence(to, err)
			if !b.peers.state(to).up {
				out[i].Problem = fmt.Sprintf("it has no leader: the last one, broker %s, can't be reached", b.brokerName(to))
				out[i].Leader = 0
			}
			continue
		}
		if res[n].Leader == 0 && res[n].Problem == "" {
			continue // it has just stopped to lead: what is known here stands
		}
		out[i] = res[n]
	}
}

// request asks a peer, JSON in and out.
func (b *Broker) request(ctx context.Context, to uint64, subject string, wait time.Duration, q, res any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode request %s: %w", subject, err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	answer, err := b.peers.mesh.Request(ctx, to, subject, body)
	if err != nil {
		return err
	}
	if res == nil {
		return nil
	}
	if err := json.Unmarshal(answer, res); err != nil {
		return fmt.Errorf("decode answer to %s: %w", subject, err)
	}
	return nil
}

func (b *Broker) brokerName(id uint64) string {
	if at := b.epochs.Current().Broker(id); at != nil {
		return at.Name
	}
	return fmt.Sprint(id)
}

// started refuses peers' questions until this broker has routes.
func (b *Broker) notStarted() error {
	if b.routes.Load() != nil {
		return nil
	}
	return &wire.Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Description: "broker " + b.c.Name + " is starting"}
}

func (b *Broker) answerStatus(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var q []api.Part
	if err := json.Unmarshal(req, &q); err != nil || len(q) > statusParts {
		return nil, badRequest("malformed status request")
	}
	if err := b.notStarted(); err != nil {
		return nil, err
	}
	res := make([]api.PartitionStatus, len(q))
	for i, p := range q {
		s := b.slot(p.Topic, p.Number)
		if s == nil {
			continue
		}
		if res[i] = b.own(s); res[i].Leader != b.self() {
			res[i] = api.PartitionStatus{Problem: res[i].Problem}
		}
	}
	return json.Marshal(res)
}

// offsetRequest asks a partition's leader for its bounds.
type offsetRequest struct {
	api.Part
	TimeMS *int64
}

// Bounds implements api.Runtime.
func (r runtime) Bounds(ctx context.Context, topic uint64, number int32, timeMS *int64) (wire.OffsetResponse, error) {
	b := r.b
	t := b.routes.Load().byID[topic]
	if t == nil || int(number) >= len(t.parts) {
		return wire.OffsetResponse{}, notHere("", number, "the epoch is being carried out")
	}
	s := t.parts[number]
	var failure error
	for {
		changed := b.leaders.watch()
		p, to := b.leader(s, false)
		if p != nil {
			res, err := b.bounds(ctx, s, timeMS)
			var e *wire.Error
			if err == nil || errors.As(err, &e) && e.Reason != wire.ReasonNotLeader {
				return res, err
			}
			failure = err
		}
		if to != 0 {
			var res wire.OffsetResponse
			failure = b.request(ctx, to, subjectOffset, statusWait, offsetRequest{api.Part{Topic: topic, Number: number}, timeMS}, &res)
			var e *wire.Error
			if failure == nil || errors.As(failure, &e) && e.Reason != wire.ReasonNotLeader && e.Reason != wire.ReasonUnavailable {
				return res, failure
			}
		}
		wait := electionWait - time.Since(s.lead.load().since)
		if wait <= 0 || ctx.Err() != nil || s.alone() && s.problem.Load() != nil {
			if p != nil {
				return wire.OffsetResponse{}, failure
			}
			e := b.noLeader(t, number, to, failure)
			e.Outcome = ""
			return wire.OffsetResponse{}, e
		}
		limit := time.NewTimer(min(wait, 20*time.Millisecond))
		select {
		case <-changed:
		case <-limit.C:
		case <-ctx.Done():
		}
		limit.Stop()
	}
}

// bounds answers for a partition that this broker leads, which the others have to confirm: one that is cut off
// from them may be behind.
func (b *Broker) bounds(ctx context.Context, s *slot, timeMS *int64) (wire.OffsetResponse, error) {
	p := s.partition.Load()
	switch {
	case p == nil:
		return wire.OffsetResponse{}, s.refusal()
	case !p.Leading():
		return wire.OffsetResponse{}, notHere(s.topic, s.number, "this broker does not lead it")
	}
	asking, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	if err := p.Confirm(asking); err != nil {
		if ctx.Err() != nil {
			return wire.OffsetResponse{}, ctx.Err()
		}
		return wire.OffsetResponse{}, notHere(s.topic, s.number, fmt.Sprintf("the other replicas do not confirm that this broker leads it: %v", err))
	}
	start, next := p.Bounds()
	res := wire.OffsetResponse{Offset: next, Start: start, Next: next}
	if timeMS == nil {
		return res, nil
	}
	offset, err := p.OffsetAt(*timeMS)
	if err != nil {
		e := b.readError(s, err)
		e.Outcome = ""
		return wire.OffsetResponse{}, e
	}
	res.Offset, res.Next = offset, max(next, offset)
	return res, nil
}

func (b *Broker) answerOffset(ctx context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var q offsetRequest
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, badRequest("malformed offset request")
	}
	if err := b.notStarted(); err != nil {
		return nil, err
	}
	s := b.slot(q.Topic, q.Number)
	if s == nil {
		return nil, notHere("", q.Number, "the epoch is being carried out")
	}
	res, err := b.bounds(ctx, s, q.TimeMS)
	if err != nil {
		return nil, err
	}
	return json.Marshal(res)
}

// Carried implements api.Runtime: it waits until every broker that can be reached
// has carried out the epoch, and until what the epoch concerns is led, so that
// a topic can be published to by whatever broker when its creation is reported.
func (r runtime) Carried(ctx context.Context, n uint64) {
	b := r.b
	var wg sync.WaitGroup
	for _, id := range b.peers.live() {
		wg.Go(func() {
			if err := b.request(ctx, id, subjectCarried, requestTime, n, nil); err != nil && ctx.Err() == nil {
				b.c.Logger.Debug().Err(err).Uint64("epoch", n).Msg("a broker did not say that it has carried out the epoch")
			}
		})
	}
	b.awaitCarried(ctx, n)
	wg.Wait()
}

func (b *Broker) answerCarried(ctx context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var n uint64
	if err := json.Unmarshal(req, &n); err != nil {
		return nil, badRequest("malformed request about an epoch")
	}
	b.awaitCarried(ctx, n)
	return []byte("true"), nil
}

// awaitCarried waits for this broker: the epoch is carried out here, partitions
// that it concerns are known to be led, and those that are led from here go by
// it.
func (b *Broker) awaitCarried(ctx context.Context, n uint64) {
	if !b.carrier.wait(ctx, n) {
		return
	}
	look := time.NewTicker(readyLook / 4)
	defer look.Stop()
	for !b.led(n) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

func (b *Broker) led(n uint64) bool {
	for _, s := range b.routes.Load().byShard {
		if s.local && s.concern.Load() < n || s.problem.Load() != nil {
			continue
		}
		now := s.lead.load()
		if now.broker == 0 {
			return false
		}
		if now.broker != b.self() {
			continue
		}
		p := s.partition.Load()
		if p == nil || !p.Leading() {
			return false
		}
		if _, ok := s.stamped(p, b); !ok {
			return false
		}
	}
	return true
}

// Reach implements api.Runtime.
func (r runtime) Reach(id uint64) api.Reach {
	b := r.b
	if id == b.self() {
		return api.Reach{Up: true, Version: Version}
	}
	if b.peers.mesh == nil {
		return api.Reach{Problem: "this broker has no links to others"}
	}
	s := b.peers.state(id)
	res := api.Reach{Version: s.version}
	for _, p := range b.peers.mesh.Peers() {
		if p.Broker != id {
			continue
		}
		res.RTT, res.Up = p.RTT, p.Reachable
		if !p.Reachable {
			res.Problem = p.LastError
		}
	}
	if !res.Up && res.Problem == "" {
		res.Problem = "no link to it is up yet"
	}
	return res
}

// Problems implements api.Runtime.
func (r runtime) Problems() []string {
	var out []string
	if r.b.space.Full() {
		out = append(out, "broker "+r.b.c.Name+": free disk space is below the floor: publishes to partitions that it leads are refused")
	}
	if r.b.space.Scarce() {
		out = append(out, "broker "+r.b.c.Name+": its disk is almost full: its replicas take nothing in until there is room, the others go on without them")
	} else if r.b.space.Low() {
		out = append(out, "broker "+r.b.c.Name+": its disk is almost full: nothing is copied to it until there is room")
	}
	if why := r.b.NotReady(); why != "" {
		out = append(out, "broker "+r.b.c.Name+": "+why)
	}
	out = append(out, r.b.keeper.problems()...)
	if n := r.b.epochs.Behind(); n > 0 {
		out = append(out, fmt.Sprintf("broker %s is %d epochs behind", r.b.c.Name, n))
	}
	return out
}
