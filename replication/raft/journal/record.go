package journal

import (
	"encoding/binary"
	"errors"

	"github.com/parleymq/parley/replication/format"
)

// Key names a replica of a shard.
type Key struct{ Shard, Replica uint64 }

// State is what Raft must not forget, and the commit index, which it may.
type State struct{ Term, Vote, Commit uint64 }

// A record says what changed for one replica. Its parts are there by flags, in this order; each
// number is a uvarint, bytes have their length before them:
//
//	shard, replica, flags
//	state      term, vote, commit
//	snapshot   index, bytes
//	bootstrap  bytes
//	trim       index
//	entries    index of the first, count, then each entry's bytes
type record struct {
	key           Key
	flags         uint64
	state         State
	snapshotIndex uint64
	snapshot      []byte
	bootstrap     []byte
	trim          uint64
	first, count  uint64
	entries       []byte // of the payload, to its end
}

const (
	// What was known of the replica is forgotten, before the rest of the record counts.
	flagRemove = 1 << iota
	flagState
	flagSnapshot
	// The snapshot takes the place of the log: it begins anew behind it.
	flagInstall
	flagBootstrap
	// Entries up to an index are not needed.
	flagTrim
	// Entries from their first index on replace what was there.
	flagEntries
	// The log begins anew with the entries.
	flagReset
	// The entries are copies of what was in older segments: they replace nothing.
	flagMoved
	// State, snapshot, bootstrap and trim are all that is known: older records aren't needed for them.
	flagAll

	flagsKnown = 1<<iota - 1
)

var errRecord = errors.New("a record of its frame can't be decoded, though its CRC is right")

func parseRecord(b []byte) (r record, err error) {
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errRecord
			b = nil
			return 0
		}
		b = b[n:]
		return v
	}
	bytes := func() []byte {
		n := number()
		if n > uint64(len(b)) {
			err = errRecord
			b = nil
			return nil
		}
		v := b[:n:n]
		b = b[n:]
		return v
	}
	r.key = Key{number(), number()}
	r.flags = number()
	if err == nil && r.flags&^uint64(flagsKnown) != 0 {
		return record{}, format.Newer("a record", "flags", r.flags, flagsKnown)
	}
	if r.flags&flagState != 0 {
		r.state = State{number(), number(), number()}
	}
	if r.flags&flagSnapshot != 0 {
		r.snapshotIndex = number()
		r.snapshot = bytes()
	}
	if r.flags&flagBootstrap != 0 {
		r.bootstrap = bytes()
	}
	if r.flags&flagTrim != 0 {
		r.trim = number()
	}
	if r.flags&flagEntries != 0 {
		r.first, r.count = number(), number()
		r.entries = b
		// An entry takes a byte or more.
		if r.first == 0 || r.count == 0 || r.count > uint64(len(b)) || r.first+r.count < r.first {
			err = errRecord
		}
	} else if len(b) > 0 {
		err = errRecord
	}
	if r.flags&flagInstall != 0 && r.flags&flagSnapshot == 0 ||
		r.flags&(flagReset|flagMoved) != 0 && r.flags&flagEntries == 0 {
		err = errRecord
	}
	if err != nil {
		return record{}, err
	}
	return r, nil
}

// each calls f with the entries of a record until it says no.
func (r *record) each(f func(index uint64, entry []byte) bool) error {
	b := r.entries
	for i := range r.count {
		n, l := binary.Uvarint(b)
		if l <= 0 || n > uint64(len(b)-l) {
			return errRecord
		}
		if !f(r.first+i, b[l:l+int(n):l+int(n)]) {
			return nil
		}
		b = b[l+int(n):]
	}
	return nil
}
