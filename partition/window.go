package partition

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

const (
	// messageIDWindow is how long a message id is remembered, in log time.
	messageIDWindow = 2 * time.Minute
	// maxMessageIDs is how many are remembered at most; the oldest go first.
	maxMessageIDs = 500_000
)

func hashMessageID(id []byte) idHash {
	s := sha256.Sum256(id)
	return idHash(s[:idHashSize])
}

type windowEntry struct {
	hash    idHash
	logTime int64
	offset  int64
}

// idWindow remembers message ids. It is not checkpointed: it is a function of
// the log's tail (the records at or above the start offset, no older than the
// window, at most the newest maxMessageIDs), so that a replica that rebuilds
// it after a restart decides exactly like one that never stopped.
//
// It has a lock of its own because the appender looks ids up while Apply may
// be busy storing.
type idWindow struct {
	mu   sync.RWMutex
	at   map[idHash]windowEntry
	fifo []windowEntry // oldest first, from head
	head int
}

func newIDWindow() *idWindow { return &idWindow{at: map[idHash]windowEntry{}} }

// find returns the offset of the record that brought the id within the window
// that ends at now and lies at or above start.
func (w *idWindow) find(h idHash, now, start int64) (int64, bool) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	e, ok := w.at[h]
	if !ok || e.logTime < now-messageIDWindow.Milliseconds() || e.offset < start {
		return 0, false
	}
	return e.offset, true
}

func (w *idWindow) add(h idHash, logTime, offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire(logTime)
	if len(w.fifo)-w.head >= maxMessageIDs {
		w.pop()
	}
	e := windowEntry{hash: h, logTime: logTime, offset: offset}
	w.at[h] = e
	w.fifo = append(w.fifo, e)
}

func (w *idWindow) expire(now int64) {
	for w.head < len(w.fifo) && w.fifo[w.head].logTime < now-messageIDWindow.Milliseconds() {
		w.pop()
	}
}

func (w *idWindow) pop() {
	e := w.fifo[w.head]
	w.head++
	// The id may have come again after it expired: then the newer one stays.
	if w.at[e.hash].offset == e.offset {
		delete(w.at, e.hash)
	}
	if w.head > 1024 && w.head*2 > len(w.fifo) {
		n := copy(w.fifo, w.fifo[w.head:])
		w.fifo = w.fifo[:n]
		w.head = 0
	}
}

func (w *idWindow) len() int { return len(w.fifo) - w.head }

// A chunk's Meta lists its message ids: delta from the chunk's base (4), hash (16).

func (w *idWindow) addMeta(meta []byte, base, logTime, start int64) {
	for ; len(meta) >= idEntrySize; meta = meta[idEntrySize:] {
		if off := base + int64(binary.BigEndian.Uint32(meta)); off >= start {
			w.add(idHash(meta[4:idEntrySize]), logTime, off)
		}
	}
}
