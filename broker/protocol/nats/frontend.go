// Package nats is the front end for NATS clients: the core NATS protocol,
// written for this broker so that a publish reaches its appender without
// another hop and backpressure is felt at the client's socket.
//
//	frontend.go     Config, Frontend
//	server.go       one listener: accepting, INFO broadcasts, lame duck, the end
//	connection.go   one client: its two goroutines, timers, closing
//	parser.go       bytes to frames, pure
//	window.go       the read buffer
//	operations.go   what each frame does
//	outbound.go     queue and writer towards the client
//	auth.go         credentials, permissions
//	info.go         INFO
//	stats.go        counters
//
// Each connection has two goroutines. The reader owns the connection: it
// parses, publishes, routes, and waits for the writer at the end. Whatever
// other goroutines may touch (the outbound queue, the subscriptions) has a
// lock; no lock is held while calling the router, the session or a socket.
package nats

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/protocol"
)

// Config of the front end. The zero value of a field stands for its default.
type Config struct {
	Logger zerolog.Logger

	// TLS makes clients switch to TLS after INFO, as NATS does it. Client
	// certificates are asked for as ClientAuth says.
	TLS *tls.Config
	// TLSFirst expects the TLS handshake before INFO.
	TLSFirst bool

	// Authenticator decides who may connect, and what for. With nil everybody
	// may, with DefaultPermissions.
	Authenticator Authenticator

	MaxConnections   int           // default 65,536
	MaxSubscriptions int           // of one connection, default 1,048,576
	MaxControlLine   int           // bytes of a control line's arguments, default 4096
	MaxPending       int64         // bytes queued for one client, default 64 MiB; then it is cut
	PingInterval     time.Duration // default 2 min
	MaxPingsOut      int           // unanswered pings that a client survives, default 2
	AuthTimeout      time.Duration // default 2 s
	TLSTimeout       time.Duration // default 2 s
	WriteDeadline    time.Duration // of one write, default 10 s

	// DrainTime is how long clients have to leave after lame duck was announced;
	// those that stay are closed one by one within it. Default 5 s, negative
	// closes them at once.
	DrainTime time.Duration

	congestedAt int64 // pending bytes at which producers wait for a consumer
}

// Limits that have no setting.
const (
	closeTimeout = 2 * time.Second        // to write what is pending on a connection that closes
	lingerTime   = 500 * time.Millisecond // for the client to read our last words before its own data makes the kernel reset the connection
	lingerBytes  = 4 << 20
	stallLimit   = 10 * time.Millisecond // that a producer waits after one burst for a congested consumer
	stuckAfter   = time.Second           // without progress a consumer is not waited for
)

func (c *Config) setDefaults() {
	def(&c.MaxConnections, 64<<10)
	def(&c.MaxSubscriptions, 1<<20)
	def(&c.MaxControlLine, 4096)
	def(&c.MaxPending, 64<<20)
	def(&c.PingInterval, 2*time.Minute)
	def(&c.MaxPingsOut, 2)
	def(&c.AuthTimeout, 2*time.Second)
	def(&c.TLSTimeout, 2*time.Second)
	def(&c.WriteDeadline, 10*time.Second)
	def(&c.DrainTime, 5*time.Second)
	c.congestedAt = c.MaxPending / 2
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Frontend implements protocol.Frontend. One may serve several listeners.
type Frontend struct {
	config  Config
	clients atomic.Uint64 // ids given out
	stats   counters
}

var _ protocol.Frontend = (*Frontend)(nil)

// New returns a front end.
func New(c Config) *Frontend {
	c.setDefaults()
	return &Frontend{config: c}
}

// Name of the protocol.
func (f *Frontend) Name() string { return "nats" }

// Stats returns the counters as they are now.
func (f *Frontend) Stats() Stats { return f.stats.read() }

// Serve implements protocol.Frontend. It owns the listener.
func (f *Frontend) Serve(ctx context.Context, l net.Listener, b protocol.Broker) error {
	s := &server{
		config: &f.config,
		front:  f,
		stats:  &f.stats,
		broker: b,
		log:    f.config.Logger,
		conns:  make(map[*conn]struct{}),
		left:   make(chan struct{}, 1),
	}
	return s.serve(ctx, l)
}
