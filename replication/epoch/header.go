package epoch

import (
	"errors"
	"fmt"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

var errHeader = errors.New("not an epoch header")

// Header is what is kept of every epoch for ever.
type Header struct {
	Epoch    uint64
	Hash     config.Hash
	Previous config.Hash
	By       string
	At       int64 // Unix ms
	Change   string
	Council  []uint64
}

func headerOf(c *config.Config, hash config.Hash) Header {
	return Header{Epoch: c.Epoch, Hash: hash, Previous: c.Previous, By: c.By, At: c.At, Change: c.Change, Council: c.Council}
}

// headerIn finds the header of a decided entry.
func headerIn(e *paxos.Entry) (Header, error) {
	var h Header
	if e.Value == nil {
		var err error
		if h, err = decodeHeader(e.Summary); err != nil {
			return h, err
		}
	} else {
		c, err := config.Decode(e.Value)
		if err != nil {
			return h, err
		}
		h = headerOf(c, c.Hash())
	}
	if h.Epoch != e.Epoch || paxos.Hash(h.Hash) != e.Hash || paxos.Hash(h.Previous) != e.Previous {
		return h, fmt.Errorf("epoch %d with hash %v holds epoch %d with hash %v", e.Epoch, e.Hash, h.Epoch, h.Hash)
	}
	return h, nil
}

// encode writes a header in the form of docs/format/epochs.md.
func (h *Header) encode() []byte {
	w := writer{}
	w.hash(h.Hash)
	w.hash(h.Previous)
	w.uint(h.Epoch)
	w.uint(uint64(h.At))
	w.text(h.By)
	w.text(h.Change)
	w.uint(uint64(len(h.Council)))
	for _, id := range h.Council {
		w.uint(id)
	}
	return w.b
}

func decodeHeader(b []byte) (Header, error) {
	r := reader{b: b}
	h := Header{Hash: r.hash(), Previous: r.hash(), Epoch: r.uint(), At: int64(r.uint()), By: r.text(), Change: r.text()}
	for n := r.count(max(config.MaxCouncil, config.MaxInitial)); n > 0; n-- {
		h.Council = append(h.Council, r.uint())
	}
	if err := r.end(); err != nil {
		return Header{}, fmt.Errorf("%w: %w", errHeader, err)
	}
	if h.At < 0 {
		return Header{}, fmt.Errorf("%w: its time is %d", errHeader, h.At)
	}
	return h, nil
}
