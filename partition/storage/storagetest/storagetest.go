// Package storagetest is the conformance suite of storage engines. An engine's
// own tests run it:
//
//	storagetest.Run(t, func(t *testing.T, dir string) storage.Engine { … })
package storagetest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/parleymq/parley/partition/storage"
)

// Opener opens the engine in dir. What an engine stored in dir before it was
// closed must be there.
type Opener func(t *testing.T, dir string) storage.Engine

// Run runs the suite. The test that calls it must not be parallel.
func Run(t *testing.T, open Opener) {
	t.Run("no allocation per record", func(t *testing.T) { noAllocationPerRecord(t, open) })
	for _, test := range []struct {
		name string
		run  func(*testing.T, Opener)
	}{
		{"append and read", appendAndRead},
		{"chunks must adjoin", mustAdjoin},
		{"limits", limits},
		{"index", index},
		{"index and chunks together", indexTogether},
		{"trim", trim},
		{"reset", reset},
		{"drop", drop},
		{"reopen at the mark", reopenAtMark},
		{"other chunks above the mark", otherChunksAbove},
		{"holes", holes},
		{"mend above the end", mendAbove},
		{"mend over what is there", mendOver},
		{"mend at random", mendAtRandom},
		{"big chunks", bigChunks},
		{"one large call", oneLargeCall},
		{"many logs", manyLogs},
		{"in use", inUse},
		{"closed", closed},
		{"readers beside a writer", readersBesideWriter},
		{"random operations", randomOperations},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, open)
		})
	}
}

var logA = storage.LogID{Topic: 1, Partition: 2, Replica: 3}

// MakeChunk makes a chunk whose content follows from its offsets and salt.
func MakeChunk(base, last int64, bytes int, salt uint64) storage.Chunk {
	c := storage.Chunk{
		Base: base, Last: last, Index: uint64(base)*3 + salt, LogTime: 1_700_000_000_000 + base,
		Meta: binary.BigEndian.AppendUint64(nil, salt), Data: make([]byte, bytes),
	}
	r := rand.NewPCG(uint64(base), salt)
	for i := 0; i+8 <= len(c.Data); i += 8 {
		binary.LittleEndian.PutUint64(c.Data[i:], r.Uint64())
	}
	return c
}

// Same tells whether two chunks are equal in everything.
func Same(a, b storage.Chunk) bool {
	return a.Base == b.Base && a.Last == b.Last && a.Index == b.Index && a.LogTime == b.LogTime &&
		bytes.Equal(a.Meta, b.Meta) && bytes.Equal(a.Data, b.Data)
}

// Collect reads everything from offset on; the chunks are copies.
func Collect(s storage.Store, offset int64) (out []storage.Chunk, err error) {
	err = s.Read(offset, func(c storage.Chunk) bool {
		c.Meta, c.Data = bytes.Clone(c.Meta), bytes.Clone(c.Data)
		out = append(out, c)
		return true
	})
	return out, err
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func engine(t *testing.T, open Opener, dir string) storage.Engine {
	t.Helper()
	e := open(t, dir)
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func openLog(t *testing.T, e storage.Engine, id storage.LogID, start, next int64) storage.Store {
	t.Helper()
	s, err := e.Open(id, storage.Mark{Start: start, Next: next})
	check(t, err)
	return s
}

// put appends n chunks of per records each and returns them.
func put(t *testing.T, s storage.Store, n, per, bytes int, salt uint64) (out []storage.Chunk) {
	t.Helper()
	for range n {
		c := MakeChunk(s.Next(), s.Next()+int64(per)-1, bytes, salt)
		check(t, s.Append([]storage.Chunk{c}, nil))
		out = append(out, c)
	}
	return out
}

// want checks that reading from offset gives exactly these chunks.
func want(t *testing.T, s storage.Store, offset int64, chunks []storage.Chunk) {
	t.Helper()
	got, err := Collect(s, offset)
	check(t, err)
	if len(got) != len(chunks) {
		t.Fatalf("read from %d: %d chunks, want %d", offset, len(got), len(chunks))
	}
	for i := range got {
		if !Same(got[i], chunks[i]) {
			t.Fatalf("read from %d: chunk %d is %d..%d (index %d), want %d..%d (index %d), or its content differs",
				offset, i, got[i].Base, got[i].Last, got[i].Index, chunks[i].Base, chunks[i].Last, chunks[i].Index)
		}
	}
}

func sizeOf(chunks []storage.Chunk) (n int64) {
	for _, c := range chunks {
		n += int64(len(c.Meta) + len(c.Data))
	}
	return n
}
