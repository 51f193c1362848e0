package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// processTool runs the tool where it starts itself as a child.
func processTool(t *testing.T, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, surroundings{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, configDir: t.TempDir(), lookup: os.LookupEnv})
	return outcome{stdout.String(), stderr.String(), code}
}

// TestDemo also shows that nothing stays behind.
func TestDemo(t *testing.T) {
	t.Setenv(asTool, "1")
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	o := processTool(t, "demo", "--records", "20000", "-o", "json")
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	r := decode(t, o.stdout)
	for key, want := range map[string]float64{"acked": 20000, "read": 20000, "lost": 0, "duplicated": 0, "reordered": 0} {
		if r[key] != want {
			t.Errorf("%s is %v, want %v", key, r[key], want)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestKillProof is the short form of "parley proof kill", with this binary's own
// broker as the process that is killed.
func TestKillProof(t *testing.T) {
	t.Setenv(asTool, "1")
	t.Setenv("TMPDIR", t.TempDir())
	o := processTool(t, "proof", "kill", "--parleyd", ownBrokerName, "--rounds", "1", "--lines", "100000", "-o", "json")
	t.Log(strings.TrimSpace(o.stderr)) // the seed
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	if r := decode(t, o.stdout); r["acked"] != 100000.0 || r["killed_at"] == 0.0 {
		t.Errorf("round: %v", r)
	}
}
