package nats

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
)

// conn is one client.
type conn struct {
	server     *server
	id         uint64
	raw        net.Conn
	socket     net.Conn // raw, or TLS over it
	remoteHost string
	nonce      string
	log        zerolog.Logger

	out     outbound
	buffers net.Buffers // of the write under way; a field so that writes don't allocate

	// The reader's own.
	in         window
	limits     frameLimits
	options    connectOptions
	session    protocol.Session
	publisher  *interest.Publisher
	message    interest.Message
	inMsgs     uint64
	inBytes    uint64
	stallTimer *time.Timer

	restricted  atomic.Bool // some subscription overlaps what the client may not receive
	permissions atomic.Pointer[Permissions]
	lastRead    atomic.Int64 // unix nanoseconds
	pingsOut    atomic.Int32

	mu       sync.Mutex
	subs     map[string]*interest.Subscription // by the client's sid
	gone     bool                              // the reader has ended: no more timers
	ping     *time.Timer
	auth     *time.Timer
	protocol int // the client's, once connected: 1 understands INFO at any time
	ready    bool
	infos    uint64 // INFO broadcasts that the client has seen
	reason   error  // why it was closed, the first one
}

func newConn(s *server, raw net.Conn, id uint64) *conn {
	host, _ := splitAddress(raw.RemoteAddr().String())
	c := &conn{
		server:     s,
		id:         id,
		raw:        raw,
		socket:     raw,
		remoteHost: host,
		log:        s.log.With().Uint64("client", id).Str("remote", raw.RemoteAddr().String()).Logger(),
		options:    defaultOptions,
	}
	c.out.wake = make(chan struct{}, 1)
	c.limits.controlLine = s.config.MaxControlLine
	c.limits.strangers = s.config.Authenticator != nil
	c.permissions.Store(DefaultPermissions)
	return c
}

// refuse tells a client that it is not served at all.
func (c *conn) refuse(e *protocolError) {
	c.raw.SetWriteDeadline(time.Now().Add(closeTimeout)) //nolint:errcheck // the write reports it
	_, err := fmt.Fprintf(c.raw, "-ERR '%s'\r\n", e.text)
	if err == nil {
		c.linger()
	}
	c.raw.Close() //nolint:errcheck // nothing is lost with it
	c.log.Warn().Str("reason", e.text).Msg("client refused")
}

// run serves the client until it leaves or is closed.
func (c *conn) run() {
	defer c.raw.Close() //nolint:errcheck // what was pending has been written or given up
	if err := c.greet(); err != nil {
		var e *protocolError
		if errors.As(err, &e) {
			c.server.stats.lost(e)
		}
		c.log.Debug().Err(err).Msg("client handshake failed")
		return
	}
	var writer sync.WaitGroup
	writer.Add(1)
	go func() {
		defer writer.Done()
		c.write()
	}()
	c.startTimers()

	c.publisher = c.server.broker.Router().Publisher()
	err := c.read()
	c.close(err)

	// In this order: no timer fires, nothing is delivered, the broker lets go,
	// what is pending goes out, the client has time to read it.
	c.stopTimers()
	c.dropSubscriptions()
	if c.session != nil {
		c.session.Close()
	}
	c.publisher.Flush()
	c.out.mu.Lock()
	c.out.finish = true
	c.out.mu.Unlock()
	c.Wake()
	writer.Wait()
	c.closeWrite()
	if !errors.Is(c.cause(), io.EOF) {
		c.linger()
	}
	c.log.Debug().AnErr("reason", c.cause()).Msg("client gone")
}

// greet sends INFO and secures the connection.
func (c *conn) greet() error {
	cfg := c.server.config
	if cfg.Authenticator != nil {
		var b [12]byte
		if _, err := rand.Read(b[:]); err != nil {
			return fmt.Errorf("make nonce: %w", err)
		}
		c.nonce = base64.RawURLEncoding.EncodeToString(b[:])
	}
	if cfg.TLS != nil && cfg.TLSFirst {
		if err := c.secure(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.infos = c.server.infos.Load()
	c.mu.Unlock()
	c.setWriteDeadline(false)
	if _, err := c.socket.Write(c.infoLine(c.server.broker.Info(), c.server.isLameDuck())); err != nil {
		return fmt.Errorf("send INFO: %w", err)
	}
	if cfg.TLS != nil && !cfg.TLSFirst {
		return c.secure()
	}
	return nil
}

// secure runs the TLS handshake. A client that speaks plain text gets a plain
// answer: a TLS alert would tell it nothing.
func (c *conn) secure() error {
	const handshakeRecord = 0x16
	c.raw.SetDeadline(time.Now().Add(c.server.config.TLSTimeout)) //nolint:errcheck // reads and writes report it
	if c.isClosing() {
		return net.ErrClosed // and its deadline may just have been overwritten
	}
	first := &firstByte{Conn: c.raw}
	b, err := first.peek()
	if err != nil {
		return fmt.Errorf("await TLS handshake: %w", err)
	}
	if b != handshakeRecord {
		fmt.Fprintf(c.raw, "-ERR '%s'\r\n", errTLSRequired.text) //nolint:errcheck // the client is lost anyway
		c.linger()
		return errTLSRequired
	}
	t := tls.Server(first, c.server.config.TLS)
	if err := t.Handshake(); err != nil {
		c.server.stats.authErrors.Add(1)
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.raw.SetDeadline(time.Time{}) //nolint:errcheck // as above
	c.socket = t
	return nil
}

// firstByte gives back a byte that was read ahead.
type firstByte struct {
	net.Conn
	b    [1]byte
	held bool
}

func (f *firstByte) peek() (byte, error) {
	_, err := io.ReadFull(f.Conn, f.b[:])
	f.held = err == nil
	return f.b[0], err
}

func (f *firstByte) Read(p []byte) (int, error) {
	if f.held && len(p) > 0 {
		p[0] = f.b[0]
		f.held = false
		return 1, nil
	}
	return f.Conn.Read(p)
}

// read is the reader: until the client leaves or breaks the protocol. It never
// returns nil.
func (c *conn) read() error {
	var f frame
	need := 0
	c.lastRead.Store(time.Now().UnixNano())
	for {
		// Looked at before each read, not only after one: close may have set its
		// read deadline while the handshake had its own.
		if c.isClosing() {
			return net.ErrClosed
		}
		n, err := c.in.fill(c.socket, need)
		if n > 0 {
			now := time.Now().UnixNano()
			before := c.lastRead.Swap(now)
			c.limits.payload = c.server.payload.Load()
			need, err = c.burst(&f, err)
			if time.Duration(now-before) > quietAfter {
				c.in.quiet()
				c.publisher.Forget()
			}
		}
		if err != nil {
			return err
		}
	}
}

// burst handles all frames that one read completed. It returns the read's own
// error, or the one that ends the connection.
func (c *conn) burst(f *frame, readErr error) (need int, err error) {
	var n int
	for buf := c.in.unread(); len(buf) >= max(need, 1); buf = buf[n:] {
		n, need, err = c.limits.parse(buf, f)
		if err != nil || n == 0 {
			break
		}
		if err = c.handle(f); err != nil {
			break
		}
		c.in.consume(n)
		need = 0
	}
	c.endBurst()
	if err == nil {
		err = readErr
	}
	return need, err
}

func (c *conn) endBurst() {
	if c.session != nil {
		c.session.Flush()
	}
	if c.inMsgs > 0 {
		c.server.stats.inMsgs.Add(c.inMsgs)
		c.server.stats.inBytes.Add(c.inBytes)
		c.inMsgs, c.inBytes = 0, 0
	}
	if congested := c.publisher.Flush(); congested != nil {
		c.stall(congested)
	}
}

// stall holds a producer back for a consumer that is far behind.
func (c *conn) stall(congested <-chan struct{}) {
	c.server.stats.stalls.Add(1)
	if c.stallTimer == nil {
		c.stallTimer = time.NewTimer(stallLimit)
	} else {
		c.stallTimer.Reset(stallLimit)
	}
	select {
	case <-congested:
		c.stallTimer.Stop()
	case <-c.stallTimer.C:
	}
}

// close has the connection end: what is pending goes out, then the last words
// that err has for the client, if it is a protocolError. Any goroutine may call
// it; the first one gives the reason.
func (c *conn) close(err error) {
	if err == nil {
		err = net.ErrClosed
	}
	if !c.because(err) {
		return
	}
	o := &c.out
	o.mu.Lock()
	var e *protocolError
	if errors.As(err, &e) {
		c.server.stats.lost(e)
		o.append([]byte("-ERR '" + e.text + "'\r\n"))
	}
	o.closing = true
	c.setWriteDeadline(true)
	o.mu.Unlock()
	c.Wake()
	c.raw.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // so that the reader looks up
	level := zerolog.DebugLevel
	var denial *Denial
	if e != nil && !errors.As(err, &denial) {
		level = zerolog.WarnLevel
	}
	c.log.WithLevel(level).AnErr("reason", err).Msg("client connection closed")
}

var (
	errSlowConsumer = errors.New("slow consumer")
	errWriteFailed  = errors.New("write failed")
)

// cutSlow ends a connection whose client doesn't read. Nothing is flushed.
func (c *conn) cutSlow(how string, pending int64) {
	if c.because(errSlowConsumer) {
		c.server.stats.slowConsumers.Add(1)
		c.log.Warn().Str("how", how).Int64("pending_bytes", pending).
			Int64("limit_bytes", c.server.config.MaxPending).Msg("slow consumer cut")
	}
	c.abort()
}

// abort ends reader and writer without another byte.
func (c *conn) abort() {
	c.because(errWriteFailed)
	c.out.mu.Lock()
	c.out.closing, c.out.broken = true, true
	c.out.mu.Unlock()
	c.raw.Close() //nolint:errcheck // ends reads and writes; nothing else matters
	c.Wake()
}

// because records why the connection ends and reports whether it is the first
// reason.
func (c *conn) because(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason != nil {
		return false
	}
	c.reason = err
	return true
}

func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

func (c *conn) isClosing() bool { return c.cause() != nil }

func (c *conn) closeWrite() {
	if t, ok := c.socket.(*tls.Conn); ok {
		t.CloseWrite() //nolint:errcheck // a courtesy
	}
	if t, ok := c.raw.(interface{ CloseWrite() error }); ok {
		t.CloseWrite() //nolint:errcheck // a courtesy
	}
}

// linger reads on for a moment after the last write: closing a socket with
// unread data resets it, and the client would lose our last words.
func (c *conn) linger() {
	c.raw.SetReadDeadline(time.Now().Add(lingerTime))       //nolint:errcheck // the read reports it
	io.Copy(io.Discard, io.LimitReader(c.raw, lingerBytes)) //nolint:errcheck // any end will do
}

// startTimers: pings, and the time that a client has to show its credentials.
func (c *conn) startTimers() {
	cfg := c.server.config
	c.mu.Lock()
	defer c.mu.Unlock()
	// The first one early and at random, so that clients that came together are
	// not pinged together ever after.
	c.ping = time.AfterFunc(cfg.PingInterval/2+mathrand.N(cfg.PingInterval/2+1), c.pingTimer)
	if cfg.Authenticator != nil {
		c.auth = time.AfterFunc(cfg.AuthTimeout, func() { c.close(errAuthTimeout) })
	}
}

func (c *conn) stopTimers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	c.ping.Stop()
	if c.auth != nil {
		c.auth.Stop()
	}
}

func (c *conn) pingTimer() {
	interval := c.server.config.PingInterval
	idle := time.Since(time.Unix(0, c.lastRead.Load()))
	if idle >= interval/2 {
		if int(c.pingsOut.Add(1)) > c.server.config.MaxPingsOut {
			c.close(errStale)
			return
		}
		c.enqueue(nil, pingLine)
	} else {
		c.pingsOut.Store(0)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.ping.Reset(interval)
	}
}

// announce sends INFO to a client that takes it outside of the handshake.
func (c *conn) announce(info protocol.Info, lameDuck bool) {
	c.mu.Lock()
	send := c.ready && c.protocol >= 1
	if send {
		c.infos = c.server.infos.Load()
	}
	c.mu.Unlock()
	if send {
		c.enqueue(nil, c.infoLine(info, lameDuck))
	}
}
