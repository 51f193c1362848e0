package paxos

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// The small scope, exhaustively: three acceptors, of which two propose, two epochs,
// crashes. Short by default; the whole takes five minutes of one core and two gigabytes:
//
//	go test ./replication/paxos -run TestExplore -explore.full -v -timeout 1h
var exploreFull = flag.Bool("explore.full", false, "explore the whole small scope")

// scope bounds what is explored.
type scope struct {
	name    string
	epochs  uint64 // that are decided, after epoch 1
	crashes int    // in all
	retries int    // new ballots in all after the first of each proposal
	submits int    // proposals in all
	reads   int    // by the third broker
	// selfAtOnce: a message to oneself is taken at once, as a driver does that steps
	// its own messages before it takes others'.
	selfAtOnce bool
}

// explorer keeps machines and messages once each, so that a state is a few numbers:
// the machines, the set of all messages ever sent (each may arrive at any time, again
// or never, so that losing and repeating need no moves of their own), and what is
// left of each bound. A step of a machine is computed once and remembered.
type explorer struct {
	scope    scope
	rules    rules
	members  []Member
	values   map[string]Facts
	byHash   map[Hash]Entry
	machines []*Machine
	ids      map[string]int32
	messages []Message
	msgIDs   map[string]int32
	random   [][2]uint64 // for a message's part of a hash
	source   *rand.Rand
	moves    map[uint64]*move
	attempts map[explored]int32
	attempt  []int32 // of a message: which ballot of which epoch
	words    int     // of a network that are in use
	inboxes  [3]network
	atOnce   [3]network // of the inboxes: what is taken as soon as it is sent
}

const (
	maxMessages = 2048
	maxBallots  = 256
)

type explored struct {
	epoch  uint64
	ballot Ballot
}

type network [maxMessages / 64]uint64

func (n *network) has(i int32) bool { return n[i/64]&(1<<(i%64)) != 0 }

type state struct {
	machines [3]int32
	net      network
	hash     [2]uint64 // of net
	left     [4]int8   // crashes, retries, submits, reads
	began    uint8     // what was chosen when the read began
}

// move is what a step of a machine does.
type move struct {
	machine  int32
	sends    []int32
	learned  []Entry
	outcomes []Outcome
	reads    []ReadResult
}

func newExplorer(s scope, r rules) *explorer {
	x := &explorer{scope: s, rules: r, values: map[string]Facts{}, byHash: map[Hash]Entry{}, ids: map[string]int32{},
		msgIDs: map[string]int32{}, moves: map[uint64]*move{}, attempts: map[explored]int32{}, source: rand.New(rand.NewPCG(1, 2))}
	for i := range uint64(3) {
		x.members = append(x.members, Member{i + 1, fmt.Sprintf("i%d", i+1)})
	}
	return x
}

// entry makes the value that a proposer plans in one of its lives on a base.
func (x *explorer) entry(name string, base Entry) Entry {
	v := fmt.Sprintf("%s@%s", name, base.Value)
	h := fnv.New128a()
	h.Write([]byte(v))
	f := Facts{Cluster: "c", Epoch: base.Epoch + 1, Previous: base.Hash, Hash: Hash(slices.Concat(h.Sum(nil), make([]byte, 16))),
		Members: x.members, Council: x.members}
	x.values[v] = f
	e := Entry{Epoch: f.Epoch, Hash: f.Hash, Previous: f.Previous, Value: []byte(v)}
	x.byHash[f.Hash] = e
	return e
}

func (x *explorer) decode(v []byte) (Facts, error) {
	f, ok := x.values[string(v)]
	if !ok {
		return f, ErrInvalidValue
	}
	return f, nil
}

func clone(m *Machine) *Machine {
	c := *m
	c.undone, c.acked, c.queued = slices.Clone(m.undone), maps.Clone(m.acked), slices.Clone(m.queued)
	if m.proposal != nil {
		p := *m.proposal
		p.promises, p.votes = slices.Clone(p.promises), slices.Clone(p.votes)
		c.proposal = &p
	}
	if m.reading != nil {
		r := *m.reading
		r.tickets, r.answers = slices.Clone(r.tickets), slices.Clone(r.answers)
		c.reading = &r
	}
	return &c
}

// fingerprint of all that the machine's future depends on.
func fingerprint(m *Machine) string {
	var b strings.Builder
	set := func(votes []Member) []Member {
		return slices.SortedFunc(slices.Values(votes), func(a, b Member) int { return int(a.ID) - int(b.ID) })
	}
	fmt.Fprint(&b, m.self.ID, m.boot, m.newest.Hash, m.promised, m.accepted.Ballot, string(m.accepted.Value), m.seen, m.undone, m.queued, m.rounds)
	for _, x := range m.facts.Members {
		fmt.Fprint(&b, " ", m.acked[x])
	}
	if p := m.proposal; p != nil {
		fmt.Fprint(&b, "P", p.own, p.ticket, string(p.value), p.phase, p.ballot, set(p.promises), p.adopted.Ballot, string(p.adopted.Value),
			string(p.proposed), set(p.votes), p.preempted, p.round)
	}
	if r := m.reading; r != nil {
		answers := slices.SortedFunc(slices.Values(r.answers), func(a, b answer) int { return int(a.from.ID) - int(b.from.ID) })
		fmt.Fprint(&b, "R", r.number, r.tickets, answers, r.finishing)
	}
	return b.String()
}

func (x *explorer) machine(m *Machine) int32 {
	m.ahead = ahead{} // what was sent to catch up stays in the network
	f := fingerprint(m)
	id, ok := x.ids[f]
	if !ok {
		id = int32(len(x.machines))
		x.ids[f] = id
		x.machines = append(x.machines, m)
	}
	return id
}

func (x *explorer) message(m Message) int32 {
	var b strings.Builder
	fmt.Fprint(&b, m.Kind, m.From.ID, m.To.ID, m.Epoch, m.Previous, m.Ballot, m.Promised, m.Accepted.Ballot, string(m.Accepted.Value), string(m.Value), m.Hash, m.Boot, m.Round, m.Reason)
	for _, e := range m.Entries {
		b.WriteString(e.Hash.String())
	}
	id, ok := x.msgIDs[b.String()]
	if !ok {
		id = int32(len(x.messages))
		if id >= maxMessages {
			panic("more messages than a network holds")
		}
		x.msgIDs[b.String()] = id
		a, ok := x.attempts[explored{m.Epoch, m.Ballot}]
		if !ok {
			a = int32(len(x.attempts))
			x.attempts[explored{m.Epoch, m.Ballot}] = a
		}
		x.attempt = append(x.attempt, a)
		x.messages = append(x.messages, m)
		x.words = len(x.messages)/64 + 1
		x.random = append(x.random, [2]uint64{x.source.Uint64(), x.source.Uint64()})
		x.inboxes[m.To.ID-1][id/64] |= 1 << (id % 64)
		if m.Kind == LearnAck || m.Kind == Nack || m.From == m.To && x.scope.selfAtOnce {
			x.atOnce[m.To.ID-1][id/64] |= 1 << (id % 64)
		}
	}
	return id
}

// settle makes a move of a machine that was stepped.
func (x *explorer) settle(m *Machine, fx Effects) *move {
	mv := &move{learned: fx.Learned, outcomes: fx.Outcomes, reads: fx.Reads}
	for _, out := range fx.Send {
		mv.sends = append(mv.sends, x.message(out))
	}
	for _, s := range fx.Serve {
		var chain []Entry
		for e := m.newest; e.Epoch >= s.From; e = x.byHash[e.Previous] {
			chain = slices.Insert(chain, 0, e)
		}
		mv.sends = append(mv.sends, x.message(m.Decided(s.To, chain)))
	}
	mv.machine = x.machine(m)
	return mv
}

func (x *explorer) deliver(machine, msg int32) *move {
	k := uint64(machine)<<32 | uint64(msg)
	mv, ok := x.moves[k]
	if !ok {
		m := clone(x.machines[machine])
		fx := m.Step(x.messages[msg])
		mv = x.settle(m, fx)
		x.moves[k] = mv
	}
	return mv
}

// chosen returns the messages that carry the values that majorities voted for, by
// epoch, or what is wrong.
func (x *explorer) chosen(net *network) (chosen [4]*Message, err error) {
	var votes [maxBallots]uint8
	var values [maxBallots]*Message
	for w, word := range net[:x.words] {
		for ; word != 0; word &= word - 1 {
			id := w*64 + bits.TrailingZeros64(word)
			m, a := &x.messages[id], x.attempt[id]
			switch m.Kind {
			case Accepts:
				votes[a]++
			case Accept:
				if was := values[a]; was != nil && string(was.Value) != string(m.Value) {
					return chosen, fmt.Errorf("ballot %v of epoch %d has two values", m.Ballot, m.Epoch)
				}
				values[a] = m
			}
		}
	}
	for a, m := range values {
		if votes[a] < 2 {
			continue
		}
		if was := chosen[m.Epoch]; was != nil && string(was.Value) != string(m.Value) {
			return chosen, fmt.Errorf("epoch %d has the values %q and %q", m.Epoch, was.Value, m.Value)
		}
		chosen[m.Epoch] = m
	}
	return chosen, nil
}

// after is the state that a move of broker i leads to.
func (x *explorer) after(s *state, i int, mv *move) (state, error) {
	n := *s
	n.machines[i] = mv.machine
	voted := false
	for _, id := range mv.sends {
		if !n.net.has(id) {
			n.net[id/64] |= 1 << (id % 64)
			n.hash[0] ^= x.random[id][0]
			n.hash[1] ^= x.random[id][1]
			voted = voted || x.messages[id].Kind == Accepts || x.messages[id].Kind == Accept
		}
	}
	if voted || len(mv.learned)+len(mv.outcomes)+len(mv.reads) > 0 {
		if err := x.verify(&n, i, mv); err != nil {
			return n, err
		}
	}
	// Acknowledgements and refusals are taken at once: they only permit proposals and
	// new ballots, and a late one is as good as a late proposal.
	for i := range n.machines {
		for w, word := range n.net[:x.words] {
			for word &= x.atOnce[i][w]; word != 0; word &= word - 1 {
				id := int32(w*64 + bits.TrailingZeros64(word))
				mv := x.deliver(n.machines[i], id)
				if mv.machine != n.machines[i] || x.news(&n, mv) {
					return x.after(&n, i, mv)
				}
			}
		}
	}
	x.prune(&n)
	return n, nil
}

// prune drops the messages that can have no effect any more, so that states that
// differ in nothing else are one. Votes stay: they say what was chosen.
func (x *explorer) prune(n *state) {
	for w, word := range n.net[:x.words] {
		for ; word != 0; word &= word - 1 {
			id := int32(w*64 + bits.TrailingZeros64(word))
			if !x.live(n, &x.messages[id]) {
				n.net[w] &^= 1 << (id % 64)
				n.hash[0] ^= x.random[id][0]
				n.hash[1] ^= x.random[id][1]
			}
		}
	}
}

func (x *explorer) live(n *state, m *Message) bool {
	to, from := x.machines[n.machines[m.To.ID-1]], x.machines[n.machines[m.From.ID-1]]
	if m.Kind == Accepts || m.Kind == Accept && m.To.ID == 1 {
		return true
	}
	if x.final(to) {
		return false
	}
	attempt := func(p *Machine, ph phase) bool {
		return p.newest.Epoch+1 == m.Epoch && p.proposal != nil && p.proposal.ballot == m.Ballot && p.proposal.phase == ph
	}
	refused := func() bool { return from.proposal.preempted }
	switch m.Kind {
	case Promise:
		return attempt(to, preparing)
	case Prepare: // one that would be refused matters while the refusal does
		if m.Epoch <= to.newest.Epoch {
			return from.newest.Epoch < m.Epoch // it is told of the decided epoch
		}
		return attempt(from, preparing) && (m.Epoch > to.newest.Epoch+1 || m.Ballot.Compare(to.promised) >= 0 || !refused())
	case Accept:
		if m.Epoch <= to.newest.Epoch {
			return from.newest.Epoch < m.Epoch
		}
		if m.Epoch == to.newest.Epoch+1 && m.Ballot.Compare(to.promised) < 0 {
			return attempt(from, accepting) && !refused()
		}
		return true // whoever sent it may have moved on: the vote counts
	case Decided:
		last := m.Entries[len(m.Entries)-1].Epoch
		return last > to.newest.Epoch && last < 1+x.scope.epochs || last == to.newest.Epoch && from.acked[to.self] < last && from.newest.Epoch == last
	case LearnAck:
		return to.acked[m.From] < m.Epoch
	case Nack:
		return attempt(to, preparing) && !to.proposal.preempted || attempt(to, accepting) && !to.proposal.preempted
	case Read:
		return from.reading != nil && from.reading.number == m.Round && from.boot == m.Boot
	case ReadState:
		return to.reading != nil && to.reading.number == m.Round && to.boot == m.Boot
	}
	return true
}

// final: a machine that has learned the last epoch of the scope does nothing that
// matters to it.
func (x *explorer) final(m *Machine) bool { return m.newest.Epoch > x.scope.epochs }

func (x *explorer) verify(n *state, i int, mv *move) error {
	chosen, err := x.chosen(&n.net)
	if err != nil {
		return err
	}
	for _, e := range mv.learned {
		if v := chosen[e.Epoch]; v == nil || string(v.Value) != string(e.Value) {
			return fmt.Errorf("broker %d learns %q as epoch %d, chosen is %v", i+1, e.Value, e.Epoch, v)
		}
	}
	for _, r := range mv.reads {
		if r.Epoch < uint64(n.began) {
			return fmt.Errorf("a read returned epoch %d, but %d was chosen before it began", r.Epoch, n.began)
		}
	}
	for _, o := range mv.outcomes {
		v := chosen[o.Epoch]
		mine := v != nil && strings.HasPrefix(string(v.Value), fmt.Sprintf("p%d.%d@", i+1, o.Ticket))
		if mine != (o.Result != Lost) {
			return fmt.Errorf("broker %d says of epoch %d: %v, chosen is %v", i+1, o.Epoch, o.Result, v)
		}
	}
	return nil
}

// explore visits every state within the scope and returns how many there are.
func (x *explorer) explore() (states, transitions int, err error) {
	one := Entry{Epoch: 1, Value: []byte("1")}
	x.values["1"] = Facts{Cluster: "c", Epoch: 1, Members: x.members, Council: x.members}
	x.byHash[one.Hash] = one
	var first state
	first.left = [4]int8{int8(x.scope.crashes), int8(x.scope.retries), int8(x.scope.submits), int8(x.scope.reads)}
	for i, self := range x.members {
		m, err := New(Options{Self: self, Boot: 1, Decode: x.decode, State: State{Newest: one}})
		if err != nil {
			return 0, 0, err
		}
		m.rules = x.rules
		for _, y := range x.members {
			m.acked[y] = 1
		}
		first.machines[i] = x.machine(m)
	}
	seen := map[[2]uint64]struct{}{x.key(&first): {}}
	stack := []state{first}
	for len(stack) > 0 {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		states++
		visit := func(i int, mv *move, change func(*state)) error {
			transitions++
			from := s
			if change != nil {
				change(&from)
			}
			n, err := x.after(&from, i, mv)
			if err != nil {
				return err
			}
			k := x.key(&n)
			if _, ok := seen[k]; !ok {
				seen[k] = struct{}{}
				stack = append(stack, n)
			}
			return nil
		}
		for i := range s.machines {
			if err := x.expand(&s, i, visit); err != nil {
				return states, transitions, err
			}
		}
	}
	return states, transitions, nil
}

// expand visits what can happen to broker i.
func (x *explorer) expand(s *state, i int, visit func(int, *move, func(*state)) error) error {
	id := s.machines[i]
	if x.final(x.machines[id]) {
		return nil
	}
	for w, word := range s.net[:x.words] {
		for word &= x.inboxes[i][w]; word != 0; word &= word - 1 {
			msg := int32(w*64 + bits.TrailingZeros64(word))
			mv := x.deliver(id, msg)
			if mv.machine == id && !x.news(s, mv) {
				continue
			}
			if err := visit(i, mv, nil); err != nil {
				return err
			}
		}
	}
	m := x.machines[id]
	if s.left[0] > 0 && (m.proposal != nil || m.reading != nil) { // nothing else is lost
		again, err := New(Options{Self: m.self, Boot: m.boot + 1, Decode: x.decode, State: m.State()})
		if err != nil {
			return err
		}
		again.rules = x.rules
		mv := &move{machine: x.machine(again)}
		if err := visit(i, mv, func(s *state) { s.left[0]-- }); err != nil {
			return err
		}
	}
	if p := m.proposal; s.left[1] > 0 && p != nil && p.preempted {
		c := clone(m)
		fx := c.Retry()
		mv := x.settle(c, fx)
		if err := visit(i, mv, func(s *state) { s.left[1]-- }); err != nil {
			return err
		}
	}
	if s.left[2] > 0 && i < 2 && m.newest.Epoch < 1+x.scope.epochs && (m.proposal == nil || !m.proposal.own) {
		c := clone(m)
		e := x.entry(fmt.Sprintf("p%d.%d", m.self.ID, m.boot), m.newest)
		if fx, err := c.Propose(m.boot, m.newest.Epoch, e.Value); err == nil {
			mv := x.settle(c, fx)
			if err := visit(i, mv, func(s *state) { s.left[2]-- }); err != nil {
				return err
			}
		}
	}
	if s.left[3] > 0 && i == 2 {
		chosen, err := x.chosen(&s.net)
		if err != nil {
			return err
		}
		newest := uint8(1)
		for e, v := range chosen {
			if v != nil {
				newest = uint8(e)
			}
		}
		c := clone(m)
		fx, err := c.Read(1)
		if err != nil {
			return err
		}
		mv := x.settle(c, fx)
		return visit(i, mv, func(s *state) { s.left[3]--; s.began = newest })
	}
	return nil
}

func (x *explorer) news(s *state, mv *move) bool {
	return slices.ContainsFunc(mv.sends, func(id int32) bool { return !s.net.has(id) })
}

// key of a state: 128 bits, so that two of even a billion states hardly ever share one.
func (x *explorer) key(s *state) [2]uint64 {
	var b [24]byte
	for i, m := range s.machines {
		binary.LittleEndian.PutUint32(b[4*i:], uint32(m))
	}
	for i, l := range s.left {
		b[12+i] = byte(l)
	}
	b[16] = s.began
	k := s.hash
	for i := 0; i < len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		for j := range k {
			k[j] = mix(k[j]^w, uint64(j)+0x9e3779b97f4a7c15)
		}
	}
	return k
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0xa0761d6478bd642f, b^0xe7037ed1a0b428db)
	return hi ^ lo ^ bits.RotateLeft64(a, 23)
}

func TestExplore(t *testing.T) {
	t.Parallel()
	scopes := []scope{
		{name: "one epoch, two crashes", epochs: 1, crashes: 2, submits: 2, selfAtOnce: true},
		{name: "one epoch, duel, two crashes", epochs: 1, crashes: 2, retries: 1, submits: 2, selfAtOnce: true},
		{name: "one epoch, own messages late", epochs: 1, crashes: 1, submits: 2},
		{name: "two epochs, two crashes", epochs: 2, crashes: 2, submits: 2, selfAtOnce: true},
		{name: "read", epochs: 1, submits: 1, reads: 1, selfAtOnce: true},
	}
	if *exploreFull {
		scopes = append(scopes,
			scope{name: "one epoch, duel, own messages late", epochs: 1, retries: 1, submits: 2},
			scope{name: "two epochs, two crashes, three proposals", epochs: 2, crashes: 2, submits: 3, selfAtOnce: true},
			scope{name: "two epochs, two crashes, three proposals, duel", epochs: 2, crashes: 2, submits: 3, retries: 1, selfAtOnce: true},
		)
	}
	for _, s := range scopes {
		t.Run(s.name, func(t *testing.T) {
			states, transitions, err := newExplorer(s, paxosRules).explore()
			t.Logf("%d states, %d transitions", states, transitions)
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// The explorer, too, has to notice when a rule is broken.
func TestExplorerCatchesMutants(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a quorum is half", "accept below a promise", "promise any ballot", "forget the vote in a promise", "adopt nothing",
		"a read asks one", "a read ignores what is half done"} {
		r := paxosRules
		Mutants[name](&r)
		s := scope{epochs: 1, retries: 1, submits: 2, selfAtOnce: true}
		if strings.HasPrefix(name, "a read") {
			s = scope{epochs: 1, submits: 1, reads: 1, selfAtOnce: true}
		}
		states, _, err := newExplorer(s, r).explore()
		if err == nil {
			t.Errorf("%s: not caught in %d states", name, states)
		}
		t.Logf("%s: after %d states: %v", name, states, err)
	}
}
