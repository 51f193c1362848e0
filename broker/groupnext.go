package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/group"
)

// A client that speaks NATS and nothing of Parley takes records of a shared group by
// a request to $PARLEY.NEXT.<topic>.<group>. The broker that it is connected to
// looks through the topic's partitions for it: its own by itself, those of
// another broker by one request to that broker. First nobody waits, each request
// beginning at another partition; when nothing is there, all are waited on, and the
// first to have something ends the others' wait. What came from two at once and
// is more than was asked for goes back, as if it had never been handed out.

// nextRequest is one such request, on the client's broker.
type nextRequest struct {
	b     *Broker
	ctx   context.Context
	topic *topic
	pull  group.Pull // MaxMessages is what is left to take
	start int        // the partition to begin with
	reply []byte
	wait  time.Duration
}

// Waits of a NEXT request.
const (
	// nextRound is how long one round waits before leaders are looked up anew.
	nextRound = 5 * time.Second
	// nextPause lies between two rounds when partitions could not be asked.
	nextPause = 50 * time.Millisecond
)

// next takes a request to $PARLEY.NEXT.<topic>.<group>.
func (s *session) next(m *interest.Message, rest []byte) {
	if len(m.Reply) == 0 {
		return
	}
	n, werr := s.nextRequest(m, rest)
	if werr == nil {
		werr = s.admitFetch()
	}
	if werr != nil {
		s.b.refuseNext(m.Reply, werr)
		return
	}
	s.wg.Go(func() {
		defer s.leaveFetch()
		n.run()
	})
}

func (s *session) nextRequest(m *interest.Message, rest []byte) (*nextRequest, *wire.Error) {
	b := s.b
	dot := bytes.LastIndexByte(rest, '.')
	if dot <= 0 {
		return nil, badRequest("the subject ends with %q, wanted is TOPIC.GROUP", clip(rest))
	}
	t := b.routes.Load().byName[string(rest[:dot])]
	if t == nil {
		return nil, &wire.Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: fmt.Sprintf("there is no topic %q", clip(rest[:dot]))}
	}
	var q wire.NextRequest
	if len(bytes.TrimSpace(m.Payload)) > 0 {
		if err := json.Unmarshal(m.Payload, &q); err != nil {
			return nil, badRequest("the request is neither empty nor the JSON object that is expected: %v", err)
		}
	}
	switch {
	case q.Batch < 0 || q.Batch > wire.MaxNextBatch:
		return nil, badRequest("batch %d: allowed are 1 to %d", q.Batch, wire.MaxNextBatch)
	case q.MaxBytes < 0 || q.MaxBytes > wire.MaxFetch:
		return nil, badRequest("max_bytes %d: allowed are 1 to %d", q.MaxBytes, wire.MaxFetch)
	case q.ExpiresMS < 0 || q.ExpiresMS > wire.MaxFetchWaitMS:
		return nil, badRequest("expires_ms %d: allowed are 0 to %d", q.ExpiresMS, wire.MaxFetchWaitMS)
	}
	if q.Options.Mode == "" {
		q.Options.Mode = wire.ModeShared
	}
	if q.Options.Mode == wire.ModeExclusive {
		return nil, badRequest("records of an exclusive group are not asked for one by one: use a mode shared or key-ordered, or the SDK")
	}
	o, err := b.groupOptions(t.name, string(rest[dot+1:]), &q.Options)
	if err != nil {
		return nil, groupError(err)
	}
	if q.Member == "" {
		// Two clients of one name are two members: keys are locked to one of them.
		name := s.client.Name
		q.Member = fmt.Sprintf("%s@%s/%d", name[:min(len(name), wire.MaxMemberText/2)], b.c.Name, s.client.ID)
	}
	if werr := checkMember(q.Member); werr != nil {
		return nil, werr
	}
	return &nextRequest{
		b: b, ctx: s.ctx, topic: t, start: int(b.groups.turn.Add(1) % uint64(len(t.parts))), reply: bytes.Clone(m.Reply),
		wait: time.Duration(q.ExpiresMS) * time.Millisecond,
		pull: group.Pull{
			Group: string(rest[dot+1:]), Member: q.Member, MaxMessages: max(q.Batch, 1), MaxBytes: q.MaxBytes, Options: o,
		},
	}, nil
}

func (b *Broker) refuseNext(reply []byte, e *wire.Error) {
	b.metrics.groupFailed(e.Reason)
	e.Outcome = ""
	h := fmt.Appendf(nil, "NATS/1.0 %d %s\r\n%s: %s\r\n\r\n", e.Code, e.Reason, wire.HeaderError, e.Reason)
	b.router.Route(&interest.Message{Subject: reply, Header: h, Payload: appendError(nil, e)}, nil)
}

// nextEnds are the last word where fewer records came than were asked for. Clients
// know these from JetStream.
var (
	nextNone    = []byte("NATS/1.0 404 No Messages\r\n\r\n")
	nextTimeout = []byte("NATS/1.0 408 Request Timeout\r\n\r\n")
)

func (n *nextRequest) run() {
	deadline := time.Now().Add(n.wait)
	for {
		changed := n.b.leaders.watch()
		failure := n.round(0)
		left := time.Until(deadline)
		switch {
		case n.ctx.Err() != nil || n.pull.MaxMessages == 0:
			return
		case failure != nil && (!failure.Retriable || left <= 0):
			n.b.refuseNext(n.reply, n.b.gone(n.topic, failure))
			return
		case left <= 0:
			end := nextTimeout
			if n.wait == 0 {
				end = nextNone
			}
			n.b.router.Route(&interest.Message{Subject: n.reply, Header: end}, nil)
			return
		case failure == nil:
			failure = n.round(min(left, nextRound))
		}
		if failure == nil || n.pull.MaxMessages == 0 {
			continue
		}
		pause := time.NewTimer(min(nextPause, max(left, 0)))
		select {
		case <-changed:
		case <-pause.C:
		case <-n.ctx.Done():
		}
		pause.Stop()
	}
}

// nextOwner is a broker and the partitions of the topic that it leads, in the order in
// which they are to be tried.
type nextOwner struct {
	broker uint64
	parts  []int32
}

// owners lists who leads the topic's partitions, from the one on whose turn it is.
func (n *nextRequest) owners() (owners []nextOwner, failure *wire.Error) {
	if n.b.routes.Load().byID[n.topic.id] == nil {
		return nil, n.b.gone(n.topic, notHere(n.topic.name, 0, "its topic is gone"))
	}
	at := map[uint64]int{}
	for i := range n.topic.parts {
		number := int32((n.start + i) % len(n.topic.parts))
		p, to := n.b.leader(n.topic.parts[number], false)
		switch {
		case p != nil:
			to = n.b.self()
		case to == 0:
			failure = n.b.noLeader(n.topic, number, 0, nil)
			continue
		}
		i, ok := at[to]
		if !ok {
			i = len(owners)
			at[to] = i
			owners = append(owners, nextOwner{broker: to})
		}
		owners[i].parts = append(owners[i].parts, number)
	}
	return owners, failure
}

// round asks all leaders once: one after another when wait is 0, together else. It
// returns what kept some of them from answering.
func (n *nextRequest) round(wait time.Duration) *wire.Error {
	if !n.b.router.HasInterest(n.reply) {
		n.pull.MaxMessages = 0 // nobody would get what is taken
		return nil
	}
	owners, failure := n.owners()
	if wait == 0 {
		for _, o := range owners {
			if err := n.ask(n.ctx, o, n.pull, 0); err != nil {
				failure = graver(failure, groupError(err))
			}
			if n.pull.MaxMessages == 0 {
				return nil
			}
		}
		return failure
	}
	if failure != nil {
		wait = min(wait, nextPause) // somebody can't be waited on: look again soon
	}
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	pull := n.pull
	for _, o := range owners {
		wg.Go(func() {
			err := n.b.nextFrom(ctx, n.topic, o, pull, wait, func(all []nextMessage) {
				mu.Lock()
				defer mu.Unlock()
				n.deliver(all)
				cancel()
			})
			if err != nil && ctx.Err() == nil {
				mu.Lock()
				failure = graver(failure, groupError(err))
				mu.Unlock()
				cancel() // it may lead no more: look again
			}
		})
	}
	wg.Wait()
	return failure
}

// graver of two failures: one that can't be cured by trying again.
func graver(a, b *wire.Error) *wire.Error {
	if a == nil || a.Retriable && b != nil {
		return b
	}
	return a
}

func (n *nextRequest) ask(ctx context.Context, o nextOwner, pull group.Pull, wait time.Duration) error {
	return n.b.nextFrom(ctx, n.topic, o, pull, wait, n.deliver)
}

// deliver sends records to the client and gives back what it can't have: more
// than it asked for, or all when it has gone.
func (n *nextRequest) deliver(all []nextMessage) {
	for i := range all {
		m := interest.Message{Subject: n.reply, Reply: all[i].ack, Header: all[i].header, Payload: all[i].payload}
		if n.pull.MaxMessages > 0 && n.ctx.Err() == nil && n.b.router.Route(&m, nil) > 0 {
			n.pull.MaxMessages--
			continue
		}
		n.b.giveBack(n.topic, all[i:])
		n.b.metrics.nextDelivered(i)
		return
	}
	n.b.metrics.nextDelivered(len(all))
}

// nextFrom takes records from partitions of one leader. give gets them, once for each
// partition that has some, and never after nextFrom has returned.
func (b *Broker) nextFrom(ctx context.Context, t *topic, o nextOwner, pull group.Pull, wait time.Duration, give func([]nextMessage)) error {
	if o.broker != b.self() {
		return b.nextThere(ctx, t, o, pull, wait, give)
	}
	return b.nextHere(ctx, t, o.parts, pull, wait, give)
}

// nextHere is nextFrom for this broker.
func (b *Broker) nextHere(ctx context.Context, t *topic, parts []int32, pull group.Pull, wait time.Duration, give func([]nextMessage)) error {
	take := func(ctx context.Context, number int32, pull group.Pull) (int, error) {
		p := t.parts[number].partition.Load()
		if p == nil {
			return 0, t.parts[number].refusal()
		}
		all, err := b.takeNext(ctx, t.name, number, p, pull)
		if len(all) > 0 {
			give(all)
		}
		return len(all), err
	}
	if wait == 0 || len(parts) == 1 {
		pull.WaitMS = wait.Milliseconds()
		var failure error
		for _, number := range parts {
			n, err := take(ctx, number, pull)
			if err != nil {
				failure = err
			}
			if pull.MaxMessages -= n; pull.MaxMessages <= 0 {
				return nil
			}
		}
		return failure
	}
	if n := b.fetches.Add(int32(len(parts))); int(n) > b.c.Limits.Fetches {
		b.fetches.Add(-int32(len(parts)))
		return busy("the broker has %d fetches under way, at most %d are allowed", n, b.c.Limits.Fetches)
	}
	defer b.fetches.Add(-int32(len(parts)))
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	pull.WaitMS = wait.Milliseconds()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failure error
	for _, number := range parts {
		wg.Go(func() {
			n, err := take(waiting, number, pull)
			if err != nil && waiting.Err() == nil {
				mu.Lock()
				failure = err
				mu.Unlock()
			}
			if n > 0 || err != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	return failure
}

// takeNext pulls records of one partition and makes messages of them.
func (b *Broker) takeNext(ctx context.Context, topic string, number int32, p *partition.Partition, pull group.Pull) ([]nextMessage, error) {
	got, batches, err := p.PullGroup(ctx, pull, nil)
	if err != nil || len(got.Deliveries) == 0 {
		if ctx.Err() != nil {
			return nil, nil // not waited for any more
		}
		return nil, err
	}
	b.metrics.pulled(got.Deliveries, len(batches))
	all, err := nextMessages(topic, number, pull.Group, got.Deliveries, batches)
	if err != nil {
		return nil, fmt.Errorf("records of %s/%d for a plain client: %w", topic, number, err)
	}
	return all, nil
}

// giveBack returns records that nobody has seen, in the background: it commits to the log.
func (b *Broker) giveBack(t *topic, all []nextMessage) {
	items := map[int32][]group.AckItem{}
	name := ""
	for i := range all {
		a, ok := parseAck(all[i].ack)
		if !ok {
			continue // made by this broker, or by one that knows better
		}
		name = a.group
		items[a.number] = append(items[a.number], group.AckItem{Kind: group.Return, First: a.offset, Last: a.offset, Token: a.token})
	}
	for number, some := range items {
		b.wg.Go(func() {
			ctx, cancel := context.WithTimeout(b.ctx, requestTime)
			defer cancel()
			if err := b.returnRecords(ctx, t, number, name, some); err != nil && ctx.Err() == nil {
				b.c.Logger.Debug().Err(err).Str("topic", t.name).Int32("partition", number).Str("group", name).
					Msg("records could not be given back, they are delivered again after the ack wait")
			}
		})
	}
}

func (b *Broker) returnRecords(ctx context.Context, t *topic, number int32, name string, items []group.AckItem) error {
	if p, _ := b.leader(t.parts[number], true); p != nil {
		_, err := p.AckGroup(ctx, name, "", items)
		return err
	}
	var failure error
	for _, i := range items {
		subject := appendAckSubject(nil, t.name, number, name, i.First, 1, i.Token)
		if _, err := b.loop.call(ctx, string(subject), []byte(ackReturn)); err != nil {
			failure = errors.Join(failure, err)
		}
	}
	return failure
}
