package broker_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/partition/record"
)

// TestLaggardAsSecondOfMajority: one of three replicas was away, and another one goes when it is back. It is needed for each ack from then on: its log takes
// entries while it fetches what it lacks, or they wait for it; how long is measured. When the third one is lost too, it has all that was acked.
func TestLaggardAsSecondOfMajority(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes more than three seconds")
	}
	t.Parallel()
	const before, lacks, after = 10, 60, 10
	for _, far := range []bool{false, true} { // the Raft log has been cut behind what it has
		name := "a little behind"
		if far {
			name = "behind the Raft log"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const rate = 2 << 20
			c := laggards(t, func(c *broker.Config) {
				c.Limits.CatchUpRate = rate
				if !far {
					c.CutBytes = 0
				}
			}, unkept)
			createOn(t, c, "t", "b1", "b2", "b3")
			fill(t, c.Brokers[0], "t", before)
			c.InSync("t")
			b1, b2, b3 := c.Member("b1"), c.Member("b2"), c.Member("b3")
			b3.Stop()
			bytes := fill(t, b1, "t", lacks)
			nc := b1.Connect(nats.MaxReconnects(-1))
			b3.Launch()
			if b3.Broker == nil {
				t.FailNow()
			}
			if far {
				brokertest.Eventually(t, "some is fetched", func() bool { return figure(t, b3, "parley_catchup_fetched_bytes_total") > 0 })
			} else {
				brokertest.Eventually(t, "its link is up", func() bool { return b1.API().Runtime.Reach(c.Epoch().BrokerNamed("b3").ID).Up })
			}
			b2.Isolate(true)
			begin := time.Now()
			brokertest.Eventually(t, "an ack", func() bool {
				_, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Data: []byte("first"), Header: nats.Header{"Nats-Msg-Id": {"first"}}})
				return err == nil
			})
			waited := time.Since(begin)
			t.Logf("%d bytes behind: the first ack with it came after %v", bytes, waited.Round(time.Millisecond))
			if limit := brokertest.Wait + time.Duration(bytes)*time.Second/rate; waited > limit {
				t.Errorf("the first ack came after %v, %v are allowed", waited, limit)
			}
			fill(t, b1, "t", after)
			b2.Stop()
			b1.Kill()
			b2.Isolate(false)
			b2.Start() // which lacks the last ones: b3 alone has all that was acked
			n2 := b2.Connect()
			var all []record.Record
			brokertest.Eventually(t, "all that was acked is read", func() bool {
				var err error
				all, err = brokertest.ReadAll(n2, "t", 0)
				return err == nil && len(all) >= before+lacks+1+after
			})
			if len(all) != before+lacks+1+after || string(all[before+lacks].Value) != "first" {
				t.Errorf("there are %d records, want %d", len(all), before+lacks+1+after)
			}
		})
	}
}
