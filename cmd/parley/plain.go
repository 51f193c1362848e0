package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// What any NATS client can do, done as one: publishes with a message id, and
// the figure of parley bench pub --plain.

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

// retryPlainEvery is the pause between two tries of a publish with a message id.
const retryPlainEvery = 200 * time.Millisecond

// pubWithID publishes one record under a message id. The id makes a retry safe,
// whatever became of the try before it.
func (a *app) pubWithID(ctx context.Context, topic, value string, s *shape, f *pubFlags, partitioned bool) error {
	rec, err := s.record([]byte(value))
	if err != nil {
		return err
	}
	settings, err := a.connection()
	if err != nil {
		return err
	}
	subject := ""
	err = a.request(ctx, func(ctx context.Context, c *client.Client) error {
		d, err := c.DescribeTopic(ctx, topic)
		if err == nil {
			subject, err = plainSubject(d)
		}
		return err
	})
	if err != nil {
		return err
	}
	nc, err := dialPlain(settings, a.timeout, nats.MaxReconnects(-1), nats.ReconnectWait(retryPlainEvery))
	if err != nil {
		return err
	}
	defer nc.Close()

	m := nats.NewMsg(subject)
	m.Data = rec.Value
	m.Header.Set(wire.HeaderMsgID, f.msgID)
	if rec.Key != nil {
		m.Header.Set(wire.HeaderKey, string(rec.Key))
	}
	if partitioned {
		m.Header.Set(wire.HeaderPart, strconv.Itoa(int(f.partition)))
	}
	for _, h := range rec.Headers {
		m.Header[string(h.Key)] = append(m.Header[string(h.Key)], string(h.Value))
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, f.giveUp)
	defer cancel()
	ack, err := askUntilAcked(ctx, nc, m, a.timeout)
	if err != nil {
		return err
	}
	result := pubResult{Acked: 1, Bytes: int64(len(rec.Key) + len(rec.Value)), Seconds: time.Since(begin).Seconds(),
		Partition: &ack.Partition, Offset: &ack.Offset, Duplicate: ack.Duplicate}
	result.RecordsPerSec = 1 / result.Seconds
	return a.reportPub(result, 0, nil, nil)
}

func askUntilAcked(ctx context.Context, nc *nats.Conn, m *nats.Msg, timeout time.Duration) (wire.PubAck, error) {
	for {
		ack, err := askForAck(ctx, nc, m, timeout)
		failed := (*wire.Error)(nil)
		if err == nil || errors.As(err, &failed) && !failed.Retriable {
			return ack, err
		}
		pause := time.NewTimer(retryPlainEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ack, fmt.Errorf("publish to %s: %w", m.Subject, err)
		}
	}
}

func askForAck(ctx context.Context, nc *nats.Conn, m *nats.Msg, timeout time.Duration) (ack wire.PubAck, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return ack, err
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return ack, fmt.Errorf("the answer is no ack: %w", err)
	}
	if ack.Error != nil {
		return ack, ack.Error
	}
	return ack, nil
}
