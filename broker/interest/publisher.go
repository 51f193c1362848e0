package interest

import (
	"hash/maphash"
	"sync/atomic"
)

// Limits of one publisher's match cache.
const (
	maxCachedSubjects = 256  // subjects, all dropped when one more comes
	maxCachedTargets  = 8192 // subscriptions held by all entries together
	sightings         = 64   // recently missed subjects that are remembered
)

// A Publisher is one goroutine's route into a Router.
//
// A subject's match is cached when it is missed for the second time: replies to
// requests go to subjects that are used once, and would only push out the rest.
// A miss costs a walk of the trie and no allocation either.
type Publisher struct {
	router *Router
	random uint64
	burst  Burst

	cache   map[string]*target
	targets int // subscriptions in cache
	missed  [sightings]uint32

	scratch target
	nodes   []*node[subscribers]
	hands   []hand // to other brokers, of the message that is being routed
	one     [1]string
}

// target is whom one subject reaches.
type target struct {
	generation uint64
	plain      []*Subscription
	peers      []*Subscription // one a broker
	groups     []queueTarget
}

type queueTarget struct {
	name    string
	members []*Subscription
	remote  []remoteMembers
	weight  int // of all remote ones
}

func (t *target) size() int {
	n := len(t.plain) + len(t.peers)
	for i := range t.groups {
		n += len(t.groups[i].members) + len(t.groups[i].remote)
	}
	return n
}

var (
	bursts   atomic.Uint64
	hashSeed = maphash.MakeSeed()
)

func nextBurst() uint64 { return bursts.Add(1) }

// Route is Router.Route for this publisher; whom it touches is woken by Flush.
// A sink must not publish through the publisher that is delivering to it.
func (p *Publisher) Route(m *Message, from Sink) (delivered int) {
	m.burst = &p.burst
	delivered = p.route(m, from)
	m.burst = nil
	return delivered
}

// Burst is the current one, for what a publisher delivers besides messages.
func (p *Publisher) Burst() *Burst { return &p.burst }

// Flush ends the burst: everybody who was touched since the last Flush is woken.
// When one of them is far behind, Flush returns a channel that is closed once it
// has caught up; a publisher that has a source to hold back waits for it, for a
// bounded time. Otherwise it returns nil.
func (p *Publisher) Flush() (congested <-chan struct{}) {
	if len(p.burst.touched) == 0 {
		return nil
	}
	for i, w := range p.burst.touched {
		w.Wake()
		p.burst.touched[i] = nil
	}
	p.burst.touched = p.burst.touched[:0]
	p.burst.id = nextBurst()
	congested, p.burst.room = p.burst.room, nil
	return congested
}

// Send delivers m to one subscription, as part of the burst.
func (p *Publisher) Send(s *Subscription, m *Message) bool {
	m.burst = &p.burst
	taken := s.Live() && s.Sink.Deliver(s, m)
	m.burst = nil
	return taken
}

// Find returns a live subscription of sink that takes in the subject, or nil.
func (p *Publisher) Find(subject []byte, sink Sink) *Subscription {
	r := p.router
	r.mu.RLock()
	defer r.mu.RUnlock()
	p.nodes = r.trie.match(subject, p.nodes[:0])
	defer clear(p.nodes)
	for _, n := range p.nodes {
		for _, s := range n.value.plain {
			if s.Sink == sink {
				return s
			}
		}
		for _, g := range n.value.groups {
			for _, s := range g.members {
				if s.Sink == sink {
					return s
				}
			}
		}
	}
	return nil
}

// Forget drops the cache and all spare memory, for a publisher that has gone
// quiet. Flush comes first.
func (p *Publisher) Forget() {
	p.cache, p.targets = nil, 0
	p.scratch, p.nodes, p.hands = target{}, nil, nil
	if len(p.burst.touched) == 0 {
		p.burst.touched = nil
	}
}

func (p *Publisher) route(m *Message, from Sink) (delivered int) {
	t := p.find(m.Subject)
	for _, s := range t.plain {
		if (from == nil || s.Sink != from) && s.Live() && s.Sink.Deliver(s, m) {
			delivered++
		}
	}
	for _, s := range t.peers {
		if s.Live() {
			p.hand(s.peer).plain = true
		}
	}
	for i := range t.groups {
		if p.pick(&t.groups[i], m, from) {
			delivered++
		}
	}
	if len(p.hands) > 0 {
		delivered += p.handOver(t, m, from)
	}
	return delivered
}

// local delivers to one of the group's members on this broker, beginning with
// the one at.
func (q *queueTarget) local(at int, m *Message, from Sink) bool {
	for range q.members {
		s := q.members[at]
		if (from == nil || s.Sink != from) && s.Live() && s.Sink.Deliver(s, m) {
			return true
		}
		if at++; at == len(q.members) {
			at = 0
		}
	}
	return false
}

// next is xorshift64: a private state needs no lock.
func (p *Publisher) next() uint64 {
	p.random ^= p.random << 13
	p.random ^= p.random >> 7
	p.random ^= p.random << 17
	return p.random >> 11
}

func (p *Publisher) find(subject []byte) *target {
	t := p.cache[string(subject)]
	if t != nil {
		if t.generation == p.router.generation.Load() {
			return t
		}
		p.targets -= t.size()
		p.match(subject, t)
		p.targets += t.size()
		if p.targets > maxCachedTargets {
			p.dropCache()
		}
		return t
	}
	h := uint32(maphash.Bytes(hashSeed, subject)) | 1
	slot := &p.missed[h>>8%sightings]
	if *slot != h {
		*slot = h
		p.match(subject, &p.scratch)
		return &p.scratch
	}
	*slot = 0
	t = &target{}
	p.match(subject, t)
	if p.targets+t.size() > maxCachedTargets || len(p.cache) >= maxCachedSubjects {
		p.dropCache()
	}
	if t.size() <= maxCachedTargets/2 {
		if p.cache == nil {
			p.cache = make(map[string]*target)
		}
		p.cache[string(subject)] = t
		p.targets += t.size()
	}
	return t
}

func (p *Publisher) dropCache() {
	clear(p.cache)
	p.targets = 0
}

// match fills t, reusing its slices.
func (p *Publisher) match(subject []byte, t *target) {
	clear(t.plain)
	t.plain = t.plain[:0]
	clear(t.peers)
	t.peers = t.peers[:0]
	for i := range t.groups {
		q := &t.groups[i]
		clear(q.members)
		clear(q.remote)
		q.members, q.remote, q.weight = q.members[:0], q.remote[:0], 0
	}
	t.groups = t.groups[:0]

	r := p.router
	r.mu.RLock()
	t.generation = r.generation.Load()
	p.nodes = r.trie.match(subject, p.nodes[:0])
	for _, n := range p.nodes {
		t.plain = append(t.plain, n.value.plain...)
		for _, s := range n.value.peers {
			t.addPeer(s)
		}
		for _, g := range n.value.groups {
			t.addGroup(g)
		}
	}
	r.mu.RUnlock()
	clear(p.nodes)
}

// addGroup joins members by the group's name: filters that overlap make one
// group, as clients know it from NATS.
func (t *target) addGroup(g *queueGroup) {
	var q *queueTarget
	for i := range t.groups {
		if t.groups[i].name == g.name {
			q = &t.groups[i]
			break
		}
	}
	if q == nil {
		if len(t.groups) < cap(t.groups) {
			t.groups = t.groups[:len(t.groups)+1]
		} else {
			t.groups = append(t.groups, queueTarget{})
		}
		q = &t.groups[len(t.groups)-1]
		q.name = g.name
	}
	q.members = append(q.members, g.members...)
	for _, s := range g.remote {
		q.remote = append(q.remote, remoteMembers{s, s.members})
		q.weight += s.members
	}
}
