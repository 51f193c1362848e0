package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// controlSession answers requests: each in a goroutine of its own, one-way
// messages one after another.
type controlSession struct {
	requests
	cancel context.CancelFunc
	sends  chan send

	sendBytes atomic.Int64 // in sends
}

// requests answers those of one link.
type requests struct {
	s    *session
	from Identity
	ctx  context.Context
	wg   sync.WaitGroup

	mu       sync.Mutex
	handling int
	bytes    int
}

type send struct {
	call Handler
	body []byte
}

func newControlSession(s *session) *controlSession {
	c := &controlSession{sends: make(chan send, maxSends)}
	c.s, c.from = s, s.hello.Identity
	c.ctx, c.cancel = context.WithCancel(s.m.ctx)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.oneByOne()
	}()
	return c
}

func (c *controlSession) close() {
	c.cancel()
	c.wg.Wait()
}

func (c *controlSession) flush() {}

func (c *controlSession) frame(kind byte, body []byte) error {
	f := fields{b: body}
	switch kind {
	case framePing:
		id := f.number()
		c.s.send(appendNumbers(nil, framePong, nil, id, 0))
	case frameRequest:
		c.take(&f)
	case frameSend:
		subject := f.bytes()
		if !f.bad {
			c.send(subject, f.b)
		}
	}
	if f.bad {
		return errBadFrame
	}
	return nil
}

// take begins to answer a request.
func (c *requests) take(f *fields) {
	id, timeout, subject := f.number(), f.number(), f.bytes()
	if !f.bad {
		c.request(id, time.Duration(min(timeout, uint64(time.Hour/time.Millisecond)))*time.Millisecond, subject, f.b)
	}
}

func (c *requests) request(id uint64, timeout time.Duration, subject, body []byte) {
	h, refusal := c.find(subject)
	if refusal == nil && !c.begin(len(body)) {
		refusal = &wire.Error{Code: 429, Reason: wire.ReasonBusy, Retriable: true,
			Description: fmt.Sprintf("broker %s is handling as many requests of this peer as it may (%d)", c.s.m.Self().Name, c.s.m.c.MaxRequests)}
	}
	if refusal != nil {
		c.refuse(id, refusal)
		return
	}
	req := append([]byte(nil), body...)
	c.s.m.stats.requests.Add(1)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		defer c.end(len(req))
		ctx, cancel := context.WithTimeout(c.ctx, timeout)
		defer cancel()
		c.answer(ctx, id, h, req)
	}()
}

func (c *requests) answer(ctx context.Context, id uint64, h Handler, req []byte) {
	body, err := h(ctx, c.from, req)
	if err == nil && len(body) > MaxPayload {
		err = fmt.Errorf("the answer has %d bytes, at most %d are allowed: %w", len(body), MaxPayload, ErrTooLarge)
	}
	if err != nil {
		var e *wire.Error
		switch {
		case errors.As(err, &e):
		case ctx.Err() != nil:
			e = &wire.Error{Code: 504, Reason: wire.ReasonTimeout, Retriable: true, Description: err.Error()}
		default:
			e = &wire.Error{Code: 500, Reason: wire.ReasonInternal, Description: err.Error()}
		}
		c.refuse(id, e)
		return
	}
	c.s.send(appendNumbers(make([]byte, 0, frameHead+maxVarint+len(body)), frameResponse, body, id))
}

func (c *requests) refuse(id uint64, e *wire.Error) {
	body, err := json.Marshal(e)
	if err != nil {
		panic("wire.Error cannot be encoded: " + err.Error()) // strings, numbers and booleans only
	}
	c.s.send(appendNumbers(nil, frameFailure, body, id))
}

func (c *requests) find(subject []byte) (Handler, *wire.Error) {
	v, ok := c.s.m.handlers.Load(string(subject))
	if !ok {
		return nil, &wire.Error{Code: 404, Reason: wire.ReasonBadRequest,
			Description: fmt.Sprintf("broker %s answers no request %q of its peers", c.s.m.Self().Name, subject)}
	}
	h := v.(handler)
	if h.members && c.from.Broker == 0 {
		return nil, &wire.Error{Code: 401, Reason: wire.ReasonUnauthorized,
			Description: fmt.Sprintf("the newest epoch that broker %s knows does not name %v, request %q is for members", c.s.m.Self().Name, c.from, subject)}
	}
	return h.call, nil
}

// begin counts a request, unless there are too many.
func (c *requests) begin(bytes int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handling >= c.s.m.c.MaxRequests || c.handling > 0 && c.bytes+bytes > maxRequestBytes {
		return false
	}
	c.handling++
	c.bytes += bytes
	return true
}

func (c *requests) end(bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handling--
	c.bytes -= bytes
}

// send queues a one-way message; when that is not possible it is lost.
func (c *controlSession) send(subject, body []byte) {
	h, refusal := c.find(subject)
	if refusal != nil {
		c.s.m.log.Warn().Uint64("broker", c.from.Broker).Str("problem", refusal.Description).Msg("message of a peer dropped")
		c.s.m.stats.lostSends.Add(1)
		return
	}
	if c.sendBytes.Load()+int64(len(body)) > maxSendBytes {
		c.s.m.stats.lostSends.Add(1)
		return
	}
	c.sendBytes.Add(int64(len(body)))
	select {
	case c.sends <- send{h, append([]byte(nil), body...)}:
	default:
		c.sendBytes.Add(-int64(len(body)))
		c.s.m.stats.lostSends.Add(1)
	}
}

func (c *controlSession) oneByOne() {
	for {
		select {
		case s := <-c.sends:
			n := len(s.body)
			if _, err := s.call(c.ctx, c.from, s.body); err != nil {
				c.s.m.log.Debug().Uint64("broker", c.from.Broker).Err(err).Msg("message of a peer not handled")
			}
			c.sendBytes.Add(-int64(n))
		case <-c.ctx.Done():
			return
		}
	}
}
