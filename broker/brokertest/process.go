package brokertest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
)

// childVariable tells a test binary to be a broker instead.
const childVariable = "PARLEY_BROKERTEST_DIR"

// Main is what TestMain of a package calls whose tests use Process: in a child
// it runs a broker and doesn't return.
func Main(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

// child runs a broker until its standard input ends: when the test closes it,
// or dies.
func child(dir string) int {
	b, err := broker.Start(context.Background(), Config(dir))
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), Wait)
		defer cancel()
		err = b.Ready(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(b.Addresses()); err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	if err := b.Close(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Process is a broker in a process of its own, which can be killed.
type Process struct {
	broker.Addresses
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Closer
}

// StartProcess starts a broker on dir and waits until it serves.
func StartProcess(t testing.TB, dir string) *Process {
	t.Helper()
	p, err := TryProcess(t, dir, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TryProcess is StartProcess for a broker that may refuse to start. What it says
// goes to stderr.
func TryProcess(t testing.TB, dir string, stderr io.Writer) (*Process, error) {
	t.Helper()
	p := &Process{t: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), childVariable+"="+dir)
	p.cmd.Stderr = stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start broker process: %v", err)
	}
	t.Cleanup(p.Kill)
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.Addresses)
	}
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("broker process said %q and ended with %s: %w", line, p.cmd.ProcessState, err)
	}
	return p, nil
}

// Kill kills the process with SIGKILL. Killing it again does nothing.
func (p *Process) Kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
}

// Stop lets the process end by itself.
func (p *Process) Stop() {
	p.t.Helper()
	_ = p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("broker process: %v", err)
	}
}

// Connect opens a connection of the official client, closed with the test.
func (p *Process) Connect() *nats.Conn {
	p.t.Helper()
	nc, err := nats.Connect("nats://"+p.Clients, nats.Timeout(Wait), nats.MaxReconnects(0))
	if err != nil {
		p.t.Fatalf("connect: %v", err)
	}
	p.t.Cleanup(nc.Close)
	return nc
}
