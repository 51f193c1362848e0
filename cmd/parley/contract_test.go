package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The contract of the command line: scripts and tests outside the project use these names, types and units, so they stay as they are.
// More may be added beside them.

// TestContractOfCommands holds the commands and flags to their names.
func TestContractOfCommands(t *testing.T) {
	t.Parallel()
	root := (&app{}).root()
	for _, line := range strings.Split(strings.TrimSpace(`
		: server output timeout user password token nkey tls-ca tls-cert tls-key context
		context add:
		context list:
		context use:
		demo: records keep
		topic create: partitions replicas subject retention max-bytes key config
		topic list:
		topic describe:
		topic alter: partitions replicas subject retention max-bytes key config yes
		topic delete: yes
		topic restore:
		topic export:
		topic import:
		pub: key key-sep key-field header msg-id partition file progress compression give-up
		sub: group shared key-ordered from partition count until-end ack
		group list:
		group describe:
		group reset: to
		group delete:
		group redrive:
		broker list:
		broker describe:
		broker drain: wait
		broker resume:
		broker remove:
		partition list:
		partition describe:
		partition transfer: to
		partition move: to
		cluster status:
		cluster health:
		cluster recover: data-dir accept-data-loss
		cluster balance: dry-run
		epoch show:
		epoch list: limit
		epoch diff:
		epoch watch:
		bench pub: records size clients partitions rate duration
		bench sub: records clients partitions duration
		bench e2e: records size clients partitions rate duration
		bench latency: records size clients partitions rate duration
		check: records duration
		version:`), "\n") {
		path, flags, _ := strings.Cut(strings.TrimSpace(line), ":")
		cmd, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 || strings.TrimPrefix(cmd.CommandPath(), "parley") != strings.TrimRight(" "+path, " ") {
			t.Errorf("no command %q: %v", path, err)
			continue
		}
		for _, name := range strings.Fields(flags) {
			if cmd.Flags().Lookup(name) == nil && cmd.PersistentFlags().Lookup(name) == nil {
				t.Errorf("parley %s has no --%s", path, name)
			}
		}
	}
	if f := root.PersistentFlags().ShorthandLookup("o"); f == nil || f.Name != "output" {
		t.Error("-o is not --output")
	}
}

// keysOf is what an object has: each key with its type. A type that ends in ? may be null.
type keysOf map[string]string

var (
	partitionKeys = keysOf{"partition": "number", "leader": "string", "term": "number", "replicas": "strings", "in_sync": "strings",
		"start_offset": "number", "next_offset": "number", "bytes": "number"}
	brokerKeys = keysOf{"name": "string", "id": "string", "state": "string", "rack": "string", "weight": "number", "replicas": "number",
		"leaders": "number", "address": "string"}
	groupPartitionKeys = keysOf{"partition": "number", "member": "string", "committed": "number", "next_offset": "number", "lag": "number",
		"pending": "number", "redelivering": "number"}
)

func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	case map[string]any:
		return "object"
	case []any:
		if len(v) > 0 && !slices.ContainsFunc(v, func(e any) bool { _, is := e.(string); return !is }) {
			return "strings"
		}
		return "list"
	}
	return "?"
}

func (k keysOf) hold(t *testing.T, what string, v map[string]any) {
	t.Helper()
	for key, want := range k {
		got, ok := v[key]
		switch is := typeOf(got); {
		case !ok:
			t.Errorf("%s has no key %q: %v", what, key, v)
		case is == want, is == "null" && strings.HasSuffix(want, "?"), is == strings.TrimSuffix(want, "?"):
		case want == "list" && is == "strings", want == "strings" && is == "list" && len(got.([]any)) == 0:
		default:
			t.Errorf("%s: %q is %s, want %s: %v", what, key, is, want, got)
		}
	}
}

// each holds the elements of a list, of which there are some.
func (k keysOf) each(t *testing.T, what string, list any) {
	t.Helper()
	elements, _ := list.([]any)
	if len(elements) == 0 {
		t.Errorf("%s: want a list with elements, got %v", what, list)
	}
	for _, e := range elements {
		k.hold(t, what, e.(map[string]any))
	}
}

// TestContractOfKeys holds what programs read to its keys and their types. Lists without elements are lists, not null.
func TestContractOfKeys(t *testing.T) {
	t.Parallel()
	one := func(args ...string) map[string]any {
		t.Helper()
		return decode(t, strings.TrimSpace(tool(t, "", append(args, "-o", "json")...).stdout))
	}
	first := func(args ...string) map[string]any {
		t.Helper()
		line, _, _ := strings.Cut(tool(t, "", append(args, "-o", "json")...).stdout, "\n")
		return decode(t, line)
	}
	name := topic(t, "--partitions", "2")

	keysOf{"acked": "number", "failed": "number", "seconds": "number"}.hold(t, "pub", one("pub", name, "v", "--key", "k", "--partition", "0"))
	keysOf{"topic": "string", "partition": "number", "offset": "number", "key": "string?", "value": "string", "headers": "object", "time": "string",
		"deliveries": "number"}.hold(t, "sub", first("sub", name, "--until-end"))
	tool(t, "\xff\n", "pub", name, "--partition", "0")
	keysOf{"key": "string?", "value_base64": "string"}.hold(t, "sub of bytes", one("sub", name, "--partition", "0", "--from", "1", "--until-end"))

	d := one("topic", "describe", name)
	keysOf{"name": "string", "partitions": "list", "config": "object", "subjects": "strings", "epoch": "number"}.hold(t, "topic describe", d)
	partitionKeys.each(t, "topic describe", d["partitions"])
	partitionKeys.hold(t, "partition describe", one("partition", "describe", name+"/0"))
	brokerKeys.hold(t, "broker list", first("broker", "list"))

	status := one("cluster", "status")
	keysOf{"cluster_id": "string", "epoch": "number", "council": "strings", "brokers": "list", "partitions": "number", "leaderless": "number",
		"under_replicated": "number"}.hold(t, "cluster status", status)
	brokerKeys.each(t, "cluster status", status["brokers"])

	epochKeys := keysOf{"epoch": "number", "hash": "string", "previous": "string", "by": "string", "at": "string", "change": "string", "council": "strings",
		"brokers": "list", "topics": "list"}
	epochKeys.hold(t, "epoch show", one("epoch", "show"))
	epochKeys.hold(t, "epoch show of one without topics", one("epoch", "show", "1"))

	// A group that has no members any more, one that never had any, and what the empty group of partition 1 says.
	tool(t, "", "sub", name, "--group", "exclusive", "--until-end")
	tool(t, "", "sub", name, "--group", "shared", "--shared", "--until-end")
	for _, group := range []string{"exclusive", "shared"} {
		g := one("group", "describe", name, group)
		keysOf{"topic": "string", "group": "string", "mode": "string", "members": "list", "partitions": "list"}.hold(t, "group describe", g)
		groupPartitionKeys.each(t, "group describe", g["partitions"])
	}

	h := call{env: map[string]string{"PARLEY_SERVER": shared.url(t)}}.run(t, "cluster", "health", "-o", "json")
	keysOf{"healthy": "bool", "problems": "list"}.hold(t, "cluster health", decode(t, h.stdout))
	keysOf{"acked": "number", "read": "number", "lost": "number", "duplicated": "number", "reordered": "number"}.hold(t, "check", one("check", name, "--records", "10"))
	bench := keysOf{"records": "number", "bytes": "number", "seconds": "number", "records_per_s": "number", "mb_per_s": "number", "errors": "number",
		"p50_us": "number", "p90_us": "number", "p99_us": "number", "p999_us": "number", "max_us": "number"}
	for _, kind := range []string{"pub", "sub", "e2e", "latency"} {
		bench.hold(t, "bench "+kind, one("bench", kind, name, "--records", "10"))
	}

	o := fails(t, exitFailed, "group", "delete", name, "nobody", "--yes")
	if !strings.Contains(o.stderr, `no group "nobody"`) || !strings.Contains(o.stderr, "parley group list") {
		t.Errorf("delete of a group that isn't there: %s", o.stderr)
	}
	o = fails(t, exitFailed, "topic", "describe", "nowhere", "-o", "json")
	e, _ := decode(t, o.stdout)["error"].(map[string]any)
	keysOf{"code": "number", "reason": "string", "retriable": "bool", "description": "string"}.hold(t, "a failed command", e)
}

// TestEveryFlagOnce: of two values that contradict each other none is chosen silently.
func TestEveryFlagOnce(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"sub t --partition 0 --partition 1", "pub t v --key a --key b", "partition move t/0 --to b1 --to b2", "topic create t --replicas 1 --replicas 3"} {
		if o := (call{}).run(t, strings.Fields(args)...); o.code != exitUsage || !strings.Contains(o.stderr, "give it once") {
			t.Errorf("parley %s: exit %d, %s", args, o.code, o.stderr)
		}
	}
	// What is said twice, and what is often in an alias, is no contradiction.
	for _, args := range []string{"--timeout 1s version --timeout 2s", "topic list --help --deleted --deleted", "sub t --help --partition 1 --partition 1"} {
		if o := (call{}).run(t, strings.Fields(args)...); o.code != exitDone {
			t.Errorf("parley %s: exit %d, %s", args, o.code, o.stderr)
		}
	}
}

// TestHelpHasNoZeroDefaults: flags that are held to one value look as they did before.
func TestHelpHasNoZeroDefaults(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if help := c.UsageString(); !c.Hidden && (strings.Contains(help, "(default 0") || strings.Contains(help, `(default "")`)) {
			t.Errorf("%s shows a default that is none:\n%s", c.CommandPath(), help)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}
