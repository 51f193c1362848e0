package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// A Handler answers requests of other brokers. from.Broker is 0 when the newest
// epoch known here does not name the sender, which can only Ask: a handler that
// is not for strangers looks at it, or is set by HandleMembers. An error that is
// a *wire.Error crosses as it is, any other one as an internal error. req is the
// handler's own. ctx ends when the sender stops waiting, or its link does.
//
// What was sent by Send comes to the handler too; its answer is dropped then, and
// the messages of one sender come one at a time, in order: such a handler should
// be quick.
type Handler func(ctx context.Context, from Identity, req []byte) ([]byte, error)

type handler struct {
	call    Handler
	members bool
}

// Handle has h answer the subject's requests.
func (m *Mesh) Handle(subject string, h Handler) {
	m.handlers.Store(subject, handler{call: h})
}

// HandleMembers is Handle for brokers that the newest epoch names; others are
// refused.
func (m *Mesh) HandleMembers(subject string, h Handler) {
	m.handlers.Store(subject, handler{call: h, members: true})
}

type answer struct {
	body []byte
	err  error
}

// Request asks a peer and waits for the answer. It fails with the handler's
// *wire.Error; with ErrUnreachable when there is no link or it went down (the
// request may have been carried out); with ErrBusy or ErrTooLarge; or with the
// context's error. Without a deadline the context gets Config.RequestTimeout.
func (m *Mesh) Request(ctx context.Context, broker uint64, subject string, req []byte) ([]byte, error) {
	return m.ask(ctx, broker, subject, req, func(p *peer) *link { return &p.control })
}

// RequestData is Request on the data link: for answers that are large and can wait, which
// would hold up what the control link is for.
func (m *Mesh) RequestData(ctx context.Context, broker uint64, subject string, req []byte) ([]byte, error) {
	return m.ask(ctx, broker, subject, req, func(p *peer) *link { return &p.data })
}

func (m *Mesh) ask(ctx context.Context, broker uint64, subject string, req []byte, of func(*peer) *link) ([]byte, error) {
	p := m.peer(broker)
	if p == nil {
		return nil, fmt.Errorf("request %s of broker %d: %w: the newest epoch does not name it", subject, broker, ErrUnreachable)
	}
	l := of(p)
	d := l.up.Load()
	if d == nil {
		return nil, fmt.Errorf("request %s of broker %d: %w: %w", subject, broker, ErrUnreachable, l.problem())
	}
	body, err := d.request(ctx, subject, req)
	var refusal *wire.Error
	if err != nil && !errors.As(err, &refusal) {
		return nil, fmt.Errorf("request %s of broker %d: %w", subject, broker, err)
	}
	return body, err
}

// Ask asks whoever listens at the address, over a link of its own: for brokers
// that have no cluster yet. It returns who answered, also beside a *wire.Error.
// Asking oneself is ErrSelf.
func (m *Mesh) Ask(ctx context.Context, address, subject string, req []byte) (Identity, []byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(m.ctx, cancel)
	defer stop()
	d, err := m.dial(ctx, kindAsk, address, 0, "", nil)
	if err != nil {
		return Identity{}, nil, fmt.Errorf("ask %s: %w", subject, err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		d.serve(ctx) //nolint:errcheck // the request says what went wrong
	}()
	defer func() {
		d.fail(ErrClosed)
		<-served
	}()
	body, err := d.request(ctx, subject, req)
	var refusal *wire.Error
	if err != nil && !errors.As(err, &refusal) {
		return d.remote, nil, fmt.Errorf("ask %s of %s: %w", subject, address, err)
	}
	return d.remote, body, err
}

// Send sends a message to the subject's handler at a peer, without an answer. It
// never waits: the message may be lost when the link goes down, and is not sent
// at all (ErrUnreachable, ErrBusy, ErrTooLarge) when it is down or full.
func (m *Mesh) Send(broker uint64, subject string, payload []byte) error {
	p := m.peer(broker)
	if p == nil {
		return fmt.Errorf("send %s to broker %d: %w: the newest epoch does not name it", subject, broker, ErrUnreachable)
	}
	d := p.control.up.Load()
	if d == nil {
		return p.errUnreachable
	}
	if len(payload) > MaxPayload {
		return fmt.Errorf("send %s to broker %d: %d bytes, at most %d are allowed: %w", subject, broker, len(payload), MaxPayload, ErrTooLarge)
	}
	b, v := d.out.reserve(frameHead+maxVarint+len(subject)+len(payload), classMessage)
	switch v {
	case granted:
		d.out.commit(appendSend(b, subject, payload))
		d.out.Wake()
		return nil
	case closed:
		return p.errUnreachable
	}
	p.busy.Add(1)
	return p.errBusy
}

func (d *dialled) request(ctx context.Context, subject string, req []byte) ([]byte, error) {
	if len(req) > MaxPayload {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed: %w", len(req), MaxPayload, ErrTooLarge)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.m.c.RequestTimeout)
		defer cancel()
		deadline, _ = ctx.Deadline()
	}
	c := make(chan answer, 1)
	d.mu.Lock()
	if d.pending == nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, d.reason)
	}
	d.lastID++
	id := d.lastID
	d.pending[id] = c
	d.mu.Unlock()
	defer d.forget(id)

	b, v := d.out.reserve(frameHead+3*maxVarint+len(subject)+len(req), classReply)
	switch v {
	case granted:
		d.out.commit(appendRequest(b, id, time.Until(deadline).Milliseconds(), subject, req))
		d.out.Wake()
	case full, stuck:
		return nil, ErrBusy
	}
	// A closed outbox needs no case: finish answers what is pending.
	select {
	case a := <-c:
		return a.body, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer: %w", ctx.Err())
	}
}

func (d *dialled) forget(id uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pending, id)
}

// settle hands an answer to its request, if that still waits.
func (d *dialled) settle(id uint64, failure bool, body []byte) {
	d.mu.Lock()
	c := d.pending[id]
	delete(d.pending, id)
	d.mu.Unlock()
	if c == nil {
		return
	}
	if !failure {
		c <- answer{body: body}
		return
	}
	e := new(wire.Error)
	if err := json.Unmarshal(body, e); err != nil {
		c <- answer{err: fmt.Errorf("decode failure of the peer: %w", err)}
		return
	}
	c <- answer{err: e}
}

func (l *link) problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		return errors.New("not connected yet")
	}
	return l.err
}
