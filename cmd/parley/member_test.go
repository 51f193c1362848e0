package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// The commands that change who belongs to a cluster and what moves.
func TestMembersAndMoves(t *testing.T) {
	t.Parallel()
	cluster := brokertest.StartCluster(t, 4, func(c *broker.Config) { c.BalanceAfter, c.UpkeepEvery = 100*time.Millisecond, 100*time.Millisecond })
	env := map[string]string{"PARLEY_SERVER": cluster.Brokers[0].URL()}
	ok := func(args ...string) string {
		t.Helper()
		o := call{env: env}.run(t, args...)
		if o.code != exitDone {
			t.Fatalf("parley %s: exit %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
		}
		return o.stdout
	}
	object := func(args ...string) map[string]any {
		t.Helper()
		return decode(t, strings.TrimSpace(ok(append(args, "-o", "json")...)))
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if o := (call{env: env}).run(t, args...); o.code != exitFailed || !strings.Contains(o.stderr, want) {
			t.Errorf("parley %s: exit %d, want %q in\n%s", strings.Join(args, " "), o.code, want, o.stderr)
		}
	}
	ok("topic", "create", "orders", "--partitions", "4", "--replicas", "1")
	cluster.InSync("orders")

	// A partition is moved by hand, and stays there.
	from := cluster.Describe("orders").Partitions[0].Replicas[0]
	names := []string{"b1", "b2", "b3", "b4"}
	to := names[(slices.Index(names, from)+1)%4]
	moved := object("partition", "move", "orders/0", "--to", to)
	wantKeys(t, moved, "topic", "partition", "change", "leader", "replicas", "epoch")
	if moved["change"] != "moving" {
		t.Errorf("move: %v", moved)
	}
	on := func(n int, brokers ...string) {
		t.Helper()
		brokertest.Eventually(t, fmt.Sprintf("partition %d is on %v", n, brokers), func() bool {
			p := cluster.Describe("orders").Partitions[n]
			return slices.Equal(p.Replicas, brokers) && p.Move == nil && p.Leader != ""
		})
	}
	on(0, to)
	if text := ok("partition", "move", "orders/0", "--to", to); !strings.Contains(text, "is on, or on its way to, "+to) {
		t.Errorf("moved again: %q", text)
	}
	refused("there is no broker", "partition", "move", "orders/0", "--to", "b9")
	refused("has 1 replica: name as many", "partition", "move", "orders/0", "--to", "b1,b2")

	// Balance is shown first, and then done.
	plan := object("cluster", "balance", "--dry-run")
	wantKeys(t, plan, "change", "moves", "leaders", "brokers", "bytes", "epoch")
	var parsed wire.BalancePlan
	b, _ := json.Marshal(plan)
	if err := json.Unmarshal(b, &parsed); err != nil || parsed.Change != "planned" || len(parsed.Moves) != 1 || parsed.Moves[0].From != to || parsed.Moves[0].To != from || parsed.Moves[0].Why == "" {
		t.Errorf("%v: plan %+v", err, parsed)
	}
	if text := ok("cluster", "balance", "--dry-run"); !strings.Contains(text, "nothing was changed: 1 replicas would move") || !strings.Contains(text, "orders/") {
		t.Errorf("plan:\n%s", text)
	}
	if text := ok("cluster", "balance"); !strings.Contains(text, "begun: 1 replicas move") {
		t.Errorf("balance:\n%s", text)
	}
	brokertest.Eventually(t, "replicas are even", func() bool {
		s := object("cluster", "status")
		return s["moving"] == 0.0 && s["uneven"] == false && s["feature_level"] == float64(config.Level)
	})
	if again := object("cluster", "balance"); again["change"] != "unchanged" {
		t.Errorf("balance again: %v", again)
	}

	// More replicas, and fewer.
	if text := ok("topic", "alter", "orders", "--replicas", "3"); !strings.Contains(text, "replicas 1 -> 3") {
		t.Errorf("alter: %q", text)
	}
	counts := func(want int) {
		t.Helper()
		brokertest.Eventually(t, fmt.Sprintf("%d replicas each", want), func() bool {
			for _, p := range cluster.Describe("orders").Partitions {
				if len(p.Replicas) != want || p.Move != nil {
					return false
				}
			}
			return true
		})
	}
	counts(3)
	cluster.InSync("orders")
	ok("topic", "alter", "orders", "--replicas", "2")
	counts(2)
	refused("5 replicas can't be placed on 4 active brokers", "topic", "alter", "orders", "--replicas", "5")

	// A broker is drained, taken back, drained for good and removed.
	refused("drain it first", "broker", "remove", "b4")
	if r := object("broker", "drain", "b4"); r["change"] != "draining" {
		t.Errorf("drain: %v", r)
	}
	if r := object("broker", "resume", "b4"); r["change"] != "resumed" {
		t.Errorf("resume: %v", r)
	}
	drained := object("broker", "drain", "b4", "--wait")
	wantKeys(t, drained, "name", "change", "replicas", "epoch")
	if drained["replicas"] != 0.0 {
		t.Errorf("drained: %v", drained)
	}
	if text := ok("broker", "remove", "b4"); !strings.Contains(text, "broker b4 removed (epoch ") {
		t.Errorf("removed: %q", text)
	}
	cluster.Forget("b4")
	refused("there is no broker", "broker", "describe", "b4")
	brokertest.Eventually(t, "healthy", func() bool { return call{env: env}.run(t, "cluster", "health").code == exitDone })
}
