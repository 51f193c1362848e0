// Package protocol is the seam between the broker and the protocols that
// clients speak. A Frontend owns sockets, framing and a protocol's rules; the
// broker owns topics. Core routing between live subscribers is the
// interest.Router that both share.
package protocol

import (
	"context"
	"net"

	"github.com/parleymq/parley/broker/interest"
)

// A Frontend serves one client protocol. Serve accepts connections until ctx
// ends, tells clients to move on (lame duck), waits for its connections within
// the drain time it was configured with, and returns nil.
type Frontend interface {
	Name() string
	Serve(ctx context.Context, l net.Listener, b Broker) error
}

// Broker is what a front end calls.
type Broker interface {
	// Info is the broker's identity and limits as they are now.
	Info() Info

	// Changed returns a channel that is closed when Info next changes.
	Changed() <-chan struct{}

	// Router routes messages to live subscribers.
	Router() *interest.Router

	// Attach opens the broker's side of one client connection.
	Attach(Client) Session
}

// Client describes a connection to the broker.
type Client struct {
	ID       uint64
	Protocol string
	Remote   string
	Name     string
	User     string

	// Stalled is called by the session, from within Publish, before it waits:
	// the front end then sends what it would have gathered until the end of the
	// read. It may be nil.
	Stalled func()

	// Close ends the connection, with a last word to the client. Any goroutine
	// may call it. It may be nil.
	Close func(reason string)
}

// Info of a broker.
type Info struct {
	ServerID   string // incarnation
	ServerName string
	Cluster    string
	Version    string
	Advertise  string   // host:port of the client listener, "" as accepted
	Peers      []string // client addresses of the other brokers
	MaxPayload int64
	LameDuck   bool
}

// Disposition says what Publish did with a message.
type Disposition uint8

const (
	// NotTaken: no topic binds the subject and it is no request to the broker.
	// Live subscribers are all there is.
	NotTaken Disposition = iota
	// Taken: an appender has the record, or it was refused; either way the
	// answer goes to the reply subject, if there is one. Live subscribers get
	// the message too.
	Taken
	// Consumed: a request to the broker itself. It goes to nobody else.
	Consumed
)

// A Session is the broker's side of one connection, called from the one
// goroutine that reads that connection.
type Session interface {
	// Publish offers a message to the broker's topics and to its API. It copies
	// what it keeps. It may block while an appender is full, for a bounded
	// time: that is the backpressure, so a front end doesn't read on meanwhile.
	// Replies are routed to m.Reply through the Router.
	Publish(m *interest.Message) Disposition

	// Flush marks the end of what was read in one go: appenders touched since
	// the last Flush start their batch.
	Flush()

	// Close ends the session: waiting requests of this connection are dropped.
	Close()
}
