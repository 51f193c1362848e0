package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// model is a cluster as DESIGN says it behaves, behind an exchange that does to
// messages what a bad day does. It is used inside a synctest bubble: all delays are
// virtual.
type model struct {
	mu      sync.Mutex
	rng     *rand.Rand
	faults  faults
	parts   map[string][]*modelPartition
	down    bool
	deleted bool
	conn    int // grows with every restart; what was sent before is lost or late
	waiting map[uint64]waiter
	token   uint64
	onUp    func()
	poison  string // batches with this in a record's value are refused for good
	counts  map[string]int
	payload int

	groups map[string]*modelGroup // by topic/partition/group
	index  uint64                 // of the log, for tokens
	hold   bool                   // set by a request that waits
	wakes  bool                   // a fetch at the end of the log is answered as soon as there is more
	looks  time.Duration          // how often a request that waits looks again

	slowAcks                      time.Duration // until an ack, which counts at once, is answered
	acking, mostAcking, unhurried int           // acks that are not answered; that nobody waits for
	ackings                       int           // all of them, where they are slow

	metadata func(wire.MetadataRequest) ([]wire.BrokerAddress, map[string][]string) // of a modelCluster
}

// modelFetchWait is how long the model holds a fetch at the end of the log.
const modelFetchWait = time.Second / 2

// faults are probabilities, 0 to 1, per message.
type faults struct {
	dropRequest, dropAnswer float64
	twice                   float64 // a request is carried out again, later
	refuse                  float64 // definite refusal: busy, not_leader
	unsure                  float64 // "unavailable, outcome unknown", carried out or not
	delay                   time.Duration
	stray                   float64 // of requests under way at a restart that still arrive
	garbage                 float64 // the answer is no JSON, or the batch has a flipped bit
}

type modelPartition struct {
	start     int64
	log       []modelRecord // log[0] has offset start
	batches   []modelBatch
	producers map[int64]*modelProducer
	ids       map[string]int64 // message ids of records that no producer numbered
}

type modelRecord struct {
	value, key string
}

type modelBatch struct {
	base  int64
	bytes []byte
}

// modelProducer keeps the newest five batches.
type modelProducer struct {
	epoch  int16
	recent []modelEntry
}

type modelEntry struct {
	seq, count int32
	offset     int64
}

func newModel(seed uint64, f faults, topics map[string]int) *model {
	m := &model{
		rng: rand.New(rand.NewPCG(seed, 7)), faults: f, waiting: map[uint64]waiter{},
		parts: map[string][]*modelPartition{}, groups: map[string]*modelGroup{}, counts: map[string]int{}, payload: wire.MaxPayload, looks: 15 * time.Millisecond,
	}
	for name, n := range topics {
		for range n {
			m.parts[name] = append(m.parts[name], &modelPartition{producers: map[int64]*modelProducer{}, ids: map[string]int64{}})
		}
	}
	return m
}

// client returns a Client on the model.
func (m *model) client(opts ...Option) *Client {
	cfg, err := newConfig(opts)
	if err != nil {
		panic(err)
	}
	c := newClient(cfg)
	m.onUp = c.connected
	c.dialRead = func(context.Context) (exchange, error) { return m, nil }
	c.start(m)
	return c
}

func (m *model) broker() string  { return "" }
func (m *model) up() bool        { return true }
func (m *model) maxPayload() int { return m.payload }

func (m *model) forget(token uint64) {
	m.mu.Lock()
	delete(m.waiting, token)
	m.mu.Unlock()
}

func (m *model) close() {}

// roll throws the dice. m.mu is held.
func (m *model) roll(p float64, what string) bool {
	if p > 0 && m.rng.Float64() < p {
		m.counts[what]++
		return true
	}
	return false
}

func (m *model) wait() time.Duration {
	if m.faults.delay == 0 {
		return 0
	}
	d := time.Duration(m.rng.Int64N(int64(m.faults.delay)))
	if m.rng.IntN(50) == 0 {
		d *= 20
	}
	return d
}

func (m *model) request(subject string, header map[string][]string, data []byte, to receiver, tag uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return 0, notSent(fmt.Errorf("no connection"))
	}
	m.token++
	token, conn := m.token, m.conn
	m.waiting[token] = waiter{to, tag}
	data = append([]byte(nil), data...)
	header = maps.Clone(header)
	if m.roll(m.faults.dropRequest, "request dropped") {
		return token, nil
	}
	arrives := time.Now()
	var attempt func()
	attempt = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if conn != m.conn && !m.roll(m.faults.stray, "stray") {
			return
		}
		m.hold = false
		r := m.serve(subject, header, data)
		if m.hold && conn == m.conn && time.Since(arrives) < m.holds(data) {
			time.AfterFunc(m.looks, attempt)
			return
		}
		// A definite refusal holds for all copies of a request: only what was carried
		// out is carried out again.
		if r.header[wire.HeaderError] == nil && !bytes.Contains(data, []byte(`"return"`)) && m.roll(m.faults.twice, "carried out twice") {
			time.AfterFunc(m.wait()+m.wait(), func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.carryOut(subject, header, data)
			})
		}
		if !m.roll(m.faults.dropAnswer, "answer dropped") {
			wait := m.wait()
			if strings.HasPrefix(subject, wire.FetchPrefix) && len(r.data) == 0 && !m.wakes {
				wait += modelFetchWait
			}
			slow := m.slow(subject)
			time.AfterFunc(wait+slow, func() {
				if slow > 0 {
					m.mu.Lock()
					m.acking--
					m.mu.Unlock()
				}
				m.answer(token, conn, r)
			})
		}
	}
	time.AfterFunc(m.wait(), func() { arrives = time.Now(); attempt() })
	return token, nil
}

// slow is what the answer to an ack takes longer. m.mu is held.
func (m *model) slow(subject string) time.Duration {
	if m.slowAcks == 0 || !strings.HasPrefix(subject, wire.GroupAck) {
		return 0
	}
	m.acking++
	m.ackings++
	m.mostAcking = max(m.mostAcking, m.acking)
	return m.slowAcks
}

func (m *model) answer(token uint64, conn int, r reply) {
	m.mu.Lock()
	w, ok := m.waiting[token]
	if conn != m.conn {
		ok = false
	}
	if ok {
		delete(m.waiting, token)
	}
	m.mu.Unlock()
	if ok {
		w.to.answered(w.tag, r)
	}
}

// restart breaks the connection for d.
func (m *model) restart(d time.Duration) {
	m.mu.Lock()
	m.counts["restart"]++
	m.down = true
	m.conn++
	waiting := m.waiting
	m.waiting = map[uint64]waiter{}
	m.mu.Unlock()
	for _, w := range waiting {
		w.to.answered(w.tag, reply{err: lost("connection lost")})
	}
	time.AfterFunc(d, func() {
		m.mu.Lock()
		m.down = false
		m.mu.Unlock()
		m.onUp()
	})
}

func refusal(code int, reason string, retriable bool, outcome string) reply {
	b, err := json.Marshal(map[string]any{"error": &Error{Code: code, Reason: reason, Retriable: retriable, Outcome: outcome, Description: "model says " + reason}})
	if err != nil {
		panic(err)
	}
	return reply{data: b, header: map[string][]string{wire.HeaderError: {reason}}}
}

func jsonReply(v any) reply {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return reply{data: b}
}

// serve carries out a request, or refuses it. m.mu is held.
func (m *model) serve(subject string, header map[string][]string, data []byte) reply {
	if m.roll(m.faults.refuse, "refused") {
		r := []string{wire.ReasonBusy, wire.ReasonNotLeader, wire.ReasonDiskFull}[m.rng.IntN(3)]
		return refusal(503, r, true, OutcomeRejected)
	}
	if m.roll(m.faults.unsure, "unsure") {
		if m.rng.IntN(2) == 0 {
			m.carryOut(subject, header, data)
		}
		return refusal(503, wire.ReasonUnavailable, true, OutcomeUnknown)
	}
	r := m.carryOut(subject, header, data)
	if m.roll(m.faults.garbage, "garbage") {
		if strings.HasPrefix(subject, wire.FetchPrefix) && len(r.data) > record.HeaderSize && r.header[wire.HeaderError] == nil {
			bad := append([]byte(nil), r.data...)
			bad[record.HeaderSize+m.rng.IntN(len(bad)-record.HeaderSize)] ^= 1 << m.rng.IntN(8)
			r.data = bad
		} else if strings.HasPrefix(subject, wire.PubPrefix) {
			r = reply{data: []byte("{garb")}
		}
	}
	return r
}

func (m *model) carryOut(subject string, header map[string][]string, data []byte) reply {
	switch {
	case strings.HasPrefix(subject, wire.PubPrefix):
		p, topic, n := m.find(subject[len(wire.PubPrefix):])
		if p == nil {
			return refusal(404, wire.ReasonTopicNotFound, false, OutcomeRejected)
		}
		return p.publish(topic, n, data, m.poison)
	case strings.HasPrefix(subject, wire.GroupPrefix):
		return m.group(subject, data)
	case strings.HasPrefix(subject, wire.FetchPrefix):
		p, _, _ := m.find(subject[len(wire.FetchPrefix):])
		if p == nil {
			return refusal(404, wire.ReasonTopicNotFound, false, "")
		}
		var q wire.FetchRequest
		if err := json.Unmarshal(data, &q); err != nil {
			panic(err)
		}
		r := p.fetch(q)
		m.hold = m.wakes && len(r.data) == 0
		return r
	case subject == wire.APIMetadata:
		var q wire.MetadataRequest
		_ = json.Unmarshal(data, &q)
		out := wire.Metadata{ClusterID: "model", Epoch: 1}
		var leaders map[string][]string
		if m.metadata != nil {
			out.Brokers, leaders = m.metadata(q)
		}
		for _, name := range q.Topics {
			if parts := m.parts[name]; len(parts) > 0 && !m.deleted {
				md := wire.TopicMetadata{Name: name, Leaders: make([]string, len(parts))}
				copy(md.Leaders, leaders[name])
				out.Topics = append(out.Topics, md)
			} else {
				out.Topics = append(out.Topics, wire.TopicMetadata{Name: name,
					Error: &Error{Code: 404, Reason: wire.ReasonTopicNotFound, Description: "no topic " + name}})
			}
		}
		return jsonReply(out)
	case subject == wire.APIOffset:
		var q wire.OffsetRequest
		_ = json.Unmarshal(data, &q)
		p := m.parts[q.Topic][q.Partition]
		return jsonReply(wire.OffsetResponse{Offset: p.start, Start: p.start, Next: p.next()})
	}
	return refusal(400, wire.ReasonBadRequest, false, OutcomeRejected)
}

func (m *model) find(rest string) (*modelPartition, string, int32) {
	topic, n, ok := wire.SplitPartition(rest)
	if !ok || m.deleted || int(n) >= len(m.parts[topic]) {
		return nil, topic, n
	}
	return m.parts[topic][n], topic, n
}

func (p *modelPartition) next() int64 { return p.start + int64(len(p.log)) }

// publish is DESIGN §4: the newest five batches per producer; sequences without
// gaps; epochs and producers begin at 0.
func (p *modelPartition) publish(topic string, n int32, data []byte, poison string) reply {
	b := record.Batch(data)
	if err := b.Check(record.DefaultLimits); err != nil {
		return refusal(400, wire.ReasonInvalidBatch, false, OutcomeRejected)
	}
	if poison != "" && bytes.Contains(data, []byte(poison)) {
		return refusal(413, wire.ReasonTooLarge, false, OutcomeRejected)
	}
	id, count := b.Producer(), int32(b.Count())
	ack := wire.PubAck{Topic: topic, Partition: n, Epoch: 1}
	var it record.Iterator
	if err := it.Reset(b, record.DefaultLimits); err != nil {
		panic(err)
	}
	pr := p.producers[id.ID]
	switch {
	case id == record.NoProducer: // one record, known by its message id
		it.Next()
		for _, h := range it.Record().Headers {
			if string(h.Key) != wire.HeaderMsgID {
				continue
			}
			if at, ok := p.ids[string(h.Value)]; ok {
				ack.Offset, ack.Duplicate = at, true
				return jsonReply(ack)
			}
			p.ids[string(h.Value)] = p.next()
		}
		pr = &modelProducer{}
	case pr == nil && id.Sequence != 0:
		return refusal(409, wire.ReasonUnknownProducer, true, OutcomeRejected)
	case pr != nil && id.Epoch < pr.epoch:
		return refusal(409, wire.ReasonProducerFenced, false, OutcomeRejected)
	case pr != nil && id.Epoch > pr.epoch && id.Sequence != 0:
		return refusal(409, wire.ReasonOutOfOrder, false, OutcomeRejected)
	case pr == nil || id.Epoch > pr.epoch:
		pr = &modelProducer{epoch: id.Epoch}
		p.producers[id.ID] = pr
	default:
		for _, e := range pr.recent {
			if e.seq == id.Sequence && e.count == count {
				ack.Offset, ack.Duplicate = e.offset, true
				return jsonReply(ack)
			}
		}
		last := pr.recent[len(pr.recent)-1]
		if expect := last.seq + last.count; id.Sequence < expect {
			ack.Offset, ack.Duplicate = -1, true
			return jsonReply(ack)
		} else if id.Sequence > expect {
			return refusal(409, wire.ReasonOutOfOrder, false, OutcomeRejected)
		}
	}
	ack.Offset = p.next()
	b.Stamp(ack.Offset, 1)
	if err := it.Reset(b, record.DefaultLimits); err != nil {
		panic(err)
	}
	for it.Next() {
		p.log = append(p.log, modelRecord{string(it.Record().Value), string(it.Record().Key)})
	}
	p.batches = append(p.batches, modelBatch{ack.Offset, data})
	pr.recent = append(pr.recent, modelEntry{id.Sequence, count, ack.Offset})
	if len(pr.recent) > 5 {
		pr.recent = pr.recent[1:]
	}
	return jsonReply(ack)
}

func (p *modelPartition) fetch(q wire.FetchRequest) reply {
	h := map[string][]string{
		wire.HeaderStart: {strconv.FormatInt(p.start, 10)},
		wire.HeaderNext:  {strconv.FormatInt(p.next(), 10)},
	}
	if q.Offset < p.start || q.Offset > p.next() {
		r := refusal(416, wire.ReasonOffsetOutOfRange, false, "")
		maps.Copy(r.header, h)
		return r
	}
	var out []byte
	for _, b := range p.batches {
		if record.Batch(b.bytes).LastOffset() < q.Offset {
			continue
		}
		if len(out) > 0 && len(out)+len(b.bytes) > q.MaxBytes {
			break
		}
		out = append(out, b.bytes...)
	}
	return reply{data: out, header: h}
}

// evict makes the partitions forget all producers whose first batch is surely
// settled. To forget one whose first ack got lost stores its first batch twice, which
// neither side could know.
func (m *model) evict(topic string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts["evicted"]++
	for _, p := range m.parts[topic] {
		maps.DeleteFunc(p.producers, func(_ int64, pr *modelProducer) bool { return pr.recent[0].seq > 0 })
	}
}

// lose takes the newest batch out of a partition, as a broker would that lied
// about its fsync.
func (m *model) lose(topic string, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parts[topic][n]
	b := p.batches[len(p.batches)-1]
	p.batches = p.batches[:len(p.batches)-1]
	p.log = p.log[:b.base-p.start]
	for _, pr := range p.producers {
		pr.recent = pr.recent[:len(pr.recent)-1]
	}
}

// calm ends all faults.
func (m *model) calm() {
	m.mu.Lock()
	m.faults = faults{}
	m.mu.Unlock()
}

// trim is retention: the records before offset are gone.
func (m *model) trim(topic string, n int, offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parts[topic][n]
	p.log = p.log[offset-p.start:]
	p.start = offset
	for len(p.batches) > 0 && record.Batch(p.batches[0].bytes).LastOffset() < offset {
		p.batches = p.batches[1:]
	}
}

// values is a partition's log.
func (m *model) values(topic string, n int) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, r := range m.parts[topic][n].log {
		out = append(out, r.value)
	}
	return out
}
