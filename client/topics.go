package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// Metadata is asked for again every metadataEvery, to notice partitions that were
// added, and when a broker says that what we know is old, but not more often than
// metadataAtMost.
const (
	metadataEvery  = 30 * time.Second
	metadataAtMost = 200 * time.Millisecond
)

// topics keeps what is known of the topics that Producers and Readers use. One
// goroutine asks.
type topics struct {
	c    *Client
	kick chan struct{} // capacity 1
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	views map[string]*topicView // guarded by mu; one per topic in use
}

// topicView is a topic's current shape.
type topicView struct {
	name       string
	users      int          // guarded by topics.mu
	partitions atomic.Int32 // never falls
}

func newTopics(c *Client) *topics {
	ctx, cancel := context.WithCancel(context.Background())
	t := &topics{c: c, kick: make(chan struct{}, 1), stop: cancel, done: make(chan struct{}), views: make(map[string]*topicView)}
	go t.run(ctx)
	return t
}

func (t *topics) close() {
	t.stop()
	<-t.done
}

// use returns the view of a topic that exists; release gives it back.
func (t *topics) use(ctx context.Context, name string) (*topicView, error) {
	n, err := t.c.partitions(ctx, name)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[name]
	if v == nil {
		v = &topicView{name: name}
		t.views[name] = v
	}
	v.users++
	v.grow(n)
	return v, nil
}

func (t *topics) release(v *topicView) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v.users--; v.users == 0 {
		delete(t.views, v.name)
	}
}

func (v *topicView) grow(n int32) {
	for old := v.partitions.Load(); n > old && !v.partitions.CompareAndSwap(old, n); old = v.partitions.Load() {
	}
}

// stale asks for a refresh soon.
func (t *topics) stale() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

func (t *topics) run(ctx context.Context) {
	defer close(t.done)
	timer := time.NewTimer(metadataEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.kick:
			if t.c.pause(ctx, metadataAtMost) != nil {
				return
			}
		case <-timer.C:
		}
		timer.Reset(metadataEvery)
		t.refresh(ctx)
	}
}

func (t *topics) refresh(ctx context.Context) {
	t.mu.Lock()
	names := make([]string, 0, len(t.views))
	for name := range t.views {
		names = append(names, name)
	}
	t.mu.Unlock()
	if len(names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.c.cfg.requestTimeout)
	defer cancel()
	md, err := t.c.Metadata(ctx, names...)
	if err != nil {
		return // the next round asks again; until then the old shape serves
	}
	grown := false
	t.mu.Lock()
	for i := range md.Topics {
		if v := t.views[md.Topics[i].Name]; v != nil {
			before := v.partitions.Load()
			v.grow(int32(len(md.Topics[i].Leaders)))
			grown = grown || v.partitions.Load() > before
		}
	}
	t.mu.Unlock()
	if grown {
		t.c.connected() // Readers look for new partitions when woken
	}
}

// partitions asks how many partitions a topic has.
func (c *Client) partitions(ctx context.Context, name string) (int32, error) {
	md, err := c.Metadata(ctx, name)
	if err != nil {
		return 0, err
	}
	for i := range md.Topics {
		t := &md.Topics[i]
		if t.Name != name {
			continue
		}
		if t.Error != nil {
			return 0, t.Error
		}
		if len(t.Leaders) > 0 {
			return int32(len(t.Leaders)), nil
		}
	}
	return 0, &Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: fmt.Sprintf("there is no topic %q", name)}
}
