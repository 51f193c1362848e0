// Package interest routes messages from publishers to live subscribers:
// NATS subjects, wildcards and queue groups. It is shared by the front end and
// the mesh and knows neither sockets nor topics.
package interest

// Message is one message under way. Its slices are valid during a call only;
// whoever keeps them copies them.
type Message struct {
	Subject []byte
	Reply   []byte // nil when there is none
	Header  []byte // the raw header block, "NATS/1.0\r\n" to the blank line, or nil
	Payload []byte
}
