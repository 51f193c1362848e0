package raft

import (
	"fmt"
	"sync"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
)

// Dragonboat stores an address with each member, compares it for ever after, and
// refuses a member with another's. Ours change. So it is told a made-up one, in the
// form of a UUID because that is what it validates, and asks here for the real one.
func target(shard, replica uint64) string {
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x",
		shard>>32, shard>>16&0xffff, shard&0xffff, replica>>48, replica&0xffffffffffff)
}

// linksPerPeer spreads shards over a few links, so that a large entry doesn't hold
// up every other group's heartbeats.
const linksPerPeer = 4

type member struct{ shard, replica uint64 }

// route is what dragonboat wants to know of an address: the address, and the link
// to take.
type route struct{ address, link string }

// registry resolves replicas to addresses.
type registry struct {
	resolve func(shard, replica uint64) (string, bool)

	mu     sync.RWMutex
	hints  map[member]string // addresses that came with Initial or a Change
	routes map[member]route  // so that resolving makes no garbage
}

func newRegistry(resolve func(shard, replica uint64) (string, bool)) *registry {
	return &registry{resolve: resolve, hints: make(map[member]string), routes: make(map[member]route)}
}

// hint remembers an address for when resolve doesn't know one.
func (g *registry) hint(shard, replica uint64, address string) {
	if address == "" {
		return
	}
	g.mu.Lock()
	g.hints[member{shard, replica}] = address
	g.mu.Unlock()
}

// address of a replica, or "".
func (g *registry) address(shard, replica uint64) string {
	if g.resolve != nil {
		if a, ok := g.resolve(shard, replica); ok {
			return a
		}
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.hints[member{shard, replica}]
}

// Resolve implements raftio.INodeRegistry.
func (g *registry) Resolve(shard, replica uint64) (string, string, error) {
	a := g.address(shard, replica)
	if a == "" {
		return "", "", fmt.Errorf("resolve replica %d of log %d: address unknown", replica, shard)
	}
	m := member{shard, replica}
	g.mu.RLock()
	r, ok := g.routes[m]
	g.mu.RUnlock()
	if !ok || r.address != a {
		r = route{address: a, link: fmt.Sprintf("%s-%d", a, shard%linksPerPeer)}
		g.mu.Lock()
		g.routes[m] = r
		g.mu.Unlock()
	}
	return r.address, r.link, nil
}

// forget drops what is known of a log's members.
func (g *registry) forget(shard uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m := range g.hints {
		if m.shard == shard {
			delete(g.hints, m)
		}
	}
	for m := range g.routes {
		if m.shard == shard {
			delete(g.routes, m)
		}
	}
}

// Add, Remove and RemoveShard implement raftio.INodeRegistry. Dragonboat passes the
// made-up addresses here: there is nothing to learn.
func (g *registry) Add(uint64, uint64, string) {}
func (g *registry) Remove(uint64, uint64)      {}
func (g *registry) RemoveShard(uint64)         {}
func (g *registry) Close() error               { return nil }

// registryFactory hands the registry to dragonboat.
type registryFactory struct{ *registry }

func (f registryFactory) Create(string, uint64, config.TargetValidator) (raftio.INodeRegistry, error) {
	return f.registry, nil
}
