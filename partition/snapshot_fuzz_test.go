package partition

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// FuzzManifest: a snapshot comes from another broker. Whatever it says, with a right checksum too, it is refused or consistent.
func FuzzManifest(f *testing.F) {
	s := newState()
	s.start, s.next, s.stored = 3, 40, 900
	spans := []span{{from: 0, to: 20, seed: 1, digest: 2, stored: 0}, {from: 20, to: 40, seed: 2, digest: 3, stored: 400}}
	whole := appendManifest(nil, s.encode(nil), spans, true)
	f.Add(whole[:len(whole)-4])
	f.Add(appendManifest(nil, newState().encode(nil), nil, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := binary.BigEndian.AppendUint32(bytes.Clone(b), crc32.Checksum(b, castagnoli))
		for _, in := range [][]byte{b, sealed} {
			m, err := readManifest(bytes.NewReader(in))
			if err != nil {
				continue
			}
			at := m.state.start
			for i, s := range m.spans {
				if s.from > at || s.to <= s.from || s.from < 0 || m.after(i) < s.stored {
					t.Fatalf("span %d of %+v", i, m.spans)
				}
				at = s.to
			}
			if at != m.state.next && len(m.spans) > 0 || m.state.start < 0 || m.state.next < m.state.start {
				t.Fatalf("it ends at %d, the state at %d", at, m.state.next)
			}
		}
	})
}
