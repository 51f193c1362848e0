package partition

import (
	"encoding/binary"
	"sync"

	"github.com/parleymq/parley/partition/group"
)

// groupTable is the replicated state of groups under a lock of its own, for the leader's
// side looks at it while Apply may be busy storing. Only Apply changes it.
type groupTable struct {
	mu sync.RWMutex
	s  *group.State
}

func newGroupTable() *groupTable { return &groupTable{s: group.NewState()} }

func (t *groupTable) apply(index uint64, s *state, body []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.s.Apply(group.Context{Index: index, LogTime: s.logTime, Start: s.start, Next: s.next}, body)
}

func (t *groupTable) trim(start int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.s.Trim(start)
}

// full tells whether there is no room for another group's anchor.
func (t *groupTable) full(name string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, known := t.s.AnchorOptions(name)
	_, anchors := t.s.Len()
	return !known && anchors >= group.MaxGroups
}

func (t *groupTable) empty() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	groups, anchors := t.s.Len()
	return groups+anchors == 0
}

// handled is the lowest offset that some group has not handled.
func (t *groupTable) handled() (int64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.s.Handled()
}

// encode appends a length (4) and the groups.
func (t *groupTable) encode(b []byte) []byte {
	t.mu.RLock()
	defer t.mu.RUnlock()
	at := len(b)
	b = t.s.Encode(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

func decodeGroups(d *decoder) *groupTable {
	t := newGroupTable()
	n := d.u32()
	if uint64(n) > uint64(len(d.b)) {
		d.fail("groups of %d bytes, %d are left", n, len(d.b))
		return t
	}
	s, err := group.DecodeState(d.take(int(n)))
	if err != nil {
		d.fail("%w", err)
		return t
	}
	t.s = s
	return t
}
