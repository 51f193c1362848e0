package main

import (
	"strings"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestClusterRecover: it says what is lost, does nothing without being told to, and then does it.
func TestClusterRecover(t *testing.T) {
	t.Parallel()
	cluster := brokertest.StartCluster(t, 3)
	b1 := cluster.Brokers[0]
	b1.CreateTopic(wire.TopicSpec{Name: "orders", Partitions: 2, Replicas: 3})
	b1.CreateTopic(wire.TopicSpec{Name: "single", Partitions: 3, Replicas: 1})
	cluster.InSync("orders")
	env := map[string]string{"PARLEY_SERVER": b1.URL()}
	if o := (call{env: env, stdin: "one\ntwo\nthree\n"}).run(t, "pub", "orders"); o.code != exitDone {
		t.Fatal(o.stderr)
	}
	cluster.InSync("orders")
	dir := b1.Dir()
	if o := (call{}).run(t, "cluster", "recover", "--data-dir", dir); o.code != exitFailed || !strings.Contains(o.stderr, "in use") {
		t.Errorf("while the broker runs: exit %d, %s", o.code, o.stderr)
	}
	cluster.Stop()
	o := call{}.run(t, "cluster", "recover", "--data-dir", dir)
	if o.code != exitFailed || !strings.Contains(o.stderr, "nothing was changed") {
		t.Errorf("without being told to: exit %d, %s", o.code, o.stderr)
	}
	for _, text := range []string{"lost     b2, b3", "orders/0   as this broker has it", "begins anew, empty"} {
		if !strings.Contains(o.stdout, text) {
			t.Errorf("no %q in\n%s", text, o.stdout)
		}
	}
	o = call{}.run(t, "cluster", "recover", "--data-dir", dir, "--accept-data-loss", "-o", "json")
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s", o.code, o.stderr)
	}
	wantKeys(t, decode(t, strings.TrimSpace(o.stdout)), "name", "cluster_id", "epoch", "recovered", "lost_brokers", "partitions")
	b1.Start()
	env["PARLEY_SERVER"] = b1.URL()
	o = call{env: env}.run(t, "sub", "orders", "--from", "earliest", "--until-end")
	if got := strings.Fields(o.stdout); o.code != exitDone || len(got) != 3 {
		t.Errorf("exit %d, %q, %s", o.code, got, o.stderr)
	}
	if o := (call{}).run(t, "cluster", "recover", "--data-dir", t.TempDir(), "--accept-data-loss"); o.code != exitFailed || !strings.Contains(o.stderr, "no data directory") {
		t.Errorf("an empty directory: exit %d, %s", o.code, o.stderr)
	}
}
