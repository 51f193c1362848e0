package raft

import (
	"context"
	"testing"
	"time"

	"github.com/parleymq/parley/replication"
)

func TestQuick(t *testing.T) {
	dir := t.TempDir()
	for i := 0; i < 3; i++ {
		start := time.Now()
		h, err := NewHost(Config{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		t.Log("host", time.Since(start))
		l, err := h.Start(context.Background(), replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address()}}, discard{})
		if err != nil {
			t.Fatal(err)
		}
		t.Log("start", time.Since(start))
		waitLead(t, l)
		t.Log("lead", time.Since(start))
		p, err := l.Propose([]byte("x"), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(p.Wait())
		if err := l.Barrier(context.Background()); err != nil {
			t.Fatal(err)
		}
		t.Log(l.Members(context.Background()))
		t.Log("all", time.Since(start))
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		t.Log("closed", time.Since(start))
	}
}
