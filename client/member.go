package client

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// How a subscription follows its group: the anchor, the partition that keeps the group's members, says which partitions the member has.

// anchor is the partition that keeps the group's members.
func (s *Subscription) anchor() int32 {
	return record.PartitionOf([]byte(s.group), s.view.anchors.Load())
}

// join joins the group, trying until ctx ends.
func (s *Subscription) join(ctx context.Context) (*wire.GroupAssignment, error) {
	var patience patience
	for n := 0; ; n++ {
		a, err := s.joinOnce(ctx)
		if err == nil {
			return a, nil
		}
		e := asError(err)
		if ctx.Err() != nil || e == nil || s.fatal(e, err, &patience) {
			return nil, err
		}
		if pause := s.c.pause(ctx, backoff(n)); pause != nil {
			return nil, fmt.Errorf("join the group: %w (last: %w)", pause, e)
		}
	}
}

func (s *Subscription) joinOnce(ctx context.Context) (*wire.GroupAssignment, error) {
	out, err := groupAsk(ctx, s, wire.GroupJoin, s.anchor(), wire.GroupJoinRequest{
		Group: s.group, Member: s.id, Name: s.cfg.name, Host: hostName(), Version: sdkVersion(), Options: s.cfg.group,
		Generation: s.heard.Load(),
	}, 0, assignmentError)
	return &out, err
}

func assignmentError(a *wire.GroupAssignment) *Error { return a.Error }

// hear notes a generation that somebody has named.
func (s *Subscription) hear(generation uint64) {
	for old := s.heard.Load(); generation > old && !s.heard.CompareAndSwap(old, generation); old = s.heard.Load() {
	}
}

// follow is the goroutine that hears of new generations. Its questions are the heartbeat too.
func (s *Subscription) follow() {
	anchor, member, tries := s.anchor(), true, 0
	var patience patience
	for s.joined.Err() == nil {
		if at := s.anchor(); at != anchor {
			anchor, member = at, false // partitions were added below the feature level from which on anchors stay
		}
		s.mu.Lock()
		known := s.assignment.Generation
		s.mu.Unlock()
		if s.heard.Load() > known {
			member = false // a leader knows of a newer generation than the anchor may: it must go beyond that
		}
		var a *wire.GroupAssignment
		var err error
		if member {
			a, err = s.sync()
		} else {
			a, err = s.joinOnce(s.joined)
		}
		if s.joined.Err() != nil {
			return
		}
		if err == nil {
			member, tries = true, 0
			patience.over()
			s.hear(a.Generation)
			s.apply(a)
			if a.Generation >= s.heard.Load() {
				continue
			}
			err = lost("the anchor's generation is behind")
		}
		e := asError(err)
		switch {
		case e != nil && (e.Reason == wire.ReasonUnknownMember || e.Reason == wire.ReasonGroupNotFound):
			// We were away for longer than a session, or the group was deleted: it is made anew.
			patience.over()
			if member {
				s.c.cfg.log("joining the group again", "topic", s.topic, "group", s.group, "cause", err)
			}
			member = false
		case s.fatal(e, err, &patience):
			s.fail(err)
			return
		}
		tries++
		timer := time.NewTimer(backoff(tries - 1))
		select {
		case <-timer.C:
		case <-s.kick:
		case <-s.joined.Done():
		}
		timer.Stop()
	}
}

func (s *Subscription) sync() (*wire.GroupAssignment, error) {
	s.mu.Lock()
	generation := s.assignment.Generation
	s.mu.Unlock()
	wait := s.session() / 3
	out, err := groupAsk(s.joined, s, wire.GroupSync, s.anchor(), wire.GroupSyncRequest{
		Group: s.group, Member: s.id, Generation: generation, WaitMS: wait.Milliseconds(),
	}, wait, assignmentError)
	return &out, err
}

// askAnchor is for who was told that things have changed.
func (s *Subscription) askAnchor() { nudge(s.kick) }

// apply takes an assignment over.
func (s *Subscription) apply(a *wire.GroupAssignment) {
	s.mu.Lock()
	before := s.assignment
	if before != nil && before.Generation == a.Generation && slices.Equal(before.Partitions, a.Partitions) {
		s.mu.Unlock()
		return
	}
	s.assignment = a
	s.hear(a.Generation)
	s.agreed.Store(&a.Options)
	for p, c := range s.claims {
		if !slices.Contains(a.Partitions, p) {
			c.revoke()
			continue
		}
		c.generation.Store(a.Generation)
		nudge(c.newer)
	}
	for _, p := range a.Partitions {
		if s.claims[p] == nil {
			s.begin(p)
		}
	}
	s.mu.Unlock()
	s.c.cfg.log("partitions assigned", "topic", s.topic, "group", s.group, "generation", a.Generation, "partitions", a.Partitions)
	if h := s.cfg.hooks.Rebalance; h != nil {
		h(a.Generation, slices.Clone(a.Partitions))
	}
}

// begin starts a claim. s.mu is held.
func (s *Subscription) begin(partition int32) {
	c := newClaim(s, partition, s.assignment.Generation)
	s.claims[partition] = c
	s.held.Store(int32(len(s.claims)))
	go c.run() // ends with claimEnded
}

// claimEnded books a claim out. A partition that was taken away and given again meanwhile is begun anew.
func (s *Subscription) claimEnded(c *claim) {
	s.mu.Lock()
	delete(s.claims, c.partition)
	s.held.Store(int32(len(s.claims)))
	select {
	case <-s.closing:
	default:
		if slices.Contains(s.assignment.Partitions, c.partition) {
			s.begin(c.partition)
		}
	}
	s.mu.Unlock()
	c.revoke()
	close(c.ended)
}

// goodbyePatience bounds the leaving. A member that doesn't manage to say goodbye is missed after its session.
const goodbyePatience = 2 * time.Second

func (s *Subscription) goodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyePatience)
	defer cancel()
	for n := 0; ; n++ {
		_, err := groupAsk(ctx, s, wire.GroupLeave, s.anchor(), wire.GroupLeaveRequest{Group: s.group, Member: s.id}, 0, assignmentError)
		e := asError(err)
		if err == nil || e == nil || !e.Retriable || s.c.pause(ctx, backoff(n)) != nil {
			return
		}
	}
}

// groupAsk asks a partition's leader, once. wait is how long the request may be held there.
func groupAsk[T any](ctx context.Context, s *Subscription, prefix string, partition int32, req any, wait time.Duration, failure func(*T) *Error) (out T, err error) {
	return groupAskOut(ctx, s, prefix, partition, req, wait, nil, failure)
}

// groupAskOut is groupAsk that waits a while for the answer also when ctx has ended: see inquire.
func groupAskOut[T any](ctx context.Context, s *Subscription, prefix string, partition int32, req any, wait time.Duration, recall func(exchange) time.Duration, failure func(*T) *Error) (out T, err error) {
	data, err := json.Marshal(req)
	if err != nil {
		return out, fmt.Errorf("encode request: %w", err)
	}
	subject := wire.PartitionSubject(prefix, s.topic, partition)
	r, err := s.inquire(ctx, s.c.publishes, subject, partition, data, wait, recall)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(r.data, &out); err != nil {
		return out, &Error{Code: 500, Reason: wire.ReasonInternal, Retriable: true, Outcome: wire.OutcomeUnknown,
			Description: fmt.Sprintf("the answer to %s is no JSON of the expected form: %v", subject, err)}
	}
	if e := failure(&out); e != nil {
		return out, e
	}
	return out, nil
}

// inquire sends a request to a partition's leader and waits for the answer: as long as the leader may hold it and the
// request timeout on top, unless the connection breaks or another leader is known before. With recall, the answer is waited for also
// after ctx has ended: recall is called then, which may make the leader answer at once, and says how long it may take.
func (s *Subscription) inquire(ctx context.Context, routes *routes, subject string, partition int32, data []byte, wait time.Duration, recall func(exchange) time.Duration) (reply, error) {
	x := routes.to(s.view, partition)
	q := make(inquiry, 1)
	token, err := x.request(subject, nil, data, q, 0)
	if err != nil {
		return reply{}, err
	}
	sent := time.Now()
	timer := time.NewTimer(wait + overdueAfter)
	defer timer.Stop()
	done := ctx.Done()
	limit := wait + s.c.cfg.requestTimeout
	for {
		select {
		case r := <-q:
			if r.err != nil {
				return reply{}, r.err
			}
			return r, nil
		case <-done:
			if recall == nil {
				x.forget(token)
				return reply{}, ctx.Err()
			}
			patience := recall(x)
			done = nil
			limit = min(limit, time.Since(sent)+patience)
			timer.Reset(min(patience, overdueAgain))
			continue
		case <-timer.C:
		}
		if time.Since(sent) >= limit {
			x.forget(token)
			return reply{}, unanswered(subject, limit)
		}
		if routes.several() {
			s.c.topics.stale()
			if routes.to(s.view, partition) != x {
				x.forget(token)
				return reply{}, lost("another broker leads by now")
			}
		}
		timer.Reset(min(overdueAgain, limit-time.Since(sent)))
	}
}

// recallPatience is how long the answer to a pull that was called off may take. What it brings later runs out.
const recallPatience = time.Second

// fetch asks for batches, as a Reader does.
func (s *Subscription) fetch(ctx context.Context, partition int32, req wire.FetchRequest) (reply, error) {
	data, err := json.Marshal(req)
	if err != nil {
		return reply{}, fmt.Errorf("encode request: %w", err)
	}
	r, err := s.inquire(ctx, s.fetchs, wire.PartitionSubject(wire.FetchPrefix, s.topic, partition), partition, data,
		time.Duration(req.MaxWaitMS)*time.Millisecond, nil)
	if err != nil {
		return r, err
	}
	return r, batchesError(&r)
}

// batchesError is the failure that an answer of batches brings instead.
func batchesError(r *reply) error {
	reason := r.headerValue(wire.HeaderError)
	if reason == "" {
		return nil
	}
	var body struct {
		Error *Error `json:"error"`
	}
	if err := json.Unmarshal(r.data, &body); err != nil || body.Error == nil {
		return &Error{Code: 500, Reason: reason, Retriable: true, Description: "the request failed: " + reason}
	}
	return body.Error
}

// pull asks for records of a shared group. next is the log's next offset, -1 when the answer doesn't say.
func (s *Subscription) pull(ctx context.Context, c *claim, records, bytes int, wait time.Duration) (head wire.GroupPulled, batches []byte, next int64, err error) {
	req := wire.GroupPullRequest{Group: s.group, Member: s.id, Generation: c.generation.Load(),
		MaxMessages: records, MaxBytes: bytes, WaitMS: wait.Milliseconds(), Options: s.options()}
	subject := wire.PartitionSubject(wire.GroupPull, s.topic, c.partition)
	data, err := json.Marshal(req)
	if err != nil {
		return head, nil, -1, fmt.Errorf("encode request: %w", err)
	}
	r, err := s.inquire(ctx, s.fetchs, subject, c.partition, data, wait, func(x exchange) time.Duration {
		req.Stop = true
		if data, err := json.Marshal(req); err == nil {
			// What comes of it doesn't matter: the pull itself is answered, or runs out.
			if token, err := x.request(subject, nil, data, ignore{}, 0); err == nil {
				time.AfterFunc(recallPatience, func() { x.forget(token) })
			}
		}
		return recallPatience
	})
	if err == nil {
		err = batchesError(&r)
	}
	if err != nil {
		return head, nil, -1, err
	}
	next = r.headerInt(wire.HeaderNext)
	if head, batches, err = pulled(r.data); err != nil {
		err = &Error{Code: 500, Reason: wire.ReasonInternal, Retriable: true, Description: fmt.Sprintf("the answer to %s makes no sense: %v", subject, err)}
	}
	return head, batches, next, err
}

// ignore is a receiver that doesn't care.
type ignore struct{}

func (ignore) answered(uint64, reply) {}

// sdkVersion is what members say they run.
var sdkVersion = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "parley-go"
	}
	version := info.Main.Version
	if info.Main.Path != "github.com/parleymq/parley" {
		for _, d := range info.Deps {
			if d.Path == "github.com/parleymq/parley" {
				version = d.Version
			}
		}
	}
	return "parley-go " + version
})

var hostName = sync.OnceValue(func() string {
	name, err := os.Hostname()
	if err != nil {
		return "" // it is for people to read
	}
	return name[:min(len(name), wire.MaxMemberText)]
})
