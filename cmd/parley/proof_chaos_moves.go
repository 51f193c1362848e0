package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parleymq/parley/client"
)

const (
	// moveLimit is how long one move may take, faults and all.
	moveLimit = 3 * time.Minute
	moveLook  = 50 * time.Millisecond
	// moveTurns: about one move in so many is given another target before it is done.
	moveTurns = 4
	moveAsk   = 5 * time.Second
	// moveAgain: a partition that rests somewhere else for so long was moved by somebody else.
	moveAgain = 3 * time.Second
)

// chaosMoves moves the partitions of the topic about, several at once, each by a mover of its own.
type chaosMoves struct {
	p      *chaosProof
	left   chan struct{} // a token a move
	wg     sync.WaitGroup
	cancel context.CancelFunc
	ended  chan struct{}

	mu     sync.Mutex
	busy   map[int32]bool // partitions that move
	count  int64
	turned int64
	took   histogram
	most   time.Duration
	err    error
}

// movesResult is what the moves came to.
type movesResult struct {
	Count  int64   `json:"count"`
	Turned int64   `json:"retargeted"`
	P50    float64 `json:"p50_ms"`
	P90    float64 `json:"p90_ms"`
	Max    float64 `json:"max_ms"`
}

// startMoves begins to move, if that was asked for.
func (p *chaosProof) startMoves(ctx context.Context) *chaosMoves {
	m := &chaosMoves{p: p, ended: make(chan struct{}), busy: map[int32]bool{}}
	ctx, m.cancel = context.WithCancel(ctx)
	m.left = make(chan struct{}, p.f.moves)
	for range p.f.moves {
		m.left <- struct{}{}
	}
	close(m.left)
	if p.f.moves > 0 {
		p.moves = m
		for i := range p.f.atOnce {
			rng := rand.New(rand.NewPCG(p.f.seed, 3000+uint64(i)))
			m.wg.Go(func() { m.run(ctx, rng) })
		}
	}
	go func() { // ends with the movers, which stop and wait end
		m.wg.Wait()
		close(m.ended)
	}()
	return m
}

func (m *chaosMoves) done() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

func (m *chaosMoves) wait() error {
	<-m.ended
	m.cancel()
	return m.err
}

func (m *chaosMoves) stop() error {
	m.cancel()
	<-m.ended
	return m.err
}

func (m *chaosMoves) result() *movesResult {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return &movesResult{Count: m.count, Turned: m.turned, P50: ms(m.took.percentile(0.5)), P90: ms(m.took.percentile(0.9)), Max: ms(m.most)}
}

func (r *movesResult) table(t *table) {
	t.row(str("moves"), num(r.Count))
	t.row(str("of these given another target"), num(r.Turned))
	t.row(str("a move, p50, p90, max"), rightText(fmt.Sprintf("%.0f, %.0f, %.0f ms", r.P50, r.P90, r.Max)))
}

func (m *chaosMoves) run(ctx context.Context, rng *rand.Rand) {
	for range m.left {
		part := m.take(rng)
		begin := time.Now()
		turned, err := m.move(ctx, rng, part)
		took := time.Since(begin)
		m.mu.Lock()
		delete(m.busy, part)
		if err != nil {
			if ctx.Err() == nil {
				m.err = errors.Join(m.err, err)
				m.p.audit.anomaly(&m.p.audit.failures, "%v", err)
			}
			m.mu.Unlock()
			m.cancel()
			return
		}
		m.count++
		if turned {
			m.turned++
		}
		m.took.record(took)
		m.most = max(m.most, took)
		m.mu.Unlock()
	}
}

// take picks a partition that nobody else moves: there is always one.
func (m *chaosMoves) take(rng *rand.Rand) int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if part := rng.Int32N(m.p.f.partitions); !m.busy[part] {
			m.busy[part] = true
			return part
		}
	}
}

// move moves a partition and waits until it is there.
func (m *chaosMoves) move(ctx context.Context, rng *rand.Rand, part int32) (turned bool, err error) {
	deadline := time.Now().Add(moveLimit)
	to := m.pick(rng)
	if err := m.ask(ctx, part, to, deadline); err != nil {
		return false, err
	}
	again := time.Now().Add(moveAgain)
	turn := time.Time{}
	if rng.IntN(moveTurns) == 0 {
		turn = time.Now().Add(time.Duration(rng.Int64N(int64(2 * time.Second))))
	}
	tick := time.NewTicker(moveLook)
	defer tick.Stop()
	why := ""
	for {
		left := !m.still(to) || time.Now().After(again)
		if !turn.IsZero() && time.Now().After(turn) || left {
			if !left {
				turn, turned = time.Time{}, true
			}
			again, to = time.Now().Add(moveAgain), m.pick(rng)
			if err := m.ask(ctx, part, to, deadline); err != nil {
				return turned, err
			}
		}
		d, err := m.describe(ctx, part)
		switch {
		case err != nil:
			why = err.Error()
		case d.Move == nil && slices.Equal(d.Replicas, to):
			return turned, nil
		case d.Move == nil: // brokers that come and go have the cluster move partitions, too
			why = fmt.Sprintf("it is on %s", strings.Join(d.Replicas, ","))
		default:
			why, again = d.Move.Phase+", "+d.Move.Detail, time.Now().Add(moveAgain)
		}
		if time.Now().After(deadline) {
			return turned, fmt.Errorf("partition %d did not move to %s within %s: %s", part, strings.Join(to, ","), moveLimit, why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return turned, ctx.Err()
		}
	}
}

func (m *chaosMoves) describe(ctx context.Context, part int32) (client.PartitionDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, moveAsk)
	defer cancel()
	return m.p.c.DescribePartition(ctx, chaosTopic, part)
}

// pick chooses three brokers in some order.
func (m *chaosMoves) pick(rng *rand.Rand) []string {
	var to []string
	brokers := m.p.cluster.roster()
	for _, i := range rng.Perm(len(brokers))[:3] {
		to = append(to, brokers[i])
	}
	return to
}

// still says that all of these are brokers to move to.
func (m *chaosMoves) still(to []string) bool {
	brokers := m.p.cluster.roster()
	return !slices.ContainsFunc(to, func(name string) bool { return !slices.Contains(brokers, name) })
}

// ask has the move begun, as often as it takes: while too few brokers are there nothing is decided.
func (m *chaosMoves) ask(ctx context.Context, part int32, to []string, deadline time.Time) error {
	tick := time.NewTicker(4 * moveLook)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, moveAsk)
		_, err := m.p.c.MovePartition(try, chaosTopic, part, to)
		cancel()
		if err == nil {
			return nil
		}
		var e *client.Error
		if errors.As(err, &e) && !e.Retriable && !m.still(to) {
			return nil // the next look chooses others
		}
		if errors.As(err, &e) && !e.Retriable || time.Now().After(deadline) {
			return fmt.Errorf("move partition %d to %s: %w", part, strings.Join(to, ","), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
