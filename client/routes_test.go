package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// modelCluster is the model behind several brokers: each partition has a leader,
// the others forward, and brokers can be killed, paused, cut off from the client, and moved.
type modelCluster struct {
	m *model

	mu      sync.Mutex
	brokers map[string]*modelBroker
	leaders map[string][]string // by topic; a dead leader is replaced after electionTime
	dials   map[string]int
	served  map[string]int // publishes that a broker got from a client
	hops    int            // publishes that were forwarded
}

const electionTime = 900 * time.Millisecond

// modelBroker is a broker as the client sees it.
type modelBroker struct {
	c            *modelCluster
	name         string
	down, paused bool // guarded by c.mu
	unreachable  bool // for new direct connections
	mute         bool // leads and forwards, but no client hears of it; connections stand
	conns        map[*modelConn]struct{}
}

func newModelCluster(seed uint64, f faults, topics map[string]int, brokers int) *modelCluster {
	c := &modelCluster{
		m: newModel(seed, f, topics), brokers: map[string]*modelBroker{}, leaders: map[string][]string{},
		dials: map[string]int{}, served: map[string]int{},
	}
	for i := range brokers {
		name := fmt.Sprintf("b%d", i+1)
		c.brokers[name] = &modelBroker{c: c, name: name, conns: map[*modelConn]struct{}{}}
	}
	for topic, n := range topics {
		for i := range n {
			c.leaders[topic] = append(c.leaders[topic], fmt.Sprintf("b%d", i%brokers+1))
		}
	}
	c.m.metadata = c.metadata
	return c
}

// client connects to b1.
func (c *modelCluster) client(opts ...Option) *Client {
	cfg, err := newConfig(opts)
	if err != nil {
		panic(err)
	}
	cl := newClient(cfg)
	base := func() *modelConn {
		x := &modelConn{c: c, b: c.brokers["b1"], waiting: map[uint64]waiter{}, base: true, onUp: cl.connected}
		c.mu.Lock()
		x.b.conns[x] = struct{}{}
		c.mu.Unlock()
		return x
	}
	cl.dialRead = func(context.Context) (exchange, error) { return base(), nil }
	cl.open = func(ctx context.Context, address string, lost func()) (exchange, error) {
		b := c.brokers[strings.TrimSuffix(address, ":4222")]
		c.mu.Lock()
		c.dials[b.name]++
		dead := b.down || b.paused || b.unreachable
		c.mu.Unlock()
		if dead {
			t := time.NewTimer(500 * time.Millisecond)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			return nil, errors.New("no way")
		}
		x := &modelConn{c: c, b: b, waiting: map[uint64]waiter{}, lost: lost, open: true}
		c.mu.Lock()
		b.conns[x] = struct{}{}
		c.mu.Unlock()
		return x, nil
	}
	cl.start(base())
	return cl
}

// metadata is what a live broker says. m.mu is held.
func (c *modelCluster) metadata(q wire.MetadataRequest) (brokers []wire.BrokerAddress, leaders map[string][]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.brokers {
		brokers = append(brokers, wire.BrokerAddress{Name: name, Address: name + ":4222"})
	}
	leaders = map[string][]string{}
	for _, topic := range q.Topics {
		leaders[topic] = slices.Clone(c.leaders[topic])
	}
	return brokers, leaders
}

// elect gives the partitions of a broker that is gone to others, after a while.
func (c *modelCluster) elect(gone string) {
	time.AfterFunc(electionTime, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		var live []string
		for name, b := range c.brokers {
			if !b.down && !b.paused {
				live = append(live, name)
			}
		}
		if b := c.brokers[gone]; len(live) == 0 || !b.down && !b.paused {
			return
		}
		slices.Sort(live)
		for _, leaders := range c.leaders {
			for i, name := range leaders {
				if name == gone {
					leaders[i] = live[i%len(live)]
				}
			}
		}
	})
}

// kill ends a broker; its connections break.
func (c *modelCluster) kill(name string) {
	c.mu.Lock()
	b := c.brokers[name]
	b.down, b.paused = true, false
	conns := b.conns
	b.conns = map[*modelConn]struct{}{}
	c.mu.Unlock()
	for x := range conns {
		x.fail()
	}
	c.elect(name)
}

// pause stops a broker in its tracks: connections stand, nothing comes back. The
// client's pings find out after pingOut.
func (c *modelCluster) pause(name string) {
	const pingOut = 6 * time.Second
	c.mu.Lock()
	b := c.brokers[name]
	b.paused = true
	conns := make([]*modelConn, 0, len(b.conns))
	for x := range b.conns {
		conns = append(conns, x)
	}
	c.mu.Unlock()
	c.elect(name)
	time.AfterFunc(pingOut, func() {
		c.mu.Lock()
		still := b.paused
		if still {
			for _, x := range conns {
				delete(b.conns, x)
			}
		}
		c.mu.Unlock()
		if still {
			for _, x := range conns {
				x.fail()
			}
		}
	})
}

// revive ends all trouble of a broker.
func (c *modelCluster) revive(name string) {
	c.mu.Lock()
	b := c.brokers[name]
	b.down, b.paused, b.unreachable, b.mute = false, false, false, false
	c.mu.Unlock()
}

// transfer moves a partition's leadership.
func (c *modelCluster) transfer(topic string, partition int, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaders[topic][partition] = to
}

// modelConn is one connection to a broker. A base connection finds another broker when its
// own is gone, as nats.go does with several addresses.
type modelConn struct {
	c    *modelCluster
	b    *modelBroker // guarded by c.mu
	base bool
	lost func()
	onUp func()

	mu      sync.Mutex
	open    bool
	closed  bool
	waiting map[uint64]waiter
	token   uint64
}

func (x *modelConn) maxPayload() int { return wire.MaxPayload }
func (x *modelConn) broker() string {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	return x.b.name
}

func (x *modelConn) up() bool {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	_, ok := x.b.conns[x]
	return ok
}

func (x *modelConn) forget(token uint64) {
	x.mu.Lock()
	delete(x.waiting, token)
	x.mu.Unlock()
}

func (x *modelConn) close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.c.mu.Lock()
	delete(x.b.conns, x)
	x.c.mu.Unlock()
	x.drop()
}

func (x *modelConn) drop() {
	x.mu.Lock()
	waiting := x.waiting
	x.waiting = map[uint64]waiter{}
	x.mu.Unlock()
	for _, w := range waiting {
		w.to.answered(w.tag, reply{err: lost("connection lost")})
	}
}

func (x *modelConn) fail() {
	x.drop()
	x.mu.Lock()
	closed := x.closed
	x.mu.Unlock()
	if closed {
		return
	}
	if !x.base {
		x.lost()
		return
	}
	x.reconnect()
}

func (x *modelConn) reconnect() {
	time.AfterFunc(100*time.Millisecond, func() {
		x.mu.Lock()
		closed := x.closed
		x.mu.Unlock()
		if closed {
			return
		}
		c := x.c
		c.mu.Lock()
		var live []*modelBroker
		for _, b := range c.brokers {
			if !b.down && !b.paused {
				live = append(live, b)
			}
		}
		if len(live) > 0 {
			slices.SortFunc(live, func(a, b *modelBroker) int { return strings.Compare(a.name, b.name) })
			x.b = live[0]
			x.b.conns[x] = struct{}{}
		}
		c.mu.Unlock()
		if len(live) == 0 {
			x.reconnect()
			return
		}
		x.onUp()
	})
}

func (x *modelConn) request(subject string, header map[string][]string, data []byte, to receiver, tag uint64) (uint64, error) {
	c := x.c
	c.mu.Lock()
	b := x.b
	_, standing := b.conns[x]
	paused := b.paused || b.mute
	leader, isPub := "", strings.HasPrefix(subject, wire.PubPrefix)
	for _, prefix := range []string{wire.PubPrefix, wire.FetchPrefix} {
		if rest, ok := strings.CutPrefix(subject, prefix); ok {
			if topic, n, ok := wire.SplitPartition(rest); ok && int(n) < len(c.leaders[topic]) {
				leader = c.leaders[topic][n]
			}
		}
	}
	if standing && isPub {
		c.served[b.name]++
		if leader != b.name {
			c.hops++
		}
	}
	gone := leader != "" && (c.brokers[leader].down || c.brokers[leader].paused)
	c.mu.Unlock()
	if !standing {
		return 0, notSent(errors.New("no connection"))
	}
	x.mu.Lock()
	x.token++
	token := x.token
	x.waiting[token] = waiter{to, tag}
	x.mu.Unlock()
	switch {
	case paused: // silence
	case gone && leader != b.name:
		// The broker that was asked finds its leader gone.
		r := refusal(503, wire.ReasonNotLeader, true, OutcomeRejected)
		time.AfterFunc(time.Millisecond, func() { x.answered(token, r) })
	default:
		if _, err := c.m.request(subject, header, data, x, token); err != nil {
			return 0, err
		}
	}
	return token, nil
}

// answered is the model's answer on its way to the client.
func (x *modelConn) answered(token uint64, r reply) {
	x.c.mu.Lock()
	paused := x.b.paused || x.b.mute
	x.c.mu.Unlock()
	if paused {
		return
	}
	x.mu.Lock()
	w, ok := x.waiting[token]
	delete(x.waiting, token)
	x.mu.Unlock()
	if ok {
		w.to.answered(w.tag, r)
	}
}

func clusterBubble(t *testing.T, seed uint64, f faults, topics map[string]int, run func(t *testing.T, ctx context.Context, c *modelCluster, cl *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		c := newModelCluster(seed, f, topics, 3)
		cl := c.client(WithRequestTimeout(5 * time.Second))
		defer func() {
			if err := cl.Close(ctx); err != nil {
				t.Errorf("close: %v", err)
			}
			time.Sleep(2 * time.Minute)
		}()
		run(t, ctx, c, cl)
	})
}

func (c *modelCluster) count(what func() int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return what()
}

// Once the leaders are known, every broker gets its own partitions' batches from the client.
func TestRoutesToLeaders(t *testing.T) {
	t.Parallel()
	clusterBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 6}, func(t *testing.T, ctx context.Context, c *modelCluster, cl *Client) {
		p := producer(t, ctx, cl)
		all := func() {
			for n := range int32(6) {
				if _, err := p.Publish(ctx, Record{Key: keyFor(n, 6), Value: []byte("x")}); err != nil {
					t.Fatal(err)
				}
			}
		}
		all() // the first go over b1 while the others are dialled
		time.Sleep(time.Second)
		before := c.count(func() int { return c.hops })
		for range 10 {
			all()
		}
		if hops := c.count(func() int { return c.hops }) - before; hops != 0 {
			t.Errorf("%d publishes were forwarded", hops)
		}
		if c.dials["b1"] != 0 || c.dials["b2"] != 1 || c.dials["b3"] != 1 {
			t.Errorf("dialled %v", c.dials)
		}
		// A leader that can't be dialled: the broker at hand forwards.
		c.mu.Lock()
		c.brokers["b2"].unreachable = true
		conns := c.brokers["b2"].conns
		c.brokers["b2"].conns = map[*modelConn]struct{}{}
		c.mu.Unlock()
		for x := range conns {
			x.fail()
		}
		start := time.Now()
		for range 10 {
			all()
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("60 publishes took %v while one leader couldn't be dialled", took)
		}
		time.Sleep(time.Minute)
		dials := c.count(func() int { return c.dials["b2"] })
		for range 60 {
			all()
			time.Sleep(time.Second)
		}
		if n := c.count(func() int { return c.dials["b2"] }) - dials; n > 20 {
			t.Errorf("dialled an unreachable broker %d times in a minute", n)
		}
	})
}

// keyFor finds a key of a partition.
func keyFor(partition, partitions int32) []byte {
	for i := 0; ; i++ {
		k := []byte(strconv.Itoa(i))
		if ByKey(Record{Key: k}, partitions) == partition {
			return k
		}
	}
}

// How long a partition goes without acks when its leader is killed or stopped in its tracks.
func TestRoutesFailover(t *testing.T) {
	t.Parallel()
	for _, broker := range []string{"b1", "b2"} { // the client's own, another
		for how, most := range map[string]time.Duration{"kill": 2 * time.Second, "pause": 4 * time.Second} {
			t.Run(how+" "+broker, func(t *testing.T) {
				t.Parallel()
				clusterBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 3}, func(t *testing.T, ctx context.Context, c *modelCluster, cl *Client) {
					p := producer(t, ctx, cl)
					r, err := cl.NewReader(ctx, "t", FromEarliest())
					if err != nil {
						t.Fatal(err)
					}
					n := int32(broker[1] - '1')
					key := keyFor(n, 3)
					publishKey := func() time.Duration {
						start := time.Now()
						if _, err := p.Publish(ctx, Record{Key: key, Value: []byte("x")}); err != nil {
							t.Fatal(err)
						}
						return time.Since(start)
					}
					for range 20 {
						publishKey()
						for other := range int32(3) { // connections to all are up
							if _, err := p.Publish(ctx, Record{Key: keyFor(other, 3), Value: []byte("x")}); err != nil {
								t.Fatal(err)
							}
						}
						time.Sleep(20 * time.Millisecond)
					}
					if how == "kill" {
						c.kill(broker)
					} else {
						c.pause(broker)
					}
					start := time.Now()
					if d := publishKey(); d > most {
						t.Errorf("%s of %s: no ack for %v", how, broker, d)
					} else {
						t.Logf("%s of %s: no ack for %v", how, broker, d)
					}
					for range 81 {
						if _, err := r.Next(ctx); err != nil {
							t.Fatal(err)
						}
					}
					if d := time.Since(start); d > most+6*time.Second {
						t.Errorf("%s of %s: read after %v", how, broker, d)
					}
					c.revive(broker)
					publishKey()
					if err := r.Close(ctx); err != nil {
						t.Fatal(err)
					}
				})
			})
		}
	}
}

// A connection that brings no answers is left for one to a broker that forwards, though its
// broker leads on and the connection stands; and taken again when it works.
func TestRoutesAroundSilence(t *testing.T) {
	t.Parallel()
	const most = 4 * time.Second
	for _, broker := range []string{"b1", "b2"} { // the client's own, another
		t.Run(broker, func(t *testing.T) {
			t.Parallel()
			clusterBubble(t, 1, faults{delay: time.Millisecond}, map[string]int{"t": 3}, func(t *testing.T, ctx context.Context, c *modelCluster, cl *Client) {
				p := producer(t, ctx, cl)
				all := func() (longest time.Duration) {
					for n := range int32(3) {
						start := time.Now()
						if _, err := p.Publish(ctx, Record{Key: keyFor(n, 3), Value: []byte("x")}); err != nil {
							t.Fatal(err)
						}
						longest = max(longest, time.Since(start))
					}
					return longest
				}
				for range 20 {
					all()
					time.Sleep(20 * time.Millisecond)
				}
				mute := func(yes bool) {
					c.mu.Lock()
					c.brokers[broker].mute = yes
					c.mu.Unlock()
				}
				mute(true)
				if d := all(); d > most {
					t.Errorf("no ack for %v", d)
				} else {
					t.Logf("no ack for %v", d)
				}
				for range 300 {
					if d := all(); d > 100*time.Millisecond {
						t.Errorf("no ack for %v although it was known that the broker is silent", d)
					}
					time.Sleep(100 * time.Millisecond)
				}
				mute(false)
				time.Sleep(metadataEvery)
				before := c.count(func() int { return c.hops })
				for range 10 {
					all()
				}
				if hops := c.count(func() int { return c.hops }) - before; hops != 0 {
					t.Errorf("%d publishes were forwarded when the silence was over", hops)
				}
			})
		})
	}
}

// Of what brokers say of a leader the newest term counts, whoever comes last.
func TestTopicViewLed(t *testing.T) {
	t.Parallel()
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		name            string
		known           leading
		broker          string
		term            uint64
		after           time.Duration // since known was heard
		want            string
		moved, outdated bool
	}{
		{name: "first", broker: "b1", term: 3, want: "b1", moved: true},
		{name: "nobody yet", broker: "", term: 3, want: ""},
		{name: "newer", known: leading{broker: "b1", term: 3}, broker: "b2", term: 4, want: "b2", moved: true},
		{name: "the same", known: leading{broker: "b1", term: 3}, broker: "b1", term: 3, want: "b1"},
		{name: "led again", known: leading{broker: "b1", term: 3}, broker: "b1", term: 5, want: "b1"},
		{name: "older", known: leading{broker: "b2", term: 4}, broker: "b1", term: 3, want: "b2", outdated: true},
		{name: "out of sight", known: leading{broker: "b2", term: 4}, broker: "", term: 4, want: "b2", outdated: true},
		{name: "out of sight, newer", known: leading{broker: "b2", term: 4}, broker: "", term: 5, want: "b2", outdated: true},
		{name: "older, but nobody has confirmed the newer", known: leading{broker: "b2", term: 4}, broker: "b1", term: 1, after: leaderTrust, want: "b1", moved: true},
		{name: "gone for long", known: leading{broker: "b2", term: 4}, broker: "", term: 4, after: leaderTrust, want: ""},
		{name: "brokers that tell no terms", known: leading{broker: "b2"}, broker: "b1", want: "b1", moved: true},
	} {
		v := &topicView{name: "t"}
		if c.known.broker != "" {
			c.known.heard = start
			v.leaders.Store(&[]leading{c.known})
		}
		md := wire.TopicMetadata{Name: "t", Leaders: []string{c.broker}}
		if c.term != 0 {
			md.Terms = []uint64{c.term}
		}
		moved, outdated := v.led(&md, start.Add(c.after))
		if got := v.leader(0); got != c.want || moved != c.moved || outdated != c.outdated {
			t.Errorf("%s: leader %q, moved %v, outdated %v, want %q, %v, %v", c.name, got, moved, outdated, c.want, c.moved, c.outdated)
		}
	}
}

// TestRoutesOnABadDay: order and no duplicates while leaders move and brokers are killed, paused,
// and cut off. PARLEY_SEEDS and PARLEY_SEED as for the others.
func TestRoutesOnABadDay(t *testing.T) {
	t.Parallel()
	seeds, first := 30, uint64(1)
	if s, err := strconv.Atoi(os.Getenv("PARLEY_SEEDS")); err == nil {
		seeds = s
	}
	if s, err := strconv.ParseUint(os.Getenv("PARLEY_SEED"), 10, 64); err == nil {
		seeds, first = 1, s
	}
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			badClusterDay(t, seed)
		})
	}
}

func badClusterDay(t *testing.T, seed uint64) {
	f := faults{dropAnswer: 0.01, dropRequest: 0.01, twice: 0.01, refuse: 0.02, unsure: 0.01, delay: 10 * time.Millisecond, stray: 0.3}
	const partitions, records = 4, 400
	clusterBubble(t, seed, f, map[string]int{"t": partitions}, func(t *testing.T, ctx context.Context, c *modelCluster, cl *Client) {
		rng, pace := rand.New(rand.NewPCG(seed, 99)), rand.New(rand.NewPCG(seed, 100))
		stop := make(chan struct{})
		var nemesis sync.WaitGroup
		nemesis.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rng.IntN(3000)) * time.Millisecond):
				}
				name := fmt.Sprintf("b%d", 1+rng.IntN(3))
				switch rng.IntN(6) {
				case 0:
					c.kill(name)
				case 1:
					c.pause(name)
				case 2:
					c.mu.Lock()
					c.brokers[name].unreachable = true
					c.mu.Unlock()
				case 3:
					c.mu.Lock()
					c.brokers[name].mute = true
					c.mu.Unlock()
				default:
					c.mu.Lock()
					live := !c.brokers[name].down && !c.brokers[name].paused
					c.mu.Unlock()
					if live {
						c.transfer("t", rng.IntN(partitions), name)
					}
				}
				select {
				case <-stop:
				case <-time.After(time.Duration(rng.IntN(8000)) * time.Millisecond):
				}
				for name := range c.brokers {
					c.revive(name)
				}
			}
		})
		p := producer(t, ctx, cl, GiveUp(30*time.Minute), BatchBytes(1024))
		unknown := map[string]bool{}
		var mu sync.Mutex
		for i := range records {
			n := int32(i % partitions)
			value := fmt.Sprintf("%d-%04d", n, i)
			err := p.SendFunc(ctx, Record{Key: keyFor(n, partitions), Value: []byte(value)}, func(_ Ack, err error) {
				if err != nil {
					var e *Error
					if !errors.As(err, &e) || e.Outcome != OutcomeUnknown {
						t.Errorf("seed %d: %s: %v", seed, value, err)
					}
					mu.Lock()
					unknown[value] = true
					mu.Unlock()
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(pace.IntN(100)) * time.Millisecond)
		}
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
		close(stop)
		nemesis.Wait()
		for name := range c.brokers {
			c.revive(name)
		}
		got := 0
		for n := range partitions {
			values := c.m.values("t", n)
			got += len(values)
			for i := 1; i < len(values); i++ {
				if values[i-1] >= values[i] {
					t.Errorf("seed %d: %s is followed by %s", seed, values[i-1], values[i])
				}
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if got > records || got < records-len(unknown) {
			t.Errorf("seed %d: %d records, want %d, of which %d may be missing", seed, got, records, len(unknown))
		}
		// Everything can be read.
		r, err := cl.NewReader(ctx, "t", UntilEnd())
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for _, err := range r.Messages(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			read++
		}
		if read != got {
			t.Errorf("seed %d: read %d of %d records", seed, read, got)
		}
		if err := r.Close(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDirectURL(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]string{
		{"nats://a:1", "b:2", "nats://b:2"},
		{"a:1,c:3", "b:2", "nats://b:2"},
		{"tls://u:p@a:1, tls://c:3", "b:2", "tls://u:p@b:2"},
		{"nats://a:1", "tls://b:2", "tls://b:2"},
		{"ws://a:1", "b:2", ""},
	} {
		if got, _ := directURL(c[0], c[1]); got != c[2] {
			t.Errorf("%s to %s: %q, want %q", c[0], c[1], got, c[2])
		}
	}
}
