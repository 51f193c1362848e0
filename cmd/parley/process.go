package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/parleymq/parley/broker"
)

// A broker as a child process, which can be killed like any other: nothing that
// the process holds in memory survives, no file is closed, no buffer written.

// brokerProcess is a broker that demo and proof start and kill.
type brokerProcess struct {
	command []string // what runs it, without the settings
	dir     string
	client  string // host:port
	http    string
	raft    string
	peer    string

	label   string   // its name; b1 when empty
	cluster []string // settings of a broker that is not alone

	cmd   *exec.Cmd
	alive io.Closer // the child's stdin: it ends when this closes, so no orphan stays
	log   lockedBuffer
	ended chan struct{} // closed when the child has been waited for
}

// startLimit bounds the start of a child, recovery of its log included.
const startLimit = 60 * time.Second

// newBrokerProcess takes ports from the kernel: they stay the same over
// restarts, as those of a real broker do.
func newBrokerProcess(command []string, dir string) (*brokerProcess, error) {
	p := &brokerProcess{command: command, dir: dir}
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for _, address := range []*string{&p.client, &p.http, &p.raft, &p.peer} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		held = append(held, l)
		*address = l.Addr().String()
	}
	return p, nil
}

// newBrokerProcesses makes brokers b1, b2, … that form a cluster, in folders of dir.
// start them all at once: none is ready before the others are there.
func newBrokerProcesses(command []string, dir string, n int) ([]*brokerProcess, error) {
	all := make([]*brokerProcess, n)
	list := make([]string, n)
	for i := range all {
		label := fmt.Sprintf("b%d", i+1)
		p, err := newBrokerProcess(command, filepath.Join(dir, label))
		if err != nil {
			return nil, err
		}
		p.label = label
		all[i], list[i] = p, label+"="+p.peer
	}
	for _, p := range all {
		p.cluster = []string{"--peer-listen", p.peer, "--initial-cluster", strings.Join(list, ",")}
	}
	return all, nil
}

func (p *brokerProcess) url() string { return "nats://" + p.client }

// start starts the child and waits until it is ready.
func (p *brokerProcess) start(ctx context.Context) error {
	label := p.label
	if label == "" {
		label = "b1"
	}
	args := append(p.command[1:len(p.command):len(p.command)],
		"--data-dir", p.dir, "--listen", p.client, "--http", p.http, "--raft-listen", p.raft, "--name", label, "--log-level", "warn")
	args = append(args, p.cluster...)
	cmd := exec.Command(p.command[0], args...)
	cmd.Stderr = &p.log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	p.cmd, p.alive = cmd, stdin
	ended := make(chan struct{})
	p.ended = ended
	go func() { // ends with the child, which kill ends
		_ = cmd.Wait() // how it ended shows in what it wrote
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if p.get(ctx, "/readyz", nil) == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("broker ended as it started: %s", p.log.lastLine())
		case <-ctx.Done():
			p.kill()
			return fmt.Errorf("broker was not ready within %s: %s", startLimit, p.log.lastLine())
		}
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
	if resp.StatusCode != http.StatusOK {
		return errNotReady
	}
	if out == nil {
		out = io.Discard
	}
	_, err = io.Copy(out, resp.Body)
	return err
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

// ownBroker is the command that runs this program as a broker. The demo needs
// no other binary, and works under go run.
func ownBroker() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{self, "broker-process"}, nil
}

// brokerProcessCommand is the child's side.
func (a *app) brokerProcessCommand() *cobra.Command {
	var c broker.Config
	level := "warn"
	cmd := &cobra.Command{
		Use: "broker-process", Hidden: true, Short: "Runs a broker until stdin ends", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parsed, err := zerolog.ParseLevel(level)
			if err != nil {
				return usagef("--log-level %q: %v", level, err)
			}
			c.Logger = zerolog.New(zerolog.ConsoleWriter{Out: a.stderr, NoColor: true}).Level(parsed).With().Timestamp().Logger()
			// A demo fits on any disk that it starts on.
			c.FreeSpaceFloor = -1
			b, err := broker.Start(cmd.Context(), c)
			if err != nil {
				return err
			}
			orphaned := make(chan struct{})
			go func() { // ends with the process
				_, _ = io.Copy(io.Discard, a.stdin)
				close(orphaned)
			}()
			select {
			case <-orphaned:
			case <-cmd.Context().Done():
			case <-b.Done():
				return b.Wait()
			}
			ctx, cancel := context.WithTimeout(context.Background(), startLimit)
			defer cancel()
			return b.Close(ctx)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&c.DataDir, "data-dir", "", "")
	flags.StringVar(&c.Listen, "listen", "", "")
	flags.StringVar(&c.HTTP, "http", "", "")
	flags.StringVar(&c.RaftListen, "raft-listen", "", "")
	flags.StringVar(&c.PeerListen, "peer-listen", "", "")
	flags.StringVar(&c.InitialCluster, "initial-cluster", "", "")
	flags.StringVar(&c.Name, "name", "", "")
	flags.StringVar(&level, "log-level", level, "")
	return cmd
}
