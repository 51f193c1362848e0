package partition

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/parleymq/parley/replication"
)

// loneHost is a replicated log with one replica whose proposals can be lost,
// doubled, delayed and misreported. Entries survive crash, which starts a new
// replica from whatever its state machine says is durable.
type loneHost struct {
	mu      sync.Mutex
	rng     *rand.Rand
	entries [][]byte // committed; index = position + 1
	term    uint64
	faults  faults
	log     *loneLog
	wg      sync.WaitGroup
	gate    sync.Mutex // held: nothing commits
	last    []byte     // proposed last
	barrier func(context.Context) error
}

// faults are chances in a thousand per proposal.
type faults struct {
	drop           int // refused, and said so
	lose           int // never committed, outcome unknown
	commitUnknown  int // committed, outcome unknown
	double         int // committed twice
	late           int // a copy is committed some proposals later
	busy           int // Propose itself refuses
	zombie         [][]byte
	zombiesApplied int
}

type loneLog struct {
	h       *loneHost
	sm      replication.StateMachine
	onLead  func(replication.Leadership)
	lead    replication.Leadership
	applied uint64
	closed  bool
}

func newLoneHost(seed uint64) *loneHost {
	return &loneHost{rng: rand.New(rand.NewPCG(seed, 1))}
}

func (h *loneHost) Start(_ context.Context, r replication.Replica, sm replication.StateMachine) (replication.Log, error) {
	applied, err := sm.Open(nil)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.term++
	l := &loneLog{h: h, sm: sm, onLead: r.OnLeader, applied: applied, lead: replication.Leadership{Leader: r.Replica, Term: h.term, Self: true}}
	h.log = l
	if err := l.applyLocked(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *loneLog) applyLocked() error {
	for l.applied < uint64(len(l.h.entries)) {
		es := []replication.Entry{{Index: l.applied + 1, Data: l.h.entries[l.applied]}}
		if err := l.sm.Apply(es); err != nil {
			return err
		}
		l.applied++
	}
	return nil
}

type lonePending struct {
	done chan struct{}
	r    replication.Result
	err  error
}

func (p *lonePending) Wait() (replication.Result, error) {
	<-p.done
	return p.r, p.err
}

func (p *lonePending) WaitContext(ctx context.Context) (replication.Result, error) {
	select {
	case <-p.done:
		return p.r, p.err
	case <-ctx.Done():
		return replication.Result{}, ctx.Err()
	}
}

func (l *loneLog) commit(data []byte) (replication.Result, error) {
	l.h.entries = append(l.h.entries, data)
	es := []replication.Entry{{Index: l.applied + 1, Data: data}}
	err := l.sm.Apply(es)
	l.applied++
	return es[0].Result, err
}

func (l *loneLog) Propose(data []byte, _ time.Duration) (replication.Pending, error) {
	h := l.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.closed {
		return nil, replication.ErrClosed
	}
	f := &h.faults
	if h.rng.IntN(1000) < f.busy {
		return nil, replication.ErrBusy
	}
	h.last = data
	p := &lonePending{done: make(chan struct{})}
	h.wg.Go(func() {
		h.gate.Lock()
		defer h.gate.Unlock()
		h.mu.Lock()
		defer h.mu.Unlock()
		defer close(p.done)
		if l.closed {
			p.err = replication.ErrClosed
			return
		}
		if len(f.zombie) > 0 && h.rng.IntN(3) == 0 {
			z := f.zombie[0]
			f.zombie = f.zombie[1:]
			f.zombiesApplied++
			if _, err := l.commit(z); err != nil {
				panic(err)
			}
		}
		roll := h.rng.IntN(1000)
		hit := func(n int) bool { roll -= n; return roll < 0 }
		switch {
		case hit(f.drop):
			p.err = replication.ErrDropped
			return
		case hit(f.lose):
			p.err = replication.ErrUnknown
			return
		case hit(f.commitUnknown):
			_, err := l.commit(data)
			p.err = errors.Join(replication.ErrUnknown, err)
			return
		case hit(f.late):
			f.zombie = append(f.zombie, data)
			p.err = replication.ErrUnknown
			return
		}
		p.r, p.err = l.commit(data)
		if hit(f.double) {
			if _, err := l.commit(data); err != nil {
				panic(err)
			}
		}
	})
	return p, nil
}

// elect ends the term and starts the next one, led by the same replica.
func (h *loneHost) elect() {
	h.mu.Lock()
	h.term++
	l := h.log
	l.lead.Term = h.term
	lead := l.lead
	h.mu.Unlock()
	l.onLead(replication.Leadership{Term: lead.Term})
	l.onLead(lead)
}

func (l *loneLog) Leadership() replication.Leadership {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	return l.lead
}

// depose tells the replica that another one leads.
func (h *loneHost) depose() {
	h.mu.Lock()
	h.term++
	l := h.log
	l.lead = replication.Leadership{Leader: l.lead.Leader + 1, Term: h.term}
	lead := l.lead
	h.mu.Unlock()
	l.onLead(lead)
}

func (l *loneLog) Barrier(ctx context.Context) error {
	l.h.mu.Lock()
	barrier := l.h.barrier
	l.h.mu.Unlock()
	if barrier == nil {
		return nil
	}
	return barrier(ctx)
}

func (l *loneLog) Members(context.Context) (replication.Membership, error) {
	return replication.Membership{}, nil
}
func (l *loneLog) Change(context.Context, replication.Change, uint64) error {
	return errors.New("a lone log has fixed members")
}
func (l *loneLog) Transfer(context.Context, uint64) error { return nil }

func (l *loneLog) Applied() uint64 {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	return l.applied
}

func (l *loneLog) Close() error {
	l.h.mu.Lock()
	l.closed = true
	l.h.mu.Unlock()
	l.h.wg.Wait()
	return l.sm.Close()
}

func (h *loneHost) Remove(context.Context, uint64, uint64) error { return nil }
func (h *loneHost) Close() error                                 { return nil }
