package broker_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// startAll starts brokers at the same time and returns how each failed; one that
// starts after all is stopped.
func startAll(t *testing.T, configs ...broker.Config) []error {
	t.Helper()
	errs := make([]error, len(configs))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i, c := range configs {
		wg.Go(func() {
			b, err := broker.Start(ctx, c)
			if errs[i] = err; err == nil {
				_ = b.Close(context.Background())
			}
		})
	}
	wg.Wait()
	return errs
}

// anyOf fails unless one of the errors has all the texts.
func anyOf(t *testing.T, errs []error, texts ...string) {
	t.Helper()
	for _, err := range errs {
		ok := err != nil
		for _, text := range texts {
			ok = ok && strings.Contains(err.Error(), text)
		}
		if ok {
			return
		}
	}
	t.Errorf("%v; want one with %q", errs, texts)
}

// TestFormationRefused: brokers that were not meant to form a cluster don't, and say
// who is in the way.
func TestFormationRefused(t *testing.T) {
	t.Parallel()
	t.Run("lists that differ", func(t *testing.T) {
		t.Parallel()
		c := brokertest.NewCluster(t, 2)
		errs := startAll(t, c.Brokers[0].Config(), c.Brokers[1].Config(func(c *broker.Config) { c.InitialCluster += ",b3=b3.peer:6222" }))
		anyOf(t, errs, "lists of initial brokers differ", "b3=b3.peer:6222")
	})
	t.Run("two brokers with one name", func(t *testing.T) {
		t.Parallel()
		c := brokertest.NewCluster(t, 2)
		second := c.Brokers[1].Config(func(c *broker.Config) { c.Name, c.AdvertisePeer = "b1", "" })
		anyOf(t, startAll(t, c.Brokers[0].Config(), second), "at the address of", "b2", "answers a broker that is named b1")
	})
	t.Run("a list without the broker", func(t *testing.T) {
		t.Parallel()
		c := brokertest.NewCluster(t, 2)
		anyOf(t, startAll(t, c.Brokers[0].Config(func(c *broker.Config) { c.Name = "b9" })), "does not name this broker, b9")
	})
	t.Run("secrets that differ", func(t *testing.T) {
		t.Parallel()
		c := brokertest.NewCluster(t, 2)
		b1 := c.Brokers[0].Config(func(c *broker.Config) { c.Secret = []byte("0123456789abcdef") })
		b2 := c.Brokers[1].Config(func(c *broker.Config) { c.Secret = []byte("fedcba9876543210") })
		// They go on trying: one of them may be started anew with the right one.
		anyOf(t, startAll(t, b1, b2), "deadline", "secret")
	})
	t.Run("an address for everybody", func(t *testing.T) {
		t.Parallel()
		c := brokertest.NewCluster(t, 2)
		for _, change := range []brokertest.Option{
			func(c *broker.Config) { c.PeerListen = "0.0.0.0:0" },
			func(c *broker.Config) { c.RaftListen = "0.0.0.0:0" },
		} {
			errs := startAll(t, c.Brokers[0].Config(change))
			anyOf(t, errs, "needs a cluster secret", "mutual TLS")
			var bad *broker.ConfigError
			if !errors.As(errs[0], &bad) {
				t.Errorf("%v is no ConfigError", errs[0])
			}
		}
	})
	t.Run("a port in use", func(t *testing.T) {
		t.Parallel()
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		c := brokertest.NewCluster(t, 2)
		anyOf(t, startAll(t, c.Brokers[0].Config(func(c *broker.Config) { c.PeerListen = taken.Addr().String() })),
			taken.Addr().String(), "in use", "peer-listen")
	})
	t.Run("a lone broker's directory", func(t *testing.T) {
		t.Parallel()
		lone := brokertest.Start(t)
		lone.Stop()
		c := brokertest.NewCluster(t, 2)
		anyOf(t, startAll(t, c.Brokers[0].Config(func(c *broker.Config) { c.DataDir = lone.Dir() })), "belongs to cluster", "names none of its other brokers")
	})
}

// TestFormedClusterRefuses: what a cluster that stands doesn't let in.
func TestFormedClusterRefuses(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	m := c.Brokers[2]
	m.Stop()
	t.Run("an emptied disk", func(t *testing.T) {
		anyOf(t, startAll(t, m.Config(func(c *broker.Config) { c.DataDir = t.TempDir() })), "is not one of the cluster's", "an emptied disk")
	})
	t.Run("another cluster's data", func(t *testing.T) {
		other := brokertest.StartCluster(t, 3)
		o := other.Brokers[2]
		dir := o.Dir()
		o.Stop()
		defer other.Stop()
		// Its peers here belong to a cluster of that list too: they meet, and part.
		b, err := broker.Start(t.Context(), m.Config(func(c *broker.Config) { c.DataDir = dir }))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close(context.Background()) //nolint:errcheck // the test is over
		brokertest.Eventually(t, "they say that they belong to different clusters", func() bool {
			d, err := b.API().BrokerDescribe(t.Context(), wire.NameRequest{Name: "b1"})
			return err == nil && !d.Reachable && strings.Contains(d.Problem, "belongs to cluster")
		})
	})
	m.Start()
	c.InSync("t")
}

// TestSecretAndTLS: brokers that prove themselves form a cluster.
func TestSecretAndTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("a secret of some length\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t, "b1.peer", "b2.peer", "b3.peer", "b1.raft", "b2.raft", "b3.raft")
	c := brokertest.StartCluster(t, 3, func(c *broker.Config) {
		c.SecretFile, c.PeerTLS = secret, broker.PeerTLS{Cert: cert, Key: key, CA: cert}
	})
	createR3(t, c, "t", 3)
	load := brokertest.StartLoad(t, c.URLs(), "t", 1)
	load.More(20)
	load.Check(c.URLs())
}
