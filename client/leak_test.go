package client_test

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
)

// TestCloseLeavesNothing is not parallel: no other test runs beside it.
func TestCloseLeavesNothing(t *testing.T) {
	b := brokertest.Start(t)
	ctx := deadline(t)
	c, err := client.Connect(ctx, b.URL())
	if err != nil {
		t.Fatal(err)
	}
	createTopic(t, c, "leaks", 4)
	p, err := c.NewProducer(ctx, "leaks")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(ctx, client.Record{Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	r, err := c.NewReader(ctx, "leaks")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(ctx); err != nil {
		t.Fatal(err)
	}
	for _, mode := range groupModes {
		if _, err := c.Subscribe(ctx, "leaks", string(mode), func(context.Context, *client.Message) error { return nil }, client.Mode(mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
	var left []string
	brokertest.Eventually(t, "the client's goroutines are gone", func() bool {
		left = nil
		buf := make([]byte, 4<<20)
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "parley/client.(*") || strings.Contains(stack, "nats.go.(*") {
				left = append(left, stack)
			}
		}
		return len(left) == 0
	})
	if _, err := c.Status(ctx); err == nil {
		t.Error("a closed client answers")
	}
	if err := c.Close(context.Background()); err != nil {
		t.Errorf("second close: %v", err)
	}
}
