// Package placement decides which brokers hold which partitions' replicas. It
// is pure: the same brokers, partitions and previous assignment give the same
// plan on every machine, in whatever order they are listed, and nothing is
// read but the input.
//
// A Ring of virtual nodes gives each partition its order of preference among
// the brokers. On it Make plans, by these rules, the earlier before the later:
//
//  1. A partition whose committed voters have lost their live majority isn't
//     touched, and nobody leaves the others below one.
//  2. Racks: a partition's replicas are spread over as many racks as there
//     are, as evenly as their sizes allow.
//  3. Bounds: no broker holds more or less than about 5 % beside its share by weight.
//  4. Stickiness: what stands stays.
//
// An epoch stores the result, so a new version of the planner moves nothing by
// itself.
package placement

import (
	"errors"
	"fmt"
	"slices"
)

// Limits of one input. They lie above those of an epoch's value, and they keep
// the planner's integer arithmetic exact.
const (
	MaxBrokers  = 1 << 10
	MaxReplicas = 1 << 16 // sum of all factors
)

var (
	// ErrInvalid says that the input contradicts itself or breaks a limit.
	ErrInvalid = errors.New("invalid placement input")
	// ErrNoBroker says that a partition without any replica finds no broker
	// that may take one.
	ErrNoBroker = errors.New("no broker takes replicas")
)

// State says what a broker is meant to hold.
type State uint8

const (
	Active   State = iota // its share
	Draining              // nothing, as soon as others can take it
	Dead                  // nothing, and it can't hand over what it had
)

func (s State) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// Broker is one member of the cluster.
type Broker struct {
	ID     uint64 // not 0
	Name   string // for the texts; "broker 7" when empty
	Weight uint32 // 0: it is emptied like a draining one
	Rack   string // those without one share the rack ""
	State  State
}

// Partition is what is asked for one partition, and what it has.
type Partition struct {
	Shard  uint64 // never reused: the partition's place on the ring
	Factor int    // replicas wanted, at least 1

	// Replicas are the brokers of the previous assignment, the preferred
	// leader first; none when the partition is new. A broker that isn't in
	// the input counts as dead.
	Replicas []uint64

	// Voters are the brokers of the committed membership. It differs from Replicas
	// while a move is under way. None: as Replicas.
	Voters []uint64

	// Down are voters known not to be live although their broker isn't dead:
	// unreachable for a moment, or behind. They are not replaced, but they don't
	// count for a majority.
	Down []uint64
}

// Input is all that a plan depends on. Order has no meaning but within
// Partition.Replicas.
type Input struct {
	Brokers    []Broker
	Partitions []Partition
}

// Hosts returns how many brokers may take replicas: a partition gets at most
// that many. Whoever creates a topic refuses a greater factor by it.
func (in *Input) Hosts() int {
	n := 0
	for i := range in.Brokers {
		if in.Brokers[i].host() {
			n++
		}
	}
	return n
}

func (b *Broker) host() bool { return b.State == Active && b.Weight > 0 }

func (b *Broker) label() string {
	if b.Name != "" {
		return b.Name
	}
	return fmt.Sprintf("broker %d", b.ID)
}

// Plan is a new assignment and what leads to it. Its slices are the caller's.
type Plan struct {
	Assignments []Assignment // of all partitions, by shard
	Moves       []Move       // replicas, by shard
	Leads       []Lead       // preferred leaders of partitions that had one, by shard
	Held        []Held       // what could not be done, by shard
	Loads       []Load       // by broker
}

// Assignment is where one partition's replicas belong. The first is the
// preferred leader. What stood keeps its order; newcomers follow in
// the order of the ring.
type Assignment struct {
	Shard    uint64
	Replicas []uint64
}

// Move is one replica that goes from one broker to another. From is 0 for a
// replica that is added, To is 0 for one that is dropped. A replica that replaces a
// dead one is copied from the others.
type Move struct {
	Shard  uint64
	From   uint64
	To     uint64
	Reason Reason
}

// Lead is a change of a partition's preferred leader.
type Lead struct {
	Shard  uint64
	From   uint64
	To     uint64
	Reason Reason
}

// Held is something that should have changed and could not. With CodeDeferred it can
// once the plan's moves are done: plan again then. The others wait for a
// broker to come back or to be added.
type Held struct {
	Shard  uint64
	Reason Reason
}

// Load is what a broker held and will hold, and the bounds it was measured
// against. A broker that takes no replicas has bounds of 0.
type Load struct {
	Broker        uint64
	Share         float64 // of replicas, by weight, as racks and factors allow; to be shown only
	Lower, Upper  int     // replicas
	Before, After int     // replicas
	LeadLower     int     // preferred leaders
	LeadUpper     int
	LedBefore     int
	LedAfter      int
}

// Within says that the broker will hold what its bounds allow.
func (l *Load) Within() bool { return l.After >= l.Lower && l.After <= l.Upper }

// Changed says that the plan differs from the previous assignment.
func (p *Plan) Changed() bool { return len(p.Moves) > 0 || len(p.Leads) > 0 }

// Make plans. It fails with ErrInvalid when the input contradicts itself, and
// with ErrNoBroker when a new partition can't be placed at all. A partition
// that wants more replicas than there are brokers gets one on each, and
// Held says so; it gets the rest when brokers join.
func Make(in Input) (*Plan, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	p := newPlanner(in)
	p.settle()
	p.setBounds()
	if err := p.fill(); err != nil {
		return nil, err
	}
	p.spreadRacks()
	p.balance()
	p.chooseLeaders()
	return p.plan(), nil
}

func (in *Input) check() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if len(in.Brokers) > MaxBrokers {
		return invalid("%d brokers, at most %d", len(in.Brokers), MaxBrokers)
	}
	brokers := make(map[uint64]bool, len(in.Brokers))
	for _, b := range in.Brokers {
		switch {
		case b.ID == 0:
			return invalid("broker %q has id 0, which stands for none", b.Name)
		case brokers[b.ID]:
			return invalid("broker id %d is listed twice", b.ID)
		case b.State > Dead:
			return invalid("broker id %d has state %d, known are active, draining and dead", b.ID, b.State)
		}
		brokers[b.ID] = true
	}
	total := 0
	shards := make(map[uint64]bool, len(in.Partitions))
	for i := range in.Partitions {
		p := &in.Partitions[i]
		switch {
		case shards[p.Shard]:
			return invalid("shard %d is listed twice", p.Shard)
		case p.Factor < 1 || p.Factor > MaxReplicas:
			return invalid("shard %d wants %d replicas, allowed are 1 to %d", p.Shard, p.Factor, MaxReplicas)
		}
		shards[p.Shard] = true
		total += max(p.Factor, len(p.Replicas))
		if total > MaxReplicas {
			return invalid("more than %d replicas", MaxReplicas)
		}
		for _, list := range []struct {
			name string
			ids  []uint64
		}{{"replicas", p.Replicas}, {"voters", p.Voters}} {
			for j, id := range list.ids {
				if id == 0 || slices.Contains(list.ids[:j], id) {
					return invalid("shard %d lists broker %d among its %s twice, or 0", p.Shard, id, list.name)
				}
			}
		}
	}
	return nil
}
