package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Catching up: a replica that lacks what the Raft log no longer holds gets a snapshot
// that only lists it, and fetches it from the other replicas, over the data links of
// the mesh (docs/adr/0105). A few replicas of a broker do so at once, at a bounded rate.

const (
	// chunksWait is how long one request for chunks may take.
	chunksWait = 10 * time.Second
	// supplyWait is how long one request may wait for the rate at which copies are sent; well below
	// chunksWait, or what is sent in the end would be waited for by nobody, and asked for again.
	supplyWait = chunksWait / 4
	// maxSupplies is how many requests for chunks a broker answers at once; others are
	// told that it is busy.
	maxSupplies = 8
)

// catchUps is what a broker's replicas share that fetch what they lack.
type catchUps struct {
	turns    chan struct{}
	supplies chan struct{}
	pace     pace

	fetched, supplied atomic.Uint64 // bytes
}

func newCatchUps(l Limits) *catchUps {
	return &catchUps{
		turns: make(chan struct{}, l.CatchUps), supplies: make(chan struct{}, maxSupplies),
		pace: pace{rate: l.CatchUpRate},
	}
}

// pace keeps to a rate: each take pays for what the one before it got.
type pace struct {
	rate int64 // bytes a second; negative: no limit

	mu  sync.Mutex
	due time.Time
}

// wait returns when the next bytes may come.
func (p *pace) wait(ctx context.Context) error {
	p.mu.Lock()
	left := time.Until(p.due)
	p.mu.Unlock()
	if left <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pace) took(n int) {
	if p.rate < 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(int64(n) * int64(time.Second) / p.rate))
}

// replicaPeers are the other replicas of one partition. It implements partition.Peers.
type replicaPeers struct {
	b *Broker
	s *slot
}

func (r replicaPeers) Turn(ctx context.Context) (func(), error) {
	c := r.b.catchUps
	select {
	case c.turns <- struct{}{}:
		return func() { <-c.turns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Others puts followers first: the leader has enough to do.
func (r replicaPeers) Others() []uint64 {
	lead := r.s.lead.load().broker
	var ids []uint64
	leader := uint64(0)
	for _, m := range r.s.replicas() {
		switch {
		case m.Broker == r.b.self() || !r.b.peers.alive(m.Broker):
		case m.Broker == lead:
			leader = m.ID
		default:
			ids = append(ids, m.ID)
		}
	}
	if leader != 0 {
		ids = append(ids, leader)
	}
	return ids
}

func (r replicaPeers) ask(ctx context.Context, replica uint64, subject string, req []byte) ([]byte, error) {
	all := r.s.replicas()
	at := slices.IndexFunc(all, func(m config.Replica) bool { return m.ID == replica })
	if at < 0 || r.b.peers.mesh == nil {
		return nil, mesh.ErrUnreachable
	}
	c := r.b.catchUps
	if err := c.pace.wait(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, chunksWait)
	defer cancel()
	b, err := r.b.peers.mesh.RequestData(ctx, all[at].Broker, subject, req)
	if err == nil {
		c.fetched.Add(uint64(len(b)))
		c.pace.took(len(b))
		return b, nil
	}
	var e *wire.Error
	if errors.As(err, &e) {
		for _, known := range []*partition.Error{partition.ErrTrimmed, partition.ErrDamaged, partition.ErrBusy} {
			if e.Reason == known.Reason {
				named := *known
				named.Description = r.b.brokerName(all[at].Broker) + ": " + e.Description
				return nil, &named
			}
		}
	}
	return nil, err
}

// Chunks implements partition.Peers. The request: shard, from, to, the most bytes, the asking
// replica, what it may still ask for; all uvarints.
func (r replicaPeers) Chunks(ctx context.Context, replica uint64, q partition.ChunkRequest) ([]byte, error) {
	var req []byte
	for _, v := range []uint64{r.s.shard, uint64(q.From), uint64(q.To), uint64(q.MaxBytes), q.Replica, uint64(q.Hold)} {
		req = binary.AppendUvarint(req, v)
	}
	return r.ask(ctx, replica, subjectChunks, req)
}

// Snapshot implements partition.Peers. The request is the shard.
func (r replicaPeers) Snapshot(ctx context.Context, replica uint64) ([]byte, error) {
	return r.ask(ctx, replica, subjectSnapshot, binary.AppendUvarint(nil, r.s.shard))
}

// supplier finds the replica here that a peer asks.
func (b *Broker) supplier(req []byte, n int) (p *partition.Partition, v []uint64, err error) {
	v = make([]uint64, n)
	for i := range v {
		var ok bool
		if v[i], req, ok = uvarint(req); !ok {
			return nil, nil, errBadMessage
		}
	}
	s := b.slotOf(v[0])
	if s == nil || !s.local {
		return nil, nil, &wire.Error{Code: 404, Reason: wire.ReasonUnavailable, Retriable: true, Description: "no replica of that partition is here"}
	}
	if p = s.partition.Load(); p == nil {
		return nil, nil, s.refusal()
	}
	return p, v, nil
}

func (b *Broker) answerChunks(ctx context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	select {
	case b.catchUps.supplies <- struct{}{}:
	default:
		return nil, busy("broker %s gives as many replicas what they lack as it may at once", b.c.Name)
	}
	defer func() { <-b.catchUps.supplies }()
	p, v, err := b.supplier(req, 6)
	if err != nil {
		return nil, err
	}
	tooMuch := busy("broker %s sends copies of replicas at %d bytes a second, and has too many of them to send", b.c.Name, b.c.CopyRate)
	if b.copies.late(supplyWait) { // before anything is read
		p.Hold(v[4], int64(v[5]))
		return nil, tooMuch
	}
	out, err := p.Chunks(partition.ChunkRequest{
		From: int64(v[1]), To: int64(v[2]), MaxBytes: b.copies.portion(int(min(v[3], partition.MaxSupply))), Replica: v[4], Hold: int64(v[5]),
	})
	if err != nil {
		return nil, supplyError(err)
	}
	if !b.copies.admit(ctx.Done(), len(out), supplyWait) {
		return nil, tooMuch
	}
	b.catchUps.supplied.Add(uint64(len(out)))
	return out, nil
}

func (b *Broker) answerSnapshot(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	p, _, err := b.supplier(req, 1)
	if err != nil {
		return nil, err
	}
	out, err := p.Snapshot()
	if err != nil {
		return nil, supplyError(err)
	}
	return out, nil
}

func supplyError(err error) error {
	var e *partition.Error
	if errors.As(err, &e) {
		return &wire.Error{Code: e.Code, Reason: e.Reason, Retriable: e.Retriable, Description: e.Description}
	}
	return err
}

// Figures for the metrics.
func (c *catchUps) Figures() map[string]float64 {
	return map[string]float64{
		"fetched_bytes_total":  float64(c.fetched.Load()),
		"supplied_bytes_total": float64(c.supplied.Load()),
	}
}
