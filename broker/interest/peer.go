package interest

// A PeerSink stands for another broker. Its subscriptions have Peer set, and a
// message reaches it once, however many of them match: for all of the other
// broker's plain subscribers together, and for one member of each queue group
// that the pick fell on.
type PeerSink interface {
	Sink

	// DeliverPeer hands the message over for the other broker's plain
	// subscribers, if plain is set, and for one member of each of the groups, of
	// which there is at least one otherwise. It must not block. False means that
	// it was not taken: other members of the groups are tried. groups is the
	// publisher's and valid during the call.
	DeliverPeer(m *Message, plain bool, groups []string) bool
}

// MaxHops that a message for a queue group makes: each broker that finds its own
// members gone passes it on.
const MaxHops = 4

// remoteMembers of a queue group on another broker.
type remoteMembers struct {
	sub    *Subscription
	weight int
}

// hand is what one other broker gets of the message being routed.
type hand struct {
	sink   PeerSink
	plain  bool
	groups []string
}

// SetMembers says how many members of its queue group a peer's subscription
// stands for: at least one, which it is to begin with. Picks are weighted by it.
func (r *Router) SetMembers(s *Subscription, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.members = max(n, 1)
	r.generation.Add(1)
}

type follower struct {
	hook func(subject, queue string, members int)
}

// Follow is Watch with an end, and with numbers: members of this broker's own
// that a queue group's filter has now, told with every change, 0 when the last
// has gone. For a filter without a group it is told when it becomes 0 or more.
// The hook runs inside the router's lock: it must not block or call back. It is
// not called any more once stop has returned.
func (r *Router) Follow(hook func(subject, queue string, members int)) (stop func()) {
	f := &follower{hook}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trie.walk(func(n *node[subscribers]) {
		v := &n.value
		if v.locals > 0 {
			hook(v.plain[0].Subject, "", v.locals)
		}
		for _, g := range v.groups {
			if g.locals > 0 {
				hook(g.members[0].Subject, g.name, g.locals)
			}
		}
	})
	r.followers = append(r.followers, f)
	return func() { r.unfollow(f) }
}

func (r *Router) unfollow(gone *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.followers {
		if f == gone {
			// Not in place: tell may be going through the old list.
			r.followers = append(r.followers[:i:i], r.followers[i+1:]...)
			return
		}
	}
}

// RouteLocal delivers what another broker handed over (see DeliverPeer): to this
// broker's own subscribers, and on to other brokers only for a group whose
// members here have gone meanwhile. lost groups got it nowhere.
func (p *Publisher) RouteLocal(m *Message, plain bool, groups [][]byte) (delivered, lost int) {
	m.burst = &p.burst
	defer func() { m.burst = nil }()
	t := p.find(m.Subject)
	if plain {
		for _, s := range t.plain {
			if s.Live() && s.Sink.Deliver(s, m) {
				delivered++
			}
		}
	}
	for _, name := range groups {
		if q := t.group(name); q != nil && p.routeGroup(q, m) {
			delivered++
		} else {
			lost++
		}
	}
	return delivered, lost
}

func (p *Publisher) routeGroup(q *queueTarget, m *Message) bool {
	if len(q.members) > 0 && q.local(p.below(len(q.members)), m, nil) {
		return true
	}
	if m.Hops >= MaxHops {
		return false
	}
	m.Hops++
	defer func() { m.Hops-- }()
	return p.remote(q, m, nil)
}

func (t *target) group(name []byte) *queueTarget {
	for i := range t.groups {
		if t.groups[i].name == string(name) {
			return &t.groups[i]
		}
	}
	return nil
}

// addPeer adds a peer's plain subscription, unless its broker is there already.
func (t *target) addPeer(s *Subscription) {
	for _, known := range t.peers {
		if known.peer == s.peer {
			return
		}
	}
	t.peers = append(t.peers, s)
}

// below returns a random number below n.
func (p *Publisher) below(n int) int {
	if n < 2 {
		return 0
	}
	return int(p.next() % uint64(n))
}

// pick chooses the group's one receiver among all members of the cluster alike.
// One on this broker gets the message at once, and pick returns true; another
// broker is put down in hands.
func (p *Publisher) pick(q *queueTarget, m *Message, from Sink) (delivered bool) {
	locals := len(q.members)
	at := p.below(locals + q.weight)
	if at < locals {
		if q.local(at, m, from) {
			return true
		}
		at = locals + p.below(q.weight)
	}
	if len(q.remote) == 0 {
		return false
	}
	i := 0
	for at -= locals; at >= q.remote[i].weight; i++ {
		at -= q.remote[i].weight
	}
	for range q.remote {
		if s := q.remote[i].sub; s.Live() {
			h := p.hand(s.peer)
			h.groups = append(h.groups, q.name)
			return false
		}
		if i++; i == len(q.remote) {
			i = 0
		}
	}
	return locals > 0 && q.local(p.below(locals), m, from)
}

// hand returns what is put down for one broker.
func (p *Publisher) hand(sink PeerSink) *hand {
	for i := range p.hands {
		if p.hands[i].sink == sink {
			return &p.hands[i]
		}
	}
	if len(p.hands) < cap(p.hands) {
		p.hands = p.hands[:len(p.hands)+1]
	} else {
		p.hands = append(p.hands, hand{})
	}
	h := &p.hands[len(p.hands)-1]
	h.sink, h.plain, h.groups = sink, false, h.groups[:0]
	return h
}

// handOver gives other brokers what is put down for them. A group that one of
// them doesn't take goes to another member.
func (p *Publisher) handOver(t *target, m *Message, from Sink) (delivered int) {
	for i := range p.hands {
		h := &p.hands[i]
		if h.sink.DeliverPeer(m, h.plain, h.groups) {
			delivered += len(h.groups)
			if h.plain {
				delivered++
			}
		} else {
			for _, name := range h.groups {
				if p.another(t, name, m, from, h.sink) {
					delivered++
				}
			}
		}
		h.sink = nil
		clear(h.groups)
	}
	p.hands = p.hands[:0]
	return delivered
}

func (p *Publisher) another(t *target, name string, m *Message, from Sink, failed PeerSink) bool {
	for i := range t.groups {
		if q := &t.groups[i]; q.name == name {
			return len(q.members) > 0 && q.local(p.below(len(q.members)), m, from) || p.remote(q, m, failed)
		}
	}
	return false
}

// remote hands the message over for this group alone, to the first broker that
// takes it.
func (p *Publisher) remote(q *queueTarget, m *Message, failed PeerSink) bool {
	p.one[0] = q.name
	at := p.below(len(q.remote))
	for range q.remote {
		s := q.remote[at].sub
		if s.peer != failed && s.Live() && s.peer.DeliverPeer(m, false, p.one[:]) {
			return true
		}
		if at++; at == len(q.remote) {
			at = 0
		}
	}
	return false
}
