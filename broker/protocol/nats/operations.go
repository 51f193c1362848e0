package nats

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
)

var (
	crlf     = []byte("\r\n")
	okLine   = []byte("+OK\r\n")
	pingLine = []byte("PING\r\n")
	pongLine = []byte("PONG\r\n")
)

// connectOptions are what CONNECT says. Whatever a client leaves out stays as
// in defaultOptions, which also hold before CONNECT.
type connectOptions struct {
	Verbose      bool   `json:"verbose"`
	Pedantic     bool   `json:"pedantic"`
	TLSRequired  bool   `json:"tls_required"`
	NKey         string `json:"nkey"`
	JWT          string `json:"jwt"`
	Signature    string `json:"sig"`
	Token        string `json:"auth_token"`
	User         string `json:"user"`
	Password     string `json:"pass"`
	Name         string `json:"name"`
	Lang         string `json:"lang"`
	Version      string `json:"version"`
	Protocol     int    `json:"protocol"`
	Echo         bool   `json:"echo"`
	Headers      bool   `json:"headers"`
	NoResponders bool   `json:"no_responders"`
}

var defaultOptions = connectOptions{Verbose: true, Pedantic: true, Echo: true}

// handle carries out one frame. An error ends the connection.
func (c *conn) handle(f *frame) error {
	switch f.verb {
	case verbPub, verbHpub:
		c.publish(f)
	case verbSub:
		c.subscribe(f)
	case verbUnsub:
		c.unsub(f)
	case verbPing:
		// The client's flush barrier: all that it published before has been
		// taken by its appender or refused.
		if c.session != nil {
			c.session.Flush()
		}
		c.send(pongLine)
	case verbPong:
		c.pingsOut.Store(0)
	case verbConnect:
		return c.connect(f.arg)
	}
	return nil
}

// send queues lines for the client; the writer wakes at the end of the burst.
func (c *conn) send(lines ...[]byte) {
	c.enqueue(c.publisher.Burst(), lines...)
}

func (c *conn) sendError(text string) {
	c.send([]byte("-ERR '" + text + "'\r\n"))
}

func (c *conn) ok() {
	if c.options.Verbose {
		c.send(okLine)
	}
}

func (c *conn) connect(arg []byte) error {
	options := defaultOptions
	if err := json.Unmarshal(arg, &options); err != nil {
		return fmt.Errorf("decode CONNECT (%w): %w", err, errUnknownOperation)
	}
	// Another CONNECT may make the client somebody else.
	c.dropSubscriptions()
	if c.session != nil {
		c.session.Close()
		c.session = nil
	}
	c.restricted.Store(false)

	identity, err := c.authenticate(&options)
	if err != nil {
		return err
	}
	if options.Protocol < 0 || options.Protocol > 1 {
		return errClientProtocol
	}
	if options.NoResponders && !options.Headers {
		return errNoResponders
	}
	c.options = options
	c.limits.strangers = false
	c.limits.headers = options.Headers
	if identity.Permissions == nil {
		identity.Permissions = DefaultPermissions
	}
	c.permissions.Store(identity.Permissions)
	c.out.mu.Lock()
	c.out.headers = options.Headers
	c.out.mu.Unlock()
	c.attach(identity.User)
	c.ok()

	c.mu.Lock()
	c.protocol, c.ready = options.Protocol, true
	missed := options.Protocol >= 1 && c.infos != c.server.infos.Load()
	c.mu.Unlock()
	if missed {
		c.announce(c.server.broker.Info(), c.server.isLameDuck())
	}
	return nil
}

func (c *conn) authenticate(o *connectOptions) (Identity, error) {
	a := c.server.config.Authenticator
	if a == nil {
		return Identity{User: o.User}, nil
	}
	credentials := Credentials{
		User:      o.User,
		Password:  o.Password,
		Token:     o.Token,
		NKey:      o.NKey,
		Signature: o.Signature,
		JWT:       o.JWT,
		Nonce:     c.nonce,
		Remote:    c.raw.RemoteAddr(),
	}
	if t, ok := c.socket.(*tls.Conn); ok {
		state := t.ConnectionState()
		credentials.TLS = &state
	}
	identity, err := a.Authenticate(&credentials)
	var denial *Denial
	switch {
	case errors.As(err, &denial):
		e := &protocolError{errAuthorization.text + ": " + lastWord(denial.Text), kindAuth}
		return identity, fmt.Errorf("authenticate user %q: %w (%w)", o.User, e, denial)
	case err != nil:
		return identity, fmt.Errorf("authenticate user %q (%w): %w", o.User, err, errAuthorization)
	}
	c.mu.Lock()
	c.auth.Stop()
	c.mu.Unlock()
	return identity, nil
}

func (c *conn) attach(user string) {
	c.session = c.server.broker.Attach(protocol.Client{
		ID:       c.id,
		Protocol: "nats",
		Remote:   c.raw.RemoteAddr().String(),
		Name:     c.options.Name,
		User:     user,
		Stalled:  func() { c.publisher.Flush() },
		Close:    func(reason string) { c.close(&protocolError{lastWord(reason), kindClosed}) },
	})
}

func (c *conn) publish(f *frame) {
	c.inMsgs++
	c.inBytes += uint64(len(f.header) + len(f.payload))
	if !interest.ValidSubject(f.subject) {
		// It can reach nobody: filters and topics are made of valid subjects.
		if c.options.Pedantic {
			c.sendError(textInvalidPublish)
		}
		c.ok()
		if f.reply != nil && interest.ValidSubject(f.reply) && c.options.NoResponders {
			c.noResponders(f)
		}
		return
	}
	p := c.permissions.Load()
	if !permits(&p.Publish, f.subject) {
		c.violation("Permissions Violation for Publish to " + strconv.Quote(string(f.subject)))
		return
	}
	if f.reply != nil {
		if !interest.ValidSubject(f.reply) {
			f.reply = nil // an answer to it would go nowhere
		} else if len(p.Publish.Allow)+len(p.Publish.Deny) > 0 && !c.mayReply(p, f.reply) {
			c.violation("Permissions Violation for Publish with Reply of " + strconv.Quote(string(f.reply)))
			return
		}
	}
	if c.session == nil {
		c.attach("")
	}
	c.ok()

	m := &c.message
	*m = interest.Message{Subject: f.subject, Reply: f.reply, Header: f.header, Payload: f.payload}
	disposition := c.session.Publish(m)
	if disposition == protocol.Consumed {
		return
	}
	var from interest.Sink
	if !c.options.Echo {
		from = c
	}
	delivered := c.publisher.Route(m, from)
	if delivered == 0 && disposition == protocol.NotTaken && f.reply != nil && c.options.NoResponders {
		c.noResponders(f)
	}
}

// mayReply: answers are published by others, but a client must not have them
// sent to subjects on which it could not receive them itself.
func (c *conn) mayReply(p *Permissions, reply []byte) bool {
	return permits(&p.Subscribe, reply)
}

// noResponders tells a requester at once that nobody is there.
func (c *conn) noResponders(f *frame) {
	sub := c.publisher.Find(f.reply, c)
	if sub == nil {
		return
	}
	header := make([]byte, 0, 64+len(f.subject))
	header = append(header, "NATS/1.0 503\r\nNats-Subject: "...)
	header = append(header, f.subject...)
	header = append(header, "\r\n\r\n"...)
	c.publisher.Send(sub, &interest.Message{Subject: f.reply, Header: header})
}

func (c *conn) subscribe(f *frame) {
	subject := string(f.subject)
	if !interest.ValidFilter(subject) {
		c.sendError(textInvalidSubject)
		return
	}
	p := c.permissions.Load()
	if !permits(&p.Subscribe, subject) {
		text := "Permissions Violation for Subscription to " + strconv.Quote(subject)
		if f.queue != nil {
			text += " using queue " + strconv.Quote(string(f.queue))
		}
		c.violation(text)
		return
	}
	c.mu.Lock()
	known := c.subs[string(f.sid)]
	full := known == nil && len(c.subs) >= c.server.config.MaxSubscriptions
	c.mu.Unlock()
	switch {
	case full:
		c.sendError(textMaxSubscriptions)
		return
	case known != nil: // a sid that is in use keeps its subscription
		c.ok()
		return
	}
	if p.Subscribe.restricts(subject) {
		c.restricted.Store(true)
	}
	sub := &interest.Subscription{
		Subject: subject,
		Queue:   string(f.queue),
		SID:     append([]byte(nil), f.sid...),
		Sink:    c,
	}
	c.mu.Lock()
	if c.subs == nil {
		c.subs = make(map[string]*interest.Subscription)
	}
	c.subs[string(f.sid)] = sub
	c.mu.Unlock()
	c.server.stats.subscriptions.Add(1)
	if err := c.server.broker.Router().Subscribe(sub); err != nil {
		panic("valid subscription refused: " + err.Error())
	}
	c.ok()
}

func (c *conn) unsub(f *frame) {
	c.mu.Lock()
	sub := c.subs[string(f.sid)]
	c.mu.Unlock()
	if sub != nil {
		c.out.mu.Lock()
		end := f.max <= 0 || uint64(f.max) <= sub.Delivered.Load()
		if !end {
			sub.Max.Store(uint64(f.max))
		}
		c.out.mu.Unlock()
		if end {
			c.unsubscribe(sub)
		}
	}
	c.ok()
}

// unsubscribe ends one subscription, from any goroutine.
func (c *conn) unsubscribe(sub *interest.Subscription) {
	c.mu.Lock()
	if c.subs[string(sub.SID)] == sub {
		delete(c.subs, string(sub.SID))
	}
	c.mu.Unlock()
	if c.server.broker.Router().Unsubscribe(sub) {
		c.server.stats.subscriptions.Add(-1)
	}
}

func (c *conn) dropSubscriptions() {
	c.mu.Lock()
	subs := c.subs
	c.subs = nil
	c.mu.Unlock()
	for _, sub := range subs {
		if c.server.broker.Router().Unsubscribe(sub) {
			c.server.stats.subscriptions.Add(-1)
		}
	}
}

func (c *conn) violation(text string) {
	c.server.stats.violations.Add(1)
	c.log.Warn().Str("violation", text).Msg("client permission denied")
	c.sendError(text)
}

func (c *conn) mayReceive(subject []byte) bool {
	p := c.permissions.Load()
	for _, d := range p.Subscribe.Deny {
		if interest.Match(d, subject) {
			return false
		}
	}
	return true
}
