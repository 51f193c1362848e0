package raft

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"testing"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/rs/zerolog"
)

func frame(payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

func TestReadFrame(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	var buf []byte
	r := bytes.NewReader(append(append(frame([]byte("x")), frame(big)...), frame([]byte("y"))...))
	for _, want := range [][]byte{[]byte("x"), big, []byte("y")} {
		var err error
		if buf, err = readFrame(r, buf); err != nil || !bytes.Equal(buf, want) {
			t.Fatalf("read %d bytes, %v, want %d bytes", len(buf), err, len(want))
		}
	}
	if _, err := readFrame(r, buf); err != io.EOF {
		t.Fatalf("at the end: %v, want EOF", err)
	}
	wrong := frame([]byte("x"))
	wrong[8]++
	for name, b := range map[string][]byte{
		"checksum":  wrong,
		"empty":     make([]byte, headerSize),
		"giant":     {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1},
		"truncated": frame(big)[:1000],
		"header":    {0, 0, 0},
	} {
		if got, err := readFrame(bytes.NewReader(b), nil); err == nil || cap(got) > 1<<20 {
			t.Errorf("%s: %v, %d bytes taken", name, err, cap(got))
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frame([]byte("x")))
	f.Add(append(frame(bytes.Repeat([]byte("x"), 300_000)), 1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readFrame(bytes.NewReader(b), nil)
		if err != nil {
			return
		}
		if !bytes.Equal(frame(got), b[:headerSize+len(got)]) {
			t.Fatalf("%x was read as %x", b, got)
		}
	})
}

func BenchmarkLink(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	c, err := Config{Dir: b.TempDir(), Logger: zerolog.Nop()}.withDefaults()
	if err != nil {
		b.Fatal(err)
	}
	t := newTransport(listener, &c, func(string, error) {})
	got := make(chan struct{}, 1024)
	t.Create(nilConfig, func(raftpb.MessageBatch) { got <- struct{}{} }, func(raftpb.Chunk) bool { return true })
	if err := t.Start(); err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	conn, err := t.GetConnection(b.Context(), listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	batch := raftpb.MessageBatch{DeploymentId: 1, Requests: []raftpb.Message{{
		Type: raftpb.Replicate, To: 2, From: 1, ShardID: 1, Term: 1,
		Entries: []raftpb.Entry{{Index: 1, Term: 1, Cmd: make([]byte, 64<<10)}},
	}}}
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if err := conn.SendMessageBatch(batch); err != nil {
			b.Fatal(err)
		}
		<-got
	}
}
