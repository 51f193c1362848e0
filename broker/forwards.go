package broker

import (
	"sync"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
)

// forwards remembers what was handed to other brokers and is not answered, so
// that its sender is told when the link breaks: else it would wait until its
// time runs out, for an answer that nobody will give.
type forwards struct {
	b  *Broker
	mu sync.Mutex
	// under way, by broker and reply subject
	under map[uint64]map[string]underway
	// and, by broker and id, those that can be sent again: see kept.go
	kept  map[uint64]map[uint64]*kept
	last  uint64 // id
	bytes int    // of all that are kept
}

type underway struct {
	count int
	kind  requestKind
}

// requestKind says in which form an error answers a request.
type requestKind uint8

const (
	aPublish requestKind = iota
	aFetch
	aGroupRequest // JSON
	aPull         // JSON, and a header that says so
)

func kindOfRequest(subject []byte) requestKind {
	switch {
	case hasPrefix(subject, wire.FetchPrefix):
		return aFetch
	case hasPrefix(subject, wire.GroupPull):
		return aPull
	case hasPrefix(subject, wire.GroupPrefix), hasPrefix(subject, wire.AckPrefix), hasPrefix(subject, wire.NextPrefix):
		return aGroupRequest
	}
	return aPublish
}

// refuse answers a request that failed, in the form of its kind.
func (b *Broker) refuse(kind requestKind, reply []byte, e *wire.Error) {
	switch kind {
	case aFetch:
		b.refuseFetch(reply, e)
	case aGroupRequest, aPull:
		b.refuseGroup(kind, reply, e)
	default:
		b.acks.refuse(reply, e)
	}
}

// maxUnderway bounds what is remembered of one broker; what is over that isn't
// told.
const maxUnderway = 1 << 16

// send forwards a message.
func (f *forwards) send(to uint64, topic string, number int32, m *interest.Message) error {
	if !f.b.peers.alive(to) {
		return mesh.ErrUnreachable
	}
	if len(m.Reply) == 0 {
		return f.b.peers.mesh.Forward(to, topic, number, m)
	}
	if kindOfRequest(m.Subject) == aFetch {
		if k := f.keep(topic, number, m); k != nil {
			err := f.sendKept(to, k)
			if err != nil {
				f.drop(k)
			}
			return err
		}
	}
	f.add(to, m)
	if err := f.b.peers.mesh.Forward(to, topic, number, m); err != nil {
		f.forget(to, m.Reply)
		return err
	}
	if !f.b.peers.alive(to) {
		f.lost(to) // the link went down before this was noted
	}
	return nil
}

// waiting counts what was handed to a broker and is not answered.
func (f *forwards) waiting(broker uint64) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range f.under[broker] {
		n += u.count
	}
	return n + len(f.kept[broker])
}

func (f *forwards) add(to uint64, m *interest.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	under := f.under[to]
	if under == nil {
		under = map[string]underway{}
		f.under[to] = under
	}
	u, ok := under[string(m.Reply)]
	if !ok && len(under) >= maxUnderway {
		return
	}
	u.count++
	u.kind = kindOfRequest(m.Subject)
	under[string(m.Reply)] = u
}

// answered takes an answer that came back, and routes it to who asked.
func (f *forwards) answered(from uint64, m *interest.Message, route func(*interest.Message)) {
	if id, ok := keptID(m.Subject); ok {
		f.answeredKept(from, id, m, route)
		return
	}
	f.forget(from, m.Subject)
	route(m)
}

func (f *forwards) forget(from uint64, subject []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	under := f.under[from]
	u, ok := under[string(subject)]
	switch {
	case !ok:
	case u.count <= 1:
		delete(under, string(subject))
	default:
		u.count--
		under[string(subject)] = u
	}
}

// lost answers all that a broker hasn't.
func (f *forwards) lost(to uint64) {
	f.mu.Lock()
	under := f.under[to]
	delete(f.under, to)
	var kept []*kept
	for id, k := range f.kept[to] {
		if k.handing { // sendKept answers it once it can
			k.broke = true
			continue
		}
		kept = append(kept, k)
		delete(f.kept[to], id)
	}
	f.mu.Unlock()
	for subject, u := range under {
		for range u.count {
			f.b.refuse(u.kind, []byte(subject), f.broken(to))
		}
	}
	for _, k := range kept {
		f.failed(k, f.broken(to))
	}
}

func (f *forwards) broken(to uint64) *wire.Error {
	return &wire.Error{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Outcome: wire.OutcomeUnknown,
		Description: "the link to the partition's leader, broker " + f.b.brokerName(to) + ", broke before it answered"}
}
