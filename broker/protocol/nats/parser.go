package nats

import "bytes"

// The parser is a pure function over the unread bytes of a connection: it
// takes one frame off the front or says how much more it needs. Where reads
// split a frame makes no difference, because nothing but bytes carries over.
// Frames hold slices of those bytes.

// verb of a frame that a client may send.
type verb uint8

const (
	verbPub verb = iota
	verbHpub
	verbSub
	verbUnsub
	verbPing
	verbPong
	verbConnect
	verbIgnored // +OK, -ERR and INFO, which only servers have a reason to send
)

// frame is one protocol operation.
type frame struct {
	verb    verb
	arg     []byte // CONNECT: the JSON
	subject []byte
	reply   []byte
	queue   []byte
	sid     []byte
	max     int64 // UNSUB: -1 when not given
	header  []byte
	payload []byte
}

// frameLimits bound what a client may send.
type frameLimits struct {
	controlLine int
	payload     int64
	headers     bool // HPUB was agreed on
	strangers   bool // nothing but CONNECT, until the client is known
}

// maxTokens of a control line's arguments; one more is seen as an error.
const maxTokens = 5

// parse takes the first frame from buf and returns its length n. When the frame
// is not complete n is 0 and need is the length that buf must have before
// another attempt makes sense. After an error the connection is lost.
func (l *frameLimits) parse(buf []byte, f *frame) (n, need int, err error) {
	end := bytes.IndexByte(buf, '\n')
	line := buf
	if end >= 0 {
		line = buf[:end]
	}
	v, width, ok := verbOf(line, end >= 0)
	if !ok {
		return 0, 0, errUnknownOperation
	}
	if l.strangers && v != verbConnect {
		return 0, 0, errAuthorization
	}
	arg := argument(line[width:])
	if len(arg) > l.controlLine || len(line) > 2*l.controlLine {
		return 0, 0, errControlLine
	}
	if end < 0 {
		return 0, len(buf) + 1, nil
	}
	n = end + 1
	*f = frame{verb: v}
	switch v {
	case verbPing, verbPong, verbIgnored:
		return n, 0, nil
	case verbConnect:
		f.arg = arg
		return n, 0, nil
	}

	var room [maxTokens][]byte
	tokens := splitTokens(arg, room[:0])
	switch v {
	case verbSub:
		return n, 0, f.sub(tokens)
	case verbUnsub:
		return n, 0, f.unsub(tokens)
	}
	size, headerSize, err := f.pub(tokens, l)
	if err != nil {
		return 0, 0, err
	}
	total := n + size + len(crlf)
	if len(buf) < total {
		return 0, total, nil
	}
	body := buf[n:total]
	if body[size] != '\r' || body[size+1] != '\n' {
		return 0, 0, errUnknownOperation
	}
	if v == verbHpub {
		f.header = body[:headerSize:headerSize]
	}
	f.payload = body[headerSize:size:size]
	return total, 0, nil
}

// verbs in the order in which they are tried; the frequent ones come first.
var verbs = [...]struct {
	name string // lower case
	verb verb
	bare bool // needs no argument
}{
	{"pub", verbPub, false},
	{"hpub", verbHpub, false},
	{"sub", verbSub, false},
	{"ping", verbPing, true},
	{"pong", verbPong, true},
	{"unsub", verbUnsub, false},
	{"connect", verbConnect, false},
	{"+ok", verbIgnored, true},
	{"-err", verbIgnored, true},
	{"info", verbIgnored, true},
}

// verbOf returns the verb that the line begins with and its width. Of a line
// that is still incomplete it says whether it may become one, so that garbage
// is told off without waiting for its end.
func verbOf(line []byte, complete bool) (v verb, width int, ok bool) {
	for i := range verbs {
		candidate := &verbs[i]
		name := candidate.name
		if len(line) < len(name) {
			if !complete && equalFold(line, name[:len(line)]) {
				return candidate.verb, len(line), true
			}
			continue
		}
		if !equalFold(line[:len(name)], name) {
			continue
		}
		if len(line) == len(name) {
			return candidate.verb, len(name), !complete || candidate.bare
		}
		c := line[len(name)]
		return candidate.verb, len(name), c == ' ' || c == '\t' || c == '\r'
	}
	return 0, 0, false
}

// equalFold compares with a lower-case name of the same length.
func equalFold(b []byte, name string) bool {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// argument is what follows the verb, without the blanks before it and the
// carriage return at its end.
func argument(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	if last := len(b) - 1; last >= 0 && b[last] == '\r' {
		b = b[:last]
	}
	return b
}

func splitTokens(arg []byte, to [][]byte) [][]byte {
	start := -1
	for i, c := range arg {
		if c == ' ' || c == '\t' {
			if start >= 0 {
				if len(to) == maxTokens {
					return to
				}
				to = append(to, arg[start:i:i])
				start = -1
			}
		} else if start < 0 {
			start = i
		}
	}
	if start >= 0 && len(to) < maxTokens {
		to = append(to, arg[start:len(arg):len(arg)])
	}
	return to
}

// pub reads the arguments of PUB and HPUB, and what they say of the sizes.
func (f *frame) pub(tokens [][]byte, l *frameLimits) (size, headerSize int, err error) {
	sizes := 1
	if f.verb == verbHpub {
		if !l.headers {
			return 0, 0, errUnknownOperation
		}
		sizes = 2
	}
	switch len(tokens) - sizes {
	case 1:
		f.subject = tokens[0]
	case 2:
		f.subject, f.reply = tokens[0], tokens[1]
	default:
		return 0, 0, errUnknownOperation
	}
	total, ok := parseSize(tokens[len(tokens)-1])
	if !ok {
		return 0, 0, errUnknownOperation
	}
	if total > l.payload {
		return 0, 0, errMaxPayload
	}
	if f.verb == verbHpub {
		header, ok := parseSize(tokens[len(tokens)-2])
		if !ok || header > total {
			return 0, 0, errUnknownOperation
		}
		headerSize = int(header)
	}
	return int(total), headerSize, nil
}

func (f *frame) sub(tokens [][]byte) error {
	switch len(tokens) {
	case 2:
		f.subject, f.sid = tokens[0], tokens[1]
	case 3:
		f.subject, f.queue, f.sid = tokens[0], tokens[1], tokens[2]
	default:
		return errUnknownOperation
	}
	return nil
}

func (f *frame) unsub(tokens [][]byte) error {
	f.max = -1
	switch len(tokens) {
	case 1:
	case 2:
		limit, ok := parseSize(tokens[1])
		if !ok {
			return errUnknownOperation
		}
		f.max = limit
	default:
		return errUnknownOperation
	}
	f.sid = tokens[0]
	return nil
}

// parseSize reads a decimal number. One that is too large for any limit comes
// back as largestSize, so that the answer names the limit it broke.
func parseSize(b []byte) (int64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int64(c-'0'); n > largestSize {
			n = largestSize
		}
	}
	return n, true
}

const largestSize = 1 << 40
