package badger

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

const benchChunk, benchRecords = 64 << 10, 512 // 512 records of 128 bytes

func benchStore(b *testing.B) (*Engine, storage.Store) {
	b.Helper()
	e, err := openEngine(storage.Options{Dir: b.TempDir()}, defaultSizes, hooks{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	s, err := e.Open(storage.LogID{Topic: 1, Partition: 1, Replica: 1}, storage.Mark{})
	if err != nil {
		b.Fatal(err)
	}
	return e, s
}

// BenchmarkAppend appends one chunk of 64 KiB (512 records) an operation.
// "checkpointed" syncs every 64 MiB, as the checkpointer does.
func BenchmarkAppend(b *testing.B) {
	for _, every := range []int{0, 64 << 20} {
		name := "unsynced"
		if every > 0 {
			name = "checkpointed"
		}
		b.Run(name, func(b *testing.B) {
			e, s := benchStore(b)
			c := storagetest.MakeChunk(0, benchRecords-1, benchChunk, 1)
			b.SetBytes(benchChunk)
			b.ReportAllocs()
			written, trimmed := 0, int64(0)
			for b.Loop() {
				if err := s.Append([]storage.Chunk{c}, nil); err != nil {
					b.Fatal(err)
				}
				c.Base, c.Last = c.Base+benchRecords, c.Last+benchRecords
				if written += benchChunk; every > 0 && written >= every {
					written = 0
					if err := e.Sync(); err != nil {
						b.Fatal(err)
					}
				}
				if s.Bytes() > 2<<30 { // a benchmark must not fill the disk
					b.StopTimer()
					trimmed = s.Next() - (512<<20)/benchChunk*benchRecords
					if err := errors.Join(s.Trim(trimmed, nil), e.Sync(), e.Collect(nil)); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
		})
	}
}

// BenchmarkAppendSmall appends a chunk of one record of 128 bytes.
func BenchmarkAppendSmall(b *testing.B) {
	_, s := benchStore(b)
	c := storagetest.MakeChunk(0, 0, 200, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Append([]storage.Chunk{c}, nil); err != nil {
			b.Fatal(err)
		}
		c.Base, c.Last = c.Base+1, c.Last+1
	}
}

// BenchmarkRead reads chunks of 64 KiB one after the other, 64 a call.
func BenchmarkRead(b *testing.B) {
	_, s := benchStore(b)
	const chunks = 4096
	for i := range int64(chunks) {
		c := storagetest.MakeChunk(i*benchRecords, (i+1)*benchRecords-1, benchChunk, 1)
		if err := s.Append([]storage.Chunk{c}, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(benchChunk)
	b.ReportAllocs()
	var at, n int64
	for b.Loop() {
		if n%64 != 0 {
			n++
			continue // read by an earlier call
		}
		got := 0
		if err := s.Read(at, func(c storage.Chunk) bool {
			at, got = c.Last+1, got+1
			return got < 64
		}); err != nil {
			b.Fatal(err)
		}
		if n++; at == s.Next() {
			at = 0
		}
	}
}

const bigLogDir, bigLogGiB = "PARLEY_BIG_LOG_CHILD", "PARLEY_BIG_LOG_GIB"

// bigLogChild fills a log, makes it durable and waits to be killed.
func bigLogChild(dir string) error {
	e, err := openEngine(storage.Options{Dir: dir}, defaultSizes, hooks{})
	if err != nil {
		return err
	}
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{})
	if err != nil {
		return err
	}
	c := storagetest.MakeChunk(0, benchRecords-1, benchChunk, 1)
	for i := range envInt(bigLogGiB, 1) << 30 / benchChunk {
		if err := s.Append([]storage.Chunk{c}, nil); err != nil {
			return err
		}
		c.Base, c.Last = c.Base+benchRecords, c.Last+benchRecords
		if i%1024 == 0 {
			if err := e.Sync(); err != nil {
				return err
			}
		}
	}
	if err := e.Sync(); err != nil {
		return err
	}
	fmt.Println(s.Next())
	select {}
}

// TestOpenOfABigLog shows how long it takes until a log can be used after the
// process was killed, and how much memory the engine takes then:
//
//	PARLEY_BIG_LOG_GIB=10 go test -run BigLog -v ./partition/storage/badger
func TestOpenOfABigLog(t *testing.T) {
	gib := envInt(bigLogGiB, 0)
	if gib == 0 {
		t.Skipf("set %s", bigLogGiB)
	}
	dir := filepath.Join(t.TempDir(), "store")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), bigLogDir+"="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	check(t, err)
	began := time.Now()
	check(t, child.Start())
	var next int64
	_, err = fmt.Fscan(bufio.NewReader(out), &next)
	took := time.Since(began)
	check(t, errors.Join(err, child.Process.Kill()))
	_ = child.Wait() // killed

	before := residentMiB()
	began = time.Now()
	e, err := openEngine(storage.Options{Dir: dir}, defaultSizes, hooks{})
	check(t, err)
	defer e.Close()
	engine := time.Since(began)
	s, err := e.Open(storage.LogID{Topic: 1}, storage.Mark{Next: next})
	check(t, err)
	all := time.Since(began)
	runtime.GC()
	t.Logf("%d GiB in chunks of 64 KiB, written in %v; open after SIGKILL: engine %v, with its log %v; resident memory %d MiB, %d before",
		gib, took.Round(time.Millisecond), engine.Round(time.Millisecond), all.Round(time.Millisecond), residentMiB(), before)
	if s.Bytes() != int64(gib)<<30+next/benchRecords*8 {
		t.Errorf("%d bytes", s.Bytes())
	}
}

func residentMiB() int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kib int
	_, _ = fmt.Sscan(rest, &kib)
	return kib >> 10
}
