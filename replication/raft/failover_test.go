package raft

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication"
)

// For figures:
//
//	go test ./replication/raft -run TestFailover -v -failovers 20 -failover.logs 30 -failover.load 10s
var (
	failovers     = flag.Int("failovers", 1, "how often TestFailover takes the leaders' host away")
	failoverLogs  = flag.Int("failover.logs", 4, "logs")
	failoverLoad  = flag.Duration("failover.load", 500*time.Millisecond, "how long there is load before a host goes")
	failoverTick  = flag.Duration("failover.tick", 50*time.Millisecond, "tick")
	failoverTicks = flag.Uint64("failover.ticks", 8, "election ticks")
)

// trio is some logs on three hosts of this process.
type trio struct {
	pebble bool
	t      *testing.T
	dir    string
	logs   int
	mu     sync.Mutex
	hosts  [4]*Host
	at     [4][]replication.Log
	gone   [4]bool
	conns  map[net.Conn][2]uint64 // from, to
}

func newTrio(t *testing.T, logs int) *trio { return newTrioOf(t, logs, false) }

// newTrioOf is newTrio with directories of earlier versions, or without.
func newTrioOf(t *testing.T, logs int, pebble bool) *trio {
	c := &trio{t: t, pebble: pebble, dir: t.TempDir(), logs: logs, conns: make(map[net.Conn][2]uint64)}
	for n := uint64(1); n <= 3; n++ {
		c.open(n)
	}
	for n := uint64(1); n <= 3; n++ {
		c.start(n)
	}
	t.Cleanup(func() {
		for n := range uint64(4) {
			c.close(n)
		}
	})
	return c
}

func (c *trio) host(n uint64) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[n]
}

func (c *trio) open(n uint64) {
	cfg := Config{
		Dir: filepath.Join(c.dir, fmt.Sprint(n)), Listen: "127.0.0.1:0", Logger: zerolog.Nop(), WriteBuffer: 16 << 20,
		Tick: *failoverTick, ElectionTicks: *failoverTicks, HeartbeatTicks: *idleHeartbeat, Secret: []byte("a secret of the cluster"),
		Resolve: func(_, replica uint64) (string, bool) {
			if h := c.host(replica); h != nil {
				return h.Address(), true
			}
			return "", false
		},
		Dial:    func(ctx context.Context, address string) (net.Conn, error) { return c.dial(ctx, n, address) },
		OnFatal: func(err error) { c.t.Errorf("fatal: %v", err) },
	}
	cfg.pebble = c.pebble
	h, err := NewHost(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.hosts[n], c.gone[n] = h, false
	c.mu.Unlock()
}

func (c *trio) dial(ctx context.Context, from uint64, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for to := uint64(1); to <= 3; to++ {
		if h := c.hosts[to]; h != nil && h.Address() == address && !c.gone[from] && !c.gone[to] {
			c.conns[conn] = [2]uint64{from, to}
			return conn, nil
		}
	}
	_ = conn.Close()
	return nil, errors.New("cut off")
}

// kill ends all links of a host at once, as when its process is killed.
func (c *trio) kill(n uint64) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone[n] = true
	for conn, ends := range c.conns {
		if ends[0] == n || ends[1] == n {
			_ = conn.Close()
			delete(c.conns, conn)
		}
	}
	h := c.hosts[n]
	c.hosts[n], c.at[n] = nil, nil
	return h
}

func (c *trio) start(n uint64) {
	logs := make([]replication.Log, c.logs)
	for i := range logs {
		l, err := c.host(n).Start(c.t.Context(), replication.Replica{
			Shard: uint64(i + 1), Replica: n, Initial: map[uint64]string{1: "x", 2: "x", 3: "x"},
		}, &replayed{})
		if err != nil {
			c.t.Fatal(err)
		}
		logs[i] = l
	}
	c.mu.Lock()
	c.at[n] = logs
	c.mu.Unlock()
}

// replayed keeps nothing: after a restart everything is applied again.
type replayed struct{ discard }

func (c *trio) close(n uint64) {
	c.mu.Lock()
	h := c.hosts[n]
	c.hosts[n], c.at[n] = nil, nil
	c.mu.Unlock()
	if h != nil {
		if err := h.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

// leader of a log, as one that is up sees itself.
func (c *trio) leader(i int) (uint64, replication.Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := uint64(1); n <= 3; n++ {
		if c.at[n] != nil && c.at[n][i].Leadership().Self {
			return n, c.at[n][i]
		}
	}
	return 0, nil
}

// terms is the sum of the logs' newest terms.
func (c *trio) terms() (sum uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.logs {
		newest := uint64(0)
		for n := range c.at {
			if c.at[n] != nil {
				newest = max(newest, c.at[n][i].Leadership().Term)
			}
		}
		sum += newest
	}
	return sum
}

// commit proposes until an entry is committed; it returns how long it took.
func (c *trio) commit(i int, data []byte, stop <-chan struct{}) time.Duration {
	start := time.Now()
	for !stopped(stop) && time.Since(start) < 30*time.Second {
		if _, l := c.leader(i); l != nil {
			if p, err := l.Propose(data, time.Second); err == nil {
				if _, err := p.Wait(); err == nil {
					return time.Since(start)
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

// Leaders go with their host: others take over soon; load alone moves no leadership.
func TestFailover(t *testing.T) {
	// Not parallel: it measures time.
	c := newTrio(t, *failoverLogs)
	for i := range c.logs {
		c.commit(i, []byte("x"), nil)
	}
	var took []time.Duration
	elections := uint64(0)
	for range *failovers {
		var load sync.WaitGroup
		stop := make(chan struct{})
		var entries atomic.Int64
		data := make([]byte, 64<<10)
		before := c.terms()
		for i := range c.logs {
			load.Go(func() {
				for !stopped(stop) {
					c.commit(i, slices.Clone(data), stop)
					entries.Add(1)
				}
			})
		}
		<-time.After(*failoverLoad)
		moved := c.terms() - before
		elections += moved
		gone, _ := c.leader(0)
		led := 0
		for i := range c.logs {
			if n, _ := c.leader(i); n == gone {
				led++
			}
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		var worst time.Duration
		h := c.kill(gone)
		for i := range c.logs {
			all.Go(func() {
				d := c.commit(i, []byte("y"), nil)
				mu.Lock()
				defer mu.Unlock()
				worst = max(worst, d)
			})
		}
		all.Wait()
		close(stop)
		load.Wait()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		took = append(took, worst)
		t.Logf("%d entries of %d bytes, %d elections under load; %d of %d logs led by the host that went: all led again after %v",
			entries.Load(), len(data), moved, led, c.logs, worst)
		c.open(gone)
		c.start(gone)
		for i := range c.logs {
			c.commit(i, []byte("x"), nil)
		}
	}
	slices.Sort(took)
	t.Logf("tick %v, election %d ticks, %d logs: median %v, worst %v; %d elections under load",
		*failoverTick, *failoverTicks, c.logs, took[len(took)/2], took[len(took)-1], elections)
	// The limits leave room for a machine that does other things, too.
	if worst := took[len(took)-1]; worst > 10*time.Second {
		t.Errorf("the worst failover took %v", worst)
	}
	if elections > uint64(*failovers) {
		t.Errorf("%d elections under load", elections)
	}
}
