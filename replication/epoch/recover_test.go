package epoch

import (
	"errors"
	"testing"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

// TestRecover: the next epoch without a vote, on top of the newest, which is then the whole council's.
func TestRecover(t *testing.T) {
	t.Parallel()
	bubble(t, "one of three", func(t *testing.T, w *world) {
		nodes := w.formed(3)
		var got uint64
		if _, err := nodes[0].c.Propose(t.Context(), count("before", &got)); err != nil {
			t.Fatal(err)
		}
		w.settle(2, 5*time.Second)
		for _, n := range nodes {
			n.stop()
		}
		n := nodes[2]
		before, err := peekAt(n.dir)
		if err != nil || before.Epoch != 2 {
			t.Fatal(before, err)
		}
		refused := errors.New("no")
		if _, err := recoverIn(n.dir, "b3", time.Now(), func(*config.Config) error { return refused }); !errors.Is(err, refused) {
			t.Error(err)
		}
		if _, err := recoverIn(n.dir, "b3", time.Now(), func(c *config.Config) error { c.Council = nil; return nil }); !errors.Is(err, config.ErrInvalid) {
			t.Error(err)
		}
		after, err := recoverIn(n.dir, "b3", time.Now(), func(c *config.Config) error { c.RecoverOn(3, nil); return nil })
		if err != nil || after.Epoch != 3 || after.Previous != before.Hash() {
			t.Fatal(after, err)
		}
		w.mu.Lock()
		delete(w.nodes, 1)
		delete(w.nodes, 2)
		w.mu.Unlock()
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		if c, err := n.c.Propose(t.Context(), count("after", &got)); err != nil || c.Epoch != 4 || len(c.Council) != 1 {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

func peekAt(dir directory) (*config.Config, error) {
	j, cur, _, err := peek(dir)
	if err != nil {
		return nil, err
	}
	return cur, j.close()
}
