package brokertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/client/wire"
)

// Cluster is brokers in one process, with all their real parts, on a Network.
type Cluster struct {
	Network *Network
	Brokers []*Member
	t       testing.TB
}

// Member is one broker of a Cluster. Its Broker is nil while it is stopped.
type Member struct {
	*Broker
	Name    string
	cluster *Cluster
	dir     string
	join    string // peer addresses, for a broker that the cluster didn't begin with
	options []Option
}

// StartCluster forms a cluster of n brokers named b1, b2, … and waits until all
// of them are ready. They stop when the test ends.
func StartCluster(t testing.TB, n int, options ...Option) *Cluster {
	t.Helper()
	c := NewCluster(t, n, options...)
	c.StartAll()
	return c
}

// NewCluster is StartCluster without starting anything.
func NewCluster(t testing.TB, n int, options ...Option) *Cluster {
	t.Helper()
	c := &Cluster{Network: NewNetwork(), t: t}
	for i := range n {
		c.Brokers = append(c.Brokers, &Member{Name: fmt.Sprintf("b%d", i+1), cluster: c, dir: t.TempDir(), options: options})
	}
	t.Cleanup(c.Stop)
	return c
}

// Initial is the list of the cluster's brokers.
func (c *Cluster) Initial() string {
	var list []string
	for _, m := range c.Brokers {
		if m.join == "" {
			list = append(list, m.Name+"="+peerName(m.Name))
		}
	}
	return strings.Join(list, ",")
}

// Add names a broker that is to join the cluster, with an empty directory, by any of those that
// were named before. It doesn't start it. options come after those of the cluster.
func (c *Cluster) Add(name string, options ...Option) *Member {
	c.t.Helper()
	var seeds []string
	for _, m := range c.Brokers {
		if m.Name != name {
			seeds = append(seeds, peerName(m.Name))
		}
	}
	m := &Member{Name: name, cluster: c, dir: c.t.TempDir(), join: strings.Join(seeds, ",")}
	if len(c.Brokers) > 0 {
		m.options = slices.Concat(c.Brokers[0].options, options)
	}
	c.Brokers = append(c.Brokers, m)
	return m
}

// Join is Add and Start.
func (c *Cluster) Join(name string, options ...Option) *Member {
	c.t.Helper()
	m := c.Add(name, options...)
	m.Start()
	return m
}

// Stop stops all brokers at the same time.
func (c *Cluster) Stop() {
	var wg sync.WaitGroup
	for _, m := range c.Brokers {
		wg.Go(m.Stop)
	}
	wg.Wait()
}

// Config of a member, as it starts.
func (m *Member) Config(options ...Option) broker.Config {
	c := Config(m.dir)
	c.Name = m.Name
	c.Logger = c.Logger.With().Str("broker", m.Name).Logger()
	if c.Join = m.join; c.Join == "" {
		c.InitialCluster = m.cluster.Initial()
	}
	c.AdvertisePeer, c.AdvertiseRaft = peerName(m.Name), raftName(m.Name)
	c.ReturnAfter = 300 * time.Millisecond
	dial := m.cluster.Network.dialer(m.Name)
	c.Dial = dial
	c.OnListen = func(a broker.Addresses) {
		m.cluster.Network.place(peerName(m.Name), a.Peer)
		m.cluster.Network.place(raftName(m.Name), a.Raft)
	}
	for _, o := range slices.Concat(m.options, options) {
		o(&c)
	}
	return c
}

// StartAll starts the brokers that don't run, at the same time, and waits until they are
// ready.
func (c *Cluster) StartAll(options ...Option) {
	c.t.Helper()
	var wg sync.WaitGroup
	for _, m := range c.Brokers {
		if m.Broker == nil {
			wg.Go(func() { m.Launch(options...) })
		}
	}
	wg.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
	for _, m := range c.Brokers {
		m.AwaitReady()
	}
}

// Launch starts the broker and doesn't wait until it is ready.
func (m *Member) Launch(options ...Option) {
	m.cluster.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	config := m.Config(options...)
	b, err := broker.Start(ctx, config)
	if err != nil {
		m.cluster.t.Errorf("start broker %s: %v", m.Name, err)
		return
	}
	m.Broker = &Broker{Broker: b, t: m.cluster.t, config: config}
}

// AwaitReady waits until the broker is ready.
func (m *Member) AwaitReady() {
	m.cluster.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	if err := m.Ready(ctx); err != nil {
		m.cluster.t.Fatalf("broker %s: %v", m.Name, err)
	}
}

// Start starts the broker and waits until it is ready.
func (m *Member) Start(options ...Option) {
	m.cluster.t.Helper()
	m.Launch(options...)
	if m.Broker == nil {
		m.cluster.t.FailNow()
	}
	m.AwaitReady()
}

// Stop stops the broker as an operator does: leadership is handed over, clients
// are told.
func (m *Member) Stop() {
	if m.Broker == nil {
		return
	}
	m.Broker.Stop()
	m.Broker = nil
	m.cluster.Network.place(peerName(m.Name), "")
	m.cluster.Network.place(raftName(m.Name), "")
}

// Isolate cuts the broker off from all others, or lets it back.
func (m *Member) Isolate(cut bool) {
	for _, o := range m.cluster.Brokers {
		if o == m {
			continue
		}
		if cut {
			m.cluster.Network.Cut(m.Name, o.Name)
		} else {
			m.cluster.Network.Heal(m.Name, o.Name)
		}
	}
}

// Sever unplugs the broker, so that all notice at once, or plugs it in again.
func (m *Member) Sever(severed bool) {
	for _, o := range m.cluster.Brokers {
		if o != m {
			m.cluster.Network.Sever(m.Name, o.Name, severed)
		}
	}
}

// Member returns the broker of that name.
func (c *Cluster) Member(name string) *Member {
	c.t.Helper()
	for _, m := range c.Brokers {
		if m.Name == name {
			return m
		}
	}
	c.t.Fatalf("no broker %q", name)
	return nil
}

// Forget stops a broker that the cluster has removed, and doesn't count it any more.
func (c *Cluster) Forget(name string) {
	c.t.Helper()
	m := c.Member(name)
	m.Stop()
	c.Brokers = slices.DeleteFunc(slices.Clone(c.Brokers), func(o *Member) bool { return o == m })
}

// Running lists the brokers that run.
func (c *Cluster) Running() (all []*Member) {
	for _, m := range c.Brokers {
		if m.Broker != nil {
			all = append(all, m)
		}
	}
	return all
}

// URLs of the brokers that run, for a client.
func (c *Cluster) URLs() string {
	var urls []string
	for _, m := range c.Running() {
		urls = append(urls, m.URL())
	}
	return strings.Join(urls, ",")
}

// Describe describes a topic as the first running broker sees it.
func (c *Cluster) Describe(topic string) wire.TopicDescription {
	c.t.Helper()
	d, err := c.Running()[0].API().TopicDescribe(context.Background(), wire.NameRequest{Name: topic})
	if err != nil {
		c.t.Fatalf("describe topic %s: %v", topic, err)
	}
	return d
}

// InSync waits until all replicas of a topic are in sync, as every broker sees it.
func (c *Cluster) InSync(topic string) {
	c.t.Helper()
	Eventually(c.t, "all replicas of "+topic+" are in sync", func() bool {
		for _, m := range c.Running() {
			d, err := m.API().TopicDescribe(context.Background(), wire.NameRequest{Name: topic})
			if err != nil {
				return false
			}
			for _, p := range d.Partitions {
				if p.Leader == "" || len(p.InSync) < len(p.Replicas) {
					return false
				}
			}
		}
		return true
	})
}

// Healthy waits until every broker that runs says that nothing is wrong.
func (c *Cluster) Healthy() {
	c.t.Helper()
	for _, m := range c.Running() {
		m.Health("health", func(h wire.ClusterHealth) bool { return h.Healthy })
	}
}

// Health waits until the broker's word about the cluster is as it should be: what it says follows what happens, a moment later.
func (b *Broker) Health(what string, ok func(wire.ClusterHealth) bool) {
	b.t.Helper()
	deadline := time.Now().Add(Wait)
	for {
		h, err := b.API().ClusterHealth(context.Background(), struct{}{})
		if err == nil && ok(h) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %s: %s: %+v, %v", Wait, what, h, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Kill ends the broker as if its machine went away: whatever it says from now on
// reaches nobody, and it is stopped.
func (m *Member) Kill() {
	m.Isolate(true)
	m.Stop()
	m.Isolate(false)
}
