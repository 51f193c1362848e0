package paxos_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/parleymq/parley/replication/paxos"
)

func sampleMessage() paxos.Message {
	b := paxos.Ballot{Round: 3, Incarnation: "i1", Boot: 300}
	return paxos.Message{Kind: paxos.Decided, From: member(1), To: paxos.Member{ID: 900}, Cluster: "c", Epoch: 7, Previous: paxos.Hash{1}, Ballot: b, Promised: b,
		Accepted: paxos.Accepted{Ballot: b, Value: []byte("v")}, Value: []byte("w"), Hash: paxos.Hash{2}, Boot: 4, Round: 5, Reason: paxos.Wiped,
		Entries: []paxos.Entry{{Epoch: 7, Hash: paxos.Hash{3}, Previous: paxos.Hash{4}, Summary: []byte("s")}, {Epoch: 8, Value: []byte("x")}}}
}

func TestEncoding(t *testing.T) {
	t.Parallel()
	m := sampleMessage()
	b := paxos.AppendMessage(nil, m)
	if got, err := paxos.DecodeMessage(b); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, m)
	}
	r := paxos.Record{Kind: paxos.RecordDecided, Epoch: 8, Ballot: m.Ballot, Value: m.Value, Entries: m.Entries}
	rb := paxos.AppendRecord(nil, r)
	if got, err := paxos.DecodeRecord(rb); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, r)
	}
	for i := range b {
		if _, err := paxos.DecodeMessage(b[:i]); !errors.Is(err, paxos.ErrEncoding) {
			t.Fatalf("the first %d bytes: %v", i, err)
		}
	}
	for i := range rb {
		if _, err := paxos.DecodeRecord(rb[:i]); !errors.Is(err, paxos.ErrEncoding) {
			t.Fatalf("the first %d bytes of a record: %v", i, err)
		}
	}
	if _, err := paxos.DecodeMessage(append(b, 0)); !errors.Is(err, paxos.ErrEncoding) {
		t.Errorf("a byte too many: %v", err)
	}
	b[0]++
	if _, err := paxos.DecodeMessage(b); !errors.Is(err, paxos.ErrEncoding) {
		t.Errorf("another version: %v", err)
	}
}

func TestFit(t *testing.T) {
	t.Parallel()
	full, bare := paxos.Entry{Value: make([]byte, 1000)}, paxos.Entry{Summary: make([]byte, 10)}
	for _, c := range []struct {
		entries []paxos.Entry
		limit   int
		want    int
	}{
		{nil, 10, 0},
		{[]paxos.Entry{bare, bare}, 1 << 20, 0},
		{[]paxos.Entry{bare, full, bare, full}, 1 << 20, 4},
		{[]paxos.Entry{bare, full, bare, bare}, 1 << 20, 2},
		{[]paxos.Entry{full, full, full}, 2500, 2},
		{[]paxos.Entry{full, bare, full}, 1200, 1},
		{[]paxos.Entry{bare, bare, full, full}, 10, 3},
	} {
		if got := paxos.Fit(c.entries, c.limit); len(got) != c.want {
			t.Errorf("%d entries, limit %d: %d, want %d", len(c.entries), c.limit, len(got), c.want)
		}
	}
}

// Whatever decodes, a machine can be stepped with.
func FuzzStep(f *testing.F) {
	base := listed(1, 2, 3)
	one := after(base, members(1, 2, 3), members(1, 2, 3))
	two := after(one, members(1, 2, 3), members(1, 2, 3))
	m := sampleMessage()
	m.To, m.Previous, m.Epoch = member(1), one.Hash, 2
	for k := paxos.Prepare; k <= paxos.Fetch; k++ {
		m.Kind = k
		m.Entries, m.Value, m.Accepted.Value = []paxos.Entry{two}, two.Value, two.Value
		f.Add(paxos.AppendMessage(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := paxos.DecodeMessage(b)
		if err != nil {
			if !errors.Is(err, paxos.ErrEncoding) {
				t.Fatal(err)
			}
			return
		}
		if again := paxos.AppendMessage(nil, in); len(again) > len(b) {
			t.Fatalf("%d bytes decoded, %d encoded", len(b), len(again))
		}
		machine, err := paxos.New(paxos.Options{Self: member(1), Boot: 2, Decode: decode, State: paxos.State{Newest: one}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := machine.Read(1); err != nil {
			t.Fatal(err)
		}
		if _, err := machine.Propose(2, 1, two.Value); err != nil {
			t.Fatal(err)
		}
		in.To = member(1)
		s := paxos.State{Newest: one}
		for range 2 {
			for _, r := range machine.Step(in).Persist {
				if err := s.Apply(r); err != nil {
					t.Fatal(err)
				}
			}
		}
		if machine.Newest().Epoch < 1 || s.Newest.Epoch != machine.Newest().Epoch {
			t.Fatalf("durable %v, newest %v", s.Newest, machine.Newest())
		}
	})
}
