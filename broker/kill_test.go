package broker_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

func TestMain(m *testing.M) { brokertest.Main(m) }

// TestKill kills a broker with SIGKILL while plain clients and an idempotent
// producer publish, and looks whether the log holds every acked record once, in
// order. PARLEY_KILLS sets how often; the default is short.
func TestKill(t *testing.T) {
	t.Parallel()
	kills := 3
	if s := os.Getenv("PARLEY_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	p := brokertest.StartProcess(t, dir)
	nc := p.Connect()
	for _, spec := range []wire.TopicSpec{{Name: "plain"}, {Name: "batched"}} {
		if err := brokertest.Call(nc, wire.APITopicCreate, spec, nil); err != nil {
			t.Fatal(err)
		}
	}
	acked := map[string]int64{} // value -> offset, of topic plain
	var reapplied uint64
	next, sequence := 0, int32(0)
	for kill := range kills {
		var wg sync.WaitGroup
		from := next
		var mu sync.Mutex
		gone := make(chan struct{})
		for range 2 {
			wg.Go(func() { // plain clients, many outstanding
				js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(256))
				if err != nil {
					t.Error(err)
					return
				}
				for {
					mu.Lock()
					value := fmt.Sprintf("r%d", next)
					next++
					mu.Unlock()
					future, err := js.PublishAsync("plain", []byte(value), jetstream.WithStallWait(time.Second))
					if err != nil {
						return // the broker has gone
					}
					wg.Go(func() {
						select {
						case a := <-future.Ok():
							mu.Lock()
							acked[value] = int64(a.Sequence) - 1
							mu.Unlock()
						case <-future.Err():
						case <-gone:
						}
					})
				}
			})
		}
		wg.Go(func() { // a producer that retries the batch whose ack it misses
			for {
				batch, err := brokertest.Batch(record.LZ4, record.Producer{ID: 5, Sequence: sequence}, fmt.Sprint(sequence), fmt.Sprint(sequence+1))
				if err != nil {
					t.Error(err)
					return
				}
				ack, err := brokertest.Publish(nc, &nats.Msg{Subject: "$PARLEY.PUB.batched.0", Data: batch})
				if err != nil {
					return
				}
				if ack.Offset != int64(sequence) {
					t.Errorf("batch %d has offset %d", sequence, ack.Offset)
				}
				sequence += 2
			}
		})
		time.Sleep(time.Duration(50+random.IntN(300)) * time.Millisecond) // a load of some length, not a wait for anything
		p.Kill()
		nc.Close()
		close(gone)
		wg.Wait()
		p = brokertest.StartProcess(t, dir)
		nc = p.Connect()
		check(t, nc, acked)
		batched, err := brokertest.ReadAll(nc, "batched", 0)
		if err != nil || len(batched) != int(sequence) && len(batched) != int(sequence)+2 {
			t.Fatalf("%d batched records of %d acked, %v", len(batched), sequence, err)
		}
		for i, r := range batched {
			if string(r.Value) != fmt.Sprint(i) {
				t.Fatalf("batched record %d is %q", i, r.Value)
			}
		}
		reapplied += metric(t, p.HTTP, `parley_partition_reapplied_entries_total{partition="0",topic="plain"}`)
		t.Logf("kill %d: %d published, %d acked in all, %d batched, %d entries applied again", kill+1, next-from, len(acked), len(batched), reapplied)
	}
	if len(acked) == 0 || sequence == 0 || reapplied == 0 {
		t.Errorf("nothing was tested: %d and %d acked, %d applied again", len(acked), sequence, reapplied)
	}
	p.Stop()
}

// check reads the topic back: acked records are where their acks say, no record
// is there twice, and offsets have no gaps.
func check(t *testing.T, nc *nats.Conn, acked map[string]int64) {
	t.Helper()
	all, err := brokertest.ReadAll(nc, "plain", 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int64{}
	for i, r := range all {
		if r.Offset != int64(i) {
			t.Fatalf("record %d has offset %d", i, r.Offset)
		}
		if at, twice := seen[string(r.Value)]; twice {
			t.Fatalf("%s is at %d and at %d", r.Value, at, r.Offset)
		}
		seen[string(r.Value)] = r.Offset
	}
	for value, offset := range acked {
		if at, ok := seen[value]; !ok || at != offset {
			t.Fatalf("%s was acked at %d, it is at %d (%v)", value, offset, at, ok)
		}
	}
}
