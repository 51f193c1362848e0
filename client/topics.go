package client

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// Metadata is asked for again every metadataEvery, to notice what was added, and when
// what we know seems old: a broker says so, a connection broke, an answer is
// overdue. Then it is asked after metadataSoon, give or take, and again after ever longer
// waits up to metadataSlow, until metadataRestless has passed since the last sign:
// a new leader takes a moment to be known.
const (
	metadataEvery    = 30 * time.Second
	metadataSoon     = 100 * time.Millisecond
	metadataSlow     = time.Second
	metadataRestless = 5 * time.Second

	// metadataPatience is how long one broker of several may take to answer.
	metadataPatience = time.Second
)

// topics keeps what is known of the topics that Producers and Readers use. One
// goroutine asks.
type topics struct {
	c    *Client
	kick chan struct{} // capacity 1
	stop context.CancelFunc
	done chan struct{}

	brokers atomic.Pointer[map[string]string] // name to address
	epoch   atomic.Uint64                     // of brokers; never falls

	mu    sync.Mutex
	views map[string]*topicView // guarded by mu; one per topic in use
}

// topicView is a topic's current shape.
type topicView struct {
	name       string
	users      int                      // guarded by topics.mu
	partitions atomic.Int32             // never falls
	leaders    atomic.Pointer[[]string] // brokers by name; "" while there is none
}

// leader of a partition, "" when none is known.
func (v *topicView) leader(partition int32) string {
	if known := v.leaders.Load(); known != nil && int(partition) < len(*known) {
		return (*known)[partition]
	}
	return ""
}

// led takes the leaders in and says whether a partition has got another one.
func (v *topicView) led(leaders []string) (moved bool) {
	before := v.leaders.Load()
	for i, name := range leaders {
		if name != "" && (before == nil || i >= len(*before) || (*before)[i] != name) {
			moved = true
		}
	}
	v.leaders.Store(&leaders)
	return moved
}

// known returns the brokers' addresses by name; not to be changed.
func (t *topics) known() map[string]string {
	if known := t.brokers.Load(); known != nil {
		return *known
	}
	return nil
}

func (t *topics) address(broker string) string { return t.known()[broker] }

// several says whether there is more than one broker.
func (t *topics) several() bool { return len(t.known()) > 1 }

// met takes the brokers in. An answer from before what is known doesn't count.
func (t *topics) met(md *Metadata) {
	for {
		epoch := t.epoch.Load()
		if md.Epoch < epoch {
			return
		}
		if t.epoch.CompareAndSwap(epoch, md.Epoch) {
			break
		}
	}
	known := make(map[string]string, len(md.Brokers))
	for _, b := range md.Brokers {
		if b.Name != "" && b.Address != "" {
			known[b.Name] = b.Address
		}
	}
	if !maps.Equal(known, t.known()) {
		t.brokers.Store(&known)
		t.c.keep(known)
	}
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
	leaders, err := t.c.leaders(ctx, name)
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
	v.grow(int32(len(leaders)))
	v.led(leaders)
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
	var sign time.Time // the last that something is old
	wait := metadataEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.kick:
			if wait == metadataEvery || time.Since(sign) > wait {
				// What comes at once, as when a connection breaks, is one sign.
				wait = metadataSoon
				timer.Reset(wait/2 + rand.N(wait))
			}
			sign = time.Now()
			continue
		case <-timer.C:
		}
		t.refresh(ctx)
		wait = min(wait*3/2, metadataSlow)
		if time.Since(sign) > metadataRestless {
			wait = metadataEvery
		}
		timer.Reset(wait/2 + rand.N(wait))
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
	md, err := t.ask(ctx, names)
	if err != nil {
		return // the next round asks again; until then the old shape serves
	}
	t.met(&md)
	changed := false
	t.mu.Lock()
	for i := range md.Topics {
		if v := t.views[md.Topics[i].Name]; v != nil && md.Topics[i].Error == nil {
			before := v.partitions.Load()
			v.grow(int32(len(md.Topics[i].Leaders)))
			moved := v.led(md.Topics[i].Leaders)
			changed = changed || moved || v.partitions.Load() > before
		}
	}
	t.mu.Unlock()
	if changed {
		t.c.connected() // who waits tries again, and Readers look for new partitions
	}
}

// ask asks a broker, and when that doesn't answer soon, others: one that was
// stopped in its tracks may hold the connection for a while.
func (t *topics) ask(ctx context.Context, names []string) (md Metadata, err error) {
	data, err := json.Marshal(wire.MetadataRequest{Topics: names})
	if err != nil {
		return md, err
	}
	r := t.c.publishes
	patience := t.c.cfg.requestTimeout
	if r.several() {
		patience = min(patience, metadataPatience)
	}
	first := r.any()
	asked := append([]exchange{first}, r.others()...)
	for i, x := range asked {
		if i > 0 && x == first {
			continue
		}
		md, err = tryOn(ctx, x, wire.APIMetadata, data, patience, func(out *Metadata) *Error { return out.Error })
		if err == nil {
			return md, nil
		}
		if ctx.Err() != nil {
			return md, err
		}
	}
	r.explore() // for the next time
	return md, err
}

// leaders asks who leads a topic's partitions.
func (c *Client) leaders(ctx context.Context, name string) ([]string, error) {
	md, err := c.Metadata(ctx, name)
	if err != nil {
		return nil, err
	}
	c.topics.met(&md)
	for i := range md.Topics {
		t := &md.Topics[i]
		if t.Name != name {
			continue
		}
		if t.Error != nil {
			return nil, t.Error
		}
		if len(t.Leaders) > 0 {
			return t.Leaders, nil
		}
	}
	return nil, &Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: fmt.Sprintf("there is no topic %q", name)}
}
