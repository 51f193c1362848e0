package partition

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/replication/format"
)

// An entry of the replicated log is one command. All integers are big endian.
//
//	offset size field
//	0      1    version (1)
//	1      1    kind
//	2      2    zero
//	4      8    term: the leader's term, as its Start committed it
//	12     8    counter: 0 for Start, then 1, 2, 3, … within the term
//	20     8    barrier: the epoch of the newest barrier that the leader had applied
//	28     8    log time, Unix milliseconds
//	36     …    body, by kind
//
// Bodies: Start none; Append items; Trim the new start offset (8); Barrier the
// epoch (8); Group as in package group. An item is
//
//	1 flags, then with flagExpect the expected next offset (8), with flagIDs a
//	count (4) and per message id the record's delta (4) and the id's hash (16),
//	then the record batch, which says its own length.
const (
	commandVersion    = 1
	commandHeaderSize = 36
)

type commandKind uint8

const (
	kindStart commandKind = iota + 1
	kindAppend
	kindTrim
	kindBarrier
	kindGroup
)

func (k commandKind) String() string {
	switch k {
	case kindStart:
		return "start"
	case kindAppend:
		return "append"
	case kindTrim:
		return "trim"
	case kindBarrier:
		return "barrier"
	case kindGroup:
		return "group"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

const (
	flagExpect = 1 << iota
	flagIDs
)

// itemOverhead is what stands before an item's batch, message ids apart.
const itemOverhead = 1 + 8 + 4

const (
	idHashSize  = 16
	idEntrySize = 4 + idHashSize
)

// idHash is what the broker keeps of a message id.
type idHash [idHashSize]byte

type commandHeader struct {
	kind    commandKind
	term    uint64
	counter uint64
	barrier uint64
	logTime int64
}

func (h commandHeader) put(b []byte) {
	b[0], b[1], b[2], b[3] = commandVersion, byte(h.kind), 0, 0
	binary.BigEndian.PutUint64(b[4:], h.term)
	binary.BigEndian.PutUint64(b[12:], h.counter)
	binary.BigEndian.PutUint64(b[20:], h.barrier)
	binary.BigEndian.PutUint64(b[28:], uint64(h.logTime))
}

var errCommand = errors.New("malformed command")

// parseCommand fails only on a bug or on damage that every checksum below
// missed: callers treat it as fatal.
func parseCommand(b []byte) (commandHeader, []byte, error) {
	if len(b) < commandHeaderSize {
		return commandHeader{}, nil, fmt.Errorf("%w: %d bytes, a header has %d", errCommand, len(b), commandHeaderSize)
	}
	if b[0] != commandVersion {
		if b[0] > commandVersion {
			return commandHeader{}, nil, format.Newer("a log entry", "version", uint64(b[0]), commandVersion)
		}
		return commandHeader{}, nil, fmt.Errorf("%w: version %d", errCommand, b[0])
	}
	h := commandHeader{
		kind:    commandKind(b[1]),
		term:    binary.BigEndian.Uint64(b[4:]),
		counter: binary.BigEndian.Uint64(b[12:]),
		barrier: binary.BigEndian.Uint64(b[20:]),
		logTime: int64(binary.BigEndian.Uint64(b[28:])),
	}
	body := b[commandHeaderSize:]
	switch h.kind {
	case kindStart, kindAppend, kindGroup:
	case kindTrim, kindBarrier:
		if len(body) != 8 {
			return commandHeader{}, nil, fmt.Errorf("%w: %s with a body of %d bytes, want 8", errCommand, h.kind, len(body))
		}
	default:
		if h.kind > kindGroup {
			return commandHeader{}, nil, format.Newer("a log entry", "kind", uint64(h.kind), uint64(kindGroup))
		}
		return commandHeader{}, nil, fmt.Errorf("%w: unknown %s", errCommand, h.kind)
	}
	return h, body, nil
}

// appendItemPrefix writes what stands before an item's batch.
func appendItemPrefix(b []byte, expect int64, ids []idAt) []byte {
	var flags byte
	if expect >= 0 {
		flags |= flagExpect
	}
	if len(ids) > 0 {
		flags |= flagIDs
	}
	b = append(b, flags)
	if expect >= 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(expect))
	}
	if len(ids) > 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(len(ids)))
		for i := range ids {
			b = binary.BigEndian.AppendUint32(b, uint32(ids[i].delta))
			b = append(b, ids[i].hash[:]...)
		}
	}
	return b
}

// idAt is a message id's hash and the record, counted from its batch's first.
type idAt struct {
	delta int32
	hash  idHash
}

// item is one batch of an append command, as views into it.
type item struct {
	expect int64  // -1: none
	ids    []byte // idEntrySize each
	batch  record.Batch
}

// nextItem takes the first item off body.
func nextItem(body []byte) (it item, rest []byte, err error) {
	flags := body[0]
	if flags&^(flagExpect|flagIDs) != 0 {
		return it, nil, fmt.Errorf("%w: item flags %#x", errCommand, flags)
	}
	body = body[1:]
	it.expect = -1
	if flags&flagExpect != 0 {
		if len(body) < 8 {
			return it, nil, fmt.Errorf("%w: item cut short", errCommand)
		}
		it.expect = int64(binary.BigEndian.Uint64(body))
		body = body[8:]
	}
	if flags&flagIDs != 0 {
		if len(body) < 4 {
			return it, nil, fmt.Errorf("%w: item cut short", errCommand)
		}
		n := uint64(binary.BigEndian.Uint32(body)) * idEntrySize
		if n > uint64(len(body)-4) {
			return it, nil, fmt.Errorf("%w: message ids exceed the item", errCommand)
		}
		it.ids = body[4 : 4+n]
		body = body[4+n:]
	}
	it.batch, rest, err = record.Split(body)
	if err != nil {
		return it, nil, fmt.Errorf("%w: item's batch: %w", errCommand, err)
	}
	return it, rest, nil
}

// Codes of a command's result (Result.Value).
const (
	// resultUndecided is the zero value: nobody decided, as where an entry was passed over because the state already had it. What
	// became of it isn't known by that, and it is proposed again under its counter.
	resultUndecided uint64 = iota
	resultOK
	resultStaleTerm
	resultSkipped // the command before it is missing
	resultStaleBarrier
	resultForgotten // it was applied, but its result is no longer kept
)

// Codes of an item within an append command's result.
type itemCode uint8

const (
	itemOK itemCode = iota
	itemDuplicate
	itemDuplicateID
	itemExpectMismatch
	itemOutOfOrder
	itemFenced
	itemUnknownProducer
)

const itemResultSize = 9 // code (1), offset (8)

func appendItemResult(b []byte, c itemCode, offset int64) []byte {
	b = append(b, byte(c))
	return binary.BigEndian.AppendUint64(b, uint64(offset))
}

func itemResult(b []byte, i int) (itemCode, int64, bool) {
	if len(b) < (i+1)*itemResultSize {
		return 0, 0, false
	}
	r := b[i*itemResultSize:]
	return itemCode(r[0]), int64(binary.BigEndian.Uint64(r[1:])), true
}
