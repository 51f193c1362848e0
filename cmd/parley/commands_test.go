package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/broker"
)

func TestEveryCommandHasAnExample(t *testing.T) {
	t.Parallel()
	a := &app{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "completion" || c.Name() == "help" {
			return
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("%q needs a description and an example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.root())
}

func TestHelp(t *testing.T) {
	t.Parallel()
	golden(t, "help.golden", call{}.run(t, "--help").stdout)
	golden(t, "help-pub.golden", call{}.run(t, "pub", "--help").stdout)
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want string }{
		{"nonsense", `unknown command "nonsense"`},
		{"topic nonsense", `unknown command "nonsense"`},
		{"topic create", "want NAME"},
		{"topic create t --partitions 0", "--partitions 0: want 1 to 1024"},
		{"topic create t --partitions 1025", "want 1 to 1024"},
		{"topic create t --retention soon", "7d"},
		{"topic create t --max-bytes much", "512KiB"},
		{"topic create t --config retention", "want KEY=VALUE"},
		{"topic create t --retention 1d --config retention=2d", "give one"},
		{"topic alter t", "nothing to alter"},
		{"topic delete t", "--yes"},
		{"pub t --key a --key-sep :", "exclude each other"},
		{"pub t --key-sep=", "--key-sep is empty"},
		{"pub t --msg-id x", "needs a VALUE"},
		{"pub t v --partition -1", "want 0 or more"},
		{"pub t v --compression gzip", "none, zstd, lz4 or snappy"},
		{"pub t v --header nonsense", "want KEY=VALUE"},
		{"pub t v --file x", "exclude each other"},
		{"pub t --key-field a..b", "user.id"},
		{"pub t v --give-up 0s", "above zero"},
		{"sub t --from yesterday", "earliest, latest"},
		{"sub t --count 0", "want 1 or more"},
		{"sub t --partition -1", "want 0 or more"},
		{"epoch show x", "want a number"},
		{"epoch diff 0", "first"},
		{"partition describe t", "TOPIC/NUMBER"},
		{"partition transfer t/0", "--to is missing"},
		{"bench pub t --size 2MiB", "want 1B to 1MiB"},
		{"bench pub t --clients 0", "want 1 to 1024"},
		{"bench e2e t --size 8B", "at least 16B"},
		{"--output xml version", "want table or json"},
		{"--timeout 0s version", "above zero"},
		{"--server http://x topic list", "nats://HOST:PORT"},
		{"--token a --user b --password c topic list", "exclude each other"},
		{"--tls-ca /no/such.pem topic list", "no such file"},
		{"--context nowhere topic list", "not saved"},
		{"context use nowhere", "not saved"},
		{"context add x", "nothing to save"},
		{"--flag-that-is-none", "unknown flag"},
		{"demo --records 0", "want 1 or more"},
		{"demo --records x", "--records \"x\": want a whole number"},
		{"--timeout 1 version", "--timeout \"1\": want a span"},
		{"topic delete t --yes=perhaps", "true or false"},
		{"check t --records 0", "want 1 or more"},
		{"check t --duration 0s", "above zero"},
		{"bench pub t --records 0", "want 1 or more"},
		{"bench pub t --rate NaN", "--rate NaN: want 0 to"},
		{"bench pub t --rate x", "want a number"},
		{"bench pub t --partitions 0", "want 1 to"},
		{"bench pub t --outstanding 5", "give --plain"},
	} {
		o := call{}.run(t, strings.Fields(c.args)...)
		if o.code != exitUsage || !strings.Contains(o.stderr, c.want) || o.stdout != "" {
			t.Errorf("parley %s: exit %d, stdout %q, stderr %q; want exit 2 and %q on stderr", c.args, o.code, o.stdout, o.stderr, c.want)
		}
	}
}

func TestUsageErrorsAsJSON(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"topic create -o json", "topic list --nonsense -o json", "topic list --nonsense --output=json", "topic list --nonsense -ojson",
	} {
		o := call{}.run(t, strings.Fields(args)...)
		e, _ := decode(t, o.stdout)["error"].(map[string]any)
		if o.code != exitUsage || e["reason"] != "bad_request" {
			t.Errorf("parley %s: exit %d, %s", args, o.code, o.stdout)
		}
	}
	if o := (call{}).run(t, "pub", "--nonsense", "--", "-o", "json"); o.stdout != "" {
		t.Errorf("what follows -- is no flag: %s", o.stdout)
	}
	if o := (call{}).run(t, "pub"); !strings.HasPrefix(o.stderr, "parley: pub: want TOPIC") {
		t.Errorf("the tool's name: %s", o.stderr)
	}
}

func TestNoBroker(t *testing.T) {
	t.Parallel()
	// A port that was just free, so that nobody listens there.
	p, err := newBrokerProcess([]string{"unused"}, "")
	if err != nil {
		t.Fatal(err)
	}
	o := call{}.run(t, "--server", p.url(), "--timeout", "2s", "topic", "list", "-o", "json")
	if o.code != exitFailed {
		t.Fatalf("exit %d: %s%s", o.code, o.stdout, o.stderr)
	}
	e, _ := decode(t, o.stdout)["error"].(map[string]any)
	wantKeys(t, e, "code", "reason", "retriable", "description")
	if e["retriable"] != true || e["reason"] != "unavailable" {
		t.Errorf("got %v, want a retriable unavailable", e)
	}
	if !strings.Contains(o.stderr, p.client) {
		t.Errorf("%q doesn't say where nobody answered", o.stderr)
	}
}

func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	b := startBroker(t, broker.Config{FreeSpaceFloor: -1, Token: "right"})
	c := call{env: map[string]string{"PARLEY_SERVER": b.URL()}}
	o := c.run(t, "topic", "list", "--token", "wrong", "-o", "json")
	e, _ := decode(t, o.stdout)["error"].(map[string]any)
	if o.code != exitFailed || e["reason"] != "unauthorized" || !strings.Contains(o.stderr, "see --user, --token") || strings.Contains(o.stderr, "running there") {
		t.Errorf("exit %d, %s%s", o.code, o.stdout, o.stderr)
	}
	if o := c.run(t, "topic", "list", "--token", "right"); o.code != exitDone {
		t.Errorf("right token: %+v", o)
	}
}

func TestTopicCommands(t *testing.T) {
	t.Parallel()
	name := topic(t, "--partitions", "2", "--retention", "7d", "--subject", fmt.Sprintf("t.lifecycle.%d.>", topics.Load()), "--config", "max_records=1000")
	d := decode(t, tool(t, "", "topic", "describe", name, "-o", "json").stdout)
	wantKeys(t, d, "name", "partitions", "config", "subjects", "epoch")
	p, _ := d["partitions"].([]any)
	if len(p) != 2 {
		t.Fatalf("partitions: %v", d)
	}
	first, _ := p[0].(map[string]any)
	wantKeys(t, first, "partition", "leader", "term", "replicas", "in_sync", "start_offset", "next_offset", "bytes")
	config, _ := d["config"].(map[string]any)
	if config["retention"] != "7d" || config["max_records"] != "1000" {
		t.Errorf("config %v", config)
	}

	change := decode(t, tool(t, "", "topic", "alter", name, "--partitions", "3", "--yes", "--retention", "1d", "-o", "json").stdout)
	if wantKeys(t, change, "name", "change", "epoch"); change["change"] != "altered" {
		t.Errorf("alter: %v", change)
	}
	if lines := strings.Count(tool(t, "", "partition", "list", name, "-o", "json").stdout, "\n"); lines != 3 {
		t.Errorf("%d partitions after alter, want 3", lines)
	}
	e := decode(t, fails(t, exitFailed, "topic", "create", name, "-o", "json").stdout)["error"].(map[string]any)
	if e["reason"] != "topic_exists" {
		t.Errorf("creating it again: %v", e)
	}
	tool(t, "", "topic", "delete", name, "--yes")
	if out := tool(t, "", "topic", "list", "--deleted").stdout; !strings.Contains(out, name) {
		t.Errorf("deleted topics don't list %s:\n%s", name, out)
	}
	fails(t, exitFailed, "topic", "describe", name)
	tool(t, "", "topic", "restore", name)
	compared := decode(t, tool(t, "", "partition", "compare", name+"/2", "-o", "json").stdout)
	wantKeys(t, compared, "topic", "partition", "begun", "comparison")
	if c, _ := compared["comparison"].(map[string]any); c["result"] != "same" || c["passes"] == float64(0) {
		t.Errorf("comparison of replicas: %v", compared)
	}
	if out := tool(t, "", "partition", "describe", name+"/2").stdout; !strings.Contains(out, "replicas compared  all the same") {
		t.Errorf("describe does not tell of the comparison: %s", out)
	}
	tool(t, "", "partition", "compare", name+"/2", "--wait=false")
	o := fails(t, exitFailed, "partition", "describe", name+"/3")
	if !strings.Contains(o.stderr, "has 0 to 2") {
		t.Errorf("partition that isn't there: %s", o.stderr)
	}
}

func TestClusterCommands(t *testing.T) {
	t.Parallel()
	wantKeys(t, decode(t, tool(t, "", "cluster", "status", "-o", "json").stdout),
		"cluster_id", "epoch", "council", "brokers", "partitions", "leaderless", "under_replicated")
	b := decode(t, tool(t, "", "broker", "list", "-o", "json").stdout)
	wantKeys(t, b, "name", "id", "state", "rack", "weight", "replicas", "leaders", "address")
	if b["name"] != "b1" || b["rack"] != "r1" || b["state"] != "active" {
		t.Errorf("broker: %v", b)
	}
	tool(t, "", "broker", "describe", "b1")
	if o := fails(t, exitFailed, "broker", "describe", "b9"); !strings.Contains(o.stderr, "there are b1") {
		t.Errorf("broker that isn't there: %s", o.stderr)
	}
	wantKeys(t, decode(t, tool(t, "", "epoch", "show", "1", "-o", "json").stdout),
		"epoch", "hash", "previous", "by", "at", "change", "council", "brokers")
	if out := tool(t, "", "epoch", "list", "--limit", "2").stdout; strings.Count(out, "\n") > 3 {
		t.Errorf("--limit 2 lists\n%s", out)
	}
	diff := decode(t, tool(t, "", "epoch", "diff", "1", "-o", "json").stdout)
	if wantKeys(t, diff, "from", "to", "changes"); diff["from"] != 0.0 || diff["to"] != 1.0 {
		t.Errorf("diff: %v", diff)
	}
}

func TestClusterHealth(t *testing.T) {
	t.Parallel()
	// Topics of other tests come and go meanwhile: health may be in between, but
	// exit status and words must agree.
	o := call{env: map[string]string{"PARLEY_SERVER": shared.url(t)}}.run(t, "cluster", "health", "-o", "json")
	h := decode(t, o.stdout)
	wantKeys(t, h, "healthy", "problems")
	if (h["healthy"] == true) != (o.code == exitDone) {
		t.Errorf("exit %d with %v", o.code, h)
	}
}

func TestContexts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := call{dir: dir}
	for _, args := range [][]string{
		{"context", "add", "dev", "--server", shared.url(t)},
		{"context", "add", "prod", "--server", "tls://broker.example:4222", "--user", "ops", "--password", "s3cret"},
	} {
		if o := c.run(t, args...); o.code != exitDone {
			t.Fatalf("%v: %+v", args, o)
		}
	}
	list := c.run(t, "context", "list")
	golden(t, "contexts.golden", strings.ReplaceAll(list.stdout, shared.url(t), strings.Repeat("u", len(shared.url(t)))))
	if strings.Contains(list.stdout, "s3cret") {
		t.Error("a password is shown")
	}
	info, err := os.Stat(filepath.Join(dir, "contexts.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("saved contexts: %v, %v; want mode 600", info.Mode(), err)
	}
	// The first one saved is used.
	if o := c.run(t, "cluster", "status"); o.code != exitDone {
		t.Errorf("with the saved context: %+v", o)
	}
	if o := c.run(t, "context", "use", "prod"); o.code != exitDone {
		t.Fatal(o)
	}
	if o := c.run(t, "--context", "dev", "cluster", "status"); o.code != exitDone {
		t.Errorf("with --context: %+v", o)
	}
	// The environment is stronger than the context in use, a flag than both.
	withEnv := call{dir: dir, env: map[string]string{"PARLEY_SERVER": "nats://127.0.0.1:1"}}
	if o := withEnv.run(t, "--server", shared.url(t), "cluster", "status"); o.code != exitDone {
		t.Errorf("with --server: %+v", o)
	}
	if o := withEnv.run(t, "cluster", "status"); o.code != exitFailed || !strings.Contains(o.stderr, "127.0.0.1:1") {
		t.Errorf("with PARLEY_SERVER: %+v", o)
	}
	if o := c.run(t, "context", "remove", "prod"); o.code != exitDone {
		t.Fatal(o)
	}
	if o := c.run(t, "context", "list", "-o", "json"); strings.Count(o.stdout, "\n") != 1 || !strings.Contains(o.stdout, `"current":false`) {
		t.Errorf("after remove: %s", o.stdout)
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if o := (call{}).run(t, "completion", shell); o.code != exitDone || len(o.stdout) < 100 {
			t.Errorf("%s: exit %d, %d bytes", shell, o.code, len(o.stdout))
		}
	}
	if o := (call{}).run(t, "__complete", "pub", "t", "--compression", ""); !strings.Contains(o.stdout, "zstd") {
		t.Errorf("codecs are not completed: %s", o.stdout)
	}
	name := topic(t)
	for _, command := range []string{"pub", "sub", "check", "bench pub", "topic describe", "topic alter", "topic delete"} {
		args := append([]string{"__complete"}, append(strings.Fields(command), "")...)
		if o := tool(t, "", args...); !strings.Contains(o.stdout, name+"\n") {
			t.Errorf("topics are not completed after %s: %s", command, o.stdout)
		}
	}
	if o := (call{env: map[string]string{"PARLEY_SERVER": "nats://127.0.0.1:1"}}).run(t, "__complete", "pub", ""); !strings.HasPrefix(o.stdout, ":") {
		t.Errorf("without a broker: %s", o.stdout)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	wantKeys(t, decode(t, call{}.run(t, "version", "-o", "json").stdout), "version", "go", "platform")
	if o := (call{}).run(t, "version"); !strings.HasPrefix(o.stdout, "parley ") {
		t.Errorf("version: %q", o.stdout)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	tb := newTable("NAME", "COUNT", "STATE")
	tb.row(str("größer"), num(1234567), styled("active", green))
	tb.row(str(""), num(-1), styled("dead", red))
	var b strings.Builder
	if err := tb.print(&b, false); err != nil {
		t.Fatal(err)
	}
	want := "NAME        COUNT  STATE\ngrößer  1,234,567  active\n-              -1  dead\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	if err := tb.print(&b, true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), green+"active"+reset+"\n") {
		t.Errorf("colour: %q", b.String())
	}
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	name := topic(t)
	newest := decode(t, tool(t, "", "epoch", "show", "-o", "json").stdout)["epoch"].(float64)
	out := tool(t, "", "epoch", "diff", "0", fmt.Sprint(newest)).stdout
	if !strings.Contains(out, name) || !strings.Contains(out, "partitions=1") {
		t.Errorf("diff doesn't show topic %s:\n%s", name, out)
	}
}
