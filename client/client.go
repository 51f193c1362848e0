package client

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Client is a connection to a Parley cluster. It is safe for concurrent use. Close
// it when it is no longer needed.
//
// It has one connection for requests and publishes and, from the first Reader on,
// a second one for fetches, so that acks don't queue behind megabytes of records; in a
// cluster, up to two more for each broker that leads partitions it works with.
type Client struct {
	cfg *config

	publishes *routes // and all other requests
	dialRead  func(ctx context.Context) (exchange, error)
	open      func(ctx context.Context, address string, lost func()) (exchange, error) // see routes

	topics *topics

	readOnce sync.Mutex // held while the connection for fetches is made

	mu      sync.Mutex
	fetches *routes             // guarded by mu; nil before the first Reader
	members map[member]struct{} // guarded by mu; open Producers and Readers
	up      chan struct{}       // guarded by mu; closed and replaced when a connection comes back
	closing chan struct{}       // closed by the first Close
	closed  bool                // guarded by mu
}

// member is something that lives on a Client.
type member interface {
	Close(context.Context) error
	connected() // a connection came back: don't wait for the next try
}

// Connect dials a broker. urls is one or more addresses, separated by commas:
// nats://127.0.0.1:4222 or plain host:port; any broker of the cluster will do. ctx
// bounds the dialling only. Once connected, a Client finds its way back for ever.
func Connect(ctx context.Context, urls string, opts ...Option) (*Client, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	c := newClient(cfg)
	l, err := dial(ctx, urls, cfg, c.connected)
	if err != nil {
		return nil, err
	}
	c.dialRead = func(ctx context.Context) (exchange, error) {
		return dial(ctx, everyURL(urls, c.topics.known()), cfg, c.connected)
	}
	c.open = func(ctx context.Context, address string, lost func()) (exchange, error) {
		url, err := directURL(urls, address)
		if err != nil {
			return nil, err
		}
		return dialOnce(ctx, url, cfg, lost)
	}
	c.start(l)
	return c, nil
}

// newClient returns a Client without an exchange; start gives it one.
func newClient(cfg *config) *Client {
	return &Client{
		cfg:     cfg,
		members: make(map[member]struct{}),
		up:      make(chan struct{}),
		closing: make(chan struct{}),
	}
}

func (c *Client) start(x exchange) {
	c.publishes = newRoutes(c, x, c.open)
	c.topics = newTopics(c)
}

// requests returns a connection for requests that any broker answers.
func (c *Client) requests() exchange { return c.publishes.any() }

// fetchRoutes are for reading. The first call dials.
func (c *Client) fetchRoutes(ctx context.Context) (*routes, error) {
	c.readOnce.Lock()
	defer c.readOnce.Unlock()
	c.mu.Lock()
	r, closed := c.fetches, c.closed
	c.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if r != nil {
		return r, nil
	}
	x, err := c.dialRead(ctx)
	if err != nil {
		return nil, err
	}
	r = newRoutes(c, x, c.open)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		r.close()
		return nil, ErrClosed
	}
	c.fetches = r
	c.mu.Unlock()
	return r, nil
}

// keep drops the connections to brokers that are no longer known.
func (c *Client) keep(known map[string]string) {
	c.publishes.keep(known)
	c.mu.Lock()
	fetches := c.fetches
	c.mu.Unlock()
	if fetches != nil {
		fetches.keep(known)
	}
}

// connected wakes everybody who waits before trying again.
func (c *Client) connected() {
	c.mu.Lock()
	close(c.up)
	c.up = make(chan struct{})
	members := make([]member, 0, len(c.members))
	for m := range c.members {
		members = append(members, m)
	}
	c.mu.Unlock()
	for _, m := range members {
		m.connected()
	}
}

// pause waits for d, or until a connection comes back.
func (c *Client) pause(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	up := c.up
	c.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-up:
	case <-c.closing:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (c *Client) join(m member) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.members[m] = struct{}{}
	return nil
}

func (c *Client) leave(m member) {
	c.mu.Lock()
	delete(c.members, m)
	c.mu.Unlock()
}

// Close closes all subscriptions, which finish what is in hand, Producers, which flush what they hold, and Readers, then the
// connections. When ctx ends before everything is flushed, what is left fails
// with ErrClosed and Close returns ctx's error. It is safe to call again.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	members := make([]member, 0, len(c.members))
	for m := range c.members {
		members = append(members, m)
	}
	c.mu.Unlock()

	// 1. Subscriptions, whose handlers may publish; then Producers and Readers; all of a kind at once, as each may need
	// a round trip.
	errs := make([]error, len(members))
	for _, consumers := range []bool{true, false} {
		var wg sync.WaitGroup
		for i, m := range members {
			if _, ok := m.(*Subscription); ok == consumers {
				wg.Go(func() { errs[i] = m.Close(ctx) })
			}
		}
		wg.Wait()
	}

	// 2. Whoever waits to try again, and the metadata.
	close(c.closing)
	c.topics.close()

	// 3. The connections.
	c.readOnce.Lock()
	fetches := c.fetches
	c.readOnce.Unlock()
	c.publishes.close()
	if fetches != nil {
		fetches.close()
	}
	return errors.Join(errs...)
}
