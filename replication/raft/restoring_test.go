package raft

import (
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/replication"
)

// slowRestore is a state machine whose restore takes until it is let go on.
type slowRestore struct {
	discard
	began chan struct{}
	once  sync.Once
	goOn  chan struct{}
}

func (s *slowRestore) RecoverFromSnapshot(_ io.Reader, stop <-chan struct{}) error {
	s.once.Do(func() { close(s.began) })
	select {
	case <-s.goOn:
		return nil
	case <-stop:
		return errors.New("stopped")
	}
}

// TestLaggardSparesItsLeader: a follower that is long about a snapshot doesn't keep its leader
// from taking proposals, however many.
func TestLaggardSparesItsLeader(t *testing.T) {
	t.Parallel()
	dirs := [4]string{1: t.TempDir(), 2: t.TempDir(), 3: t.TempDir()}
	var mu sync.Mutex
	hosts := [4]*Host{}
	open := func(n int) *Host {
		c := testConfig(dirs[n])
		c.MaxEntry, c.MaxUnapplied = 64<<10, 1<<20
		c.SnapshotCount, c.RetainBytes = 20, 1
		c.Resolve = func(_, replica uint64) (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			if h := hosts[replica]; h != nil {
				return h.Address(), true
			}
			return "", false
		}
		h := mustHost(t, c)
		mu.Lock()
		hosts[n] = h
		mu.Unlock()
		return h
	}
	start := func(h *Host, n uint64, sm replication.StateMachine) replication.Log {
		l, err := h.Start(t.Context(), replication.Replica{Shard: 1, Replica: n, Initial: map[uint64]string{1: "x", 2: "x", 3: "x"}}, sm)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	logs := [4]replication.Log{}
	for n := 1; n <= 2; n++ {
		logs[n] = start(open(n), uint64(n), discard{})
	}
	deadline := time.Now().Add(30 * time.Second)
	wait := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			if time.Now().After(deadline) {
				t.Fatalf("not %s", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	leader := func() int {
		for n := 1; n <= 2; n++ {
			if logs[n].Leadership().Self {
				return n
			}
		}
		return 0
	}
	wait("led", func() bool { return leader() != 0 })
	at := leader()
	data := make([]byte, 32<<10)
	propose := func() {
		t.Helper()
		wait("committed: the leader refuses proposals", func() bool {
			p, err := logs[at].Propose(data, 10*time.Second)
			if err == nil {
				_, err = p.Wait()
			}
			return err == nil
		})
	}
	wait("cut", func() bool {
		propose()
		return hosts[1].Figures()["cuts"] > 1 && hosts[2].Figures()["cuts"] > 1
	})
	slow := &slowRestore{began: make(chan struct{}), goOn: make(chan struct{})}
	logs[3] = start(open(3), 3, slow)
	select {
	case <-slow.began:
	case <-time.After(20 * time.Second):
		t.Fatal("no restore began")
	}
	for range 256 { // 8 MiB, eight times what may be unapplied
		propose()
	}
	if hosts[3].Figures()["spared_messages"] == 0 {
		t.Error("nothing was spared: the test shows nothing")
	}
	// Long enough for a follower's word to reach its leader.
	end := time.Now().Add(4 * hosts[3].config.Tick * time.Duration(hosts[3].config.ElectionTicks))
	for time.Now().Before(end) {
		propose()
	}
	close(slow.goOn)
	wait("caught up", func() bool { propose(); return logs[3].Applied()+2 >= logs[at].Applied() })
}
