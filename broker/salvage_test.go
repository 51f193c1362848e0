package broker_test

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// recoverPartition plans, or does, a recovery of partition 0 of a topic.
func recoverPartition(t *testing.T, b *brokertest.Member, q wire.RecoverRequest) wire.PartitionRecovery {
	t.Helper()
	r, err := b.API().PartitionRecover(t.Context(), q)
	if err != nil {
		t.Fatalf("recover %+v: %v", q, err)
	}
	return r
}

// publishNumbers publishes so many records to partition 0 of a topic, and returns the last ack.
func publishNumbers(t *testing.T, nc *nats.Conn, topic string, n int) (last wire.PubAck) {
	t.Helper()
	for i := range n {
		m := nats.NewMsg(topic)
		m.Data = strconv.AppendInt(nil, int64(i), 10)
		m.Header.Set("Nats-Msg-Id", rand.Text())
		brokertest.Eventually(t, "an ack", func() bool {
			var err error
			last, err = brokertest.Publish(nc, m)
			return err == nil
		})
	}
	return last
}

// TestRecoverLostPartitions: a broker is gone for good. What only it had begins anew, beyond every offset and token
// that was ever given out; what it shared with one other goes on with that one's replica, and grows
// again. Nothing else is disturbed, and when the broker comes back after all it brings nothing back.
func TestRecoverLostPartitions(t *testing.T) {
	t.Parallel()
	const records = 200
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	b1, b4 := c.Brokers[0], c.Member("b4")
	createOn(t, c, "one", "b4")
	createOn(t, c, "two", "b4", "b3")
	createOn(t, c, "kept", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "kept", 1)
	nc := b1.Connect()
	publishNumbers(t, nc, "one", 5)
	publishNumbers(t, nc, "two", records)
	before := token(t, one(t, nc, "one", "g", wire.NextRequest{Batch: 1}))
	c.InSync("two")
	if _, err := b1.API().PartitionRecover(t.Context(), wire.RecoverRequest{Topic: "two", Accept: true}); err == nil || !strings.Contains(err.Error(), "has a leader, broker b4") {
		t.Errorf("a partition with a leader was recovered: %v", err)
	}
	b4.Kill()
	for _, topic := range []string{"one", "two"} {
		brokertest.Eventually(t, topic+" has no leader that can be reached", func() bool {
			_, err := b1.API().PartitionRecover(t.Context(), wire.RecoverRequest{Topic: topic})
			return err == nil
		})
	}

	// Nothing is left of the one.
	was := c.Epoch().Epoch
	plan := recoverPartition(t, b1, wire.RecoverRequest{Topic: "one"})
	if plan.From != "" || len(plan.To) != 1 || plan.NextOffset < 1_000_000_000 || plan.Change != "planned" || len(plan.Replicas) != 1 || plan.Replicas[0].Reachable || c.Epoch().Epoch != was {
		t.Fatalf("%+v", plan)
	}
	done := recoverPartition(t, b1, wire.RecoverRequest{Topic: "one", Empty: true, Accept: true})
	c.InSync("one")
	if ack := publishNumbers(t, nc, "one", 3); int64(ack.Offset) != done.NextOffset+2 {
		t.Errorf("the third record has offset %d, the partition begins anew at %d", ack.Offset, done.NextOffset)
	}
	if _, _, _, err := brokertest.Fetch(nc, "one", 0, wire.FetchRequest{Offset: 2}); err == nil || !strings.Contains(err.Error(), wire.ReasonOffsetOutOfRange) {
		t.Errorf("a reader of an offset that is gone: %v", err)
	}
	var m *nats.Msg
	brokertest.Eventually(t, "the group goes on", func() bool {
		got, _, err := next(nc, "one", "g", wire.NextRequest{Batch: 1})
		if err != nil || len(got) != 1 {
			return false
		}
		m = got[0]
		return true
	})
	if after := token(t, m); string(m.Data) != "0" || after <= before {
		t.Errorf("the group got %q under token %d, before it was %d: tokens never fall", m.Data, after, before)
	}

	// The other one has a replica left, which has all that was acked.
	plan = recoverPartition(t, b1, wire.RecoverRequest{Topic: "two"})
	if plan.From != "b3" || !strings.Contains(plan.Loss, "nothing that was acked") || plan.Replicas[0].Broker != "b3" || plan.Replicas[0].Index == 0 || plan.Replicas[0].NextOffset != records {
		t.Fatalf("%+v", plan)
	}
	recoverPartition(t, b1, wire.RecoverRequest{Topic: "two", From: "b3", Accept: true})
	brokertest.Eventually(t, "it has been recovered", func() bool {
		p := c.Partition("two", 0)
		return !p.Salvaging()
	})
	c.InSync("two")
	whole := func(where string) {
		t.Helper()
		all, err := brokertest.ReadAll(nc, "two", 0)
		if err != nil || len(all) < records {
			t.Fatalf("%s: %d of %d records, %v", where, len(all), records, err)
		}
		for i := range records {
			if string(all[i].Value) != strconv.Itoa(i) {
				t.Fatalf("%s: record %d is %q", where, i, all[i].Value)
			}
		}
	}
	whole("alone")
	if ack := publishNumbers(t, nc, "two", 1); ack.Offset != records {
		t.Errorf("the next record has offset %d, there were %d", ack.Offset, records)
	}
	c.Move("two", 0, "b2", "b3") // a newcomer gets what the entries of the new group alone don't have
	c.Moved("two")
	c.InSync("two")
	transfer(t, c, "two", "b2")
	whole("from the newcomer")
	b3 := c.Member("b3")
	b3.Stop()
	b3.Start()
	c.InSync("two")

	b4.Start()
	for _, topic := range []string{"one", "two"} {
		clean(t, c, topic)
		for _, p := range c.Describe(topic).Partitions {
			if slices.Contains(p.Replicas, "b4") && topic == "two" {
				t.Errorf("%s is on %v", topic, p.Replicas)
			}
		}
	}
	whole("with b4 back")
	load.More(10)
	load.Check(c.URLs())
	var e *wire.Error
	if _, err := b1.API().PartitionRecover(t.Context(), wire.RecoverRequest{Topic: "two", Accept: true}); !errors.As(err, &e) {
		t.Errorf("recovered again: %v", err)
	}
}

// TestRecoverOneOfTwo: of two replicas one has lost its Raft log. It takes no part, the other one has no majority; a
// recovery goes on with that one, which has all that was acked, and the partition has two replicas again.
func TestRecoverOneOfTwo(t *testing.T) {
	t.Parallel()
	const records = 50
	c := brokertest.StartCluster(t, 3, quickTrash, unkept)
	b1, b2 := c.Brokers[0], c.Member("b2")
	createOn(t, c, "two", "b2", "b3")
	nc := b1.Connect()
	publishNumbers(t, nc, "two", records)
	c.InSync("two")
	dir := b2.Dir()
	b2.Stop()
	if err := os.RemoveAll(filepath.Join(dir, "raft")); err != nil {
		t.Fatal(err)
	}
	b2.Launch()
	if b2.Broker == nil {
		t.FailNow()
	}
	var plan wire.PartitionRecovery
	brokertest.Eventually(t, "nobody leads, and the damage is told", func() bool {
		var err error
		plan, err = b1.API().PartitionRecover(t.Context(), wire.RecoverRequest{Topic: "two"})
		return err == nil && len(plan.Replicas) == 2 && strings.Contains(plan.Replicas[1].Problem, "damaged")
	})
	if plan.From != "b3" || !strings.Contains(plan.Loss, "nothing that was acked") {
		t.Fatalf("%+v", plan)
	}
	recoverPartition(t, b1, wire.RecoverRequest{Topic: "two", Accept: true})
	brokertest.Eventually(t, "two replicas again", func() bool {
		p := c.Partition("two", 0)
		return !p.Salvaging() && !p.Moving() && len(p.Replicas) == 2
	})
	c.InSync("two")
	if all, err := brokertest.ReadAll(nc, "two", 0); err != nil || len(all) != records {
		t.Errorf("%d of %d records, %v", len(all), records, err)
	}
}

// TestRecoveryInterrupted: the broker that is gone on with has begun the new group, can't say so, and is killed. Started again
// it is through, with all that there was, and with what was acked meanwhile.
func TestRecoveryInterrupted(t *testing.T) {
	t.Parallel()
	const records = 50
	c := brokertest.StartCluster(t, 4, quickTrash, unkept)
	b1, b3 := c.Brokers[0], c.Member("b3")
	createOn(t, c, "two", "b4", "b3")
	publishNumbers(t, b1.Connect(), "two", records)
	c.InSync("two")
	c.Member("b4").Kill()
	brokertest.Eventually(t, "nobody leads", func() bool {
		_, err := b1.API().PartitionRecover(t.Context(), wire.RecoverRequest{Topic: "two"})
		return err == nil
	})
	begun := c.Propose(func(next *config.Config) error {
		p := next.Topic("two").Partitions[0]
		r, _ := p.On(next.BrokerNamed("b3").ID)
		return next.GoOn(next.Topic("two").ID, 0, r.ID, config.Origin{Index: 1_000_000_000})
	})
	brokertest.Eventually(t, "b3 knows", func() bool { return b3.API().Store.Current().Epoch >= begun.Epoch })
	b3.Isolate(true)
	if p := c.Partition("two", 0); !p.Salvaging() {
		t.Skip("it was through before b3 could be cut off")
	}
	publishNumbers(t, b3.Connect(), "two", 1) // alone
	b3.Kill()
	b3.Isolate(false)
	b3.Launch()
	brokertest.Eventually(t, "it has been recovered", func() bool {
		p := c.Partition("two", 0)
		return !p.Salvaging()
	})
	c.InSync("two")
	nc := b3.Connect()
	publishNumbers(t, nc, "two", 1)
	all, err := brokertest.ReadAll(nc, "two", 0)
	if err != nil || len(all) != records+2 {
		t.Fatalf("%d of %d records, %v", len(all), records+2, err)
	}
	for i, r := range all[:records] {
		if string(r.Value) != strconv.Itoa(i) {
			t.Errorf("record %d is %q", i, r.Value)
		}
	}
}
