package broker

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
)

// What plain clients publish, and fetches, are kept until the leader that they were forwarded to has answered. A leader
// that is one no more refuses them; they are then sent to the next one, by the broker that the client is connected to.

const (
	// maxKept bounds the bytes of what is kept. What is over that isn't sent again: its client is told.
	maxKept = 64 << 20
	// keptPrefix begins the reply subject that the leader answers to, in place of the client's own. The id of what is kept follows.
	keptPrefix = "_PARLEY.F."
)

// kept is one message that can be sent again.
type kept struct {
	id     uint64 // in the order in which they came
	topic  string
	number int32
	lead   *lead // of its partition; nil for a fetch, which has no order
	size   int
	taken  int64 // when it came, by the acker's clock

	m     interest.Message // a copy
	buf   []byte
	again interest.Message // the same with the leader's reply subject
	token []byte

	handing bool // to the mesh, which reads it: nobody else may answer it. Guarded by forwards.mu, as is broke
	broke   bool // the link went down meanwhile

	named bool        // it has a message id: it can't be stored twice
	to    uint64      // who had it last
	err   *wire.Error // the last refusal
	tries int
}

var keptPool = sync.Pool{New: func() any { return new(kept) }}

func (k *kept) release() {
	buf, token := k.buf, k.token
	if cap(buf) > 64<<10 {
		buf = nil
	}
	*k = kept{buf: buf[:0], token: token[:0]}
	keptPool.Put(k)
}

// copy makes m k's own.
func (k *kept) copy(m *interest.Message) {
	b := append(k.buf[:0], m.Subject...)
	b = append(b, m.Reply...)
	b = append(b, m.Header...)
	k.buf = append(b, m.Payload...)
	s, r, h := len(m.Subject), len(m.Subject)+len(m.Reply), len(m.Subject)+len(m.Reply)+len(m.Header)
	k.m = interest.Message{Subject: k.buf[:s:s], Reply: k.buf[s:r:r], Header: k.buf[r:h:h], Payload: k.buf[h:]}
	for block := headerLines(k.m.Header); ; {
		name, rest, ok := nextHeader(block)
		if !ok {
			return
		}
		if block = rest; kindOf(name.name) == headerMsgID {
			k.named = true
		}
	}
}

// keep copies a message; nil when too much is kept.
func (f *forwards) keep(topic string, number int32, m *interest.Message) *kept {
	size := len(m.Subject) + len(m.Reply) + len(m.Header) + len(m.Payload)
	f.mu.Lock()
	if f.bytes+size > maxKept {
		f.mu.Unlock()
		return nil
	}
	f.bytes += size
	f.last++
	id := f.last
	f.mu.Unlock()
	k := keptPool.Get().(*kept)
	k.copy(m)
	k.id, k.topic, k.number, k.size, k.taken = id, topic, number, size, f.b.acks.now()
	return k
}

// drop lets go of one that is done with.
func (f *forwards) drop(k *kept) {
	f.mu.Lock()
	f.bytes -= k.size
	f.mu.Unlock()
	k.release()
}

// sendKept hands k to a broker. k is the caller's again only after an error.
func (f *forwards) sendKept(to uint64, k *kept) error {
	if !f.b.peers.alive(to) {
		return mesh.ErrUnreachable
	}
	id := k.id
	k.token = strconv.AppendUint(append(k.token[:0], keptPrefix...), id, 10)
	k.again = k.m
	k.again.Reply = k.token
	f.mu.Lock()
	under := f.kept[to]
	if under == nil {
		under = map[uint64]*kept{}
		f.kept[to] = under
	}
	if len(under) >= maxUnderway {
		f.mu.Unlock()
		return mesh.ErrBusy
	}
	under[id] = k
	k.handing, k.broke = true, false
	f.mu.Unlock()
	// Forward may wait for room, and may have waited for another link than the one that there was.
	err := f.b.peers.mesh.Forward(to, k.topic, k.number, &k.again)
	switch mine, broke := f.handed(to, id, k, err); {
	case broke:
		f.failed(k, f.broken(to))
		return nil
	case mine:
		return err
	}
	if !f.b.peers.alive(to) {
		f.lost(to) // the link went down before this was noted
	}
	return nil
}

// handed ends the mesh's reading of k. What was forwarded belongs to who answers it, unless the link broke meanwhile: then the
// caller does. What the mesh has refused is the caller's again.
func (f *forwards) handed(to, id uint64, k *kept, err error) (mine, broke bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept[to][id] != k {
		return false, false // it is answered, and may be another one by now
	}
	k.handing = false
	if err == nil && !k.broke {
		return false, false
	}
	delete(f.kept[to], id)
	return err != nil, err == nil
}

// take removes what an answer belongs to; nil when it was dealt with.
func (f *forwards) take(from, id uint64) *kept {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.kept[from][id]
	delete(f.kept[from], id)
	return k
}

func keptID(subject []byte) (uint64, bool) {
	if !hasPrefix(subject, keptPrefix) {
		return 0, false
	}
	id, err := strconv.ParseUint(string(subject[len(keptPrefix):]), 10, 64)
	return id, err == nil
}

// answeredKept takes the leader's answer.
func (f *forwards) answeredKept(from, id uint64, m *interest.Message, route func(*interest.Message)) {
	k := f.take(from, id)
	if k == nil {
		return // it was told that the link broke
	}
	if e := refusalIn(m); e != nil && k.repeatable(e) && f.b.resends.again(k, e, true) {
		return
	}
	m.Subject = k.m.Reply
	route(m)
	f.done(k)
}

// failed answers what got no answer, unless it is sent again.
func (f *forwards) failed(k *kept, e *wire.Error) {
	if k.repeatable(e) && f.b.resends.again(k, e, true) {
		return
	}
	f.b.refuse(kindOfRequest(k.m.Subject), k.m.Reply, e)
	f.done(k)
}

// done lets go of one that was under way and is answered.
func (f *forwards) done(k *kept) {
	if k.lead != nil {
		k.lead.flow.answered()
	}
	f.drop(k)
}

// repeatable says that sending k again can't store it twice, and may help.
func (k *kept) repeatable(e *wire.Error) bool {
	switch {
	case k.lead == nil:
		return e.Reason == wire.ReasonNotLeader
	case e.Outcome == wire.OutcomeUnknown:
		return k.named
	}
	return e.Retriable && (e.Reason == wire.ReasonNotLeader || e.Reason == wire.ReasonUnavailable)
}

var errorStart = []byte(`{"error":`)

// refusalIn finds the error in an answer.
func refusalIn(m *interest.Message) *wire.Error {
	if !bytes.HasPrefix(m.Payload, errorStart) {
		return nil
	}
	var failure struct{ Error *wire.Error }
	if json.Unmarshal(m.Payload, &failure) != nil {
		return nil // what a leader sends is passed on as it is
	}
	return failure.Error
}
