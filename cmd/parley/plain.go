package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
)

// What any NATS client can do: publishes with a message id, and the figure of
// parley bench pub --plain.

// dialPlain connects without the SDK.
func dialPlain(c connection, timeout time.Duration, opts ...nats.Option) (*nats.Conn, error) {
	opts = append(opts, nats.Name("parley"), nats.Timeout(timeout))
	switch {
	case c.User != "":
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	case c.Token != "":
		opts = append(opts, nats.Token(c.Token))
	case c.NKey != "":
		o, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("read nkey seed %s: %w", c.NKey, err)
		}
		opts = append(opts, o)
	}
	if c.TLSCA != "" {
		opts = append(opts, nats.RootCAs(c.TLSCA))
	}
	if c.TLSCert != "" {
		opts = append(opts, nats.ClientCert(c.TLSCert, c.TLSKey))
	}
	nc, err := nats.Connect(c.Server, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.Server, err)
	}
	return nc, nil
}

// plainSubject is a subject that a plain client publishes to: the topic's own
// name where it is bound, else the first subject without wildcards.
func plainSubject(d client.TopicDescription) (string, error) {
	subject := ""
	for _, s := range d.Subjects {
		if s == d.Name {
			return s, nil
		}
		if subject == "" && !strings.ContainsAny(s, "*>") {
			subject = s
		}
	}
	if subject == "" {
		return "", fmt.Errorf("topic %s has only subjects with wildcards (%s): a plain publish has no one subject to go to", d.Name, strings.Join(d.Subjects, " "))
	}
	return subject, nil
}

// pubWithID publishes one record under a message id. The id makes a retry safe,
// whatever became of the try before it.
func (a *app) pubWithID(ctx context.Context, topic, value string, s *shape, f *pubFlags, partitioned bool) error {
	rec, err := s.record([]byte(value))
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	opts := []client.PublishOption{client.MessageID(f.msgID)}
	if partitioned {
		opts = append(opts, client.OnPartition(f.partition))
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, f.giveUp)
	defer cancel()
	d, err := c.DescribeTopic(ctx, topic)
	if err != nil {
		return err
	}
	subject, err := plainSubject(d)
	if err != nil {
		return err
	}
	ack, err := c.Publish(ctx, subject, rec, opts...)
	if err != nil {
		return err
	}
	result := pubResult{Acked: 1, Bytes: int64(len(rec.Key) + len(rec.Value)), Seconds: time.Since(begin).Seconds(),
		Partition: &ack.Partition, Offset: &ack.Offset, Duplicate: ack.Duplicate}
	result.RecordsPerSec = 1 / result.Seconds
	return a.reportPub(result, 0, nil, nil)
}
