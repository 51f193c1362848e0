package partition

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Replicas are compared in two ways. What they have on disk: see scrub.go. And what they
// hold in memory and hand on by checkpoints and snapshots: whenever a barrier is applied, which all of them
// do at the same index, each notes digests of its state. All that a checkpoint has is a function of the
// log and written in an order of its own, so the same index means the same bytes.

// StateDigest is what a replica's state was right after it applied the entry Index, a barrier.
type StateDigest struct {
	Index uint64
	// Form is the version of the bytes that the digests are of: others can't be compared.
	Form uint32
	Next int64
	// Chain is the digest of all chunks ever applied. It differs also between replicas of which one was made before there
	// were chains, which is no fault.
	Chain     uint64
	Position  Digest // term, counter, barrier, log time, bounds, bytes stored
	Producers Digest
	Groups    Digest
}

// Differs names what of the state isn't the same; "" all is. The chain is left out.
func (d StateDigest) Differs(o StateDigest) string {
	text := ""
	for _, p := range []struct {
		name string
		same bool
	}{{"position", d.Position == o.Position && d.Next == o.Next}, {"producers", d.Producers == o.Producers}, {"groups", d.Groups == o.Groups}} {
		if !p.same {
			if text != "" {
				text += ", "
			}
			text += p.name
		}
	}
	return text
}

// stateNotes is how many digests a replica remembers.
const stateNotes = 4

// noteState is called with applying held, once a barrier is applied.
func (m *machine) noteState() {
	s := m.state
	d := StateDigest{Index: s.index, Next: s.next, Chain: s.chain}
	b := m.noteBuffer[:0]
	for _, v := range []uint64{s.index, s.term, s.counter, s.barrier, uint64(s.logTime), uint64(s.start), uint64(s.next),
		uint64(s.stored), uint64(s.marked), uint64(s.markedAt)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	d.Position = digestOf(b)
	b = s.producers.encode(b[:0])
	d.Producers = digestOf(b)
	b = s.groups.encode(b[:0])
	d.Groups = digestOf(b)
	d.Form = stateVersion<<8 | uint32(b[4]) // the groups' own version
	if cap(b) <= keepNoteBuffer {
		m.noteBuffer = b
	}
	copy(m.notes[1:], m.notes[:])
	m.notes[0] = d
}

// keepNoteBuffer is how much memory is kept for the next note.
const keepNoteBuffer = 64 << 10

func digestOf(b []byte) (d Digest) {
	sum := sha256.Sum256(b)
	copy(d[:], sum[:])
	return d
}

// StateAt returns what the state was at the barrier with that index; 0 means the newest. It is busy where
// that was not applied yet, and trimmed where it is no longer, or never was, known: a replica that took in a
// snapshot passed over it.
func (p *Partition) StateAt(index uint64) (StateDigest, error) {
	m := p.m
	m.applying.Lock()
	defer m.applying.Unlock()
	switch {
	case m.restoring || m.state == nil:
		return StateDigest{}, describe(ErrBusy, "%s: the replica is catching up itself", p.name)
	case m.failed != nil:
		return StateDigest{}, m.failed
	}
	for _, d := range m.notes {
		if d.Index != 0 && (d.Index == index || index == 0) {
			return d, nil
		}
	}
	if m.state.index < index {
		return StateDigest{}, describe(ErrBusy, "%s: the replica has applied entries up to %d, not yet %d", p.name, m.state.index, index)
	}
	return StateDigest{}, describe(ErrTrimmed, "%s: the replica's state at entry %d is not known", p.name, index)
}

// Condemn says that this replica isn't what the others are, who are a majority: from here on it is damaged.
// With a range, offsets within it are served to nobody any more.
func (p *Partition) Condemn(from, to int64, why string) {
	if from < to {
		p.m.condemned.Store(&condemned{from, to})
	}
	p.m.damaged(describe(ErrDamaged, "%s: %s", p.name, why))
}

// condemned are offsets that other replicas have something else at.
type condemned struct{ from, to int64 }

func (c *condemned) refuse(name string, offset int64) *Error {
	if c == nil || offset < c.from || offset >= c.to {
		return nil
	}
	return describe(ErrDamaged, "%s: offsets %d to %d on this broker's disk are not what the other replicas have", name, c.from, c.to-1)
}

// limit is the offset up to which may be read from there on.
func (c *condemned) limit(offset, next int64) int64 {
	if c == nil || offset >= c.to {
		return next
	}
	return min(next, c.from)
}

func (d StateDigest) String() string {
	return fmt.Sprintf("entry %d: position %s, producers %s, groups %s, chain %016x", d.Index, d.Position, d.Producers, d.Groups, d.Chain)
}
