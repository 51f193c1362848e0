package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// refused starts a broker that must not start, and returns why it didn't.
func refused(t *testing.T, c broker.Config) error {
	t.Helper()
	b, err := broker.Start(t.Context(), c)
	if err == nil {
		_ = b.Close(context.Background())
		t.Fatal("the broker started")
	}
	return err
}

func TestLockedDirectory(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	err := refused(t, brokertest.Config(b.Dir()))
	if !errors.Is(err, broker.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d on ", os.Getpid())) {
		t.Errorf("a locked directory: %v", err)
	}
	// The first one goes on, and leaves a directory that the next can have.
	if nc := b.Connect(); nc.Flush() != nil {
		t.Error("the first broker no longer serves")
	}
	b.Stop()
	brokertest.StartIn(t, b.Dir())
}

func TestForeignDirectories(t *testing.T) {
	t.Parallel()
	// A directory of a broker that has data, copied for each case.
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "t"})
	b.Stop()
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  []string
	}{
		"newer format": {func(dir string) error {
			return edit(filepath.Join(dir, "id"), func(m map[string]any) { m["format"] = 99; m["shape"] = "new" })
		}, []string{"format 99", "newer parleyd"}},
		"a newer field": {func(dir string) error {
			return edit(filepath.Join(dir, "id"), func(m map[string]any) { m["shape"] = "new"; m["checksum"] = "11111111" })
		}, []string{"newer parleyd", "shape"}},
		"epochs of a newer level": {func(dir string) error {
			return appendEpoch(filepath.Join(dir, "epochs"), func(c *config.Config) { c.FeatureLevel = config.Level + 1 })
		}, []string{"newer parleyd", "feature level", "not damaged"}},
		"foreign file": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "id"), []byte("{}"), 0o600)
		}, []string{"no data directory of Parley"}},
		"torn identity": {func(dir string) error {
			return os.Truncate(filepath.Join(dir, "id"), 20)
		}, []string{"damaged"}},
		"edited identity": {func(dir string) error {
			return edit(filepath.Join(dir, "id"), func(m map[string]any) { m["broker_id"] = 7 })
		}, []string{"damaged", "checksum"}},
		"missing identity": {func(dir string) error {
			return os.Remove(filepath.Join(dir, "id"))
		}, []string{filepath.Join("", "id"), "is missing"}},
		"missing epochs": {func(dir string) error {
			return os.RemoveAll(filepath.Join(dir, "epochs"))
		}, []string{"epochs", "is empty"}},
		"damaged epochs": {func(dir string) error {
			path := filepath.Join(dir, "epochs", "journal")
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[100] ^= 1
			return os.WriteFile(path, b, 0o600)
		}, []string{"epoch journal is damaged"}},
		"a file in its place": {func(dir string) error {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			return os.WriteFile(dir, nil, 0o600)
		}, []string{"make data directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(b.Dir())); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			err := refused(t, brokertest.Config(dir))
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v; want %q in it", err, want)
				}
			}
		})
	}
}

func appendEpoch(dir string, change func(*config.Config)) error {
	_, err := epoch.Recover(dir, "b1", time.Now(), func(next *config.Config) error {
		change(next)
		return nil
	})
	return err
}

func edit(path string, change func(map[string]any)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	change(m)
	if b, err = json.Marshal(m); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	for name, c := range map[string]struct {
		change func(*broker.Config)
		want   []string
	}{
		"name":        {func(c *broker.Config) { c.Name = "a b" }, []string{"name", `"a b"`, "allowed"}},
		"address":     {func(c *broker.Config) { c.Listen = "4222" }, []string{"listen", `"4222"`, "HOST:PORT"}},
		"port":        {func(c *broker.Config) { c.RaftListen = "127.0.0.1:99999" }, []string{"raft-listen"}},
		"advertise":   {func(c *broker.Config) { c.AdvertiseClient = ":4222" }, []string{"advertise-client"}},
		"weight":      {func(c *broker.Config) { c.Weight = -1 }, []string{"weight", "1 to 10000"}},
		"max record":  {func(c *broker.Config) { c.MaxRecord = 2 << 20 }, []string{"max-record", "1048576"}},
		"half a user": {func(c *broker.Config) { c.User = "ann" }, []string{"user", "password"}},
		"two ways in": {func(c *broker.Config) { c.User, c.Password, c.Token = "a", "b", "c" }, []string{"token"}},
		"half a key":  {func(c *broker.Config) { c.TLS.Cert = "x.pem" }, []string{"tls-cert", "tls-key"}},
		"no key file": {func(c *broker.Config) { c.TLS.Cert, c.TLS.Key = "/nope.pem", "/nope.key" }, []string{"tls-cert", "/nope.pem"}},
		"engine":      {func(c *broker.Config) { c.Engine = "paper" }, []string{"engine", `"paper"`, "badger"}},
		"port in use": {func(c *broker.Config) { c.Listen = taken.Addr().String() }, []string{taken.Addr().String(), "in use"}},
		"HTTP in use": {func(c *broker.Config) { c.HTTP = taken.Addr().String() }, []string{"HTTP", "in use"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := brokertest.Config(t.TempDir(), c.change)
			err := refused(t, config)
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v; want %q in it", err, want)
				}
			}
			// What failed left nothing behind that keeps the next one out.
			brokertest.StartIn(t, config.DataDir).Stop()
		})
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "t", Partitions: 2})
	nc := b.Connect()
	if _, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Header: nats.Header{wire.HeaderPart: {"1"}}, Data: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	get := func(path string, status int) string {
		t.Helper()
		res, err := http.Get("http://" + b.Addresses().HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != status {
			t.Errorf("%s: %d %s %v", path, res.StatusCode, body, err)
		}
		return string(body)
	}
	for path, want := range map[string][]string{
		"/healthz":              {"ok"},
		"/readyz":               {"ok"},
		"/v1/topics":            {`"name":"t"`, `"partitions":2`},
		"/v1/topics/t":          {`"next_offset":1`, `"leader":"b1"`},
		"/v1/topics?limit=1":    {`"more":false`},
		"/v1/partitions":        {`"topic":"t"`, `"partition":1`},
		"/v1/cluster":           {`"council":["b1"]`, `"leaderless":0`},
		"/v1/health":            {`"healthy":true`},
		"/v1/brokers":           {`"name":"b1"`},
		"/v1/epochs":            {`"change":"topic t created`},
		"/v1/epochs/1":          {`cluster formed`},
		"/metrics":              {`parley_partition_next_offset{partition="1",topic="t"} 1`, "parley_ready 1", "parley_publish_seconds_count 1", "parley_raft_replicas 2", "go_goroutines", "parley_client_connections", "parley_records_in_total 1"},
		"/v1/topics?after=zzzz": {`"topics":[]`},
	} {
		body := get(path, http.StatusOK)
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s: no %q in %s", path, w, body)
			}
		}
	}
	for path, status := range map[string]int{
		"/v1/topics/nobody": 404, "/v1/topics?limit=x": 400, "/v1/topics?limit=-1": 400, "/v1/epochs/x": 400, "/v1/epochs/999": 404,
		"/v1/topics?deleted=maybe": 400, "/nope": 404, "/debug/pprof/": 404,
	} {
		get(path, status)
	}
	res, err := http.Post("http://"+b.Addresses().HTTP+"/v1/topics", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", res.StatusCode)
	}
	b.Stop()
	if err := b.Wait(); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if _, err := http.Get("http://" + b.Addresses().HTTP + "/healthz"); err == nil {
		t.Error("HTTP is served after the stop")
	}
}

// metric reads one figure of a broker's metrics.
func metric(t *testing.T, address, name string) uint64 {
	t.Helper()
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				t.Fatal(err)
			}
			return uint64(v)
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
