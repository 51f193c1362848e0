package partition

import (
	"errors"
	"hash/maphash"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// batchesFrom visits whole batches from the one that holds from on, as long as visit returns true. What comes from
// the store is checked. shared says that others will want the batch soon. Errors: offset_out_of_range, damaged, closed.
func (m *machine) batchesFrom(from int64, name string, visit func(b record.Batch) (more, shared bool)) *Error {
	generation := m.shelf.generation()
	m.visible.RLock()
	b := m.bounds
	recent := m.tail.from(from)
	m.visible.RUnlock()
	if from < b.start || from >= b.next {
		return outOfRange(name, from, b)
	}
	shelved := true
	if c := m.condemned.Load(); c != nil {
		if e := c.refuse(name, from); e != nil {
			return e
		}
		b.next, recent, shelved = c.limit(from, b.next), nil, false
	}
	want := from
	var bad error
	walk := func(data []byte, fresh bool) bool {
		for len(data) > 0 {
			var x record.Batch
			if x, data, bad = record.Split(data); bad != nil {
				return false
			}
			if x.LastOffset() < want {
				continue
			}
			if x.BaseOffset() > want {
				bad = describe(ErrDamaged, "%s: offsets %d to %d are missing on this broker's disk", name, want, x.BaseOffset()-1)
				return false
			}
			if fresh {
				if bad = x.VerifyCRC(); bad != nil {
					return false
				}
			}
			want = x.LastOffset() + 1
			more, shared := visit(x)
			if fresh && shared {
				m.shelf.put(x, generation)
			}
			if !more {
				if fresh && shared {
					m.shelf.putAll(data, want, generation)
				}
				return false
			}
		}
		return true
	}
	var err error
	if recent != nil {
		for i := range recent {
			if !walk(recent[i].Data, false) {
				break
			}
		}
	} else if !shelved || m.shelf.walk(&want, b.next, walk) {
		err = m.store.Read(want, func(c storage.Chunk) bool { return c.Base < b.next && walk(c.Data, true) })
	}
	var e *Error
	switch err = errors.Join(err, bad); {
	case err == nil:
		return nil
	case errors.Is(err, storage.ErrClosed):
		return closedUnder(name)
	case m.look().start > from:
		return outOfRange(name, from, m.look())
	case errors.As(err, &e):
		return e
	}
	return describe(ErrDamaged, "%s: offset %d on this broker's disk: %v", name, want, err)
}

// sizeOfParts is about how large the deliveries' records of a batch are, and whether they are few: less than half of it is
// theirs. Members of a key-ordered group share batches; to each of them the others' records are of no use.
func sizeOfParts(b record.Batch, ds []group.Delivery) (size int, few bool) {
	n, parts := int64(0), 0
	for i := 0; i < len(ds) && ds[i].First <= b.LastOffset(); i++ {
		n += min(ds[i].Last, b.LastOffset()) - max(ds[i].First, b.BaseOffset()) + 1
		parts++
	}
	if size = int(n*int64(len(b))/int64(b.Count())) + parts*record.HeaderSize; b.Codec() == record.None && size < len(b)/2 {
		return size, true
	}
	return len(b), false
}

// appendParts appends the deliveries' records of a batch in batches of their own.
func appendParts(buf []byte, b record.Batch, ds []group.Delivery) ([]byte, error) {
	before := len(buf)
	c := record.Cut(b)
	for i := 0; i < len(ds) && ds[i].First <= b.LastOffset(); i++ {
		var err error
		if buf, err = c.Append(buf, max(ds[i].First, b.BaseOffset()), min(ds[i].Last, b.LastOffset())); err != nil {
			return buf[:before], err
		}
	}
	return buf, nil
}

// readDeliveries appends the batches that hold the deliveries' records to buf, each once, up to about maxBytes, but at
// least one. Of a batch that is mostly others' only the records are appended. It returns the first offset that did not fit, or -1. Deliveries are in order.
func (m *machine) readDeliveries(ds []group.Delivery, maxBytes int, buf []byte, name string) (_ []byte, cut int64, err *Error) {
	empty := len(buf)
	cut = -1
	next := int64(0) // offsets below it are in buf
	for i := 0; i < len(ds); {
		from := max(ds[i].First, next)
		err = m.batchesFrom(from, name, func(b record.Batch) (more, shared bool) {
			if ds[i].First > b.LastOffset() {
				// Batches between two deliveries are passed over; where they are many, it is cheaper to look anew.
				return ds[i].First-b.LastOffset() < 4096, false
			}
			size, few := sizeOfParts(b, ds[i:])
			if len(buf) > empty && len(buf)-empty+size > maxBytes {
				cut = max(ds[i].First, b.BaseOffset(), next)
				return false, few
			}
			whole := !few
			if few {
				var bad error
				if buf, bad = appendParts(buf, b, ds[i:]); bad != nil {
					whole = true // whoever reads it judges it
				}
			}
			if whole {
				buf = append(buf, b...)
			}
			next = b.LastOffset() + 1
			for i < len(ds) && ds[i].Last < next {
				i++
			}
			return i < len(ds), few && len(b) >= shelfLeast
		})
		if err != nil || cut >= 0 {
			return buf, cut, err
		}
	}
	return buf, -1, nil
}

const (
	// feedRecords and feedBytes are about how much is looked at for keys in one go.
	feedRecords = 8192
	feedBytes   = 256 << 10
	// feedTurns is how often in a row, before others have their turn.
	feedTurns = 8
)

var keySeed = maphash.MakeSeed()

// keysFrom appends the hashes of the records' keys, from offset on. What it found before an error is true.
func (m *machine) keysFrom(offset int64, hashes []uint64, it *record.Iterator, name string) (_ []uint64, err *Error) {
	bytes := 0
	var bad *Error
	err = m.batchesFrom(offset, name, func(b record.Batch) (more, shared bool) {
		bad = nil
		if e := it.Reset(b, record.DefaultLimits); e != nil {
			bad = describe(ErrDamaged, "%s: batch at offset %d: %v", name, b.BaseOffset(), e)
			return false, false
		}
		for it.Next() {
			r := it.Record()
			if r.Offset < offset {
				continue
			}
			h := uint64(0)
			if len(r.Key) > 0 {
				h = max(maphash.Bytes(keySeed, r.Key), 1)
			}
			hashes = append(hashes, h)
		}
		if e := it.Err(); e != nil {
			bad = describe(ErrDamaged, "%s: batch at offset %d: %v", name, b.BaseOffset(), e)
			return false, false
		}
		bytes += len(b)
		return bytes < feedBytes && len(hashes) < feedRecords, true
	})
	if err == nil {
		err = bad
	}
	return hashes, err
}
