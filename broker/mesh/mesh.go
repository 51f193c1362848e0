// Package mesh links the brokers of a cluster. Each broker dials every other one
// over nats.go, once for control (requests, Paxos) and once for data (messages of
// live subscribers, forwarded publishes, replies), and listens for the others on
// a port that ordinary clients are turned away from. What a link carries goes one
// way, towards the listener; answers and credits come back on it. So two brokers
// that dial each other at once have nothing to settle, and nothing said on one
// link waits for another.
//
//	mesh.go       Config, Mesh, peers
//	identity.go   who may open a link; proofs and refusals
//	frame.go      the bytes on a link
//	outbox.go     what waits to go out, bounded
//	link.go       a link that is kept up
//	dial.go       one connection of it
//	control.go    requests and one-way messages
//	data.go       forwards, core routing, replies: the sending side
//	listener.go   the peer port: sessions
//	controlsession.go, datasession.go: the receiving sides
//	status.go     figures
//
// docs/format/mesh.md has the bytes, docs/adr/0070 to 0072 the reasons.
package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/interest"
	frontend "github.com/parleymq/parley/broker/protocol/nats"
)

// Errors of sending to a peer.
var (
	// ErrUnreachable: no link is up, or it went down before the answer came.
	ErrUnreachable = errors.New("broker unreachable")
	// ErrBusy: as much is under way to the peer as may be.
	ErrBusy = errors.New("broker busy")
	// ErrTooLarge: over MaxPayload.
	ErrTooLarge = errors.New("too large for a link between brokers")
	// ErrClosed: the mesh is.
	ErrClosed = errors.New("mesh closed")
)

// MaxPayload bytes of one request, answer or message between brokers.
const MaxPayload = 8 << 20

// Config of a Mesh. The zero value of a limit stands for its default.
type Config struct {
	Self     Identity
	Listener net.Listener // the mesh owns it
	Router   *interest.Router
	Logger   zerolog.Logger

	// Secret of the cluster: both sides of a link prove that they know it. TLS is
	// for listening and dialling alike and must verify clients. Without either
	// the listener must be on a loopback address.
	Secret []byte
	TLS    *tls.Config

	// Dial opens a connection to an address, default TCP. It is where tests cut links.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	Window         int64         // bytes under way to one peer on its data link, default 16 MiB
	ControlPending int64         // bytes waiting on a control link, default 16 MiB
	RequestTimeout time.Duration // of a request whose context has no deadline, default 5 s
	DialTimeout    time.Duration // for each step of opening a link, default 2 s
	PingInterval   time.Duration // default 1 s
	PeerTimeout    time.Duration // without a sign of life a link is dropped, default 3 s
	ForwardWait    time.Duration // that Forward waits for room, default 100 ms
	RetryMin       time.Duration // between attempts to open a link, default 50 ms
	RetryMax       time.Duration // default 1 s
	MaxRequests    int           // that one link has being handled at a time, default 256
}

// Limits that have no setting.
const (
	maxPeerConnections = 1024
	maxRequestBytes    = 64 << 20 // of all requests of one link being handled
	maxSends           = 4096     // one-way messages of one link that wait for their handler
	maxSendBytes       = 32 << 20
	maxAnswerPending   = 64 << 20 // bytes of answers that wait for one peer to read them
	creditHold         = 100 * time.Millisecond
	writeTimeout       = 5 * time.Second
)

func (c *Config) setDefaults() {
	def(&c.Window, 16<<20)
	def(&c.ControlPending, 16<<20)
	def(&c.RequestTimeout, 5*time.Second)
	def(&c.DialTimeout, 2*time.Second)
	def(&c.PingInterval, time.Second)
	def(&c.PeerTimeout, 3*time.Second)
	def(&c.ForwardWait, 100*time.Millisecond)
	def(&c.RetryMin, 50*time.Millisecond)
	def(&c.RetryMax, time.Second)
	def(&c.MaxRequests, 256)
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) check() error {
	switch {
	case c.Listener == nil:
		return errors.New("no listener")
	case c.Router == nil:
		return errors.New("no router")
	case c.Self.Incarnation == "":
		return errors.New("no incarnation")
	case c.TLS != nil && c.TLS.ClientAuth != tls.RequireAndVerifyClientCert:
		return errors.New("TLS does not verify peers: ClientAuth must be RequireAndVerifyClientCert")
	}
	if a, ok := c.Listener.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() && len(c.Secret) == 0 && c.TLS == nil {
		return fmt.Errorf("listen address %s is not loopback: peers there need a cluster secret or mutual TLS", a)
	}
	return nil
}

// Mesh is one broker's links. All methods may be called from any goroutine.
type Mesh struct {
	c     Config
	log   zerolog.Logger
	start time.Time
	stats counters

	ctx    context.Context // of links and sessions
	cancel context.CancelFunc
	wg     sync.WaitGroup
	front  *frontend.Frontend
	router *interest.Router // of the peer port: answers on their way out

	self  atomic.Pointer[Identity]
	peers atomic.Pointer[map[uint64]*peer] // replaced inside mu, never changed

	handlers  sync.Map // subject to handler
	onForward atomic.Pointer[func(from uint64, topic string, partition int32, m *interest.Message)]
	onFlush   atomic.Pointer[func(from uint64)]
	onReply   atomic.Pointer[func(from uint64, m *interest.Message, route func(*interest.Message))]
	onPeer    atomic.Pointer[func(p Peer, up bool)]
	onLost    atomic.Pointer[func(peer uint64)]
	stranded  chan uint64 // peers that were not sent an answer

	mu       sync.Mutex
	closed   bool
	sessions map[*session]struct{}
}

// peer is one other broker. There is one for as long as epochs name its id.
type peer struct {
	m       *Mesh
	id      uint64
	named   atomic.Pointer[Peer] // as the newest epoch has it
	control link
	data    link
	replies *interest.Subscription

	errBusy, errUnreachable error
	counters
}

// New starts a mesh: the listener is served, and peers are dialled once SetPeers
// names them.
func New(c Config) (*Mesh, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("start mesh: %w", err)
	}
	c.setDefaults()
	m := &Mesh{
		c: c, log: c.Logger, start: time.Now(),
		router:   interest.NewRouter(),
		sessions: make(map[*session]struct{}),
		stranded: make(chan uint64, maxStranded),
	}
	m.self.Store(&c.Self)
	m.peers.Store(&map[uint64]*peer{})
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.front = frontend.New(frontend.Config{
		Logger:         c.Logger.With().Str("port", "peers").Logger(),
		TLS:            c.TLS,
		Authenticator:  gate{m},
		MaxConnections: maxPeerConnections,
		MaxPending:     maxAnswerPending,
		PingInterval:   c.PeerTimeout, // for a peer that hangs: links are watched from the side that dials
		AuthTimeout:    c.DialTimeout,
		TLSTimeout:     c.DialTimeout,
		DrainTime:      -1,
	})
	m.wg.Add(2)
	go func() {
		defer m.wg.Done()
		m.endStranded()
	}()
	go func() {
		defer m.wg.Done()
		if err := m.front.Serve(m.ctx, c.Listener, port{m}); err != nil {
			m.log.Error().Err(err).Msg("peer listener ended")
		}
	}()
	return m, nil
}

// Close ends all links and waits for everything that the mesh has started, thus
// for handlers too: their contexts end.
func (m *Mesh) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
	for _, p := range m.peerMap() {
		m.c.Router.Unsubscribe(p.replies)
	}
	return nil
}

// Self is this broker's identity.
func (m *Mesh) Self() Identity { return *m.self.Load() }

// Address that the peer listener is bound to.
func (m *Mesh) Address() net.Addr { return m.c.Listener.Addr() }

// SetSelf changes the identity, after bootstrap or join. Links are opened anew.
func (m *Mesh) SetSelf(i Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *m.self.Load() == i {
		return
	}
	m.self.Store(&i)
	if m.closed {
		return
	}
	for _, p := range m.peerMap() {
		p.open()
	}
}

// SetPeers names the other brokers, as each epoch does. New ones are dialled,
// those whose address or incarnation changed are dialled anew, and whoever is
// not named any more is cut off in both directions. An entry for this broker
// itself is passed over.
func (m *Mesh) SetPeers(peers []Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	self := m.Self()
	old, now := m.peerMap(), make(map[uint64]*peer, len(peers))
	for _, named := range peers {
		if named.Broker == self.Broker || named.Incarnation != "" && named.Incarnation == self.Incarnation {
			continue
		}
		p := old[named.Broker]
		switch {
		case p == nil:
			p = m.newPeer(named)
			p.open()
		case *p.named.Load() != named:
			p.named.Store(&named)
			p.open()
		}
		now[named.Broker] = p
	}
	m.peers.Store(&now)
	for id, p := range old {
		if now[id] == nil {
			p.control.stop()
			p.data.stop()
			m.c.Router.Unsubscribe(p.replies)
		}
	}
	for s := range m.sessions {
		if err := m.recheck(s); err != nil {
			m.evict(s, err)
		}
	}
}

func (m *Mesh) newPeer(named Peer) *peer {
	p := &peer{m: m, id: named.Broker}
	p.named.Store(&named)
	p.control = link{m: m, peer: p, kind: kindControl}
	p.data = link{m: m, peer: p, kind: kindData}
	p.errBusy = fmt.Errorf("send to broker %d: %w", p.id, ErrBusy)
	p.errUnreachable = fmt.Errorf("send to broker %d: %w", p.id, ErrUnreachable)
	p.replies = &interest.Subscription{Subject: replySubject(p.id), Sink: replySink{p}, Peer: true}
	if err := m.c.Router.Subscribe(p.replies); err != nil {
		panic("valid subscription refused: " + err.Error())
	}
	return p
}

// open opens both links anew.
func (p *peer) open() {
	p.control.open()
	p.data.open()
}

func (m *Mesh) peerMap() map[uint64]*peer { return *m.peers.Load() }

func (m *Mesh) peer(id uint64) *peer { return m.peerMap()[id] }

// peerOf finds the peer that calls itself so.
func (m *Mesh) peerOf(i *Identity) *peer {
	for _, p := range m.peerMap() {
		if p.named.Load().is(i) {
			return p
		}
	}
	return nil
}

// OnPeer has f called when the control link to a peer comes up or goes down: in
// order for each peer, from the link's goroutine, which waits for it.
func (m *Mesh) OnPeer(f func(p Peer, up bool)) { m.onPeer.Store(&f) }

// OnLost has f called when the data link to a peer, or the one from it, has gone down: what was forwarded to it
// and is not answered may never be. It is called from the link's goroutine, which waits for it.
func (m *Mesh) OnLost(f func(peer uint64)) { m.onLost.Store(&f) }

func (m *Mesh) lost(peer uint64) {
	if f := m.onLost.Load(); f != nil {
		(*f)(peer)
	}
}

// maxStranded bounds the peers that wait to be cut off; one that finds no room is met again at the next answer.
const maxStranded = 64

var errStranded = errors.New("an answer could not be sent to the peer")

// strand is called when a peer could not be sent an answer. The origin would wait for it without end: its link to
// this broker is cut, so that it learns that nothing more comes. It never blocks.
func (m *Mesh) strand(peer uint64) {
	select {
	case m.stranded <- peer:
	default:
	}
}

func (m *Mesh) endStranded() {
	for {
		select {
		case id := <-m.stranded:
			m.mu.Lock()
			for s := range m.sessions {
				if s.hello.Kind == kindData && s.hello.Broker == id {
					m.evict(s, errStranded)
				}
			}
			m.mu.Unlock()
		case <-m.ctx.Done():
			return
		}
	}
}

// sinceStart is the mesh's own monotonic clock.
func (m *Mesh) sinceStart() int64 { return int64(time.Since(m.start)) }
