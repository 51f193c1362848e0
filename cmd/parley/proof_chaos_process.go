package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/parleymq/parley/client"
)

// clusterProcess is one parleyd of a proof's cluster.
type clusterProcess struct {
	*brokerProcess
	index int
}

// processCluster is the brokers of a proof and the network between them.
type processCluster struct {
	members []*clusterProcess
	network *network
}

// newProcessCluster prepares brokers b1, b2, … below dir; none runs yet.
func newProcessCluster(command []string, dir string, brokers int) (*processCluster, error) {
	c := &processCluster{}
	c.network = newNetwork(brokers, func(i int) int { return int(c.members[i].pid.Load()) })
	all, err := newBrokerProcesses(command, dir, brokers)
	if err != nil {
		return nil, err
	}
	var list, advertised []string
	for i, p := range all {
		p.logPath = filepath.Join(dir, p.name+".log")
		c.members = append(c.members, &clusterProcess{p, i})
		peer, err := c.network.proxy(i, p.peer)
		if err != nil {
			return nil, err
		}
		raft, err := c.network.proxy(i, p.raft)
		if err != nil {
			return nil, err
		}
		list = append(list, p.name+"="+peer)
		advertised = append(advertised, peer, raft)
	}
	for i, p := range all {
		p.settings = []string{"--peer-listen", p.peer, "--advertise-peer", advertised[2*i], "--advertise-raft", advertised[2*i+1],
			"--initial-cluster", strings.Join(list, ","), "--free-space-floor", "0", "--log-level", "debug", "--log-format", "json"}
	}
	return c, nil
}

// close ends everything.
func (c *processCluster) close() {
	for _, m := range c.members {
		m.kill()
	}
	c.network.close()
}

func (c *processCluster) urls() string {
	var urls []string
	for _, m := range c.members {
		urls = append(urls, m.url())
	}
	return strings.Join(urls, ",")
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
