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

	// metadataPatience is how long one broker of several may take to answer,
	// metadataStraggle how long after the first of them.
	metadataPatience = time.Second
	metadataStraggle = 500 * time.Millisecond

	// maxAsked brokers are asked at the same time.
	maxAsked = 5

	// leaderTrust is how long a leader is remembered that no answer has confirmed: a topic
	// that was deleted and made again begins with smaller terms.
	leaderTrust = 10 * time.Second

	// silentAfter so many rounds in a row without an answer, while others answered, a
	// broker counts as silent.
	silentAfter = 2
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

	doubts atomic.Pointer[map[string]doubt] // brokers that better ones than those may be asked for; nil: none
	missed map[string]int                   // of the goroutine: rounds without an answer, by broker

	mu    sync.Mutex
	views map[string]*topicView // guarded by mu; one per topic in use
}

// doubt is why a broker is rather not asked.
type doubt int

const (
	trusted doubt = iota
	// behind: others know leaders that this one hasn't heard of. It is cut off from
	// some of them, and what it is to forward gets nowhere.
	behind
	// silent: it doesn't answer, others do.
	silent
)

// topicView is a topic's current shape.
type topicView struct {
	name       string
	users      int          // guarded by topics.mu
	partitions atomic.Int32 // never falls
	anchors    atomic.Int32 // of them, those that groups' anchors are among
	leaders    atomic.Pointer[[]leading]
}

// leading is who leads a partition, as far as is known. The newest term wins.
type leading struct {
	broker string // by name; "" while there is none
	term   uint64
	heard  time.Time // when a broker last said so
}

// leader of a partition, "" when none is known.
func (v *topicView) leader(partition int32) string {
	if known := v.leaders.Load(); known != nil && int(partition) < len(*known) {
		return (*known)[partition].broker
	}
	return ""
}

// led takes in what a broker says of the leaders. It says whether a partition has got
// another one, and whether this broker knows less than others have told before. topics.mu
// is held.
func (v *topicView) led(md *wire.TopicMetadata, now time.Time) (moved, outdated bool) {
	var before []leading
	if known := v.leaders.Load(); known != nil {
		before = *known
	}
	after := make([]leading, len(md.Leaders))
	for i := range after {
		was, is := leading{}, leading{broker: md.Leaders[i], heard: now}
		if i < len(before) {
			was = before[i]
		}
		if i < len(md.Terms) {
			is.term = md.Terms[i]
		}
		// Who has no leader to name has lost sight of it, which it may still be.
		if was.broker != "" && now.Sub(was.heard) < leaderTrust && (is.broker == "" || is.term < was.term) {
			after[i] = was
			outdated = true
			continue
		}
		after[i] = is
		moved = moved || is.broker != "" && is.broker != was.broker
	}
	v.leaders.Store(&after)
	return moved, outdated
}

// doubt says what speaks against asking a broker.
func (t *topics) doubt(broker string) doubt {
	if all := t.doubts.Load(); all != nil {
		return (*all)[broker]
	}
	return trusted
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
	t := &topics{c: c, kick: make(chan struct{}, 1), stop: cancel, done: make(chan struct{}),
		missed: make(map[string]int), views: make(map[string]*topicView)}
	go t.run(ctx)
	return t
}

func (t *topics) close() {
	t.stop()
	<-t.done
}

// use returns the view of a topic that exists; release gives it back.
func (t *topics) use(ctx context.Context, name string) (*topicView, error) {
	md, err := t.c.leaders(ctx, name)
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
	v.grow(md)
	v.led(md, time.Now())
	return v, nil
}

func (t *topics) release(v *topicView) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v.users--; v.users == 0 {
		delete(t.views, v.name)
	}
}

// grow takes in how many partitions there are.
func (v *topicView) grow(md *wire.TopicMetadata) {
	n := int32(len(md.Leaders))
	if n >= v.partitions.Load() { // else a broker that is behind
		if md.Anchors > 0 && md.Anchors <= n {
			v.anchors.Store(md.Anchors)
		} else {
			v.anchors.Store(n)
		}
	}
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
				t.c.publishes.witnesses()
			}
			sign = time.Now()
			continue
		case <-timer.C:
		}
		t.refresh(ctx)
		wait = min(wait*3/2, metadataSlow)
		if time.Since(sign) > metadataRestless {
			wait = metadataEvery
			if t.doubts.Load() != nil {
				wait = metadataRestless
			}
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
	data, err := json.Marshal(wire.MetadataRequest{Topics: names})
	if err != nil {
		panic("client: metadata request: " + err.Error()) // strings always marshal
	}
	t.round(ctx, data)
}

// round asks several brokers at the same time and takes in what they say as it comes: one
// that was stopped in its tracks doesn't answer, and one that is cut off from the
// others answers what was right before.
func (t *topics) round(ctx context.Context, request []byte) {
	r := t.c.publishes
	patience := t.c.cfg.requestTimeout
	if r.several() {
		patience = min(patience, metadataPatience)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	type answer struct {
		broker string
		md     Metadata
		err    error
	}
	asked := r.some(maxAsked)
	answers := make(chan answer, len(asked))
	doubts := make(map[string]doubt)
	for _, x := range asked {
		broker := x.broker()
		if broker != "" {
			doubts[broker] = silent // until it answers
		}
		go func() {
			md, err := tryOn(ctx, x, wire.APIMetadata, request, patience, func(out *Metadata) *Error { return out.Error })
			answers <- answer{broker, md, err}
		}()
	}
	heard := false
	for range asked {
		a := <-answers // all come: ctx ends soon
		if a.err != nil {
			if e := asError(a.err); e != nil && e.Reason != wire.ReasonTimeout {
				delete(doubts, a.broker) // no silence
			}
			continue
		}
		if !heard {
			heard = true
			straggle := time.AfterFunc(metadataStraggle, cancel)
			defer straggle.Stop()
		}
		doubts[a.broker] = trusted
		if t.learn(&a.md) {
			doubts[a.broker] = behind
		}
	}
	if !heard {
		r.explore() // for the next time; until then the old shape serves
		return
	}
	t.judge(doubts)
}

// judge books what a round has shown of the brokers that were asked.
func (t *topics) judge(round map[string]doubt) {
	doubts := make(map[string]doubt)
	for broker := range t.c.publishes.reached() {
		was := t.doubt(broker)
		is, asked := round[broker]
		if asked && is != silent {
			delete(t.missed, broker)
		} else if is = was; asked {
			if t.missed[broker]++; t.missed[broker] >= silentAfter {
				is = silent
			}
		}
		if is != trusted {
			doubts[broker] = is
		}
	}
	maps.DeleteFunc(t.missed, func(broker string, _ int) bool { _, known := t.known()[broker]; return !known })
	if len(doubts) == 0 {
		t.doubts.Store(nil)
		return
	}
	t.doubts.Store(&doubts)
}

// learn takes one broker's answer in, and says whether others have told more before.
func (t *topics) learn(md *Metadata) (outdated bool) {
	t.met(md)
	changed := false
	now := time.Now()
	t.mu.Lock()
	for i := range md.Topics {
		if v := t.views[md.Topics[i].Name]; v != nil && md.Topics[i].Error == nil {
			before := v.partitions.Load()
			v.grow(&md.Topics[i])
			moved, old := v.led(&md.Topics[i], now)
			changed = changed || moved || v.partitions.Load() > before
			outdated = outdated || old
		}
	}
	t.mu.Unlock()
	if changed {
		t.c.connected() // who waits tries again, and Readers look for new partitions
	}
	return outdated
}

// leaders asks who leads a topic's partitions.
func (c *Client) leaders(ctx context.Context, name string) (*wire.TopicMetadata, error) {
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
			return t, nil
		}
	}
	return nil, &Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: fmt.Sprintf("there is no topic %q", name)}
}
