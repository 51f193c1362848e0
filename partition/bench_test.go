package partition

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/replication"
)

// nobody is a receiver that looks at nothing.
type nobody struct{ left chan struct{} }

func (n nobody) Settle([]byte, Outcome) { n.left <- struct{}{} }

// One operation is one record of a plain client, from Append to its outcome.
func BenchmarkAppend(b *testing.B) {
	r := newRig(b, 1)
	r.open()
	n := nobody{make(chan struct{}, 1024)}
	pub := Publication{
		Record: record.Record{Key: []byte("key"), Value: make([]byte, 128)}, Expect: -1, Reply: []byte("_INBOX.abcdefgh.1"), Receiver: n,
	}
	b.ReportAllocs()
	b.SetBytes(128)
	open := 0
	for b.Loop() {
		if err := r.p.Append(context.Background(), &pub); err != nil {
			b.Fatal(err)
		}
		if open++; open == cap(n.left) {
			r.p.Flush()
			for ; open > 0; open-- {
				<-n.left
			}
		}
	}
	r.p.Flush()
	for ; open > 0; open-- {
		<-n.left
	}
}

// One operation is one entry of a batch with a thousand records, applied and stored.
func BenchmarkApplyThousandRecords(b *testing.B) {
	dir := b.TempDir()
	m, _ := openMachine(b, memoryEngine(b, dir), dir)
	values := make([]string, 1000)
	for i := range values {
		values[i] = string(make([]byte, 128))
	}
	m.do(b, 1, command(commandHeader{kind: kindStart, term: 1, logTime: 1}))
	cmd := command(commandHeader{kind: kindAppend, term: 1, logTime: 1}, itemOf(b, -1, record.NoProducer, nil, values...))
	entries := make([]replication.Entry, 1)
	index := uint64(1)
	b.ReportAllocs()
	b.SetBytes(int64(len(cmd)))
	for b.Loop() {
		index++
		binary.BigEndian.PutUint64(cmd[12:], index-1) // the counter
		entries[0] = replication.Entry{Index: index, Data: cmd}
		if err := m.Apply(entries); err != nil {
			b.Fatal(err)
		}
		if entries[0].Result.Value != resultOK {
			b.Fatal(entries[0].Result)
		}
		if index%256 == 0 { // or the memory engine would hold all of it
			if err := m.store.Trim(m.state.next, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// One operation is one fetch of up to 1 MiB: about 6,000 records.
func BenchmarkFetch(b *testing.B) {
	for _, from := range []string{"tail", "store"} {
		b.Run(from, func(b *testing.B) {
			r := newRig(b, 1)
			r.open()
			n := nobody{make(chan struct{}, 20_000)}
			pub := Publication{Record: record.Record{Value: make([]byte, 128)}, Expect: -1, Receiver: n}
			for range cap(n.left) {
				if err := r.p.Append(context.Background(), &pub); err != nil {
					b.Fatal(err)
				}
			}
			r.p.Flush()
			for range cap(n.left) {
				<-n.left
			}
			if from == "store" {
				r.p.m.visible.Lock()
				r.p.m.tail.clear()
				r.p.m.visible.Unlock()
			}
			buf := make([]byte, 0, 2<<20)
			b.ReportAllocs()
			b.SetBytes(1 << 20)
			for b.Loop() {
				res, err := r.p.Fetch(context.Background(), FetchRequest{MaxBytes: 1 << 20}, buf)
				if err != nil || len(res.Batches) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

// One operation is one record of 128 bytes, pulled 512 at a time by four members and acked, on the log of one replica
// in memory; how fast they were appended is not counted.
func BenchmarkPullAndAck(b *testing.B) {
	for _, mode := range []group.Mode{group.Shared, group.KeyOrdered} {
		b.Run(mode.String(), func(b *testing.B) {
			r := newRig(b, 1)
			r.open()
			n := nobody{make(chan struct{}, 1024)}
			pub := Publication{Record: record.Record{Value: make([]byte, 128)}, Expect: -1, Receiver: n}
			for i := 0; i < b.N; {
				k := min(cap(n.left), b.N-i)
				for range k {
					pub.Record.Key = fmt.Append(pub.Record.Key[:0], "key-", i*7919%10_000)
					if err := r.p.Append(context.Background(), &pub); err != nil {
						b.Fatal(err)
					}
					i++
				}
				r.p.Flush()
				for range k {
					<-n.left
				}
			}
			b.ReportAllocs()
			b.SetBytes(128)
			b.ResetTimer()
			drain(b, r.p, mode, 4, int64(b.N))
		})
	}
}
