package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
)

// loopback is the broker as a client of its cluster. What it does for groups by
// itself (dead letters, redrive, pulls of other brokers' partitions for a plain
// client) goes by the requests that any client would send: so the hop to a
// leader, and waiting for one, are no second piece of code.
type loopback struct {
	b      *Broker
	prefix string
	sub    *interest.Subscription
	last   atomic.Uint64

	mu    sync.Mutex
	calls map[string]chan loopAnswer // under way, by reply subject
}

// loopPrefix + a secret of this start + number is where an answer to the broker
// itself goes. Clients may not subscribe there, and can't guess it to send an answer
// of their own; peers are not told of it.
const loopPrefix = "_PARLEY.L."

// maxLoopCalls bounds what the broker asks at one time. Its callers have tighter
// limits; this one is for their sum.
const maxLoopCalls = 8192

type loopAnswer struct {
	header, payload []byte
}

func newLoopback(b *Broker) *loopback {
	l := &loopback{b: b, prefix: loopPrefix + rand.Text() + ".", calls: map[string]chan loopAnswer{}}
	l.sub = &interest.Subscription{Subject: l.prefix + "*", Sink: l, Peer: true}
	if err := b.router.Subscribe(l.sub); err != nil {
		panic("valid subscription refused: " + err.Error())
	}
	return l
}

// Deliver implements interest.Sink: an answer.
func (l *loopback) Deliver(_ *interest.Subscription, m *interest.Message) bool {
	l.mu.Lock()
	c := l.calls[string(m.Subject)]
	delete(l.calls, string(m.Subject))
	l.mu.Unlock()
	if c == nil {
		return false // nobody waits any more
	}
	c <- loopAnswer{bytes.Clone(m.Header), bytes.Clone(m.Payload)}
	return true
}

// call sends a request to a subject below $PARLEY and returns its answer, or the
// error in it, which is a *wire.Error. It must be one that is always answered; ctx
// bounds the wait.
func (l *loopback) call(ctx context.Context, subject string, payload []byte) (loopAnswer, error) {
	return l.do(ctx, func(s *session, reply []byte) error {
		s.request(&interest.Message{Subject: []byte(subject), Reply: reply, Payload: payload})
		return nil
	})
}

// forward sends a request to a broker, for it alone.
func (l *loopback) forward(ctx context.Context, to uint64, topic, subject string, payload []byte) (loopAnswer, error) {
	return l.do(ctx, func(_ *session, reply []byte) error {
		return l.b.forwards.send(to, topic, 0, &interest.Message{Subject: []byte(subject), Reply: reply, Payload: payload})
	})
}

// do has send make a request in a session of its own.
func (l *loopback) do(ctx context.Context, send func(s *session, reply []byte) error) (loopAnswer, error) {
	reply := strconv.AppendUint([]byte(l.prefix), l.last.Add(1), 10)
	c := make(chan loopAnswer, 1)
	l.mu.Lock()
	if len(l.calls) >= maxLoopCalls {
		l.mu.Unlock()
		return loopAnswer{}, busy("the broker has %d requests of its own under way", maxLoopCalls)
	}
	l.calls[string(reply)] = c
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.calls, string(reply))
		l.mu.Unlock()
	}()
	s := session{b: l.b, own: true, awaited: true, turn: l.b.turns.Add(1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	defer func() {
		s.cancel()
		s.wg.Wait()
	}()
	if err := send(&s, reply); err != nil {
		return loopAnswer{}, err
	}
	s.Flush()
	select {
	case a := <-c:
		return a, a.failure()
	case <-ctx.Done():
		return loopAnswer{}, &wire.Error{Code: 504, Reason: wire.ReasonTimeout, Retriable: true, Outcome: wire.OutcomeUnknown,
			Description: "no answer in time"}
	}
}

// failure is the error that an answer holds, or nil. An answer that is no JSON says
// in its header when it is one.
func (a *loopAnswer) failure() error {
	if len(a.header) > 0 && headerValue(a.header, wire.HeaderError) == nil {
		return nil
	}
	if len(a.payload) == 0 || a.payload[0] != '{' {
		return nil
	}
	var f struct{ Error *wire.Error }
	if err := json.Unmarshal(a.payload, &f); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	if f.Error != nil {
		return f.Error
	}
	return nil
}

// headerValue returns the first value of a header, nil when there is none.
func headerValue(block []byte, name string) []byte {
	for lines := headerLines(block); ; {
		h, rest, ok := nextHeader(lines)
		if !ok {
			return nil
		}
		if lines = rest; foldEqual(h.name, name) {
			return h.value
		}
	}
}

// ask is call with JSON on both sides.
func (l *loopback) ask(ctx context.Context, subject string, q, res any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode request %s: %w", subject, err)
	}
	a, err := l.call(ctx, subject, body)
	if err != nil {
		return err
	}
	if res == nil {
		return nil
	}
	if err := json.Unmarshal(a.payload, res); err != nil {
		return fmt.Errorf("decode answer to %s: %w", subject, err)
	}
	return nil
}
