package broker

import (
	"bytes"

	"github.com/parleymq/parley/client/wire"
)

// header is one line of a NATS header block: views into it.
type header struct{ name, value []byte }

// nextHeader takes the first header off block, which is what follows the
// status line. ok is false at the end; a line without a colon is skipped, as
// NATS clients do.
func nextHeader(block []byte) (h header, rest []byte, ok bool) {
	for len(block) > 0 {
		var line []byte
		if i := bytes.IndexByte(block, '\n'); i >= 0 {
			line, block = block[:i], block[i+1:]
		} else {
			line, block = block, nil
		}
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		if len(line) == 0 {
			return header{}, nil, false
		}
		if i := bytes.IndexByte(line, ':'); i > 0 {
			return header{name: line[:i], value: trimSpace(line[i+1:])}, block, true
		}
	}
	return header{}, nil, false
}

// headerLines returns what follows the status line "NATS/1.0…".
func headerLines(block []byte) []byte {
	if i := bytes.IndexByte(block, '\n'); i >= 0 {
		return block[i+1:]
	}
	return nil
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// headerKind says what a header means to a publish.
type headerKind uint8

const (
	headerPlain headerKind = iota
	headerKey
	headerMsgID
	headerExpect
	headerPartition
	headerSubject
	headerLastSeq     // Nats-Expected-Last-Sequence
	headerStream      // Nats-Expected-Stream
	headerUnsupported // a condition that Parley can't keep: to ignore it would be wrong
)

// Headers of JetStream publishers.
const (
	natsLastSeq = "Nats-Expected-Last-Sequence"
	natsStream  = "Nats-Expected-Stream"
)

// kindOf compares as NATS and HTTP clients write headers: without case.
func kindOf(name []byte) headerKind {
	if len(name) < 8 || name[0]|0x20 != 'n' && name[0]|0x20 != 'p' {
		return headerPlain
	}
	switch len(name) {
	case len(wire.HeaderKey):
		if foldEqual(name, wire.HeaderKey) {
			return headerKey
		}
	case len(wire.HeaderMsgID):
		if foldEqual(name, wire.HeaderMsgID) {
			return headerMsgID
		}
	case len(wire.HeaderSubject):
		if foldEqual(name, wire.HeaderSubject) {
			return headerSubject
		}
	case len(wire.HeaderPart):
		if foldEqual(name, wire.HeaderPart) {
			return headerPartition
		}
	case len(wire.HeaderExpect):
		if foldEqual(name, wire.HeaderExpect) {
			return headerExpect
		}
		if foldEqual(name, natsStream) {
			return headerStream
		}
	case len(natsLastSeq):
		if foldEqual(name, natsLastSeq) {
			return headerLastSeq
		}
	}
	for _, s := range unsupportedHeaders {
		if foldEqual(name, s) {
			return headerUnsupported
		}
	}
	return headerPlain
}

var unsupportedHeaders = [...]string{
	"Nats-Rollup", "Nats-TTL", "Nats-Expected-Last-Msg-Id", "Nats-Expected-Last-Subject-Sequence",
	"Nats-Incr", "Nats-Schedule", "Nats-Batch-Id",
}

func foldEqual(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		x, y := b[i], s[i]
		if x == y {
			continue
		}
		if x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z' {
			return false
		}
	}
	return true
}

// number64 parses a decimal number without a sign, of at most 18 digits.
func number64(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, ch := range b {
		if ch < '0' || ch > '9' {
			return 0, false
		}
		n = n*10 + int64(ch-'0')
	}
	return n, true
}
