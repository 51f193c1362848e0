package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client/wire"
)

// A link is the exchange over one NATS connection. nats.go brings a broken
// connection back by itself; the link fails what was under way, tells the client
// when it is up again, and dials anew should nats.go ever give a connection up.
//
// nats.go's own buffer for the time without a connection is off: what to send
// again, and in which order, is for the producer to know.
//
// The kernel sizes the socket buffers. Setting them by hand switches its tuning
// off and is capped by net.core.rmem_max, 208 KiB on most systems.
type link struct {
	cfg    *config
	urls   string
	inbox  string                 // reply subjects are inbox + token
	onUp   func()                 // the connection is back
	onLost func()                 // it broke; nil: it is brought back
	name   atomic.Pointer[string] // of the broker
	conn   atomic.Pointer[nats.Conn]
	life   context.Context // ends with close
	end    context.CancelFunc
	redial sync.WaitGroup // the goroutine that dials after a loss for good

	mu      sync.Mutex
	waiting map[uint64]waiter // guarded by mu; at most what producers and readers have in flight
	token   uint64            // guarded by mu; never reused, so that a late answer finds nobody
	closed  bool              // guarded by mu
}

type waiter struct {
	to  receiver
	tag uint64
}

// Timing of a connection.
const (
	pingEvery      = 2 * time.Second  // two unanswered: the connection is broken
	writeDeadline  = 10 * time.Second // a broker that doesn't read for so long is gone
	redialAfterMin = 50 * time.Millisecond
	redialAfterMax = 2 * time.Second
)

// dial connects or says why not.
func dial(ctx context.Context, urls string, cfg *config, onUp func()) (*link, error) {
	l := &link{
		cfg: cfg, urls: urls, inbox: nats.NewInbox() + ".", onUp: onUp,
		waiting: make(map[uint64]waiter),
	}
	l.life, l.end = context.WithCancel(context.Background())
	for try := 0; ; try++ {
		err := l.connect(ctx)
		if err == nil {
			return l, nil
		}
		if errors.Is(err, nats.ErrAuthorization) {
			l.end()
			return nil, &Error{Code: 401, Reason: wire.ReasonUnauthorized, Description: fmt.Sprintf("connect to %s: credentials are missing or wrong", urls)}
		}
		if !cfg.retryConnect || ctx.Err() != nil {
			l.end()
			return nil, fmt.Errorf("connect to %s: %w", urls, err)
		}
		cfg.log("connect failed, trying again", "error", err)
		t := time.NewTimer(redialAfter(try))
		select {
		case <-ctx.Done():
			t.Stop()
			l.end()
			return nil, fmt.Errorf("connect to %s: %w (last: %w)", urls, ctx.Err(), err)
		case <-t.C:
		}
	}
}

// dialOnce connects to one broker. The connection is not brought back when it breaks:
// lost is called then, unless close was called before.
func dialOnce(ctx context.Context, url string, cfg *config, lost func()) (*link, error) {
	l := &link{
		cfg: cfg, urls: url, inbox: nats.NewInbox() + ".", onUp: func() {}, onLost: lost,
		waiting: make(map[uint64]waiter),
	}
	l.life, l.end = context.WithCancel(context.Background())
	if err := l.connect(ctx); err != nil {
		l.end()
		return nil, fmt.Errorf("connect to %s: %w", url, err)
	}
	return l, nil
}

func redialAfter(try int) time.Duration {
	d := redialAfterMax
	if try < 6 {
		d = min(redialAfterMin<<try, redialAfterMax)
	}
	return d/2 + backoff(0)
}

// connect makes a connection and its inbox. ctx bounds this first dial only.
func (l *link) connect(ctx context.Context) error {
	d := &dialer{ctx: ctx, timeout: l.cfg.connectTimeout, dial: l.cfg.dial}
	opts := []nats.Option{
		nats.Name(l.cfg.name),
		nats.SetCustomDialer(d),
		nats.Timeout(l.cfg.connectTimeout),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(redialAfter),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(pingEvery),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(writeDeadline),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			l.cfg.log("disconnected", "error", err)
			l.failAll(lost("connection lost before the answer came"))
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			l.cfg.log("reconnected", "url", nc.ConnectedUrlRedacted())
			l.met(nc)
			l.onUp()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			l.cfg.log("connection error", "error", err)
		}),
		nats.ClosedHandler(func(nc *nats.Conn) { l.gone(nc) }),
	}
	opts = append(opts, l.cfg.nats...)
	if l.onLost != nil {
		opts = append(opts, nats.NoReconnect())
	}
	nc, err := nats.Connect(l.urls, opts...)
	if err != nil {
		return err
	}
	d.connected()
	sub, err := nc.Subscribe(l.inbox+"*", l.receive)
	if err == nil {
		// What may wait here is bounded by what this process has asked for.
		err = sub.SetPendingLimits(-1, -1)
	}
	if err != nil {
		nc.Close()
		return err
	}
	l.conn.Store(nc)
	l.met(nc)
	if nc.IsClosed() {
		return nc.LastError() // closed before gone could know it for ours
	}
	return nil
}

// gone is called when nats.go has closed a connection for good: after close, or
// after an error of the broker that it takes for final.
func (l *link) gone(nc *nats.Conn) {
	l.mu.Lock()
	again := !l.closed && l.conn.Load() == nc
	if again {
		l.redial.Add(1)
	}
	l.mu.Unlock()
	if !again {
		return
	}
	l.failAll(lost("connection closed before the answer came"))
	if l.onLost != nil {
		l.redial.Done() // lost closes the link, which waits for this
		l.onLost()
		return
	}
	l.cfg.log("connection closed, dialling anew", "error", nc.LastError())
	go l.dialAnew()
}

// met notes whom the connection leads to.
func (l *link) met(nc *nats.Conn) {
	name := nc.ConnectedServerName()
	l.name.Store(&name)
}

func (l *link) broker() string {
	if name := l.name.Load(); name != nil {
		return *name
	}
	return ""
}

func (l *link) up() bool { return l.conn.Load().IsConnected() }

func (l *link) dialAnew() {
	defer l.redial.Done()
	for try := 0; ; try++ {
		t := time.NewTimer(redialAfter(try))
		select {
		case <-l.life.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if err := l.connect(l.life); err != nil {
			l.cfg.log("connect failed, trying again", "error", err)
			continue
		}
		l.onUp()
		return
	}
}

func (l *link) request(subject string, header map[string][]string, data []byte, to receiver, tag uint64) (uint64, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, notSent(ErrClosed)
	}
	l.token++
	token := l.token
	l.waiting[token] = waiter{to, tag}
	l.mu.Unlock()

	var inbox [96]byte
	reply := string(strconv.AppendUint(append(inbox[:0], l.inbox...), token, 10))
	var err error
	if header == nil {
		err = l.conn.Load().PublishRequest(subject, reply, data)
	} else {
		err = l.conn.Load().PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Header: header, Data: data})
	}
	if err == nil {
		return token, nil
	}
	l.mu.Lock()
	_, mine := l.waiting[token]
	delete(l.waiting, token)
	l.mu.Unlock()
	if !mine {
		return token, nil // failAll has told, or is about to tell, the receiver
	}
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return 0, &Error{Code: 413, Reason: wire.ReasonTooLarge, Outcome: wire.OutcomeRejected,
			Description: fmt.Sprintf("%d bytes, the broker takes at most %d", len(data), l.maxPayload())}
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionClosed):
		return 0, notSent(errors.New("no connection"))
	case errors.Is(err, nats.ErrBadSubject):
		return 0, &Error{Code: 400, Reason: wire.ReasonBadRequest, Outcome: wire.OutcomeRejected,
			Description: fmt.Sprintf("subject %q is not valid", subject)}
	}
	return 0, lost("write failed: " + err.Error())
}

func (l *link) forget(token uint64) {
	l.mu.Lock()
	delete(l.waiting, token)
	l.mu.Unlock()
}

func (l *link) maxPayload() int { return int(l.conn.Load().MaxPayload()) }

// receive hands an answer to who waits for it.
func (l *link) receive(m *nats.Msg) {
	token, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 10, 64)
	if err != nil {
		return
	}
	l.mu.Lock()
	w, ok := l.waiting[token]
	delete(l.waiting, token)
	l.mu.Unlock()
	if !ok {
		return
	}
	r := reply{data: m.Data, header: m.Header}
	if len(m.Data) == 0 && r.headerValue("Status") == "503" {
		r = reply{err: errNobody}
	}
	w.to.answered(w.tag, r)
}

func (l *link) failAll(err *Error) {
	l.mu.Lock()
	waiting := l.waiting
	l.waiting = make(map[uint64]waiter)
	l.mu.Unlock()
	for _, w := range waiting {
		w.to.answered(w.tag, reply{err: err})
	}
}

func (l *link) close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.redial.Wait()
	l.conn.Load().Close()
	l.failAll(lost("client closed before the answer came"))
}

// dialer lets a context end the first dial; later ones are nats.go's.
type dialer struct {
	timeout time.Duration
	dial    func(ctx context.Context, address string) (net.Conn, error)
	mu      sync.Mutex
	ctx     context.Context // guarded by mu; nil once connected
}

func (d *dialer) connected() {
	d.mu.Lock()
	d.ctx = nil
	d.mu.Unlock()
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	ctx := d.ctx
	d.mu.Unlock()
	if ctx == nil {
		ctx = context.Background()
	}
	if d.dial != nil {
		ctx, cancel := context.WithTimeout(ctx, d.timeout)
		defer cancel()
		return d.dial(ctx, address)
	}
	nd := net.Dialer{Timeout: d.timeout, KeepAlive: 15 * time.Second}
	return nd.DialContext(ctx, network, address)
}
