package nats

import "strings"

// protocolError is sent to the client as -ERR 'text'. Clients know the texts by
// heart and match them by prefix, without case.
type protocolError struct {
	text string
	kind errorKind
}

func (e *protocolError) Error() string { return e.text }

// errorKind decides which counter a lost connection goes to.
type errorKind uint8

const (
	kindParse errorKind = iota
	kindAuth
	kindLimit
	kindStale
	kindClosed // by the broker
)

// Errors that end the connection.
var (
	errUnknownOperation = &protocolError{"Unknown Protocol Operation", kindParse}
	errControlLine      = &protocolError{"maximum control line exceeded", kindParse}
	errMaxPayload       = &protocolError{"Maximum Payload Violation", kindParse}
	errAuthorization    = &protocolError{"Authorization Violation", kindAuth}
	errAuthTimeout      = &protocolError{"Authentication Timeout", kindAuth}
	errTLSRequired      = &protocolError{"Secure Connection - TLS Required", kindAuth}
	errStale            = &protocolError{"Stale Connection", kindStale}
	errMaxConnections   = &protocolError{"maximum connections exceeded", kindLimit}
	errClientProtocol   = &protocolError{"invalid client protocol", kindParse}
	errNoResponders     = &protocolError{"no responders requires headers support", kindParse}
)

// Errors that the connection survives.
const (
	textMaxSubscriptions = "maximum subscriptions exceeded"
	textInvalidSubject   = "Invalid Subject"
	textInvalidPublish   = "Invalid Publish Subject"
)

// lastWord makes text fit between the quotes of -ERR, on one line.
func lastWord(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r < ' ':
			return ' '
		case r == '\'':
			return '"'
		}
		return r
	}, text)
}
