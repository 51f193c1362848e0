package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
)

// Sending again. When leadership moves, the old leader refuses what it has taken and not committed, and what comes to it
// late. A plain client can't tell why, so the broker that it is connected to sends that again, to whoever leads then.
//
// Only what can't be stored twice: what was refused for good, or has a message id (kept.repeatable). Not for ever:
// resendTries times within resendFor.
//
// Order. What one connection publishes to one partition stays in order, as one flow: while something of it is
// unanswered at another broker than the one that leads now, is refused here and waits to be sent again, or is yet to be answered by
// a leadership that has ended here, nothing follows. So what a connection sees acked is in the log in its order, but for
// what it was told an error about.

const (
	resendFor   = 5 * time.Second // after it came; about as long as clients wait for an ack
	resendTries = 10
	// resendPause is how long the broker waits to learn of another leader before it asks the one that has refused once more;
	// doubled each time.
	resendPause = 20 * time.Millisecond
)

// flow is what this broker's plain clients publish to one partition.
type flow struct {
	busy atomic.Bool // something is under way or refused: who publishes has to look

	mu      sync.Mutex
	at      uint64 // the broker at which something is unanswered
	out     int    // how much
	refused []*kept
	sending bool          // somebody sends what was refused
	changed chan struct{} // closed at the next change; nil while nobody waits
}

// enter lets a message go to a broker, or be appended here, where to is 0. Where it isn't its turn a channel is returned that is closed
// when that may have changed. again: it is one that was refused, whose turn comes before others'.
func (f *flow) enter(to uint64, count, again bool) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if (again || !f.sending) && (f.out == 0 || to != 0 && f.at == to) {
		if to != 0 && count {
			f.at = to
			f.out++
			f.busy.Store(true)
		}
		return nil
	}
	return f.watch()
}

func (f *flow) watch() <-chan struct{} {
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// wake is called with mu held.
func (f *flow) wake() {
	f.busy.Store(f.out > 0 || f.sending)
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// answered notes that one is not under way any more.
func (f *flow) answered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out--
	f.wake()
}

// refuse takes what is to be sent again. first: somebody has to begin to.
func (f *flow) refuse(k *kept, wasOut bool) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	first = !f.sending
	f.sending = true
	f.refused = append(f.refused, k)
	if wasOut {
		f.out--
	}
	f.wake()
	return first
}

func (f *flow) putBack(list []*kept) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = append(f.refused, list...)
}

// next takes all that was refused, in order, once nothing is under way any more; none: that was all.
func (f *flow) next(ctx context.Context) []*kept {
	limit := time.NewTimer(resendFor)
	defer limit.Stop()
	for patient := true; ; {
		f.mu.Lock()
		if len(f.refused) == 0 {
			f.sending = false
			f.wake()
			f.mu.Unlock()
			return nil
		}
		if f.out == 0 || !patient {
			list := f.refused
			f.refused = nil
			f.mu.Unlock()
			slices.SortFunc(list, func(a, b *kept) int { return cmp.Or(cmp.Compare(a.taken, b.taken), cmp.Compare(a.id, b.id)) })
			return list
		}
		changed := f.watch()
		f.mu.Unlock()
		select {
		case <-changed:
		case <-limit.C:
			patient = false
		case <-ctx.Done():
			patient = false
		}
	}
}

// resends are the goroutines that send again.
type resends struct {
	b      *Broker
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (r *resends) start(run func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.wg.Go(run)
	return true
}

// close waits for them; the broker's context has ended.
func (r *resends) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wg.Wait()
}

// again takes one that was refused; false: it is given up. It doesn't block.
func (r *resends) again(k *kept, e *wire.Error, wasOut bool) bool {
	if r.b.ctx.Err() != nil || r.spent(k) {
		return false
	}
	k.err = e
	if k.lead == nil {
		return r.start(func() { r.fetch(k) })
	}
	if !k.lead.flow.refuse(k, wasOut) {
		return true
	}
	if !r.start(func() { r.run(k.lead) }) {
		r.run(k.lead) // the broker stops: they are told
	}
	return true
}

func (r *resends) spent(k *kept) bool {
	return k.tries >= resendTries || k.lead != nil && r.b.acks.now()-k.taken > int64(resendFor)
}

// settled takes a publish that a leadership here has left unanswered.
func (r *resends) settled(taken int64, reply []byte, o *partition.Outcome) bool {
	s := r.b.slotNamed(o.Topic, o.Partition)
	if s == nil {
		return false
	}
	k := r.b.forwards.keep(o.Topic, o.Partition, messageOf(o, reply))
	if k == nil {
		return false
	}
	k.lead, k.taken, k.to = s.lead, taken, r.b.self()
	if e := wireError(o.Err); k.repeatable(e) && r.again(k, e, false) {
		return true
	}
	r.b.forwards.drop(k)
	return false
}

// messageOf makes the message of a record that it was made of.
func messageOf(o *partition.Outcome, reply []byte) *interest.Message {
	r := o.Record
	m := &interest.Message{Subject: []byte(o.Topic), Reply: reply, Payload: r.Value}
	var h []byte
	add := func(name string, value []byte) {
		if h == nil {
			h = append(h, "NATS/1.0\r\n"...)
		}
		h = append(append(append(append(h, name...), ": "...), value...), "\r\n"...)
	}
	for i := range r.Headers {
		if string(r.Headers[i].Key) == wire.HeaderSubject {
			m.Subject = r.Headers[i].Value
			continue
		}
		add(string(r.Headers[i].Key), r.Headers[i].Value)
	}
	if r.Key != nil {
		add(wire.HeaderKey, r.Key)
	}
	if o.Expect >= 0 {
		add(wire.HeaderExpect, strconv.AppendInt(nil, o.Expect, 10))
	}
	if h != nil {
		m.Header = append(h, "\r\n"...)
	}
	return m
}

// run sends what was refused of one partition's flow, until nothing is left.
func (r *resends) run(l *lead) {
	s := &session{b: r.b, awaited: true, turn: r.b.turns.Add(1)}
	s.ctx, s.cancel = context.WithCancel(r.b.ctx)
	defer s.cancel()
	for {
		list := l.flow.next(s.ctx)
		if list == nil {
			return
		}
		for i, k := range list {
			if !r.send(s, k) {
				l.flow.putBack(list[i:])
				break
			}
		}
		s.Flush()
	}
}

// send sends one; false: not now.
func (r *resends) send(s *session, k *kept) bool {
	t := r.b.topicNamed(k.topic)
	if t == nil || int(k.number) >= len(t.parts) || r.spent(k) || s.ctx.Err() != nil {
		r.b.acks.refuse(k.m.Reply, k.err)
		r.b.forwards.drop(k)
		return true
	}
	r.learn(s.ctx, t.parts[k.number], k)
	k.tries++
	s.burstMS, s.burstTick = r.b.c.Clock().UnixMilli(), k.taken
	s.resent = k
	err := s.publish(t, k.number, &k.m)
	mine := s.resent != nil // no other broker has it
	s.resent = nil
	r.b.metrics.resent.Inc()
	switch {
	case !mine:
		return true
	case err != nil && k.repeatable(err):
		k.err = err
		return false
	case err != nil:
		r.b.acks.refuse(k.m.Reply, err)
	}
	r.b.forwards.drop(k)
	return true
}

// learn waits until somebody else leads than who has refused, and nothing is left of an older leadership here, for a while.
func (r *resends) learn(ctx context.Context, slot *slot, k *kept) {
	limit := time.NewTimer(resendPause << k.tries)
	defer limit.Stop()
	look := time.NewTicker(resendPause)
	defer look.Stop()
	for {
		changed := r.b.leaders.watch()
		p, to := slot.partition.Load(), slot.lead.load().broker
		if to != 0 && to != k.to && (p == nil || !p.Owing()) {
			return
		}
		select {
		case <-changed:
		case <-look.C:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// fetch sends a fetch again. It changes nothing, and has no order.
func (r *resends) fetch(k *kept) {
	b := r.b
	var q wire.FetchRequest
	t := b.topicNamed(k.topic)
	if t == nil || int(k.number) >= len(t.parts) || len(k.m.Payload) > 0 && json.Unmarshal(k.m.Payload, &q) != nil {
		b.refuseFetch(k.m.Reply, k.err)
		b.forwards.drop(k)
		return
	}
	r.learn(b.ctx, t.parts[k.number], k)
	k.tries++
	b.metrics.resent.Inc()
	p, done, err := b.reach(b.ctx, t, k.number, &k.m, passage{again: &k})
	if done {
		return
	}
	if err != nil {
		b.refuseFetch(k.m.Reply, err)
	} else {
		clampFetch(&q)
		b.answerFetch(b.ctx, p, q, k.m.Reply)
	}
	b.forwards.drop(k)
}
