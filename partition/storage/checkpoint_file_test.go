package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/parleymq/parley/replication/format"
)

func noLogs() (bool, error) { return false, nil }

func openTestFile(t *testing.T, dir string) *checkpointFile {
	t.Helper()
	f, _, err := openCheckpointFile(dir, noLogs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.close() })
	return f
}

func testCheckpoint(log, next int, state []byte) Checkpoint {
	return Checkpoint{Log: testID(log), Index: uint64(10 * next), Mark: Mark{Start: int64(next / 2), Next: int64(next)}, State: state}
}

// rounds writes rounds of checkpoints and returns the file's bytes and where each round ends.
func rounds(t *testing.T, n int) (data []byte, ends []int64) {
	t.Helper()
	dir := t.TempDir()
	f := openTestFile(t, dir)
	ends = append(ends, f.size)
	for i := 1; i <= n; i++ {
		// A state may look like anything, a commit marker included.
		state := append(bytes.Clone(commitMagic[:]), fmt.Sprintf("state %d", i)...)
		if err := f.write([]Checkpoint{testCheckpoint(1, i, state), testCheckpoint(2, i, nil)}, nil); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, f.size)
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	return data, ends
}

// reopen opens a file with these bytes and returns the next offset of log 1.
func reopen(t *testing.T, data []byte) (next int64, cut int64, err error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, checkpointFileName)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, cut, err := openCheckpointFile(dir, noLogs)
	if err != nil {
		if after, readErr := os.ReadFile(path); readErr != nil || !bytes.Equal(after, data) {
			t.Fatalf("a refused file was changed (%v)", readErr)
		}
		return 0, 0, err
	}
	defer f.close()
	cp, ok, err := f.load(testID(1))
	if err != nil {
		t.Fatal(err)
	}
	if ok && string(cp.State[8:]) != fmt.Sprintf("state %d", cp.Mark.Next) {
		t.Fatalf("state %q at %d", cp.State, cp.Mark.Next)
	}
	if two, _, err := f.load(testID(2)); err != nil || two.Mark != cp.Mark {
		t.Fatalf("half of a round was taken: %v, %v (%v)", cp.Mark, two.Mark, err)
	}
	// It goes on from there.
	if err := f.write([]Checkpoint{testCheckpoint(3, 99, nil)}, nil); err != nil {
		t.Fatal(err)
	}
	return cp.Mark.Next, cut, nil
}

func TestTornRoundIsCutOff(t *testing.T) {
	t.Parallel()
	data, ends := rounds(t, 3)
	for size := ends[2]; size < ends[3]; size++ {
		next, cut, err := reopen(t, data[:size])
		if err != nil || next != 2 || cut != size-ends[2] {
			t.Fatalf("cut to %d of %d bytes: round %d, %d bytes cut, %v", size, ends[3], next, cut, err)
		}
	}
	// Pages of the last round may have been written in any order.
	for at := ends[2]; at < ends[3]; at++ {
		torn := bytes.Clone(data)
		clear(torn[at:min(at+16, ends[3])])
		if bytes.Equal(torn, data) {
			continue
		}
		if next, _, err := reopen(t, torn); err != nil || next != 2 {
			t.Fatalf("zeros at byte %d of the last round: round %d, %v", at, next, err)
		}
	}
	if next, cut, err := reopen(t, append(bytes.Clone(data), make([]byte, 5000)...)); err != nil || next != 3 || cut != 5000 {
		t.Fatalf("zeros behind the last round: round %d, %d bytes cut, %v", next, cut, err)
	}
}

func TestDamageBelowACommitIsRefused(t *testing.T) {
	t.Parallel()
	data, ends := rounds(t, 4)
	for at := range ends[3] {
		for _, bit := range []byte{0x01, 0x80} {
			bad := bytes.Clone(data)
			bad[at] ^= bit
			next, _, err := reopen(t, bad)
			if !errors.Is(err, ErrCheckpointDamaged) && !errors.Is(err, ErrFormat) {
				t.Fatalf("byte %d flipped by %#x: round %d, %v", at, bit, next, err)
			}
		}
	}
	for size := range ends[0] {
		if next, _, err := reopen(t, data[:size]); err == nil {
			t.Fatalf("cut to %d bytes, below the end of its creation: round %d", size, next)
		}
	}
}

func TestForeignCheckpointFile(t *testing.T) {
	t.Parallel()
	data, _ := rounds(t, 1)
	newer := bytes.Clone(data)
	newer[8]++
	binary.LittleEndian.PutUint32(newer[20:], crc32.Checksum(newer[:20], castagnoli))
	if _, _, err := reopen(t, newer); !errors.Is(err, format.ErrNewer) || errors.Is(err, ErrCheckpointDamaged) {
		t.Errorf("a newer version: %v", err)
	}
	if _, _, err := reopen(t, []byte("something else altogether, longer than the header")); !errors.Is(err, ErrCheckpointDamaged) {
		t.Errorf("no checkpoint file at all: %v", err)
	}
}

func TestFramesOfAnotherFileAreNotTaken(t *testing.T) {
	t.Parallel()
	data, ends := rounds(t, 2)
	other, otherEnds := rounds(t, 3)
	// The tail of an older file, left in reused blocks behind a torn round.
	mixed := append(bytes.Clone(data[:ends[2]]), other[otherEnds[2]:otherEnds[3]]...)
	if next, cut, err := reopen(t, mixed); err != nil || next != 2 || cut != otherEnds[3]-otherEnds[2] {
		t.Errorf("round %d, %d bytes cut, %v", next, cut, err)
	}
}

func TestCompactionKeepsTheNewest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := openTestFile(t, dir)
	f.floor = 10_000
	if err := os.WriteFile(f.path+".tmp", []byte("left by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	model := make(map[LogID]Checkpoint)
	rewrites := 0
	for i := 1; i <= 400; i++ {
		var cps []Checkpoint
		var gone []LogID
		for _, log := range r.Perm(20)[:1+r.IntN(4)] {
			if r.IntN(6) == 0 {
				gone = append(gone, testID(log))
				delete(model, testID(log))
				continue
			}
			cp := testCheckpoint(log, i, bytes.Repeat([]byte{byte(i)}, r.IntN(300)))
			cps = append(cps, cp)
			model[cp.Log] = cp
		}
		size := f.size
		if err := f.write(cps, gone); err != nil {
			t.Fatal(err)
		}
		if f.size < size {
			rewrites++
		}
		if most := 2*f.live + f.floor + 4096; f.size > most {
			t.Fatalf("the file has %d bytes, %d of them live", f.size, f.live)
		}
		if i%40 == 0 {
			if err := f.close(); err != nil {
				t.Fatal(err)
			}
			f = openTestFile(t, dir)
			f.floor = 10_000
		}
		for log := range 20 {
			id := testID(log)
			got, ok, err := f.load(id)
			want, there := model[id]
			if err != nil || ok != there || got.Index != want.Index || got.Mark != want.Mark || !bytes.Equal(got.State, want.State) {
				t.Fatalf("seed %d, round %d, log %s: %v %v %v, want %v %v", seed, i, id, ok, got.Mark, err, there, want.Mark)
			}
		}
	}
	if rewrites == 0 {
		t.Error("the file was never rewritten")
	}
}

func FuzzCheckpointFile(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(bytes.Clone(checkpointMagic[:]), make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &checkpointFile{where: make(map[LogID]frameRef)}
		if err := c.replay(data); err == nil && c.size > int64(len(data)) {
			t.Fatalf("%d bytes taken of %d", c.size, len(data))
		}
	})
}

// A frame of a kind that isn't known, at the very end, is whole by its checksum: it is no torn round that might be cut off.
func TestFramesOfANewerProgram(t *testing.T) {
	t.Parallel()
	data, ends := rounds(t, 2)
	f := &checkpointFile{}
	copy(f.salt[:], data[12:20])
	f.appendFrame(frameCommit+1, func(b []byte) []byte { return append(b, "what will be"...) })
	next, _, err := reopen(t, append(bytes.Clone(data[:ends[2]]), f.buf...))
	if !errors.Is(err, format.ErrNewer) || errors.Is(err, ErrCheckpointDamaged) {
		t.Errorf("round %d, %v; want ErrNewer", next, err)
	}
}
