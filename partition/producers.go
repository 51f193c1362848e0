package partition

import (
	"container/list"
	"encoding/binary"

	"github.com/parleymq/parley/partition/record"
)

const (
	// maxProducers is how many idempotent producers a partition remembers. The
	// one that has been silent longest goes first.
	maxProducers = 10_000
	// producerWindow is how many batches of a producer can be recognised as
	// duplicates with their offset: as many as it may have in flight.
	producerWindow = 5
)

// sequenceMask: sequences run from 0 to 2^31-1 and start again at 0.
const sequenceMask = 1<<31 - 1

type producerBatch struct {
	first, last int32
	offset      int64
}

type producer struct {
	id     int64
	epoch  int16
	recent [producerWindow]producerBatch // newest last
	n      int
	at     *list.Element
}

func (p *producer) next() int32 {
	return int32((int64(p.recent[p.n-1].last) + 1) & sequenceMask)
}

func (p *producer) push(b producerBatch) {
	if p.n == producerWindow {
		copy(p.recent[:], p.recent[1:])
		p.n--
	}
	p.recent[p.n] = b
	p.n++
}

// producerTable decides whether a producer's batch is the next one. It is part
// of the replicated state: the same batches lead to the same table everywhere.
// Order of eviction is the order of the log, which is that of log time.
type producerTable struct {
	byID  map[int64]*producer
	order *list.List // of *producer, longest silent first
}

func newProducerTable() *producerTable {
	return &producerTable{byID: map[int64]*producer{}, order: list.New()}
}

// check says whether the batch may be appended; with itemDuplicate, offset is
// that of the first time, or -1 when it is older than the window.
func (t *producerTable) check(pr record.Producer, count int) (code itemCode, offset int64) {
	p := t.byID[pr.ID]
	if p == nil {
		if pr.Sequence != 0 {
			return itemUnknownProducer, -1
		}
		return itemOK, 0
	}
	if pr.Epoch < p.epoch {
		return itemFenced, -1
	}
	if pr.Epoch > p.epoch {
		if pr.Sequence != 0 {
			return itemOutOfOrder, -1
		}
		return itemOK, 0
	}
	last := lastSequence(pr, count)
	for i := p.n - 1; i >= 0; i-- {
		if b := &p.recent[i]; b.first == pr.Sequence && b.last == last {
			return itemDuplicate, b.offset
		}
	}
	// How far the batch's start lies behind the next sequence, around the wrap.
	behind := (int64(p.next()) - int64(pr.Sequence)) & sequenceMask
	switch {
	case behind == 0:
		return itemOK, 0
	case behind < sequenceMask/2 && behind >= int64(count):
		return itemDuplicate, -1
	default:
		return itemOutOfOrder, -1
	}
}

func lastSequence(pr record.Producer, count int) int32 {
	return int32((int64(pr.Sequence) + int64(count) - 1) & sequenceMask)
}

// add records an appended batch that check let pass.
func (t *producerTable) add(pr record.Producer, count int, offset int64) {
	p := t.byID[pr.ID]
	if p == nil {
		if len(t.byID) >= maxProducers {
			oldest := t.order.Remove(t.order.Front()).(*producer)
			delete(t.byID, oldest.id)
		}
		p = &producer{id: pr.ID, epoch: pr.Epoch}
		p.at = t.order.PushBack(p)
		t.byID[pr.ID] = p
	} else {
		t.order.MoveToBack(p.at)
		if pr.Epoch > p.epoch {
			p.epoch, p.n = pr.Epoch, 0
		}
	}
	p.push(producerBatch{first: pr.Sequence, last: lastSequence(pr, count), offset: offset})
}

func (t *producerTable) encode(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(t.byID)))
	for e := t.order.Front(); e != nil; e = e.Next() {
		p := e.Value.(*producer)
		b = binary.BigEndian.AppendUint64(b, uint64(p.id))
		b = binary.BigEndian.AppendUint16(b, uint16(p.epoch))
		b = append(b, byte(p.n))
		for _, r := range p.recent[:p.n] {
			b = binary.BigEndian.AppendUint32(b, uint32(r.first))
			b = binary.BigEndian.AppendUint32(b, uint32(r.last))
			b = binary.BigEndian.AppendUint64(b, uint64(r.offset))
		}
	}
	return b
}

func decodeProducers(d *decoder) *producerTable {
	t := newProducerTable()
	n := d.u32()
	if n > maxProducers {
		d.fail("producer table of %d, at most %d", n, maxProducers)
		return t
	}
	for range n {
		p := &producer{id: int64(d.u64()), epoch: int16(d.u16()), n: int(d.u8())}
		if p.n < 1 || p.n > producerWindow {
			d.fail("producer with %d batches, 1 to %d are allowed", p.n, producerWindow)
			return t
		}
		for j := range p.n {
			p.recent[j] = producerBatch{first: int32(d.u32()), last: int32(d.u32()), offset: int64(d.u64())}
		}
		if d.err != nil || t.byID[p.id] != nil {
			d.fail("producer %d twice or cut short", p.id)
			return t
		}
		p.at = t.order.PushBack(p)
		t.byID[p.id] = p
	}
	return t
}
