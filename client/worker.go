package client

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// worker calls a handler with one record, or one batch, after the other.
type worker struct {
	s     *Subscription
	buf   []*Message
	given []*Message // to a batch handler

	mu     sync.Mutex
	t      *tenure                 // guarded by mu; whose records are being handled, nil: none
	hand   []*Message              // guarded by mu; what the handler has
	rest   []*Message              // guarded by mu; of the run, not begun
	ctx    context.Context         // guarded by mu; for handlers, until one is cancelled
	cancel context.CancelCauseFunc // guarded by mu
	calls  uint64                  // guarded by mu
	seen   uint64                  // guarded by mu; calls, when the overseer looked last
}

// PanicError is a handler's panic. It counts as a failure like any other.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("handler panicked: %v", e.Value) }

type retryError struct {
	delay time.Duration
	err   error
}

func (e *retryError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("again after %s", e.delay)
	}
	return fmt.Sprintf("%v (again after %s)", e.err, e.delay)
}
func (e *retryError) Unwrap() error { return e.err }

// RetryAfter is for a handler to return: the record is delivered again after d. err may be nil.
func RetryAfter(d time.Duration, err error) error { return &retryError{max(d, 0), err} }

type terminateError struct{ reason string }

func (e *terminateError) Error() string { return "not to be handled: " + e.reason }

// Terminate is for a handler to return: the record is not delivered again, it goes to the dead-letter topic with
// the reason.
func Terminate(reason string) error { return &terminateError{reason} }

func (w *worker) run() {
	defer w.s.workers.Done()
	cr := w.s.crew
	limit := 1 // records of a run
	if w.s.handleBatch != nil {
		limit = w.s.cfg.batch
	}
	for {
		t, st, run := cr.take(w.buf, limit)
		w.buf = run
		if t == nil {
			if cr.wait(context.Background(), w.s.rest) != nil {
				return
			}
			continue
		}
		t.assured(context.Background())
		began := time.Now()
		if w.s.handleBatch != nil {
			w.batch(t, st, run, began)
		} else {
			w.each(t, st, run, began)
			switch took := time.Since(began); {
			case took < runTime/2:
				limit = min(2*limit, runMost)
			case took > 2*runTime:
				limit = max(limit/4, 1)
			}
		}
		cr.done(t, st)
		clear(w.buf)
	}
}

// each handles a run one by one.
func (w *worker) each(t *tenure, st *strand, run []*Message, began time.Time) {
	w.mu.Lock()
	w.t, w.rest = t, run
	w.mu.Unlock()
	for now := began; ; now = time.Now() {
		if now.Sub(began) > runOver {
			w.s.crew.putBack(t, st, w.leave())
			return
		}
		m, ctx := w.enter(now)
		if m == nil {
			w.leave()
			return
		}
		err := w.call(func() error { return w.s.handle(ctx, m) })
		if delay, again := t.outcome(ctx, m, err); again {
			w.s.crew.again(t, st, []*Message{m}, w.leave(), delay)
			return
		}
	}
}

// enter begins the next record of the run; nil: there is none.
func (w *worker) enter(now time.Time) (*Message, context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hand = w.hand[:0]
	w.calls++
	for len(w.rest) > 0 {
		m := w.rest[0]
		w.rest = w.rest[1:]
		if w.t.mayBegin(m, now) {
			w.hand = append(w.hand, m)
			return m, w.context()
		}
	}
	return nil, nil
}

// mayBegin marks m as begun, or gives it back, or drops it when it has expired.
func (t *tenure) mayBegin(m *Message, now time.Time) bool {
	switch {
	case t.retired.Load() || t.lost.Load() || t.s.stopped.Load() || m.Offset >= t.below.Load():
		t.discardOne(m)
	case t.s.shared() && m.in.expired(now):
		_ = m.settle(stateVoid) // or it is already
	default:
		return m.begin()
	}
	return false
}

// leave ends the run and returns what wasn't begun.
func (w *worker) leave() []*Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	rest := w.rest
	w.t, w.rest, w.hand = nil, nil, w.hand[:0]
	w.calls++
	return rest
}

// context is for the next call. w.mu is held.
func (w *worker) context() context.Context {
	if w.ctx == nil {
		w.ctx, w.cancel = context.WithCancelCause(w.s.handling)
	}
	return w.ctx
}

// interrupt ends the handler's context when it has one of the messages.
func (w *worker) interrupt(t *tenure, which func(*Message) bool, cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != t || w.ctx == nil {
		return
	}
	for _, m := range w.hand {
		if which(m) {
			w.cancel(cause)
			w.ctx = nil
			return
		}
	}
}

// ErrHandlerTimeout is why a handler's context ended: see HandlerTimeout.
var ErrHandlerTimeout = errors.New("the handler took longer than it may")

// look is the overseer's: whose records the worker has, and, where no order is kept, those behind the one
// that it is busy with, taken from it.
func (w *worker) look(now time.Time) (calls uint64, t *tenure, rest []*Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t == nil || len(w.hand) == 0 {
		return w.calls, nil, nil
	}
	if w.s.shared() && w.hand[0].in.expired(now) && w.ctx != nil {
		w.cancel(ErrLost) // it could not be extended: another may have it by now
		w.ctx = nil
	}
	if w.calls == w.seen && w.s.cfg.order == Unordered {
		rest, w.rest = slices.Clone(w.rest), nil // the run's memory is the worker's
	}
	w.seen = w.calls
	return w.calls, w.t, rest
}

// lapse ends the context of a call that takes too long.
func (w *worker) lapse(t *tenure, calls uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != t || w.calls != calls {
		return
	}
	for _, m := range w.hand {
		if w.s.shared() {
			atomic.CompareAndSwapUint32(&m.state, stateBegun, stateLapsed)
		}
	}
	if w.ctx != nil {
		w.cancel(ErrHandlerTimeout)
		w.ctx = nil
	}
}

// batch handles a run in one call.
func (w *worker) batch(t *tenure, st *strand, run []*Message, now time.Time) {
	w.mu.Lock()
	w.t, w.hand = t, w.hand[:0]
	w.calls++
	for _, m := range run {
		if t.mayBegin(m, now) {
			w.hand = append(w.hand, m)
		}
	}
	ctx, hand := w.context(), w.hand
	w.mu.Unlock()
	if len(hand) > 0 {
		w.given = append(w.given[:0], hand...) // the handler may do with it what it likes
		err := w.call(func() error { return w.s.handleBatch(ctx, w.given) })
		var failed []*Message
		var wait time.Duration
		for _, m := range hand {
			if delay, again := t.outcome(ctx, m, err); again {
				failed, wait = append(failed, m), max(wait, delay)
			}
		}
		clear(w.given)
		if len(failed) > 0 {
			w.s.crew.again(t, st, failed, nil, wait)
		}
	}
	w.leave()
}

// call runs a handler and makes an error of its panic.
func (w *worker) call(handle func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			e := &PanicError{v, debug.Stack()}
			w.s.c.cfg.log("handler panicked", "topic", w.s.topic, "group", w.s.group, "panic", fmt.Sprint(v), "stack", string(e.Stack))
			err = e
		}
	}()
	return handle()
}

// outcome settles m by what its handler returned. again: the member is to try it once more after delay.
func (t *tenure) outcome(ctx context.Context, m *Message, err error) (delay time.Duration, again bool) {
	s := t.s
	switch atomic.LoadUint32(&m.state) &^ stateReported {
	case stateBegun, stateLapsed:
	case stateNak:
		if s.shared() {
			return 0, false
		}
		return t.retry(m, t.detail(m).delay, errNak)
	default:
		return 0, false // the handler has settled it, or it is lost
	}
	if err == nil {
		if m.Ack() != nil && !s.shared() && atomic.LoadUint32(&m.state) == stateNak { // or it was lost just now
			return t.retry(m, t.detail(m).delay, errNak)
		}
		return 0, false
	}
	var retry *retryError
	var end *terminateError
	switch {
	case t.lost.Load():
		_ = m.settle(stateVoid)
		return 0, false
	case ctx.Err() != nil && (s.handling.Err() != nil || errors.Is(context.Cause(ctx), ErrLost)):
		// The subscription was closed, or its partition given away, before the handler was through: nobody's fault.
		if s.shared() {
			_ = t.nak(m, 0, "its consumer was closed")
		} else {
			_ = m.settle(stateVoid)
		}
		return 0, false
	case errors.As(err, &end):
		_ = t.term(m, end.reason)
		return 0, false
	}
	delay = -1
	if errors.As(err, &retry) {
		delay = retry.delay
	}
	if s.shared() {
		s.failure(m, err)
		_ = t.nak(m, delay, err.Error())
		return 0, false
	}
	return t.retry(m, delay, err)
}

// errNak is the failure of a message that was nak'd without a reason.
var errNak = errors.New("nak'd")

// retry decides what becomes of a record of an exclusive group that could not be handled.
func (t *tenure) retry(m *Message, delay time.Duration, err error) (wait time.Duration, again bool) {
	s, tried := t.s, int(m.Deliveries)
	if !m.resume(stateBegun) { // it may have been nak'd
		return 0, false // somebody else has settled it meanwhile
	}
	s.failure(m, err)
	switch {
	case s.cfg.stopOnFailure && tried >= max(s.cfg.maxDeliveries, 1):
		s.stopped.Store(true)
		_ = m.settle(stateVoid)
		s.fail(fmt.Errorf("handle %s/%d, offset %d: %w", m.Topic, m.Partition, m.Offset, err))
		return 0, false
	case s.cfg.maxDeliveries > 0 && tried >= s.cfg.maxDeliveries:
		_ = t.term(m, err.Error()) // it can't be settled
		return 0, false
	}
	if delay < 0 {
		delay = s.cfg.retries[min(tried-1, len(s.cfg.retries)-1)]
	}
	s.c.cfg.log("a record could not be handled and is tried again", "topic", m.Topic, "partition", m.Partition, "offset", m.Offset,
		"group", s.group, "deliveries", tried, "after", delay, "error", err)
	return delay, true
}

func (s *Subscription) failure(m *Message, err error) {
	s.count.failed.Add(1)
	if h := s.cfg.hooks.Failed; h != nil {
		h(m, err)
	}
}
