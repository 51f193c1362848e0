package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parleymq/parley/client"
)

// clusterProcess is one parleyd of a proof's cluster.
type clusterProcess struct {
	brokerProcess
	index   int
	name    string
	peer    string
	logPath string
	args    []string
	pid     atomic.Int64 // 0 while it is down
}

// processCluster is the brokers of a proof and the network between them.
type processCluster struct {
	members []*clusterProcess
	network *network
}

// stopLimit is how long a broker may take for a graceful stop.
const stopLimit = 35 * time.Second

// newProcessCluster prepares brokers b1, b2, … below dir; none runs yet.
func newProcessCluster(command []string, dir string, brokers int) (*processCluster, error) {
	c := &processCluster{}
	c.network = newNetwork(brokers, func(i int) int { return int(c.members[i].pid.Load()) })
	var list, advertised []string
	for i := range brokers {
		name := fmt.Sprintf("b%d", i+1)
		b, err := newBrokerProcess(command, filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		m := &clusterProcess{brokerProcess: brokerProcess{command: b.command, dir: b.dir, client: b.client, http: b.http, raft: b.raft},
			index: i, name: name, logPath: filepath.Join(dir, name+".log")}
		if m.peer, err = freeAddress(); err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
	}
	for i, m := range c.members {
		peer, err := c.network.proxy(i, m.peer)
		if err != nil {
			return nil, err
		}
		raft, err := c.network.proxy(i, m.raft)
		if err != nil {
			return nil, err
		}
		list = append(list, m.name+"="+peer)
		advertised = append(advertised, peer, raft)
	}
	for i, m := range c.members {
		m.args = []string{"--name", m.name, "--data-dir", m.dir, "--listen", m.client, "--http", m.http,
			"--peer-listen", m.peer, "--raft-listen", m.raft, "--advertise-peer", advertised[2*i], "--advertise-raft", advertised[2*i+1],
			"--initial-cluster", strings.Join(list, ","), "--free-space-floor", "0", "--log-level", "debug", "--log-format", "json"}
	}
	return c, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
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

// launch starts the process without waiting until it is ready.
func (m *clusterProcess) launch() error {
	log, err := os.OpenFile(m.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", m.name, err)
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(m.command[0], append(m.command[1:len(m.command):len(m.command)], m.args...)...)
	cmd.Stderr = log
	tie(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	ended := make(chan struct{})
	m.cmd, m.ended, m.alive = cmd, ended, io.NopCloser(nil)
	m.pid.Store(int64(cmd.Process.Pid))
	go func() { // ends with the child, which kill ends
		_ = cmd.Wait() // how it ended is asked of it
		m.pid.Store(0)
		close(ended)
	}()
	return nil
}

func (m *clusterProcess) ready(ctx context.Context) bool { return m.get(ctx, "/readyz", nil) == nil }

// down says whether the process has ended, by itself or not.
func (m *clusterProcess) down() bool {
	if m.cmd == nil {
		return true
	}
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// stop is SIGTERM: it must end with status 0 in time.
func (m *clusterProcess) stop() error {
	if m.cmd == nil {
		return nil
	}
	begin := time.Now()
	_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-m.ended:
	case <-limit.C:
		_ = m.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to its log
		select {
		case <-m.ended:
		case <-time.After(2 * time.Second):
		}
		m.kill()
		return fmt.Errorf("%s did not stop within %s of SIGTERM", m.name, stopLimit)
	}
	state := m.cmd.ProcessState
	m.cmd = nil
	if !state.Success() {
		return fmt.Errorf("%s ended after SIGTERM and %.1f s with %s: %s", m.name, time.Since(begin).Seconds(), state, m.lastLog())
	}
	return nil
}

func (m *clusterProcess) signal(s syscall.Signal) {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(s) // it may have ended by itself: settle notices
	}
}

// lastLog is the end of its log.
func (m *clusterProcess) lastLog() string {
	f, err := os.Open(m.logPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.Seek(-4<<10, io.SeekEnd); err != nil {
		_, _ = f.Seek(0, io.SeekStart)
	}
	end, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return lastOf(string(end))
}

// why is what a broker says of why it isn't ready.
func (m *clusterProcess) why(ctx context.Context) string {
	if m.down() {
		return "it is down"
	}
	var out bytes.Buffer
	if err := m.getAny(ctx, "/readyz", &out); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(out.String())
}

func (m *clusterProcess) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !m.ready(ctx) {
		select {
		case <-tick.C:
		case <-m.ended:
			return fmt.Errorf("%s ended as it started: %s", m.name, m.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("%s was not ready within %s: %s", m.name, startLimit, m.why(context.WithoutCancel(ctx)))
		}
	}
	return nil
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

// getAny is get for answers that aren't 200.
func (p *brokerProcess) getAny(ctx context.Context, path string, out *bytes.Buffer) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(out, resp.Body)
	return err
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

// bounds are the metrics of where the partitions on a broker begin and end, by series.
func (m *clusterProcess) bounds(ctx context.Context) (map[string]string, error) {
	var body bytes.Buffer
	if err := m.get(ctx, "/metrics", &body); err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	all := map[string]string{}
	for line := range strings.Lines(body.String()) {
		if strings.HasPrefix(line, metricNext+"{") || strings.HasPrefix(line, metricStart+"{") {
			series, v, _ := strings.Cut(strings.TrimSpace(line), "} ")
			all[series+"}"] = v
		}
	}
	return all, nil
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
