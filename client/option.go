package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats.go"
)

// An Option configures Connect.
type Option func(*config) error

type config struct {
	name           string
	connectTimeout time.Duration
	requestTimeout time.Duration
	retryConnect   bool
	nats           []nats.Option
	log            func(event string, fields ...any)
	dial           func(ctx context.Context, address string) (net.Conn, error) // nil: TCP
}

func newConfig(opts []Option) (*config, error) {
	cfg := &config{
		name:           "parley-go",
		connectTimeout: 5 * time.Second,
		requestTimeout: 5 * time.Second,
		log:            func(string, ...any) {},
	}
	for _, o := range opts {
		if err := o(cfg); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

func withNATS(o nats.Option) Option {
	return func(c *config) error { c.nats = append(c.nats, o); return nil }
}

// WithName is the connection's name in the broker's logs. Default "parley-go".
func WithName(name string) Option {
	return func(c *config) error { c.name = name; return nil }
}

// WithUser gives user and password. A URL may hold them too:
// nats://user:password@host:4222.
func WithUser(user, password string) Option { return withNATS(nats.UserInfo(user, password)) }

// WithToken gives a token.
func WithToken(token string) Option { return withNATS(nats.Token(token)) }

// WithNKeyFile signs the broker's nonce with the NKey seed in a file.
func WithNKeyFile(path string) Option {
	return func(c *config) error {
		o, err := nats.NkeyOptionFromSeed(path)
		if err != nil {
			return fmt.Errorf("read nkey seed %s: %w", path, err)
		}
		c.nats = append(c.nats, o)
		return nil
	}
}

// WithTLS uses this configuration; nil means the system's roots.
func WithTLS(t *tls.Config) Option {
	if t == nil {
		return withNATS(nats.Secure())
	}
	return withNATS(nats.Secure(t))
}

// WithTLSFiles uses PEM files: the authorities that the broker's certificate must
// come from ("" for the system's), and the certificate and key to show ("" for
// none).
func WithTLSFiles(ca, cert, key string) Option {
	return func(c *config) error {
		if (cert == "") != (key == "") {
			return fmt.Errorf("client certificate %q and key %q: give both or none", cert, key)
		}
		c.nats = append(c.nats, nats.Secure())
		if ca != "" {
			c.nats = append(c.nats, nats.RootCAs(ca))
		}
		if cert != "" {
			c.nats = append(c.nats, nats.ClientCert(cert, key))
		}
		return nil
	}
}

// WithConnectTimeout bounds one dial and handshake. Default 5 s.
func WithConnectTimeout(d time.Duration) Option {
	return func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("connect timeout %s: must be positive", d)
		}
		c.connectTimeout = d
		return nil
	}
}

// WithRequestTimeout bounds one try of an administrative request, a third of one
// try of a publish, and the time of a fetch beyond what it was asked to wait.
// Default 5 s. How long it is tried in all is up to the context, or a Producer's
// give-up time.
func WithRequestTimeout(d time.Duration) Option {
	return func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("request timeout %s: must be positive", d)
		}
		c.requestTimeout = d
		return nil
	}
}

// WithConnectRetry lets Connect try until its context ends, rather than fail when
// no broker can be reached at once.
func WithConnectRetry() Option {
	return func(c *config) error { c.retryConnect = true; return nil }
}

// WithDialer opens connections, to the brokers that were given and to those that the
// cluster names: a proxy's place. TLS, when asked for, comes on top. Default TCP.
func WithDialer(dial func(ctx context.Context, address string) (net.Conn, error)) Option {
	return func(c *config) error { c.dial = dial; return nil }
}

// WithLog is told of disconnects, reconnects and batches that were given up:
// event is a sentence, fields are keys and values in turn, as for log/slog
// (slog.Default().Info has this type). It may be called from any goroutine and must
// not block.
func WithLog(log func(event string, fields ...any)) Option {
	return func(c *config) error {
		if log != nil {
			c.log = log
		}
		return nil
	}
}
