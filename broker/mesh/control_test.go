package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/client/wire"
)

func TestRequests(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	b.Handle("echo", func(_ context.Context, from Identity, req []byte) ([]byte, error) {
		return append([]byte(from.Name+" said "), req...), nil
	})
	b.Handle("refuse", func(context.Context, Identity, []byte) ([]byte, error) {
		return nil, fmt.Errorf("look: %w", &wire.Error{Code: 409, Reason: wire.ReasonEpochConflict, Retriable: true, Description: "no"})
	})
	b.Handle("fail", func(context.Context, Identity, []byte) ([]byte, error) { return nil, errors.New("disk on fire") })
	b.Handle("size", func(_ context.Context, _ Identity, req []byte) ([]byte, error) {
		return bytes.Repeat(req[:1], len(req)), nil
	})
	ctx := context.Background()

	got, err := a.Request(ctx, 2, "echo", []byte("hello"))
	if err != nil || string(got) != "b1 said hello" {
		t.Fatalf("echo: %q, %v", got, err)
	}
	var e *wire.Error
	if _, err = a.Request(ctx, 2, "refuse", nil); !errors.As(err, &e) || e.Code != 409 || !e.Retriable || e.Reason != wire.ReasonEpochConflict {
		t.Fatalf("refuse: %v", err)
	}
	if _, err = a.Request(ctx, 2, "fail", nil); !errors.As(err, &e) || e.Code != 500 || !strings.Contains(e.Description, "disk on fire") {
		t.Fatalf("fail: %v", err)
	}
	if _, err = a.Request(ctx, 2, "unknown", nil); !errors.As(err, &e) || e.Code != 404 {
		t.Fatalf("unknown: %v", err)
	}
	if _, err = a.Request(ctx, 9, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("unknown broker: %v", err)
	}
	for _, size := range []int{1, chunkSize - 10, chunkSize, largeChunk, MaxPayload} {
		got, err := a.Request(ctx, 2, "size", bytes.Repeat([]byte("x"), size))
		if err != nil || len(got) != size {
			t.Fatalf("size %d: %d bytes back, %v", size, len(got), err)
		}
	}
	if _, err = a.Request(ctx, 2, "size", make([]byte, MaxPayload+1)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	for range 3 { // it must not have hurt the link
		if _, err = a.Request(ctx, 2, "echo", nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRequestsAtOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, func(c *Config) { c.MaxRequests = 8 })
	a, b := c.nodes[0], c.nodes[1]
	let := make(chan struct{})
	var under atomic.Int32
	b.Handle("wait", func(ctx context.Context, _ Identity, req []byte) ([]byte, error) {
		under.Add(1)
		select {
		case <-let:
			return req, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			want := fmt.Sprint(i)
			got, err := a.Request(context.Background(), 2, "wait", []byte(want))
			if err != nil || string(got) != want {
				t.Errorf("request %d: %q, %v", i, got, err)
			}
		}()
	}
	until(t, "eight at work", func() bool { return under.Load() == 8 })
	var e *wire.Error
	if _, err := a.Request(context.Background(), 2, "wait", nil); !errors.As(err, &e) || e.Reason != wire.ReasonBusy {
		t.Errorf("ninth: %v", err)
	}
	close(let)
	wg.Wait()
}

func TestRequestDeadlineReachesTheHandler(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	ended := make(chan error, 1)
	c.nodes[1].Handle("slow", func(ctx context.Context, _ Identity, _ []byte) ([]byte, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	var e *wire.Error // when the handler's answer wins the race
	if _, err := c.nodes[0].Request(ctx, 2, "slow", nil); !errors.Is(err, context.DeadlineExceeded) && !(errors.As(err, &e) && e.Reason == wire.ReasonTimeout) {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the handler's context has not ended")
	}
}

func TestSendsComeInOrder(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3)
	const n = 2000
	got := make(chan string, 4*n)
	c.nodes[2].Handle("paxos", func(_ context.Context, from Identity, req []byte) ([]byte, error) {
		got <- fmt.Sprintf("%d:%s", from.Broker, req)
		return nil, nil
	})
	for i := range n {
		for _, from := range c.nodes[:2] {
			if err := from.Send(3, "paxos", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := map[string]int{}
	for range 2 * n {
		select {
		case s := <-got:
			from, number, _ := strings.Cut(s, ":")
			if number != fmt.Sprint(next[from]) {
				t.Fatalf("broker %s: message %s, want %d", from, number, next[from])
			}
			next[from]++
		case <-time.After(30 * time.Second):
			t.Fatalf("got %v of %d each", next, n)
		}
	}
	if err := c.nodes[0].Send(9, "paxos", nil); !errors.Is(err, ErrUnreachable) {
		t.Fatal(err)
	}
}

func TestAsk(t *testing.T) {
	t.Parallel()
	stranger := startNode(t, Identity{Name: "new", Incarnation: "inc-new"})
	c := newTestCluster(t, 2)
	c.nodes[1].Handle("who", func(_ context.Context, from Identity, req []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%s %d %s", from.Name, from.Broker, req), nil
	})
	c.nodes[1].HandleMembers("secrets", func(context.Context, Identity, []byte) ([]byte, error) { return []byte("42"), nil })
	address := c.nodes[1].Address().String()
	ctx := context.Background()

	who, got, err := stranger.Ask(ctx, address, "who", []byte("x"))
	if err != nil || who != identity(1) || string(got) != "new 0 x" {
		t.Fatalf("stranger: %v %q %v", who, got, err)
	}
	var e *wire.Error
	if who, _, err = stranger.Ask(ctx, address, "secrets", nil); !errors.As(err, &e) || e.Code != 401 || who != identity(1) {
		t.Fatalf("stranger: %v %v", who, err)
	}
	if _, got, err = c.nodes[0].Ask(ctx, address, "who", nil); err != nil || string(got) != "b1 1 " {
		t.Fatalf("member: %q %v", got, err)
	}
	if _, got, err = c.nodes[0].Ask(ctx, address, "secrets", nil); err != nil || string(got) != "42" {
		t.Fatalf("member: %q %v", got, err)
	}
	if _, _, err = c.nodes[1].Ask(ctx, address, "who", nil); !errors.Is(err, ErrSelf) {
		t.Fatalf("itself: %v", err)
	}
	closed := listen(t)
	closed.Close()
	if _, _, err = stranger.Ask(ctx, closed.Addr().String(), "who", nil); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("nobody there: %v", err)
	}
}

// TestRequestData: answers come on the data link, large ones too, several at
// once.
func TestRequestData(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2)
	a, b := c.nodes[0], c.nodes[1]
	b.HandleMembers("size", func(_ context.Context, from Identity, req []byte) ([]byte, error) {
		if from.Name != "b1" {
			t.Errorf("request of %v", from)
		}
		return make([]byte, len(req)*1024), nil
	})
	b.HandleMembers("refuse", func(context.Context, Identity, []byte) ([]byte, error) {
		return nil, &wire.Error{Code: 409, Reason: wire.ReasonEpochConflict, Description: "no"}
	})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				got, err := a.RequestData(t.Context(), 2, "size", make([]byte, 1500))
				if err != nil || len(got) != 1500*1024 {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	all.Wait()
	var e *wire.Error
	if _, err := a.RequestData(t.Context(), 2, "refuse", nil); !errors.As(err, &e) || e.Code != 409 {
		t.Errorf("refuse: %v", err)
	}
	if _, err := a.RequestData(t.Context(), 9, "size", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("unknown broker: %v", err)
	}
}
