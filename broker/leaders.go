package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/replication/epoch/config"
)

// leaders is the table of who leads which partition, as far as this broker
// knows: from Raft for partitions that have a replica here, from what the
// leaders tell for all. The newest term wins. It is a hint: a broker that is
// asked and doesn't lead says so.
//
// Each broker tells the others which partitions it leads: at once what is new, all
// of it when a link comes up, and all of it again every fullEvery, since what
// is told may be lost.
type leaders struct {
	b     *Broker
	kick  chan struct{}
	dirty atomic.Bool // something about this broker itself has changed

	won, changes atomic.Uint64 // for the metrics: leaderships of this broker, and of anybody

	mu      sync.Mutex
	cells   map[uint64]*lead // by shard
	fresh   map[uint64]bool  // shards that this broker has begun to lead and not told of
	greeted map[uint64]bool  // peers that are to be told everything
	changed chan struct{}    // closed and replaced at each change
}

const (
	tellEvery = 20 * time.Millisecond // at the most, so that many elections share a message
	fullEvery = 3 * time.Second
	maxLed    = config.MaxReplicas // entries of one message
)

// lead is who leads one partition. There is one for each shard that is known.
type lead struct {
	shard uint64
	now   atomic.Pointer[leading]
	told  uint64 // the broker that last said that it leads; guarded by leaders.mu
	flow  flow   // of what clients here publish to it
}

// leading is replaced, never changed.
type leading struct {
	term   uint64
	broker uint64 // 0 while nobody leads
	since  time.Time
}

func (l *lead) load() leading {
	if v := l.now.Load(); v != nil {
		return *v
	}
	return leading{}
}

func newLeaders(b *Broker) *leaders {
	return &leaders{
		b: b, kick: make(chan struct{}, 1), cells: map[uint64]*lead{}, fresh: map[uint64]bool{},
		greeted: map[uint64]bool{}, changed: make(chan struct{}),
	}
}

// of returns the cell of a shard.
func (l *leaders) of(shard uint64) *lead {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cell(shard)
}

func (l *leaders) cell(shard uint64) *lead {
	c := l.cells[shard]
	if c == nil {
		c = &lead{shard: shard}
		c.now.Store(&leading{since: time.Now()})
		l.cells[shard] = c
	}
	return c
}

// learn takes what Raft says here: broker 0 when it knows no leader.
func (l *leaders) learn(shard, term, broker uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(shard, term, broker)
}

// set is learn with mu held.
func (l *leaders) set(shard, term, broker uint64) {
	c := l.cell(shard)
	was := c.load()
	self := l.b.self()
	if term < was.term || term == was.term && broker == was.broker {
		return
	}
	// Raft may have lost sight here of a leader that still is one: that one tells.
	c.now.Store(&leading{term: term, broker: broker, since: time.Now()})
	if broker != 0 && broker != was.broker {
		l.changes.Add(1)
	}
	if broker == self {
		l.won.Add(1)
		l.fresh[shard] = true
		l.poke()
	} else {
		delete(l.fresh, shard)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// lost notes that a replica here was closed: it leads no more.
func (l *leaders) lost(shard uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.cells[shard]; c != nil && c.load().broker == l.b.self() {
		l.set(shard, c.load().term, 0)
	}
}

// leave notes that this broker has no replica of the shard any more: what its own Raft said last counts no
// more than what the others tell, whose terms may be lower than those of a replica that was removed.
func (l *leaders) leave(shard uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.cells[shard]
	if c == nil {
		return
	}
	broker := c.told
	if broker == l.b.self() {
		broker = 0
	}
	delete(l.fresh, shard)
	c.now.Store(&leading{broker: broker, since: time.Now()})
	close(l.changed)
	l.changed = make(chan struct{})
}

// keep forgets the shards that no epoch names any more.
func (l *leaders) keep(c *config.Config, named map[uint64]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for shard := range l.cells {
		if !named[shard] && shard < c.NextShard {
			delete(l.cells, shard)
			delete(l.fresh, shard)
		}
	}
}

// missing lists the shards of live topics that nobody has led for so long, as far as this broker knows.
func (l *leaders) missing(c *config.Config, after time.Duration) map[uint64]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[uint64]bool{}
	for i := range c.Topics {
		if !c.Topics[i].Live() {
			continue
		}
		for n := range c.Topics[i].Partitions {
			shard := c.Topics[i].Partitions[n].Shard
			if now := l.cell(shard).load(); now.broker == 0 && time.Since(now.since) >= after {
				out[shard] = true
			}
		}
	}
	return out
}

// watch returns a channel that is closed at the next change.
func (l *leaders) watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// wake lets whoever watches look again.
func (l *leaders) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

// greet has a peer told everything.
func (l *leaders) greet(peer uint64) {
	l.mu.Lock()
	l.greeted[peer] = true
	l.mu.Unlock()
	l.poke()
}

// repeat has all peers told everything.
func (l *leaders) repeat() {
	l.dirty.Store(true)
	l.poke()
}

func (l *leaders) poke() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run tells the peers, until ctx ends.
func (l *leaders) run(ctx context.Context) {
	full := time.NewTicker(fullEvery)
	defer full.Stop()
	pause := time.NewTimer(tellEvery)
	defer pause.Stop()
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-full.C:
			all = true
		case <-l.kick:
		}
		l.tell(all || l.dirty.Swap(false))
		pause.Reset(tellEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *leaders) tell(all bool) {
	self := l.b.self()
	l.mu.Lock()
	greeted := l.greeted
	l.greeted = map[uint64]bool{}
	var some, whole []leadOf
	for shard := range l.fresh {
		some = append(some, leadOf{shard, l.cells[shard].load().term})
	}
	clear(l.fresh)
	if all || len(greeted) > 0 {
		for shard, c := range l.cells {
			if v := c.load(); v.broker == self {
				whole = append(whole, leadOf{shard, v.term})
			}
		}
	}
	l.mu.Unlock()
	reluctant := l.b.reluctant()
	for _, id := range l.b.peers.live() {
		var msg []byte
		switch {
		case all || greeted[id]:
			msg = appendLeaders(nil, true, reluctant, whole)
		case len(some) > 0:
			msg = appendLeaders(nil, false, reluctant, some)
		default:
			continue
		}
		if err := l.b.peers.mesh.Send(id, subjectLeaders, msg); err != nil {
			l.b.c.Logger.Debug().Err(err).Msg("a peer was not told who leads")
		}
	}
}

// told takes a peer's message.
func (l *leaders) told(_ context.Context, from mesh.Identity, msg []byte) ([]byte, error) {
	full, reluctant, version, led, err := readLeaders(msg)
	if err != nil {
		return nil, err
	}
	l.b.peers.update(from.Broker, func(s *peerState) {
		s.reluctant = reluctant
		if full {
			s.version = version
		}
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	named := make(map[uint64]bool, len(led))
	for _, e := range led {
		named[e.shard] = true
		l.set(e.shard, e.term, from.Broker)
		l.cell(e.shard).told = from.Broker
	}
	if !full {
		return nil, nil
	}
	changed := false
	for shard, c := range l.cells {
		if v := c.load(); v.broker == from.Broker && !named[shard] {
			if s := l.b.slotOf(shard); s != nil && s.local {
				continue // Raft here knows better
			}
			c.now.Store(&leading{term: v.term, since: time.Now()})
			changed = true
		}
	}
	if changed {
		close(l.changed)
		l.changed = make(chan struct{})
	}
	return nil, nil
}

// The message: flags, the number of entries, each a shard and a term (all
// uvarints), and, when it tells everything, the sender's version as text.
const (
	flagFull      = 1
	flagReluctant = 2
)

type leadOf struct{ shard, term uint64 }

func appendLeaders(b []byte, full, reluctant bool, led []leadOf) []byte {
	var flags byte
	if full {
		flags |= flagFull
	}
	if reluctant {
		flags |= flagReluctant
	}
	b = binary.AppendUvarint(append(b, flags), uint64(len(led)))
	for _, e := range led {
		b = binary.AppendUvarint(binary.AppendUvarint(b, e.shard), e.term)
	}
	if full {
		b = append(b, Version...)
	}
	return b
}

var errBadMessage = errors.New("malformed message of a peer")

func readLeaders(b []byte) (full, reluctant bool, version string, led []leadOf, err error) {
	if len(b) == 0 {
		return false, false, "", nil, errBadMessage
	}
	flags := b[0]
	n, b, ok := uvarint(b[1:])
	if !ok || n > maxLed {
		return false, false, "", nil, errBadMessage
	}
	led = make([]leadOf, 0, n)
	for range n {
		var e leadOf
		if e.shard, b, ok = uvarint(b); ok {
			e.term, b, ok = uvarint(b)
		}
		if !ok {
			return false, false, "", nil, errBadMessage
		}
		led = append(led, e)
	}
	return flags&flagFull != 0, flags&flagReluctant != 0, string(b[:min(len(b), 64)]), led, nil
}

func uvarint(b []byte) (uint64, []byte, bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}
