package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
)

// The commands about a cluster, against one of three brokers.
func TestClusterOfThree(t *testing.T) {
	t.Parallel()
	cluster := brokertest.StartCluster(t, 3)
	env := map[string]string{"PARLEY_SERVER": cluster.URLs()}
	ok := func(args ...string) string {
		t.Helper()
		o := call{env: env}.run(t, args...)
		if o.code != exitDone {
			t.Fatalf("parley %s: exit %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
		}
		return o.stdout
	}
	lines := func(args ...string) (all []map[string]any) {
		t.Helper()
		for line := range strings.Lines(ok(append(args, "-o", "json")...)) {
			all = append(all, decode(t, line))
		}
		return all
	}
	created := lines("topic", "create", "orders", "--partitions", "3", "--replicas", "3")[0]
	wantKeys(t, created, "epoch")
	cluster.InSync("orders")

	brokers := lines("broker", "list")
	if len(brokers) != 3 {
		t.Fatalf("broker list: %v", brokers)
	}
	wantKeys(t, brokers[0], "name", "id", "state", "rack", "weight", "replicas", "leaders", "address", "reachable")
	one := lines("broker", "describe", "b2")[0]
	wantKeys(t, one, "name", "incarnation", "peer_address", "raft_address", "partitions", "epoch")
	if held, _ := one["partitions"].([]any); len(held) != 3 {
		t.Errorf("broker describe: %d partitions, want 3", len(held))
	}
	if text := ok("broker", "describe", "b2"); !strings.Contains(text, "incarnation") || !strings.Contains(text, "orders") {
		t.Errorf("broker describe:\n%s", text)
	}
	o := call{env: env}.run(t, "broker", "describe", "b9")
	if o.code != exitFailed || !strings.Contains(o.stderr, "b1, b2, b3") {
		t.Errorf("broker describe b9: exit %d, %s", o.code, o.stderr)
	}

	if all := lines("partition", "list"); len(all) != 3 || all[2]["topic"] != "orders" || all[2]["partition"] != 2.0 {
		t.Errorf("partition list: %v", all)
	}
	before := lines("partition", "describe", "orders/1")[0]
	to := ""
	for _, name := range []string{"b1", "b2", "b3"} {
		if name != before["leader"] {
			to = name
		}
	}
	moved := lines("partition", "transfer", "orders/1", "--to", to)[0]
	wantKeys(t, moved, "topic", "partition", "change", "leader", "epoch")
	if moved["change"] != "transferred" || moved["leader"] != to {
		t.Errorf("transfer: %v", moved)
	}
	brokertest.Eventually(t, "led by "+to, func() bool { return lines("partition", "describe", "orders/1")[0]["leader"] == to })
	if text := ok("partition", "transfer", "orders/1", "--to", to); !strings.Contains(text, "already") || !strings.Contains(text, "(epoch ") {
		t.Errorf("a second transfer says %q", text)
	}
	o = call{env: env}.run(t, "partition", "transfer", "orders/1", "--to", "b9")
	if o.code != exitFailed || !strings.Contains(o.stderr, "b9") {
		t.Errorf("transfer to b9: exit %d, %s", o.code, o.stderr)
	}

	status := lines("cluster", "status")[0]
	wantKeys(t, status, "cluster_id", "epoch", "council", "brokers", "partitions", "leaderless", "under_replicated")
	if council, _ := status["council"].([]any); len(council) != 3 {
		t.Errorf("council: %v", status["council"])
	}
	brokertest.Eventually(t, "healthy", func() bool { return call{env: env}.run(t, "cluster", "health").code == exitDone })

	epochs := lines("epoch", "list")
	newest := epochs[0]["epoch"].(float64)
	if newest < moved["epoch"].(float64) {
		t.Errorf("the newest epoch is %v, the transfer was %v", newest, moved["epoch"])
	}
	if text := ok("epoch", "diff", fmt.Sprint(created["epoch"])); !strings.Contains(text, "orders") {
		t.Errorf("epoch diff:\n%s", text)
	}
	changes := ok("epoch", "list")
	if !slices.ContainsFunc(strings.Split(changes, "\n"), func(line string) bool { return strings.Contains(line, "orders/1") && strings.Contains(line, to) }) {
		t.Errorf("the transfer is not in\n%s", changes)
	}
	if text := ok("epoch", "show", fmt.Sprint(moved["epoch"])); !strings.Contains(text, "orders") {
		t.Errorf("epoch show:\n%s", text)
	}

	// A broker that is gone is seen everywhere.
	cluster.Member("b3").Kill()
	brokertest.Eventually(t, "b3 unreachable", func() bool {
		for _, b := range lines("broker", "list") {
			if b["name"] == "b3" {
				return b["reachable"] == false
			}
		}
		return false
	})
	brokertest.Eventually(t, "health fails because of b3", func() bool { // each call may ask another broker
		o := call{env: env}.run(t, "cluster", "health")
		return o.code == exitFailed && strings.Contains(o.stdout, "b3")
	})
}
