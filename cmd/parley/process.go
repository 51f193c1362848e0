package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A broker as a child process, which can be killed like any other: nothing that
// the process holds in memory survives, no file is closed, no buffer written.

// brokerProcess is a broker that demo and the proofs start and kill.
type brokerProcess struct {
	command []string // what runs it, without the settings
	dir     string
	client  string // host:port
	http    string
	raft    string
	peer    string

	name     string
	settings []string // beside those that every one gets
	env      []string // variables, likewise
	logPath  string   // a file for what it writes; "": the end of it is kept, in memory

	cmd   *exec.Cmd // nil while it doesn't run
	pid   atomic.Int64
	alive io.Closer // the child's stdin: the tool's own broker ends when this closes, so no orphan stays
	log   lockedBuffer
	ended chan struct{} // closed when the child has been waited for
}

const (
	// startLimit bounds the start of a child, recovery of its log included.
	startLimit = 60 * time.Second
	// stopLimit is how long a broker may take for a graceful stop.
	stopLimit = 35 * time.Second
	startLook = 5 * time.Millisecond
)

// newBrokerProcess takes free ports. They stay the same over restarts, as those of a real broker do.
func newBrokerProcess(command []string, dir string) (*brokerProcess, error) {
	p := &brokerProcess{command: command, dir: dir, name: "b1"}
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for _, address := range []*string{&p.client, &p.http, &p.raft, &p.peer} {
		l, err := listenLow()
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		held = append(held, l)
		*address = l.Addr().String()
	}
	return p, nil
}

// Ports below those that kernels give to whoever dials: a broker that is down for a while would find its own
// taken otherwise.
const (
	lowPort  = 10_000
	highPort = 32_000
	lowTries = 1000
)

// givenPorts are those that this process has given to brokers, whether they run now or not: none gets another's.
var givenPorts sync.Map

func listenLow() (net.Listener, error) {
	low, high := portsBelow(dialPorts())
	err := errors.New("all that were tried are in use")
	for range lowTries {
		port := low + rand.IntN(high-low)
		if _, other := givenPorts.LoadOrStore(port, true); other {
			continue
		}
		l, e := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if e == nil {
			return l, nil
		}
		err = e
	}
	return nil, err
}

// portsBelow is where to look for ports when those for dialling begin at first.
func portsBelow(first int) (low, high int) {
	if first < lowPort+(highPort-lowPort)/4 {
		return lowPort, highPort // there are too few of them: it has to be by luck
	}
	return lowPort, min(highPort, first)
}

// dialPorts is the lowest port that the kernel gives to whoever dials; the usual one where it isn't known.
func dialPorts() int {
	first := highPort
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(b), &first); err != nil {
			return highPort
		}
	}
	return first
}

// newBrokerProcesses makes brokers b1, b2, … that form a cluster, in folders of dir.
// start them all at once: none is ready before the others are there.
func newBrokerProcesses(command []string, dir string, n int) ([]*brokerProcess, error) {
	all := make([]*brokerProcess, n)
	list := make([]string, n)
	for i := range all {
		name := fmt.Sprintf("b%d", i+1)
		p, err := newBrokerProcess(command, filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		p.name = name
		all[i], list[i] = p, name+"="+p.peer
	}
	for _, p := range all {
		p.settings = []string{"--peer-listen", p.peer, "--initial-cluster", strings.Join(list, ",")}
	}
	return all, nil
}

func (p *brokerProcess) url() string { return "nats://" + p.client }

// launch starts the child without waiting until it is ready.
func (p *brokerProcess) launch() error {
	args := append(p.command[1:len(p.command):len(p.command)],
		"--data-dir", p.dir, "--listen", p.client, "--http", p.http, "--raft-listen", p.raft, "--name", p.name, "--log-level", "warn")
	cmd := exec.Command(p.command[0], append(args, p.settings...)...)
	if len(p.env) > 0 {
		cmd.Env = append(os.Environ(), p.env...)
	}
	cmd.Stderr = &p.log
	if p.logPath != "" {
		log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return fmt.Errorf("open the log of broker %s: %w", p.name, err)
		}
		defer log.Close() // the child has its own descriptor
		cmd.Stderr = log
	}
	tie(cmd)
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start broker %s: %w", p.name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.alive, p.ended = cmd, stdin, ended
	p.pid.Store(int64(cmd.Process.Pid))
	go func() { // ends with the child, which kill ends
		_ = cmd.Wait() // how it ended shows in its state, and in what it wrote
		p.pid.Store(0)
		close(ended)
	}()
	return nil
}

// start starts the child and waits until it is ready.
func (p *brokerProcess) start(ctx context.Context) error {
	if err := p.launch(); err != nil {
		return err
	}
	if err := p.awaitReady(ctx); err != nil {
		p.kill()
		return err
	}
	return nil
}

func (p *brokerProcess) ready(ctx context.Context) bool { return p.get(ctx, "/readyz", nil) == nil }

func (p *brokerProcess) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(startLook)
	defer tick.Stop()
	for !p.ready(ctx) {
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("broker %s ended as it started: %s", p.name, p.lastLog())
		case <-ctx.Done():
			if err := ctx.Err(); errors.Is(err, context.Canceled) {
				return fmt.Errorf("wait for broker %s: %w", p.name, err)
			}
			return fmt.Errorf("broker %s was not ready within %s: %s; its log ends with %s", p.name, startLimit, p.why(context.WithoutCancel(ctx)), p.lastLog())
		}
	}
	return nil
}

// down says whether the process has ended, by itself or not.
func (p *brokerProcess) down() bool {
	if p.cmd == nil {
		return true
	}
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// why is what a broker says of why it isn't ready.
func (p *brokerProcess) why(ctx context.Context) string {
	if p.down() {
		return "it is down"
	}
	var out bytes.Buffer
	if _, err := p.ask(ctx, "/readyz", &out); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(out.String())
}

// lastLog is the end of its log.
func (p *brokerProcess) lastLog() string {
	if p.logPath == "" {
		return p.log.lastLine()
	}
	f, err := os.Open(p.logPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.Seek(-4<<10, io.SeekEnd); err != nil {
		_, _ = f.Seek(0, io.SeekStart) // it is shorter
	}
	end, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return lastOf(string(end))
}

// stop is SIGTERM: it must end with status 0 in time.
func (p *brokerProcess) stop() error {
	if p.cmd == nil {
		return nil
	}
	begin := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.ended:
	case <-limit.C:
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to its log
		select {
		case <-p.ended:
		case <-time.After(2 * time.Second):
		}
		p.kill()
		return fmt.Errorf("%s did not stop within %s of SIGTERM", p.name, stopLimit)
	}
	state := p.cmd.ProcessState
	_ = p.alive.Close()
	p.cmd = nil
	if !state.Success() {
		return fmt.Errorf("%s ended after SIGTERM and %.1f s with %s: %s", p.name, time.Since(begin).Seconds(), state, p.lastLog())
	}
	return nil
}

func (p *brokerProcess) signal(s syscall.Signal) {
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // it may have ended by itself
	}
}

// kill is SIGKILL, and waiting until the process is gone.
func (p *brokerProcess) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.ended
	_ = p.alive.Close()
	p.cmd = nil
}

var errNotReady = errors.New("not ready")

// get asks the child's HTTP port; the body goes to out.
func (p *brokerProcess) get(ctx context.Context, path string, out io.Writer) error {
	if out == nil {
		out = io.Discard
	}
	status, err := p.ask(ctx, path, out)
	if err == nil && status != http.StatusOK {
		err = errNotReady
	}
	return err
}

// ask is get for answers of any status.
func (p *brokerProcess) ask(ctx context.Context, path string, out io.Writer) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.http+path, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(out, resp.Body)
	return resp.StatusCode, err
}

// metric sums a counter or gauge over its labels; topic "" for all topics.
func (p *brokerProcess) metric(ctx context.Context, name, topic string) (int64, error) {
	var body bytes.Buffer
	if err := p.get(ctx, "/metrics", &body); err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(body.String()) {
		labels, ok := strings.CutPrefix(line, name)
		if !ok || labels == "" || labels[0] != '{' && labels[0] != ' ' || topic != "" && !strings.Contains(labels, `topic="`+topic+`"`) {
			continue
		}
		fields := strings.Fields(labels)
		n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return 0, fmt.Errorf("read metrics: %q", strings.TrimSpace(line))
		}
		sum, found = sum+n, true
	}
	if !found {
		return 0, fmt.Errorf("read metrics: there is no %s", name)
	}
	return int64(sum), nil
}

// Metrics that demo and proof read.
const (
	metricReapplied = "parley_partition_reapplied_entries_total"
	metricNext      = "parley_partition_next_offset"
	metricStart     = "parley_partition_start_offset"
)

// lockedBuffer keeps the end of what a child writes.
type lockedBuffer struct {
	mu   sync.Mutex
	data []byte
}

const keptLog = 16 << 10

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if over := len(b.data) - keptLog; over > 0 {
		b.data = append(b.data[:0], b.data[over:]...)
	}
	return len(p), nil
}

func (b *lockedBuffer) lastLine() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(b.data)), "\n")
	if lines[len(lines)-1] == "" {
		return "it wrote nothing"
	}
	return lines[len(lines)-1]
}
