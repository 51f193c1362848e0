package broker

import (
	"errors"
	"slices"
	"sync/atomic"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch/config"
)

// routes is where subjects and topic names lead, as one epoch has it. It never
// changes once it is published: sessions compare the pointer to know whether
// what they remember still holds.
type routes struct {
	config   *config.Config
	bindings interest.Bindings[*topic]
	byName   map[string]*topic
	byID     map[uint64]*topic
	byShard  map[uint64]*slot
}

// topic is a live topic as sessions see it.
type topic struct {
	id     uint64
	name   string
	config config.TopicConfig
	parts  []*slot // index is the partition's number

	anchors int32 // how many partitions, from the first on, may be groups' anchors
}

// slot is the place of one partition in this broker: a replica that is opened,
// closed and opened again as epochs want it. A slot without replica belongs to
// other brokers.
type slot struct {
	topic   string
	number  int32
	log     storage.LogID
	shard   uint64
	replica config.Replica
	local   bool

	lead *lead                            // who leads
	part atomic.Pointer[config.Partition] // as the newest epoch that was carried out here has it

	// partition is nil while it is not open.
	partition atomic.Pointer[partition.Partition]
	// problem says why it isn't open, or what is wrong with it.
	problem atomic.Pointer[wire.Error]
	// lost: it could not be opened because it has lost something; not a matter of trying again.
	lost atomic.Bool
	// concern is the newest epoch that this broker saw change the partition: its
	// leader commits a barrier with it. 0: none, since the start.
	concern atomic.Uint64
	// current: this replica has been up to date once since it was opened.
	current  atomic.Bool
	progress progress
	move     move

	retention partition.Retention // of the carrier's goroutine alone
}

// replicas of the partition, the preferred leader's first. Those that a move adds are not
// among them yet.
func (s *slot) replicas() []config.Replica {
	if p := s.part.Load(); p != nil {
		return p.Replicas
	}
	return nil
}

// alone: there is no other replica, and none comes.
func (s *slot) alone() bool {
	p := s.part.Load()
	return p == nil || len(p.Replicas) <= 1 && !p.Moving()
}

// only: no other replica has all that this one has, though one may be on its way.
func (s *slot) only() bool {
	p := s.part.Load()
	return p == nil || len(p.Replicas) <= 1 && !s.joining()
}

// joining: this broker's replica is one that a move adds.
func (s *slot) joining() bool { return s.local && !slices.Contains(s.replicas(), s.replica) }

// on returns the replica that a broker runs, 0 for none.
func (s *slot) on(broker uint64) uint64 {
	p := s.part.Load()
	if p == nil {
		return 0
	}
	r, _ := p.On(broker)
	return r.ID
}

// brokerOf returns the broker that has a replica, 0 when no epoch known here tells.
func (s *slot) brokerOf(replica uint64) uint64 {
	p := s.part.Load()
	if p == nil {
		return 0
	}
	r, _ := p.Find(replica)
	return r.Broker
}

// fail notes why the partition could not be opened. Damage is no matter of trying
// again.
func (s *slot) fail(err error) {
	e := notHere(s.topic, s.number, err.Error())
	var hole *storage.HoleError
	s.lost.Store(errors.Is(err, storage.ErrCorrupt) || errors.As(err, &hole) || errors.Is(err, replication.ErrLost))
	if s.lost.Load() && s.only() { // with others it is they who serve
		e.Code, e.Reason, e.Retriable = 500, wire.ReasonDamaged, false
	}
	s.problem.Store(e)
}

// refusal is the answer while the partition isn't open.
func (s *slot) refusal() *wire.Error {
	if p := s.problem.Load(); p != nil {
		e := *p // answers add to it
		return &e
	}
	return notHere(s.topic, s.number, "it is being opened")
}

func (s *slot) problemText() string {
	if p := s.problem.Load(); p != nil {
		return p.Description
	}
	return ""
}

// newRoutes makes the routes of an epoch. Slots are kept from one epoch to the
// next by replica id: slotOf returns the one of a partition.
func newRoutes(c *config.Config, slotOf func(t *config.Topic, number int32) *slot) (*routes, error) {
	r := &routes{config: c, byName: map[string]*topic{}, byID: map[uint64]*topic{}, byShard: map[uint64]*slot{}}
	for i := range c.Topics {
		ct := &c.Topics[i]
		if !ct.Live() {
			continue
		}
		parsed, err := config.ParseTopicConfig(ct.Config)
		if err != nil {
			return nil, err
		}
		t := &topic{id: ct.ID, name: ct.Name, config: parsed, parts: make([]*slot, len(ct.Partitions)), anchors: ct.Anchors()}
		for n := range ct.Partitions {
			t.parts[n] = slotOf(ct, int32(n))
			r.byShard[t.parts[n].shard] = t.parts[n]
		}
		r.byName[t.name], r.byID[t.id] = t, t
		for _, s := range ct.Subjects {
			if err := r.bindings.Bind(s, t); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// keyOf takes a record's key from the subject it was published to, or nil.
func (t *topic) keyOf(subject []byte) []byte {
	switch t.config.Key.Kind {
	case config.KeySubject:
		if len(subject) > len(t.name) {
			return subject
		}
	case config.KeyToken:
		return token(subject, t.config.Key.Token)
	}
	return nil
}

// token returns the n-th token of a subject, from 1, or nil.
func token(subject []byte, n int) []byte {
	start := 0
	for i := 0; i <= len(subject); i++ {
		if i == len(subject) || subject[i] == '.' {
			if n--; n == 0 {
				return subject[start:i]
			}
			start = i + 1
		}
	}
	return nil
}
