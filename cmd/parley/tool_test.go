package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
)

var update = flag.Bool("update", false, "write the golden files anew")

// asTool makes the test binary behave as parley: demo and proof run themselves
// as child processes.
const asTool = "PARLEY_TEST_AS_TOOL"

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		main()
		return
	}
	code := m.Run()
	shared.stop()
	os.Exit(code)
}

// shared is one broker for all tests that don't kill it.
var shared testBroker

type testBroker struct {
	once sync.Once
	b    *broker.Broker
	dir  string
	err  error
}

func (s *testBroker) url(t *testing.T) string {
	t.Helper()
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "parley-test-"); s.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		s.b, s.err = broker.Start(ctx, broker.Config{
			Name: "b1", DataDir: s.dir, Listen: "127.0.0.1:0", HTTP: "off", RaftListen: "127.0.0.1:0",
			Rack: "r1", FreeSpaceFloor: -1, DrainTime: 10 * time.Millisecond,
		})
		if s.err == nil {
			s.err = s.b.Ready(ctx)
		}
	})
	if s.err != nil {
		t.Fatalf("start broker: %v", s.err)
	}
	return s.b.URL()
}

func (s *testBroker) stop() {
	if s.b != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.b.Close(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "close broker:", err)
		}
	}
	_ = os.RemoveAll(s.dir)
}

// startBroker runs a broker of the test's own.
func startBroker(t *testing.T, c broker.Config) *broker.Broker {
	t.Helper()
	c.Name, c.DataDir, c.Listen, c.HTTP, c.RaftListen = "b1", t.TempDir(), "127.0.0.1:0", "off", "127.0.0.1:0"
	c.DrainTime = time.Millisecond
	limited := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), 30*time.Second)
	}
	ctx, cancel := limited()
	defer cancel()
	b, err := broker.Start(ctx, c)
	if err != nil {
		t.Fatalf("start broker: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := limited()
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if err := b.Ready(ctx); err != nil {
		t.Fatalf("broker is not ready: %v", err)
	}
	return b
}

// call is one run of the tool, in this process.
type call struct {
	stdin string
	env   map[string]string
	dir   string // of contexts
}

// outcome of a call.
type outcome struct {
	stdout, stderr string
	code           int
}

func (c call) run(t *testing.T, args ...string) outcome {
	t.Helper()
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, surroundings{
		stdin: strings.NewReader(c.stdin), stdout: &stdout, stderr: &stderr, configDir: c.dir,
		lookup: func(name string) (string, bool) { v, ok := c.env[name]; return v, ok },
	})
	return outcome{stdout.String(), stderr.String(), code}
}

// tool runs a command against the shared broker, which must succeed.
func tool(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	o := call{stdin: stdin, env: map[string]string{"PARLEY_SERVER": shared.url(t)}}.run(t, args...)
	if o.code != exitDone {
		t.Fatalf("parley %s: exit %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
	}
	return o
}

// fails runs a command against the shared broker, which must fail so.
func fails(t *testing.T, code int, args ...string) outcome {
	t.Helper()
	o := call{env: map[string]string{"PARLEY_SERVER": shared.url(t)}}.run(t, args...)
	if o.code != code {
		t.Fatalf("parley %s: exit %d, want %d\n%s%s", strings.Join(args, " "), o.code, code, o.stdout, o.stderr)
	}
	return o
}

var topics atomic.Int64

// topic creates a topic named after the test.
func topic(t *testing.T, flags ...string) string {
	t.Helper()
	// -count runs a test more than once against the one broker.
	name := fmt.Sprintf("%s-%d", t.Name(), topics.Add(1))
	tool(t, "", append([]string{"topic", "create", name}, flags...)...)
	return name
}

func decode(t *testing.T, line string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return v
}

// wantKeys checks the contract: programs outside read these keys.
func wantKeys(t *testing.T, v map[string]any, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if _, ok := v[k]; !ok {
			t.Errorf("no key %q in %v", k, v)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew):\n--- got\n%s--- want\n%s", path, got, want)
	}
}
