package partition

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
)

// machine is the partition's state machine: it applies commands to state and
// store and shows readers what they may see.
//
// Locks: applying serialises Apply, Capture and snapshots; visible guards what
// readers look at (state's bounds, tail, waiters) and is held briefly. The order is applying,
// then visible. Apply stores first and moves the visible bounds afterwards, so
// that a reader never asks the store for what it does not have yet.
type machine struct {
	id          storage.LogID
	engine      storage.Engine
	checkpoints *storage.Checkpointer
	peers       Peers // nil: none
	clock       func() time.Time
	log         zerolog.Logger
	alone       bool
	form        func() Form
	diskLow     func() bool // nil: never
	origin      Origin

	applying sync.Mutex
	state    *state
	store    storage.Store
	// leases keep trimmed chunks on disk while others fetch them; heldBack is the start
	// offset of a trim that waits for them.
	leases   leases
	heldBack int64
	// spanBytes is about the size of a snapshot's spans.
	spanBytes int64
	// restoring: the log is being mended, and takes part in nothing else.
	restoring bool
	// restores counts how often that began.
	restores uint64
	// ahead: entries up to it may come again, as the newest snapshot may have been newer
	// than the replicated log knows.
	ahead uint64
	// durable is the index of the newest durable checkpoint.
	durable uint64
	// reach is an entry that was applied before the restart, above the checkpoint;
	// 0 once the log has brought it again. An entry is durable in the log
	// before it is applied, so a log that doesn't bring it has lost acked records.
	reach uint64
	// failed is why state and store no longer agree: nothing is applied, and no
	// checkpoint taken, any more.
	failed error
	// notes are digests of the state at the newest barriers, newest first: see compare.go.
	notes      [stateNotes]StateDigest
	noteBuffer []byte
	// reused by Apply
	chunks []storage.Chunk
	marks  []storage.IndexEntry

	visible sync.RWMutex
	bounds  bounds
	tail    tail
	shelf   shelf
	wake    chan struct{} // closed when next moves; nil while nobody waits
	// relaxedAt is the next offset at the last look of relax.
	relaxedAt int64
	closed    bool

	window atomic.Pointer[idWindow]   // the state's, for the appender
	groups atomic.Pointer[groupTable] // likewise, for the leader's side of groups

	reapplied atomic.Uint64 // entries applied before the first Start of this process
	started   atomic.Bool
	damage    atomic.Pointer[Error]
	condemned atomic.Pointer[condemned] // nil: nothing
	catching  atomic.Pointer[Restoring] // nil while nothing is being fetched
}

// bounds is the part of the state that others may look at between commands.
type bounds struct {
	start, next    int64
	barrier        uint64
	logTime        int64
	index          uint64
	term           uint64
	stored         int64
	producers, ids int
}

func newMachine(c *Config) *machine {
	clock := c.Clock
	if clock == nil {
		clock = time.Now
	}
	form := c.Form
	if form == nil {
		form = func() Form { return FormGroups }
	}
	return &machine{
		form: form,
		id:   c.Log, engine: c.Engine, checkpoints: c.Checkpoints, peers: c.Peers, clock: clock, log: c.Logger, alone: c.Alone, origin: c.Origin, diskLow: c.DiskLow,
		leases: leases{}, spanBytes: spanBytes, tail: tail{budget: c.TailBudget},
		shelf: shelf{budget: c.TailBudget},
	}
}

// Open implements replication.StateMachine.
func (m *machine) Open(stop <-chan struct{}) (uint64, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	st := newState()
	st.start, st.next = m.origin.Offset, m.origin.Offset
	cp, found := m.checkpoints.Load(m.id)
	if found {
		s, err := decodeState(cp.State)
		if err != nil {
			return 0, fmt.Errorf("open partition %s: checkpoint: %w", m.id, err)
		}
		if s.index != cp.Index || s.start != cp.Mark.Start || s.next != cp.Mark.Next {
			return 0, fmt.Errorf("open partition %s: %w: checkpoint contradicts itself: index %d and %d, bounds %d..%d and %d..%d",
				m.id, storage.ErrCorrupt, s.index, cp.Index, s.start, s.next, cp.Mark.Start, cp.Mark.Next)
		}
		st = s
	}
	store, err := openStore(m.engine, m.id, storage.Mark{Start: st.start, Next: st.next}, m.damaged)
	if err != nil {
		return 0, fmt.Errorf("open partition %s: %w", m.id, err)
	}
	m.state, m.store, m.durable = st, store, st.index
	m.reach = store.Reach()
	switch err := m.rebuildWindow(); {
	case errors.Is(err, storage.ErrCorrupt):
		// What verifies is served all the same, and reads meet the damage by name.
		m.damaged(describe(ErrDamaged, "the newest records could not all be read, so message ids of the last minutes are not all known: %v", err))
	case err != nil:
		return 0, fmt.Errorf("open partition %s: %w", m.id, errors.Join(err, store.Close()))
	}
	m.window.Store(st.ids)
	m.show(nil)
	m.checkpoints.Register(m.id, m)
	return st.index, nil
}

// Reach implements replication.Reaching. A replica that is alone serves what verifies of a log that
// has lost its end: see lost.
func (m *machine) Reach() uint64 {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.alone {
		return 0
	}
	return m.reach
}

// SnapshotFailed implements replication.Warned: what can't be sent can't be read either.
func (m *machine) SnapshotFailed(err error) {
	if errors.Is(err, storage.ErrCorrupt) || errors.Is(err, record.ErrInvalid) {
		m.damaged(describe(ErrDamaged, "a snapshot could not be read from this broker's disk: %v", err))
	}
}

// damaged notes that not everything stored can be read. From here on nothing is trimmed.
func (m *machine) damaged(d *Error) {
	if m.damage.Swap(d) != nil {
		return // it was told, by whatever else is damaged
	}
	m.log.Error().Str("log", m.id.String()).Str("damage", d.Description).
		Msg("stored records are missing or damaged: what verifies is served, the rest is refused, nothing is deleted")
}

// rebuildWindow reads the message ids of the log's last minutes.
func (m *machine) rebuildWindow() error {
	s := m.state
	s.ids = newIDWindow()
	from, err := m.offsetAt(s.logTime-messageIDWindow.Milliseconds(), bounds{start: s.start, next: s.next})
	if err != nil {
		return err
	}
	// The chunk that holds from may begin, and have its mark, below it.
	if from, err = m.markBelow(from); err != nil {
		return err
	}
	for from < s.next {
		k, v, ok, err := m.store.Seek(markKey(from), markKey(s.next))
		if err != nil || !ok {
			return err
		}
		mk, err := parseMark(k, v)
		if err != nil {
			return err
		}
		from = mk.offset + 1
		if !mk.ids {
			continue
		}
		// Where ids are many, chunk follows chunk: a look at each mark would cost more.
		if err := m.store.Read(mk.offset, func(c storage.Chunk) bool {
			if len(c.Meta) == 0 || c.Base >= s.next {
				return false
			}
			s.ids.addMeta(c.Meta, c.Base, c.LogTime, s.start)
			from = c.Last + 1
			return true
		}); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements replication.StateMachine.
func (m *machine) Apply(entries []replication.Entry) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.failed == nil {
		m.failed = m.applyAll(entries)
	}
	return m.failed
}

// applyAll is Apply with applying held. After an error state may be ahead of what
// is stored.
func (m *machine) applyAll(entries []replication.Entry) error {
	m.chunks, m.marks = m.chunks[:0], m.marks[:0]
	bytes := 0
	for i := range entries {
		e := &entries[i]
		if e.Index <= m.state.index {
			if e.Index <= m.ahead {
				continue
			}
			return fmt.Errorf("apply to partition %s: entry %d after entry %d", m.id, e.Index, m.state.index)
		}
		m.state.index = e.Index
		if err := m.apply(e); err != nil {
			return fmt.Errorf("apply entry %d to partition %s: %w", e.Index, m.id, err)
		}
		bytes += len(e.Data)
	}
	if len(m.chunks) > 0 {
		if err := m.store.Append(m.chunks, m.marks); err != nil {
			return fmt.Errorf("store entry %d of partition %s: %w", m.state.index, m.id, err)
		}
	}
	if !m.started.Load() {
		m.reapplied.Add(uint64(len(entries)))
	}
	m.show(m.chunks)
	clear(m.chunks)
	m.checkpoints.Note(bytes)
	return nil
}

func (m *machine) apply(e *replication.Entry) error {
	h, body, err := parseCommand(e.Data)
	if err != nil {
		return err
	}
	s := m.state
	ok, code, data := s.admit(h)
	if !ok {
		e.Result = replication.Result{Value: code, Data: data}
		return nil
	}
	s.logTime = max(s.logTime, h.logTime)
	switch h.kind {
	case kindTrim:
		s.trim(int64(binary.BigEndian.Uint64(body)))
	case kindBarrier:
		s.barrier = max(s.barrier, binary.BigEndian.Uint64(body))
		m.noteState()
	case kindGroup:
		if data, err = s.groups.apply(m.origin.Index+e.Index, s, body); err != nil {
			return err
		}
	case kindAppend:
		if e.Index == m.reach {
			m.reach = 0
		}
		data, err = m.applyAppend(e.Index, h, body)
		if err != nil {
			return err
		}
	}
	s.remember(data)
	e.Result = replication.Result{Value: resultOK, Data: data}
	return nil
}

// applyAppend stores the accepted batches of one entry as one chunk. The entry
// belongs to the log (it may be on its way to a follower), so the batches are
// copied before they are stamped.
func (m *machine) applyAppend(index uint64, h commandHeader, body []byte) (results []byte, err error) {
	s := m.state
	base, before := s.next, s.stored
	var meta []byte
	data := make([]byte, 0, len(body))
	for len(body) > 0 {
		it, rest, err := nextItem(body)
		if err != nil {
			return nil, err
		}
		body = rest
		code, off := s.judge(it)
		results = appendItemResult(results, code, off)
		if code != itemOK {
			continue
		}
		at := len(data)
		data = append(data, it.batch...)
		record.Batch(data[at:]).Stamp(off, int32(h.term&sequenceMask))
		for ids := it.ids; len(ids) >= idEntrySize; ids = ids[idEntrySize:] {
			delta := uint32(off-base) + binary.BigEndian.Uint32(ids)
			meta = binary.BigEndian.AppendUint32(meta, delta)
			meta = append(meta, ids[4:idEntrySize]...)
		}
		s.accept(it)
	}
	if len(data) == 0 {
		return results, nil
	}
	chunk := storage.Chunk{Base: base, Last: s.next - 1, Index: index, LogTime: s.logTime, Meta: meta, Data: data}
	if mark, due := s.mark(base, before, s.chain, len(meta) > 0); due {
		m.marks = append(m.marks, mark)
	}
	if s.chain, err = link(s.chain, &chunk); err != nil {
		return nil, err
	}
	m.chunks = append(m.chunks, chunk)
	return results, nil
}

// show makes applied state visible to readers and wakes those that wait.
func (m *machine) show(chunks []storage.Chunk) {
	s := m.state
	if m.groups.Load() != s.groups { // opened or restored
		m.groups.Store(s.groups)
	}
	m.visible.Lock()
	for _, c := range chunks {
		m.tail.push(c)
	}
	moved := m.bounds.next != s.next
	m.bounds = bounds{
		start: s.start, next: s.next, barrier: s.barrier, logTime: s.logTime, index: s.index, term: s.term,
		stored: s.stored, producers: len(s.producers.byID), ids: s.ids.len(),
	}
	wake := m.wake
	if moved {
		m.wake = nil
	}
	m.visible.Unlock()
	if moved && wake != nil {
		close(wake)
	}
}

func (m *machine) look() bounds {
	m.visible.RLock()
	defer m.visible.RUnlock()
	return m.bounds
}

// findID looks a message id up among those that were applied, as an entry stamped
// with now would find it.
func (m *machine) findID(h idHash, now int64) (int64, bool) {
	b := m.look()
	return m.window.Load().find(h, max(now, b.logTime), b.start)
}

// lost says what is missing once a new term has started although the log did not bring
// an entry that was applied before: its newest file was cut or damaged.
func (m *machine) lost(name string) *Error {
	m.applying.Lock()
	reach, next := m.reach, m.state.next
	m.applying.Unlock()
	if reach == 0 {
		return nil
	}
	e := describe(ErrDamaged, "%s: the Raft log ends before entry %d, which was applied before the restart: acked records from offset %d on are missing. "+
		"The partition takes and serves nothing, and what its store holds of them stays there: restore the raft directory's newest log file from a copy, or this replica from the others",
		name, reach, next)
	m.damaged(e)
	return e
}

// bytes is the size of what is stored.
func (m *machine) bytes() int64 {
	m.visible.RLock()
	defer m.visible.RUnlock()
	if m.store == nil || m.closed {
		return 0
	}
	return m.store.Bytes()
}

// relax lets go of memory that an idle partition doesn't need.
func (m *machine) relax() {
	m.visible.Lock()
	defer m.visible.Unlock()
	if m.relaxedAt == m.bounds.next {
		m.tail.clear()
		m.shelf.clear()
	}
	m.relaxedAt = m.bounds.next
}

// Capture implements storage.Source.
func (m *machine) Capture() (storage.Checkpoint, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	switch {
	case m.failed != nil:
		return storage.Checkpoint{Log: m.id}, m.failed
	case m.state.index == m.durable || m.restoring:
		return storage.Checkpoint{}, storage.ErrUnchanged
	}
	return m.capture(), nil
}

func (m *machine) capture() storage.Checkpoint {
	s := m.state
	return storage.Checkpoint{
		Log: m.id, Index: s.index, Mark: storage.Mark{Start: s.start, Next: s.next}, State: s.encodeAs(nil, m.form()),
	}
}

// Durable implements storage.Source: what lies below a durable start offset may go.
func (m *machine) Durable(c storage.Checkpoint) {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.durable = max(m.durable, c.Index)
	m.trim(c.Mark.Start)
}

// trim gives back the space of what lies below a start offset that is durable, as far as no
// other replica is fetching it.
func (m *machine) trim(start int64) {
	if m.restoring || m.store == nil || m.damage.Load() != nil {
		return
	}
	m.heldBack = 0
	if low := m.leases.low(start, m.clock()); low < start {
		m.heldBack, start = start, low
	}
	below, err := m.markBelow(start)
	if err == nil {
		err = m.store.Trim(start, markKey(below))
	}
	if err != nil {
		m.log.Error().Err(err).Str("log", m.id.String()).Int64("start", start).
			Msg("space below the start offset could not be given back; it is tried again at the next checkpoint")
	}
}

// release trims what leases held back that have ended since.
func (m *machine) release() {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.heldBack > 0 && m.leases.low(m.heldBack, m.clock()) == m.heldBack {
		m.trim(m.heldBack)
	}
}

// Sync implements replication.StateMachine. A round that had to leave this log out
// is no success: the replicated log would be cut at what is not stored.
func (m *machine) Sync() error {
	if err := m.checkpoints.Sync(context.Background()); err != nil {
		return err
	}
	m.applying.Lock()
	defer m.applying.Unlock()
	return m.failed
}

// Close implements replication.StateMachine.
func (m *machine) Close() error {
	m.checkpoints.Unregister(m.id)
	m.applying.Lock()
	defer m.applying.Unlock()
	m.visible.Lock()
	m.tail.clear()
	m.shelf.close()
	m.closed = true
	wake := m.wake
	m.wake = nil
	m.visible.Unlock()
	if wake != nil {
		close(wake)
	}
	if m.store == nil {
		return nil
	}
	err := m.store.Close()
	return err
}

// waitBeyond returns a channel that is closed when next moves from offset, or
// nil when it already has.
func (m *machine) waitBeyond(offset int64) <-chan struct{} {
	m.visible.Lock()
	defer m.visible.Unlock()
	if m.bounds.next > offset {
		return nil
	}
	if m.wake == nil {
		m.wake = make(chan struct{})
	}
	return m.wake
}

// openStore opens the log; where it has holes that nobody can fill, what is
// left is opened and the damage reported.
func openStore(e storage.Engine, id storage.LogID, mark storage.Mark, damaged func(*Error)) (storage.Store, error) {
	store, err := e.Open(id, mark)
	if err == nil {
		return store, nil
	}
	var hole *storage.HoleError
	if !errors.As(err, &hole) {
		return nil, err
	}
	mark.AllowHoles = true
	store, again := e.Open(id, mark)
	if again != nil {
		return nil, again
	}
	damaged(describe(ErrDamaged, "offsets %d to %d are missing on this broker's disk: restore the data directory's files, or read from offset %d on",
		hole.From, hole.To-1, hole.To))
	return store, nil
}
