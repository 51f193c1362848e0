package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/parleymq/parley/client"
)

// A worker pool: any number of processes run this, each record goes to one of them, and eight are handled at a time in each. What
// fails is tried again, and after five times goes to the topic dlq-resize-workers.
func ExampleClient_Subscribe() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222", client.WithLog(slog.Info))
	if err != nil {
		log.Fatal(err)
	}
	sub, err := c.Subscribe(ctx, "resize", "workers", func(ctx context.Context, m *client.Message) error {
		switch err := resize(ctx, m.Value); {
		case errors.Is(err, errNoImage):
			return client.Terminate("not an image") // no use in trying again
		case errors.Is(err, errBusy):
			return client.RetryAfter(time.Minute, err)
		default:
			return err
		}
	}, client.Mode(client.Shared), client.Concurrency(8), client.MaxDeliveries(5), client.Backoff(time.Second, 10*time.Second, time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-sub.Done():
		log.Print(sub.Err())
	}
	// What is in hand is finished, but not for longer than this.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		log.Print(err)
	}
}

var (
	errNoImage = errors.New("not an image")
	errBusy    = errors.New("busy")
)

func resize(context.Context, []byte) error { return nil }

// Ordered processing: each partition belongs to one member at a time, which handles its records in order. With Concurrency the
// order is kept key by key, and other keys go on beside.
func ExampleClient_Subscribe_ordered() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	sub, err := c.Subscribe(ctx, "accounts", "ledger", func(_ context.Context, m *client.Message) error {
		fmt.Printf("account %s: %s\n", m.Key, m.Value)
		return nil
	}, client.Concurrency(16), client.FromLatest())
	if err != nil {
		log.Fatal(err)
	}
	<-sub.Done()
	log.Fatal(sub.Err())
}

// Consume, transform, produce: the positions are committed after what was made of the records is acked, so nothing is lost. After a
// crash some records are made twice; their message ids, or whoever reads them, can tell.
func ExampleClient_SubscribeBatch() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	p, err := c.NewProducer(ctx, "invoices")
	if err != nil {
		log.Fatal(err)
	}
	sub, err := c.SubscribeBatch(ctx, "orders", "invoicing", func(ctx context.Context, batch []*client.Message) error {
		futures := make([]client.Future, 0, len(batch))
		for _, m := range batch {
			f, err := p.Send(ctx, client.Record{Key: m.Key, Value: append([]byte("invoice for "), m.Value...),
				Headers: []client.Header{client.Text("From", fmt.Sprintf("%s/%d/%d", m.Topic, m.Partition, m.Offset))}})
			if err != nil {
				return err
			}
			futures = append(futures, f)
		}
		for _, f := range futures {
			if _, err := f.Wait(ctx); err != nil {
				return err
			}
		}
		return nil // only now may the position move on
	}, client.BatchSize(500))
	if err != nil {
		log.Fatal(err)
	}
	<-sub.Done()
	log.Fatal(sub.Err())
}

// Messages one by one, acked by hand.
func ExampleClient_Messages() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	messages, err := c.Messages(ctx, "orders", "audit", client.Mode(client.Shared))
	if err != nil {
		log.Fatal(err)
	}
	for m, err := range messages.All(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if len(m.Value) == 0 {
			_ = m.Term("empty")
			continue
		}
		fmt.Printf("%s, delivery %d\n", m.Value, m.Deliveries)
		if err := m.Ack(); err != nil {
			log.Print(err) // too late: it will come again, to somebody
		}
	}
}

// balances is a database that knows about fencing tokens. In SQL, in the transaction that makes the change:
//
//	UPDATE fence SET token = $1 WHERE topic = $2 AND partition = $3 AND token <= $1
//
// and no row updated means: roll back.
type balances struct {
	mu     sync.Mutex
	tokens map[int32]uint64 // the largest one seen, by partition
	sums   map[string]int
}

var errFenced = errors.New("another member has the partition")

func (b *balances) add(partition int32, token uint64, account string, amount int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if token < b.tokens[partition] {
		return errFenced
	}
	b.tokens[partition] = token
	b.sums[account] += amount
	return nil
}

// A member that is stopped in its tracks, by a long pause of its machine for example, loses its partitions to others. When it goes on, its
// handler doesn't know that yet. Its fencing token gives it away: the database refuses whoever comes with a smaller
// one than it has seen.
func ExampleMessage_fencing() {
	db := &balances{tokens: map[int32]uint64{}, sums: map[string]int{}}
	handler := func(_ context.Context, m *client.Message) error {
		return db.add(m.Partition, m.Token, string(m.Key), len(m.Value))
	}
	// As two members of an exclusive group see partition 0, one after the other:
	ctx := context.Background()
	zombie := &client.Message{Partition: 0, Offset: 7, Token: 1041, Key: []byte("alice"), Value: []byte("xxx")}
	owner := &client.Message{Partition: 0, Offset: 7, Token: 1187, Key: []byte("alice"), Value: []byte("xxx")}

	fmt.Println("owner:", handler(ctx, owner))
	fmt.Println("zombie:", handler(ctx, zombie))
	fmt.Println("alice has", db.sums["alice"])
	// Output:
	// owner: <nil>
	// zombie: another member has the partition
	// alice has 3
}
