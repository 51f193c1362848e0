package main

import (
	"context"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
)

// TestInterrupted: a command that a signal cuts short says so, and exits as shells expect; no error of its own is told.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check"}, {"pub"}, {"sub", "--count", "1000000"}, {"sub", "--group", "g", "--count", "1000000"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			topic := "interrupted-" + strings.Join(args, "")
			tool(t, "", "topic", "create", topic)
			tool(t, "", "pub", topic, "first")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var stdout, stderr lockedBuffer
			done := make(chan int, 1)
			line := append([]string{args[0], topic}, args[1:]...)
			if args[0] == "check" {
				line = append(line, "--duration", "1m", "-o", "json")
			}
			go func() {
				done <- run(ctx, line, surroundings{stdin: waiting{ctx}, stdout: &stdout, stderr: &stderr, configDir: t.TempDir(),
					lookup: func(name string) (string, bool) {
						v, ok := map[string]string{"PARLEY_SERVER": shared.url(t)}[name]
						return v, ok
					}})
			}()
			brokertest.Eventually(t, "it is under way", func() bool {
				if args[0] == "sub" {
					return strings.Contains(stdout.String(), "first")
				}
				return !strings.Contains(tool(t, "", "topic", "describe", topic, "-o", "json").stdout, `"next_offset":1,`) || args[0] == "pub"
			})
			cancel()
			code := <-done
			if code != exitInterrupted || !strings.Contains(stderr.String(), "interrupted") {
				t.Errorf("exit %d\n%s%s", code, stdout.String(), stderr.String())
			}
			if args[0] == "check" {
				if e := decode(t, stdout.String())["error"].(map[string]any); e["reason"] != "interrupted" || e["code"] == 500.0 {
					t.Errorf("%v", e)
				}
			}
		})
	}
}

// waiting is an input that nobody types into.
type waiting struct{ ctx context.Context }

func (w waiting) Read([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

// TestAlterPartitionsAsks: without --yes, and with nobody to ask, nothing is assumed.
func TestAlterPartitionsAsks(t *testing.T) {
	t.Parallel()
	topic := topic(t)
	o := call{stdin: "yes\n", env: map[string]string{"PARLEY_SERVER": shared.url(t)}}.run(t, "topic", "alter", topic, "--partitions", "3")
	if o.code != exitUsage || !strings.Contains(o.stderr, "--yes") {
		t.Errorf("exit %d\n%s", o.code, o.stderr)
	}
	if d := decode(t, tool(t, "", "topic", "describe", topic, "-o", "json").stdout); len(d["partitions"].([]any)) != 1 {
		t.Errorf("it was altered: %v", d)
	}
	// What is refused, or changes nothing, is no question.
	tool(t, "", "topic", "alter", topic, "--partitions", "2", "--yes")
	tool(t, "", "topic", "alter", topic, "--partitions", "2")
	if o := fails(t, exitFailed, "topic", "alter", topic, "--partitions", "1"); !strings.Contains(o.stderr, "can't shrink") {
		t.Errorf("fewer: %s", o.stderr)
	}
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}
