package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// Subjects of what brokers ask and tell one another, beside the epochs' own.
const (
	subjectPaxos    = "paxos"    // one way: a message of Paxos
	subjectLeaders  = "leaders"  // one way: see leaders.go
	subjectProgress = "progress" // one way: see progress.go
	subjectReplicas = "replicas" // one way: the same, by replica
	subjectStatus   = "status"   // how partitions do that the asked broker leads
	subjectCarried  = "carried"  // answers once an epoch is carried out
	subjectOffset   = "offset"   // an offset by log time
	subjectTransfer = "transfer" // hand a partition's leadership over
	subjectPurged   = "purged"   // which deleted topics have no data left there
	subjectChunks   = "chunks"   // on data links: stored chunks, see catchup.go
	subjectRoom     = "room"     // how much disk space is free there
	subjectSnapshot = "snapshot" // on data links: what a replica's log is made of

	subjectGroupParts = "group-parts" // one group on partitions that are led there
	subjectGroupSums  = "group-sums"  // all groups of such partitions, added up
	subjectGroupSet   = "group-set"   // reset or delete a group on them
)

// peers is what this broker knows of the others' being there. A lone broker has
// none and its mesh is nil.
type peers struct {
	b    *Broker
	mesh *mesh.Mesh

	mu    sync.Mutex
	known map[uint64]*peerState
}

// peerState is one other broker. It is replaced, never changed.
type peerState struct {
	up        bool
	since     time.Time // of being up, or not
	reluctant bool      // it is stopping, or its disk is full: it wants no leadership
	version   string
}

// startMesh opens the links to the other brokers, once the peer port is open.
func (b *Broker) startMesh() error {
	c := &b.c
	tls, err := c.PeerTLS.load()
	if err != nil {
		return err
	}
	m, err := mesh.New(mesh.Config{
		Self:     mesh.Identity{Cluster: b.id.ClusterID, Name: c.Name, Incarnation: b.id.Incarnation},
		Listener: b.peerListener, Router: b.router, Secret: c.Secret, TLS: tls, Dial: c.Dial,
		Logger: c.Logger.With().Str("part", "mesh").Logger(),
	})
	if err != nil {
		return err
	}
	b.peers.mesh = m
	m.OnPeer(b.peers.changed)
	m.OnForward(b.forwarded)
	m.OnReply(b.forwards.answered)
	m.OnLost(b.forwards.lost)
	m.OnForwardFlush(b.forwardedFlush)
	m.HandleMembers(subjectLeaders, b.leaders.told)
	m.HandleMembers(subjectProgress, b.progressed)
	m.HandleMembers(subjectReplicas, b.replicasProgressed)
	m.HandleMembers(subjectStatus, b.answerStatus)
	m.HandleMembers(subjectSurvivors, b.answerSurvivors)
	m.HandleMembers(subjectCarried, b.answerCarried)
	m.HandleMembers(subjectRoom, b.answerRoom)
	m.HandleMembers(subjectOffset, b.answerOffset)
	m.HandleMembers(subjectTransfer, b.answerTransfer)
	m.HandleMembers(subjectPurged, b.answerPurged)
	m.HandleMembers(subjectChunks, b.answerChunks)
	m.HandleMembers(subjectSnapshot, b.answerSnapshot)
	m.HandleMembers(subjectScrub, b.answerScrub)
	m.HandleMembers(subjectState, b.answerState)
	m.HandleMembers(subjectCondemn, b.answerCondemn)
	m.HandleMembers(subjectCompared, b.compared)
	m.HandleMembers(subjectCompare, b.answerCompare)
	m.HandleMembers(subjectSight, b.keeper.answerSight)
	m.HandleMembers(subjectGroupParts, b.answerGroupParts)
	m.HandleMembers(subjectGroupSums, b.answerGroupSums)
	m.HandleMembers(subjectGroupSet, b.answerGroupSet)
	return nil
}

// Send implements epoch.Transport.
func (p *peers) Send(to uint64, msg []byte) {
	_ = p.mesh.Send(to, subjectPaxos, msg) // Paxos sends again
}

// ask implements epoch.Ask.
func (p *peers) ask(ctx context.Context, address, subject string, req []byte) ([]byte, error) {
	_, reply, err := p.mesh.Ask(ctx, address, subject, req)
	return reply, err
}

// deliver hands what the others say about epochs to the store.
func (p *peers) deliver(store *epoch.Cluster) {
	p.mesh.HandleMembers(subjectPaxos, func(_ context.Context, from mesh.Identity, msg []byte) ([]byte, error) {
		return nil, store.Deliver(from.Broker, from.Incarnation, msg)
	})
	for _, subject := range epoch.Subjects() {
		p.mesh.Handle(subject, func(ctx context.Context, from mesh.Identity, req []byte) ([]byte, error) {
			reply, err := store.Answer(ctx, from.Incarnation, subject, req)
			if err != nil && !errors.As(err, new(*wire.Error)) {
				err = &wire.Error{Code: 500, Reason: wire.ReasonInternal, Description: err.Error()}
			}
			return reply, err
		})
	}
}

// name keeps the mesh to the brokers that epochs name.
func (p *peers) name(c *config.Config) {
	if p.mesh == nil || c.Epoch == 0 {
		return
	}
	self, _ := p.b.epochs.Self()
	p.mesh.SetSelf(mesh.Identity{Cluster: c.ClusterID, Broker: self, Name: p.b.c.Name, Incarnation: p.b.id.Incarnation})
	others := make([]mesh.Peer, 0, len(c.Brokers))
	named := map[uint64]bool{}
	for i := range c.Brokers {
		o := &c.Brokers[i]
		if o.ID == self {
			continue
		}
		named[o.ID] = true
		p.mu.Lock()
		if p.known[o.ID] == nil { // it has been away for no longer than it has been known
			p.known[o.ID] = &peerState{since: time.Now()}
		}
		p.mu.Unlock()
		others = append(others, mesh.Peer{Broker: o.ID, Name: o.Name, Incarnation: o.Incarnation, Address: o.Addresses.Peer})
	}
	p.mu.Lock()
	for id := range p.known {
		if !named[id] {
			delete(p.known, id)
		}
	}
	p.mu.Unlock()
	p.mesh.SetPeers(others)
}

// follow names the peers as epochs come, until ctx ends.
func (p *peers) follow(ctx context.Context) {
	for c := range p.b.epochs.Watch(ctx) {
		p.name(c)
		p.b.noteInfo()
	}
}

// changed is told by the mesh that the link to a peer is up, or not.
func (p *peers) changed(peer mesh.Peer, up bool) {
	p.mu.Lock()
	s := peerState{}
	if old := p.known[peer.Broker]; old != nil {
		s = *old
	}
	s.up, s.since = up, time.Now()
	if !up {
		s.reluctant = false
	}
	p.known[peer.Broker] = &s
	p.mu.Unlock()
	if !up {
		p.b.forwards.lost(peer.Broker)
	}
	if up {
		p.b.leaders.greet(peer.Broker)
	}
	p.b.leaders.wake() // whoever waits for a leader looks again
}

func (p *peers) state(id uint64) peerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.known[id]; s != nil {
		return *s
	}
	return peerState{since: p.b.started}
}

func (p *peers) update(id uint64, f func(*peerState)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := peerState{since: p.b.started}
	if old := p.known[id]; old != nil {
		s = *old
	}
	f(&s)
	p.known[id] = &s
}

// alive says whether a broker is there, as far as this one knows: all are before
// the first links are up, so that nobody waits for what can't be known yet.
func (p *peers) alive(id uint64) bool {
	if id == p.b.self() || p.mesh == nil {
		return true
	}
	return p.state(id).up
}

// live lists the other brokers whose links are up.
func (p *peers) live() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []uint64
	for id, s := range p.known {
		if s.up {
			ids = append(ids, id)
		}
	}
	return ids
}

// bootstrap returns once an epoch names this data directory.
func (b *Broker) bootstrap(ctx context.Context, initial []epoch.Listed) error {
	c := &b.c
	cur := b.epochs.Current()
	if err := b.sameList(cur, initial); err != nil {
		return err
	}
	if b.peers.mesh == nil {
		return nil
	}
	b.background.Go(func() { b.peers.follow(b.bgCtx) })
	if !b.id.Peers {
		return nil // it began alone, and its own epochs name it
	}
	if id := b.self(); cur.Epoch > 0 && id != 0 && id < cur.NextBroker && cur.Broker(id) == nil {
		return b.expelled(cur.Epoch)
	}
	if err := b.epochs.Bootstrap(ctx); err != nil {
		if why := b.waiting.Load(); why != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: %s", err, *why)
		}
		return err
	}
	cur = b.epochs.Current()
	if b.id.ClusterID == "" {
		b.id.ClusterID = cur.ClusterID
		b.id.BrokerID, _ = b.epochs.Self()
		if err := b.id.save(b.dir.path); err != nil {
			return err
		}
		b.selfID.Store(b.id.BrokerID)
		c.Logger.Info().Str("cluster", cur.ClusterID).Uint64("epoch", cur.Epoch).Int("brokers", len(cur.Brokers)).Msg("the brokers have formed a cluster")
	}
	b.waiting.Store(nil)
	return nil
}

// level is the newest feature level that this broker knows.
func (b *Broker) level() uint32 {
	switch l := b.c.FeatureLevel; {
	case l < 0:
		return 0
	case l > 0:
		return uint32(l)
	}
	return config.Level
}

// sameList compares the list that this broker was started with to what its data
// directory knows.
func (b *Broker) sameList(cur *config.Config, initial []epoch.Listed) error {
	if len(initial) < 2 || cur.Epoch == 0 {
		return nil
	}
	if b.id.Peers && len(cur.Brokers) == 1 {
		return nil // all others were removed, or it was recovered without them
	}
	for _, l := range initial {
		if l.Name != b.c.Name && cur.BrokerNamed(l.Name) != nil {
			return nil // membership may have changed since, but it is that cluster
		}
	}
	return fmt.Errorf("data directory %s belongs to cluster %s with the brokers %s, and initial-cluster %q names none of its other brokers: "+
		"give the directory of that cluster, or an empty one", b.dir.path, cur.ClusterID, listText(cur), b.c.InitialCluster)
}

func listText(c *config.Config) string {
	text := ""
	for i := range c.Brokers {
		if i > 0 {
			text += ","
		}
		text += c.Brokers[i].Name + "=" + c.Brokers[i].Addresses.Peer
	}
	return text
}

// refusedMessage logs what brokers won't take from one another.
func (b *Broker) refusedMessage(r paxos.Refusal) {
	b.c.Logger.Warn().Interface("refusal", r).Msg("a message about epochs was refused")
}
