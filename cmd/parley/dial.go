package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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
	if err != nil {
		return nil, fmt.Errorf("%w: is a broker running there? (see --server)", err)
	}
	return cl, nil
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
	return do(ctx, c)
}

func closeClient(c *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = c.Close(ctx) // what it failed to flush was reported record by record
}
