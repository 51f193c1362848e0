package mesh

import (
	"encoding/binary"
	"errors"

	"github.com/parleymq/parley/broker/interest"
)

// A payload on a link is a run of frames: kind (1 byte), length of the body (4
// bytes, little endian), body. Fields of a body are unsigned varints, and byte
// strings with their length before them as one; the last one takes what is left.
// Unknown kinds are skipped: newer brokers may send them.
const (
	// On a control link, towards the listener.
	frameRequest byte = 1 // id, milliseconds to answer in, subject, body; on data links too
	frameSend    byte = 2 // subject, body
	framePing    byte = 3 // id; on data links too

	// Back to the dialling side.
	frameResponse byte = 16 // id, body
	frameFailure  byte = 17 // id, wire.Error in JSON
	framePong     byte = 18 // id, bytes consumed since the link came up
	frameCredit   byte = 19 // bytes consumed since the link came up

	// On a data link, towards the listener.
	frameCore     byte = 32 // flags, hops, number of groups, groups, subject, reply, header, payload
	frameForward  byte = 33 // partition, topic, subject, reply, header, payload
	frameReply    byte = 34 // subject, reply, header, payload
	frameInterest byte = 35 // members, queue group, filter
)

const (
	frameHead = 5
	flagPlain = 1 // of frameCore: for subscribers without a queue group
)

var errBadFrame = errors.New("malformed frame")

// beginFrame and endFrame enclose the appending of a body.
func beginFrame(b []byte, kind byte) (_ []byte, at int) {
	at = len(b)
	return append(b, kind, 0, 0, 0, 0), at
}

func endFrame(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at+1:], uint32(len(b)-at-frameHead))
	return b
}

// nextFrame takes the first frame off b.
func nextFrame(b []byte) (kind byte, body, rest []byte, err error) {
	if len(b) < frameHead {
		return 0, nil, nil, errBadFrame
	}
	n := int64(binary.LittleEndian.Uint32(b[1:]))
	if n > int64(len(b)-frameHead) {
		return 0, nil, nil, errBadFrame
	}
	end := frameHead + int(n)
	return b[0], b[frameHead:end:end], b[end:], nil
}

func appendBytes[S ~string | ~[]byte](b []byte, s S) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// fields reads a body. After the first field that is not there all are empty.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) number() uint64 {
	n, size := binary.Uvarint(f.b)
	if size <= 0 {
		f.b, f.bad = nil, true
		return 0
	}
	f.b = f.b[size:]
	return n
}

// bytes returns a byte string; an empty one is nil.
func (f *fields) bytes() []byte {
	n := f.number()
	if n > uint64(len(f.b)) {
		f.b, f.bad = nil, true
		return nil
	}
	s := f.b[:n:n]
	f.b = f.b[n:]
	if n == 0 {
		return nil
	}
	return s
}

const maxVarint = binary.MaxVarintLen64

// messageSize is at least what appendMessage appends.
func messageSize(m *interest.Message) int {
	return 3*maxVarint + len(m.Subject) + len(m.Reply) + len(m.Header) + len(m.Payload)
}

// appendMessage appends the message under another subject.
func appendMessage(b, subject []byte, m *interest.Message) []byte {
	b = appendBytes(b, subject)
	b = appendBytes(b, m.Reply)
	b = appendBytes(b, m.Header)
	return append(b, m.Payload...)
}

// message reads what appendMessage appended.
func (f *fields) message(m *interest.Message) {
	*m = interest.Message{Subject: f.bytes(), Reply: f.bytes(), Header: f.bytes(), Payload: f.b}
	if !f.bad && !interest.ValidSubject(m.Subject) {
		f.bad = true
	}
}

func coreSize(m *interest.Message, groups []string) int {
	size := frameHead + 3*maxVarint + messageSize(m)
	for _, g := range groups {
		size += maxVarint + len(g)
	}
	return size
}

func appendCore(b []byte, m *interest.Message, plain bool, groups []string) []byte {
	b, at := beginFrame(b, frameCore)
	var flags uint64
	if plain {
		flags |= flagPlain
	}
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendUvarint(b, uint64(m.Hops))
	b = binary.AppendUvarint(b, uint64(len(groups)))
	for _, g := range groups {
		b = appendBytes(b, g)
	}
	return endFrame(appendMessage(b, m.Subject, m), at)
}

// core reads a core message; groups are appended to those given.
func (f *fields) core(m *interest.Message, groups [][]byte) (plain bool, _ [][]byte) {
	flags, hops, n := f.number(), f.number(), f.number()
	for ; n > 0 && !f.bad; n-- {
		groups = append(groups, f.bytes())
	}
	f.message(m)
	m.Hops = uint8(min(hops, interest.MaxHops))
	return flags&flagPlain != 0, groups
}

func forwardSize(topic string, m *interest.Message) int {
	return frameHead + 2*maxVarint + len(topic) + messageSize(m)
}

func appendForward(b []byte, topic string, partition int32, m *interest.Message) []byte {
	b, at := beginFrame(b, frameForward)
	b = binary.AppendUvarint(b, uint64(uint32(partition)))
	b = appendBytes(b, topic)
	return endFrame(appendMessage(b, m.Subject, m), at)
}

func appendReply(b, subject []byte, m *interest.Message) []byte {
	b, at := beginFrame(b, frameReply)
	return endFrame(appendMessage(b, subject, m), at)
}

func appendInterest(b []byte, subject, queue string, members int) []byte {
	b, at := beginFrame(b, frameInterest)
	b = binary.AppendUvarint(b, uint64(members))
	b = appendBytes(b, queue)
	return endFrame(append(b, subject...), at)
}

func appendRequest(b []byte, id uint64, timeoutMS int64, subject string, body []byte) []byte {
	b, at := beginFrame(b, frameRequest)
	b = binary.AppendUvarint(b, id)
	b = binary.AppendUvarint(b, uint64(max(timeoutMS, 1)))
	b = appendBytes(b, subject)
	return endFrame(append(b, body...), at)
}

func appendSend(b []byte, subject string, body []byte) []byte {
	b, at := beginFrame(b, frameSend)
	b = appendBytes(b, subject)
	return endFrame(append(b, body...), at)
}

// appendNumbers appends a frame of numbers alone, and then the body's rest.
func appendNumbers(b []byte, kind byte, rest []byte, numbers ...uint64) []byte {
	b, at := beginFrame(b, kind)
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return endFrame(append(b, rest...), at)
}
