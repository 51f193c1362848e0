package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/parleymq/parley/client"
)

// closeLimit bounds the farewell of a command that was interrupted.
const closeLimit = 2 * time.Second

// connect dials the cluster that flags, environment and contexts name.
func (a *app) connect(ctx context.Context, more ...client.Option) (*client.Client, error) {
	c, err := a.connection()
	if err != nil {
		return nil, err
	}
	return dial(ctx, c, a.timeout, more...)
}

func dial(ctx context.Context, c connection, timeout time.Duration, more ...client.Option) (*client.Client, error) {
	opts := []client.Option{client.WithName("parley"), client.WithConnectTimeout(timeout), client.WithRequestTimeout(timeout)}
	switch {
	case c.User != "":
		opts = append(opts, client.WithUser(c.User, c.Password))
	case c.Token != "":
		opts = append(opts, client.WithToken(c.Token))
	case c.NKey != "":
		opts = append(opts, client.WithNKeyFile(c.NKey))
	}
	if c.TLSCA != "" || c.TLSCert != "" || strings.Contains(c.Server, "tls://") {
		opts = append(opts, client.WithTLSFiles(c.TLSCA, c.TLSCert, c.TLSKey))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cl, err := client.Connect(ctx, c.Server, append(opts, more...)...)
	if errors.Is(err, client.ErrUnauthorized) {
		return nil, fmt.Errorf("%w: see --user, --token, --nkey and --tls-cert", err)
	}
	switch {
	case err == nil:
		return cl, nil
	case errors.Is(err, nkeys.ErrNoSeedFound):
		return nil, usagef("--nkey: %v: want a file with a line that begins with SU", err)
	case errors.Is(err, nats.ErrSecureConnWanted), errors.Is(err, nats.ErrSecureConnRequired):
		return nil, fmt.Errorf("%w: TLS is on one side only (see --tls-ca, and tls:// or nats:// in --server)", err)
	}
	return nil, fmt.Errorf("%w: is a broker running there, and is that its client port? (see --server)", err)
}

// request connects, does one thing within --timeout and closes.
func (a *app) request(ctx context.Context, do func(context.Context, *client.Client) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	err = do(ctx, c)
	if errors.Is(err, context.DeadlineExceeded) {
		a.tellProblems(c)
	}
	return err
}

// toldProblems bounds the lines about what keeps a request from being answered.
const toldProblems = 3

// tellProblems says what is wrong with the cluster after a request that waited in vain: a majority of the council that is missing looks
// like nothing but silence. The error itself comes after it, whatever is found.
func (a *app) tellProblems(c *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	health, err := c.Health(ctx)
	if err != nil {
		return
	}
	for i, p := range health.Problems {
		if i == toldProblems {
			fmt.Fprintf(a.stderr, "parley: and %d more problems\n", len(health.Problems)-i)
			return
		}
		fmt.Fprintf(a.stderr, "parley: problem: %s\n", p)
	}
}

func closeClient(c *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = c.Close(ctx) // what it failed to flush was reported record by record
}
