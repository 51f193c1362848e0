package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/parleymq/parley/client"
)

func Example() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222", client.WithLog(slog.Info))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()

	if _, err := c.CreateTopic(ctx, client.TopicSpec{Name: "orders", Partitions: 4}); err != nil && !errors.Is(err, client.ErrTopicExists) {
		log.Fatal(err)
	}
	p, err := c.NewProducer(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	ack, err := p.Publish(ctx, client.Record{Key: []byte("customer 7"), Value: []byte("two apples")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("stored at %s/%d, offset %d\n", ack.Topic, ack.Partition, ack.Offset)

	r, err := c.NewReader(ctx, "orders", client.FromEarliest(), client.UntilEnd())
	if err != nil {
		log.Fatal(err)
	}
	for m, err := range r.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d/%d %s: %s\n", m.Partition, m.Offset, m.Key, m.Value)
	}
}

// Many records at once: Send returns at once, the acks come later.
func ExampleProducer_SendFunc() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	p, err := c.NewProducer(ctx, "orders", client.Compression(client.Zstd), client.GiveUp(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	for i := range 1_000_000 {
		err := p.SendFunc(ctx, client.Record{Value: fmt.Appendf(nil, "record %d", i)}, func(_ client.Ack, err error) {
			if err != nil {
				log.Printf("record %d: %v", i, err)
			}
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		log.Fatal(err)
	}
}

// Each record's Future tells what became of it.
func ExampleProducer_Send() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	p, err := c.NewProducer(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	first, err := p.Send(ctx, client.Record{Value: []byte("one")})
	if err != nil {
		log.Fatal(err)
	}
	second, err := p.Send(ctx, client.Record{Value: []byte("two")})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range []client.Future{first, second} {
		ack, err := f.Wait(ctx)
		var e *client.Error
		switch {
		case err == nil:
			fmt.Println("stored at", ack.Offset)
		case errors.As(err, &e) && e.Outcome == client.OutcomeRejected:
			fmt.Println("not stored, and never will be:", err)
		default:
			fmt.Println("perhaps stored:", err)
		}
	}
}

// A Reader holds no state in the cluster. Keep Positions with the results, and go
// on from there.
func ExampleReader_Positions() {
	ctx := context.Background()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()

	var saved map[int32]int64 // from your database
	r, err := c.NewReader(ctx, "orders", client.FromOffsets(saved), client.OnOutOfRange(client.OutOfRangeEarliest))
	if err != nil {
		log.Fatal(err)
	}
	for {
		batch, err := r.NextBatch(ctx)
		if err != nil {
			log.Fatal(err)
		}
		for i := range batch {
			fmt.Printf("%s\n", batch[i].Value)
		}
		saved = r.Positions() // store it in one transaction with what was done
	}
}

// A record with a message id may be published again and is stored once, also by
// another process.
func ExampleClient_Publish() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	ack, err := c.Publish(ctx, "orders", client.Record{Value: []byte("two apples")}, client.MessageID("order 4711"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ack.Offset, ack.Duplicate)
}
