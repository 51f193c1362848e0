package epoch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// world is a cluster in one process, over a network that loses, repeats, delays and
// cuts. It is made for a bubble of synctest, where time is virtual.
type world struct {
	t *testing.T

	mu           sync.Mutex
	rng          *rand.Rand
	nodes        map[uint64]*node
	byAddress    map[string]*node
	cut          map[[2]uint64]bool
	drop, repeat float64
	delay        time.Duration // at most
	times        Times
	refusals     map[paxos.Reason]int
	inspect      func(from *node, msg []byte) // of each message that leaves
}

func newWorld(t *testing.T, seed uint64) *world {
	return &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), nodes: map[uint64]*node{}, byAddress: map[string]*node{},
		cut: map[[2]uint64]bool{}, delay: time.Millisecond, refusals: map[paxos.Reason]int{}}
}

func (w *world) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.Float64() < p
}

func (w *world) intn(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) int64n(n int64) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.Int64N(n)
}

// node is one broker's data directory, and the life it leads.
type node struct {
	w       *world
	id      uint64
	self    config.Broker
	genesis func() *config.Config
	seeds   []string

	mu    sync.Mutex
	dir   *memoryDirectory
	c     *Cluster // nil while it is down
	line  *line
	fatal []error
	waits []string
}

// line is the transport of one life.
type line struct {
	n    *node
	dead atomic.Bool
}

func (l *line) Send(to uint64, msg []byte) {
	w := l.n.w
	if w.inspect != nil && !l.dead.Load() {
		w.inspect(l.n, msg)
	}
	w.mu.Lock()
	other := w.nodes[to]
	lost := l.dead.Load() || other == nil || w.cut[[2]uint64{l.n.id, to}] || w.rng.Float64() < w.drop
	times := 1
	if w.rng.Float64() < w.repeat {
		times = 2
	}
	var delays []time.Duration
	for range times {
		delays = append(delays, time.Duration(w.rng.Int64N(int64(w.delay))+1))
	}
	w.mu.Unlock()
	if lost {
		return
	}
	for _, d := range delays {
		time.AfterFunc(d, func() {
			if c := other.life(); c != nil {
				if err := c.Deliver(l.n.id, l.n.self.Incarnation, msg); err != nil {
					w.t.Errorf("message of %d to %d: %v", l.n.id, to, err)
				}
			}
		})
	}
}

var errNobody = errors.New("connection refused")

// ask is how brokers reach each other by address.
func (n *node) ask(ctx context.Context, address, subject string, req []byte) ([]byte, error) {
	w := n.w
	w.mu.Lock()
	to := w.byAddress[address]
	lost := to == nil || w.cut[[2]uint64{n.id, to.id}] || w.cut[[2]uint64{to.id, n.id}]
	w.mu.Unlock()
	time.Sleep(time.Millisecond)
	if lost || to.life() == nil {
		return nil, errNobody
	}
	return to.life().Answer(ctx, n.self.Incarnation, subject, req)
}

func (n *node) life() *Cluster {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.c
}

func (w *world) add(id uint64, self config.Broker, genesis func() *config.Config) *node {
	n := &node{w: w, id: id, self: self, genesis: genesis, dir: newMemoryDirectory()}
	w.mu.Lock()
	w.nodes[id] = n
	w.byAddress[self.Addresses.Peer] = n
	w.mu.Unlock()
	return n
}

func (n *node) options() Options {
	return Options{
		Self: n.self, Genesis: n.genesis, Seeds: n.seeds, Ask: n.ask, Transport: n.line, Random: n.w.int64n, Times: n.w.times, dir: n.dir,
		Alive: func(id uint64) bool {
			n.w.mu.Lock()
			other := n.w.nodes[id]
			n.w.mu.Unlock()
			return other != nil && other.life() != nil
		},
		OnFatal: func(err error) { n.mu.Lock(); n.fatal = append(n.fatal, err); n.mu.Unlock() },
		OnWait:  func(why string) { n.mu.Lock(); n.waits = append(n.waits, why); n.mu.Unlock() },
		OnRefused: func(r paxos.Refusal) {
			n.w.mu.Lock()
			n.w.refusals[r.Reason]++
			n.w.mu.Unlock()
		},
	}
}

// start opens the store; the error is for tests that expect one.
func (n *node) start() error {
	n.line = &line{n: n}
	c, err := Open(n.options())
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.c = c
	n.mu.Unlock()
	return nil
}

func (n *node) stop() {
	c := n.life()
	if c == nil {
		return
	}
	n.line.dead.Store(true)
	n.mu.Lock()
	n.c = nil
	n.mu.Unlock()
	c.Close()
}

// crash is a power cut: what wasn't synced may be lost.
func (n *node) crash() {
	c := n.life()
	if c == nil {
		return
	}
	n.line.dead.Store(true)
	n.mu.Lock()
	n.c = nil
	n.w.mu.Lock()
	n.dir = n.dir.crash(n.w.rng)
	n.w.mu.Unlock()
	n.mu.Unlock()
	c.Close()
}

func (w *world) all() []*node {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*node, 0, len(w.nodes))
	for id := uint64(1); id <= 64; id++ {
		if n := w.nodes[id]; n != nil {
			out = append(out, n)
		}
	}
	return out
}

func (w *world) stop() {
	for _, n := range w.all() {
		n.stop()
	}
}

// isolate cuts a node off; whole says both ways.
func (w *world) isolate(id uint64, whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for other := range w.nodes {
		w.cut[[2]uint64{id, other}] = true
		if whole {
			w.cut[[2]uint64{other, id}] = true
		}
	}
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
	w.drop, w.repeat = 0, 0
}

func broker(name string) config.Broker {
	return config.Broker{Name: name, Incarnation: "inc-" + name, Weight: 100,
		Addresses: config.Addresses{Peer: name + ":6222", Client: name + ":4222", Raft: name + ":7222"}}
}

func list(n int) []Listed {
	var out []Listed
	for i := range n {
		name := fmt.Sprintf("b%d", i+1)
		out = append(out, Listed{name, name + ":6222"})
	}
	return out
}

// listed adds n brokers that were given the same list.
func (w *world) listed(n int) []*node {
	var nodes []*node
	for i := range n {
		nodes = append(nodes, w.add(uint64(i+1), broker(fmt.Sprintf("b%d", i+1)), func() *config.Config { return Initial(list(n)) }))
	}
	return nodes
}

// formed is a cluster of n brokers at epoch 1.
func (w *world) formed(n int) []*node {
	w.t.Helper()
	nodes := w.listed(n)
	ended := make(chan error, n)
	for _, x := range nodes {
		if err := x.start(); err != nil {
			w.t.Fatal(err)
		}
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			ended <- x.c.Bootstrap(ctx)
		}()
	}
	for range nodes {
		if err := <-ended; err != nil {
			w.t.Fatal(err)
		}
	}
	return nodes
}

// count is a change that takes a number of a counter, and who took it.
func count(tag string, got *uint64) func(*config.Config) error {
	return func(next *config.Config) error {
		*got = next.TakeTopic()
		next.Change = tag
		return nil
	}
}

func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
