package broker

import (
	"testing"

	"github.com/parleymq/parley/broker/mesh"
)

// TestLinkBreaksWhileHandingOver: what the mesh still reads isn't given to anybody else when the link goes down, as it may yet be sent over
// the next link.
func TestLinkBreaksWhileHandingOver(t *testing.T) {
	t.Parallel()
	const to, id = 2, 7
	for _, c := range []struct {
		name        string
		lost        bool
		err         error
		mine, broke bool
		left        int
	}{
		{"forwarded", false, nil, false, false, 1},
		{"forwarded, and the link broke", true, nil, false, true, 0},
		{"refused", false, mesh.ErrBusy, true, false, 0},
		{"refused, and the link broke", true, mesh.ErrUnreachable, true, false, 0},
	} {
		k := &kept{id: id, handing: true}
		f := &forwards{under: map[uint64]map[string]underway{}, kept: map[uint64]map[uint64]*kept{to: {id: k}}}
		if c.lost {
			f.lost(to)
			if f.kept[to][id] != k {
				t.Fatalf("%s: it was answered while the mesh read it", c.name)
			}
		}
		if mine, broke := f.handed(to, id, k, c.err); mine != c.mine || broke != c.broke || len(f.kept[to]) != c.left {
			t.Errorf("%s: mine %v, broke %v, %d are left", c.name, mine, broke, len(f.kept[to]))
		}
	}
}
