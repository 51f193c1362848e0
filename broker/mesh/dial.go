package mesh

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// Subjects of the peer port. Each carries frames, hello apart.
const (
	subjectPrefix = "_MESH."
	subjectHello  = "_MESH.HELLO"   // reply: where answers and credits go
	subjectFrames = "_MESH.FRAMES"  // what the link is for
	answerPrefix  = "_MESH_ANSWER." // and a random token
)

// dialled is one connection of a link, or of an Ask. It ends for good.
type dialled struct {
	m    *Mesh
	kind kind
	peer *peer // nil for an Ask
	out  outbox

	nc       *nats.Conn
	welcomed chan welcome
	remote   Identity // who answered
	greeted  bool     // the callback's own

	ended    chan struct{}
	failOnce sync.Once
	reason   error // set before ended is closed
	sockets  sockets
	unfollow func()
	followed atomic.Bool // the peer has been sent all interest there was

	lastHeard, rtt atomic.Int64 // nanoseconds, of the mesh's clock

	mu      sync.Mutex
	pending map[uint64]chan answer // requests by id; nil once ended
	lastID  uint64
}

// dial opens a connection and returns once both sides accept each other.
func (m *Mesh) dial(ctx context.Context, k kind, address string, broker uint64, incarnation string, p *peer) (*dialled, error) {
	d := &dialled{
		m: m, kind: k, peer: p,
		welcomed: make(chan welcome, 1),
		ended:    make(chan struct{}),
		pending:  make(map[uint64]chan answer),
	}
	d.out.wake = make(chan struct{}, 1)
	d.out.window = m.c.ControlPending
	d.sockets.ctx, d.sockets.timeout, d.sockets.dial = ctx, m.c.DialTimeout, m.c.Dial
	d.heard()
	stop := context.AfterFunc(ctx, func() { d.fail(context.Cause(ctx)) })
	defer stop()

	err := d.connect(k, address, broker, incarnation)
	if err != nil {
		d.fail(err)
		d.finish()
		return nil, fmt.Errorf("open %s link to %s: %w", k, address, err)
	}
	return d, nil
}

func (d *dialled) connect(k kind, address string, broker uint64, incarnation string) error {
	m := d.m
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("address %q is not HOST:PORT: %w", address, err)
	}
	h := hello{
		Version: protocolVersion, Kind: k, Identity: m.Self(),
		ToBroker: broker, ToIncarnation: incarnation, Challenge: randomText(),
	}
	token, err := json.Marshal(&h)
	if err != nil {
		return fmt.Errorf("encode hello: %w", err)
	}
	o := nats.GetDefaultOptions()
	o.Url = "nats://" + address
	o.Name = h.Name
	o.AllowReconnect = false
	o.ReconnectBufSize = -1
	o.CustomDialer = &d.sockets
	o.SkipHostLookup = true
	o.SkipSubjectValidation = true
	o.IgnoreDiscoveredServers = true
	o.Timeout = m.c.DialTimeout
	o.FlusherTimeout = writeTimeout
	o.PingInterval = time.Hour // links have pings of their own
	o.Token = string(token)
	if len(m.c.Secret) > 0 {
		o.Nkey = nkeyMark
		o.SignatureCB = func(nonce []byte) ([]byte, error) {
			return proof(m.c.Secret, "dial", string(nonce), o.Token), nil
		}
	}
	if m.c.TLS != nil {
		o.Secure, o.TLSConfig = true, m.c.TLS.Clone()
	}
	o.ClosedCB = func(nc *nats.Conn) { d.fail(d.lost(nc.LastError())) }
	o.AsyncErrorCB = func(_ *nats.Conn, _ *nats.Subscription, err error) { d.fail(d.lost(err)) }
	nc, err := o.Connect()
	if err != nil {
		if dialErr := d.sockets.err(); dialErr != nil {
			return dialErr // nats.go hides it
		}
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			return fmt.Errorf("whoever listens there says nothing: is it the broker's Raft port, or does it hang? %w", err)
		}
		return refusalIn(err)
	}
	d.nc = nc
	answers := answerPrefix + randomText()
	sub, err := nc.Subscribe(answers, d.take)
	if err == nil {
		err = sub.SetPendingLimits(-1, 2*maxAnswerPending)
	}
	if err == nil {
		err = nc.PublishRequest(subjectHello, answers, nil)
	}
	if err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	timeout := time.NewTimer(m.c.DialTimeout)
	defer timeout.Stop()
	select {
	case w := <-d.welcomed:
		return d.accept(&h, &w)
	case <-d.ended:
		return d.reason
	case <-timeout.C:
		return fmt.Errorf("no welcome within %v", m.c.DialTimeout)
	}
}

// accept checks who answered.
func (d *dialled) accept(h *hello, w *welcome) error {
	secret := d.m.c.Secret
	if len(secret) > 0 {
		given, err := base64.RawURLEncoding.DecodeString(w.Proof)
		if err != nil || !hmac.Equal(given, w.prove(secret, h.Challenge)) {
			return refuse(RefusedSecret, "%v does not know the cluster secret", w.Identity)
		}
	}
	if err := meets(&w.Identity, &h.Identity, h.ToBroker, h.ToIncarnation); err != nil {
		return err
	}
	d.remote = w.Identity
	if d.kind == kindData {
		d.out.window = min(d.m.c.Window, w.Window)
	}
	return nil
}

// lost says why nats.go's connection ended.
func (d *dialled) lost(err error) error {
	if err == nil {
		return errors.New("connection closed by the peer")
	}
	return refusalIn(err)
}

// serve sends what there is and keeps watch, until the connection ends or ctx
// does. It returns the reason and leaves nothing running.
func (d *dialled) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { d.fail(context.Cause(ctx)) })
	defer stop()
	var sender sync.WaitGroup
	sender.Add(1)
	go func() {
		defer sender.Done()
		d.send()
	}()
	d.watch()
	<-d.ended
	sender.Wait()
	d.finish()
	return d.reason
}

// send is the sender: nothing but it publishes on the connection.
func (d *dialled) send() {
	var taken [][]byte
	for {
		taken = d.out.take(taken[:0])
		for i, b := range taken {
			if err := d.nc.Publish(subjectFrames, b); err != nil {
				d.fail(fmt.Errorf("write: %w", d.lost(err)))
			}
			if d.kind != kindData {
				d.out.sent(len(b))
			}
			freeChunk(b)
			taken[i] = nil
		}
		if len(taken) > 0 {
			continue
		}
		select {
		case <-d.out.wake:
		case <-d.ended:
			return
		}
	}
}

// watch pings, until the connection ends or the other side has gone quiet.
func (d *dialled) watch() {
	interval := d.m.c.PingInterval
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	d.ping()
	before := d.m.sinceStart()
	for {
		select {
		case <-d.ended:
			return
		case <-ticker.C:
		}
		now := d.m.sinceStart()
		// What this process itself has slept nobody is to blame for. No more than that: on a machine where every tick is late a peer
		// that hangs is noticed all the same.
		if gap := now - before; time.Duration(gap) > 2*interval {
			last := d.lastHeard.Load()
			d.lastHeard.CompareAndSwap(last, min(now, last+gap-int64(interval)))
		}
		before = now
		if quiet := time.Duration(now - d.lastHeard.Load()); quiet > d.m.c.PeerTimeout {
			d.fail(fmt.Errorf("no sign of life for %v", quiet.Round(time.Millisecond)))
			return
		}
		d.ping()
	}
}

func (d *dialled) heard() { d.lastHeard.Store(d.m.sinceStart()) }

func (d *dialled) ping() {
	if b, v := d.out.reserve(frameHead+maxVarint, classPing); v == granted {
		d.out.commit(appendNumbers(b, framePing, nil, uint64(d.m.sinceStart())))
		d.out.Wake()
	}
}

// fail ends the connection; the first reason counts.
func (d *dialled) fail(err error) {
	d.failOnce.Do(func() {
		d.reason = err
		close(d.ended)
		// First, so that a write that hangs gives nats.go's lock back.
		d.sockets.close()
	})
}

// finish cleans up after fail.
func (d *dialled) finish() {
	<-d.ended
	if d.nc != nil {
		d.nc.Close()
	}
	d.out.close()
	d.mu.Lock()
	pending := d.pending
	d.pending = nil
	d.mu.Unlock()
	for _, c := range pending {
		c <- answer{err: fmt.Errorf("%w: %w", ErrUnreachable, d.reason)}
	}
}

// take handles what comes back, in nats.go's goroutine for the subscription.
func (d *dialled) take(msg *nats.Msg) {
	d.heard()
	if !d.greeted {
		d.greeted = true
		var w welcome
		if err := json.Unmarshal(msg.Data, &w); err != nil || w.Version != protocolVersion {
			d.fail(fmt.Errorf("unexpected welcome %q", bytes.ToValidUTF8(msg.Data[:min(len(msg.Data), 200)], []byte("?"))))
			return
		}
		d.welcomed <- w
		return
	}
	for b := msg.Data; len(b) > 0; {
		kind, body, rest, err := nextFrame(b)
		if err == nil {
			err = d.answered(kind, body)
		}
		if err != nil {
			d.fail(fmt.Errorf("answer of the peer: %w", err))
			return
		}
		b = rest
	}
}

func (d *dialled) answered(kind byte, body []byte) error {
	f := fields{b: body}
	switch kind {
	case frameResponse, frameFailure:
		d.settle(f.number(), kind == frameFailure, f.b)
	case framePong:
		sent := f.number()
		d.rtt.Store(max(d.m.sinceStart()-int64(sent), 1))
		fallthrough
	case frameCredit:
		consumed := f.number()
		if d.kind == kindData && !f.bad && !d.out.credit(consumed) {
			return fmt.Errorf("credit for %d bytes that were never sent: %w", consumed, errBadFrame)
		}
	}
	if f.bad {
		return errBadFrame
	}
	return nil
}

// sockets is nats.go's dialler. It remembers the connection, so that it can be
// torn down whatever nats.go is doing, and its own error.
type sockets struct {
	ctx     context.Context
	timeout time.Duration
	dial    func(ctx context.Context, address string) (net.Conn, error) // nil: TCP

	mu     sync.Mutex
	conn   net.Conn
	closed bool
	failed error
}

// Dial implements nats.CustomDialer.
func (s *sockets) Dial(network, address string) (net.Conn, error) {
	conn, err := s.open(network, address)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.closed {
		conn.Close() //nolint:errcheck // nobody has used it
		err = net.ErrClosed
	}
	if err != nil {
		s.failed = err
		return nil, err //nolint:wrapcheck // names the address already
	}
	s.conn = conn
	return conn, nil
}

func (s *sockets) open(network, address string) (net.Conn, error) {
	if s.dial == nil {
		dialer := net.Dialer{Timeout: s.timeout}
		return dialer.DialContext(s.ctx, network, address) //nolint:wrapcheck // names the address already
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	return s.dial(ctx, address)
}

func (s *sockets) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		s.conn.Close() //nolint:errcheck // ends whatever goes on with it
	}
}
