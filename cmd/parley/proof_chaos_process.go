package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parleymq/parley/client"
)

// clusterProcess is one parleyd of a proof's cluster.
type clusterProcess struct {
	*brokerProcess
	index                int
	peerProxy, raftProxy string
	disk                 string // a file that says how large its disk is; missing: very large
	leaving              bool   // guarded by the cluster's lock
}

// clusterPlan is what a proof's cluster is made of.
type clusterPlan struct {
	brokers  int
	spares   int   // so many may join beside them
	cutBytes int64 // of each Raft log; 0: as brokers do by default
	settings []string
}

// processCluster is the brokers of a proof and the network between them.
type processCluster struct {
	plan    clusterPlan
	dir     string
	slots   []*clusterProcess // places with ports of their own, whether a broker has one or not
	network *network
	named   int // names that were given: none is given twice

	mu      sync.Mutex
	members []*clusterProcess // written by whoever makes the faults, who alone reads them without roster
}

// newProcessCluster prepares brokers b1, b2, … below dir; none runs yet.
func newProcessCluster(command []string, dir string, plan clusterPlan) (*processCluster, error) {
	c := &processCluster{plan: plan, dir: dir, named: plan.brokers}
	all, err := newBrokerProcesses(command, dir, plan.brokers+plan.spares)
	if err != nil {
		return nil, err
	}
	c.network = newNetwork(len(all), func(i int) int { return int(c.slots[i].pid.Load()) })
	var list []string
	for i, p := range all {
		m := &clusterProcess{brokerProcess: p, index: i}
		c.slots = append(c.slots, m)
		if m.peerProxy, err = c.network.proxy(i, p.peer); err != nil {
			return nil, err
		}
		if m.raftProxy, err = c.network.proxy(i, p.raft); err != nil {
			return nil, err
		}
		if i < plan.brokers {
			list = append(list, p.name+"="+m.peerProxy)
			c.members = append(c.members, m)
		}
	}
	for _, m := range c.members {
		c.place(m, m.name, "--initial-cluster", strings.Join(list, ","))
		if plan.spares > 0 { // one whose disk was wiped joins anew
			m.settings = append(m.settings, "--join", c.seeds(m))
		}
	}
	return c, nil
}

// testDiskFloor is the free space below which brokers refuse publishes. Their disks are large unless a fault makes one small.
const testDiskFloor = 128 << 20

// place gives a slot to a broker.
func (c *processCluster) place(m *clusterProcess, name string, settings ...string) {
	m.name, m.dir = name, filepath.Join(c.dir, name)
	m.logPath, m.disk = m.dir+".log", m.dir+".disk"
	m.settings = append([]string{"--peer-listen", m.peer, "--advertise-peer", m.peerProxy, "--advertise-raft", m.raftProxy,
		"--free-space-floor", fmt.Sprint(testDiskFloor), "--log-level", "debug", "--log-format", "json"}, append(c.plan.settings, settings...)...)
	m.env = []string{"PARLEY_TEST_DISK=" + m.disk}
	if c.plan.cutBytes > 0 {
		m.env = append(m.env, fmt.Sprintf("PARLEY_TEST_CUT_BYTES=%d", c.plan.cutBytes))
	}
}

// seeds are the addresses by which a broker can join.
func (c *processCluster) seeds(but *clusterProcess) string {
	var peers []string
	for _, m := range c.members {
		if m != but {
			peers = append(peers, m.peerProxy)
		}
	}
	return strings.Join(peers, ",")
}

// admit makes a new broker of a free slot, which is to join.
func (c *processCluster) admit() (*clusterProcess, error) {
	for _, m := range c.slots {
		if slices.Contains(c.members, m) {
			continue
		}
		c.named++
		c.place(m, fmt.Sprintf("b%d", c.named), "--join", c.seeds(m))
		c.mu.Lock()
		c.members = append(c.members, m)
		c.mu.Unlock()
		return m, nil
	}
	return nil, fmt.Errorf("all %d places for brokers are taken", len(c.slots))
}

// dismiss frees a broker's slot.
func (c *processCluster) dismiss(m *clusterProcess) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = slices.DeleteFunc(slices.Clone(c.members), func(o *clusterProcess) bool { return o == m })
}

// roster names the brokers to whom replicas may be moved.
func (c *processCluster) roster() (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if !m.leaving {
			names = append(names, m.name)
		}
	}
	return names
}

// leaves notes that a broker is about to leave.
func (c *processCluster) leaves(m *clusterProcess, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.leaving = yes
}

// member is the one of a name, or nil.
func (c *processCluster) member(name string) *clusterProcess {
	if i := slices.IndexFunc(c.members, func(m *clusterProcess) bool { return m.name == name }); i >= 0 {
		return c.members[i]
	}
	return nil
}

// close ends everything.
func (c *processCluster) close() {
	for _, m := range c.slots {
		m.kill()
	}
	c.network.close()
}

func (c *processCluster) urls() string {
	return strings.Join(c.addresses(), ",")
}

// addresses of all that are or may become members, for clients.
func (c *processCluster) addresses() (urls []string) {
	for _, m := range c.slots {
		urls = append(urls, m.url())
	}
	return urls
}

// start starts all brokers at once and waits for them.
func (c *processCluster) start(ctx context.Context) error {
	for _, m := range c.members {
		if err := m.launch(); err != nil {
			return err
		}
	}
	for _, m := range c.members {
		if err := m.awaitReady(ctx); err != nil {
			for _, o := range c.members { // one that ended is why the others wait
				if o.down() {
					err = fmt.Errorf("%w; %s has ended: %s", err, o.name, o.lastLog())
				}
			}
			return err
		}
	}
	return nil
}

// health asks the cluster; an error when nobody answers.
func health(ctx context.Context, c *client.Client) (client.ClusterHealth, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return c.Health(ctx)
}

// leaders says which broker leads which partition, as far as anybody knows.
func leaders(ctx context.Context, c *client.Client, topic string) map[int32]string {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	led := map[int32]string{}
	d, err := c.DescribeTopic(ctx, topic)
	if err != nil {
		return led
	}
	for _, p := range d.Partitions {
		if p.Leader != "" {
			led[p.Partition] = p.Leader
		}
	}
	return led
}

// offsets are where a replica begins and ends, as its broker's metrics write them.
type offsets struct{ start, next string }

// bounds are the metrics of where the partitions on a broker begin and end.
func (m *clusterProcess) bounds(ctx context.Context) (map[partitionName]offsets, error) {
	var body bytes.Buffer
	if err := m.get(ctx, "/metrics", &body); err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	return parseBounds(body.String()), nil
}

func parseBounds(metrics string) map[partitionName]offsets {
	all := map[partitionName]offsets{}
	for line := range strings.Lines(metrics) {
		name, rest, _ := strings.Cut(line, "{")
		if name != metricNext && name != metricStart {
			continue
		}
		labels, v, _ := strings.Cut(strings.TrimSpace(rest), "} ")
		part := partitionName{topic: label(labels, "topic"), number: label(labels, "partition")}
		at := all[part]
		if name == metricNext {
			at.next = v
		} else {
			at.start = v
		}
		all[part] = at
	}
	return all
}

// label is the value of a metric's label. Topics' names need no escapes.
func label(labels, name string) string {
	_, rest, _ := strings.Cut(","+labels, ","+name+`="`)
	v, _, _ := strings.Cut(rest, `"`)
	return v
}

// decodeAck reads the answer to a plain publish.
func decodeAck(data []byte, ack any) error {
	var failure struct{ Error *client.Error }
	if err := json.Unmarshal(data, &failure); err != nil {
		return fmt.Errorf("answer %q: %w", data, err)
	}
	if failure.Error != nil {
		return failure.Error
	}
	return errors.Join(json.Unmarshal(data, ack))
}
