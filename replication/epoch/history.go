package epoch

import (
	"errors"
	"fmt"
	"slices"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

const (
	// KeepValues is how many full values the history holds; of older ones it
	// keeps the headers.
	KeepValues = 100
	// KeepEvery: the value of each epoch that it divides is kept for ever, so
	// that whoever was away for long catches up in steps of bounded size.
	KeepEvery = 500
	// serveBytes is about how much one answer to a peer that catches up holds.
	serveBytes = 1 << 20
)

// history is what is known of all decided epochs. The store's lock guards it.
type history struct {
	headers []Header          // index is the epoch
	values  map[uint64][]byte // encoded
}

// add takes the next decided epoch.
func (h *history) add(e *paxos.Entry, header Header) error {
	n := len(h.headers)
	if e.Epoch != uint64(n) {
		return fmt.Errorf("epoch %d was expected, it is %d", n, e.Epoch)
	}
	if n > 0 && config.Hash(e.Previous) != h.headers[n-1].Hash {
		return errors.New("the chain of hashes is broken")
	}
	h.headers = append(h.headers, header)
	if e.Value != nil {
		h.values[e.Epoch] = e.Value
	}
	return nil
}

func (h *history) newest() uint64 { return uint64(len(h.headers) - 1) }

// lasting: is the value of epoch n one that shortening keeps?
func (h *history) lasting(n uint64) bool {
	return n+KeepValues > h.newest() || n%KeepEvery == 0
}

// forget drops the values that need not be kept.
func (h *history) forget() {
	for n := range h.values {
		if !h.lasting(n) {
			delete(h.values, n)
		}
	}
}

// surplus is how many values could be forgotten.
func (h *history) surplus() int {
	n := 0
	for epoch := range h.values {
		if !h.lasting(epoch) {
			n++
		}
	}
	return n
}

// entry of an epoch, with its value where it is kept.
func (h *history) entry(n uint64) paxos.Entry {
	head := &h.headers[n]
	e := paxos.Entry{Epoch: n, Hash: paxos.Hash(head.Hash), Previous: paxos.Hash(head.Previous), Value: h.values[n]}
	if e.Value == nil {
		e.Summary = head.encode()
	}
	return e
}

// from returns adjoining epochs from n on, of bounded size, of which the last has
// its value.
func (h *history) from(n uint64) []paxos.Entry {
	var out []paxos.Entry
	size := 0
	for ; n <= h.newest() && len(out) < paxos.MaxEntries; n++ {
		if size > serveBytes && len(out) > 0 && out[len(out)-1].Value != nil {
			break
		}
		e := h.entry(n)
		size += len(e.Value) + len(e.Summary) + 40
		out = append(out, e)
	}
	for len(out) > 0 && out[len(out)-1].Value == nil {
		out = out[:len(out)-1]
	}
	return out
}

// page returns headers, newest first.
func (h *history) page(from uint64, limit int) []Header {
	if limit <= 0 || len(h.headers) == 0 {
		return nil
	}
	end := min(from, h.newest()) + 1
	begin := end - min(end, uint64(limit))
	out := slices.Clone(h.headers[begin:end])
	slices.Reverse(out)
	return out
}
