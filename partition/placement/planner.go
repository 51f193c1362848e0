package placement

import (
	"cmp"
	"math"
	"slices"
)

// planner holds the state of one plan. Hosts, the brokers that take replicas,
// are numbered by id; partitions by shard; racks in the order of the hosts.
type planner struct {
	brokers  map[uint64]*Broker
	hosts    []Broker
	hostOf   map[uint64]int // by broker id
	rackOf   []int          // by host
	rackSize []int          // hosts in it
	weights  []uint64       // of hosts, scaled

	parts []part
	has   []bool   // partition × host: holds a replica
	had   []bool   // partition × host: held one in the previous assignment
	rank  []uint16 // partition × host: place in the walk of the ring
	count []int32  // partition × rack: replicas on its hosts

	load   []int    // by host
	shares []share  // by host
	scale  []uint64 // by host, the shares to compare by
	lower  []int
	upper  []int

	held []Held
	lead leadership
}

// part is one partition in the making.
type part struct {
	Partition
	voters []uint64 // committed
	slots  []slot
	frozen bool // no live majority of the voters: nothing may change

	leadCause cause // of the last change of its preferred leader

	// mayLeave is how many live voters may leave the assignment before those
	// that stay are less than a majority of the committed ones. While every voter
	// is live there is no such limit: a newcomer is in sync before anybody
	// leaves, so the carrying out of the plan never goes below.
	mayLeave int
}

// slot is one replica of a partition. It belongs to a host, or to a broker that
// takes none: draining, dead or unknown.
type slot struct {
	broker uint64
	host   int    // -1: takes no replicas
	origin uint64 // where it was before the plan, 0 when it is new
	cause  cause  // of its being where it is, when it moved
}

func newPlanner(in Input) *planner {
	p := &planner{brokers: make(map[uint64]*Broker, len(in.Brokers)), hostOf: make(map[uint64]int)}
	for i := range in.Brokers {
		p.brokers[in.Brokers[i].ID] = &in.Brokers[i]
	}
	ring := NewRing(in.Brokers)
	p.hosts = ring.hosts
	p.weights = scaled(p.hosts)
	racks := make(map[string]int)
	for h, b := range p.hosts {
		p.hostOf[b.ID] = h
		r, ok := racks[b.Rack]
		if !ok {
			r = len(p.rackSize)
			racks[b.Rack] = r
			p.rackSize = append(p.rackSize, 0)
		}
		p.rackOf = append(p.rackOf, r)
		p.rackSize[r]++
	}
	n := len(p.hosts)
	p.load, p.lower, p.upper = make([]int, n), make([]int, n), make([]int, n)

	p.parts = make([]part, len(in.Partitions))
	for i := range in.Partitions {
		p.parts[i].Partition = in.Partitions[i]
	}
	slices.SortFunc(p.parts, func(a, b part) int { return cmp.Compare(a.Shard, b.Shard) })
	p.has, p.had = make([]bool, len(p.parts)*n), make([]bool, len(p.parts)*n)
	p.rank = make([]uint16, len(p.parts)*n)
	p.count = make([]int32, len(p.parts)*len(p.rackSize))
	stops := make([]stop, 0, n)
	for i := range p.parts {
		stops = ring.walk(p.parts[i].Shard, stops)
		for place, s := range stops {
			p.rank[i*n+s.host] = uint16(place)
		}
	}
	return p
}

func (p *planner) holds(i, host int) bool { return p.has[i*len(p.hosts)+host] }

func (p *planner) stood(i, host int) bool { return p.had[i*len(p.hosts)+host] }

func (p *planner) rankOf(i, host int) int { return int(p.rank[i*len(p.hosts)+host]) }

func (p *planner) inRack(i, rack int) int { return int(p.count[i*len(p.rackSize)+rack]) }

// fuller compares how full two hosts are for their share.
func (p *planner) fuller(a, b int) int {
	return cmp.Compare(uint64(p.load[a])*p.scale[b], uint64(p.load[b])*p.scale[a])
}

// put and take keep the tables in step with a partition's slots.
func (p *planner) put(i, host int) {
	p.has[i*len(p.hosts)+host] = true
	p.count[i*len(p.rackSize)+p.rackOf[host]]++
	p.load[host]++
}

func (p *planner) take(i, host int) {
	p.has[i*len(p.hosts)+host] = false
	p.count[i*len(p.rackSize)+p.rackOf[host]]--
	p.load[host]--
}

// dead says that a broker can't serve what it holds.
func (p *planner) dead(id uint64) bool {
	b := p.brokers[id]
	return b == nil || b.State == Dead
}

// liveVoter says that a broker is one of the partition's committed voters, and live.
func (p *planner) liveVoter(t *part, id uint64) bool {
	return slices.Contains(t.voters, id) && !p.dead(id) && !slices.Contains(t.Down, id)
}

// guard says whether a slot may leave its broker.
func (p *planner) guard(t *part, broker uint64) bool {
	return !t.frozen && (t.mayLeave > 0 || !p.liveVoter(t, broker))
}

// left and came count a live voter's leaving, and its return within the same plan.
func (p *planner) left(t *part, broker uint64) {
	if t.mayLeave != math.MaxInt && p.liveVoter(t, broker) {
		t.mayLeave--
	}
}

func (p *planner) came(t *part, broker uint64) {
	if t.mayLeave != math.MaxInt && p.liveVoter(t, broker) {
		t.mayLeave++
	}
}

func (p *planner) hold(t *part, c cause) {
	p.held = append(p.held, Held{Shard: t.Shard, Reason: c.reason()})
}

// settle takes over what stands, finds what must not be touched, and drops
// replicas that are no longer wanted.
func (p *planner) settle() {
	for i := range p.parts {
		t := &p.parts[i]
		t.voters = t.Voters
		if len(t.voters) == 0 {
			t.voters = t.Replicas
		}
		live, staying := 0, 0
		for _, v := range t.voters {
			if p.liveVoter(t, v) {
				live++
				if slices.Contains(t.Replicas, v) {
					staying++
				}
			}
		}
		majority := len(t.voters)/2 + 1
		t.mayLeave = math.MaxInt
		if live < len(t.voters) {
			t.mayLeave = max(0, staying-majority)
		}
		if len(t.voters) > 0 && live < majority {
			t.frozen = true
			p.hold(t, cause{code: CodeNoMajority, have: live, want: majority})
		}
		for _, id := range t.Replicas {
			s := slot{broker: id, host: -1, origin: id}
			if h, ok := p.hostOf[id]; ok {
				s.host = h
				p.put(i, h)
				p.had[i*len(p.hosts)+h] = true
			}
			t.slots = append(t.slots, s)
		}
	}
	for i := range p.parts {
		p.shrink(i)
	}
}

// shrink drops what a partition has beyond its factor: dead ones first, then those on
// brokers that are to be emptied, then the fullest broker's of the most
// crowded rack.
func (p *planner) shrink(i int) {
	t := &p.parts[i]
	for !t.frozen && len(t.slots) > t.Factor {
		best := -1
		for j := range t.slots {
			if p.guard(t, t.slots[j].broker) && (best < 0 || p.rather(i, t.slots[j], t.slots[best])) {
				best = j
			}
		}
		if best < 0 {
			p.hold(t, cause{code: CodeDeferred, id: t.slots[0].broker, subject: p.brokers[t.slots[0].broker]})
			return
		}
		s := t.slots[best]
		if s.host >= 0 {
			p.take(i, s.host)
		}
		p.left(t, s.broker)
		t.slots = slices.Delete(t.slots, best, best+1)
	}
}

// rather says that a is dropped rather than b.
func (p *planner) rather(i int, a, b slot) bool {
	if a.host < 0 || b.host < 0 {
		class := func(s slot) int {
			switch {
			case p.dead(s.broker):
				return 0
			case s.host < 0:
				return 1
			}
			return 2
		}
		return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(b.broker, a.broker)) < 0
	}
	// Shares aren't known before it is known how much there is to share.
	return cmp.Or(
		cmp.Compare(p.inRack(i, p.rackOf[b.host]), p.inRack(i, p.rackOf[a.host])),
		cmp.Compare(uint64(p.load[b.host])*p.weights[a.host], uint64(p.load[a.host])*p.weights[b.host]),
		cmp.Compare(p.rankOf(i, b.host), p.rankOf(i, a.host)),
	) < 0
}

// setBounds reckons shares from what will be held by hosts when all holes
// are filled: the sum and its spread don't change any more after that.
func (p *planner) setBounds() {
	counts := make(map[int]int)
	for i := range p.parts {
		t := &p.parts[i]
		on, stuck := 0, 0
		budget := t.mayLeave
		for _, s := range t.slots {
			switch {
			case s.host >= 0:
				on++
			case p.dead(s.broker) || !p.liveVoter(t, s.broker):
			case budget > 0:
				budget--
			default:
				stuck++
			}
		}
		if !t.frozen {
			on += max(0, min(t.Factor-on-stuck, len(p.hosts)-on))
		}
		counts[on]++
	}
	p.shares = shares(counts, p.weights, p.rackOf, len(p.rackSize))
	for h, s := range p.shares {
		p.lower[h], p.upper[h] = s.lower(), s.upper()
		p.scale = append(p.scale, s.fixed())
	}
}

// fill replaces what is on brokers that take no replicas, the dead first, and fills
// the holes.
func (p *planner) fill() error {
	for i := range p.parts {
		t := &p.parts[i]
		if t.frozen {
			continue
		}
		dead := func(s slot) bool { return p.dead(s.broker) }
		draining := func(s slot) bool { return s.host < 0 && !dead(s) }
		wanting := p.replace(i, dead, CodeDead) || p.replace(i, draining, CodeDrain)
		reason := cause{code: CodeNew}
		if len(t.Replicas) > 0 {
			reason = cause{code: CodeGrow, have: len(t.Replicas), want: t.Factor}
		}
		for len(t.slots) < t.Factor && !wanting {
			h := p.pick(i)
			if h < 0 {
				wanting = true
				break
			}
			p.put(i, h)
			t.slots = append(t.slots, slot{broker: p.hosts[h].ID, host: h, cause: reason})
		}
		if len(t.slots) == 0 {
			return noBroker(t)
		}
		if wanting {
			on := 0
			for _, s := range t.slots {
				if s.host >= 0 {
					on++
				}
			}
			p.hold(t, cause{code: CodeNoBroker, have: on, want: t.Factor})
		}
	}
	return nil
}

// replace moves the slots that must leave to hosts, and says whether one found
// none: then it stays, since a dead broker that comes back with its data is
// worth more than a smaller set.
func (p *planner) replace(i int, leaving func(slot) bool, code Code) (wanting bool) {
	t := &p.parts[i]
	for j := range t.slots {
		s := &t.slots[j]
		if !leaving(*s) {
			continue
		}
		if !p.guard(t, s.broker) {
			p.hold(t, cause{code: CodeDeferred, id: s.broker, subject: p.brokers[s.broker]})
			continue
		}
		h := p.pick(i)
		if h < 0 {
			return true
		}
		p.left(t, s.broker)
		s.cause = cause{code: code, id: s.broker, subject: p.brokers[s.broker]}
		s.host, s.broker = h, p.hosts[h].ID
		p.came(t, s.broker)
		p.put(i, h)
	}
	return false
}

// pick chooses a host for one more replica: of the racks that hold fewest, the first
// in ring order that is under its bound; when all are at theirs, the
// emptiest. It returns -1 when every host holds one.
func (p *planner) pick(i int) int {
	fewest := math.MaxInt
	for h := range p.hosts {
		if !p.holds(i, h) {
			fewest = min(fewest, p.inRack(i, p.rackOf[h]))
		}
	}
	best, under := -1, false
	for h := range p.hosts {
		if p.holds(i, h) || p.inRack(i, p.rackOf[h]) != fewest {
			continue
		}
		room := p.load[h] < p.upper[h]
		better := best < 0 || room && !under
		if !better && room == under {
			order := cmp.Compare(p.rankOf(i, h), p.rankOf(i, best))
			if !room {
				order = cmp.Or(p.fuller(h, best), order)
			}
			better = order < 0
		}
		if better {
			best, under = h, room
		}
	}
	return best
}

// move takes a partition's slot from one host to another.
func (p *planner) move(i, from, to int, why cause) {
	t := &p.parts[i]
	j := slices.IndexFunc(t.slots, func(s slot) bool { return s.host == from })
	p.take(i, from)
	p.put(i, to)
	p.left(t, p.hosts[from].ID)
	p.came(t, p.hosts[to].ID)
	s := &t.slots[j]
	s.host, s.broker = to, p.hosts[to].ID
	if s.cause.code == "" { // why it left is worth more than why it went on
		s.cause = why
	}
}
