package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// Figures of the groups. They have a topic of their own: three groups read all of it, record by record.
const (
	groupsTopic    = "chaos-groups"
	groupsKeys     = 32
	groupsTick     = 10 * time.Millisecond
	groupsMembers  = 3 // of the exclusive group; twice as many of each other
	groupsSession  = 3 * time.Second
	groupsAckWait  = 3 * time.Second
	groupsStay     = 8 * time.Second // a member of the exclusive group leaves that often, about
	groupsBatch    = 16
	groupsAsk      = 300 * time.Millisecond // wait of a request for records
	groupsAnswer   = 2 * time.Second        // for one try
	groupsGiveUp   = 60 * time.Second       // for all tries of one answer
	groupsDrain    = 90 * time.Second       // everything is handled by then, when the faults are over
	groupsEndEvery = 400                    // so many records, about, are ended: they become dead letters
)

// The groups, and what a member does with a record, in per mille.
const (
	groupExclusive = "exclusive"
	groupShared    = "shared"
	groupKeyed     = "key-ordered"

	groupsNak    = 60
	groupsForget = 15
)

// chaosGroups are consumer groups that work while brokers fail: members of the SDK in an exclusive group, with one that
// comes back when its lease is over; plain NATS clients in a shared and in a key-ordered one.
type chaosGroups struct {
	c     *client.Client
	urls  []string
	audit *chaosAudit // for what must not fail
	parts int32
	all   map[string]*groupAudit

	halt    chan struct{} // closed: no more records, and no more zombies
	writing sync.WaitGroup
	cancel  context.CancelFunc // of members
	members sync.WaitGroup
}

func newChaosGroups(c *client.Client, urls []string, audit *chaosAudit, parts int32) *chaosGroups {
	g := &chaosGroups{c: c, urls: urls, audit: audit, parts: parts, all: map[string]*groupAudit{}, halt: make(chan struct{})}
	for _, name := range []string{groupExclusive, groupShared, groupKeyed} {
		g.all[name] = newGroupAudit(name, name == groupKeyed, audit.tell)
	}
	return g
}

func (g *chaosGroups) start(ctx context.Context, seed uint64) error {
	if _, err := g.c.CreateTopic(ctx, client.TopicSpec{Name: groupsTopic, Partitions: g.parts, Replicas: 3}); err != nil {
		return err
	}
	g.writing.Go(func() { g.produce(ctx, rand.New(rand.NewPCG(seed, 3000))) })
	working, cancel := context.WithCancel(ctx)
	g.cancel = cancel
	for i := range groupsMembers {
		g.members.Go(func() { g.subscribe(working, i, rand.New(rand.NewPCG(seed, uint64(i)+3100))) })
	}
	g.writing.Go(func() { g.zombie(ctx) })
	for i := range 2 * groupsMembers {
		g.members.Go(func() { g.consume(working, groupShared, i, rand.New(rand.NewPCG(seed, uint64(i)+3200))) })
		g.members.Go(func() { g.consume(working, groupKeyed, i, rand.New(rand.NewPCG(seed, uint64(i)+3300))) })
	}
	return nil
}

// stop ends all at once.
func (g *chaosGroups) stop() {
	select {
	case <-g.halt:
	default:
		close(g.halt)
	}
	g.cancel()
	g.writing.Wait()
	g.members.Wait()
}

func (g *chaosGroups) produce(ctx context.Context, rng *rand.Rand) {
	p, err := g.c.NewProducer(ctx, groupsTopic, client.GiveUp(chaosGiveUp))
	if err != nil {
		g.audit.anomaly(&g.audit.failures, "make the groups' producer: %v", err)
		return
	}
	tick := time.NewTicker(groupsTick)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-g.halt:
			if err := p.Close(ctx); err != nil && ctx.Err() == nil {
				g.audit.anomaly(&g.audit.failures, "close the groups' producer: %v", err)
			}
			return
		case <-ctx.Done():
			return
		}
		for range 1 + rng.IntN(chaosBurst/2) {
			r := client.Record{Key: fmt.Append(nil, "k", rng.IntN(groupsKeys)), Value: strconv.AppendInt(nil, int64(n), 10)}
			n++
			err := p.SendFunc(ctx, r, func(_ client.Ack, err error) {
				if err != nil && ctx.Err() == nil {
					g.audit.anomaly(&g.audit.failures, "publish for the groups: %v", err)
				}
			})
			if err != nil && ctx.Err() == nil {
				g.audit.anomaly(&g.audit.failures, "send for the groups: %v", err)
			}
		}
	}
}

// subscribe is one member of the exclusive group after the other.
func (g *chaosGroups) subscribe(ctx context.Context, i int, rng *rand.Rand) {
	audit := g.all[groupExclusive]
	for n := 0; ctx.Err() == nil; n++ {
		member := fmt.Sprintf("m%d-%d", i, n)
		s, err := g.c.Subscribe(ctx, groupsTopic, groupExclusive, func(_ context.Context, m *client.Message) error {
			audit.handled(member, groupPlace{m.Partition, m.Offset}, m.Token)
			return nil
		}, client.Session(groupsSession), client.MemberName(member))
		if err != nil {
			var e *client.Error
			if ctx.Err() == nil && errors.As(err, &e) && !e.Retriable {
				g.audit.anomaly(&g.audit.failures, "subscribe: %v", err)
			}
			wait(ctx, groupsTick)
			continue
		}
		stay := time.NewTimer(groupsStay/2 + time.Duration(rng.Int64N(int64(groupsStay))))
		select {
		case <-stay.C:
		case <-s.Done():
			if ctx.Err() == nil {
				g.audit.anomaly(&g.audit.failures, "subscription ended: %v", s.Err())
			}
		case <-ctx.Done():
		}
		stay.Stop()
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), groupsGiveUp)
		if err := s.Close(leaving); err != nil && ctx.Err() == nil {
			g.audit.anomaly(&g.audit.failures, "close subscription: %v", err)
		}
		cancel()
	}
}

// wait is a pause that ends with ctx.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// plainMember is a connection to one broker after the other.
type plainMember struct {
	conns []*nats.Conn
	at    atomic.Int64
}

func (p *plainMember) conn() *nats.Conn { return p.conns[int(p.at.Load())%len(p.conns)] }

func (g *chaosGroups) dial(first int) (*plainMember, error) {
	p := &plainMember{}
	p.at.Store(int64(first))
	for _, url := range g.urls {
		nc, err := nats.Connect(url, nats.Name("chaos-groups"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
			nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(-1), nats.IgnoreDiscoveredServers(), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
		if err != nil {
			p.close()
			return nil, fmt.Errorf("connect plain client to %s: %w", url, err)
		}
		p.conns = append(p.conns, nc)
	}
	return p, nil
}

func (p *plainMember) close() {
	for _, nc := range p.conns {
		nc.Close()
	}
}

// ask sends one request over the connection whose turn it is; after a failure it is the next one's.
func (p *plainMember) ask(ctx context.Context, subject string, body []byte, res any) error {
	ctx, cancel := context.WithTimeout(ctx, groupsAnswer)
	defer cancel()
	m, err := p.conn().RequestWithContext(ctx, subject, body)
	if err == nil {
		err = decodeAck(m.Data, res)
	}
	var e *client.Error
	if err != nil && !(errors.As(err, &e) && !e.Retriable) {
		p.at.Add(1)
	}
	return err
}

// next asks for records, as any client of NATS can.
func (p *plainMember) next(ctx context.Context, group string, q wire.NextRequest) (got []*nats.Msg, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	nc := p.conn()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err == nil {
		defer sub.Unsubscribe() //nolint:errcheck // a connection that is down has none
		err = nc.PublishRequest(wire.NextPrefix+groupsTopic+"."+group, inbox, body)
	}
	ctx, cancel := context.WithTimeout(ctx, groupsAnswer)
	defer cancel()
	for err == nil && len(got) < q.Batch {
		var m *nats.Msg
		if m, err = sub.NextMsgWithContext(ctx); err != nil {
			break
		}
		if m.Header.Get(wire.HeaderError) != "" {
			err = decodeAck(m.Data, &struct{}{})
			break
		}
		if m.Header.Get("Status") != "" {
			break
		}
		got = append(got, m)
	}
	if err != nil {
		p.at.Add(1)
	}
	return got, err
}

// consume is a plain client of a shared or key-ordered group.
func (g *chaosGroups) consume(ctx context.Context, group string, i int, rng *rand.Rand) {
	p, err := g.dial(i)
	if err != nil {
		g.audit.anomaly(&g.audit.failures, "%v", err)
		return
	}
	defer p.close()
	audit := g.all[group]
	member := fmt.Sprintf("p%d", i)
	q := wire.NextRequest{Batch: groupsBatch, ExpiresMS: groupsAsk.Milliseconds(), Member: member, Options: wire.GroupOptions{Mode: group, AckWaitMS: groupsAckWait.Milliseconds()}}
	for ctx.Err() == nil {
		asked := audit.now()
		got, err := p.next(ctx, group, q)
		var e *client.Error
		if errors.As(err, &e) && !e.Retriable && ctx.Err() == nil {
			g.audit.anomaly(&g.audit.failures, "group %s: next: %v", group, err)
		}
		in := map[string][]taken{} // by key, so that those of one are answered in order
		for _, m := range got {
			t, ok := placeOf(m)
			if !ok {
				g.audit.anomaly(&g.audit.failures, "group %s: a delivery with headers %v", group, m.Header)
				continue
			}
			key := m.Header.Get(wire.HeaderKey)
			audit.delivered(asked, member, key, t.at, t.token)
			t.die, t.end = rng.IntN(1000), rng.IntN(groupsEndEvery) == 0
			in[key] = append(in[key], t)
		}
		var answers sync.WaitGroup
		for _, some := range in {
			answers.Go(func() {
				for _, t := range some {
					g.settle(ctx, p, audit, member, t)
				}
			})
		}
		answers.Wait()
		if err != nil {
			wait(ctx, groupsTick)
		}
	}
}

// taken is a record that a plain client has.
type taken struct {
	at    groupPlace
	token uint64
	reply string
	die   int  // what becomes of it, per mille
	end   bool // or it becomes a dead letter
}

func placeOf(m *nats.Msg) (t taken, ok bool) {
	part, err1 := strconv.ParseInt(m.Header.Get(wire.HeaderPart), 10, 32)
	offset, err2 := strconv.ParseInt(m.Header.Get(wire.HeaderOffset), 10, 64)
	token, err3 := strconv.ParseUint(m.Header.Get(wire.HeaderToken), 10, 64)
	return taken{at: groupPlace{int32(part), offset}, token: token, reply: m.Reply}, errors.Join(err1, err2, err3) == nil && m.Reply != ""
}

// settle acks a record, sends it back, ends it, or forgets it.
func (g *chaosGroups) settle(ctx context.Context, p *plainMember, audit *groupAudit, member string, t taken) {
	body, final, ended := "", true, false
	n := t.die
	select {
	case <-g.halt: // the rest is to be done soon
		n = 1000
	default:
	}
	switch {
	case n < groupsForget:
		return
	case n < groupsForget+groupsNak:
		body, final = "-NAK", false
	case t.end:
		body, ended = "+TERM chaos", true
	}
	w := audit.answering(member, t.at, t.token, final)
	sure := true
	for limit := time.Now().Add(groupsGiveUp); ; {
		err := p.ask(ctx, t.reply, []byte(body), &struct{}{})
		var e *client.Error
		switch {
		case err == nil:
			audit.taken(w, final, ended)
			return
		case errors.As(err, &e) && !e.Retriable:
			audit.refused(w, err)
			if ended && !sure {
				audit.unknown(w) // an earlier try may have been taken
			}
			return
		case ctx.Err() != nil || time.Now().After(limit):
			audit.refused(w, err)
			if ended {
				audit.unknown(w)
			}
			return
		}
		// What was refused for certain can't have been taken.
		sure = sure && errors.As(err, &e) && e.Outcome != client.OutcomeUnknown && e.Reason == wire.ReasonNotLeader
		wait(ctx, groupsTick)
	}
}

// zombie is a member of the exclusive group that stops in its tracks, and commits when it wakes up: others
// have its partition by then.
func (g *chaosGroups) zombie(ctx context.Context) {
	p, err := g.dial(0)
	if err != nil {
		g.audit.anomaly(&g.audit.failures, "%v", err)
		return
	}
	defer p.close()
	var stopped atomic.Bool
	for n := 0; ctx.Err() == nil; n++ {
		select {
		case <-g.halt:
			return
		default:
		}
		if err := g.haunt(ctx, p, fmt.Sprintf("zombie-%d", n)); err != nil {
			var e *client.Error
			if errors.As(err, &e) && e.Reason == wire.ReasonBadRequest && !stopped.Swap(true) {
				g.audit.anomaly(&g.audit.failures, "zombie: %v", err)
			}
			wait(ctx, groupsSession/3)
		}
	}
}

func (g *chaosGroups) haunt(ctx context.Context, p *plainMember, member string) error {
	ask := func(prefix string, part int32, q, res any) error {
		body, err := json.Marshal(q)
		if err != nil {
			return err
		}
		return p.ask(ctx, prefix+groupsTopic+"."+strconv.Itoa(int(part)), body, res)
	}
	var a wire.GroupAssignment
	// On a slow machine it is the first one of the group, which then has its options.
	join := wire.GroupJoinRequest{Group: groupExclusive, Member: member, Name: member, Options: wire.GroupOptions{SessionMS: groupsSession.Milliseconds()}}
	if err := ask(wire.GroupJoin, record.PartitionOf([]byte(groupExclusive), g.parts), join, &a); err != nil {
		return err
	}
	if len(a.Partitions) == 0 {
		wait(ctx, groupsSession)
		return nil
	}
	part := a.Partitions[0]
	var l wire.GroupLeased
	if err := ask(wire.GroupLease, part, wire.GroupLeaseRequest{Group: groupExclusive, Member: member, Generation: a.Generation, WaitMS: 1500, Options: a.Options}, &l); err != nil {
		return err
	}
	wait(ctx, groupsSession+groupsSession/2)
	audit := g.all[groupExclusive]
	superseded := audit.superseded(part, l.Token)
	if err := ask(wire.GroupCommit, part, wire.GroupCommitRequest{Group: groupExclusive, Member: member, Token: l.Token, Offset: l.Next, Release: true}, &wire.GroupCommitted{}); err != nil {
		return err
	}
	audit.committed(part, l.Token, superseded)
	return nil
}

// finish has what is left handled, ends the members, and says what was wrong.
func (g *chaosGroups) finish(ctx context.Context, say func(string, ...any)) (map[string]groupVerdict, error) {
	close(g.halt)
	g.writing.Wait()
	ends := make([]int64, g.parts)
	for part := range g.parts {
		b, err := g.c.Bounds(ctx, groupsTopic, part)
		if err != nil {
			return nil, fmt.Errorf("end of %s/%d: %w", groupsTopic, part, err)
		}
		ends[part] = b.Next
	}
	say("groups handle what is left")
	begin := time.Now()
	for _, a := range g.all {
		for {
			n, _ := a.missing(ends, nil)
			if n == 0 || time.Since(begin) > groupsDrain || ctx.Err() != nil {
				break
			}
			wait(ctx, 50*time.Millisecond)
		}
	}
	for name, a := range g.all {
		if n, _ := a.missing(ends, nil); n > 0 {
			g.describe(ctx, name, say)
		}
	}
	// Dead letters are written after the answer that made them.
	for {
		letters, err := g.letters(ctx)
		if err != nil {
			return nil, err
		}
		if !g.lettersMissing(letters) || time.Since(begin) > groupsDrain {
			g.cancel()
			g.members.Wait()
			all := map[string]groupVerdict{}
			for name, a := range g.all {
				all[name] = a.finish(ends, letters[name])
			}
			return all, nil
		}
		wait(ctx, 200*time.Millisecond)
	}
}

// describe tells what the brokers know of a group that isn't done.
func (g *chaosGroups) describe(ctx context.Context, name string, say func(string, ...any)) {
	p, err := g.dial(0)
	if err != nil {
		return // the finding itself is told
	}
	defer p.close()
	body, err := json.Marshal(wire.GroupRequest{Topic: groupsTopic, Group: name})
	var d wire.GroupDescription
	if err == nil {
		err = p.ask(ctx, wire.APIGroupDescribe, body, &d)
	}
	if err != nil {
		say("group %s: the brokers don't describe it: %v", name, err)
		return
	}
	for _, at := range d.Partitions {
		say("group %s, partition %d: committed %d of %d, lag %d, pending %d, to be redelivered %d %s", name, at.Partition, at.Committed, at.NextOffset, at.Lag, at.Pending, at.Redelivering, at.Problem)
	}
}

func (g *chaosGroups) lettersMissing(letters map[string]map[groupPlace]int) bool {
	for name, a := range g.all {
		a.mu.Lock()
		for at, r := range a.records {
			if r.ended && letters[name][at] == 0 {
				a.mu.Unlock()
				return true
			}
		}
		a.mu.Unlock()
	}
	return false
}

// letters reads the dead-letter topics.
func (g *chaosGroups) letters(ctx context.Context) (map[string]map[groupPlace]int, error) {
	all := map[string]map[groupPlace]int{}
	for _, name := range []string{groupShared, groupKeyed} {
		all[name] = map[groupPlace]int{}
		r, err := g.c.NewReader(ctx, "dlq-"+groupsTopic+"-"+name, client.FromEarliest(), client.UntilEnd())
		if errors.Is(err, client.ErrTopicNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read dead letters of %s: %w", name, err)
		}
		for m, err := range r.Messages(ctx) {
			if err != nil {
				return nil, errors.Join(fmt.Errorf("read dead letters of %s: %w", name, err), r.Close(ctx))
			}
			var at groupPlace
			for _, h := range m.Headers {
				switch n, _ := strconv.ParseInt(string(h.Value), 10, 64); string(h.Key) {
				case wire.HeaderPart:
					at.part = int32(n)
				case wire.HeaderOffset:
					at.offset = n
				}
			}
			all[name][at]++
		}
		if err := r.Close(ctx); err != nil {
			return nil, fmt.Errorf("read dead letters of %s: %w", name, err)
		}
	}
	return all, nil
}

// groupsTable prints the verdicts.
func groupsTable(all map[string]groupVerdict) *table {
	t := newTable("GROUP", "HANDLED", "AGAIN", "UNHANDLED", "UNDONE", "REORDERED", "TWO LIVE", "OLD TOKENS", "LETTERS WRONG")
	for _, name := range []string{groupExclusive, groupShared, groupKeyed} {
		v := all[name]
		row := []cell{str(name), num(v.Handled), num(v.Again)}
		for _, n := range []int64{v.Unhandled, v.Undone, v.Reordered, v.TwoLive, v.OldToken, v.Letters} {
			c := num(n)
			if c.style = green; n != 0 {
				c.style = red
			}
			row = append(row, c)
		}
		t.row(row...)
	}
	return t
}
