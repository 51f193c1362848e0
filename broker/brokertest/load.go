package brokertest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/client"
)

// Load publishes numbered records with the SDK until it is stopped, and then
// knows what has to be in the topic.
type Load struct {
	t      testing.TB
	topic  string
	client *client.Client
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	acked   map[string]int64 // value to offset, by partition and number
	failed  []error
	lastAck time.Time
	gap     time.Duration // the longest time without an ack
}

// loadPause lies between two records of one sender: the load is to be steady, not
// heavy.
const loadPause = 2 * time.Millisecond

// StartLoad starts senders, each with a Producer of its own, at the brokers of the
// URLs.
func StartLoad(t testing.TB, urls, topic string, senders int) *Load {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	c, err := client.Connect(ctx, urls)
	if err != nil {
		t.Fatalf("connect for the load: %v", err)
	}
	l := &Load{t: t, topic: topic, client: c, acked: map[string]int64{}, lastAck: time.Now()}
	run, stop := context.WithCancel(context.Background())
	l.stop = stop
	for s := range senders {
		p, err := c.NewProducer(ctx, topic, client.GiveUp(Wait))
		if err != nil {
			t.Fatalf("make a producer: %v", err)
		}
		l.wg.Go(func() { l.send(run, s, p) })
	}
	t.Cleanup(func() {
		l.stop()
		l.wg.Wait()
		_ = c.Close(context.Background())
	})
	return l
}

func (l *Load) send(ctx context.Context, sender int, p *client.Producer) {
	tick := time.NewTicker(loadPause)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		value := fmt.Sprintf("%d/%d", sender, n)
		err := p.SendFunc(context.Background(), client.Record{Key: strconv.AppendInt(nil, int64(n%16), 10), Value: []byte(value)}, func(a client.Ack, err error) {
			l.note(value, a, err)
		})
		if err != nil {
			l.note(value, client.Ack{}, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	limit, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	if err := p.Close(limit); err != nil {
		l.note("", client.Ack{}, err)
	}
}

func (l *Load) note(value string, a client.Ack, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = append(l.failed, fmt.Errorf("record %q: %w", value, err))
		return
	}
	now := time.Now()
	l.gap = max(l.gap, now.Sub(l.lastAck))
	l.lastAck = now
	l.acked[value] = a.Offset
}

// Acked is how many records were acked so far.
func (l *Load) Acked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// More waits until n more records were acked.
func (l *Load) More(n int) {
	l.t.Helper()
	want := l.Acked() + n
	Eventually(l.t, fmt.Sprintf("%d more records are acked", n), func() bool { return l.Acked() >= want })
}

// Gap returns the longest time without an ack since it was last asked.
func (l *Load) Gap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := max(l.gap, time.Since(l.lastAck))
	l.gap, l.lastAck = 0, time.Now()
	return g
}

// Stop ends the load; what is under way is waited for.
func (l *Load) Stop() {
	l.stop()
	l.wg.Wait()
}

// Check ends the load and reads the topic: no publish failed, every acked record is
// there once, and each sender's records of one key are in order.
func (l *Load) Check(urls string) {
	l.t.Helper()
	l.Stop()
	for i, err := range l.failed {
		if i == 5 {
			l.t.Errorf("and %d more failed", len(l.failed)-i)
			break
		}
		l.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	c, err := client.Connect(ctx, urls)
	if err != nil {
		l.t.Fatalf("connect to check the load: %v", err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	r, err := c.NewReader(ctx, l.topic, client.FromEarliest(), client.UntilEnd())
	if err != nil {
		l.t.Fatalf("read the load: %v", err)
	}
	defer func() { _ = r.Close(context.Background()) }()
	seen := map[string]int{}
	last := map[string]int{}
	for m, err := range r.Messages(ctx) {
		if err != nil {
			l.t.Fatalf("read the load: %v", err)
		}
		value := string(m.Value)
		seen[value]++
		if at, ok := l.acked[value]; !ok {
			l.t.Errorf("record %q is there and was never acked", value)
		} else if at >= 0 && at != m.Offset {
			l.t.Errorf("record %q was acked at %d and is at %d", value, at, m.Offset)
		}
		sender, number, _ := strings.Cut(value, "/")
		n, _ := strconv.Atoi(number)
		order := sender + "/" + string(m.Key)
		if before, ok := last[order]; ok && n <= before {
			l.t.Errorf("sender %s, key %s: record %d comes after %d", sender, m.Key, n, before)
		}
		last[order] = n
	}
	lost, twice := 0, 0
	for value := range l.acked {
		switch n := seen[value]; {
		case n == 0:
			lost++
		case n > 1:
			twice++
		}
	}
	if lost > 0 || twice > 0 {
		l.t.Errorf("%d records acked, %d of them lost, %d there more than once", len(l.acked), lost, twice)
	}
	l.t.Logf("%d records acked, %d lost, %d twice", len(l.acked), lost, twice)
}
