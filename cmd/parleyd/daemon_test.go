package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asDaemon makes the test binary behave as parleyd.
const asDaemon = "PARLEY_TEST_AS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// daemon is a parleyd process and what it logs.
type daemon struct {
	cmd   *exec.Cmd
	lines chan map[string]any
	raw   bytes.Buffer
	http  string
}

func newDaemon(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), asDaemon+"=1", "PARLEY_LISTEN=127.0.0.1:0", "PARLEY_RAFT_LISTEN=127.0.0.1:0", "PARLEY_HTTP=127.0.0.1:0",
		"PARLEY_LOG_FORMAT=json", "PARLEY_FREE_SPACE_FLOOR=0", "PARLEY_NAME=b1")
	return cmd
}

// startDaemon starts parleyd and waits for its ready line.
func startDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: newDaemon(t, args...), lines: make(chan map[string]any, 1024)}
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	go func() { // ends with the process
		defer close(d.lines)
		in := bufio.NewScanner(io.TeeReader(stderr, &d.raw))
		for in.Scan() {
			var v map[string]any
			if json.Unmarshal(in.Bytes(), &v) == nil {
				d.lines <- v
			}
		}
	}()
	ready := d.await(t, "parleyd is ready")
	d.http, _ = ready["http"].(string)
	return d
}

func (d *daemon) await(t *testing.T, message string) map[string]any {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				t.Fatalf("parleyd ended before %q:\n%s", message, d.raw.String())
			}
			if line["message"] == message {
				return line
			}
		case <-limit:
			t.Fatalf("no %q within 30 s", message)
		}
	}
}

// exit waits for the end and returns the exit status.
func (d *daemon) exit(t *testing.T) int {
	t.Helper()
	limit := time.AfterFunc(40*time.Second, func() { _ = d.cmd.Process.Kill() })
	defer limit.Stop()
	for range d.lines { // Wait may not be called before everything was read
	}
	_ = d.cmd.Wait() // the status tells
	return d.cmd.ProcessState.ExitCode()
}

func TestDaemonLifecycle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := startDaemon(t, "--data-dir", dir)

	check := newDaemon(t, "healthcheck", "--http", d.http)
	if out, err := check.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "ready" {
		t.Errorf("healthcheck: %q, %v", out, err)
	}

	// A second broker on the directory says who has it.
	second := newDaemon(t, "--data-dir", dir)
	out, _ := second.CombinedOutput()
	if second.ProcessState.ExitCode() != exitFailed || !strings.Contains(string(out), "pid") || !strings.Contains(string(out), dir) {
		t.Errorf("second parleyd: exit %d, %q", second.ProcessState.ExitCode(), out)
	}

	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := d.exit(t); code != exitDone {
		t.Errorf("after SIGTERM: exit %d\n%s", code, d.raw.String())
	}
	// And again, on what the first one left.
	d = startDaemon(t, "--data-dir", dir)
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := d.exit(t); code != exitDone {
		t.Errorf("after SIGINT: exit %d\n%s", code, d.raw.String())
	}
}

func TestDaemonFailures(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() }) // the cases run after this function has returned
	file := writeFile(t, "")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"port in use", []string{"--listen", taken.Addr().String()}, exitFailed, taken.Addr().String()},
		{"data directory is a file", []string{"--data-dir", file}, exitFailed, file},
		{"no certificate", []string{"--tls-cert", "/no/such.pem", "--tls-key", "/no/such.pem"}, exitUsage, "/no/such.pem"},
		{"bad value", []string{"--max-record", "2MiB"}, exitUsage, "--max-record"},
		{"unknown flag", []string{"--colour"}, exitUsage, "--colour"},
		{"an argument", []string{"start"}, exitUsage, `"start"`},
		{"a list without the broker", []string{"--initial-cluster", "b8=127.0.0.1:6222,b9=127.0.0.1:6223"}, exitUsage, "does not name this broker"},
		{"a join of nobody", []string{"--join", "b1"}, exitUsage, "give peer addresses"},
		{"dead at once", []string{"--dead-after", "10ms"}, exitUsage, "1s or more"},
		{"a list that is none", []string{"--initial-cluster", "b1,b2"}, exitUsage, "name=host:port"},
		{"a secret that is not there", []string{"--cluster-secret-file", "/nowhere/secret"}, exitUsage, "cluster-secret-file"},
		{"raft for everybody", []string{"--raft-listen", "0.0.0.0:0"}, exitUsage, "needs a cluster secret"},
		{"healthcheck without a broker", []string{"healthcheck", "--http", "127.0.0.1:1"}, exitFailed, "127.0.0.1:1"},
		{"healthcheck without HTTP", []string{"healthcheck", "--http", "off"}, exitUsage, "off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			cmd := newDaemon(t, c.args...)
			kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
			defer kill()
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(string(out), c.want) {
				t.Errorf("exit %d, want %d, and %q in %q", code, c.code, c.want, out)
			}
			lines := 0
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "parleyd: ") {
					lines++
				}
			}
			if lines != 1 {
				t.Errorf("%d lines of error, want one: %q", lines, out)
			}
		})
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var stdout, stderr bytes.Buffer
	code := run([]string{"--data-dir", t.TempDir(), "--listen", taken.Addr().String(), "--http", "off", "--raft-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0",
		"--log-level", "error"}, lookup(nil), &stdout, &stderr)
	if out := stderr.String(); code != exitFailed || !strings.Contains(out, taken.Addr().String()) || !strings.Contains(out, "choose other addresses: --listen") {
		t.Errorf("exit %d, %s", code, out)
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--version"}, lookup(nil), &stdout, &stderr); code != exitDone || !strings.HasPrefix(stdout.String(), "parleyd ") {
		t.Errorf("--version: exit %d, %q", code, stdout.String())
	}
	stdout.Reset()
	if code := run([]string{"--help"}, lookup(nil), &stdout, &stderr); code != exitDone {
		t.Errorf("--help: exit %d", code)
	}
	for _, o := range options() {
		if strings.Contains(stdout.String(), "--"+o.flag) == o.hidden {
			t.Errorf("--help has or leaves out --%s", o.flag)
		}
	}
}
