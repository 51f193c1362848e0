package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d:%d\n", i%7, i)
	}
	return b.String()
}

func TestSubGroup(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"--shared"}, {"--shared", "--key-ordered"}} {
		name := topic(t, "--partitions", "3")
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			t.Parallel()
			tool(t, numbered(100), "pub", name, "--key-sep", ":")
			sub := append([]string{"sub", name, "--group", "g", "--member", "tester", "-o", "json"}, flags...)
			var values []string
			read := func(o outcome) {
				t.Helper()
				for _, line := range strings.Split(strings.TrimSpace(o.stdout), "\n") {
					m := decode(t, line)
					wantKeys(t, m, "topic", "partition", "offset", "key", "value", "headers", "time", "deliveries", "token")
					if m["deliveries"] != 1.0 || m["token"].(float64) < 1 {
						t.Errorf("%s", line)
					}
					values = append(values, m["value"].(string))
				}
			}
			// A few, by one run of the tool after the other; then the rest.
			read(tool(t, "", append(sub, "--count", "7")...))
			read(tool(t, "", append(sub, "--count", "1")...))
			if len(values) != 8 {
				t.Fatalf("%d records", len(values))
			}
			read(tool(t, "", append(sub, "--until-end")...))
			slices.Sort(values)
			if len(values) != 100 || len(slices.Compact(values)) != 100 {
				t.Errorf("%d records, want each of 100 once", len(values))
			}
			d := decode(t, tool(t, "", "group", "describe", name, "g", "-o", "json").stdout)
			wantKeys(t, d, "topic", "group", "mode", "members", "partitions")
			parts := d["partitions"].([]any)
			if len(parts) != 3 {
				t.Fatalf("%v", d)
			}
			for _, p := range parts {
				p := p.(map[string]any)
				wantKeys(t, p, "partition", "member", "committed", "next_offset", "lag", "pending", "redelivering")
				if p["lag"] != 0.0 || p["committed"] != p["next_offset"] || p["pending"] != 0.0 {
					t.Errorf("%v", p)
				}
			}
			if o := tool(t, "", "group", "describe", name, "g"); !strings.Contains(o.stdout, "no members") || !strings.Contains(o.stdout, "COMMITTED") {
				t.Errorf("described as\n%s", o.stdout)
			}
			// Without acks they come again; with their number of the delivery in a shared group.
			tool(t, numbered(3), "pub", name, "--key", "k")
			o := tool(t, "", append(sub, "--ack", "none", "--count", "3")...)
			again := tool(t, "", append(sub, "--count", "3")...)
			if a, b := strings.Count(o.stdout, "\n"), strings.Count(again.stdout, "\n"); a != 3 || b != 3 {
				t.Errorf("%d and %d records", a, b)
			}
			first := strings.SplitN(again.stdout, "\n", 2)[0]
			if n := decode(t, first)["deliveries"].(float64); flags != nil && n < 2 {
				t.Errorf("delivered again as %v", n)
			}
		})
	}
}

// A member that acks nothing sees a whole partition, however much that is, and what it saw is still there.
func TestSubWithoutAcks(t *testing.T) {
	t.Parallel()
	const n = 7000 // more than a member may hold
	name := topic(t)
	tool(t, strings.Repeat("x\n", n), "pub", name)
	for _, flags := range [][]string{{"--shared"}, {"--shared", "--key-ordered"}, nil} {
		sub := append([]string{"sub", name, "--group", "g" + strings.Join(flags, ""), "--ack", "none", "--count", fmt.Sprint(n)}, flags...)
		if o := tool(t, "", sub...); strings.Count(o.stdout, "\n") != n {
			t.Errorf("%v: %d records", flags, strings.Count(o.stdout, "\n"))
		}
		d := decode(t, tool(t, "", "group", "describe", name, "g"+strings.Join(flags, ""), "-o", "json").stdout)
		if d["lag"] != float64(n) {
			t.Errorf("%v: lag %v of %d records that nobody acked", flags, d["lag"], n)
		}
	}
}

func TestGroupCommands(t *testing.T) {
	t.Parallel()
	name := topic(t)
	tool(t, numbered(20), "pub", name)
	tool(t, "", "sub", name, "--group", "one", "--until-end")
	tool(t, "", "sub", name, "--group", "two", "--shared", "--from", "latest", "--until-end")
	list := tool(t, "", "group", "list", name, "-o", "json").stdout
	if lines := strings.Split(strings.TrimSpace(list), "\n"); len(lines) != 2 {
		t.Errorf("list %s", list)
	} else {
		wantKeys(t, decode(t, lines[0]), "topic", "group", "mode", "members", "lag", "lag_ms")
	}
	if o := tool(t, "", "group", "list"); !strings.Contains(o.stdout, name) || !strings.Contains(o.stdout, "exclusive") {
		t.Errorf("list of all topics\n%s", o.stdout)
	}
	if c := decode(t, tool(t, "", "group", "reset", name, "one", "--to", "5", "-o", "json").stdout); c["change"] != "reset" {
		t.Errorf("reset %v", c)
	}
	if o := tool(t, "", "sub", name, "--group", "one", "--until-end"); strings.Count(o.stdout, "\n") != 15 {
		t.Errorf("after the reset\n%s", o.stdout)
	}
	tool(t, "", "group", "reset", name, "two", "--to", "earliest", "--partition", "0")
	if o := tool(t, "", "sub", name, "--group", "two", "--shared", "--until-end"); strings.Count(o.stdout, "\n") != 20 {
		t.Errorf("after the reset of the shared one\n%s", o.stdout)
	}
	if r := decode(t, tool(t, "", "group", "redrive", name, "two", "-o", "json").stdout); r["redriven"] != 0.0 {
		t.Errorf("redrive %v", r)
	}
	if o := tool(t, "", "group", "delete", name, "one", "--yes"); !strings.Contains(o.stdout, "deleted") {
		t.Errorf("delete: %s", o.stdout)
	}
	o := fails(t, exitFailed, "group", "describe", name, "one", "-o", "json")
	if e, _ := decode(t, o.stdout)["error"].(map[string]any); e["reason"] != "group_not_found" {
		t.Errorf("describe what is gone: %s", o.stdout)
	}
	o = fails(t, exitFailed, "sub", name, "--group", "two", "-o", "json")
	if e, _ := decode(t, o.stdout)["error"].(map[string]any); e["reason"] != "group_mismatch" {
		t.Errorf("another mode: %s", o.stdout)
	}
}

func TestGroupUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ args, want string }{
		{"sub t --shared", "give --group"},
		{"sub t --ack none", "give --group"},
		{"sub t --group=", "want a name"},
		{"sub t --group g --key-ordered", "give both"},
		{"sub t --group g --ack maybe", "auto or none"},
		{"sub t --group g --partition 1", "exclude each other"},
		{"sub t --group g --until-end --ack none", "exclude each other"},
		{"sub t --group g --ack-wait 1s", "--shared"},
		{"sub t --group g --shared --max-deliveries 0", "1 or more"},
		{"sub t --group g --from nonsense", "earliest, latest"},
		{"group reset t g", "--to is missing"},
		{"group reset t g --to nonsense", "--to"},
		{"group reset t g --to 1 --partition -1", "0 or more"},
		{"group describe t", "want TOPIC GROUP"},
		{"group delete t g", "--yes"},
		{"group redrive t g --limit 0", "1 or more"},
		{"bench sub t --shared", "give --group"},
		{"bench sub t --group g --key-ordered", "give both"},
		{"bench pub t --keys -1", "want 0 to"},
	} {
		o := call{}.run(t, strings.Fields(c.args)...)
		if o.code != exitUsage || !strings.Contains(o.stderr, c.want) || o.stdout != "" {
			t.Errorf("parley %s: exit %d, stdout %q, stderr %q; want exit 2 and %q on stderr", c.args, o.code, o.stdout, o.stderr, c.want)
		}
	}
	for want, ps := range map[string][]int32{"": nil, "3": {3}, "0-2": {0, 1, 2}, "0,2-3,9": {0, 2, 3, 9}} {
		if got := partitionList(ps); got != want {
			t.Errorf("%v is %q, want %q", ps, got, want)
		}
	}
}

func TestBenchGroup(t *testing.T) {
	t.Parallel()
	name := topic(t, "--partitions", "2")
	tool(t, "", "bench", "pub", name, "--records", "2000", "--size", "64B", "--keys", "50")
	for i, flags := range [][]string{nil, {"--shared"}, {"--shared", "--key-ordered"}} {
		args := append([]string{"bench", "sub", name, "--group", fmt.Sprintf("b%d", i), "--records", "2000", "--clients", "2", "-o", "json"}, flags...)
		if r := decode(t, tool(t, "", args...).stdout); r["records"].(float64) < 2000 || r["errors"] != 0.0 {
			t.Errorf("%v: %v", flags, r)
		}
		args = append([]string{"bench", "e2e", name, "--group", fmt.Sprintf("c%d", i), "--records", "50", "--rate", "500", "--size", "64B", "-o", "json"}, flags...)
		if r := decode(t, tool(t, "", args...).stdout); r["records"] != 50.0 || r["p50_us"].(float64) <= 0 {
			t.Errorf("%v: %v", flags, r)
		}
	}
}
