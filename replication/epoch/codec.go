package epoch

import (
	"fmt"

	"github.com/parleymq/parley/replication/paxos"
)

// MaxMessage bounds an encoded message between brokers.
const MaxMessage = 4 << 20

func encodeMessage(m *paxos.Message) []byte { return paxos.AppendMessage(nil, *m) }

// decodeMessage reads a message, and the headers in it: to Paxos they mean nothing.
// The message shares b.
func decodeMessage(b []byte) (paxos.Message, error) {
	if len(b) > MaxMessage {
		return paxos.Message{}, fmt.Errorf("%w: a message of %d bytes, at most %d are allowed", errForm, len(b), MaxMessage)
	}
	m, err := paxos.DecodeMessage(b)
	if err != nil {
		return paxos.Message{}, err
	}
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Value != nil && e.Summary != nil {
			return paxos.Message{}, fmt.Errorf("%w: epoch %d has both a value and a header", errForm, e.Epoch)
		} else if e.Value == nil {
			if _, err := headerIn(e); err != nil {
				return paxos.Message{}, fmt.Errorf("epoch %d: %w", e.Epoch, err)
			}
		}
	}
	return m, nil
}
