package broker_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/client/wire"
)

// A program, or a test, runs a whole broker within itself and talks to it with
// any NATS client.
func ExampleStart() {
	dir, err := os.MkdirTemp("", "parley")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	b, err := broker.Start(ctx, broker.Config{
		Name: "embedded", DataDir: dir, Logger: zerolog.Nop(),
		Listen: "127.0.0.1:0", RaftListen: "127.0.0.1:0", HTTP: "off",
		FreeSpaceFloor: -1, DrainTime: time.Millisecond,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close(ctx)
	if _, err := b.API().TopicCreate(ctx, wire.TopicSpec{Name: "orders"}); err != nil {
		log.Fatal(err)
	}

	nc, err := nats.Connect(b.URL())
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	ack, err := nc.Request("orders.eu", []byte("two apples"), 5*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(ack.Data))
	// Output: {"topic":"orders","partition":0,"offset":0,"epoch":2,"stream":"orders","seq":1}
}
