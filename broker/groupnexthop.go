package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/group"
)

// nextHop is what the broker of a plain client sends to one that leads some of the
// topic's partitions, as the body of a NEXT request. The answer is messages for the
// client; which of them it gets is for the client's broker to say.
type nextHop struct {
	ID       string            `json:"id"`
	Cancel   bool              `json:"cancel,omitempty"` // the request ID is not waited for any more
	Group    string            `json:"group"`
	Member   string            `json:"member"`
	Batch    int               `json:"batch"`
	MaxBytes int               `json:"max_bytes"`
	WaitMS   int64             `json:"wait_ms"`
	Parts    []int32           `json:"parts"`
	Options  wire.GroupOptions `json:"options"`
}

// nextLeave is how long a request that was cancelled is waited for: what the other
// broker has handed out already is to be given back.
const nextLeave = time.Second

// nextThere is nextFrom for another broker.
func (b *Broker) nextThere(ctx context.Context, t *topic, o nextOwner, pull group.Pull, wait time.Duration, give func([]nextMessage)) error {
	q := nextHop{
		ID: strconv.FormatUint(b.groups.hops.Add(1), 36), Group: pull.Group, Member: pull.Member, Batch: pull.MaxMessages,
		MaxBytes: pull.MaxBytes, WaitMS: wait.Milliseconds(), Parts: o.parts, Options: wireOptions(t.name, pull.Group, &pull.Options),
	}
	body, err := json.Marshal(&q)
	if err != nil {
		return fmt.Errorf("encode request of a plain client: %w", err)
	}
	subject := wire.NextPrefix + t.name + "." + pull.Group
	call, stop := context.WithTimeout(context.WithoutCancel(ctx), wait+requestTime)
	defer stop()
	defer b.cancelHop(ctx, stop, o.broker, t.name, subject, q.ID)()
	a, err := b.loop.forward(call, o.broker, t.name, subject, body)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		var e *wire.Error
		if errors.As(err, &e) {
			return e
		}
		return forwardError(t.name, o.parts[0], err)
	}
	all, err := readNextMessages(a.payload)
	if len(all) > 0 {
		give(all)
	}
	return err
}

// cancelHop tells the other broker when ctx ends, and has its answer awaited for a
// moment. What it returns ends that.
func (b *Broker) cancelHop(ctx context.Context, stop func(), to uint64, topic, subject, id string) (end func()) {
	answered, ended := make(chan struct{}), make(chan struct{})
	go func() { // waited for by end
		defer close(ended)
		select {
		case <-answered:
			return
		case <-ctx.Done():
		}
		body, err := json.Marshal(&nextHop{ID: id, Cancel: true})
		if err == nil {
			// Where the link is down the answer is given up at once anyway.
			_ = b.forwards.send(to, topic, 0, &interest.Message{Subject: []byte(subject), Payload: body})
		}
		limit := time.NewTimer(nextLeave)
		defer limit.Stop()
		select {
		case <-answered:
		case <-limit.C:
			stop()
		}
	}()
	return func() {
		close(answered)
		<-ended
	}
}

// nextHop takes such a request from another broker.
func (s *session) nextHop(t *topic, m *interest.Message) {
	var q nextHop
	if err := json.Unmarshal(m.Payload, &q); err != nil {
		s.b.refuseGroup(aGroupRequest, m.Reply, badRequest("malformed request of a plain client's broker"))
		return
	}
	if q.Cancel {
		if cancel, ok := s.hopWaits.Load(q.ID); ok {
			cancel.(context.CancelFunc)()
		}
		return
	}
	if len(m.Reply) == 0 {
		return
	}
	for _, n := range q.Parts {
		if n < 0 || int(n) >= len(t.parts) {
			s.b.refuseGroup(aGroupRequest, m.Reply, notHere(t.name, n, "the broker that leads it has not carried out the newest epoch yet"))
			return
		}
	}
	options, err := s.b.groupOptions(t.name, q.Group, &q.Options)
	if err != nil {
		s.b.refuseGroup(aGroupRequest, m.Reply, groupError(err))
		return
	}
	if werr := s.admitFetch(); werr != nil {
		s.b.refuseGroup(aGroupRequest, m.Reply, werr)
		return
	}
	pull := group.Pull{Group: q.Group, Member: q.Member, MaxMessages: q.Batch, MaxBytes: q.MaxBytes, Options: options}
	reply := bytes.Clone(m.Reply)
	ctx, cancel := context.WithCancel(s.ctx)
	s.hopWaits.Store(q.ID, cancel)
	s.wg.Go(func() {
		defer s.leaveFetch()
		defer cancel()
		defer s.hopWaits.Delete(q.ID)
		s.b.answerHop(ctx, t, &q, pull, reply)
	})
}

var hopHeader = []byte("NATS/1.0\r\n\r\n")

func (b *Broker) answerHop(ctx context.Context, t *topic, q *nextHop, pull group.Pull, reply []byte) {
	taken := make(chan []nextMessage, len(q.Parts))
	err := b.nextHere(ctx, t, q.Parts, pull, time.Duration(q.WaitMS)*time.Millisecond, func(all []nextMessage) { taken <- all })
	close(taken)
	var body []byte
	for all := range taken {
		body = appendNextMessages(body, all)
	}
	if err != nil && len(body) == 0 && ctx.Err() == nil {
		b.refuseGroup(aGroupRequest, reply, b.gone(t, groupError(err)))
		return
	}
	b.router.Route(&interest.Message{Subject: reply, Header: hopHeader, Payload: body}, nil)
}
