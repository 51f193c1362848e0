package epoch

import (
	"encoding/binary"
	"errors"

	"github.com/parleymq/parley/replication/epoch/config"
)

var errHeader = errors.New("not an epoch header")

// encode writes a header in the form of docs/format/epochs.md.
func (h *Header) encode() []byte {
	b := append([]byte{}, h.Hash[:]...)
	b = append(b, h.Previous[:]...)
	b = binary.AppendUvarint(b, h.Epoch)
	b = binary.AppendUvarint(b, uint64(h.At))
	b = binary.AppendUvarint(b, uint64(len(h.By)))
	b = append(b, h.By...)
	b = binary.AppendUvarint(b, uint64(len(h.Change)))
	b = append(b, h.Change...)
	b = binary.AppendUvarint(b, uint64(len(h.Council)))
	for _, id := range h.Council {
		b = binary.AppendUvarint(b, id)
	}
	return b
}

func decodeHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < 2*len(h.Hash) {
		return h, errHeader
	}
	copy(h.Hash[:], b)
	copy(h.Previous[:], b[len(h.Hash):])
	b = b[2*len(h.Hash):]
	ok := true
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok = false
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := number()
		if n > config.MaxText || n > uint64(len(b)) {
			ok = false
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	h.Epoch = number()
	h.At = int64(number())
	h.By, h.Change = text(), text()
	n := number()
	if n > config.MaxCouncil {
		ok = false
	}
	for ; ok && n > 0; n-- {
		h.Council = append(h.Council, number())
	}
	if !ok || len(b) != 0 || h.At < 0 {
		return Header{}, errHeader
	}
	return h, nil
}
