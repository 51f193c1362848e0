package mesh

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func subscribe(t testing.TB, nc *nats.Conn, subject, queue string, f nats.MsgHandler) *nats.Subscription {
	t.Helper()
	var sub *nats.Subscription
	var err error
	if queue == "" {
		sub, err = nc.Subscribe(subject, f)
	} else {
		sub, err = nc.QueueSubscribe(subject, queue, f)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return sub
}

// ledger counts what each subscriber got.
type ledger struct {
	mu  sync.Mutex
	got map[string]map[string]int
}

func (l *ledger) add(who, what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.got == nil {
		l.got = make(map[string]map[string]int)
	}
	if l.got[who] == nil {
		l.got[who] = make(map[string]int)
	}
	l.got[who][what]++
}

func (l *ledger) total(who string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.got[who] {
		n += k
	}
	return n
}

func (l *ledger) handler(who string) nats.MsgHandler {
	return func(m *nats.Msg) { l.add(who, string(m.Data)) }
}

func TestPublishReachesEachSubscriberOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	var l ledger
	filters := map[string]bool{"orders.eu.new": true, "orders.*.new": true, "orders.>": true, ">": true, "orders.us.*": false, "orders": false}
	for i, n := range c.nodes {
		nc := n.connect(t)
		for f := range filters {
			subscribe(t, nc, f, "", l.handler(fmt.Sprintf("%d %s", i, f)))
		}
	}
	c.settled()
	for i, n := range c.nodes {
		nc := n.connect(t)
		m := nats.NewMsg("orders.eu.new")
		m.Data = []byte(strconv.Itoa(i))
		m.Header.Set("Color", "blue")
		if err := nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	// What a broker got from another one twice would show as a double delivery;
	// that nothing more comes, when a later message has come everywhere.
	until(t, "all delivered", func() bool {
		for i := range c.nodes {
			for f, matches := range filters {
				if matches && l.total(fmt.Sprintf("%d %s", i, f)) < 3 {
					return false
				}
			}
		}
		return true
	})
	for _, n := range c.nodes {
		for _, p := range n.Peers() {
			if p.Routed != 1 { // and not one for each filter
				t.Errorf("broker %d sent %d messages to broker %d, want one for all its filters", n.id, p.Routed, p.Broker)
			}
		}
	}
	for i := range c.nodes {
		for f, matches := range filters {
			who := fmt.Sprintf("%d %s", i, f)
			for j := range c.nodes {
				if n := l.got[who][strconv.Itoa(j)]; matches && n != 1 || !matches && n != 0 {
					t.Errorf("subscriber %s got message %d %d times", who, j, n)
				}
			}
		}
	}
}

func TestOrderFromOnePublisher(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	const n = 20000
	var next, wrong atomic.Int64
	subscribe(t, c.nodes[1].connect(t), "seq", "", func(m *nats.Msg) {
		if string(m.Data) != strconv.FormatInt(next.Load(), 10) {
			wrong.Add(1)
		}
		next.Add(1)
	})
	c.settled()
	nc := c.nodes[0].connect(t)
	for i := range n {
		if err := nc.Publish("seq", strconv.AppendInt(nil, int64(i), 10)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all delivered", func() bool { return next.Load() == n })
	if wrong.Load() > 0 {
		t.Errorf("%d of %d out of order", wrong.Load(), n)
	}
}

// TestRequestReply: the first request of a connection, on whose heels the reply
// comes, must find the way back, again and again.
func TestRequestReply(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	subscribe(t, c.nodes[2].connect(t), "time", "", func(m *nats.Msg) { m.Respond([]byte("noon")) })
	c.settled()
	for i := range 60 {
		nc, err := nats.Connect("nats://" + c.nodes[i%3].client)
		if err != nil {
			t.Fatal(err)
		}
		m, err := nc.Request("time", nil, 20*time.Second)
		if err != nil || string(m.Data) != "noon" {
			t.Fatalf("request %d: %v", i, err)
		}
		if len(m.Header) > 0 {
			t.Fatalf("headers: %v", m.Header)
		}
		nc.Close()
	}
}

func TestNoResponders(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	a := c.nodes[0].connect(t)
	if _, err := a.Request("nobody", nil, 20*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Fatalf("nobody there: %v", err)
	}
	nc := c.nodes[1].connect(t)
	sub := subscribe(t, nc, "some", "", func(m *nats.Msg) { m.Respond(nil) })
	c.settled()
	if _, err := a.Request("some", nil, 20*time.Second); err != nil {
		t.Fatalf("on the other broker: %v", err)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	c.settled()
	if _, err := a.Request("some", nil, 20*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Fatalf("after it left: %v", err)
	}
	subscribe(t, nc, "some", "", func(m *nats.Msg) { m.Respond(nil) })
	c.settled()
	c.both(0, 1, (*faultProxy).Cut)
	until(t, "cut noticed", func() bool { return !c.nodes[0].Peers()[0].Data })
	if _, err := a.Request("some", nil, 20*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Fatalf("cut off: %v", err)
	}
}

// TestQueueGroupIsFair: every member of the cluster gets its share, whichever
// broker the message came to.
func TestQueueGroupIsFair(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	var l ledger
	members := []int{3, 1, 2} // by broker
	all := 0
	for i, n := range c.nodes {
		for k := range members[i] {
			subscribe(t, n.connect(t), "jobs.*", "workers", l.handler(fmt.Sprintf("%d/%d", i, k)))
			all++
		}
	}
	subscribe(t, c.nodes[0].connect(t), "jobs.>", "audit", l.handler("audit"))
	subscribe(t, c.nodes[1].connect(t), "jobs.>", "", l.handler("plain"))
	c.settled()
	const n = 3000
	for i, node := range c.nodes {
		nc := node.connect(t)
		for k := range n {
			if err := nc.Publish("jobs.new", fmt.Appendf(nil, "%d-%d", i, k)); err != nil {
				t.Fatal(err)
			}
		}
	}
	workers := func() (sum int) {
		for i := range members {
			for k := range members[i] {
				sum += l.total(fmt.Sprintf("%d/%d", i, k))
			}
		}
		return sum
	}
	until(t, "all delivered", func() bool { return workers() >= 3*n && l.total("audit") >= 3*n && l.total("plain") >= 3*n })
	if workers() != 3*n || l.total("audit") != 3*n || l.total("plain") != 3*n {
		t.Errorf("workers %d, audit %d, plain %d, want %d each", workers(), l.total("audit"), l.total("plain"), 3*n)
	}
	for i := range members {
		for k := range members[i] {
			got, share := l.total(fmt.Sprintf("%d/%d", i, k)), 3*n/all
			if got < share*3/4 || got > share*5/4 {
				t.Errorf("member %d of broker %d got %d, its share is %d", k, i, got, share)
			}
		}
	}
}

// TestQueueGroupUnderChurn: members come and drain away on all brokers while
// messages are published on all of them; each is handled exactly once.
func TestQueueGroupUnderChurn(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	var l ledger
	h := l.handler("group")
	for _, n := range c.nodes {
		subscribe(t, n.connect(t), "work.>", "q", h) // one stays on each
	}
	c.settled()
	stop := make(chan struct{})
	var churn, publish sync.WaitGroup
	for _, n := range c.nodes {
		for range 2 {
			nc := n.connect(t)
			churn.Add(1)
			go func() {
				defer churn.Done()
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					sub, err := nc.QueueSubscribe([]string{"work.*", "work.x", "*.x"}[i%3], "q", h)
					if err == nil {
						err = nc.Flush()
					}
					if err == nil {
						err = sub.Drain()
					}
					if err == nil {
						err = nc.Flush()
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
	}
	const each = 4000
	for i, n := range c.nodes {
		nc := n.connect(t)
		publish.Add(1)
		go func() {
			defer publish.Done()
			for k := range each {
				if err := nc.Publish("work.x", fmt.Appendf(nil, "%d-%d", i, k)); err != nil {
					t.Error(err)
				}
				if k%100 == 0 {
					nc.Flush() //nolint:errcheck // only slows down
				}
			}
		}()
	}
	publish.Wait()
	close(stop)
	churn.Wait()
	defer func() {
		for _, n := range c.nodes {
			t.Logf("broker %d: %+v, %+v", n.id, n.Stats(), n.Peers())
		}
		t.Log(l.total("group"), len(l.got["group"]))
	}()
	until(t, "all delivered", func() bool { return l.total("group") >= 3*each })
	for i := range c.nodes {
		for k := range each {
			if n := l.got["group"][fmt.Sprintf("%d-%d", i, k)]; n != 1 {
				t.Fatalf("message %d-%d handled %d times", i, k, n)
			}
		}
	}
	for _, n := range c.nodes {
		if s := n.Stats(); s.LostGroups > 0 {
			t.Errorf("broker %d lost %d", n.id, s.LostGroups)
		}
	}
}

// TestStrandedGroupMessageGoesOn: a message sent to a broker whose last member
// has just gone finds the member elsewhere. The link is stalled so that it surely
// comes too late.
func TestStrandedGroupMessageGoesOn(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	var l ledger
	nc := c.nodes[1].connect(t)
	sub := subscribe(t, nc, "one", "q", l.handler("gone"))
	c.settled()
	c.both(0, 1, (*faultProxy).Stall)
	a := c.nodes[0].connect(t)
	for i := range 10 {
		if err := a.Publish("one", strconv.AppendInt(nil, int64(i), 10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	subscribe(t, c.nodes[2].connect(t), "one", "q", l.handler("there"))
	c.nodes[1].knows(t, c.nodes[2])
	c.both(0, 1, (*faultProxy).Flow)
	until(t, "handed on", func() bool { return l.total("there") == 10 })
	if n := l.total("gone"); n > 0 {
		t.Errorf("%d went to a member that had left", n)
	}
}
