package broker_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// scrape reads a broker's metrics: series to value.
func scrape(t *testing.T, m *brokertest.Member) map[string]float64 {
	t.Helper()
	res, err := http.Get("http://" + m.Addresses().HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		if series, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(series, "parley_") {
			if all[series], err = strconv.ParseFloat(v[strings.LastIndexByte(v, ' ')+1:], 64); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
	}
	return all
}

// TestClusterMetrics: what brokers do together shows on each of them, and docs/operations.md names
// every metric there is.
func TestClusterMetrics(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 3)
	nc := c.Brokers[0].Connect()
	// Leaders go to their preferred brokers, of which each has one: b1 then forwards two of three.
	brokertest.Eventually(t, "publishes are acked, and forwarded", func() bool {
		forwards := 0.0
		for n := range 3 {
			if _, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Data: []byte("v"), Header: nats.Header{wire.HeaderPart: {strconv.Itoa(n)}}}); err != nil {
				return false
			}
			forwards = scrape(t, c.Brokers[0])[`parley_forwards_total{peer="b2"}`] + scrape(t, c.Brokers[0])[`parley_forwards_total{peer="b3"}`]
		}
		return forwards > 0
	})
	c.InSync("t")
	var sum map[string]float64
	var wrong []string // each of them settles in its own time
	t.Cleanup(func() {
		for _, w := range wrong {
			t.Error(w)
		}
	})
	brokertest.Eventually(t, "the partitions are spread, in sync and led, and all brokers see each other", func() bool {
		sum, wrong = map[string]float64{}, nil
		for _, m := range c.Brokers {
			for series, v := range scrape(t, m) {
				sum[series] += v
			}
		}
		for series, want := range map[string]float64{
			"parley_partitions_leading":                                  3,
			"parley_partitions_following":                                6,
			"parley_partitions_without_leader":                           0,
			"parley_partitions_under_replicated":                         0,
			"parley_partitions_catching_up":                              0,
			`parley_partition_in_sync_replicas{partition="1",topic="t"}`: 3,
			"parley_council_members":                                     9,
			"parley_council_reachable":                                   9,
			"parley_council_member":                                      3,
			"parley_epoch_proposer":                                      1,
			"parley_epochs_behind":                                       0,
			"parley_epoch":                                               sum["parley_epoch_carried"],
			`parley_mesh_reachable{peer="b1"}`:                           2,
			`parley_mesh_link_up{link="data",peer="b2"}`:                 2,
			`parley_mesh_link_up{link="control",peer="b3"}`:              2,
			"parley_mesh_refused_total":                                  sum["parley_mesh_refused_total"],
			`parley_forwards_under_way{peer="b2"}`:                       0,
			"parley_disk_full":                                           0,
		} {
			if got, ok := sum[series]; !ok || got != want {
				wrong = append(wrong, fmt.Sprintf("%s is %v (there: %v), want %v", series, got, ok, want))
			}
		}
		if sum[`parley_mesh_rtt_seconds{peer="b1"}`] <= 0 {
			wrong = append(wrong, "no round trip was measured")
		}
		return len(wrong) == 0
	})
	if sum["parley_elections_won_total"] < 3 || sum["parley_leader_changes_total"] < 9 || sum["parley_paxos_rounds_total"] < 1 || sum["parley_paxos_proposals_chosen_total"] < 1 {
		t.Errorf("elections %v, changes %v, rounds %v, chosen %v", sum["parley_elections_won_total"], sum["parley_leader_changes_total"],
			sum["parley_paxos_rounds_total"], sum["parley_paxos_proposals_chosen_total"])
	}

	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for series := range sum {
		name, _, _ := strings.Cut(series, "{")
		name = regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		if !strings.Contains(string(doc), "`"+name+"`") && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if slices.Sort(missing); len(missing) > 0 {
		t.Errorf("docs/operations.md says nothing of %s", strings.Join(missing, ", "))
	}
}
