package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A Batch is what is to be saved with one fsync. Its owner fills it, commits it, and may use it
// again. Errors of encoding are kept and returned by Commit.
type Batch struct {
	j      *Journal
	buf    []byte
	frames int
	err    error
	req    request

	// Of the frame that is being filled.
	start int
}

// NewBatch makes an empty batch.
func (j *Journal) NewBatch() *Batch {
	b := &Batch{j: j}
	b.req.batch = b
	b.req.done = make(chan turn, 1)
	return b
}

// Reset empties a batch. A large buffer isn't kept.
func (b *Batch) Reset() {
	if cap(b.buf) > 4*splitBytes {
		b.buf = nil
	}
	b.buf, b.frames, b.err = b.buf[:0], 0, nil
}

// Len is how many bytes a batch has.
func (b *Batch) Len() int { return len(b.buf) }

// Entries are what a Save appends. Size is called for each once, in order, and Put then, with a
// slice of that size to fill.
type Entries interface {
	Len() int
	Size(i int) int
	Put(i int, to []byte) error
}

// An Update is what is to be saved of one replica, all of it or nothing.
type Update struct {
	// State, unless it is zero.
	State State
	// Install is the index of a snapshot that takes the place of the log; 0 for none.
	Install  uint64
	Snapshot []byte
	// First is the index of the first entry. Entries from there on are replaced.
	First   uint64
	Entries Entries
}

// Save adds an update. What has nothing that must be on disk is only remembered: a commit index, which
// Raft finds again.
func (b *Batch) Save(key Key, u Update) {
	if b.err != nil {
		return
	}
	n := 0
	if u.Entries != nil {
		n = u.Entries.Len()
	}
	if u.Install == 0 && n == 0 && u.State == (State{}) {
		return // it only sends something, as each heartbeat does: what is unsaved waits for entries
	}
	b.j.mu.Lock()
	l := b.j.index.logs[key]
	last, trim, unsaved := uint64(0), uint64(0), State{}
	if l != nil {
		last, trim = l.last(), l.trim
		if l.unsaved {
			unsaved = l.state
		}
		if u.Install == 0 && n == 0 && l.hasState && u.State.Term == l.state.Term && u.State.Vote == l.state.Vote {
			if u.State.Commit != l.state.Commit {
				l.state.Commit = u.State.Commit
				l.unsaved = true
			}
			b.j.mu.Unlock()
			return
		}
	}
	b.j.mu.Unlock()
	if u.State == (State{}) {
		u.State = unsaved
	}
	flags := 0
	if u.State != (State{}) {
		flags |= flagState
	}
	if u.Install != 0 {
		flags |= flagSnapshot | flagInstall
		last = u.Install
	}
	if n > 0 {
		flags |= flagEntries
		switch {
		case u.First == 0:
			b.err = fmt.Errorf("save entries of replica %d of log %d: the first index is 0", key.Replica, key.Shard)
			return
		case u.First > last+1 && last > 0:
			b.err = fmt.Errorf("save entries of replica %d of log %d: they begin at %d, the log ends at %d",
				key.Replica, key.Shard, u.First, last)
			return
		case u.First > last+1 || u.First <= trim && u.Install == 0:
			flags |= flagReset
		}
	}
	if flags == 0 {
		return
	}
	// The parts before the entries fit one frame; entries may need several.
	b.begin(key, flags)
	if flags&flagState != 0 {
		b.state(u.State)
	}
	if flags&flagSnapshot != 0 {
		b.number(u.Install)
		b.bytes(u.Snapshot)
	}
	if n == 0 {
		b.seal()
		return
	}
	for i := 0; i < n && b.err == nil; {
		if i > 0 {
			b.begin(key, flagEntries)
		}
		// How many go into this frame.
		k, size := i, 0
		for k < n && (k == i || size < splitBytes) {
			s := u.Entries.Size(k)
			if s > MaxEntry {
				b.err = fmt.Errorf("save entry %d of replica %d of log %d: it has %d bytes, up to %d are allowed",
					u.First+uint64(k), key.Replica, key.Shard, s, MaxEntry)
				return
			}
			size += s
			k++
		}
		b.number(u.First + uint64(i))
		b.number(uint64(k - i))
		for ; i < k && b.err == nil; i++ {
			s := u.Entries.Size(i)
			b.number(uint64(s))
			b.reserve(s)
			if err := u.Entries.Put(i, b.buf[len(b.buf)-s:]); err != nil {
				b.err = fmt.Errorf("encode entry %d of replica %d of log %d: %w", u.First+uint64(i), key.Replica, key.Shard, err)
			}
		}
		b.seal()
	}
}

// Snapshot adds a snapshot's description; one that isn't newer than what is there is left out.
func (b *Batch) Snapshot(key Key, index uint64, data []byte) {
	b.j.mu.Lock()
	l := b.j.index.logs[key]
	old := l != nil && l.snapIndex >= index
	b.j.mu.Unlock()
	if old {
		return
	}
	b.begin(key, flagSnapshot)
	b.number(index)
	b.bytes(data)
	b.seal()
}

// Bootstrap adds what a replica was started with.
func (b *Batch) Bootstrap(key Key, data []byte) {
	b.begin(key, flagBootstrap)
	b.bytes(data)
	b.seal()
}

// Remove adds that nothing is known of a replica any more.
func (b *Batch) Remove(key Key) {
	b.begin(key, flagRemove)
	b.seal()
}

// Import adds that a replica begins anew with a snapshot.
func (b *Batch) Import(key Key, bootstrap []byte, s State, index uint64, snapshot []byte) {
	b.begin(key, flagRemove|flagBootstrap|flagState|flagSnapshot|flagInstall)
	b.state(s)
	b.number(index)
	b.bytes(snapshot)
	b.bytes(bootstrap)
	b.seal()
}

// meta adds all that is known of a replica but its entries.
func (b *Batch) meta(key Key, l *log) {
	flags := flagAll
	if l.hasState {
		flags |= flagState
	}
	if l.snapshot != nil {
		flags |= flagSnapshot
	}
	if l.bootstrap != nil {
		flags |= flagBootstrap
	}
	if l.trim > 0 {
		flags |= flagTrim
	}
	b.begin(key, flags)
	if l.hasState {
		b.state(l.state)
	}
	if l.snapshot != nil {
		b.number(l.snapIndex)
		b.bytes(l.snapshot)
	}
	if l.bootstrap != nil {
		b.bytes(l.bootstrap)
	}
	if l.trim > 0 {
		b.number(l.trim)
	}
	b.seal()
}

// metas adds the meta of each replica that f wants.
func (b *Batch) metas(f func(*log) bool) {
	b.j.mu.Lock()
	defer b.j.mu.Unlock()
	for key, l := range b.j.index.logs {
		if f(l) {
			b.meta(key, l)
		}
	}
}

// moved adds copies of entries that adjoin: their bytes, each behind its length.
func (b *Batch) moved(key Key, first, count uint64, entries []byte) {
	b.begin(key, flagEntries|flagMoved)
	b.number(first)
	b.number(count)
	b.buf = append(b.buf, entries...)
	b.seal()
}

func (b *Batch) floor(segment uint64) {
	b.open()
	b.buf = binary.LittleEndian.AppendUint64(b.buf, segment)
	b.close(kindFloor)
}

func (b *Batch) end() {
	b.open()
	b.close(kindEnd)
}

func (b *Batch) begin(key Key, flags int) {
	b.open()
	b.number(key.Shard)
	b.number(key.Replica)
	b.number(uint64(flags))
}

func (b *Batch) seal() { b.close(kindRecord) }

func (b *Batch) open() {
	b.start = len(b.buf)
	b.grow(frameHeader)
}

// close completes a frame as far as it can be without knowing where it goes.
func (b *Batch) close(k kind) {
	payload := b.buf[b.start+frameHeader:]
	n := len(payload)
	sum := crc32.Checksum(payload, castagnoli)
	b.grow(frameSize(n) - frameHeader - n)
	h := b.buf[b.start : b.start+frameHeader]
	binary.LittleEndian.PutUint32(h, uint32(n))
	binary.LittleEndian.PutUint32(h[4:], sum)
	h[16] = byte(k)
	b.frames++
}

// grow appends n zeros.
func (b *Batch) grow(n int) {
	b.reserve(n)
	clear(b.buf[len(b.buf)-n:])
}

// reserve appends n bytes that are to be set.
func (b *Batch) reserve(n int) {
	if cap(b.buf)-len(b.buf) < n {
		b.buf = append(make([]byte, 0, max(2*cap(b.buf), len(b.buf)+n+n/4, 4<<10)), b.buf...)
	}
	b.buf = b.buf[:len(b.buf)+n]
}

func (b *Batch) state(s State) {
	b.number(s.Term)
	b.number(s.Vote)
	b.number(s.Commit)
}

func (b *Batch) number(v uint64) { b.buf = binary.AppendUvarint(b.buf, v) }

func (b *Batch) bytes(v []byte) {
	b.number(uint64(len(v)))
	b.buf = append(b.buf, v...)
}
