package epoch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

// sampleChain is n epochs, of which only the last has its value.
func sampleChain(t testing.TB, n int) []paxos.Entry {
	t.Helper()
	c := genesis()
	var out []paxos.Entry
	for range n {
		next := c.Clone()
		next.Epoch++
		next.Previous = c.Hash()
		if err := form(next); err != nil {
			t.Fatal(err)
		}
		next.Change = fmt.Sprint(next.Epoch)
		c = next
		h := headerOf(c, c.Hash())
		out = append(out, paxos.Entry{Epoch: c.Epoch, Hash: paxos.Hash(h.Hash), Previous: paxos.Hash(h.Previous), Summary: h.encode()})
	}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	out[n-1].Value, out[n-1].Summary = b, nil
	return out
}

func sampleMessages(t testing.TB) []paxos.Message {
	r := rand.New(rand.NewPCG(1, 1))
	hash := func() (h paxos.Hash) {
		for i := range h {
			h[i] = byte(r.Uint32())
		}
		return h
	}
	ballot := paxos.Ballot{Round: 1 << 40, Incarnation: "i1", Boot: 300}
	voted := paxos.Accepted{Ballot: ballot, Value: []byte("value")}
	base := paxos.Message{From: paxos.Member{ID: 1, Incarnation: "i1"}, To: paxos.Member{ID: 2}, Cluster: "c", Epoch: 1, Previous: hash()}
	var out []paxos.Message
	add := func(k paxos.Kind, set func(m *paxos.Message)) {
		m := base
		m.Kind = k
		set(&m)
		out = append(out, m)
	}
	add(paxos.Prepare, func(m *paxos.Message) { m.Ballot = ballot })
	add(paxos.Promise, func(m *paxos.Message) { m.Ballot = ballot })
	add(paxos.Promise, func(m *paxos.Message) { m.Ballot, m.Accepted = ballot, voted })
	add(paxos.Accept, func(m *paxos.Message) { m.Ballot, m.Value = ballot, []byte("value") })
	add(paxos.Accepts, func(m *paxos.Message) { m.Ballot = ballot })
	add(paxos.Nack, func(m *paxos.Message) {
		m.Ballot, m.Promised, m.Reason, m.Boot, m.Round = ballot, ballot, paxos.Preempted, 3, 4
	})
	add(paxos.Decided, func(m *paxos.Message) { m.Entries = sampleChain(t, 5); m.Previous = m.Entries[0].Previous })
	add(paxos.LearnAck, func(m *paxos.Message) { m.Hash = hash() })
	add(paxos.Read, func(m *paxos.Message) { m.Boot, m.Round = 3, 4 })
	add(paxos.ReadState, func(m *paxos.Message) { m.Boot, m.Round, m.Promised, m.Accepted = 3, 4, ballot, voted })
	add(paxos.Fetch, func(m *paxos.Message) {})
	return out
}

func TestMessages(t *testing.T) {
	t.Parallel()
	kinds := map[paxos.Kind]bool{}
	for _, m := range sampleMessages(t) {
		kinds[m.Kind] = true
		b := encodeMessage(&m)
		got, err := decodeMessage(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%v:\n%+v\n%+v, %v", m.Kind, got, m, err)
		}
		for n := range b {
			if _, err := decodeMessage(b[:n]); err == nil {
				t.Errorf("%v cut to %d of %d bytes is read", m.Kind, n, len(b))
			}
		}
		if _, err := decodeMessage(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%v with a byte too many is read", m.Kind)
		}
		b[0]++
		if _, err := decodeMessage(b); err == nil || !strings.Contains(err.Error(), "version 2, this program knows 1") {
			t.Errorf("another version: %v", err)
		}
	}
	if len(kinds) != int(paxos.Fetch) {
		t.Errorf("%d kinds of messages", len(kinds))
	}
	if _, err := decodeMessage(make([]byte, MaxMessage+1)); err == nil {
		t.Error("a message above the limit is read")
	}
	// A header that is another epoch's.
	m := sampleMessages(t)[6]
	m.Entries[1].Summary = m.Entries[0].Summary
	if _, err := decodeMessage(encodeMessage(&m)); err == nil {
		t.Error("the header of another epoch is read")
	}
}

// TestServeFits: what catches up comes in messages below the limit, whatever the texts.
func TestServeFits(t *testing.T) {
	t.Parallel()
	h := history{values: map[uint64][]byte{}}
	long := strings.Repeat("x", config.MaxText)
	var previous paxos.Hash
	for n := range uint64(2*KeepEvery + KeepValues) {
		e := paxos.Entry{Epoch: n, Hash: paxos.Hash{byte(n), byte(n >> 8), 1}, Previous: previous, Value: make([]byte, 64<<10)}
		if n%KeepEvery == 0 {
			e.Value = make([]byte, paxos.MaxValue)
		}
		if err := h.add(&e, Header{Epoch: n, Hash: config.Hash(e.Hash), Previous: config.Hash(previous), By: long, Change: long}); err != nil {
			t.Fatal(err)
		}
		previous = e.Hash
		if h.surplus() >= KeepValues {
			h.forget()
		}
	}
	steps := 0
	for n := uint64(1); n <= h.newest(); steps++ {
		entries := h.from(n)
		if len(entries) == 0 || entries[0].Epoch != n || entries[len(entries)-1].Value == nil {
			t.Fatalf("%d entries from %d", len(entries), n)
		}
		m := paxos.Message{Kind: paxos.Decided, Entries: entries}
		if b := encodeMessage(&m); len(b) > MaxMessage {
			t.Errorf("%d bytes from epoch %d", len(b), n)
		}
		n = entries[len(entries)-1].Epoch + 1
	}
	if steps > 20 {
		t.Errorf("%d steps", steps)
	}
}

func sampleRecords(t testing.TB) []paxos.Record {
	b := paxos.Ballot{Round: 7, Incarnation: "i1", Boot: 2}
	return []paxos.Record{
		{Kind: paxos.RecordPromised, Epoch: 6, Ballot: b},
		{Kind: paxos.RecordAccepted, Epoch: 6, Ballot: b, Value: []byte("v")},
		{Kind: paxos.RecordDecided, Epoch: 5, Entries: sampleChain(t, 5)},
	}
}

func TestRecords(t *testing.T) {
	t.Parallel()
	records := sampleRecords(t)
	got, err := decodeRecords(encodeRecords(records))
	if err != nil || !reflect.DeepEqual(got, records) {
		t.Errorf("%+v, %v", got, err)
	}
	b := paxos.Ballot{Round: 1, Incarnation: "i1", Boot: 1}
	higher := b
	higher.Round++
	promised := func(e uint64, b paxos.Ballot) paxos.Record {
		return paxos.Record{Kind: paxos.RecordPromised, Epoch: e, Ballot: b}
	}
	accepted := func(e uint64, b paxos.Ballot) paxos.Record {
		return paxos.Record{Kind: paxos.RecordAccepted, Epoch: e, Ballot: b, Value: []byte("v")}
	}
	decided := paxos.Record{Kind: paxos.RecordDecided, Epoch: 5}
	for _, c := range []struct{ in, want []paxos.Record }{
		{[]paxos.Record{promised(5, b), accepted(5, b), decided}, []paxos.Record{decided}},
		{[]paxos.Record{promised(5, b), decided, promised(6, b)}, []paxos.Record{decided, promised(6, b)}},
		{[]paxos.Record{promised(6, b), accepted(6, b)}, []paxos.Record{accepted(6, b)}},
		{[]paxos.Record{promised(6, b), promised(6, higher)}, []paxos.Record{promised(6, higher)}},
		// The promise of a higher ballot doesn't undo the vote before it.
		{[]paxos.Record{accepted(6, b), promised(6, higher)}, []paxos.Record{accepted(6, b), promised(6, higher)}},
	} {
		in := fmt.Sprint(c.in)
		if got := compactRecords(c.in); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", in, got, c.want)
		}
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range sampleMessages(f) {
		f.Add(encodeMessage(&m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		again, err := decodeMessage(encodeMessage(&m))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v, then %+v, %v", m, again, err)
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(encodeRecords(sampleRecords(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := decodeRecords(b)
		if err != nil {
			return
		}
		again, err := decodeRecords(encodeRecords(records))
		if err != nil || !reflect.DeepEqual(again, records) {
			t.Fatalf("%+v, then %+v, %v", records, again, err)
		}
	})
}

// FuzzDeliver: whatever comes in, a running store takes it.
func FuzzDeliver(f *testing.F) {
	for _, m := range sampleMessages(f) {
		f.Add(encodeMessage(&m))
	}
	dir := newMemoryDirectory()
	c, err := Open(Options{Self: self1, Genesis: genesis, dir: dir})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	if _, err := c.Propose(f.Context(), form); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMessage(b); err == nil {
			if err := c.Deliver(m.From.ID, m.From.Incarnation, b); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Answer(t.Context(), "x", SubjectHello, b); err == nil && len(b) < 10 {
			t.Fatalf("%q is answered", b)
		}
		if c.Current().Epoch == 0 {
			t.Fatal("epochs are gone")
		}
	})
}
