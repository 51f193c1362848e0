package epoch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/format"
	"github.com/parleymq/parley/replication/paxos"
)

// maxDead is how many bytes of the journal may be of no use before it is rewritten.
const maxDead = 4 << 20

// open takes the journal's entries in, raises the boot counter and makes the machine.
func (w *owner) open(entries []entry) error {
	c := w.Cluster
	state, err := w.load(entries)
	if err != nil {
		return err
	}
	if len(c.history.headers) == 0 {
		if c.o.Genesis == nil {
			return fmt.Errorf("epoch journal %s is empty, and nothing says what the cluster began with", c.o.dir.path(journalName))
		}
		state, err = w.begin(c.o.Genesis())
	} else if state.Newest.Epoch == 0 && c.o.Genesis != nil {
		state, err = w.beginAnew(state, c.o.Genesis())
	}
	if err != nil {
		return fmt.Errorf("decide epoch 0: %w", err)
	}
	if v := c.history.values[0]; v != nil {
		if c.initial, err = config.Decode(v); err != nil {
			return format.Corrupt(ErrCorrupt, fmt.Errorf("epoch 0: %w", err))
		}
	}
	newest, err := w.look(state.Newest.Value)
	if err != nil {
		return format.Corrupt(ErrCorrupt, fmt.Errorf("epoch %d: %w", state.Newest.Epoch, err))
	}
	c.current.Store(newest.config)
	c.hear(state.Newest.Epoch)
	if c.self, err = whoIs(c.o.Self, newest.config); err != nil {
		return err
	}
	c.boot++
	if err := w.journal.append(bootEntry(c.boot)); err != nil {
		return fmt.Errorf("count the start: %w", err)
	}
	w.retry = time.NewTimer(time.Hour)
	w.retry.Stop()
	w.machine, err = paxos.New(paxos.Options{Self: c.self, Boot: c.boot, Decode: w.decode, State: state})
	if err != nil {
		return format.Corrupt(ErrCorrupt, err)
	}
	return nil
}

// whoIs finds this broker's id by its incarnation, or by its name in a list whose
// incarnations nobody knows yet.
func whoIs(self config.Broker, c *config.Config) (paxos.Member, error) {
	m := paxos.Member{ID: self.ID, Incarnation: self.Incarnation}
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if b.Incarnation == self.Incarnation || b.Incarnation == "" && b.Name == self.Name && self.Name != "" {
			if self.ID != 0 && self.ID != b.ID {
				return m, fmt.Errorf("epoch %d knows this data directory (incarnation %s) as broker %d, not %d", c.Epoch, self.Incarnation, b.ID, self.ID)
			}
			m.ID = b.ID
		}
	}
	if m.ID == 0 {
		return m, fmt.Errorf("epoch %d names no broker %q: %w", c.Epoch, self.Name, ErrNotNamed)
	}
	return m, nil
}

func bootEntry(n uint64) entry {
	return entry{kind: kindBoot, payload: binary.AppendUvarint(nil, n), ended: true}
}

// load reads the history, the acceptor's state and the boot counter.
func (w *owner) load(entries []entry) (paxos.State, error) {
	c := w.Cluster
	c.history.values = map[uint64][]byte{}
	var state paxos.State
	decided := func(decided []paxos.Entry) error {
		for i := range decided {
			h, err := headerIn(&decided[i])
			if err != nil {
				return err
			}
			if err := c.history.add(&decided[i], h); err != nil {
				return err
			}
		}
		state = paxos.State{Newest: decided[len(decided)-1]}
		return nil
	}
	for _, e := range entries {
		if err := w.loadEntry(e, &state, decided); err != nil {
			return state, format.Corrupt(ErrCorrupt, fmt.Errorf("entry about epoch %d: %w", e.epoch, err))
		}
	}
	if len(c.history.headers) > 0 && state.Newest.Value == nil {
		return state, fmt.Errorf("%w: the newest epoch has no value", ErrCorrupt)
	}
	return state, nil
}

func (w *owner) loadEntry(e entry, state *paxos.State, decided func([]paxos.Entry) error) error {
	payload := slices.Clone(e.payload) // the file's bytes are not kept for its sake
	switch e.kind {
	case kindHeader:
		h, err := decodeHeader(payload)
		if err != nil {
			return err
		}
		return decided([]paxos.Entry{{Epoch: e.epoch, Hash: paxos.Hash(h.Hash), Previous: paxos.Hash(h.Previous), Summary: payload}})
	case kindValue:
		d, err := w.look(payload)
		if err != nil {
			return err
		}
		return decided([]paxos.Entry{{Epoch: e.epoch, Hash: d.facts.Hash, Previous: d.facts.Previous, Value: payload}})
	case kindStep:
		records, err := decodeRecords(payload)
		if errors.Is(err, paxos.ErrVersion) {
			return fmt.Errorf("%w: start the newer program: %w", format.ErrNewer, err)
		}
		if err != nil {
			return err
		}
		for _, r := range records {
			if r.Kind == paxos.RecordDecided {
				err = decided(r.Entries)
			} else if err = state.Apply(r); err == nil {
				w.journal.dead += int64(len(r.Value)) + 64
			}
			if err != nil {
				return err
			}
		}
		return nil
	case kindBoot:
		n, size := binary.Uvarint(payload)
		if size <= 0 || size != len(payload) || n <= w.boot {
			return fmt.Errorf("the count of starts falls from %d to %d", w.boot, n)
		}
		w.boot = n
		w.journal.dead += 2 * block
		return nil
	}
	// Its checksums are right, and its marker came after it.
	return format.Newer("an entry of the epoch journal", "kind", uint64(e.kind), uint64(kindBoot))
}

// begin writes epoch 0.
func (w *owner) begin(genesis *config.Config) (paxos.State, error) {
	var state paxos.State
	if genesis.Epoch != 0 {
		return state, fmt.Errorf("it is epoch %d", genesis.Epoch)
	}
	if err := genesis.Validate(); err != nil {
		return state, err
	}
	b, err := genesis.Encode()
	if err != nil {
		return state, err
	}
	if err := w.journal.append(entry{kind: kindValue, payload: b}); err != nil {
		return state, err
	}
	d := w.remember(b, genesis)
	state.Newest = paxos.Entry{Hash: d.facts.Hash, Value: b}
	return state, w.history.add(&state.Newest, headerOf(genesis, config.Hash(d.facts.Hash)))
}

// beginAnew takes another list of initial brokers in place of the one that the last start
// was given. It can, as long as this broker hasn't voted: epoch 1 needs the votes
// of all, so none was decided with the old list, and none will be.
func (w *owner) beginAnew(state paxos.State, genesis *config.Config) (paxos.State, error) {
	was, err := config.Decode(state.Newest.Value)
	if err != nil {
		return state, err
	}
	difference := differ(listOf(was), listOf(genesis))
	if difference == "" {
		return state, nil
	}
	if !state.Accepted.Ballot.None() {
		return state, fmt.Errorf("%w: this broker has voted for a first epoch with the list that it was given before: %s; start it with that list, "+
			"or empty the data directories of all listed brokers", ErrDifferentList, difference)
	}
	if len(genesis.Brokers) == 0 {
		return state, errors.New("the list is empty")
	}
	if err := genesis.Validate(); err != nil {
		return state, err
	}
	b, err := genesis.Encode()
	if err != nil {
		return state, err
	}
	j, err := rewriteJournal(w.o.dir, []entry{bootEntry(max(w.boot, 1)), {kind: kindValue, payload: b}})
	if err != nil {
		return state, err
	}
	if err := w.journal.close(); err != nil {
		j.close()
		return state, err
	}
	w.boot = max(w.boot, 1)
	w.journal = j
	w.history = history{values: map[uint64][]byte{}}
	d := w.remember(b, genesis)
	state = paxos.State{Newest: paxos.Entry{Hash: d.facts.Hash, Value: b}}
	return state, w.history.add(&state.Newest, headerOf(genesis, config.Hash(d.facts.Hash)))
}

// shorten rewrites the journal: the values that last, headers of the other epochs,
// the boot counter and what the acceptor has promised.
func (w *owner) shorten() error {
	w.mu.Lock()
	w.history.forget()
	w.mu.Unlock()
	entries := make([]entry, 0, len(w.history.headers)+2)
	for i := range w.history.headers {
		n := uint64(i)
		if v := w.history.values[n]; v != nil {
			entries = append(entries, entry{kind: kindValue, epoch: n, payload: v})
		} else {
			entries = append(entries, entry{kind: kindHeader, epoch: n, payload: w.history.headers[i].encode()})
		}
	}
	entries = append(entries, bootEntry(w.boot))
	s := w.machine.State()
	if s.Newest.Epoch != w.history.newest() {
		return fmt.Errorf("rewrite epoch journal: epoch %d is not written yet", s.Newest.Epoch) // a bug
	}
	var records []paxos.Record
	if !s.Accepted.Ballot.None() {
		records = append(records, paxos.Record{Kind: paxos.RecordAccepted, Epoch: s.Newest.Epoch + 1, Ballot: s.Accepted.Ballot, Value: s.Accepted.Value})
	}
	if s.Promised != s.Accepted.Ballot {
		records = append(records, paxos.Record{Kind: paxos.RecordPromised, Epoch: s.Newest.Epoch + 1, Ballot: s.Promised})
	}
	if len(records) > 0 {
		entries = append(entries, entry{kind: kindStep, epoch: s.Newest.Epoch + 1, payload: encodeRecords(records)})
	}
	j, err := rewriteJournal(w.o.dir, entries)
	if err != nil {
		return err
	}
	err = w.journal.close()
	w.journal = j
	return err
}
