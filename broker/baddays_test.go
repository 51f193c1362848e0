package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/storage"
)

// TestSecondBrokerOfAName: while a broker runs, another one of its name is refused, and nobody is disturbed.
func TestSecondBrokerOfAName(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	twin := c.Brokers[2].Config(func(c *broker.Config) { c.DataDir, c.OnListen = t.TempDir(), nil })
	anyOf(t, startAll(t, twin), "is not one of the cluster's", "doesn't know this directory")
	twin.DataDir = c.Brokers[2].Dir()
	anyOf(t, startAll(t, twin), "in use")
	load.More(20)
	load.Check(c.URLs())
}

// TestMoreReplicasThanBrokers: what can't be placed is refused by name.
func TestMoreReplicasThanBrokers(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	var e *wire.Error
	_, err := c.Brokers[0].API().TopicCreate(t.Context(), wire.TopicSpec{Name: "t", Replicas: 4})
	if !errors.As(err, &e) || e.Retriable || !strings.Contains(e.Description, "4") || !strings.Contains(e.Description, "3") {
		t.Errorf("create with 4 replicas on 3 brokers: %v", err)
	}
	l, err := c.Brokers[0].API().TopicList(t.Context(), wire.ListRequest{})
	if err != nil || len(l.Topics) != 0 {
		t.Errorf("topics %+v, %v", l, err)
	}
}

// TestSwappedPorts: a broker whose peer and Raft ports are given the wrong way round can't be reached, the
// others say why and go on, and all is well once the ports are right.
func TestSwappedPorts(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	m := c.Brokers[2]
	m.Stop()
	m.Launch(func(c *broker.Config) {
		place := c.OnListen
		c.OnListen = func(a broker.Addresses) { a.Peer, a.Raft = a.Raft, a.Peer; place(a) }
	})
	brokertest.Eventually(t, "the others say why b3 can't be reached", func() bool {
		d, err := c.Brokers[0].API().BrokerDescribe(t.Context(), wire.NameRequest{Name: "b3"})
		return err == nil && !d.Reachable && strings.Contains(d.Problem, "Raft port")
	})
	load.More(50)
	m.Stop()
	m.Start()
	c.InSync("t")
	load.Check(c.URLs())
}

// TestGarbageOnBrokersPorts: what strangers send to the peer and Raft ports disturbs nobody.
func TestGarbageOnBrokersPorts(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	for _, m := range c.Brokers {
		for _, address := range []string{m.Addresses().Peer, m.Addresses().Raft} {
			for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\xff\xfe\x00\n", strings.Repeat("\x00", 1<<16), strings.Repeat("\xff", 1<<16), "PUB a 1\r\nx\r\n"} {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(conn, garbage) // it may be cut off in the middle
				_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}
		}
	}
	load.More(50)
	c.Healthy()
	load.Check(c.URLs())
}

// sluggish is an engine that takes its time once it is told to.
type sluggish struct {
	storage.Engine
	slow *atomic.Bool
}

type sluggishStore struct {
	storage.Store
	slow *atomic.Bool
}

const (
	slowAppend = 50 * time.Millisecond
	slowSync   = 500 * time.Millisecond
)

func (e sluggish) Open(id storage.LogID, m storage.Mark) (storage.Store, error) {
	s, err := e.Engine.Open(id, m)
	if err != nil {
		return nil, err
	}
	return sluggishStore{s, e.slow}, nil
}

func (e sluggish) Sync() error {
	if e.slow.Load() {
		<-time.After(slowSync)
	}
	return e.Engine.Sync()
}

func (s sluggishStore) Append(chunks []storage.Chunk, marks []storage.IndexEntry) error {
	if s.slow.Load() {
		<-time.After(slowAppend)
	}
	return s.Store.Append(chunks, marks)
}

// TestOneDiskSlow: one broker whose disk takes long slows down what it leads and nothing else; no client
// sees an error, and it catches up.
func TestOneDiskSlow(t *testing.T) {
	t.Parallel()
	var slow atomic.Bool
	name := fmt.Sprintf("sluggish-%p", t)
	storage.Register(name, func(o storage.Options) (storage.Engine, error) {
		e, err := storage.OpenEngine("badger", o)
		return sluggish{e, &slow}, err
	})
	c := brokertest.StartCluster(t, 3, func(c *broker.Config) {
		if c.Name == "b1" {
			c.Engine, c.CheckpointEvery = name, 200*time.Millisecond
		}
	})
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	load.More(50)
	slow.Store(true)
	load.More(300)
	t.Logf("%v without an ack at the most", load.Gap().Round(time.Millisecond))
	slow.Store(false)
	load.More(50)
	c.InSync("t")
	load.Check(c.URLs())
}

// TestCouncilLost: without a majority of the council nothing about the cluster is changed, and the error says
// whom it waits for; partitions that have their majority go on. It goes on when one is back.
func TestCouncilLost(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	c.Brokers[0].CreateTopic(wire.TopicSpec{Name: "t", Partitions: 3, Replicas: 1})
	own := int32(-1)
	for _, p := range c.Describe("t").Partitions {
		if p.Replicas[0] == "b1" {
			own = p.Partition
		}
	}
	if own < 0 {
		t.Fatal("b1 has none of three partitions")
	}
	nc := c.Brokers[0].Connect()
	publish := func() error {
		_, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Data: []byte("v"), Header: nats.Header{wire.HeaderPart: {fmt.Sprint(own)}}})
		return err
	}
	c.Brokers[1].Kill()
	c.Brokers[2].Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	waits := make(chan error, 1)
	go func() {
		_, err := c.Brokers[0].API().TopicAlter(ctx, wire.TopicAlter{Name: "t", Config: map[string]string{"retention": "77h"}})
		waits <- err
	}()
	for done := false; !done; {
		if err := publish(); err != nil {
			t.Fatalf("while the change waits: %v", err)
		}
		select {
		case err := <-waits:
			var e *wire.Error
			if !errors.As(err, &e) || !e.Retriable || !strings.Contains(e.Description, "a majority of the council") ||
				!strings.Contains(e.Description, "b2") || !strings.Contains(e.Description, "publishing goes on") {
				t.Fatalf("the change: %v", err)
			}
			done = true
		default:
		}
	}
	c.Brokers[1].Start()
	brokertest.Eventually(t, "the change can be made", func() bool {
		_, err := c.Brokers[0].API().TopicAlter(t.Context(), wire.TopicAlter{Name: "t", Config: map[string]string{"retention": "78h"}})
		return err == nil
	})
	if err := publish(); err != nil {
		t.Error(err)
	}
}
