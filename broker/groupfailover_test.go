package broker_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// consumers are plain clients that take and ack what a topic has, wherever they are
// connected, and note each delivery.
type consumers struct {
	t    testing.TB
	stop atomic.Bool
	wg   sync.WaitGroup

	mu     sync.Mutex
	acked  map[string]time.Time // when the first ack was taken, by value
	newest map[string]uint64    // token of a delivery that has come
}

func consume(t testing.TB, c *brokertest.Cluster, topic, group string, o wire.GroupOptions, each int) *consumers {
	all := &consumers{t: t, acked: map[string]time.Time{}, newest: map[string]uint64{}}
	for i := range each * len(c.Brokers) {
		nc, err := nats.Connect(c.URLs(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.DontRandomize(), nats.Timeout(time.Second), nats.Name(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { all.end(); nc.Close() })
		all.wg.Go(func() {
			all.run(nc, topic, group, wire.NextRequest{Batch: 64, ExpiresMS: 100, Options: o, Member: fmt.Sprint("m", i)})
		})
	}
	return all
}

func (c *consumers) run(nc *nats.Conn, topic, group string, q wire.NextRequest) {
	for !c.stop.Load() {
		asked := time.Now()
		got, _, err := next(nc, topic, group, q)
		var e *wire.Error
		if errors.As(err, &e) && !e.Retriable {
			c.t.Errorf("next: %v", err)
			return
		}
		c.mu.Lock()
		for _, m := range got {
			v := string(m.Data)
			if at, ok := c.acked[v]; ok && asked.After(at) {
				c.t.Errorf("%q was acked and comes again", v)
			}
			c.newest[v] = max(c.newest[v], token(c.t, m))
		}
		c.mu.Unlock()
		var acks sync.WaitGroup
		for _, m := range got {
			acks.Go(func() { c.ack(nc, m) })
		}
		acks.Wait()
	}
}

func (c *consumers) end() {
	c.stop.Store(true)
	c.wg.Wait()
}

// ack repeats an ack until it is taken or refused for good.
func (c *consumers) ack(nc *nats.Conn, m *nats.Msg) {
	v := string(m.Data)
	c.mu.Lock()
	_, done := c.acked[v]
	old := c.newest[v] > token(c.t, m) && !done
	c.mu.Unlock()
	for limit := time.Now().Add(brokertest.Wait); time.Now().Before(limit); {
		answer, err := nc.Request(m.Reply, nil, 2*time.Second)
		if err == nil {
			err = brokertest.Decode(answer.Data, nil)
		}
		var e *wire.Error
		switch {
		case err == nil:
			c.mu.Lock()
			if _, done := c.acked[v]; !done {
				c.acked[v] = time.Now()
				if old {
					c.t.Errorf("%q was acked under token %d, when it had been handed out under %d", v, token(c.t, m), c.newest[v])
				}
			}
			c.mu.Unlock()
			return
		case errors.As(err, &e) && !e.Retriable:
			return // its delivery is over: it comes again
		}
	}
	c.t.Errorf("ack of %q is not answered", m.Data)
}

func (c *consumers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked)
}

// TestGroupFailover: brokers go away, with a word and without, while plain clients consume.
// Every record is acked, and what was acked doesn't come again.
func TestGroupFailover(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 3)
	load := brokertest.StartLoad(t, c.URLs(), "jobs", 2)
	group := consume(t, c, "jobs", "g", wire.GroupOptions{AckWaitMS: 1500}, 2)
	for i, how := range []string{"stop", "kill"} {
		load.More(60)
		m := c.Brokers[i]
		before := group.count()
		if how == "kill" {
			m.Kill()
		} else {
			m.Stop()
		}
		load.More(60)
		brokertest.Eventually(t, "records are acked without "+m.Name, func() bool { return group.count() > before+50 })
		m.Start()
		c.InSync("jobs")
	}
	load.Stop()
	brokertest.Eventually(t, "all records are acked", func() bool { return group.count() >= load.Acked() })
	brokertest.Eventually(t, "the group has no lag", func() bool {
		d, err := c.Brokers[0].API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "g"})
		return err == nil && d.Lag == 0
	})
	group.end()
	load.Check(c.URLs())
}
