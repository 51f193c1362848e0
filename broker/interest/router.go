package interest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Errors of Subscribe.
var (
	ErrBadFilter  = errors.New("invalid subject filter")
	ErrSubscribed = errors.New("subscription is in use")
)

// Subscription is one subscriber's interest in a filter. The exported fields
// are set before Subscribe and stay as they are.
type Subscription struct {
	Subject string // the filter
	Queue   string // the queue group, "" for none
	SID     []byte // the client's own name for it
	Sink    Sink
	Peer    bool // another broker's interest: not told to watchers, so that interest makes one hop

	Max       atomic.Uint64 // deliveries after which the sink ends it, 0 for no limit
	Delivered atomic.Uint64 // kept by the sink

	state   atomic.Int32 // idle, live, ended
	at      *node[subscribers]
	index   int      // in its list, so that removal needs no search
	peer    PeerSink // Sink, when it is one and Peer is set
	members int      // that a peer's subscription stands for, inside the router's lock
}

const (
	subIdle int32 = iota
	subLive
	subEnded
)

// Live reports whether the subscription is still routed to. It turns false
// before Unsubscribe returns; a delivery that had begun may still arrive.
func (s *Subscription) Live() bool { return s.state.Load() == subLive }

// subscribers of one filter.
type subscribers struct {
	plain  []*Subscription
	peers  []*Subscription // plain ones with a PeerSink
	groups []*queueGroup
	locals int // plain ones that are not a peer's
}

type queueGroup struct {
	name    string
	members []*Subscription
	remote  []*Subscription // with a PeerSink
	locals  int
}

func (v *subscribers) empty() bool { return len(v.plain)+len(v.peers)+len(v.groups) == 0 }

// Interest is what a watcher learns: somebody on this broker wants it.
type Interest struct {
	Subject string
	Queue   string
}

// Router holds the live subscriptions of one broker. All methods may be called
// from any goroutine, and none is held up by a sink: deliveries happen outside
// its lock.
type Router struct {
	mu    sync.RWMutex
	trie  node[subscribers]
	count int
	watch []func(added bool, subject, queue string)

	followers []*follower

	// generation changes with every change of the trie, inside mu. A match made
	// at the current generation is still right.
	generation atomic.Uint64
	publishers sync.Pool // for Route
}

// NewRouter returns an empty router.
func NewRouter() *Router {
	r := &Router{}
	r.publishers.New = func() any { return r.Publisher() }
	return r
}

// Publisher returns a route into r for one goroutine's use, with a match cache.
func (r *Router) Publisher() *Publisher {
	return &Publisher{router: r, random: rand.Uint64() | 1, burst: Burst{id: nextBurst()}}
}

// Subscribe adds s. It fails with ErrBadFilter, or ErrSubscribed when s was
// added before.
func (r *Router) Subscribe(s *Subscription) error {
	if !ValidFilter(s.Subject) {
		return fmt.Errorf("subscribe to %q: %w", s.Subject, ErrBadFilter)
	}
	if !s.state.CompareAndSwap(subIdle, subLive) {
		return fmt.Errorf("subscribe to %q: %w", s.Subject, ErrSubscribed)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.trie.put(s.Subject)
	n.used = true
	s.at = n
	if s.Peer {
		s.peer, _ = s.Sink.(PeerSink)
		s.members = max(s.members, 1)
	}
	list, locals := n.value.place(s)
	s.index = len(*list)
	*list = append(*list, s)
	r.count++
	r.generation.Add(1)
	if !s.Peer {
		*locals++
		r.tell(s, *locals, *locals == 1)
	}
	return nil
}

// place returns the list that s belongs in, and the count of locals beside it.
func (v *subscribers) place(s *Subscription) (list *[]*Subscription, locals *int) {
	if s.Queue == "" {
		if s.peer != nil {
			return &v.peers, &v.locals
		}
		return &v.plain, &v.locals
	}
	g := v.group(s.Queue)
	if g == nil {
		g = &queueGroup{name: s.Queue}
		v.groups = append(v.groups, g)
	}
	if s.peer != nil {
		return &g.remote, &g.locals
	}
	return &g.members, &g.locals
}

// Unsubscribe removes s and reports whether it was there.
func (r *Router) Unsubscribe(s *Subscription) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !s.state.CompareAndSwap(subLive, subEnded) {
		return false
	}
	n := s.at
	s.at = nil
	v := &n.value
	list, locals := v.place(s)
	*list = remove(*list, s)
	if s.Queue != "" {
		if g := v.group(s.Queue); len(g.members)+len(g.remote) == 0 {
			v.dropGroup(g)
		}
	}
	r.count--
	r.generation.Add(1)
	if !s.Peer {
		*locals--
		r.tell(s, *locals, *locals == 0)
	}
	if v.empty() {
		n.used = false
		n.prune()
	}
	return true
}

func remove(list []*Subscription, s *Subscription) []*Subscription {
	last := len(list) - 1
	moved := list[last]
	list[s.index] = moved
	moved.index = s.index
	list[last] = nil
	return list[:last]
}

func (v *subscribers) group(name string) *queueGroup {
	for _, g := range v.groups {
		if g.name == name {
			return g
		}
	}
	return nil
}

func (v *subscribers) dropGroup(gone *queueGroup) {
	for i, g := range v.groups {
		if g == gone {
			v.groups = append(v.groups[:i], v.groups[i+1:]...)
			return
		}
	}
}

// tell watchers that s came or went and how many of its kind are here now; turned
// says that these are the first or were the last.
func (r *Router) tell(s *Subscription, locals int, turned bool) {
	if turned {
		for _, hook := range r.watch {
			hook(locals > 0, s.Subject, s.Queue)
		}
	}
	if turned || s.Queue != "" {
		for _, f := range r.followers {
			f.hook(s.Subject, s.Queue, locals)
		}
	}
}

// Watch calls hook for every interest of this broker's own subscribers that
// stands now, and then for each that appears or ends, in order and without a
// gap. The hook runs inside the router's lock: it must not block or call back.
func (r *Router) Watch(hook func(added bool, subject, queue string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.interests() {
		hook(true, i.Subject, i.Queue)
	}
	r.watch = append(r.watch, hook)
}

// Interests of this broker's own subscribers, in no order.
func (r *Router) Interests() []Interest {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.interests()
}

func (r *Router) interests() []Interest {
	var all []Interest
	r.trie.walk(func(n *node[subscribers]) {
		if n.value.locals > 0 {
			for _, s := range n.value.plain {
				all = append(all, Interest{Subject: s.Subject})
				break
			}
		}
		for _, g := range n.value.groups {
			if g.locals > 0 {
				all = append(all, Interest{Subject: g.members[0].Subject, Queue: g.name})
			}
		}
	})
	return all
}

// Subscriptions returns all that are live, peers' too, in no order.
func (r *Router) Subscriptions() []*Subscription {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]*Subscription, 0, r.count)
	r.trie.walk(func(n *node[subscribers]) {
		all = append(all, n.value.plain...)
		all = append(all, n.value.peers...)
		for _, g := range n.value.groups {
			all = append(all, g.members...)
			all = append(all, g.remote...)
		}
	})
	return all
}

// Count of live subscriptions.
func (r *Router) Count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.count
}

// Generation changes whenever a subscription comes or goes.
func (r *Router) Generation() uint64 { return r.generation.Load() }

// HasInterest reports whether anybody would get a message to subject.
func (r *Router) HasInterest(subject []byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.trie.first(subject) != nil
}

// Route delivers m to every matching subscription, and to one member of each
// matching queue group, and returns how many took it. When from is not nil, the
// subscriptions of that sink are left out. It is the way for occasional
// publishers; one with a stream of its own has a Publisher.
func (r *Router) Route(m *Message, from Sink) (delivered int) {
	p := r.publishers.Get().(*Publisher)
	delivered = p.route(m, from)
	r.publishers.Put(p)
	return delivered
}
