// Package interest routes messages from publishers to live subscribers:
// NATS subjects, wildcards and queue groups. It is shared by the front end and
// the mesh and knows neither sockets nor topics.
//
//	subject.go    what subjects and filters are valid, match and overlap
//	trie.go       filters by token, one node a token
//	router.go     subscriptions: add, remove, watch
//	publisher.go  one publisher's way to them: match cache, queue picks, burst
//	peer.go       other brokers: one hand-over a broker, weighted queue groups
//	bindings.go   filters that never overlap, each with one value
package interest

// Message is one message under way. Its slices are valid during a call only;
// whoever keeps them copies them.
type Message struct {
	Subject []byte
	Reply   []byte // nil when there is none
	Header  []byte // the raw header block, "NATS/1.0\r\n" to the blank line, or nil
	Payload []byte
	Hops    uint8 // brokers that passed it on because a queue group's member was gone

	burst *Burst // of the Publisher that routes it now
}

// Burst of the publisher that is delivering this message, or nil when there is
// none: the sink then wakes its own reader at once.
func (m *Message) Burst() *Burst { return m.burst }

// A Sink takes what its subscriptions match.
type Sink interface {
	// Deliver hands over one message, from the publisher's goroutine. It must
	// not block for long and copies what it keeps. False means that the message
	// was not taken: in a queue group the next member is tried.
	Deliver(sub *Subscription, m *Message) bool
}

// A Waker is a sink whose reader waits to be told that something was delivered.
type Waker interface {
	Wake()
}

// A Burst remembers whom a publisher's deliveries touched, so that each is
// woken once, when the publisher has delivered all that it read in one go.
type Burst struct {
	id      uint64
	touched []Waker
	room    <-chan struct{}
}

// ID is unique among all bursts of the process and never 0. A sink that sees
// the same one again has been touched already.
func (b *Burst) ID() uint64 { return b.id }

// Touch has w woken at the end of the burst.
func (b *Burst) Touch(w Waker) { b.touched = append(b.touched, w) }

// Congested tells the publisher that a sink is far behind: room is closed once
// it has caught up. The publisher may wait for that, for a while.
func (b *Burst) Congested(room <-chan struct{}) {
	if b.room == nil {
		b.room = room
	}
}
