package raft

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/plugin/tan"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication"
)

// discard is a state machine that keeps nothing.
type discard struct{ replication.StateMachine }

func (discard) Open(<-chan struct{}) (uint64, error) { return 0, nil }
func (discard) Apply(e []replication.Entry) error    { return nil }
func (discard) Sync() error                          { return nil }
func (discard) PrepareSnapshot() (any, error)        { return nil, nil }
func (discard) Close() error                         { return nil }
func (discard) SaveSnapshot(any, io.Writer, <-chan struct{}) error {
	return nil
}

func waitLead(t testing.TB, l replication.Log) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !l.Leadership().Self {
		if time.Now().After(deadline) {
			t.Fatal("no leadership")
		}
		time.Sleep(time.Millisecond)
	}
}

func BenchmarkPropose(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for _, inflight := range []int{1, 4} {
			b.Run(fmt.Sprintf("size=%dKiB/inflight=%d", size>>10, inflight), func(b *testing.B) {
				benchmarkPropose(b, size, inflight)
			})
		}
	}
}

// BenchmarkFloor is what the disk gives: one append and one fdatasync after the other. An
// absolute figure means little on a shared machine, its ratio to this one does.
func BenchmarkFloor(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 256 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%dKiB", size>>10), func(b *testing.B) {
			f, err := os.CreateTemp(b.TempDir(), "floor")
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			data := make([]byte, size)
			rand.Read(data)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := f.Write(data); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchmarkTune applies PARLEY_BENCH_LOGDB: "tan", or a log store's write buffer in MiB.
func benchmarkTune(c *config.NodeHostConfig) {
	switch v := os.Getenv("PARLEY_BENCH_LOGDB"); v {
	case "":
	case "tan":
		c.Expert.LogDBFactory = tan.Factory
	default:
		if mib, err := strconv.Atoi(v); err == nil {
			c.Expert.LogDB.KVWriteBufferSize = uint64(mib) << 20
		}
	}
}

func benchmarkPropose(b *testing.B, size, inflight int) {
	dir := b.TempDir()
	if d := os.Getenv("PARLEY_BENCH_DIR"); d != "" {
		var err error
		if dir, err = os.MkdirTemp(d, "raft"); err != nil {
			b.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	h, err := NewHost(Config{Dir: dir, Listen: "127.0.0.1:0", Logger: zerolog.Nop(), tune: benchmarkTune})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	l, err := h.Start(context.Background(), replication.Replica{Shard: 1, Replica: 1, Initial: map[uint64]string{1: h.Address()}}, discard{})
	if err != nil {
		b.Fatal(err)
	}
	waitLead(b, l)
	data := make([]byte, size)
	rand.Read(data)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	pending := make([]replication.Pending, 0, inflight)
	var worst time.Duration
	busy := 0
	last := time.Now()
	for i := 0; i < b.N; i++ {
		if len(pending) == inflight {
			if _, err := pending[0].Wait(); err != nil {
				b.Fatal(err)
			}
			pending = append(pending[:0], pending[1:]...)
			worst = max(worst, time.Since(last))
			last = time.Now()
		}
		p, err := l.Propose(data, 30*time.Second)
		for errors.Is(err, replication.ErrBusy) { // the log store stalls
			busy++
			time.Sleep(100 * time.Microsecond)
			p, err = l.Propose(data, 30*time.Second)
		}
		if err != nil {
			b.Fatal(err)
		}
		pending = append(pending, p)
	}
	for _, p := range pending {
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(worst.Milliseconds()), "worst-ms")
	b.ReportMetric(float64(busy)/10, "busy-ms")
}
